"""Writes what the model should read and say, as one flat sequence of tokens.

A trace knows which tokens are the model's own: only those are trained on. Views of pictures are
runs of `<|image|>` tokens (16 for a whole picture, 8 for a crop) whose embeddings come from the
encoder; before the encoder is trained, stand-in tokens tell the same in symbols.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, get_args

from cogitate.evals.boards import (
    KINDS,
    RULES,
    Cell,
    answer_sentence,
    cell_box,
)
from cogitate.evals.countdown import Step
from cogitate.evals.render import COLOUR_NAMES
from tokenizers import Tokenizer

from mini import tokenizer as names
from mini.model import CROP_TOKENS, WHOLE_TOKENS
from mini.words import CLOSER_LOOK, REFUSAL

Pool = Literal["board", "crop", "scene", "page", "patch"]
POOLS: tuple[Pool, ...] = get_args(Pool)
# Pools whose pictures are crops: eight tokens each.
CROPS: tuple[Pool, ...] = ("crop", "patch")
COLUMN_NAMES = "ABCD"


@dataclass(frozen=True)
class View:
    """Where a view goes: rows `start`... of the trace hold picture `index` of `pool`."""

    pool: Pool
    index: int
    start: int


@dataclass(frozen=True)
class Look:
    """A view and the tokens that stand for it while the encoder is untrained."""

    pool: Pool
    index: int
    symbols: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """The cards a question is about, in reading order, on a board of `rows` x `columns`."""

    rows: int
    columns: int
    colour: int
    cells: tuple[Cell, ...]
    numbers: tuple[int, ...]
    whole: Look
    crops: tuple[Look, ...]


@dataclass
class Trace:
    """Token ids, which of them are the model's own, and the views among them."""

    ids: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)
    views: list[View] = field(default_factory=list)


class Writer:
    """Appends to traces; `symbolic` replaces views by their stand-ins."""

    def __init__(self, tokenizer: Tokenizer, *, symbolic: bool) -> None:
        self.tokenizer = tokenizer
        self.symbolic = symbolic
        self.special = {name: tokenizer.token_to_id(name) for name in names.SPECIAL_TOKENS}
        self.encode = lru_cache(maxsize=200_000)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def put(self, trace: Trace, *parts: str, own: bool) -> None:
        """Appends texts and special tokens."""
        for part in parts:
            special = self.special.get(part)
            ids = self.encode(part) if special is None else (special,)
            trace.ids.extend(ids)
            trace.own.extend([own] * len(ids))

    def look(self, trace: Trace, look: Look) -> None:
        """Appends a view."""
        count = CROP_TOKENS if look.pool in CROPS else WHOLE_TOKENS
        if self.symbolic:
            ids = list(look.symbols)
        else:
            trace.views.append(View(look.pool, look.index, len(trace.ids)))
            ids = [self.special[names.IMAGE]] * count
        trace.ids.extend(ids)
        trace.own.extend([False] * count)

    def ask(
        self, question: str, whole: Look | None, hint: str = "", later: Sequence[str] = ()
    ) -> Trace:
        """Starts a trace: question, picture, and the agent's hint.

        Of a `later` round also what was answered before, and the request that follows it.
        """
        trace = Trace()
        self.put(trace, names.BEGIN, names.USER, question, own=False)
        if whole is not None:
            self.look(trace, whole)
        self.put(trace, names.END, names.ASSISTANT, own=False)
        if later:
            answered, request = later
            self.put(trace, names.ANSWER, answered, names.END, own=False)
            self.put(trace, names.USER, request, names.END, names.ASSISTANT, own=False)
        if hint:
            self.put(trace, hint, own=False)
        return trace

    def call(self, trace: Trace, call: str, result: str | Look, *, own: bool = True) -> None:
        """Appends a tool call and what the runtime answers."""
        self.put(trace, names.CALL, call, names.RUN, own=own)
        self.put(trace, names.RESULT, own=False)
        if isinstance(result, str):
            self.put(trace, result, own=False)
        else:
            self.look(trace, result)
        self.put(trace, names.END_RESULT, own=False)

    def answer(self, trace: Trace, sentence: str, *, instant: bool = False) -> Trace:
        """Ends the trace; in instant mode the answer mark is the runtime's, not the model's."""
        self.put(trace, names.ANSWER, own=not instant)
        self.put(trace, sentence, names.END, own=True)
        return trace

    def plan(self, trace: Trace, asked: Asked) -> None:
        """Names where the cards of the colour lie, as on a chess board: `Red at B1 C2.`"""
        name = COLOUR_NAMES[asked.colour]
        # The tokenizer keeps a blank with the word after it, so the hint ends without one.
        blank = "" if trace.ids[-1] == self.special[names.ASSISTANT] else " "
        if asked.cells:
            self.put(trace, f"{blank}{name.capitalize()} at", own=True)
            for row, column in asked.cells:
                self.put(trace, f" {COLUMN_NAMES[column]}", str(row + 1), own=True)
            self.put(trace, ".", own=True)
        else:
            self.put(trace, f"{blank}No {name} cards.", own=True)

    def read(self, trace: Trace, asked: Asked) -> None:
        """Zooms into each card and writes its number down."""
        last = len(asked.cells) - 1
        reads = zip(asked.cells, asked.numbers, asked.crops, strict=True)
        for i, (cell, number, crop) in enumerate(reads):
            x0, y0, x1, y1 = cell_box(cell, asked.rows, asked.columns)
            self.call(trace, f"zoom({x0}, {y0}, {x1}, {y1})", crop)
            self.put(trace, str(number), ". " if i == last else ", ", own=True)


