"""What counts as the same answer, by example."""

from __future__ import annotations

import pytest
from cogitate.aggregator import wire
from cogitate.aggregator.core.answers import claim_stands, key_of, text_key
from cogitate.v1 import common_pb2 as common

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("3", "3"),
        ("There are 3 red cards.", "3"),
        ("1,234.50", "1234.5"),
        ("It costs $1,234,567.", "1234567"),
        ("007", "7"),
        (".5", "0.5"),
        ("-0.0", "0"),
        ("x = -5", "-5"),
        ("answer: −5", "-5"),
        ("Yes.", "yes"),
        ("No", "no"),
        ("(B)", "b"),
        ("**c**", "c"),
        ("6*4=24, 24+5=29, 29-3=26.", "6*4=24 24+5=29 29-3=26"),
        ("6 × 4 = 24, 24 + 5 = 29", "6*4=24 24+5=29"),
        ("12:30", "12 30"),
        ("Version 3.5.1", "version 3.5.1"),
        ("The triangle!", "the triangle"),
        ("cafe\u0301", "caf\u00e9"),
        ("", ""),
        (" … ", ""),
        ("I can't answer that.", ""),
        ("I’m sorry, but I cannot help.", ""),
        ("I do not know.", ""),
        ("1" * 5000, "1" * 5000),
    ],
)
def test_auto(answer: str, key: str) -> None:
    assert key_of(answer, "auto") == key


@pytest.mark.parametrize(
    ("equivalence", "answer", "key"),
    [
        ("number", "There are 3 red cards.", "3"),
        ("number", "3 or 4", ""),
        ("number", "three", ""),
        ("choice", "Yes.", "yes"),
        ("choice", "maybe", ""),
        ("choice", "f", ""),
        ("text", "Yes, 3 of them!", "yes 3 of them"),
        ("json", '{"b": 1.0, "a": [1, 2]}', '{"a":[1,2],"b":1}'),
        ("json", "{not json", ""),
        ("json", "1e400", ""),
        ("json", "NaN", ""),
        ("json", "9007199254740993", "9007199254740993"),
        ("json", "[" * 100_000, ""),
    ],
)
def test_by_name(equivalence: str, answer: str, key: str) -> None:
    assert key_of(answer, equivalence) == key


def test_a_word_that_begins_like_a_refusal_is_an_answer() -> None:
    assert key_of("I canton", "auto") == "i canton"


def test_signs_keep_their_sides() -> None:
    assert text_key("10 - 3 = 7") == "10-3=7"
    assert text_key("down to -3") == "down to -3"


@pytest.mark.parametrize(
    ("claim", "stands"),
    [("26", True), ("27", False), ("2", False), ("", True), ("red cards", True), ("26 27", False)],
)
def test_a_claim_stands_only_if_it_was_asked(claim: str, stands: bool) -> None:
    question = "Use each number on the red cards once with + - * to make 26."
    assert claim_stands(claim, question) is stands


@pytest.mark.parametrize(("claim", "proved"), [("26", "6*4=24."), ("24", ""), ("", "6*4=24.")])
def test_a_proof_of_what_was_not_asked_is_no_proof(claim: str, proved: str) -> None:
    result = common.ToolResult(proof=common.Proof(answer="6*4=24.", claim=claim))
    taken = wire.to_result(result, "Make 26 from the cards.")
    assert taken.proved_answer == proved
    assert taken.payload.HasField("proof") is bool(proved)
