"""Draws traces of kept items and of roles, sorted into buckets of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from cogitate.evals.items import Item
from cogitate.evals.outside import REFUSAL
from cogitate.evals.render import COLOUR_NAMES

from mini import figures, roles
from mini import tokenizer as names
from mini.model import CROP_TOKENS
from mini.scripts import (
    COUNTED,
    FOUND,
    LAST,
    MARKS,
    NEXT,
    Piece,
    View,
    call,
    found,
    found_last,
    prompt,
    script,
)
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
    "point": 112,
    "match": 240,
    "order": 144,
    "conclude": 288,
    "shade": 40,
    "pick": 320,
    "swap": 384,
    "spell": 26,
    "reckon": 320,
    "role": 704,
    "judge": 384,
    "audit": 144,
    "same": 224,
    "again": 480,
}
LENGTHS = tuple(f"item-{i}" for i in range(1, 6))
# Room for a hint and for small variations of the question.
SPARE = 8
HINT_SHARE = 0.2
LONGEST_SPELLED = 14
# What is looked at first has to be found by its looks: a colour, the longest bar.
FOUND_BY_LOOKS = ("labels.word", "labels.words", "chain.price")
# Where to look next depends on where something was that has been read.
PICKED = ("chart.sum", "chart.most", "chart.least", "receipt.sum", "receipt.difference",
          "receipt.most", "receipt.least")  # fmt: skip
MISREAD_SHARE = 0.35
# Questions that name what is not there, and how often `match` practises those.
NOT_THERE = ("outside.row", "outside.untested", "outside.bar", "labels.has")
NOT_THERE_SHARE = 0.25
# The best so far has to be known by its figures; `match` and `order` practise it with new ones.
RANKED_KINDS, RANKED_SHARE = (".most", ".least"), 0.25
# As what is more than a limit or the very figure that is asked for: `order` practises these, too.
ORDER_KINDS = (*RANKED_KINDS, COUNTED, ".who")
# Figures of other pictures stand in for theirs, so that each has another answer every time.
SWAPPED = ("chart.most", "chart.least", "chart.above", "receipt.most", "receipt.least")
# Yes or no follows from what was calculated last: nought, or not.
CONCLUDED = ("receipt.check", "chain.listed")
# How often there is only one draft to judge.
SINGLE_SHARE = 0.5
# Words are harder to read than figures.
SPELLED_WORD, SPELLED_WORD_SHARE = 4, 0.5


class ItemTasks:
    """Draws traces from part of the kept items; views are looked up by the batch."""

    def __init__(self, worlds: Worlds, writer: Writer, part: range, boards: range) -> None:
        self.worlds, self.writer, self._boards = worlds, writer, boards
        self._by_length: dict[str, list[int]] = {bucket: [] for bucket in LENGTHS}
        # Which patch shows what: reading practice.
        self._spelled: list[tuple[int, str]] = []
        self._words: list[tuple[int, str]] = []
        # And which card has which colour.
        self._shades: list[tuple[int, str, str]] = []
        self._by_looks: list[int] = []
        self._wanted: list[int] = []
        self._not_there: list[int] = []
        self._ordered: dict[str, list[int]] = {kind: [] for kind in ORDER_KINDS}
        self._picked: list[int] = []
        self._concluded: dict[str, list[Item]] = {}
        self._reckoned: list[Item] = []
        self._swapped: dict[str, list[int]] = {}
        # Figures that are compared: what they say, and their patches.
        self._figures: dict[tuple[str, bool], list[tuple[str, int]]] = {}
        for i in part:
            self._index(i, worlds.items[i])
        self._part = part

    def _index(self, i: int, kept: Kept) -> None:
        pieces = script(kept.item, TILING)
        cut = [p.view for p in pieces if p.view is not None and p.view.box is not None]
        for j, view in enumerate(cut):
            if 0 < len(view.says) <= LONGEST_SPELLED:
                self._spelled.append((kept.patch + j, view.says))
                if view.says.isalpha() and len(view.says) >= SPELLED_WORD:
                    self._words.append((kept.patch + j, view.says))
        if kept.item.kind in FOUND_BY_LOOKS:
            self._by_looks.append(i)
        if kept.item.kind in PICKED:
            self._picked.append(i)
        if kept.item.kind in CONCLUDED:
            self._concluded.setdefault(kept.item.kind, []).append(kept.item)
        if figures.is_reckoned(kept.item):
            self._reckoned.append(kept.item)
        if kept.item.kind in SWAPPED:
            self._swapped.setdefault(kept.item.kind, []).append(i)
            pool = self._figures.setdefault(_sort(kept.item), [])
            texts = {read.text for read in figures.compared(kept.item)}
            pool += [
                (view.says, kept.patch + j) for j, view in enumerate(cut) if view.says in texts
            ]
        for kind in ORDER_KINDS:
            if kept.item.kind.endswith(kind):
                self._ordered[kind].append(i)
        self._shades += _shades(kept, cut)
        if any((*found(kept.item), *found_last(kept.item))):
            self._wanted.append(i)
        elif kept.item.kind in NOT_THERE:
            self._not_there.append(i)
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
            case "judge":
                return self._judge(rng)
            case "audit":
                return self._audit(rng)
            case "same":
                return trace_of(self.writer, roles.comparisons(rng))
            case "again":
                return self._again(rng)
            case "spell":
                return self._spell(rng)
            case "item-instant":
                return self._instant(rng)
            case "where":
                return self._where(rng)
            case "point":
                return self._zooms(rng, self.worlds.items[_one(rng, self._by_looks)])
            case "match":
                return self._match(rng)
            case "order":
                return self._order(rng)
            case "pick":
                return self._pick(rng)
            case "swap":
                return self._swap(rng)
            case "conclude":
                return self._conclude(rng)
            case "reckon":
                return self._reckon(rng)
            case "shade":
                return self._shade(rng)
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
        options = self._by_length[LENGTHS[rng.integers(1, len(LENGTHS))]]
        return self._zooms(rng, self.worlds.items[_one(rng, options)])

    def _zooms(self, rng: np.random.Generator, kept: Kept) -> Trace:
        """Only where an item zooms to, one box after the other, for cheap practice in finding."""
        pieces = script(_varied(rng, kept.item), TILING)
        begun = next(i for i, piece in enumerate(pieces) if piece.own)
        calls = [p for p in pieces if p.own and p.text.startswith("zoom(")]
        shown = [*pieces[:begun], *([pieces[begun]] if kept.item.seen else [])]
        for one in calls:
            shown += [Piece(names.CALL, own=True), one, Piece(names.RUN, own=True)]
        return trace_of(self.writer, shown, (kept.page, kept.patch))

    def _match(self, rng: np.random.Generator) -> Trace:
        """Only whether what is read is what the question names; nothing is looked at.

        Some words are misread by a letter, and are what they are all the same.
        """
        pick = rng.random()
        if pick < RANKED_SHARE:
            options = self._of_kinds(rng, RANKED_KINDS)
            item = _refigured(rng, self.worlds.items[_one(rng, options)].item)
        else:
            is_there = pick >= RANKED_SHARE + NOT_THERE_SHARE
            options = self._wanted if is_there else self._not_there
            item = self.worlds.items[_one(rng, options)].item
        item = _varied(rng, item)
        pieces = [piece for piece in script(item, TILING) if piece.view is None]
        shown = [
            replace(piece, text=_misread(rng, piece.text), own=False)
            if piece.own and following.own and following.text in MARKS
            else replace(piece, own=piece.own and piece.text in MARKS)
            for piece, following in zip(pieces, [*pieces[1:], Piece()], strict=True)
        ]
        last = max(i for i, piece in enumerate(shown) if piece.own)
        return trace_of(self.writer, shown[: last + 1])

    def _of_kinds(self, rng: np.random.Generator, kinds: Sequence[str]) -> Sequence[int]:
        """Items of one of the kinds; a small part may lack some of them."""
        there = [self._ordered[kind] for kind in kinds if self._ordered[kind]]
        return there[rng.integers(len(there))]

    def _order(self, rng: np.random.Generator) -> Trace:
        """Only figures, many of them, and which are wanted."""
        item = _varied(rng, self.worlds.items[_one(rng, self._of_kinds(rng, ORDER_KINDS))].item)
        told = figures.draw(rng, item)
        shown = [piece for piece in prompt(item, TILING) if piece.view is None]
        for use in item.uses:
            shown += (replace(one, own=False) for one in call(use.call, Piece(use.result)))
        count = 0
        for text, is_wanted in told:
            shown += [Piece(text), Piece(FOUND if is_wanted else NEXT, own=True)]
            count += is_wanted
            if is_wanted and item.kind.endswith(COUNTED):
                shown.append(Piece(str(count), own=True))
        return trace_of(self.writer, shown)

    def _pick(self, rng: np.random.Generator) -> Trace:
        """Only where to look once it is known what is wanted; crops are left out."""
        kept = self.worlds.items[_one(rng, self._picked)]
        shown: list[Piece] = []
        is_known = False
        for piece in script(_varied(rng, kept.item), TILING):
            is_known |= piece.text == FOUND
            if piece.view is None or piece.view.box is None or piece.view.is_tile:
                own = is_known and piece.text.startswith("zoom(")
                shown.append(replace(piece, own=own))
        return trace_of(self.writer, shown, (kept.page, kept.patch))

    def _swap(self, rng: np.random.Generator) -> Trace:
        """Figures of other pictures in the place of those compared: which are wanted, what then."""
        kinds = sorted(self._swapped)
        kept = self.worlds.items[_one(rng, self._swapped[kinds[rng.integers(len(kinds))]])]
        pool = self._figures[_sort(kept.item)]
        item, patches = figures.swap(rng, _varied(rng, kept.item), pool)
        left = [read.text for read in figures.compared(item)]
        shown: list[Piece] = []
        for piece in script(item, TILING):
            view = piece.view
            if view is not None and left and view.says == left[0]:
                view = replace(view, patch=patches.pop(0))
            elif view is not None and not left:
                break  # The name in it is that of the figure which was the best.
            is_begun = len(patches) < len(figures.compared(item))
            is_mark = is_begun and (piece.text in MARKS or piece.text.isdigit())
            shown.append(replace(piece, view=view, own=piece.own and (is_mark or not left)))
            if left and piece.own and piece.text == left[0]:
                left.pop(0)
        return trace_of(self.writer, shown, (kept.page, kept.patch))

    def _conclude(self, rng: np.random.Generator) -> Trace:
        """Only the answer that follows from what was calculated last; nothing is looked at."""
        kinds = sorted(self._concluded)
        options = self._concluded[kinds[rng.integers(len(kinds))]]
        item, other = (options[rng.integers(len(options))] for _ in range(2))
        # The other's difference, and what follows from it.
        last = replace(item.uses[-1], result=other.uses[-1].result)
        said, _, told = other.truth.partition(", ")
        figure = item.truth.rpartition(" ")[2]
        truth = f"{said}, {told.rpartition(' ')[0]} {figure}"
        item = replace(item, uses=(*item.uses[:-1], last), truth=truth)
        pieces = [one for one in script(_varied(rng, item), TILING) if one.view is None]
        begun = next(
            i for i, piece in enumerate(pieces) if piece.text == names.ANSWER and piece.own
        )
        return trace_of(
            self.writer,
            [replace(one, own=one.own and i >= begun) for i, one in enumerate(pieces)],
        )

    def _reckon(self, rng: np.random.Generator) -> Trace:
        """Only the calculation with two figures that were read; nothing is looked at.

        Which figure is whose has to be kept apart: half of the time without the boxes between them.
        """
        item = self._reckoned[rng.integers(len(self._reckoned))]
        item = figures.redraw(rng, _varied(rng, item))
        pieces = [one for one in script(item, TILING) if one.view is None]
        last = max(i for i, one in enumerate(pieces) if one.text == item.uses[-1].call)
        shown = [replace(one, own=i >= last) for i, one in enumerate(pieces[: last + 2])]
        if rng.random() < 0.5:
            shown = list(_unzoomed(shown))
        return trace_of(self.writer, shown)

    def _spell(self, rng: np.random.Generator) -> Trace:
        """A crop and what it says."""
        options = self._words if rng.random() < SPELLED_WORD_SHARE else self._spelled
        patch, text = options[rng.integers(len(options))]
        trace = Trace()
        self.writer.put(trace, names.RESULT, own=False)
        self.writer.look(trace, Look("patch", patch, ()))
        self.writer.put(trace, names.END_RESULT, own=False)
        self.writer.put(trace, text, ", ", own=True)
        return trace

    def _shade(self, rng: np.random.Generator) -> Trace:
        """A crop of a card, what it says, and the card's colour."""
        patch, text, colour = self._shades[rng.integers(len(self._shades))]
        trace = Trace()
        self.writer.put(trace, names.RESULT, own=False)
        self.writer.look(trace, Look("patch", patch, ()))
        self.writer.put(trace, names.END_RESULT, text, LAST, names.ANSWER, own=False)
        self.writer.put(trace, f"The {colour} card.", names.END, own=True)
        return trace

    def _role(self, rng: np.random.Generator) -> Trace:
        """Checking, summing up or refining of drafts; checking twice as often as the others."""
        board = self._boards[rng.integers(len(self._boards))]
        drawn = roles.draw_case(rng, drafts=(1, roles.DRAFTS[1]))
        case = replace(drawn, board=int(board))
        pick = rng.integers(4)
        if pick < 2:
            return trace_of(self.writer, roles.checker(case, rng))
        if pick == 2:
            return trace_of(self.writer, roles.summariser(case))
        return trace_of(self.writer, roles.refiner(case, roles.echoed(rng, case.drafts)))

    def _judge(self, rng: np.random.Generator) -> Trace:
        """A draft to check, most often a single one, without the picture, for cheap practice."""
        drafts = (1, 1) if rng.random() < SINGLE_SHARE else (2, 3)
        return trace_of(self.writer, roles.checker(roles.draw_case(rng, drafts=drafts), rng))

    def _audit(self, rng: np.random.Generator) -> Trace:
        """The checking of one draft and nothing around it, as often right as wrong."""
        case = roles.draw_case(rng, drafts=(1, 1), none_right=0.5)
        return trace_of(self.writer, roles.audit(case, rng))

    def _again(self, rng: np.random.Generator) -> Trace:
        """A later round of `refine` on an item that is not too long."""
        options = self._by_length[LENGTHS[rng.integers(0, 4)]]
        kept = self.worlds.items[options[rng.integers(len(options))]]
        return trace_of(self.writer, roles.again(rng, kept.item, TILING), (kept.page, kept.patch))


