"""Follows what an agent writes: reasoning, tool calls, the answer.

State diagram (one agent)::

    REASONING --call token--> CALLING --run token--> (paused) --injected--> REASONING
        |                        |
        +--answer token--> ANSWERING --end token--> ENDED
        +--end token----------------------------------^

Where ``calls_in_answer`` holds (chat models) a call may come while ANSWERING, too; marks may be
texts instead of tokens, and those are shown.

Invariants (``tests/property/test_transcript.py``):

1. Text that was emitted is never taken back: characters are emitted when they are complete.
2. Emitted text, in order, is exactly the decoded text of the sampled tokens, control tokens
   apart, up to a stop string.
3. A stop string never appears in the text emitted between two control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

REPLACEMENT = "\ufffd"


class Mode(Enum):
    """What the agent is writing."""

    REASONING = "reasoning"
    CALLING = "calling"
    ANSWERING = "answering"
    ENDED = "ended"


class Turn(Enum):
    """What a token did beside adding text."""

    NONE = 0
    CALL_READY = 1
    ENDED = 2
    STOPPED = 3


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The token ids that structure a model's turn; -1 where a model has none.

    A model whose marks of a call are no tokens has them as text, spread over any tokens.
    """

    end: frozenset[int]
    call: int = -1
    run: int = -1
    answer: int = -1
    call_mark: str = ""
    run_mark: str = ""
    calls_in_answer: bool = False  # a call may come in the answer, and takes back what it follows


