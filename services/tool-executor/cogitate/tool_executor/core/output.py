"""Makes a tool's output fit to be shown: as text that is only text, within its limit.

Invariants (tests/property/test_tool_output.py):

1. What comes out is valid UTF-8 without control characters, at most so many bytes, and a prefix of
   the cleaned input but for the mark (test_any_outcome_fits).
2. In pieces it comes out as it would at once, wherever the pieces are cut (test_pieces_add_up).

Control tokens and role markers of a model stay as they are: here they are text, and the decoder
encodes text without ever making a control token of it.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import replace

from cogitate.tool_executor.core.types import Outcome

MARK = "\n[truncated]"
# C0 and C1 controls but tab and newline, lone surrogates, and the bidirectional overrides.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Returns the text with every character that is not only shown replaced."""
    return _UNSAFE.sub("\ufffd", text)


def fit(outcome: Outcome, max_bytes: int) -> Outcome:
    """Returns the outcome with clean text of at most `max_bytes` UTF-8 bytes.

    A cut is marked in the text, if the mark fits in the limit, and in `is_truncated` always; an
    outcome that comes truncated is marked too.
    """
    raw = clean(outcome.text).encode()
    if len(raw) <= max_bytes and not outcome.is_truncated:
        return replace(outcome, text=raw.decode())
    mark = MARK if len(MARK) <= max_bytes else ""
    kept = raw[: max_bytes - len(mark)].decode(errors="ignore")
    return replace(outcome, text=kept + mark, is_truncated=True)


class Cut:
    """Reads output as it comes, bytes of any kind, and keeps what fits. Owned by one task.

    `text` is what was kept, clean; `is_truncated` says whether there was more.
    """

    def __init__(self, max_bytes: int) -> None:
        self._room = max_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._kept: list[str] = []
        self.is_truncated = False

    @property
    def text(self) -> str:
        """What was kept."""
        return "".join(self._kept)

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Returns what of `data` is new in `text`; a character that is cut in two waits."""
        if self.is_truncated:
            return ""
        raw = clean(self._decoder.decode(data, final)).encode()
        if len(raw) > self._room:
            self.is_truncated = True
        piece = raw[: self._room].decode(errors="ignore")
        self._room -= len(piece.encode())
        if piece:
            self._kept.append(piece)
        return piece
