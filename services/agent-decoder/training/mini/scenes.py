"""Pictures of one shape for training: easy-vqa's own train split and scenes drawn like it."""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES, draw_scene, read_image, read_split
from cogitate.evals.render import Pixels
from PIL import Image

from mini.views import whole_view

DRAWN = 12000
LARGE_PX = 256


@dataclass(frozen=True)
class Scenes:
    """`views` (N, 64, 64, 3) uint8 and `labels` (N, 2) int64: indices of shape and colour."""

    views: Pixels
    labels: npt.NDArray[np.int64]


def _official_labels() -> dict[int, tuple[int, int]]:
    """Returns (shape, colour) by image id, put together from the answers about each picture."""
    words: dict[int, set[str]] = {}
    for text, label, image in read_split("train"):
        found = words.setdefault(image, set())
        if label not in ("yes", "no"):
            found.add(label)
        elif (label == "yes") != (" not " in text or " no " in text):
            found.update(word.strip("?") for word in text.split())
    labels = {}
    for image, found in words.items():
        shapes = [i for i, name in enumerate(SHAPES) if name in found]
        colours = [i for i, name in enumerate(SHAPE_COLOUR_NAMES) if name in found]
        if len(shapes) == len(colours) == 1:
            labels[image] = (shapes[0], colours[0])
    return labels


def load_scenes(seed: int, drawn: int = DRAWN) -> Scenes:
    """Returns the official train pictures followed by `drawn` pictures of our own."""
    rng = np.random.default_rng(seed)
    views, labels = [], []
    for image, label in sorted(_official_labels().items()):
        views.append(whole_view(Image.open(BytesIO(read_image("train", image)))))
        labels.append(label)
    for i in range(drawn):
        label = (int(rng.integers(len(SHAPES))), int(rng.integers(len(SHAPE_COLOUR_NAMES))))
        size = LARGE_PX if i % 4 == 0 else 64
        views.append(whole_view(Image.fromarray(draw_scene(rng, *label, size=size))))
        labels.append(label)
    return Scenes(np.stack(views), np.array(labels, np.int64))