@dataclass(slots=True)
class Transcript:
    """One agent's turn so far. ``decode`` turns token ids into text, specials into nothing."""

    control: ControlTokens
    decode: Callable[[Sequence[int]], str]
    stop: tuple[str, ...] = ()
    answers_only_marked: bool = True
    answer_calls: bool = True  # False where the answer follows a grammar: marks in it are text
    opens_answers: bool = False  # every turn begins with the answer (instant effort)
    mode: Mode = Mode.REASONING
    answer: str = ""
    call_text: str = ""
    withheld: str = ""  # may become a stop string
    _pending: list[int] = field(default_factory=list)  # the bytes of an unfinished character

    @property
    def is_answer(self) -> bool:
        """Whether text that comes now belongs to the answer."""
        if self.mode is Mode.REASONING:
            return not self.answers_only_marked
        return self.mode is Mode.ANSWERING

    def push(self, token_id: int, *, stops: bool = True) -> tuple[str, Turn]:
        """Takes one sampled token. Returns the text that became showable and what happened.

        Without ``stops`` stop strings do not count yet.
        """
        control = self.control
        if token_id in control.end:
            return self._turn_to(Mode.ENDED, Turn.ENDED)
        if token_id == control.call and self._may_call:
            text, turn = self._turn_to(Mode.CALLING, Turn.NONE)
            self._begin_call()
            return text, turn
        if token_id == control.run and self.mode is Mode.CALLING:
            return self._turn_to(self._after_call, Turn.CALL_READY)
        if token_id == control.answer and self.mode is not Mode.ANSWERING:
            return self._turn_to(Mode.ANSWERING, Turn.NONE)
        text = self._characters(token_id)
        stop = self.stop if stops else ()
        if not (stop or self._mark):
            return self._record(self._with_withheld(text)), Turn.NONE
        return self._emit(text, stop, self._mark)

    def open_answer(self) -> None:
        """The turn was opened with the answer token (instant effort)."""
        self.mode, self.opens_answers = Mode.ANSWERING, True

    @property
    def _may_call(self) -> bool:
        """Whether a mark that comes now begins a call."""
        if self.mode is Mode.REASONING:
            return self.answer_calls or not self.is_answer
        return self.mode is Mode.ANSWERING and self.answer_calls and self.control.calls_in_answer

    @property
    def _mark(self) -> str:
        """The text that would now begin or end a call; empty for none."""
        if self.mode is Mode.CALLING:
            return self.control.run_mark
        return self.control.call_mark if self._may_call else ""

    @property
    def _after_call(self) -> Mode:
        return Mode.ANSWERING if self.opens_answers else Mode.REASONING

    def _begin_call(self) -> None:
        self.call_text = ""
        if self.control.calls_in_answer:
            self.answer = ""  # it led to a call: the answer is still to come

    def final_answer(self) -> str:
        """The answer as far as it was written, stripped."""
        return self.answer.strip()

    def flush(self) -> str:
        """Gives out what was held back: nothing more comes of this stretch of text."""
        return self._close_stretch()[0]

    def _turn_to(self, mode: Mode, turn: Turn) -> tuple[str, Turn]:
        """A control token ends the stretch of text, unless a stop string held back in it did."""
        text, stopped = self._close_stretch()
        if stopped and turn is not Turn.ENDED:
            mode, turn = Mode.ENDED, Turn.STOPPED
        self.mode = mode
        return text, turn

    def _close_stretch(self) -> tuple[str, bool]:
        """What was held back, and whether a stop string was in it."""
        text = self._with_withheld(self.decode(self._pending) if self._pending else "")
        self._pending.clear()
        found = self._first_stop(text)
        return self._record(text if found < 0 else text[:found]), found >= 0

    def _characters(self, token_id: int) -> str:
        """The characters this token completes; the bytes of an unfinished one wait.

        Decoding writes REPLACEMENT for bytes that are no character, or not yet. Where the pending
        tokens can be cut in two without changing their text, the part before the cut is settled.
        """
        pending = self._pending
        if not pending:
            text = self.decode((token_id,))
            if text.endswith(REPLACEMENT):
                pending.append(token_id)
                return ""
            return text
        if not self.decode((token_id,)):  # a control token: no bytes
            return ""
        pending.append(token_id)
        text = self.decode(pending)
        if not text.endswith(REPLACEMENT):
            pending.clear()
            return text
        for cut in range(len(pending) - 1, 0, -1):
            head, tail = self.decode(pending[:cut]), self.decode(pending[cut:])
            if head + tail == text:
                del pending[:cut]
                return head
        return ""

    def _emit(self, text: str, stop: tuple[str, ...], mark: str) -> tuple[str, Turn]:
        """Holds back what may become a stop string or a mark; acts on one that is complete."""
        text = self._with_withheld(text)
        found = self._first_stop(text) if stop else -1
        marked = text.find(mark) if mark else -1
        if marked >= 0 and (found < 0 or marked < found):
            return self._cross(text[:marked], mark, text[marked + len(mark) :])
        if found >= 0:
            shown = self._record(text[:found])
            self._pending.clear()
            self.mode = Mode.ENDED
            return shown, Turn.STOPPED
        keep = max(_overlap(text, s) for s in (*stop, *filter(None, (mark,))))
        split = len(text) - keep
        shown, self.withheld = text[:split], text[split:]
        return self._record(shown), Turn.NONE

    def _cross(self, before: str, mark: str, rest: str) -> tuple[str, Turn]:
        """A mark in the text begins or ends a call; what follows it is read with the next token."""
        shown = self._record(before) + mark
        self.withheld = rest
        if self.mode is Mode.CALLING:
            self.mode = self._after_call
            return shown, Turn.CALL_READY
        self.mode = Mode.CALLING
        self._begin_call()
        return shown, Turn.NONE

    def _with_withheld(self, text: str) -> str:
        if self.withheld:
            text, self.withheld = self.withheld + text, ""
        return text

    def _first_stop(self, text: str) -> int:
        """Where the first stop string begins; -1 if there is none."""
        return min((at for at in (text.find(s) for s in self.stop) if at >= 0), default=-1)

    def _record(self, text: str) -> str:
        if self.mode is Mode.CALLING:
            self.call_text += text
        elif self.is_answer:
            self.answer += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ends ``text``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
