"""Walks a GGUF's metadata before it is read: what it counts must fit in the file.

The reader of the `gguf` package believes every length, and a damaged one can keep it busy for ever.
Source: the GGUF specification, versions 2 and 3; little-endian files only.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, Final

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
# Bytes of each kind of value; strings and arrays say how long they are.
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_TENSORS: Final = 100_000
_MAX_FIELDS: Final = 10_000
_MAX_NAME_BYTES: Final = 65_535
_MAX_DIMENSIONS: Final = 4


def check_header(file: Path) -> None:
    """Raises ValueError if the metadata is damaged or reaches beyond the file's end."""
    try:
        with file.open("rb") as opened:
            _Walk(opened, file.stat().st_size).header()
    except (struct.error, OverflowError):
        raise ValueError("the GGUF file is cut short") from None


class _Walk:
    """Reads forward; never beyond the end."""

    def __init__(self, opened: BinaryIO, num_bytes: int) -> None:
        self._file, self._num_bytes = opened, num_bytes

    def header(self) -> None:
        if self._file.read(4) != _MAGIC:
            raise ValueError("the file is no GGUF")
        (version,) = self._numbers("<I")
        if version not in _VERSIONS:
            raise ValueError(f"GGUF files of version {version} are not supported")
        num_tensors, num_fields = self._numbers("<QQ")
        if num_tensors > _MAX_TENSORS or num_fields > _MAX_FIELDS:
            raise ValueError("the GGUF's metadata is damaged")
        for _ in range(num_fields):
            self._text(_MAX_NAME_BYTES)
            (kind,) = self._numbers("<I")
            self._value(kind)
        for _ in range(num_tensors):
            self._text(_MAX_NAME_BYTES)
            (num_dimensions,) = self._numbers("<I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise ValueError("the GGUF's metadata is damaged")
            self._numbers(f"<{num_dimensions}QIQ")

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text(self._num_bytes)
        elif kind != _ARRAY:
            self._skip(self._size(kind))
        else:
            inner, length = self._numbers("<IQ")
            if inner == _STRING:
                for _ in range(length):  # each takes bytes of the file, so this ends
                    self._text(self._num_bytes)
            else:
                self._skip(self._size(inner) * length)

    def _size(self, kind: int) -> int:
        if kind not in _SIZES:
            raise ValueError("the GGUF's metadata is damaged")
        return _SIZES[kind]

    def _text(self, at_most: int) -> None:
        (length,) = self._numbers("<Q")
        if length > at_most:
            raise ValueError("the GGUF's metadata is damaged")
        self._skip(length)

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._file.read(struct.calcsize(layout)))

    def _skip(self, num_bytes: int) -> None:
        at = self._file.tell() + num_bytes
        if at > self._num_bytes:
            raise ValueError("the GGUF file is cut short")
        self._file.seek(at)
