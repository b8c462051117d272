"""What an agent writes, token by token: characters, stop strings, control tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from cogitate.agent_decoder.core.transcript import ControlTokens, Mode, Transcript, Turn

pytestmark = pytest.mark.unit

END, CALL, RUN, ANSWER, OTHER = 256, 257, 258, 259, 260
CONTROL = ControlTokens(end=frozenset({END}), call=CALL, run=RUN, answer=ANSWER)


def decode(token_ids: Sequence[int]) -> str:
    """Bytes are tokens; control tokens are no text."""
    return bytes(t for t in token_ids if t < 256).decode(errors="replace")


def transcript(*stop: str, marked: bool = True) -> Transcript:
    return Transcript(CONTROL, decode, stop=stop, answers_only_marked=marked)


def write(made: Transcript, *pieces: str | bytes | int) -> tuple[list[str], Turn]:
    """Pushes text byte by byte; returns what came out at each token and the last turn."""
    shown: list[str] = []
    turn = Turn.NONE
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        for token in [data] if isinstance(data, int) else data:
            text, turn = made.push(token)
            shown.append(text)
    return shown, turn


def test_an_answer_with_a_tool_call_before_it() -> None:
    made = transcript()
    shown, turn = write(made, "hm ", CALL, "f(1)", RUN)
    assert ("".join(shown), turn, made.call_text) == ("hm f(1)", Turn.CALL_READY, "f(1)")
    assert made.mode is Mode.REASONING
    shown, turn = write(made, "so", ANSWER, " It is 3. ", END)
    assert (turn, made.final_answer(), made.mode) == (Turn.ENDED, "It is 3.", Mode.ENDED)


def test_a_second_call_starts_anew() -> None:
    made = transcript()
    write(made, CALL, "f(1)", RUN, CALL, "g(2)", RUN)
    assert made.call_text == "g(2)"


def test_control_tokens_out_of_place_are_no_text_and_no_turn() -> None:
    made = transcript()
    shown, turn = write(made, "a", RUN, OTHER, "b", ANSWER, "c", CALL, ANSWER, RUN, "d")
    assert ("".join(shown), turn, made.answer) == ("abcd", Turn.NONE, "cd")


def test_an_answer_may_come_in_the_middle_of_a_call() -> None:
    made = transcript()
    _, turn = write(made, CALL, "f(", ANSWER, "x", END)
    assert (turn, made.final_answer()) == (Turn.ENDED, "x")


def test_instant_effort_and_models_without_a_mark_answer_from_the_start() -> None:
    instant, unmarked = transcript(), transcript(marked=False)
    instant.open_answer()
    assert instant.is_answer
    assert unmarked.is_answer
    assert not transcript().is_answer
    for made in (instant, unmarked):
        write(made, "yes", END)
        assert made.final_answer() == "yes"


def test_a_character_comes_out_whole() -> None:
    shown, _ = write(transcript(), "é€😀")
    assert shown == ["", "é", "", "", "€", "", "", "", "😀"]


def test_a_control_token_inside_a_character_does_not_split_it() -> None:
    shown, _ = write(transcript(), b"\xe2\x82", OTHER, b"\xac")
    assert "".join(shown) == "€"


def test_broken_bytes_do_not_break_what_follows() -> None:
    shown, _ = write(transcript(), b"\xff\xff\xff\xe2\x82\xac\x80", "a")
    assert "".join(shown) == b"\xff\xff\xff\xe2\x82\xac\x80a".decode(errors="replace")


def test_an_unfinished_character_comes_out_at_the_end() -> None:
    made = transcript()
    write(made, ANSWER, b"a\xe2\x82")
    assert made.answer == "a"
    assert made.push(END)[0] == "\ufffd"
    assert made.final_answer() == "a\ufffd"


def test_a_stop_string_ends_the_turn_and_is_not_shown() -> None:
    made = transcript("###", "\n\n")
    shown, turn = write(made, ANSWER, "a#b##c###")
    assert ("".join(shown), turn, made.mode) == ("a#b##c", Turn.STOPPED, Mode.ENDED)
    assert made.final_answer() == "a#b##c"


def test_text_that_may_become_a_stop_string_is_withheld_no_longer_than_needed() -> None:
    shown, _ = write(transcript("abcd"), "xababce")
    assert shown == ["x", "", "", "ab", "", "", "abce"]


def test_the_earliest_stop_string_counts() -> None:
    shown, turn = write(transcript("bc", "b"), "ab")
    assert ("".join(shown), turn) == ("a", Turn.STOPPED)


def test_withheld_text_is_shown_when_a_control_token_ends_the_stretch() -> None:
    made = transcript("###")
    shown, _ = write(made, "a##", ANSWER, "#b", END)
    assert "".join(shown) == "a###b"
    assert made.final_answer() == "#b"


def test_flush_gives_what_was_held_back() -> None:
    made = transcript("###")
    write(made, ANSWER, b"a##")
    assert made.flush() == "##"
    assert made.final_answer() == "a##"
    assert made.flush() == ""


def test_stop_strings_do_not_count_before_they_may() -> None:
    made = transcript("#")
    assert made.push(ord("#"), stops=False) == ("#", Turn.NONE)
    assert made.push(ord("#")) == ("", Turn.STOPPED)
