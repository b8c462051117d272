"""Stage 1: the encoder learns to see, through throw-away linear heads on its embeddings.

Crops give the three digits of their number, whole boards the colour of each of twelve cells, scenes
their shape and colour.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES
from cogitate.evals.render import COLOUR_NAMES
from torch import Tensor, nn

from mini.augment import WHOLE_SIGMA, crop_input, disturb, normalise, scene_input
from mini.model import CROP_TOKENS, WHOLE_TOKENS, Encoder, ModelConfig
from mini.pictures import Pictures
from mini.scenes import Scenes
from mini.stage import Plan, run

CROPS, WHOLES, SCENES = 160, 40, 24
DEV_BOARDS = 500
NO_DIGIT = 10
NO_CARD = len(COLOUR_NAMES)
COLUMNS, CELLS = 4, 12


class Reader(nn.Module):
    """The encoder and the heads that are thrown away."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config).to(memory_format=torch.channels_last)
        whole, crop = WHOLE_TOKENS * config.hidden_size, CROP_TOKENS * config.hidden_size
        self.digits = nn.Linear(crop, 3 * (NO_DIGIT + 1))
        self.grid = nn.Linear(whole, CELLS * (NO_CARD + 1))
        self.scene = nn.Linear(whole, len(SHAPES) + len(SHAPE_COLOUR_NAMES))

    def forward(self, x: Tensor, crops: int, wholes: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views ordered crops, boards, scenes to their logits (n, 3, 11), (n, 12, 7), (n, 11)."""
        features = self.encoder.body(x)
        crop = self.encoder.project_crop(features[:crops]).flatten(1)
        whole = self.encoder.project_whole(features[crops:]).flatten(1)
        digits = self.digits(crop).float().view(-1, 3, NO_DIGIT + 1)
        grid = self.grid(whole[:wholes]).float().view(-1, CELLS, NO_CARD + 1)
        return digits, grid, self.scene(whole[wholes:]).float()


def digit_labels(numbers: np.ndarray) -> Tensor:
    """(N,) numbers to (N, 3) digits from the left, NO_DIGIT after the last."""
    rows = [[int(c) for c in str(n)] + [NO_DIGIT] * (3 - len(str(n))) for n in numbers]
    return torch.tensor(rows)


def grid_labels(pictures: Pictures) -> np.ndarray:
    """Returns (N, 12) colours by row * 4 + column, NO_CARD where the board ends."""
    labels = np.full((len(pictures.boards), CELLS), NO_CARD, np.int64)
    for i, (rows, columns, first) in enumerate(pictures.boards):
        colours = pictures.cards[first : first + rows * columns, 1].reshape(rows, columns)
        labels[i].reshape(3, COLUMNS)[:rows, :columns] = colours
    return labels


class EncoderStage:
    """Draws batches and measures; the last `DEV_BOARDS` boards are never trained on."""

    def __init__(self, config: ModelConfig, pictures: Pictures, scenes: Scenes) -> None:
        self.pictures, self.scenes = pictures, scenes
        self.model = Reader(config)
        self.compiled = torch.compile(self.model)
        self.grid = grid_labels(pictures)
        self.train_boards = len(pictures.boards) - DEV_BOARDS
        self.train_crops = int(pictures.boards[self.train_boards, 2])

    def losses(self, rng: np.random.Generator) -> list[Tensor]:
        """Returns the summed loss of one batch."""
        crops = np.sort(rng.integers(0, self.train_crops, CROPS))
        boards = np.sort(rng.integers(0, self.train_boards, WHOLES))
        scenes = rng.integers(0, len(self.scenes.labels), SCENES)
        rng.shuffle(crops)
        x = torch.cat(
            [
                crop_input(self.pictures.crops[crops]),
                disturb(self.pictures.wholes[boards], WHOLE_SIGMA),
                scene_input(self.scenes.views[scenes]),
            ]
        ).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            digits, grid, scene = self.compiled(x, CROPS, WHOLES)
        labels = torch.from_numpy(self.scenes.labels[scenes])
        shape, colour = scene.split([len(SHAPES), len(SHAPE_COLOUR_NAMES)], 1)
        numbers = digit_labels(self.pictures.cards[crops, 0])
        loss = F.cross_entropy(digits.flatten(0, 1), numbers.flatten())
        loss = loss + F.cross_entropy(
            grid.flatten(0, 1), torch.from_numpy(self.grid[boards]).flatten()
        )
        loss = loss + 0.3 * F.cross_entropy(shape, labels[:, 0])
        return [loss + 0.3 * F.cross_entropy(colour, labels[:, 1])]

    def _logits(
        self, crops: np.ndarray, boards: np.ndarray, scenes: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = normalise(np.concatenate([crops, boards, scenes]))
        return self.model(x, len(crops), len(boards))

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Returns exact-reading rates on the development boards, and on the training scenes."""
        self.model.eval()
        cards = self.pictures.cards[self.train_crops :]
        views = self.pictures.crops[self.train_crops :]
        one = self.pictures.crops[:1], self.pictures.wholes[:1], self.scenes.views[:1]
        boards, scenes = self.pictures.wholes[self.train_boards :], self.scenes.views[:500]
        with torch.autocast("cpu", torch.bfloat16):
            digits = torch.cat(
                [self._logits(part, one[1], one[2])[0] for part in np.array_split(views, 8)]
            )
            grid = self._logits(one[0], boards, one[2])[1]
            scene = self._logits(one[0], one[1], scenes)[2]
        self.model.train()
        right = (digits.argmax(-1) == digit_labels(cards[:, 0])).all(1).numpy()
        by_hand = cards[:, 2] == 1
        exact = (grid.argmax(-1).numpy() == self.grid[self.train_boards :]).all(1)
        shape, colour = scene.split([len(SHAPES), len(SHAPE_COLOUR_NAMES)], 1)
        named = torch.stack([shape.argmax(1), colour.argmax(1)], 1).numpy()
        return {
            "printed": round(float(right[~by_hand].mean()), 4),
            "handwritten": round(float(right[by_hand].mean()), 4),
            "board": round(float(exact.mean()), 4),
            "scene": round(float((named == self.scenes.labels[:500]).all(1).mean()), 4),
        }


def train_encoder(
    plan: Plan, config: ModelConfig, pictures: Pictures, scenes: Scenes, path: Path
) -> None:
    """Runs the stage and leaves its checkpoint at `path`."""
    stage = EncoderStage(config, pictures, scenes)
    run(plan, stage.model, stage.losses, stage.measure, path)
