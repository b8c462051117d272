"""Composed boxes stay inside, and where they should be."""

from __future__ import annotations

from fractions import Fraction

import pytest
from cogitate.tool_executor.core.types import WHOLE, Box, Image, ToolError
from cogitate.tool_executor.core.zoom import zoom
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

Percent = tuple[float, float, float, float]


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    two = st.tuples(st.integers(low, high), st.integers(low, high))
    return two.filter(lambda pair: pair[0] < pair[1])


boxes = st.builds(lambda x, y: Box(x[0], y[0], x[1], y[1]), pairs(0, 1000), pairs(0, 1000))
percents = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), pairs(0, 100), pairs(0, 100)) | (
    st.builds(lambda x, y: (x[0] / 8, y[0] / 8, x[1] / 8, y[1] / 8), pairs(0, 800), pairs(0, 800))
)


@given(boxes, percents)
def test_inside(outer: Box, percent: Percent) -> None:
    try:
        box = zoom(Image("d", outer), percent).box
    except ToolError as error:
        assert "too small" in str(error)
        return
    assert box is not None
    assert outer.x0 <= box.x0 < box.x1 <= outer.x1
    assert outer.y0 <= box.y0 < box.y1 <= outer.y1


@given(boxes, percents)
def test_edges_are_exact_to_rounding(outer: Box, percent: Percent) -> None:
    try:
        box = zoom(Image("d", outer), percent).box
    except ToolError:
        return
    assert box is not None
    for got, start, end, part in (
        (box.x0, outer.x0, outer.x1, percent[0]),
        (box.y1, outer.y0, outer.y1, percent[3]),
    ):
        assert abs(got - (start + (end - start) * Fraction(part) / 100)) <= Fraction(1, 2)


@given(boxes)
def test_the_whole_is_neutral(box: Box) -> None:
    assert zoom(Image("d", box), (0, 0, 100, 100)).box == box
    tenths = (box.x0 / 10, box.y0 / 10, box.x1 / 10, box.y1 / 10)
    assert zoom(Image("d", WHOLE), tenths) == zoom(Image("d"), tenths) == Image("d", box)
