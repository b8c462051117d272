"""zoom: which region of which image, in per mille."""

from __future__ import annotations

import pytest
from cogitate.tool_executor.core.types import Box, Image, Json, ToolError
from cogitate.tool_executor.core.zoom import run, zoom

pytestmark = pytest.mark.unit

IMAGE = Image("sha256:1", None, 400, 300)


def test_percent_become_per_mille() -> None:
    assert zoom(IMAGE, (25, 33, 50, 67)) == Image("sha256:1", Box(250, 330, 500, 670), 400, 300)
    assert zoom(IMAGE, (0, 0, 100, 100)).box == Box(0, 0, 1000, 1000)
    assert zoom(Image("d"), (12.34, 0, 12.36, 50)).box == Box(123, 0, 124, 500)


def test_boxes_compose() -> None:
    crop = Image("sha256:1", Box(500, 0, 1000, 500))
    assert zoom(crop, (50, 50, 100, 100)).box == Box(750, 250, 1000, 500)
    assert zoom(crop, (0, 0, 100, 100)).box == crop.box


@pytest.mark.parametrize(
    "box",
    [(10, 0, 10, 5), (20, 0, 10, 5), (-1, 0, 10, 5), (0, 0, 101, 5), (0, 50, 10, 5), (0, 0, 1, 0)],
)
def test_empty_and_outside_boxes_are_refused(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ToolError, match="The box must have"):
        zoom(IMAGE, box)


def test_a_box_may_be_too_small_within_a_crop() -> None:
    with pytest.raises(ToolError, match="too small"):
        zoom(Image("sha256:1", Box(0, 0, 10, 10)), (0, 0, 1, 1))


def test_a_box_may_be_too_small_in_pixels() -> None:
    small = Image("sha256:1", None, 64, 64)
    assert zoom(small, (0, 0, 3, 100)).box == Box(0, 0, 30, 1000)  # 1.92 pixels, rounded
    for box in ((0.0, 0.0, 2.0, 100.0), (0.0, 0.0, 100.0, 2.0)):
        with pytest.raises(ToolError, match="too small"):
            zoom(small, box)
        zoom(Image("sha256:1"), box)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"box": None},
        {"box": [1, 2, 3]},
        {"box": [1, 2, 3, 4, 5]},
        {"box": [1, 2, "3", 4]},
        {"box": [0, 0, True, 4]},
        {"box": [0, 0, float("nan"), 4]},
        {"box": [0, 0, 10**30, 4]},
        {"box": [0, 0, 5, 5], "image": 2},
        {"box": [0, 0, 5, 5], "image": -1},
        {"box": [0, 0, 5, 5], "image": 0.0},
        {"box": [0, 0, 5, 5], "image": False},
        {"box": [0, 0, 5, 5], "else": 1},
    ],
)
def test_arguments_are_checked(arguments: dict[str, Json]) -> None:
    with pytest.raises(ToolError):
        run(arguments, (IMAGE, IMAGE))


def test_the_index_chooses_the_image() -> None:
    other = Image("sha256:2", Box(0, 0, 500, 500))
    asked: dict[str, Json] = {"box": [0, 0, 50, 50]}
    assert run(asked, (IMAGE, other)).images[0].digest == "sha256:1"
    assert run({**asked, "image": 1}, (IMAGE, other)).images[0].box == Box(0, 0, 250, 250)
    with pytest.raises(ToolError, match="no image"):
        run(asked, ())
