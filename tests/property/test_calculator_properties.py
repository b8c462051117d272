"""The calculator agrees with Python's fractions, and answers whatever it is given."""

from __future__ import annotations

import string
from fractions import Fraction

import pytest
from cogitate.tool_executor.core.calculator import MAX_VALUE_DIGITS, calculate, evaluate, render
from cogitate.tool_executor.core.types import ToolError
from hypothesis import assume, given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

Term = tuple[str, Fraction]

numbers = st.integers(0, 999).map(lambda n: (str(n), Fraction(n))) | st.decimals(
    0, 999, places=2
).map(lambda d: (str(d), Fraction(str(d))))


def combine(terms: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    def binary(left: Term, operator: str, right: Term) -> Term:
        assume(operator != "/" or right[1] != 0)
        value = {
            "+": lambda: left[1] + right[1],
            "-": lambda: left[1] - right[1],
            "*": lambda: left[1] * right[1],
            "/": lambda: left[1] / right[1],
        }[operator]()
        return f"({left[0]}){operator} ({right[0]})", value

    def function(name: str, values: list[Term]) -> Term:
        text = ", ".join(value[0] for value in values)
        return f"{name}({text})", (max if name == "max" else min)(value[1] for value in values)

    return (
        st.builds(binary, terms, st.sampled_from("+-*/"), terms)
        | terms.map(lambda term: (f"-({term[0]})", -term[1]))
        | terms.map(lambda term: (f"abs({term[0]})", abs(term[1])))
        | st.builds(
            function, st.sampled_from(["max", "min"]), st.lists(terms, min_size=1, max_size=4)
        )
    )


@given(st.recursive(numbers, combine, max_leaves=10))
def test_agrees_with_fractions(term: Term) -> None:
    text, value = term
    limit = 10**MAX_VALUE_DIGITS
    try:
        got = evaluate(text)
    except ToolError as error:
        assert "longer" in str(error) or "nested" in str(error) or "digits" in str(error)
        return
    assert got == value and abs(got.numerator) < limit and got.denominator < limit
    # What it writes says the value and no other.
    assert Fraction(calculate(text)) == value


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(0, 99)), min_size=1, max_size=20))
def test_products_bind_first_and_left_comes_before_right(steps: list[tuple[str, int]]) -> None:
    text = "7" + "".join(f"{operator}{number}" for operator, number in steps)
    total, product = 0, 7
    for operator, number in steps:
        if operator == "*":
            product *= number
        else:
            total, product = total + product, number if operator == "+" else -number
    assert calculate(text) == str(total + product)


@given(st.text(max_size=80) | st.text(alphabet=string.digits + "+-*/(),. maxinbs", max_size=520))
def test_any_text_is_answered(text: str) -> None:
    try:
        answer = calculate(text)
    except ToolError as error:
        answer = str(error)
    assert 0 < len(answer) <= 2 * MAX_VALUE_DIGITS + 2 and "\n" not in answer


@given(st.fractions(max_denominator=10**6))
def test_rendering_is_exact(value: Fraction) -> None:
    assert Fraction(render(value)) == value
