"""Turns a view of a picture into the numbers a vision tower takes, as its model was trained.

Invariants (tests/property/test_vision_boxes.py):

1. A box that is accepted covers at least the minimum on both sides and lies inside the picture
   (test_accepted_boxes_are_inside).
2. A box in whole percents covers the pixels training would have cut
   (test_percent_boxes_as_trained).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core.types import Box
from PIL import Image

Pixels = npt.NDArray[np.float32]

MAX_IMAGE_SIZE_PX = 4096
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class BadPreprocessor(ValueError):
    """The model's preprocessor_config.json does not say what is needed."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """A model's recipe: resize to a square, scale to 0..1, subtract the mean, divide by std."""

    image_size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: Image.Resampling


def parse(config: Mapping[str, Any]) -> Preprocess:
    """Reads preprocessor_config.json; `resample` is a filter's name or Pillow's number for it."""
    size, resample = config.get("image_size"), config.get("resample")
    if not isinstance(size, int) or not 1 <= size <= MAX_IMAGE_SIZE_PX:
        raise BadPreprocessor(f"image_size must be 1 to {MAX_IMAGE_SIZE_PX}")
    if isinstance(resample, str) and resample.lower() in _FILTERS:
        chosen = _FILTERS[resample.lower()]
    elif isinstance(resample, int) and resample in tuple(Image.Resampling):
        chosen = Image.Resampling(resample)
    else:
        raise BadPreprocessor(f"resample must be one of {', '.join(_FILTERS)}")
    std = _triple(config, "std")
    if min(std) <= 0:
        raise BadPreprocessor("std must be above zero")
    return Preprocess(size, _triple(config, "mean"), std, chosen)


def _triple(config: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    values = config.get(name)
    try:
        red, green, blue = (float(value) for value in values or ())
    except (TypeError, ValueError):
        raise BadPreprocessor(f"{name} must be three numbers") from None
    return red, green, blue


def box_px(width_px: int, height_px: int, box: Box) -> tuple[int, int, int, int]:
    """Returns (left, top, right, bottom) in pixels, rounded as in training, halves to even."""
    return (
        round(width_px * box.x0 / 1000),
        round(height_px * box.y0 / 1000),
        round(width_px * box.x1 / 1000),
        round(height_px * box.y1 / 1000),
    )


def check_box(width_px: int, height_px: int, box: Box, *, min_side_px: int, field: str) -> None:
    """Raises InvalidRequest if the box covers fewer than `min_side_px` pixels on a side."""
    left, top, right, bottom = box_px(width_px, height_px, box)
    if min(right - left, bottom - top) < min_side_px:
        raise InvalidRequest(
            f"the box covers less than {min_side_px} pixels of the image on a side", field=field
        )


def cut(picture: Image.Image, box: Box | None) -> Image.Image:
    """Returns the region of a picture, or the picture itself for the whole."""
    return picture if box is None else picture.crop(box_px(*picture.size, box))


def prepare(picture: Image.Image, box: Box | None, recipe: Preprocess) -> Pixels:
    """Returns the view as (3, size, size) float32, channels red, green, blue."""
    size = (recipe.image_size_px, recipe.image_size_px)
    resized = cut(picture, box).resize(size, recipe.resample)
    scaled = np.asarray(resized, dtype=np.float32) / np.float32(255)
    mean = np.array(recipe.mean, dtype=np.float32)
    std = np.array(recipe.std, dtype=np.float32)
    return np.ascontiguousarray(((scaled - mean) / std).transpose(2, 0, 1))
