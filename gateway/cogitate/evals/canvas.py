"""Paper, ink and camera: draws text and shapes, remembers where they are, then takes a photo.

The photo turns, blurs and dims the paper and adds pixel noise, all by one number `noise`: the turn
has a standard deviation of `noise` degrees and never more than `LARGEST_TURN`, the blur a radius up
to 0.5 x noise px, contrast falls by up to 12 % x noise, pixels get gaussian noise of 6 x noise (out
of 255). Evaluation uses 0.5 (easy) and 1.5 (hard); 2 is the end of the range that is trained.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from cogitate.evals.items import Box
from cogitate.evals.render import Colour, Pixels
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LARGEST_TURN = 3.0
MARGIN_PX = 2
Rect = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont

INKS: tuple[Colour, ...] = ((28, 30, 36), (40, 44, 60), (60, 40, 34), (20, 46, 74), (48, 48, 48))
PAPERS: tuple[Colour, ...] = (
    (255, 255, 255), (250, 249, 245), (252, 250, 240), (244, 248, 252), (246, 250, 245),
)  # fmt: skip
# Calm fills for headers and bars; text on them is white.
ACCENTS: tuple[Colour, ...] = (
    (52, 92, 148), (38, 120, 112), (148, 68, 74), (104, 84, 150), (186, 106, 44), (72, 84, 98),
    (86, 128, 62), (168, 78, 122),
)  # fmt: skip


@lru_cache(maxsize=4096)
def font_of(path: Path, size: int) -> Font:
    """Returns a font at a size in pixels."""
    return ImageFont.truetype(str(path), size)


@dataclass(frozen=True)
class Face:
    """A typeface: what text is set in, and what stands out."""

    plain: Path
    bold: Path

    def at(self, size: int, *, bold: bool = False) -> Font:
        """Returns one of its fonts."""
        return font_of(self.bold if bold else self.plain, size)


def draw_face(rng: np.random.Generator, fonts: tuple[Path, ...]) -> Face:
    """Draws a typeface; its bold is of the same family where there is one."""
    plain = fonts[rng.integers(len(fonts))]
    family = plain.name.split("-")[0]
    bolds = [p for p in fonts if p.name.startswith(family) and "bold" in p.name.lower()]
    upright = [p for p in bolds if not any(k in p.name for k in ("Italic", "Oblique"))]
    return Face(plain, upright[0] if upright else plain)


class Canvas:
    """A sheet of paper; owns its picture and the rectangles, in pixels, of what was marked."""

    def __init__(self, width: float, height: float, paper: Colour) -> None:
        self.width, self.height, self.paper = round(width), round(height), paper
        self.image = Image.new("RGB", (self.width, self.height), paper)
        self.draw = ImageDraw.Draw(self.image)
        self.marks: dict[Hashable, Rect] = {}

    def text(self, x: float, y: float, text: str, font: Font, ink: Colour, anchor: str) -> Rect:
        """Writes text and returns the rectangle it covers."""
        self.draw.text((x, y), text, font=font, fill=ink, anchor=anchor)
        return self.draw.textbbox((x, y), text, font=font, anchor=anchor)

    def photo(self, rng: np.random.Generator, noise: float) -> tuple[Pixels, dict[Hashable, Box]]:
        """Returns the picture as a camera sees it, and the marks as boxes on it."""
        limits = (-LARGEST_TURN, LARGEST_TURN)
        turn = float(np.clip(rng.normal() * noise, *limits)) if noise else 0.0
        image = self.image
        if turn:
            image = image.rotate(turn, Image.Resampling.BICUBIC, fillcolor=self.paper)
        blur = float(rng.uniform(0, 0.5) * noise)
        if blur > 0.2:
            image = image.filter(ImageFilter.GaussianBlur(blur))
        pixels = np.asarray(image, np.float32)
        pixels = 128 + (pixels - 128) * (1 - rng.uniform(0, 0.12) * noise)
        pixels = pixels + rng.normal(size=pixels.shape).astype(np.float32) * 6.0 * noise
        boxes = {key: self._box(rect, turn) for key, rect in self.marks.items()}
        return np.clip(pixels, 0, 255).astype(np.uint8), boxes

    def _box(self, rect: Rect, turn: float) -> Box:
        """Returns what a rectangle covers after the turn, in whole percent, never empty."""
        cx, cy, angle = self.width / 2, self.height / 2, math.radians(turn)
        cos, sin = math.cos(angle), math.sin(angle)
        corners = [(x - cx, y - cy) for x in (rect[0], rect[2]) for y in (rect[1], rect[3])]
        xs = [cx + x * cos + y * sin for x, y in corners]
        ys = [cy - x * sin + y * cos for x, y in corners]
        x0, x1 = _percent(min(xs) - MARGIN_PX, max(xs) + MARGIN_PX, self.width)
        y0, y1 = _percent(min(ys) - MARGIN_PX, max(ys) + MARGIN_PX, self.height)
        return x0, y0, x1, y1


def _percent(low: float, high: float, size: int) -> tuple[int, int]:
    start = min(99, max(0, math.floor(100 * low / size)))
    return start, max(start + 1, min(100, math.ceil(100 * high / size)))


def union(first: Rect, second: Rect) -> Rect:
    """Returns the rectangle around two others."""
    low = min(first[0], second[0]), min(first[1], second[1])
    return *low, max(first[2], second[2]), max(first[3], second[3])


def tint(colour: Colour, share: float) -> Colour:
    """Returns a colour mixed with white; 1 is the colour, 0 is white."""
    red, green, blue = (round(255 + (value - 255) * share) for value in colour)
    return red, green, blue


def pick_colour(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    """Draws one of the colours."""
    return colours[rng.integers(len(colours))]
