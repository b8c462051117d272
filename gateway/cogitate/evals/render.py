"""Draws one numbered card, and the camera's pixel noise over a finished picture.

Every measure is given for a card of 64 pixels and scaled to the size asked for. `noise` is one
number for how bad the picture is: rotation has a standard deviation of 7 x noise degrees, blur a
radius up to 0.9 x noise px, ink loses up to 45 x noise of its contrast, pixels get gaussian noise
of 12 x noise (out of 255).
"""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cogitate.evals.sources import Scans, Source
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CARD_PX = 64
PIXEL_SIGMA = 12.0
COLOURS = (
    ("red", (214, 60, 52)),
    ("blue", (52, 98, 214)),
    ("green", (44, 150, 80)),
    ("yellow", (235, 200, 40)),
    ("purple", (140, 70, 180)),
    ("orange", (240, 140, 40)),
)
COLOUR_NAMES = tuple(name for name, _ in COLOURS)

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Card:
    """What one card says: its number 0..999, the index of its colour, and who wrote it."""

    number: int
    colour: int
    handwritten: bool


@lru_cache(maxsize=8192)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def _printed(
    rng: np.random.Generator, text: str, fonts: tuple[Path, ...], size: int
) -> Image.Image:
    """Returns the ink mask (size, size) of a printed number, 255 where there is ink."""
    scale = size / CARD_PX
    mask = Image.new("L", (size, size), 0)
    font = _font(fonts[rng.integers(len(fonts))], round(int(rng.integers(18, 31)) * scale))
    centre = size / 2 + rng.normal(size=2) * 2.5 * scale
    ImageDraw.Draw(mask).text((centre[0], centre[1]), text, font=font, fill=255, anchor="mm")
    return mask


def _handwritten(
    rng: np.random.Generator, text: str, scans: Scans, noise: float, size: int
) -> Image.Image:
    """Returns the ink mask (size, size) of a number put together from scanned digits."""
    scale = size / CARD_PX
    height = int(rng.integers(20, 29)) * scale
    glyphs = []
    for digit in text:
        candidates = np.flatnonzero(scans.labels == int(digit))
        glyph = Image.fromarray(scans.images[candidates[rng.integers(len(candidates))]])
        stretch = rng.uniform(0.62, 0.8) * (1 + rng.normal() * 0.1 * noise)
        width = round(float(np.clip(height * stretch, 11 * scale, 18 * scale)))
        glyphs.append(glyph.resize((width, round(height)), Image.Resampling.BICUBIC))
    mask = Image.new("L", (size, size), 0)
    left = (size - sum(glyph.width for glyph in glyphs)) / 2 + rng.normal() * 2 * scale
    for glyph in glyphs:
        mask.paste(glyph, (int(left), int((size - height) / 2 + rng.normal() * 1.5 * scale)))
        left += glyph.width
    return mask.point([min(255, int(value * 1.25)) for value in range(256)])


def _ink(rng: np.random.Generator, base: npt.NDArray[np.int64], noise: float) -> int:
    """Returns a grey that stands out from the card's colour, closer to it as noise grows."""
    luminance = 0.3 * base[0] + 0.59 * base[1] + 0.11 * base[2]
    is_light = luminance < 75 or (luminance < 165 and rng.random() < 0.75)
    loss = rng.uniform(0, 45) * noise
    return int(np.clip(255 - loss if is_light else 15 + loss, 0, 255))


def render_card(
    rng: np.random.Generator,
    card: Card,
    *,
    noise: float,
    source: Source,
    background: Colour,
    size: int = CARD_PX,
) -> Pixels:
    """Draws one card, (size, size, 3), without pixel noise. Advances `rng`."""
    scale = size / CARD_PX
    image = Image.new("RGB", (size, size), background)
    shade = np.array(COLOURS[card.colour][1]) * (1 + rng.normal() * 0.06 * noise)
    base = np.clip(shade + rng.integers(-14, 15, 3), 0, 255).astype(np.int64)
    fill = (int(base[0]), int(base[1]), int(base[2]))
    edge = size - 1 - round(3 * scale)
    corners = (round(3 * scale), round(3 * scale), edge, edge)
    ImageDraw.Draw(image).rounded_rectangle(corners, round(8 * scale), fill=fill)
    text = str(card.number)
    if card.handwritten:
        mask = _handwritten(rng, text, source.scans, noise, size)
    else:
        mask = _printed(rng, text, source.fonts, size)
    mask = mask.rotate(float(rng.normal() * 7 * noise), resample=Image.Resampling.BILINEAR)
    image.paste((_ink(rng, base, noise),) * 3, (0, 0), mask)
    blur = float(rng.uniform(0, 0.9) * noise)
    if blur > 0.2:
        image = image.filter(ImageFilter.GaussianBlur(blur * scale))
    return np.asarray(image, np.uint8)


def add_pixel_noise(rng: np.random.Generator, pixels: Pixels, noise: float) -> Pixels:
    """Returns the picture with the camera's noise added. Advances `rng`."""
    noisy = pixels.astype(np.float32) + rng.normal(size=pixels.shape) * PIXEL_SIGMA * noise
    return np.clip(noisy, 0, 255).astype(np.uint8)


def to_png(pixels: Pixels) -> bytes:
    """Encodes (height, width, 3) pixels as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
