"""Pictures without what stands beside them: which bytes stay, and what is drawn anew."""

from __future__ import annotations

import io

import pytest
from cogitate.vision_encoder.core.bare import bare_file, drawn
from cogitate.vision_encoder.core.image_header import read_header
from cogitate.vision_encoder.core.picture import decode
from cogitate.vision_encoder.core.types import ImageLimits
from PIL import Image, PngImagePlugin

from tests.fakes import images

pytestmark = pytest.mark.unit

LIMITS = ImageLimits(
    max_bytes=1 << 20, max_pixels=1_000_000, max_side_px=10_000, max_frames=10, max_scans=64
)
PICTURE = images.picture(40, 30)


def pixels(data: bytes) -> bytes:
    return decode(data, read_header(data, LIMITS)).tobytes()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_a_jpeg_keeps_its_very_pixels(options: dict[str, object]) -> None:
    data = images.file(PICTURE, "JPEG", comment=images.SECRET, **images.camera(1), **options)
    bare = bare_file(data, "image/jpeg")
    assert bare is not None
    assert pixels(bare) == pixels(data)
    assert images.SECRET not in bare
    assert bare == bare_file(bare, "image/jpeg")


def test_what_a_phone_puts_behind_a_jpeg_is_cut_off() -> None:
    data = images.file(PICTURE, "JPEG", progressive=True)
    second = images.file(images.picture(4, 4), "JPEG", **images.camera(1))
    assert bare_file(data + second, "image/jpeg") == bare_file(data, "image/jpeg")


def test_metadata_between_the_scans_of_a_jpeg_is_left_out() -> None:
    data = images.file(PICTURE, "JPEG", progressive=True)
    at = data.rindex(b"\xff\xda")
    comment = b"\xff\xfe" + (2 + len(images.SECRET)).to_bytes(2, "big") + images.SECRET
    told = data[:at] + comment + data[at:]
    assert pixels(told) == pixels(data)
    assert bare_file(told, "image/jpeg") == bare_file(data, "image/jpeg")


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "1", "RGBA"])
def test_a_png_keeps_its_very_pixels(mode: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Where", images.SECRET.decode(), zip=False)
    data = images.file(PICTURE.convert(mode), "PNG", pnginfo=info, **images.camera(1))
    bare = bare_file(data, "image/png")
    assert bare is not None
    assert pixels(bare) == pixels(data)
    assert Image.open(io.BytesIO(bare)).mode == mode
    assert images.SECRET not in bare


def test_of_a_png_that_moves_the_first_frame_is_kept() -> None:
    more = {"save_all": True, "append_images": [images.picture(40, 30, seed=1)]}
    bare = bare_file(images.file(PICTURE, "PNG", **more), "image/png")
    assert bare is not None
    assert pixels(bare) == PICTURE.tobytes()
    assert read_header(bare, LIMITS).num_frames == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_is_turned_is_drawn_anew(kind: str, orientation: int) -> None:
    data = images.file(PICTURE, kind, **images.camera(orientation))
    assert bare_file(data, f"image/{kind.lower()}") is None


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_kinds_that_not_every_reader_knows_are_drawn_as_png(kind: str) -> None:
    assert bare_file(images.file(PICTURE, kind), f"image/{kind.lower()}") is None
    data, media_type = drawn(PICTURE, f"image/{kind.lower()}")
    assert media_type == "image/png"
    assert pixels(data) == PICTURE.tobytes()


def test_photos_stay_jpeg() -> None:
    assert drawn(PICTURE, "image/jpeg")[1] == "image/jpeg"
