"""Drawn items: their scripts as traces, and the views they need, drawn once and kept.

Views are 64 x 64 pixels; `page` is a whole picture of 16 tokens, `patch` a crop or tile of 8.
Arrays of a directory, P pages and Q patches of all items in order: pages (P, 64, 64, 3) uint8,
patches (Q, 64, 64, 3) uint8; items.jsonl has the items, of their pictures only the sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cogitate.agent_decoder.model.tiling import Tiling
from cogitate.evals import (
    chains,
    charts,
    compare,
    followups,
    labels,
    nouns,
    outside,
    tables,
    toolbox,
)
from cogitate.evals.items import Draw, Item, Read, Style, Table, Use
from cogitate.evals.render import Pixels
from PIL import Image
from tqdm import tqdm

from mini import tokenizer as names
from mini.fonts import training_source
from mini.glimpses import INVENTED_SHARE, LARGEST_NOISE, shake
from mini.model import CROP_TOKENS, WHOLE_TOKENS
from mini.scripts import Piece, script
from mini.scripts import View as Wanted
from mini.traces import Trace, View, Writer
from mini.views import VIEW_PX, whole_view

FILTER = Image.Resampling.BILINEAR
TILING = Tiling(6, 640)
SHARD_ITEMS = 200
# What is read of a bar, see `cogitate.evals.charts`.
SHARE = re.compile(r"[01]\.\d{3}")
SETS: dict[str, tuple[float, Draw]] = {
    "labels": (0.14, labels.draw_item),
    "tables": (0.24, tables.draw_item),
    "charts": (0.18, charts.draw_item),
    "compare": (0.10, compare.draw_item),
    "followups": (0.08, followups.draw_item),
    "chains": (0.13, chains.draw_item),
    "outside": (0.08, outside.draw_outside),
    "near-misses": (0.05, outside.draw_near),
    "toolbox": (0.06, toolbox.draw_item),
}


@dataclass(frozen=True)
class Kept:
    """An item whose pictures are blank, and where its views begin."""

    item: Item
    page: int
    patch: int


@dataclass(frozen=True)
class Worlds:
    """What was drawn, see the module for shapes; arrays are only read."""

    pages: Pixels
    patches: Pixels
    items: tuple[Kept, ...]


def view_of(item: Item, wanted: Wanted, rng: np.random.Generator | None = None) -> Pixels:
    """Cuts and resizes a view as the vision-encoder does: by boxes in per mille.

    With `rng`, a crop that was zoomed to is a little off; the tiles, which stand first, are not.
    """
    image = Image.fromarray(item.pictures[wanted.picture])
    if wanted.box is None:
        return whole_view(image)
    edges = wanted.box
    if rng is not None and not wanted.is_tile:
        exact = (int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3]))
        edges = shake(rng, exact, is_bar=SHARE.fullmatch(wanted.says) is not None)
    x0, y0, x1, y1 = (round(10 * edge) for edge in edges)
    width, height = image.size
    box = (round(width * x0 / 1000), round(height * y0 / 1000),
           round(width * x1 / 1000), round(height * y1 / 1000))  # fmt: skip
    return np.asarray(image.crop(box).resize((VIEW_PX, VIEW_PX), FILTER), np.uint8)


def trace_of(writer: Writer, pieces: Sequence[Piece], starts: tuple[int, int] = (0, 0)) -> Trace:
    """Writes a script as tokens; its views are numbered on from `starts`, pages and patches.

    A symbolic writer puts letters in the place of crops; where to zoom to is not to be known then.
    """
    trace = Trace()
    page, patch = starts
    for piece in pieces:
        if piece.view is None:
            blind = writer.symbolic and piece.text.startswith("zoom(")
            if piece.text:
                writer.put(trace, piece.text, own=piece.own and not blind)
            continue
        is_whole, board = piece.view.box is None, piece.view.board
        index = page if is_whole else patch if piece.view.patch is None else piece.view.patch
        count = WHOLE_TOKENS if is_whole else CROP_TOKENS
        if writer.symbolic:
            trace.ids.extend(_stand_ins(writer, piece.view.says, count))
        else:
            seen = View("page" if is_whole else "patch", index, len(trace.ids))
            trace.views.append(seen if board is None else View("board", board, len(trace.ids)))
            trace.ids.extend([writer.special[names.IMAGE]] * count)
        trace.own.extend([False] * count)
        if board is None:
            page, patch = page + is_whole, patch + (not is_whole)
    return trace


def _stand_ins(writer: Writer, text: str, count: int) -> list[int]:
    """Returns `count` tokens that spell a text, as far as there is room, and then blanks."""
    spelled = [i for letter in text for i in writer.encode(letter)][:count]
    return spelled + [writer.special[names.PAD]] * (count - len(spelled))


def views_of(
    item: Item, pieces: Sequence[Piece], rng: np.random.Generator | None = None
) -> tuple[list[Pixels], list[Pixels]]:
    """Returns the pages and the patches of a script, in order."""
    wanted = [piece.view for piece in pieces if piece.view is not None]
    pages = [view_of(item, one) for one in wanted if one.box is None]
    return pages, [view_of(item, one, rng) for one in wanted if one.box is not None]


def _blank(item: Item) -> Item:
    """Returns the item as it is kept: pictures that have their shape and nothing else."""
    shapes = tuple(np.empty((*picture.shape[:2], 0), np.uint8) for picture in item.pictures)
    return replace(item, pictures=shapes, check=bool)


def draw_shard(seed: int, count: int) -> Worlds:
    """Draws `count` items in the training style; indices of views start at zero."""
    rng, source = np.random.default_rng(seed), training_source()
    shares = np.array([share for share, _ in SETS.values()])
    draws = [draw for _, draw in SETS.values()]
    token = nouns.INVENTED.set(INVENTED_SHARE)
    pages: list[Pixels] = []
    patches: list[Pixels] = []
    items = []
    for _ in range(count):
        style = Style(float(rng.uniform(0, LARGEST_NOISE)), source, held_out=False)
        item = draws[rng.choice(len(draws), p=shares / shares.sum())](rng, style)
        items.append(Kept(_blank(item), len(pages), len(patches)))
        whole, cut = views_of(item, script(item, TILING), rng)
        pages += whole
        patches += cut
    nouns.INVENTED.reset(token)
    return Worlds(np.stack(pages), np.stack(patches), tuple(items))


def draw(directory: Path, *, items: int, seed: int, processes: int = 2) -> None:
    """Draws at least `items` items into `directory`; does nothing if that is done already."""
    if (directory / "items.jsonl").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    seeds = range(seed, seed + -(-items // SHARD_ITEMS))
    with ProcessPoolExecutor(processes) as pool:
        shards = pool.map(partial(draw_shard, count=SHARD_ITEMS), seeds)
        parts = list(tqdm(shards, total=len(seeds), desc="worlds", unit="shard"))
    kept: list[Kept] = []
    page = patch = 0
    for part in parts:
        kept += (Kept(one.item, one.page + page, one.patch + patch) for one in part.items)
        page, patch = page + len(part.pages), patch + len(part.patches)
    np.save(directory / "pages.npy", np.concatenate([part.pages for part in parts]))
    np.save(directory / "patches.npy", np.concatenate([part.patches for part in parts]))
    with (directory / "items.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_row(one)) + "\n" for one in kept)


def _row(kept: Kept) -> dict[str, Any]:
    item = asdict(replace(kept.item, pictures=(), check=bool))
    del item["check"]
    sizes = [picture.shape[:2] for picture in kept.item.pictures]
    return {**item, "pictures": sizes, "page": kept.page, "patch": kept.patch}


def _kept(row: dict[str, Any]) -> Kept:
    page, patch = row.pop("page"), row.pop("patch")
    row["pictures"] = tuple(np.empty((*size, 0), np.uint8) for size in row["pictures"])
    for name in ("reads", "last"):
        row[name] = tuple(Read(r["text"], tuple(r["box"]), r["picture"]) for r in row[name])
    row["uses"] = tuple(Use(**use) for use in row["uses"])
    row["tables"] = tuple(
        Table(one["name"], tuple(one["columns"]), tuple(map(tuple, one["rows"])))
        for one in row["tables"]
    )
    row["tools"] = tuple(row["tools"])
    row["earlier"] = tuple((asked, told) for asked, told in row["earlier"])
    return Kept(Item(**row, check=bool), page, patch)


def open_worlds(directory: Path) -> Worlds:
    """Maps what was drawn into memory."""
    lines = (directory / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return Worlds(
        np.load(directory / "pages.npy", mmap_mode="r"),
        np.load(directory / "patches.npy", mmap_mode="r"),
        tuple(_kept(json.loads(line)) for line in lines),
    )