def _expression(kind: str, numbers: Sequence[int]) -> str | None:
    """Returns what the calculator is asked, or None where reading is enough."""
    listed = ", ".join(str(n) for n in numbers)
    if kind == "sum":
        return "+".join(str(n) for n in numbers) if len(numbers) > 1 else None
    if kind == "diff":
        if len(numbers) == 1:
            return f"{numbers[0]}-{numbers[0]}"
        return f"max({listed})-min({listed})"
    return f"{kind}({listed})" if len(numbers) > 1 else None


def board_trace(
    writer: Writer, question: str, kind: str, asked: Asked, hint: str, later: Sequence[str] = ()
) -> Trace:
    """A question about one colour of a board, in a `later` round as `Writer.ask` says."""
    assert kind in KINDS
    trace = writer.ask(question, asked.whole, hint, later)
    writer.plan(trace, asked)
    name = COLOUR_NAMES[asked.colour]
    if kind == "count":
        return writer.answer(trace, answer_sentence(kind, name, len(asked.cells)))
    if not asked.cells:
        return writer.answer(trace, REFUSAL)
    writer.read(trace, asked)
    value = RULES[kind](asked.numbers)
    expression = _expression(kind, asked.numbers)
    if expression is not None:
        writer.call(trace, f"calculator({expression})", str(value))
    return writer.answer(trace, answer_sentence(kind, name, value))


def derivation(
    writer: Writer, trace: Trace, numbers: Sequence[int], target: int, steps: Sequence[Step]
) -> Trace:
    """Appends a countdown search to the end; steps that miss the target are not trained on."""
    is_hit = steps[-1].result == target
    listed = " ".join(str(n) for n in numbers)
    writer.put(trace, f"Numbers {listed}, target {target}.", own=True)
    for step in steps:
        call = f"calculator({step.left}{step.operator}{step.right})"
        writer.call(trace, call, str(step.result), own=is_hit)
    if not is_hit:
        return writer.answer(trace, f"I could not make {target}.")
    chain = ", ".join(str(step) for step in steps)
    writer.call(trace, f"prove({target}, {listed}, {chain})", "proved")
    return writer.answer(trace, f"{chain}.")


