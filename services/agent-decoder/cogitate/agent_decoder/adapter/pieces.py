"""Names for pieces of text: a server behind HTTP tells no token ids, and the core counts in ids.

A piece's id means something to this process only; its build digest says so, and no other process
takes a resume state made of them. Ids are never given twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from cogitate.agent_decoder.core.transcript import ControlTokens
from cogitate.kit.errors import EngineFailure

# What a server does that is no text. PAD is a token that was counted and not shown.
CALL, RUN, ANSWER, PAD, RESULT = range(5)
CONTROL = ControlTokens(end=frozenset(), call=CALL, run=RUN, answer=ANSWER, calls_in_answer=True)
# A vocabulary has a quarter of this at most; pieces of several tokens are rare.
MAX_PIECES = 1_000_000


class Pieces:
    """Gives ids to pieces and takes them back."""

    def __init__(self, max_pieces: int = MAX_PIECES) -> None:
        self._max_pieces = max_pieces
        self._texts: list[str] = [""] * (RESULT + 1)
        self._ids: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def id_of(self, text: str) -> int:
        """The piece's id; PAD for an empty one. Raises EngineFailure when there are too many."""
        if not text:
            return PAD
        known = self._ids.get(text)
        if known is None:
            if len(self._texts) >= self._max_pieces:
                raise EngineFailure(
                    f"the model server sent more than {self._max_pieces} different pieces of text; "
                    "start this endpoint again",
                    reason="UPSTREAM_MALFORMED",
                )
            known = self._ids[text] = len(self._texts)
            self._texts.append(text)
        return known

    def decode(self, ids: Sequence[int]) -> str:
        """The pieces' text, control ids left out."""
        return "".join(self._texts[i] for i in ids)
