"""Image files for tests: good ones, and ones that lie about themselves."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from PIL import Image


def picture(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    """Returns noise in RGB."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Returns the image as a file of the kind "PNG", "JPEG", "WEBP" or "GIF"."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width_px: int = 40, height_px: int = 30, seed: int = 0) -> bytes:
    """Returns a PNG of noise."""
    return file(picture(width_px, height_px, seed), "PNG")


SECRET = b"at home, 3rd of May"


def camera(orientation: int) -> dict[str, Any]:
    """Returns options for `file`: what a camera writes beside the pixels, and how it was held."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, SECRET.decode()
    return {"exif": exif}


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """Returns one chunk of a PNG with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width_px: int, height_px: int, *, num_bytes: int = 50_000) -> bytes:
    """Returns a well-formed PNG that says it is so large; its pixels are zeros, or missing."""
    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(num_bytes * 900))[:num_bytes]
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )


def apng_claiming(num_frames: int) -> bytes:
    """Returns a small PNG that says it has so many frames."""
    data = png(8, 8)
    control = png_chunk(b"acTL", struct.pack(">II", num_frames, 0))
    return data[:33] + control + data[33:]


def gif(num_frames: int, *, side_px: int = 4) -> bytes:
    """Returns a GIF of so many frames, each with one block of data."""
    still = file(Image.new("P", (side_px, side_px), 1), "GIF")
    at = still.index(b"\x2c", 13 + 3 * 2 ** ((still[10] & 7) + 1) if still[10] & 0x80 else 13)
    head, frame = still[:at], still[at:-1]
    return head + frame * num_frames + b"\x3b"


def gif_frame_outside() -> bytes:
    """Returns a GIF of 4 x 4 whose frame says it is 60,000 wide."""
    data = bytearray(gif(1))
    at = data.index(b"\x2c", 13)
    data[at + 5 : at + 7] = struct.pack("<H", 60_000)
    return bytes(data)


def zip_after(image: bytes) -> bytes:
    """Returns the image with a zip archive appended."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("payload", "text")
    return image + out.getvalue()


def turned(orientation: int, width_px: int = 6, height_px: int = 4) -> bytes:
    """Returns a PNG with an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(picture(width_px, height_px), "PNG", exif=exif)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
TIFF = file(picture(4, 4), "TIFF")
BMP = file(picture(4, 4), "BMP")
JPEG2000 = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64)