def countdown_trace(
    writer: Writer, question: str, asked: Asked, target: int, steps: Sequence[Step], hint: str
) -> Trace:
    """A countdown puzzle read from the cards of one colour."""
    trace = writer.ask(question, asked.whole, hint)
    writer.plan(trace, asked)
    writer.read(trace, asked)
    return derivation(writer, trace, asked.numbers, target, steps)


def search_trace(
    writer: Writer, numbers: Sequence[int], target: int, steps: Sequence[Step], hint: str
) -> Trace:
    """Only the search of a countdown puzzle, for cheap practice without a picture.

    The proof and the answer, which repeat the steps, are left out. Here alone the calculator's
    results are trained on too: who can calculate in the head can look ahead. Of steps that miss the
    target only that it has to be admitted is trained on.
    """
    is_hit = steps[-1].result == target
    trace = Trace()
    writer.put(trace, names.BEGIN, names.ASSISTANT, hint, own=False)
    listed = " ".join(str(n) for n in numbers)
    writer.put(trace, f"Numbers {listed}, target {target}.", own=False)
    for step in steps:
        call = f"calculator({step.left}{step.operator}{step.right})"
        writer.call(trace, call, str(step.result), own=is_hit)
        trace.own[-2] = is_hit
    writer.put(trace, names.CALL if is_hit else names.ANSWER, own=True)
    return trace


def admit_trace(
    writer: Writer, question: str, asked: Asked, target: int, steps: Sequence[Step], hint: str
) -> Trace:
    """Only whether there is something to prove after a search that is given; nothing is looked at.

    Among whole traces this is one token of a hundred.
    """
    whole = countdown_trace(writer, question, asked, target, steps, hint)
    end = writer.special[names.CALL if steps[-1].result == target else names.ANSWER]
    last = max(at for at, token in enumerate(whole.ids) if token == end)
    ids = [token for token in whole.ids[: last + 1] if token != writer.special[names.IMAGE]]
    return Trace(ids, [False] * (len(ids) - 1) + [True])


def read_trace(writer: Writer, number: int, crop: Look) -> Trace:
    """Only a crop and its number, for cheap practice in reading."""
    trace = Trace()
    writer.put(trace, names.RESULT, own=False)
    writer.look(trace, crop)
    writer.put(trace, names.END_RESULT, own=False)
    writer.put(trace, str(number), own=True)
    return trace


def direct_trace(
    writer: Writer,
    question: str,
    whole: Look | None,
    sentence: str,
    *,
    thought: str = "",
    hint: str = "",
    instant: bool = False,
) -> Trace:
    """An answer at a glance, after at most one short thought."""
    trace = writer.ask(question, whole, hint)
    if thought:
        writer.put(trace, f" {thought}" if hint else thought, own=True)
    return writer.answer(trace, sentence, instant=instant)


def refusal_trace(writer: Writer, question: str, whole: Look | None, hint: str) -> Trace:
    """A question the model has to turn down."""
    return direct_trace(writer, question, whole, REFUSAL, hint=hint)


def instant_board_trace(writer: Writer, question: str, kind: str, asked: Asked) -> Trace:
    """A board question that must be answered without zooming: only counting can be."""
    name = COLOUR_NAMES[asked.colour]
    is_count = kind == "count"
    sentence = answer_sentence(kind, name, len(asked.cells)) if is_count else CLOSER_LOOK
    if not is_count and not asked.cells:
        sentence = REFUSAL
    return direct_trace(writer, question, asked.whole, sentence, instant=True)


def cell_trace(writer: Writer, question: str, asked: Asked, hint: str) -> Trace:
    """The number on one named card."""
    trace = writer.ask(question, asked.whole, hint)
    writer.read(trace, asked)
    return writer.answer(trace, f"The number is {asked.numbers[0]}.")
