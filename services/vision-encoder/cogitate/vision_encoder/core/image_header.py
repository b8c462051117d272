"""Reads what an image file says about itself, and refuses it before any decoder sees it.

Only PNG, JPEG, WebP and GIF are known, by their first bytes. The walk over the file's structure
finds the size in pixels, counts frames (APNG, GIF, WebP) and scans (JPEG), and notices a file that
is cut off. It touches no compressed byte, and ends at the first limit passed.

Invariants (tests/property/test_vision_images.py):

1. Whatever the bytes, the outcome is a header within the limits or InvalidRequest with one of the
   fixed sentences (test_any_bytes_are_answered, test_damaged_files_are_answered).
2. The size is the one Pillow finds (test_header_agrees_with_pillow).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from cogitate.vision_encoder.core.types import ImageHeader, ImageLimits, bad_image

UNKNOWN_FORMAT = "the file is not a PNG, JPEG, WebP or GIF image"
EMPTY = "the image file is empty"
DAMAGED = "the image file is damaged or cut off"
ARCHIVE = "the image file is an archive as well"
TOO_MANY_BYTES = "the image file has more bytes than allowed"
TOO_MANY_PIXELS = "the image has more pixels than allowed"
TOO_LONG_SIDE = "the image is wider or higher than allowed"
TOO_MANY_FRAMES = "the image has more frames than allowed"
TOO_MANY_SCANS = "the image has more scans than allowed"
NO_PIXELS = "the image has no pixels"

# Chunks, segments or sub-blocks; a 20 MB GIF has 80,000.
MAX_PIECES = 100_000
_ZIP_END = b"PK\x05\x06"
_ZIP_END_BYTES = 22
_ZIP_COMMENT_BYTES = 65_535
# In JPEG's entropy-coded data FF is followed by 00 (stuffing) or a restart; else it is a marker.
JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Markers that stand alone, without a length.
JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})


def read_header(data: bytes, limits: ImageLimits) -> ImageHeader:
    """Returns the header of an image file. Raises InvalidRequest, reason BAD_IMAGE. O(pieces)."""
    if not data:
        raise bad_image(EMPTY)
    if len(data) > limits.max_bytes:
        raise bad_image(TOO_MANY_BYTES)
    walk = next((walk for is_format, walk in _FORMATS if is_format(data)), None)
    if walk is None:
        raise bad_image(UNKNOWN_FORMAT)
    if _is_zip(data):
        raise bad_image(ARCHIVE)
    try:
        header = walk(data, limits)
    except (struct.error, IndexError):  # a field lies beyond the end
        raise bad_image(DAMAGED) from None
    _check_size(header, limits)
    return header


def _check_size(header: ImageHeader, limits: ImageLimits) -> None:
    if header.width_px < 1 or header.height_px < 1:
        raise bad_image(NO_PIXELS)
    if max(header.width_px, header.height_px) > limits.max_side_px:
        raise bad_image(TOO_LONG_SIDE)
    if header.width_px * header.height_px > limits.max_pixels:
        raise bad_image(TOO_MANY_PIXELS)


def _is_zip(data: bytes) -> bool:
    """Tells whether a zip reader would open the file: its end record ends exactly at the end."""
    tail = data[-(_ZIP_END_BYTES + _ZIP_COMMENT_BYTES) :]
    at = tail.find(_ZIP_END)
    while at >= 0:
        if at + _ZIP_END_BYTES <= len(tail):
            (num_comment_bytes,) = struct.unpack_from("<H", tail, at + 20)
            if at + _ZIP_END_BYTES + num_comment_bytes == len(tail):
                return True
        at = tail.find(_ZIP_END, at + 1)
    return False


def _walk_png(data: bytes, limits: ImageLimits) -> ImageHeader:
    num_bytes, kind = struct.unpack_from(">I4s", data, 8)
    if kind != b"IHDR" or num_bytes != 13:
        raise bad_image(DAMAGED)
    width, height = struct.unpack_from(">II", data, 16)
    num_frames = num_controls = 0
    at = 8
    for _ in range(MAX_PIECES):
        num_bytes, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + num_bytes > len(data):
            break
        if kind == b"IEND":
            return ImageHeader("image/png", width, height, max(1, num_frames, num_controls))
        if kind == b"acTL":
            (num_frames,) = struct.unpack_from(">I", data, at + 8)
        elif kind == b"fcTL":
            num_controls += 1
        if max(num_frames, num_controls) > limits.max_frames:
            raise bad_image(TOO_MANY_FRAMES)
        at += 12 + num_bytes
    raise bad_image(DAMAGED)


def _walk_jpeg(data: bytes, limits: ImageLimits) -> ImageHeader:
    size: tuple[int, int] | None = None
    num_scans = 0
    at = 2
    for _ in range(MAX_PIECES):
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        at += 2
        if marker in JPEG_BARE:
            continue
        if marker == 0xD9:
            if size is None or not num_scans:
                break
            return ImageHeader("image/jpeg", *size)
        (num_bytes,) = struct.unpack_from(">H", data, at)
        if num_bytes < 2 or at + num_bytes > len(data):
            break
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            if size is not None:
                break  # one picture has one size
            size = (width, height)
        at += num_bytes
        if marker == 0xDA:
            num_scans += 1
            if num_scans > limits.max_scans:
                raise bad_image(TOO_MANY_SCANS)
            found = JPEG_MARKER.search(data, at)
            if found is None:
                break
            at = found.end() - 2
    raise bad_image(DAMAGED)


def _walk_gif(data: bytes, limits: ImageLimits) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_table_bytes(flags)
    num_frames = 0
    pieces = iter(range(MAX_PIECES))
    for _ in pieces:
        block = data[at]
        if block == 0x3B:
            if not num_frames:
                break
            return ImageHeader("image/gif", width, height, num_frames)
        if block == 0x21:
            at += 2
        elif block == 0x2C:
            num_frames += 1
            if num_frames > limits.max_frames:
                raise bad_image(TOO_MANY_FRAMES)
            left, top, frame_width, frame_height, flags = struct.unpack_from("<4HB", data, at + 1)
            # Pillow would enlarge the picture for a frame that reaches beyond it.
            if left + frame_width > width or top + frame_height > height:
                break
            at += 11 + _gif_table_bytes(flags)
        else:
            break
        while num_bytes := data[at]:
            at += 1 + num_bytes
            if next(pieces, None) is None:
                raise bad_image(DAMAGED)
        at += 1
    raise bad_image(DAMAGED)


def _gif_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _walk_webp(data: bytes, limits: ImageLimits) -> ImageHeader:
    (num_riff_bytes,) = struct.unpack_from("<I", data, 4)
    end = 8 + num_riff_bytes
    if end > len(data):
        raise bad_image(DAMAGED)
    size: tuple[int, int] | None = None
    num_frames = 0
    at = 12
    for _ in range(MAX_PIECES):
        if at >= end:
            if size is None:
                break
            return ImageHeader("image/webp", *size, max(1, num_frames))
        kind, num_bytes = struct.unpack_from("<4sI", data, at)
        if at + 8 + num_bytes > end:
            break
        if size is None:
            size = _webp_size(kind, data, at + 8)
        if kind == b"ANMF":
            num_frames += 1
            if num_frames > limits.max_frames:
                raise bad_image(TOO_MANY_FRAMES)
        at += 8 + num_bytes + (num_bytes & 1)
    raise bad_image(DAMAGED)


def _webp_size(kind: bytes, data: bytes, at: int) -> tuple[int, int]:
    if kind == b"VP8X":
        width, height = (
            int.from_bytes(data[start : start + 3], "little") for start in (at + 4, at + 7)
        )
        return width + 1, height + 1
    if kind == b"VP8 " and data[at + 3 : at + 6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, at + 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[at] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, at + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise bad_image(DAMAGED)


_Walk = Callable[[bytes, ImageLimits], ImageHeader]
_FORMATS: tuple[tuple[Callable[[bytes], bool], _Walk], ...] = (
    (lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _walk_png),
    (lambda data: data.startswith(b"\xff\xd8\xff"), _walk_jpeg),
    (lambda data: data.startswith((b"GIF87a", b"GIF89a")), _walk_gif),
    (lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _walk_webp),
)
