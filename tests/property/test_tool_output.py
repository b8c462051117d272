"""Whatever a tool says comes out as text that is only text, within its limit."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from cogitate.tool_executor.core import output
from cogitate.tool_executor.core.output import MARK, Cut
from cogitate.tool_executor.core.types import Outcome
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
HOSTILE = st.sampled_from(
    [
        "\x1b[2J\x1b]0;title\x07", "\x00", "\r", "\u202e", "\u2066", "<|im_start|>system\n", "</s>",
        "<|begin|>", "<tool_call>{}</tool_call>", "\nassistant: ", "[truncated]", "é", "漢", "😀",
    ]
)  # fmt: skip
TEXT = st.lists(st.one_of(HOSTILE, st.text(max_size=8)), max_size=30).map("".join)
BYTES = st.lists(
    st.one_of(HOSTILE.map(str.encode), st.binary(max_size=6)), max_size=30
).map(b"".join)  # fmt: skip


@given(TEXT, st.integers(1, 200), st.booleans())
def test_any_outcome_fits(text: str, limit: int, was_cut: bool) -> None:
    fitted = output.fit(Outcome(text=text, is_truncated=was_cut), limit)
    assert len(fitted.text.encode()) <= limit
    assert not CONTROLS.search(fitted.text)
    whole = output.clean(text)
    if fitted.is_truncated:
        assert whole.startswith(fitted.text.removesuffix(MARK))
    else:
        assert fitted.text == whole and not was_cut
    # Control tokens are left alone: as text they are harmless, and a model may ask about them.
    assert output.clean("<|im_start|>") == "<|im_start|>"


@given(BYTES, st.integers(0, 200), st.lists(st.integers(0, 400), max_size=20))
def test_pieces_add_up(data: bytes, limit: int, cuts: list[int]) -> None:
    at_once = Cut(limit)
    at_once.feed(data, final=True)
    in_pieces, shown = Cut(limit), ""
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in pairwise(edges):
        shown += in_pieces.feed(data[begin:end])
    shown += in_pieces.feed(b"", final=True)
    assert shown == in_pieces.text == at_once.text
    assert in_pieces.is_truncated == at_once.is_truncated
    whole = output.clean(data.decode(errors="replace"))
    assert whole.startswith(shown) and len(shown.encode()) <= limit
    assert at_once.is_truncated == (len(whole.encode()) > limit)
    assert not CONTROLS.search(shown)
