"""Renders the training boards once, in parallel, into flat arrays on disk.

Arrays, N boards and M = all their cards together:
  wholes (N, 64, 64, 3) uint8, crops (M, 64, 64, 3) uint8,
  boards (N, 3) int32: rows, columns, index of the first card,
  cards (M, 3) int32: number, colour, handwritten.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cogitate.evals.boards import Box, cell_box, draw_board, draw_number, render_board
from cogitate.evals.render import Pixels
from PIL import Image
from tqdm import tqdm

from mini.fonts import training_source
from mini.views import crop_view, whole_view

SHARD_BOARDS = 250
LARGEST_NOISE = 2.0
LARGE_CELLS_PX = (96, 128, 160)
LARGE_SHARE = 0.1
JITTER_SHARE = 0.5
JITTER_PERCENT = 1.5


@dataclass(frozen=True)
class Pictures:
    """The rendered boards, see the module for shapes; arrays are only read."""

    wholes: Pixels
    crops: Pixels
    boards: npt.NDArray[np.int32]
    cards: npt.NDArray[np.int32]


def _number(rng: np.random.Generator) -> int:
    """Draws a card's number; a third comes from countdown's range 1..20."""
    return int(rng.integers(1, 21)) if rng.random() < 1 / 3 else draw_number(rng)


def _noise(rng: np.random.Generator) -> float:
    """Draws a board's noise level; the hard half of the range is drawn more often."""
    low = 1.0 if rng.random() < 0.4 else 0.0
    return float(rng.uniform(low, LARGEST_NOISE))


def _shake(rng: np.random.Generator, box: Box) -> Box:
    """Moves the corners of some boxes a little, as an inexact zoom would."""
    if rng.random() > JITTER_SHARE:
        return box
    moved = np.rint(np.array(box) + rng.normal(size=4) * JITTER_PERCENT).astype(int)
    x0, y0, x1, y1 = (int(value) for value in np.clip(moved, 0, 100))
    return x0, y0, x1, y1


def render_shard(seed: int, count: int) -> Pictures:
    """Renders `count` boards; card indices start at zero."""
    rng = np.random.default_rng(seed)
    source = training_source()
    wholes, crops, boards, cards = [], [], [], []
    for _ in range(count):
        board = draw_board(rng, _number)
        is_large = rng.random() < LARGE_SHARE
        cell_px = int(rng.choice(LARGE_CELLS_PX)) if is_large else 64
        noise = _noise(rng)
        pixels = render_board(rng, board, noise=noise, source=source, cell_px=cell_px)
        image = Image.fromarray(pixels)
        wholes.append(whole_view(image))
        boards.append((board.rows, board.columns, len(cards)))
        for i, card in enumerate(board.cards):
            box = cell_box(divmod(i, board.columns), board.rows, board.columns)
            crops.append(crop_view(image, _shake(rng, box)))
            cards.append((card.number, card.colour, int(card.handwritten)))
    return Pictures(
        np.stack(wholes),
        np.stack(crops),
        np.array(boards, np.int32),
        np.array(cards, np.int32),
    )


def _joined(shards: Iterator[Pictures]) -> Pictures:
    parts = list(shards)
    starts = np.cumsum([0, *(len(part.cards) for part in parts[:-1])])
    boards = [p.boards + np.array((0, 0, n)) for p, n in zip(parts, starts, strict=True)]
    return Pictures(
        np.concatenate([part.wholes for part in parts]),
        np.concatenate([part.crops for part in parts]),
        np.concatenate(boards).astype(np.int32),
        np.concatenate([part.cards for part in parts]),
    )


def render(directory: Path, *, boards: int, seed: int, processes: int = 2) -> None:
    """Renders at least `boards` boards into `directory`; does nothing if that is done already."""
    if (directory / "boards.npy").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + -(-boards // SHARD_BOARDS))
    shard: Callable[[int], Pictures] = partial(render_shard, count=SHARD_BOARDS)
    with ProcessPoolExecutor(processes) as pool:
        done = tqdm(pool.map(shard, seeds), total=len(seeds), desc="render", unit="shard")
        pictures = _joined(iter(done))
    for name in ("wholes", "crops", "cards", "boards"):
        np.save(directory / f"{name}.npy", getattr(pictures, name))


def open_pictures(directory: Path) -> Pictures:
    """Maps rendered pictures into memory."""
    load = partial(np.load, mmap_mode="r")
    return Pictures(
        load(directory / "wholes.npy"),
        load(directory / "crops.npy"),
        np.load(directory / "boards.npy"),
        np.load(directory / "cards.npy"),
    )
