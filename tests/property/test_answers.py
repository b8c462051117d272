"""Keys of answers, whatever a model wrote."""

from __future__ import annotations

import json

import pytest
from cogitate.aggregator.core.answers import EQUIVALENCES, is_refusal, key_of, number_key
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

# Text near what the rules look at: digits, signs, separators, choices, refusals.
NEAR = st.text(alphabet="0123456789.,-−×+*/=() abceinorstuy't’_\u0301İß\n\"{}[]:", max_size=40)
ANSWERS = st.text() | NEAR
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(ANSWERS, st.sampled_from(sorted(EQUIVALENCES)))
def test_the_key_of_a_key_is_itself(answer: str, equivalence: str) -> None:
    key = key_of(answer, equivalence)
    assert key_of(key, equivalence) == key


@given(ANSWERS, st.sampled_from(sorted(EQUIVALENCES)))
def test_refusals_and_empty_answers_abstain(answer: str, equivalence: str) -> None:
    if is_refusal(answer) or not answer.strip():
        assert key_of(answer, equivalence) == ""


@given(st.integers(), st.sampled_from(["{}", "{}.0", "{:,}", "It is {}.", " {} cards", "={:,}."]))
def test_a_number_is_the_same_however_it_is_written(value: int, form: str) -> None:
    assert number_key(form.format(value)) == str(value)


@given(JSON, st.sampled_from([None, 1, 4]))
def test_json_does_not_depend_on_spacing_and_order(value: object, indent: int | None) -> None:
    key = key_of(json.dumps(value), "json")
    assert key
    assert key_of(json.dumps(value, indent=indent, sort_keys=True), "json") == key
