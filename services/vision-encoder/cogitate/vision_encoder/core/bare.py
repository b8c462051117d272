"""Image files for readers elsewhere: the picture alone, upright, in a kind all of them read.

What a camera writes beside the pixels (where and when, by whom, with what) is nobody's business who
is only asked about the picture, and not every reader heeds the turn that is written there, too. The
pixels of PNG and JPEG files are handed on as they are, unless they have to be turned.
"""

from __future__ import annotations

import io
import struct
from typing import Final

from cogitate.vision_encoder.core.image_header import JPEG_BARE, JPEG_MARKER
from cogitate.vision_encoder.core.picture import JPEG_METADATA, orientation, split_jpeg
from PIL import Image

_JPEG_END: Final = 0xD9
_PNG_SIGNATURE_BYTES: Final = 8
# What the pixels are made of; the rest is about them, or further frames.
_PNG_KEPT: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
# What cameras write at their better settings; a second loss should be smaller than the first.
_JPEG_QUALITY: Final = 95


def bare_file(data: bytes, media_type: str) -> bytes | None:
    """The file without metadata, or None if its picture must be drawn anew. Its header was read."""
    if media_type == "image/jpeg":
        _, exif = split_jpeg(data)
        return _bare_jpeg(data) if orientation(exif) == 1 else None
    return _bare_png(data) if media_type == "image/png" else None


def drawn(picture: Image.Image, media_type: str) -> tuple[bytes, str]:
    """A new file of the picture, and its media type: JPEG for what was one, PNG for all else."""
    file = io.BytesIO()
    if media_type == "image/jpeg":
        picture.save(file, "JPEG", quality=_JPEG_QUALITY)
        return file.getvalue(), media_type
    picture.save(file, "PNG")
    return file.getvalue(), "image/png"


def _bare_jpeg(data: bytes) -> bytes:
    """Without metadata, between scans as well, and what a phone puts behind the end."""
    kept, begin, at = [], 0, 2
    while (found := JPEG_MARKER.search(data, at)) is not None:
        marker, at = data[found.end() - 1], found.end()
        if marker == _JPEG_END:
            break
        if marker not in JPEG_BARE:
            at += struct.unpack_from(">H", data, at)[0]
        if marker in JPEG_METADATA:
            kept.append(data[begin : found.start()])
            begin = at
    return b"".join([*kept, data[begin:at]])


def _bare_png(data: bytes) -> bytes | None:
    kept, at = [data[:_PNG_SIGNATURE_BYTES]], _PNG_SIGNATURE_BYTES
    while True:
        num_bytes, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + num_bytes]
        at += len(chunk)
        if kind == b"eXIf" and orientation(chunk[8:-4]) != 1:
            return None
        if kind in _PNG_KEPT:
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
