"""prove agrees with a slow check, on derivations that hold and on ones made wrong."""

from __future__ import annotations

import re

import pytest
from cogitate.tool_executor.core.prove import prove
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property


@st.composite
def derivations(draw: st.DrawFn) -> tuple[int, list[int], list[str]]:
    """Draws a derivation that holds."""
    numbers = draw(st.lists(st.integers(1, 20), min_size=2, max_size=6))
    pool, steps = list(numbers), []
    while len(pool) > 1:
        left = pool.pop(draw(st.integers(0, len(pool) - 1)))
        right = pool.pop(draw(st.integers(0, len(pool) - 1)))
        operator = draw(st.sampled_from("+-*"))
        result = {"+": left + right, "-": left - right, "*": left * right}[operator]
        pool.append(result)
        steps.append(f"{left}{operator}{right}={result}")
    return pool[0], numbers, steps


def slow_check(target: int, numbers: list[int], steps: list[str]) -> bool:
    pool = list(numbers)
    for step in steps:
        match = re.fullmatch(r"(-?\d+)([-+*])(-?\d+)=(-?\d+)", step)
        if not match:
            return False
        left, right = int(match[1]), int(match[3])
        value = {"+": left + right, "-": left - right, "*": left * right}[match[2]]
        if value != int(match[4]):
            return False
        for operand in (left, right):
            if operand not in pool:
                return False
            pool.remove(operand)
        pool.append(int(match[4]))
    return bool(steps) and pool == [target]


@given(derivations())
def test_the_answer_proves_itself(derivation: tuple[int, list[int], list[str]]) -> None:
    target, numbers, steps = derivation
    answer = prove(target, numbers, steps)
    assert answer == ", ".join(steps) + "."
    assert prove(target, numbers[::-1], answer.removesuffix(".").split(", ")) == answer


@given(derivations(), st.data())
def test_agrees_with_a_slow_check(
    derivation: tuple[int, list[int], list[str]], data: st.DataObject
) -> None:
    target, numbers, steps = derivation
    kind = data.draw(st.integers(0, 5))
    at = data.draw(st.integers(0, len(steps) - 1))
    if kind == 0:
        target += data.draw(st.integers(-2, 2))
    elif kind == 1:
        numbers = [*numbers, data.draw(st.integers(1, 20))]
    elif kind == 2:
        numbers = numbers[1:]
    elif kind == 3:
        steps = [*steps[:at], *steps[at + 1 :]]
    elif kind == 4:
        steps = data.draw(st.permutations(steps))
    else:
        char = data.draw(st.integers(0, len(steps[at]) - 1))
        new = data.draw(st.sampled_from("0123456789+-*="))
        steps = [*steps]
        steps[at] = steps[at][:char] + new + steps[at][char + 1 :]
    assert (prove(target, numbers, steps) is not None) == slow_check(target, numbers, steps)


@given(
    st.integers(), st.lists(st.integers(), max_size=4), st.lists(st.text(max_size=20), max_size=4)
)
def test_any_text_is_judged(target: int, numbers: list[int], steps: list[str]) -> None:
    assert prove(target, numbers, steps) is None or slow_check(target, numbers, steps)
