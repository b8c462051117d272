"""Transcript: whatever tokens come, the text shown is the text that was written."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cogitate.agent_decoder.core.transcript import ControlTokens, Mode, Transcript, Turn
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

END, CALL, RUN, ANSWER, OTHER = 256, 257, 258, 259, 260
CONTROL = ControlTokens(end=frozenset({END}), call=CALL, run=RUN, answer=ANSWER)
# Tokens of one byte, and some of several that begin or end inside a character.
PIECES = {300: b"ab", 301: b"a\xe2", 302: b"\x82\xac", 303: b"\xf0\x9f\x98", 304: b"#a"}
BYTES = st.sampled_from([*b"ab#\xe2\x82\xac\xf0\x9f\x98\x80\xff\xc3\xa9", *PIECES])
TOKENS = st.lists(BYTES | st.sampled_from([CALL, RUN, ANSWER, OTHER]), max_size=30)
STOPS = st.lists(st.text("ab#€", min_size=1, max_size=3), max_size=2).map(tuple)


def raw(token_ids: Sequence[int]) -> bytes:
    return b"".join(PIECES.get(t, b"") if t >= 256 else bytes([t]) for t in token_ids)


def decode(token_ids: Sequence[int]) -> str:
    return raw(token_ids).decode(errors="replace")


def run(token_ids: Sequence[int], stop: tuple[str, ...]) -> tuple[list[str], Turn, Transcript, int]:
    """Texts by token, the last turn, the transcript, how many tokens it took."""
    made = Transcript(CONTROL, decode, stop=stop)
    shown: list[str] = []
    for token in token_ids:
        text, turn = made.push(token)
        shown.append(text)
        if turn in (Turn.ENDED, Turn.STOPPED):
            return shown, turn, made, len(shown)
    return [*shown, made.flush()], Turn.NONE, made, len(shown)


def stretches(token_ids: Sequence[int]) -> list[list[int]]:
    """Cuts at the tokens that end a stretch of text, by the state diagram."""
    mode, found = Mode.REASONING, [[]]  # type: ignore[var-annotated]
    for token in token_ids:
        if token == CALL and mode is Mode.REASONING:
            mode = Mode.CALLING
        elif token == RUN and mode is Mode.CALLING:
            mode = Mode.REASONING
        elif token == ANSWER and mode is not Mode.ANSWERING:
            mode = Mode.ANSWERING
        else:
            found[-1].append(token)
            continue
        found.append([])
    return found


@settings(max_examples=150, deadline=None)
@given(TOKENS)
def test_emitted_text_is_the_decoded_text(token_ids: list[int]) -> None:
    shown, _, _, _ = run(token_ids, ())
    assert "".join(shown) == "".join(decode(part) for part in stretches(token_ids))


@settings(max_examples=150, deadline=None)
@example([301, CALL, 98], ("a",))  # a control token ends the stretch that holds the stop string
@given(TOKENS, STOPS)
def test_a_stop_string_never_appears_and_nothing_before_it_is_lost(
    token_ids: list[int], stop: tuple[str, ...]
) -> None:
    shown, turn, _, taken = run(token_ids, stop)
    parts = [decode(part) for part in stretches(token_ids[:taken])]
    whole, emitted = "".join(parts), "".join(shown)
    assert whole.startswith(emitted)
    if turn is Turn.STOPPED:
        assert any(whole[len(emitted) :].startswith(s) for s in stop)
    found = [part.find(s) for part in parts for s in stop if s in part]
    if not found:
        assert emitted == whole
    elif len(parts) == 1:
        assert emitted == whole[: min(found)]


@settings(max_examples=100, deadline=None)
@given(TOKENS, st.integers(0, 30))
def test_what_was_shown_does_not_depend_on_what_follows(token_ids: list[int], cut: int) -> None:
    shown, _, _, _ = run(token_ids, ("#a",))
    before, _, _, taken = run(token_ids[:cut], ("#a",))
    assert before[:taken] == shown[:taken]


@settings(max_examples=100, deadline=None)
@given(TOKENS)
def test_the_answer_is_what_was_shown_while_answering(token_ids: list[int]) -> None:
    made = Transcript(CONTROL, decode)
    answered = ""
    for token in [*token_ids, END]:
        was_answer = made.is_answer
        text, _ = made.push(token)
        answered += text if was_answer else ""
    assert made.mode is Mode.ENDED
    assert made.final_answer() == answered.strip()
