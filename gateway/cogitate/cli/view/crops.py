"""Small pictures in a terminal: two pixels a character, by half blocks."""

from __future__ import annotations

import io
from typing import Final

from rich.color import Color
from rich.style import Style
from rich.text import Text

MAX_PIXELS: Final = 40_000_000
_UPPER_HALF: Final = "▀"


def render(data: bytes, width: int, height: int) -> Text | None:
    """Draws an image file into at most `width` by `height` characters, keeping its shape.

    None if it cannot be read, or if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        return None
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF")) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                return None
            scale = min(width / opened.width, 2 * height / opened.height)
            columns = max(1, min(width, round(opened.width * scale)))
            rows = max(1, min(height, round(opened.height * scale / 2)))
            small = opened.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    except Exception:
        return None  # whatever the file is, a picture that cannot be drawn is left out
    return _half_blocks(small.tobytes(), columns, rows)


def _half_blocks(pixels: bytes, columns: int, rows: int) -> Text:
    text = Text(no_wrap=True)
    for row in range(rows):
        for column in range(columns):
            upper = 3 * (2 * row * columns + column)
            lower = upper + 3 * columns
            style = Style(
                color=Color.from_rgb(*pixels[upper : upper + 3]),
                bgcolor=Color.from_rgb(*pixels[lower : lower + 3]),
            )
            text.append(_UPPER_HALF, style)
        if row < rows - 1:
            text.append("\n")
    return text
