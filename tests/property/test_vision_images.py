"""Whatever the bytes: a picture within the limits, or one of the fixed sentences."""

from __future__ import annotations

import io

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core import image_header
from cogitate.vision_encoder.core.image_header import read_header
from cogitate.vision_encoder.core.picture import read_picture
from cogitate.vision_encoder.core.types import ImageLimits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fakes import images

pytestmark = pytest.mark.property

LIMITS = ImageLimits(
    max_bytes=100_000, max_pixels=2_000, max_side_px=100, max_frames=4, max_scans=12
)
SENTENCES = {
    value
    for name, value in vars(image_header).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str)
}
KINDS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP", "gif": "GIF"}
GOOD = [images.file(images.picture(20, 15), kind) for kind in KINDS.values()]
GOOD += [
    images.file(images.picture(20, 15), "JPEG", progressive=True),
    images.file(images.picture(20, 15), "WEBP", lossless=True),
    images.apng_claiming(2),
    images.turned(6),
    images.gif(3),
]
MAGIC = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x40\x00\x00\x00WEBP"]


def answer(data: bytes) -> None:
    try:
        header, picture = read_picture(data, LIMITS)
    except InvalidRequest as error:
        assert error.message in SENTENCES
        assert error.reason == "BAD_IMAGE"
    else:
        assert picture.mode == "RGB"
        assert {header.width_px, header.height_px} == set(picture.size)
        assert picture.width * picture.height <= LIMITS.max_pixels
        assert header.num_frames <= LIMITS.max_frames


@settings(deadline=None)  # the first use of a decoder loads it
@given(st.sampled_from([b"", *MAGIC]), st.binary(max_size=300))
def test_any_bytes_are_answered(magic: bytes, rest: bytes) -> None:
    answer(magic + rest)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(GOOD), st.data())
def test_damaged_files_are_answered(good: bytes, data: st.DataObject) -> None:
    spoilt = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(spoilt) - 1, 200)) | st.integers(0, len(spoilt) - 1))
        spoilt[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(spoilt)) | st.just(len(spoilt)))
    answer(bytes(spoilt[:cut]) + data.draw(st.binary(max_size=10)))


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 33), st.sampled_from(sorted(KINDS)))
def test_header_agrees_with_pillow(width: int, height: int, kind: str) -> None:
    data = images.file(images.picture(width, height), KINDS[kind])
    header = read_header(data, LIMITS)
    assert (header.width_px, header.height_px) == Image.open(io.BytesIO(data)).size
    assert header.media_type == f"image/{kind}"
