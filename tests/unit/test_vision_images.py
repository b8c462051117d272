"""Reading image files: sizes, limits, orientation, colours; and what is refused before decoding."""

from __future__ import annotations

import struct

import pytest
from cogitate.kit.errors import InvalidRequest
from cogitate.vision_encoder.core import image_header
from cogitate.vision_encoder.core.image_header import read_header
from cogitate.vision_encoder.core.picture import decode, orientation, read_picture, split_jpeg
from cogitate.vision_encoder.core.types import ImageHeader, ImageLimits
from PIL import Image

from tests.fakes import images

pytestmark = pytest.mark.unit

LIMITS = ImageLimits(
    max_bytes=1 << 20, max_pixels=1_000_000, max_side_px=10_000, max_frames=10, max_scans=64
)


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read_picture(data, limits)
    assert caught.value.reason == "BAD_IMAGE"
    return caught.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (3, 257)])
def test_sizes_are_found(kind: str, size: tuple[int, int]) -> None:
    header, picture = read_picture(images.file(images.picture(*size), kind), LIMITS)
    assert header == ImageHeader(f"image/{kind.lower()}", *size)
    assert (picture.size, picture.mode) == (size, "RGB")


@pytest.mark.parametrize(
    ("options", "num_frames"),
    [({"lossless": True}, 1), ({"save_all": True, "append_images": [images.picture(9, 7, 1)]}, 2)],
)
def test_the_other_kinds_of_webp(options: dict[str, object], num_frames: int) -> None:
    header, picture = read_picture(images.file(images.picture(9, 7), "WEBP", **options), LIMITS)
    assert header == ImageHeader("image/webp", 9, 7, num_frames)
    assert picture.size == (9, 7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK"])
def test_every_colour_mode_becomes_rgb(mode: str) -> None:
    grey = images.picture(8, 8).convert("L")
    if mode == "I;16":
        wide = [value * 257 for value in grey.tobytes()]
        image = Image.frombytes("I;16", (8, 8), struct.pack("<64H", *wide))
    elif mode == "PA":
        image = grey.convert("P")
        image.info["transparency"] = bytes(range(256))
    elif mode == "LA":
        image = grey.convert("LA")
    else:
        image = grey.convert("RGB").convert(mode)
    data = images.file(image, "JPEG", quality=95) if mode == "CMYK" else images.file(image, "PNG")
    _, picture = read_picture(data, LIMITS)
    assert picture.mode == "RGB"
    if mode in ("L", "LA", "P", "PA", "RGB", "RGBA", "I;16"):
        expected = grey if mode != "P" else image.convert("L")
        assert list(picture.convert("L").tobytes()) == pytest.approx(
            list(expected.tobytes()), abs=1
        )


@pytest.mark.parametrize("number", range(1, 9))
def test_the_orientation_is_applied(number: int) -> None:
    from PIL import ImageOps

    stored = images.picture(6, 4)
    exif = Image.Exif()
    exif[0x0112] = number
    stored.info["exif"] = exif.tobytes()
    stored.getexif()[0x0112] = number
    _, picture = read_picture(images.turned(number), LIMITS)
    wanted = ImageOps.exif_transpose(stored)
    assert (picture.size, picture.tobytes()) == (wanted.size, wanted.tobytes())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_orientation_is_found_in_each_format(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    data = images.file(images.picture(6, 4), kind, exif=exif)
    assert read_picture(data, LIMITS)[1].size == (4, 6)


@pytest.mark.parametrize(
    "exif",
    [
        *(None, "text", b"", b"Exif\x00\x00", b"II*\x00", b"II*\x00\xff\xff\xff\xff"),
        b"II*\x00\x08\x00\x00\x00\xff\xff" + bytes(20),
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x09\x00\x00",
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x00\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00",
        b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x04\x00\x00\x00\x01\x00\x06\x00\x00",
    ],
)
def test_a_senseless_orientation_is_none(exif: object) -> None:
    assert orientation(exif) == 1


def test_both_byte_orders_are_read() -> None:
    big = b"MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    little = b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x05\x00\x00\x00"
    assert (orientation(big), orientation(b"Exif\x00\x00" + little)) == (6, 5)


def test_a_jpegs_metadata_never_reaches_the_decoder() -> None:
    senseless = b"Exif\x00\x00II*\x00" + b"\xff" * 60_000
    plain = images.picture(9, 7)
    data = images.file(plain, "JPEG", exif=senseless, comment=b"c" * 99)
    _, picture = read_picture(data, LIMITS)
    assert picture.tobytes() == read_picture(images.file(plain, "JPEG"), LIMITS)[1].tobytes()
    bare, exif = split_jpeg(data)
    assert exif == senseless and b"Exif" not in bare and b"ccc" not in bare and b"JFIF" in bare


def test_every_refusal_has_its_words() -> None:
    assert refusal(b"") == image_header.EMPTY
    assert refusal(bytes(2 << 20)) == image_header.TOO_MANY_BYTES
    for other in (images.SVG, images.TIFF, images.BMP, images.JPEG2000, b"RIFF....WAVE"):
        assert refusal(other) == image_header.UNKNOWN_FORMAT
    assert refusal(images.png_claiming(50_000, 50_000)) == image_header.TOO_LONG_SIDE
    assert refusal(images.png_claiming(1, 65_535)) == image_header.TOO_LONG_SIDE
    assert refusal(images.png_claiming(5_000, 5_000)) == image_header.TOO_MANY_PIXELS
    assert refusal(images.png_claiming(0, 5)) == image_header.NO_PIXELS
    assert refusal(images.gif(11)) == image_header.TOO_MANY_FRAMES
    assert refusal(images.apng_claiming(11)) == image_header.TOO_MANY_FRAMES
    assert refusal(images.gif_frame_outside()) == image_header.DAMAGED
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = images.file(images.picture(9, 9), kind)
        assert refusal(images.zip_after(whole)) == image_header.ARCHIVE
        for length in (12, 20, 30, len(whole) // 2, len(whole) - 1):
            assert refusal(whole[:length]) == image_header.DAMAGED


def test_an_animated_webp_has_its_frames_counted() -> None:
    frames = [images.picture(8, 8, seed) for seed in range(12)]
    data = images.file(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert refusal(data) == image_header.TOO_MANY_FRAMES


def test_scans_are_counted() -> None:
    data = images.file(images.picture(64, 64), "JPEG", progressive=True)
    num_scans = data.count(b"\xff\xda")
    exact = ImageLimits(1 << 20, 10_000, 100, 1, num_scans)
    assert read_header(data, exact).width_px == 64
    assert refusal(data, ImageLimits(1 << 20, 10_000, 100, 1, num_scans - 1)) == (
        image_header.TOO_MANY_SCANS
    )


def test_a_second_size_in_a_jpeg_is_a_lie() -> None:
    data = images.file(images.picture(8, 8), "JPEG")
    at = data.index(b"\xff\xc0")
    (num_bytes,) = struct.unpack_from(">H", data, at + 2)
    again = bytearray(data[at : at + 2 + num_bytes])
    again[5:9] = struct.pack(">HH", 9_000, 9_000)
    assert refusal(data[:at] + bytes(again) + data[at:]) == image_header.DAMAGED
    assert refusal(data[:at] + data[at : at + 2 + num_bytes] + bytes(again)) == image_header.DAMAGED


def test_too_many_pieces_are_refused() -> None:
    empty = images.png_chunk(b"teSt", b"")
    data = images.png()[:33] + empty * (image_header.MAX_PIECES + 1) + images.png()[33:]
    wide = ImageLimits(1 << 30, 10_000, 100, 1, 1)
    assert refusal(data, wide) == image_header.DAMAGED


def jpeg_with(*parts: bytes) -> bytes:
    """Returns a good JPEG with parts put in after its first two bytes."""
    good = images.file(images.picture(8, 8), "JPEG")
    return good[:2] + b"".join(parts) + good[2:]


def test_fill_bytes_and_bare_markers_of_jpeg_are_passed_over() -> None:
    plain = read_picture(jpeg_with(), LIMITS)[1]
    for parts in ([b"\xff\x01"], [b"\xff\xd0"], [b"\xff\xff"], [b"\xff\xfe\x00\x02"]):
        assert read_header(jpeg_with(*parts), LIMITS).width_px == 8
        assert read_picture(jpeg_with(*parts), LIMITS)[1].tobytes() == plain.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xd9",  # ends before it begins
        jpeg_with(b"\xff\xfe\x00\x01"),  # shorter than its own length
        jpeg_with(b"\xff\xfe\xff\xff"),
        jpeg_with(b"\xff\xd0\x00\x00"),  # no marker where one must be
        jpeg_with(b"\xff\xd0" * image_header.MAX_PIECES),
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b";",  # no frame
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"?",
        b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0) + b"!\xfe\x05abcde",
        b"GIF89a"
        + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
        + b"!\xfe"
        + b"\x01x" * (image_header.MAX_PIECES + 1),
        b"GIF89a"
        + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
        + b"!\xfe\x00" * (image_header.MAX_PIECES + 1),
        b"RIFF\x04\x00\x00\x00WEBP",  # nothing in it
        b"RIFF\x10\x00\x00\x00WEBPICCP\x04\x00\x00\x00abcd",
        b"RIFF\x10\x00\x00\x00WEBPVP8L\xff\x00\x00\x00abcd",
        b"RIFF\x0e\x00\x00\x00WEBPVP8 \x02\x00\x00\x00ab",
        b"\x89PNG\r\n\x1a\n" + images.png_chunk(b"IDAT", bytes(13)),
        b"\x89PNG\r\n\x1a\n" + images.png_chunk(b"IHDR", bytes(12)),
    ],
)
def test_senseless_structures_are_damaged(data: bytes) -> None:
    assert refusal(data) == image_header.DAMAGED


def test_webp_with_too_many_chunks_is_damaged() -> None:
    body = images.file(images.picture(9, 7), "WEBP")[12:]
    body += b"JUNK\x00\x00\x00\x00" * image_header.MAX_PIECES
    data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    assert refusal(data) == image_header.DAMAGED


def test_frames_of_png_are_counted_by_what_is_there_too() -> None:
    control = images.png_chunk(b"fcTL", bytes(26))
    good = images.png(8, 8)
    assert read_header(good[:33] + control * 10 + good[33:], LIMITS).num_frames == 10
    assert refusal(good[:33] + control * 11 + good[33:]) == image_header.TOO_MANY_FRAMES


def test_the_bytes_of_a_zip_by_chance_are_no_zip() -> None:
    good = images.png()
    chance = images.png_chunk(b"teSt", b"PK\x05\x06" + bytes(18))
    assert read_header(good[:33] + chance + good[33:], LIMITS).width_px == 40
    assert read_header(good[:-12] + images.png_chunk(b"teSt", b"PK\x05\x06") + good[-12:], LIMITS)


def test_pixels_other_than_promised_are_refused() -> None:
    with pytest.raises(InvalidRequest):
        decode(images.png(40, 30), ImageHeader("image/png", 30, 40))
    with pytest.raises(InvalidRequest):
        decode(images.png(40, 30), ImageHeader("image/jpeg", 40, 30))
