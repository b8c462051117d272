"""Draws traces of kept items and of roles, sorted into buckets of similar length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cogitate.evals.items import Item
from cogitate.evals.outside import REFUSAL

from mini import roles
from mini import tokenizer as names
from mini.model import CROP_TOKENS
from mini.scripts import Piece, prompt, script
from mini.traces import Look, Trace, Writer
from mini.words import AGENT_HINTS, CLOSER_LOOK, vary
from mini.worlds import TILING, Kept, Worlds, trace_of

BUCKET_TOKENS = {
    "item-1": 96,
    "item-2": 160,
    "item-3": 224,
    "item-4": 288,
    "item-5": 384,
    "item-instant": 112,
    "where": 168,
    "spell": 26,
    "role": 480,
    "again": 416,
}
LENGTHS = tuple(f"item-{i}" for i in range(1, 6))
# Room for a hint and for small variations of the question.
SPARE = 8
HINT_SHARE = 0.2
LONGEST_SPELLED = 14


class ItemTasks:
    """Draws traces from part of the kept items; views are looked up by the batch."""

    def __init__(self, worlds: Worlds, writer: Writer, part: range, boards: range) -> None:
        self.worlds, self.writer, self._boards = worlds, writer, boards
        self._by_length: dict[str, list[int]] = {bucket: [] for bucket in LENGTHS}
        # Which patch shows what: reading practice.
        self._spelled: list[tuple[int, str]] = []
        for i in part:
            self._index(i, worlds.items[i])
        self._part = part

    def _index(self, i: int, kept: Kept) -> None:
        pieces = script(kept.item, TILING)
        cut = [p.view for p in pieces if p.view is not None and p.view.box is not None]
        for j, view in enumerate(cut):
            if 0 < len(view.says) <= LONGEST_SPELLED:
                self._spelled.append((kept.patch + j, view.says))
        if self.writer.symbolic and any(len(view.says) > CROP_TOKENS for view in cut):
            return
        size = len(trace_of(self.writer, pieces).ids) + SPARE
        for bucket in LENGTHS:
            if size <= BUCKET_TOKENS[bucket]:
                self._by_length[bucket].append(i)
                return

    def draw(self, bucket: str, rng: np.random.Generator) -> Trace:
        """Draws one trace of a bucket; never longer than the bucket's tokens."""
        while True:
            trace = self._made(bucket, rng)
            if len(trace.ids) <= BUCKET_TOKENS[bucket]:
                return trace

    def _made(self, bucket: str, rng: np.random.Generator) -> Trace:
        match bucket:
            case "role":
                return self._role(rng)
            case "again":
                return self._again(rng)
            case "spell":
                return self._spell(rng)
            case "item-instant":
                return self._instant(rng)
            case "where":
                return self._where(rng)
        options = self._by_length[bucket]
        return self._item(rng, self.worlds.items[options[rng.integers(len(options))]])

    def _item(self, rng: np.random.Generator, kept: Kept) -> Trace:
        hint = ""
        if rng.random() < HINT_SHARE:
            hint = AGENT_HINTS[rng.integers(1, len(AGENT_HINTS))]
        item = _varied(rng, kept.item)
        return trace_of(self.writer, script(item, TILING, hint), (kept.page, kept.patch))

    def _instant(self, rng: np.random.Generator) -> Trace:
        """An item at instant effort: the answer is forced before anything is read."""
        kept = self.worlds.items[self._part[rng.integers(len(self._part))]]
        item = _varied(rng, kept.item)
        sentence = REFUSAL if item.truth == REFUSAL and not item.reads else CLOSER_LOOK
        end = [Piece(names.ANSWER), Piece(sentence, own=True), Piece(names.END, own=True)]
        return trace_of(self.writer, [*prompt(item, TILING), *end], (kept.page, kept.patch))

    def _where(self, rng: np.random.Generator) -> Trace:
        """Only where an item zooms to, one box after the other, for cheap practice in finding."""
        options = self._by_length[LENGTHS[rng.integers(1, len(LENGTHS))]]
        kept = self.worlds.items[options[rng.integers(len(options))]]
        pieces = script(_varied(rng, kept.item), TILING)
        begun = next(i for i, piece in enumerate(pieces) if piece.own)
        calls = [p for p in pieces if p.own and p.text.startswith("zoom(")]
        shown = [*pieces[:begun], *([pieces[begun]] if kept.item.seen else [])]
        for one in calls:
            shown += [Piece(names.CALL, own=True), one, Piece(names.RUN, own=True)]
        return trace_of(self.writer, shown, (kept.page, kept.patch))

    def _spell(self, rng: np.random.Generator) -> Trace:
        """A crop and what it says."""
        patch, text = self._spelled[rng.integers(len(self._spelled))]
        trace = Trace()
        self.writer.put(trace, names.RESULT, own=False)
        self.writer.look(trace, Look("patch", patch, ()))
        self.writer.put(trace, names.END_RESULT, own=False)
        self.writer.put(trace, text, ", ", own=True)
        return trace

    def _role(self, rng: np.random.Generator) -> Trace:
        """Checking, summing up or refining of drafts; checking twice as often as the others."""
        board = self._boards[rng.integers(len(self._boards))]
        case = replace(roles.draw_case(rng), board=int(board))
        pick = rng.integers(4)
        if pick < 2:
            return trace_of(self.writer, roles.checker(case, rng))
        return trace_of(self.writer, (roles.summariser if pick == 2 else roles.refiner)(case))

    def _again(self, rng: np.random.Generator) -> Trace:
        """A later round of `refine` on one of the shorter items."""
        options = self._by_length[LENGTHS[rng.integers(0, 3)]]
        kept = self.worlds.items[options[rng.integers(len(options))]]
        return trace_of(self.writer, roles.again(rng, kept.item, TILING), (kept.page, kept.patch))


def _varied(rng: np.random.Generator, item: Item) -> Item:
    return replace(item, text=vary(rng, item.text))