def _unzoomed(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """Leaves out where is zoomed to."""
    skipped = 0
    for piece, following in zip(pieces, [*pieces[1:], Piece()], strict=True):
        if following.text.startswith("zoom("):
            skipped = 5  # The call, its mark, and an empty result.
        if skipped:
            skipped -= 1
        else:
            yield piece


def _one(rng: np.random.Generator, options: Sequence[int]) -> int:
    return options[rng.integers(len(options))]


def _sort(item: Item) -> tuple[str, bool]:
    """What looks alike: receipts, and charts of either direction."""
    return item.kind.partition(".")[0], "lying" in item.seen


def _shades(kept: Kept, cut: Sequence[View]) -> Iterator[tuple[int, str, str]]:
    """Yields patches of cards, what they say, and the colour that the question or answer names."""
    item = kept.item
    is_told = item.kind == "labels.colour"
    if not (is_told or item.kind in FOUND_BY_LOOKS):
        return
    told = item.truth if is_told else item.text
    colour = next((name for name in COLOUR_NAMES if name in told.lower()), None)
    read = [(kept.patch + j, view.says) for j, view in enumerate(cut) if not view.is_tile]
    for patch, says in read[-1:] if is_told else read:
        if colour is not None:
            yield patch, says, colour


def _refigured(rng: np.random.Generator, item: Item) -> Item:
    """Puts other figures in the place of those that are compared, with as many decimals."""
    top = max(float(read.text) for read in item.reads)
    reads = []
    for read in item.reads:
        decimals = len(read.text.partition(".")[2])
        reads.append(replace(read, text=f"{rng.uniform(0.05, 1.0) * top:.{decimals}f}"))
    return replace(item, reads=tuple(reads))


def _misread(rng: np.random.Generator, text: str) -> str:
    """Sometimes puts another letter in the place of one."""
    if not (text.isalpha() and len(text) > 3 and rng.random() < MISREAD_SHARE):
        return text
    at = int(rng.integers(1, len(text)))
    return f"{text[:at]}{chr(97 + rng.integers(26))}{text[at + 1 :]}"


def _varied(rng: np.random.Generator, item: Item) -> Item:
    return replace(item, text=vary(rng, item.text))
