"""easy-vqa: one coloured shape on a pale ground, and 24 forms of question about it.

The official test split comes with the `easy-vqa` package. `draw_scene` makes pictures of our own in
the same style, for examples and for training.
"""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from cogitate.evals.render import Pixels
from cogitate.evals.sources import package_directory
from PIL import Image, ImageDraw

SHAPES = ("circle", "rectangle", "triangle")
SHAPE_COLOURS = (
    ("black", (0, 0, 0)),
    ("blue", (0, 0, 255)),
    ("brown", (165, 42, 42)),
    ("gray", (128, 128, 128)),
    ("green", (0, 255, 0)),
    ("red", (255, 0, 0)),
    ("teal", (0, 128, 128)),
    ("yellow", (255, 255, 0)),
)
SHAPE_COLOUR_NAMES = tuple(name for name, _ in SHAPE_COLOURS)
SCENE_PX = 64

Split = Literal["train", "test"]


@dataclass(frozen=True)
class ShapeQuestion:
    """One question of the package: words, label (`yes`, `circle`, `teal`...) and PNG picture."""

    index: int
    text: str
    label: str
    image_id: int
    image_png: bytes


def answer_sentence(label: str) -> str:
    """Returns the sentence a label is answered with."""
    if label in ("yes", "no"):
        return f"{label.capitalize()}."
    return f"It is a {label}." if label in SHAPES else f"It is {label}."


def read_split(split: Split) -> list[tuple[str, str, int]]:
    """Returns (question, label, image id) of every question of a split; raises MissingEvalExtra."""
    folder = package_directory("easy_vqa") / "data" / split
    rows = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    return [(str(text), str(label), int(image)) for text, label, image in rows]


def read_image(split: Split, image_id: int) -> bytes:
    """Returns the PNG file of one picture."""
    folder = package_directory("easy_vqa") / "data" / split / "images"
    return (folder / f"{image_id}.png").read_bytes()


def test_questions(limit: int, *, seed: int) -> list[ShapeQuestion]:
    """Returns `limit` questions of the official test split, in an order drawn from the seed."""
    rows = read_split("test")
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    questions = []
    for index in order.tolist():
        text, label, image = rows[index]
        questions.append(ShapeQuestion(index, text, label, image, read_image("test", image)))
    return questions


def draw_scene(
    rng: np.random.Generator, shape: int, colour: int, *, size: int = SCENE_PX
) -> Pixels:
    """Draws one shape, (size, size, 3). Advances `rng`."""
    ground = rng.integers(230, 256, 3)
    image = Image.new("RGB", (size, size), (int(ground[0]), int(ground[1]), int(ground[2])))
    width, height = (int(v) for v in rng.integers(size // 8, size // 2 + 1, 2))
    if SHAPES[shape] != "rectangle":
        height = width
    left, top = int(rng.integers(size - width)), int(rng.integers(size - height))
    box = (left, top, left + width, top + height)
    fill = SHAPE_COLOURS[colour][1]
    draw = ImageDraw.Draw(image)
    if SHAPES[shape] == "circle":
        draw.ellipse(box, fill=fill)
    elif SHAPES[shape] == "rectangle":
        draw.rectangle(box, fill=fill)
    else:
        peak = (left + width / 2, top)
        draw.polygon([peak, (left, top + height), (left + width, top + height)], fill=fill)
    return np.asarray(image, np.uint8)
