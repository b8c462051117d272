"""Boxes that are accepted lie inside the picture, where training would have cut."""

from __future__ import annotations

import numpy as np
import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core.preprocess import box_px, check_box, parse, prepare
from cogitate.vision_encoder.core.types import Box
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import images

pytestmark = pytest.mark.property

RECIPE = parse({"image_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3, "resample": "bilinear"})


def pairs(high: int) -> st.SearchStrategy[tuple[int, int]]:
    two = st.tuples(st.integers(0, high), st.integers(0, high))
    return two.filter(lambda pair: pair[0] < pair[1])


boxes = st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), pairs(1000), pairs(1000))
sides = st.integers(1, 5000)


@given(sides, sides, boxes, st.integers(1, 20))
def test_accepted_boxes_are_inside(width: int, height: int, box: Box, least: int) -> None:
    left, top, right, bottom = box_px(width, height, box)
    assert 0 <= left <= right <= width and 0 <= top <= bottom <= height
    try:
        check_box(width, height, box, min_side_px=least, field="box")
    except InvalidRequest:
        assert right - left < least or bottom - top < least
    else:
        assert right - left >= least and bottom - top >= least


@given(sides, sides, pairs(100), pairs(100))
def test_percent_boxes_as_trained(
    width: int, height: int, x: tuple[int, int], y: tuple[int, int]
) -> None:
    box = Box(10 * x[0], 10 * y[0], 10 * x[1], 10 * y[1])
    assert box_px(width, height, box) == (
        round(width * x[0] / 100),
        round(height * y[0] / 100),
        round(width * x[1] / 100),
        round(height * y[1] / 100),
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 60), st.integers(4, 60), boxes)
def test_every_accepted_view_becomes_finite_numbers(width: int, height: int, box: Box) -> None:
    try:
        check_box(width, height, box, min_side_px=1, field="box")
    except InvalidRequest:
        return
    pixels = prepare(images.picture(width, height), box, RECIPE)
    assert pixels.shape == (3, 8, 8) and np.isfinite(pixels).all()
