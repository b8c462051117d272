"""Follows what an agent writes: reasoning, tool calls, the answer.

State diagram (one agent)::

    REASONING --call token--> CALLING --run token--> (paused) --injected--> REASONING
        |                        |
        +--answer token--> ANSWERING --end token--> ENDED
        +--end token----------------------------------^

Invariants (``tests/property/test_transcript.py``):

1. Text that was emitted is never taken back: characters are emitted when they are complete.
2. Emitted text, in order, is exactly the decoded text of the sampled tokens without control tokens.
3. A stop string never appears in emitted text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

REPLACEMENT = "\ufffd"
# A character takes at most four bytes, hence at most four byte tokens.
MAX_PENDING = 4


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
    """The token ids that structure a model's turn; -1 where a model has none."""

    end: frozenset[int]
    call: int = -1
    run: int = -1
    answer: int = -1


@dataclass(slots=True)
class Transcript:
    """One agent's turn so far. ``decode`` turns token ids into text, specials into nothing."""

    control: ControlTokens
    decode: Callable[[Sequence[int]], str]
    stop: tuple[str, ...] = ()
    answers_only_marked: bool = True
    mode: Mode = Mode.REASONING
    answer: str = ""
    call_text: str = ""
    withheld: str = ""
    _pending: list[int] = field(default_factory=list)

    def push(self, token_id: int) -> tuple[str, Turn]:
        """Takes one sampled token. Returns the text that became showable and what happened."""
        if token_id in self.control.end:
            return self._finish(), Turn.ENDED
        if token_id == self.control.call and self.mode is Mode.REASONING:
            text = self._flush()
            self.mode, self.call_text = Mode.CALLING, ""
            return text, Turn.NONE
        if token_id == self.control.run and self.mode is Mode.CALLING:
            text = self._flush()
            self.mode = Mode.REASONING
            return text, Turn.CALL_READY
        if token_id == self.control.answer and self.mode is not Mode.ANSWERING:
            text = self._flush()
            self.mode = Mode.ANSWERING
            return text, Turn.NONE
        self._pending.append(token_id)
        text = self.decode(self._pending)
        if text.endswith(REPLACEMENT) and len(self._pending) < MAX_PENDING:
            return "", Turn.NONE
        self._pending.clear()
        return self._emit(text)

    def open_answer(self) -> None:
        """The turn was opened with the answer token (instant effort)."""
        self.mode = Mode.ANSWERING

    def final_answer(self) -> str:
        """The answer as far as it was written, stripped."""
        return self.answer.strip()

    def _emit(self, text: str) -> tuple[str, Turn]:
        """Holds back what may become a stop string; cuts at one that is complete."""
        if not self.stop:
            return self._record(text), Turn.NONE
        self.withheld += text
        found = [at for at in (self.withheld.find(s) for s in self.stop) if at >= 0]
        if found:
            shown, self.withheld = self.withheld[: min(found)], ""
            self._record(shown)
            self.mode = Mode.ENDED
            return shown, Turn.STOPPED
        keep = max((_overlap(self.withheld, s) for s in self.stop), default=0)
        split = len(self.withheld) - keep
        shown, self.withheld = self.withheld[:split], self.withheld[split:]
        return self._record(shown), Turn.NONE

    def _record(self, text: str) -> str:
        if self.mode is Mode.CALLING:
            self.call_text += text
        elif self.mode is Mode.ANSWERING or not self.answers_only_marked:
            self.answer += text
        return text

    def _flush(self) -> str:
        """Gives out what was held back: a control token ended the stretch of text."""
        text = self.withheld + (self.decode(self._pending) if self._pending else "")
        self.withheld = ""
        self._pending.clear()
        return self._record(text)

    def _finish(self) -> str:
        text = self._flush()
        self.mode = Mode.ENDED
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ends ``text``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
