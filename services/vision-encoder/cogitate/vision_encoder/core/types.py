"""The nouns of the vision-encoder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
from cogitate.kit.errors import InvalidRequest

# (tokens, hidden) float32, all finite.
Embedding = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in per mille of an image; x1 and y1 are exclusive. Valid as constructed."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if not (0 <= self.x0 < self.x1 <= 1000 and 0 <= self.y0 < self.y1 <= 1000):
            raise ValueError("not a box")


class Kind(Enum):
    """How a view is encoded: the names are those of the model's outputs."""

    WHOLE = "whole"
    CROP = "crop"


@dataclass(frozen=True, slots=True)
class View:
    """An image as a model sees it: whole, or a region. A box is a crop even if it covers all."""

    blob_digest: str
    box: Box | None = None

    @property
    def kind(self) -> Kind:
        """Which output encodes it."""
        return Kind.WHOLE if self.box is None else Kind.CROP


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image file may be at most; all are checked before a pixel is decoded."""

    max_bytes: int
    max_pixels: int
    max_side_px: int
    max_frames: int
    max_scans: int


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says about itself, before its orientation is applied."""

    media_type: str
    width_px: int
    height_px: int
    num_frames: int = 1


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored image file; the size in pixels is after applying its orientation."""

    digest: str
    data: bytes
    media_type: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A view's embedding; `is_cached` says that it was there before it was asked for."""

    view: View
    digest: str
    embedding: Embedding
    is_cached: bool


@dataclass(frozen=True, slots=True)
class Info:
    """What the encoder serves, on what, and what it did so far."""

    models: list[str]
    execution_providers: list[str]
    num_encoded_views: int
    num_cached_views: int
    cache_bytes: int
    blob_bytes: int
    num_fetched_blobs: int
    num_fetched_embeddings: int


def bad_image(sentence: str) -> InvalidRequest:
    """Returns the refusal of an image; `sentence` is fixed text, nothing of the file is in it."""
    return InvalidRequest(sentence, reason="BAD_IMAGE", field="chunk")
