"""Makes a tool's output fit to be shown: as text that is only text, within its limit."""

from __future__ import annotations

import re
from dataclasses import replace

from cogitate.tool_executor.core.types import Outcome

MARK = "\n[truncated]"
# C0 and C1 controls but tab and newline, lone surrogates, and the bidirectional overrides.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def fit(outcome: Outcome, max_bytes: int) -> Outcome:
    """Returns the outcome with clean text of at most `max_bytes` UTF-8 bytes.

    A cut is marked in the text, if the mark fits in the limit, and in `is_truncated` always.
    """
    text = _UNSAFE.sub("\ufffd", outcome.text)
    raw = text.encode()
    if len(raw) <= max_bytes:
        return replace(outcome, text=text)
    mark = MARK if len(MARK) <= max_bytes else ""
    kept = raw[: max_bytes - len(mark)].decode(errors="ignore")
    return replace(outcome, text=kept + mark, is_truncated=True)
