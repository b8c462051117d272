"""The calculator: exact values, exact limits, one sentence for what it cannot do."""

from __future__ import annotations

import pytest
from cogitate.tool_executor.core.calculator import (
    MAX_CHARS,
    MAX_DEPTH,
    MAX_NUMBER_DIGITS,
    MAX_VALUE_DIGITS,
    calculate,
    run,
)
from cogitate.tool_executor.core.types import ToolError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7", "7"),
        ("007", "7"),
        ("1+2*3", "7"),
        ("(1+2)*3", "9"),
        ("10-4-3", "3"),
        ("24/4/2", "3"),
        ("-3*-2", "6"),
        ("--4", "4"),
        ("-(2+3)", "-5"),
        ("2*-(1)", "-2"),
        ("max(7, 12, 3)", "12"),
        ("min(7,-12)", "-12"),
        ("max(5)", "5"),
        ("abs(-3.5)", "3.5"),
        ("abs(3)-max(1,2)*min(4,2)", "-1"),
        ("1/3", "1/3"),
        ("-2/6", "-1/3"),
        ("1/8", "0.125"),
        ("-1/8", "-0.125"),
        ("7/20", "0.35"),
        ("6/3", "2"),
        ("0.1+0.2", "0.3"),
        ("1.50*2", "3"),
        ("0*-1", "0"),
        (" 1 +\t2\n", "3"),
        ("3 × 4 − 2 ÷ 2", "11"),
        ("99999999999999999999*99999999999999999999", "9999999999999999999800000000000000000001"),
    ],
)
def test_values(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", " ", "1+", "+1", "*2", "(1", "1)", "()", "1 2", "1..2", "1.", ".5", "1,2", "max()"),
        *("max(1,)", "abs(1,2)", "min", "max 1", "2(3)", "1/0", "1/(2-2)", "9**9", "2^3", "5%2"),
        *("x", "pi", "MAX(1,2)", "__import__('os')", "1e9", "0x10", "1_000", "1;2", "٣+٤", "²"),
        "\x00",
    ],
)
def test_what_it_cannot_read_is_one_sentence(expression: str) -> None:
    with pytest.raises(ToolError) as caught:
        calculate(expression)
    sentence = str(caught.value)
    assert sentence.endswith(".") and len(sentence) < 100 and "\n" not in sentence


def test_length_has_a_limit() -> None:
    longest = "1+" * (MAX_CHARS // 2 - 1) + "1 "
    assert calculate(longest + " " * (MAX_CHARS - len(longest)))
    with pytest.raises(ToolError, match="longer"):
        calculate(longest + " " * (MAX_CHARS - len(longest) + 1))


def test_depth_has_a_limit() -> None:
    nested = MAX_DEPTH - 1
    assert calculate("(" * nested + "1" + ")" * nested) == "1"
    with pytest.raises(ToolError, match="nested"):
        calculate("(" * (nested + 1) + "1" + ")" * (nested + 1))
    assert calculate("-" * 500 + "1") == "1"


def test_digits_have_a_limit() -> None:
    assert calculate("9" * MAX_NUMBER_DIGITS)
    with pytest.raises(ToolError, match="digits"):
        calculate("9" * (MAX_NUMBER_DIGITS + 1))
    half = "1" + "0" * (MAX_VALUE_DIGITS // 2 - 1)
    assert len(calculate(f"{half}*{half}*10")) == MAX_VALUE_DIGITS
    with pytest.raises(ToolError, match="digits"):
        calculate(f"{half}*{half}*100")
    with pytest.raises(ToolError, match="digits"):
        calculate(f"1/{half}/{half}/100")


@pytest.mark.parametrize(
    "arguments", [{}, {"expression": 5}, {"expression": None}, {"expression": "1", "x": 1}]
)
def test_arguments_are_checked(arguments: dict[str, object]) -> None:
    with pytest.raises(ToolError):
        run(arguments, ())  # type: ignore[arg-type]
