"""Decodes an image file whose header was read and accepted, into upright RGB pixels.

The decoder classes are called directly, so no other format's parser can be reached. Their errors
are replaced by one fixed sentence: what Pillow says may hold addresses and paths. A JPEG's metadata
is cut out first, because Pillow parses it all, and warns, where only the orientation is wanted.
"""

from __future__ import annotations

import io
import struct
from typing import Final

from cogitate.vision_encoder.core.image_header import DAMAGED, JPEG_BARE, read_header
from cogitate.vision_encoder.core.types import ImageHeader, ImageLimits, bad_image
from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

_DECODERS: Final[dict[str, type[ImageFile.ImageFile]]] = {
    "image/png": PngImagePlugin.PngImageFile,
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
}
JPEG_METADATA: Final = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
_ORIENTATION_TAG: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(data: bytes, limits: ImageLimits) -> tuple[ImageHeader, Image.Image]:
    """Returns the header and the first frame, RGB, upright. Raises InvalidRequest (BAD_IMAGE)."""
    header = read_header(data, limits)
    return header, decode(data, header)


def decode(data: bytes, header: ImageHeader) -> Image.Image:
    """Returns the first frame as RGB, upright; transparency is dropped, not blended.

    Raises InvalidRequest (BAD_IMAGE) if the pixels are not those the header promised.
    """
    exif: object = None
    try:
        if header.media_type == "image/jpeg":
            data, exif = split_jpeg(data)
        picture: Image.Image = _DECODERS[header.media_type](io.BytesIO(data))
        if picture.size != (header.width_px, header.height_px):
            raise bad_image(DAMAGED)
        picture.load()
        turn = _TURNS.get(orientation(exif or picture.info.get("exif")))
        picture.info.clear()  # or Pillow warns of a transparent palette
        if picture.mode.startswith("I"):  # 16 bits of grey
            picture = picture.convert("I").point(lambda value: value / 256).convert("L")
        picture = picture.convert("RGB")
        return picture if turn is None else picture.transpose(turn)
    except Exception:
        raise bad_image(DAMAGED) from None


def split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Returns a JPEG without its metadata, and its EXIF data. The header was read before.

    What says how to decode it stays: JFIF and Adobe's colour transform.
    """
    kept, exif = [data[:2]], b""
    at = 2
    while True:
        while data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if marker == 0xDA:
            return b"".join([*kept, data[at:]]), exif
        if marker in JPEG_BARE:
            at += 2
            continue
        (num_bytes,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + num_bytes]
        at += 2 + num_bytes
        if marker == 0xE1 and segment[4:10] == b"Exif\x00\x00":
            exif = exif or segment[4:]
        if marker not in JPEG_METADATA:
            kept.append(segment)


def orientation(exif: object) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 if there is none or the data makes no sense."""
    if not isinstance(exif, bytes):
        return 1
    raw = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(raw[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", raw, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", raw, at)
        for index in range(num_entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", raw, at + 2 + 12 * index)
            if tag == _ORIENTATION_TAG:
                is_one_short = kind == 3 and count == 1
                return value if is_one_short and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
