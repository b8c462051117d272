"""Shows a large picture as an overview and a few tiles, so that its details are not lost.

A model says by `preprocessor_config.json` if it wants them: `"tiles": {"most": 6, "side": 160}`
cuts a picture with a side longer than 160 pixels into at most 6 tiles in rows and columns, as
square as its shape allows. Without that entry there are no tiles, and prompts are as they were.
A tile is a crop like any that `zoom` gives: encoded once, cached by its box, shared by all agents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogitate.v1 import common_pb2 as common

MOST_TILES = 16
WHOLE = 1000


@dataclass(frozen=True, slots=True)
class Tiling:
    """A model's recipe: at most `most` tiles of pictures with a side longer than `side` pixels."""

    most: int
    side: int

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Returns (rows, columns) for a picture's size; (1, 1) means that there are no tiles.

        Of the grids of at most `most` tiles that cut no side finer than needed, the one whose tiles
        have the shortest longer side; a draw goes to fewer tiles, then to fewer rows.
        """
        wanted = (math.ceil(height / self.side), math.ceil(width / self.side))
        if width <= 0 or height <= 0 or wanted == (1, 1):
            return 1, 1
        grids = [
            (rows, columns)
            for rows in range(1, min(wanted[0], self.most) + 1)
            for columns in range(1, min(wanted[1], self.most // rows) + 1)
        ]
        return min(grids, key=lambda grid: (_longest(grid, width, height), math.prod(grid), grid))

    def boxes(self, width: int, height: int) -> tuple[common.Box, ...]:
        """Returns the tiles in reading order, in per mille of the picture; none for a small one."""
        rows, columns = self.grid(width, height)
        if rows * columns == 1:
            return ()
        return tuple(
            common.Box(
                x0_permille=WHOLE * column // columns,
                y0_permille=WHOLE * row // rows,
                x1_permille=WHOLE * (column + 1) // columns,
                y1_permille=WHOLE * (row + 1) // rows,
            )
            for row in range(rows)
            for column in range(columns)
        )


def _longest(grid: tuple[int, int], width: int, height: int) -> float:
    """The longer side of a tile of a grid, in pixels."""
    return max(height / grid[0], width / grid[1])


def parse(config: Mapping[str, Any]) -> Tiling | None:
    """Reads the entry `tiles` of preprocessor_config.json. Raises ValueError for a bad one."""
    tiles = config.get("tiles")
    if tiles is None:
        return None
    most, side = (tiles.get(name) if isinstance(tiles, dict) else None for name in ("most", "side"))
    if not isinstance(most, int) or not isinstance(side, int):
        raise ValueError("tiles in preprocessor_config.json needs most and side, whole numbers")
    if not (2 <= most <= MOST_TILES and side >= 1):
        raise ValueError(f"tiles needs most from 2 to {MOST_TILES} and side above zero")
    return Tiling(most, side)


def tiled(message: common.Message, tiling: Tiling | None) -> common.Message:
    """Returns the message with the tiles of its whole pictures behind each of them.

    The text ends with how they are laid out, "Tiles 3x2." for three rows of two, of each picture.
    """
    images = [part.image for part in message.parts if part.HasField("image")]
    if tiling is None or not any(_tiles(image, tiling) for image in images):
        return message
    shown = common.Message(role=message.role)
    grids = []
    for part in message.parts:
        shown.parts.append(part)
        if part.HasField("image") and not part.image.HasField("box"):
            for box in _tiles(part.image, tiling):
                shown.parts.add(image=common.ImagePart(digest=part.image.digest, box=box))
            grids.append("x".join(map(str, tiling.grid(part.image.width_px, part.image.height_px))))
    shown.parts.add(text=f"Tiles {', '.join(grids)}.")
    return shown


def _tiles(image: common.ImagePart, tiling: Tiling) -> tuple[common.Box, ...]:
    return () if image.HasField("box") else tiling.boxes(image.width_px, image.height_px)
