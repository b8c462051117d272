"""Checks a derivation: does it make the target from the numbers, each used exactly once?

The pool starts as the numbers. A step "a*b=c" takes a and b out of the pool and puts c in, if c is
what a*b gives. The derivation holds if the pool ends as the target alone, so each number and each
earlier result was used exactly once.

Invariants:

1. "proved" is said of a derivation if and only if it holds
   (tests/property/test_prove_properties.py, test_agrees_with_a_slow_check).
2. A proved answer, read again as a derivation, is proved (test_the_answer_proves_itself).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from cogitate.tool_executor.core.types import Arguments, Image, Json, Outcome, Tool, ToolError

MAX_NUMBERS = 16
MAX_STEP_CHARS = 64
MAX_ABSOLUTE = 10**12

_STEP = re.compile(r"\s*(-?\d{1,13})\s*([-+*])\s*(-?\d{1,13})\s*=\s*(-?\d{1,26})\s*", re.ASCII)


def prove(target: int, numbers: Sequence[int], steps: Sequence[str]) -> str | None:
    """Returns the derivation as an answer, "6*4=24, 24+5=29.", or None if it does not hold."""
    pool = Counter(numbers)
    chain = []
    for step in steps:
        match = _STEP.fullmatch(step)
        if match is None:
            return None
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        if _apply(left, match[2], right) != result or abs(result) > MAX_ABSOLUTE:
            return None
        for operand in (left, right):
            if pool[operand] == 0:
                return None
            pool[operand] -= 1
        pool[result] += 1
        chain.append(f"{left}{match[2]}{right}={result}")
    if not chain or +pool != Counter([target]):
        return None
    return ", ".join(chain) + "."


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def run(arguments: Arguments, images: Sequence[Image]) -> Outcome:
    """Runs the tool on {"target": int, "numbers": [int], "steps": [text]}."""
    if set(arguments) != {"target", "numbers", "steps"}:
        raise ToolError("prove takes a target, the numbers and the steps.")
    target = arguments["target"]
    numbers, steps = _list(arguments["numbers"]), _list(arguments["steps"])
    if not _is_integer(target) or not all(_is_integer(number) for number in numbers):
        raise ToolError(f"The target and the numbers must be integers up to {MAX_ABSOLUTE}.")
    if not all(isinstance(step, str) and len(step) <= MAX_STEP_CHARS for step in steps):
        raise ToolError("Each step must be text such as 6*4=24.")
    answer = prove(target, numbers, steps)  # type: ignore[arg-type]  # checked above
    if answer is None:
        return Outcome(text="wrong")
    return Outcome(text="proved", proved=answer, claim=str(target))


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NUMBERS:
        raise ToolError(f"The numbers and the steps must be lists of 1 to {MAX_NUMBERS}.")
    return value


def _is_integer(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_ABSOLUTE


TOOL = Tool(
    name="prove",
    version="1",
    description=(
        "Checks a derivation: each step correct, each number and each result used exactly once, "
        "the last result the target. Says proved or wrong."
    ),
    schema={
        "type": "object",
        "properties": {
            "target": {"type": "integer", "description": "The number to make."},
            "numbers": {
                "type": "array",
                "items": {"type": "integer"},
                "minItems": 1,
                "maxItems": MAX_NUMBERS,
                "description": "The numbers to use, each exactly once.",
            },
            "steps": {
                "type": "array",
                "items": {"type": "string", "maxLength": MAX_STEP_CHARS},
                "minItems": 1,
                "maxItems": MAX_NUMBERS,
                "description": "The steps in order, such as 6*4=24, with + - or *.",
            },
        },
        "required": ["target", "numbers", "steps"],
        "additionalProperties": False,
    },
    run=run,
)
