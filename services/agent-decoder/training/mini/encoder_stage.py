"""Stage 1: the encoder learns to see, through throw-away linear heads on its embeddings.

Each stripe of a crop gives up to three letters or digits, read by CTC (Graves et al., 2006), so
that a letter is a letter wherever it stands; a bar gives how far it goes. Boards give the colour of
each of twelve cells, pages the boxes of what stands on them, scenes their shape and colour.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cogitate.evals.easy_vqa import SHAPE_COLOUR_NAMES, SHAPES
from cogitate.evals.items import Style
from cogitate.evals.render import COLOUR_NAMES
from cogitate.evals.sources import held_out_source
from torch import Tensor, nn

from mini.augment import TEXT_SIGMA, WHOLE_SIGMA, crop_input, disturb, normalise, scene_input
from mini.glimpses import LETTERS, LONGEST, SLOTS, Glimpses, draw_shard
from mini.model import CROP_TOKENS, WHOLE_TOKENS, Encoder, ModelConfig, mixed_precision
from mini.pictures import Pictures
from mini.scenes import Scenes
from mini.stage import Plan, rank_and_world, run

# Views of a step: crops of boards and of pages; whole boards, pages and scenes.
NUMBERS, TEXTS, WHOLES, PAGES, SCENES = 64, 216, 24, 32, 16
DEV_BOARDS, DEV_CROPS, DEV_PAGES = 500, 2000, 120
DEV_NOISE, DEV_SEED = 0.5, 77
NO_CARD = len(COLOUR_NAMES)
COLUMNS, CELLS = 4, 12
PER_STRIPE = 3
BLANK = len(LETTERS)
BINS = 101
NEAR = 0.05


class Reader(nn.Module):
    """The encoder and the heads that are thrown away."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config).to(memory_format=torch.channels_last)
        whole, crop = WHOLE_TOKENS * config.hidden_size, CROP_TOKENS * config.hidden_size
        self.letters = nn.Linear(config.hidden_size, PER_STRIPE * (BLANK + 1))
        self.level = nn.Linear(crop, BINS)
        self.grid = nn.Linear(whole, CELLS * (NO_CARD + 1))
        self.places = nn.Linear(whole, SLOTS * 5)
        self.scene = nn.Linear(whole, len(SHAPES) + len(SHAPE_COLOUR_NAMES))

    def forward(
        self, x: Tensor, crops: int, wholes: int, pages: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Views ordered crops, boards, pages, scenes to the logits of each head.

        Letters (n, frames, classes), levels (n, bins), grids (n, 12, 7), places (n, slots, 5): a
        box and whether there is one; scenes (n, 11).
        """
        features = self.encoder.body(x)
        crop = self.encoder.project_crop(features[:crops])
        whole = self.encoder.project_whole(features[crops:]).flatten(1)
        letters = self.letters(crop).float().view(-1, CROP_TOKENS * PER_STRIPE, BLANK + 1)
        level = self.level(crop.flatten(1)).float()
        grid = self.grid(whole[:wholes]).float().view(-1, CELLS, NO_CARD + 1)
        places = self.places(whole[wholes : wholes + pages]).float().view(-1, SLOTS, 5)
        return letters, level, grid, places, self.scene(whole[wholes + pages :]).float()


def number_letters(numbers: np.ndarray) -> np.ndarray:
    """(N,) numbers to (N, LONGEST) indices of letters."""
    rows = np.zeros((len(numbers), LONGEST), np.int8)
    for row, number in zip(rows, numbers.tolist(), strict=True):
        row[: len(str(number))] = [LETTERS.index(digit) for digit in str(number)]
    return rows


def grid_labels(pictures: Pictures) -> np.ndarray:
    """Returns (N, 12) colours by row * 4 + column, NO_CARD where the board ends."""
    labels = np.full((len(pictures.boards), CELLS), NO_CARD, np.int64)
    for i, (rows, columns, first) in enumerate(pictures.boards):
        colours = pictures.cards[first : first + rows * columns, 1].reshape(rows, columns)
        labels[i].reshape(3, COLUMNS)[:rows, :columns] = colours
    return labels


def text_loss(letters: Tensor, texts: np.ndarray) -> Tensor:
    """CTC of (n, frames, classes) against (n, LONGEST) letters; rows without any do not count."""
    lengths = LONGEST - (texts[:, ::-1] != 0).argmax(1)
    said = np.flatnonzero(texts.any(1))
    frames = torch.full((len(said),), letters.shape[1])
    log = letters[torch.from_numpy(said)].log_softmax(-1).transpose(0, 1)
    target = torch.from_numpy(texts[said].astype(np.int64))
    return F.ctc_loss(
        log, target, frames, torch.from_numpy(lengths[said]), BLANK, zero_infinity=True
    )


def level_loss(logits: Tensor, levels: np.ndarray) -> Tensor:
    """Cross entropy against the two bins that a level lies between; -1 does not count."""
    bars = np.flatnonzero(levels >= 0)
    at = torch.from_numpy(levels[bars].astype(np.float32) / 1000 * (BINS - 1))
    low = at.floor().clamp(max=BINS - 2)
    log = logits[torch.from_numpy(bars)].log_softmax(-1)
    index = low.long().unsqueeze(1)
    one, two = log.gather(1, index), log.gather(1, index + 1)
    share = (at - low).unsqueeze(1)
    return -(one * (1 - share) + two * share).sum() / max(1, len(bars))


def place_loss(places: Tensor, boxes: np.ndarray) -> Tensor:
    """How far boxes are off, in tenths of the picture, and whether each is known to be there."""
    truth = torch.from_numpy(boxes.astype(np.float32)) / 100
    there = (truth[..., 0] >= 0).float()
    off = (places[..., :4] - truth).abs().mean(-1)
    presence = F.binary_cross_entropy_with_logits(places[..., 4], there)
    return 10 * (off * there).sum() / there.sum() + presence


def read_greedily(letters: Tensor) -> list[str]:
    """Returns the most likely text of each row: repeats joined, blanks taken out."""
    texts = []
    for row in letters.argmax(-1).tolist():
        kept = [a for a, b in zip(row, [BLANK, *row[:-1]], strict=True) if a != b and a != BLANK]
        texts.append("".join(LETTERS[i] for i in kept))
    return texts


def spelled_out(texts: np.ndarray) -> list[str]:
    """Returns the texts that rows of letters stand for."""
    return ["".join(LETTERS[i] for i in row).rstrip() for row in texts.tolist()]


class EncoderStage:
    """Draws batches and measures; the last `DEV_BOARDS` boards are never trained on."""

    def __init__(
        self, config: ModelConfig, pictures: Pictures, scenes: Scenes, glimpses: Glimpses
    ) -> None:
        self.pictures, self.scenes, self.glimpses = pictures, scenes, glimpses
        self.model = Reader(config)
        self.compiled = torch.compile(self.model)
        self.grid = grid_labels(pictures)
        self.train_boards = len(pictures.boards) - DEV_BOARDS
        self.train_crops = int(pictures.boards[self.train_boards, 2])
        self.held_out = draw_shard(
            DEV_SEED, DEV_PAGES, style=Style(DEV_NOISE, held_out_source(), held_out=True)
        )

    def losses(self, rng: np.random.Generator) -> list[Tensor]:
        """Returns the summed loss of one batch."""
        seen, world = self.glimpses, rank_and_world()[1]
        numbers = np.sort(rng.integers(0, self.train_crops, NUMBERS // world))
        texts = np.sort(rng.integers(0, len(seen.crops), TEXTS // world))
        boards = np.sort(rng.integers(0, self.train_boards, WHOLES // world))
        pages = np.sort(rng.integers(0, len(seen.pages), PAGES // world))
        scenes = rng.integers(0, len(self.scenes.labels), SCENES // world)
        rng.shuffle(numbers)
        x = torch.cat(
            [
                crop_input(self.pictures.crops[numbers]),
                disturb(seen.crops[texts], TEXT_SIGMA),
                disturb(self.pictures.wholes[boards], WHOLE_SIGMA),
                disturb(seen.pages[pages], WHOLE_SIGMA),
                scene_input(self.scenes.views[scenes]),
            ]
        ).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            letters, level, grid, places, scene = self.compiled(
                x, len(numbers) + len(texts), len(boards), len(pages)
            )
        labels = torch.from_numpy(self.scenes.labels[scenes])
        shape, colour = scene.split([len(SHAPES), len(SHAPE_COLOUR_NAMES)], 1)
        loss = text_loss(letters[: len(numbers)], number_letters(self.pictures.cards[numbers, 0]))
        loss = loss + text_loss(letters[len(numbers) :], np.array(seen.texts[texts]))
        loss = loss + 0.3 * level_loss(level[len(numbers) :], np.array(seen.levels[texts]))
        loss = loss + F.cross_entropy(
            grid.flatten(0, 1), torch.from_numpy(self.grid[boards]).flatten()
        )
        loss = loss + place_loss(places, np.array(seen.places[pages]))
        loss = loss + 0.3 * F.cross_entropy(shape, labels[:, 0])
        return [loss + 0.3 * F.cross_entropy(colour, labels[:, 1])]

    def _run(
        self, crops: np.ndarray, boards: np.ndarray, pages: np.ndarray, scenes: np.ndarray
    ) -> tuple[Tensor, ...]:
        x = normalise(np.concatenate([crops, boards, pages, scenes]))
        with mixed_precision():
            out: tuple[Tensor, ...] = self.model(x, len(crops), len(boards), len(pages))
        return out

    def _crops(self, crops: np.ndarray) -> tuple[Tensor, Tensor]:
        """Returns letters and levels of many crops."""
        none = self.glimpses.pages[:0]
        parts = [self._run(part, none, none, none)[:2] for part in np.array_split(crops, 8)]
        return torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts])

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Returns rates of exact reading on development boards and held-out pages, and the rest."""
        self.model.eval()
        first = self.train_crops
        cards = self.pictures.cards[first : first + DEV_CROPS]
        read = read_greedily(self._crops(self.pictures.crops[first : first + DEV_CROPS])[0])
        right = np.array([a == str(b) for a, b in zip(read, cards[:, 0].tolist(), strict=True)])
        by_hand = cards[:, 2] == 1
        unseen = self.held_out
        letters, level = self._crops(unseen.crops)
        truth = spelled_out(unseen.texts)
        exact = np.array([a == b for a, b in zip(read_greedily(letters), truth, strict=True)])
        is_word = np.array([text[:1].isalpha() for text in truth])
        is_bar = unseen.levels >= 0
        share = level.softmax(-1).mul(torch.arange(BINS)).sum(-1).numpy() / (BINS - 1)
        off = np.abs(share - unseen.levels / 1000) / np.maximum(unseen.levels / 1000, 1e-3)
        none, whole = self.glimpses.pages[:0], self.pictures.wholes[self.train_boards :]
        _, _, grid, places, scene = self._run(none, whole, unseen.pages, self.scenes.views[:500])
        there = unseen.places[..., 0] >= 0
        error = np.abs(places[..., :4].numpy() * 100 - unseen.places).mean(-1)[there]
        self.model.train()
        full = (grid.argmax(-1).numpy() == self.grid[self.train_boards :]).all(1)
        shape, colour = scene.split([len(SHAPES), len(SHAPE_COLOUR_NAMES)], 1)
        named = torch.stack([shape.argmax(1), colour.argmax(1)], 1).numpy()
        rates = {
            "printed": right[~by_hand].mean(),
            "handwritten": right[by_hand].mean(),
            "words": exact[is_word].mean(),
            "figures": exact[~is_word & ~is_bar].mean(),
            "bars": (off[is_bar] <= NEAR).mean(),
            "percent_off": error.mean(),
            "board": full.mean(),
            "scene": (named == self.scenes.labels[:500]).all(1).mean(),
        }
        return {name: round(float(rate), 4) for name, rate in rates.items()}


def train_encoder(
    plan: Plan,
    config: ModelConfig,
    pictures: Pictures,
    scenes: Scenes,
    glimpses: Glimpses,
    path: Path,
) -> None:
    """Runs the stage and leaves its checkpoint at `path`."""
    stage = EncoderStage(config, pictures, scenes, glimpses)
    run(plan, stage.model, stage.losses, stage.measure, path)
