"""Draws on a picture where agents looked and what they wrote down there.

Looks at the same region share one frame: "1. 0-6: 43" says that it was the first look of agents 0
to 6, who read 43 there; what others read stands behind a bar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cogitate.cli.view.lines import ids
from cogitate.client import Box, CogitateError, Sight

if TYPE_CHECKING:
    from PIL import Image

# Small pictures are enlarged to this width or height, so that there is room for words.
LEAST_SIDE: Final = 900
MAX_LABEL_CHARS: Final = 48
_COLOURS: Final = (
    (214, 40, 90), (20, 110, 220), (0, 140, 90), (190, 90, 0), (120, 60, 190), (0, 130, 150),
    (150, 30, 30), (70, 80, 95),
)  # fmt: skip
_EDGE: Final = 4


class CannotDraw(CogitateError):
    """Raised where the picture cannot be read, drawn on or written."""


def save(out: str, images: Sequence[str], sights: Sequence[Sight]) -> list[Path]:
    """Writes each image with the looks at it; returns the files. Raises CannotDraw."""
    if not images:
        raise CannotDraw("--annotate needs an --image to draw on")
    try:
        from PIL import Image
    except ImportError:
        raise CannotDraw("drawing needs Pillow: pip install pillow") from None
    paths = []
    for number, image in enumerate(images, 1):
        target = Path(out)
        target = target if number == 1 else target.with_stem(f"{target.stem}-{number}")
        try:
            digest = f"sha256:{hashlib.sha256(Path(image).read_bytes()).hexdigest()}"
            with Image.open(image) as opened:
                drawn = annotated(opened, [one for one in sights if one.digest == digest])
            drawn.save(target)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise CannotDraw(f"cannot draw {image} into {target}: {error}") from None
        paths.append(target)
    return paths


def labels(sights: Iterable[Sight]) -> Iterator[tuple[Box, str]]:
    """Yields each region that was looked at, in the order of the looks, and its label."""
    regions: dict[Box, dict[str, list[int]]] = {}
    steps: dict[Box, int] = {}
    for one in sorted(sights, key=lambda sight: (sight.step, sight.agent_id)):
        if one.box is not None:
            steps.setdefault(one.box, one.step)
            regions.setdefault(one.box, {}).setdefault(one.note, []).append(one.agent_id)
    for box, notes in regions.items():
        said = sorted(notes.items(), key=lambda pair: -len(set(pair[1])))
        read = " | ".join(f"{ids(set(who))}{note and ': '}{note}" for note, who in said)
        # The font that comes with Pillow has no long dash.
        label = f"{steps[box]}. {read}".replace("\u2013", "-")
        cut = len(label) > MAX_LABEL_CHARS
        yield box, label[: MAX_LABEL_CHARS - 2] + ".." if cut else label


def annotated(image: Image.Image, sights: Iterable[Sight]) -> Image.Image:
    """Returns a copy of the image, enlarged if it is small, with all frames and labels."""
    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, -(-LEAST_SIDE // max(image.size)))
    size = (image.width * scale, image.height * scale)
    drawn = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(14, max(size) // 50))
    for i, (box, label) in enumerate(labels(sights)):
        colour = _COLOURS[i % len(_COLOURS)]
        left, right = (size[0] * x / 1000 for x in (box.x0, box.x1))
        top, bottom = (size[1] * y / 1000 for y in (box.y0, box.y1))
        inner = (left + 1, top + 1, max(left + 1, right - 2), max(top + 1, bottom - 2))
        draw.rectangle(inner, outline=colour, width=_EDGE)
        x0, y0, x1, y1 = draw.textbbox((0, 0), label, font=font)
        wide, tall = x1 + x0 + 2 * _EDGE, y1 + y0 + _EDGE
        # Inside the frame's upper edge, but never out of the picture.
        x = min(max(0.0, left + 1), max(0.0, size[0] - wide))
        y = min(max(0.0, top + 1), max(0.0, size[1] - tall))
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
        draw.text((x + _EDGE, y + _EDGE / 2), label, font=font, fill=(255, 255, 255))
    return drawn
