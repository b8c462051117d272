"""Looks closer: names a region of an image, in per mille of the whole, without touching pixels.

Arguments come in percent of what the agent sees. If that is a crop already, the boxes compose.

Invariants (tests/property/test_zoom_properties.py):

1. A composed box lies inside the outer one (test_inside) and composing with the whole changes
   nothing (test_the_whole_is_neutral).
2. Each edge is within half a per mille of the exact place (test_edges_are_exact_to_rounding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cogitate.tool_executor.core.types import (
    WHOLE,
    Arguments,
    Box,
    Image,
    Json,
    Outcome,
    Tool,
    ToolError,
)

# What the vision-encoder takes at the least, so that the model hears of it from here.
MIN_SIDE_PX = 2
TOO_SMALL = "The box is too small to look at."


def zoom(image: Image, box_percent: tuple[float, float, float, float]) -> Image:
    """Returns the region of `image`; `box_percent` is (x0, y0, x1, y1) of what is seen, 0 to 100.

    Edges are rounded to the nearest per mille, halves up. Raises ToolError if the box is empty,
    outside, or smaller than a per mille or, where the image's size is known, MIN_SIDE_PX.
    """
    x0, y0, x1, y1 = box_percent
    if not (0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 100):
        raise ToolError("The box must have 0 <= x0 < x1 <= 100 and 0 <= y0 < y1 <= 100.")
    outer = image.box or WHOLE
    edges = (
        _place(outer.x0, outer.x1, x0),
        _place(outer.y0, outer.y1, y0),
        _place(outer.x0, outer.x1, x1),
        _place(outer.y0, outer.y1, y1),
    )
    try:
        box = Box(*edges)
    except ValueError:
        raise ToolError(TOO_SMALL) from None
    for size_px, start, end in (
        (image.width_px, box.x0, box.x1),
        (image.height_px, box.y0, box.y1),
    ):
        if size_px and round(size_px * end / 1000) - round(size_px * start / 1000) < MIN_SIDE_PX:
            raise ToolError(TOO_SMALL)
    return Image(image.digest, box, image.width_px, image.height_px)


def _place(start: int, end: int, percent: float) -> int:
    return math.floor(start + (end - start) * percent / 100 + 0.5)


def run(arguments: Arguments, images: Sequence[Image]) -> Outcome:
    """Runs the tool on {"box": [x0, y0, x1, y1], "image": index}; the index defaults to 0."""
    if not {"box"} <= set(arguments) <= {"box", "image"}:
        raise ToolError("zoom takes a box and, if there are several images, an image.")
    box, index = arguments["box"], arguments.get("image", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(edge) for edge in box):
        raise ToolError("The box must be four numbers, x0, y0, x1, y1, in percent.")
    if not images:
        raise ToolError("There is no image to look at.")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(images):
        raise ToolError(f"The image must be a number from 0 to {len(images) - 1}.")
    region = zoom(images[index], (box[0], box[1], box[2], box[3]))  # type: ignore[arg-type]
    return Outcome(images=(region,))


def _is_number(value: Json) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -1e6 < value < 1e6  # also false for NaN
    )


TOOL = Tool(
    name="zoom",
    version="1",
    description="Shows a region of an image in more detail.",
    schema={
        "type": "object",
        "properties": {
            "box": {
                "type": "array",
                "items": {"type": "number", "minimum": 0, "maximum": 100},
                "minItems": 4,
                "maxItems": 4,
                "description": "x0, y0, x1, y1 in percent of the image's width and height.",
            },
            "image": {
                "type": "integer",
                "minimum": 0,
                "default": 0,
                "description": "Which image, from 0: the question's, then those tools showed.",
            },
        },
        "required": ["box"],
        "additionalProperties": False,
    },
    run=run,
)
