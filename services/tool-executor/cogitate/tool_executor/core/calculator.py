"""Calculates exactly with integers, decimals and fractions, from text that is never evaluated.

    sum     = product { ("+" | "-") product }
    product = sign { ("*" | "/") sign }
    sign    = { "-" } atom
    atom    = number | "(" sum ")" | ("max" | "min") "(" sum { "," sum } ")" | "abs" "(" sum ")"

Invariants:

1. The value is that of `fractions.Fraction` (tests/property/test_calculator_properties.py,
   test_agrees_with_fractions).
2. Whatever the text, the outcome is a value or one sentence, in bounded time and memory
   (test_any_text_is_answered). There is no power operator, and every value's digits are limited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from cogitate.tool_executor.core.types import Arguments, Image, Outcome, Tool, ToolError

MAX_CHARS = 512
MAX_DEPTH = 32
MAX_NUMBER_DIGITS = 32
MAX_VALUE_DIGITS = 64
MAX_DECIMALS = 32

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([a-z]+)|([-+*/(),]))", re.ASCII)
_SYNONYMS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
_FUNCTIONS: dict[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "max": max,
    "min": min,
    "abs": lambda values: abs(values[0]),
}
_VALUE_LIMIT = 10**MAX_VALUE_DIGITS


def calculate(expression: str) -> str:
    """Returns the value as text: an integer, a decimal where it ends, else a reduced fraction.

    Raises ToolError.
    """
    return render(evaluate(expression))


def evaluate(expression: str) -> Fraction:
    """Returns the exact value of an expression. Raises ToolError. O(length)."""
    if len(expression) > MAX_CHARS:
        raise ToolError(f"The expression is longer than {MAX_CHARS} characters.")
    return _Parser(_tokens(expression.translate(_SYNONYMS))).parse()


def render(value: Fraction) -> str:
    """Writes a value exactly; decimals only if at most MAX_DECIMALS of them say it all."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, num_decimals = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest //= prime
            power += 1
        num_decimals = max(num_decimals, power)
    if rest != 1 or num_decimals > MAX_DECIMALS:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**num_decimals // value.denominator)
    digits = digits.zfill(num_decimals + 1)
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-num_decimals]}.{digits[-num_decimals:]}"


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ToolError(
                f"The calculator cannot read character {position + 1} of the expression."
            )
        tokens.append(match.group(match.lastindex or 0))
        position = match.end()
    if not tokens:
        raise ToolError("The expression is empty.")
    return tokens


class _Parser:
    """Recursive descent over the tokens; the depth limit keeps it off Python's own."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = [*tokens, ""]  # the empty token is the end
        self._at = 0
        self._depth = 0

    def parse(self) -> Fraction:
        """Returns the value of all the tokens. Raises ToolError."""
        value = self._sum()
        if self._peek():
            raise ToolError(f"The expression does not end where it should, at '{self._peek()}'.")
        return value

    def _peek(self) -> str:
        return self._tokens[self._at]

    def _next(self) -> str:
        token = self._tokens[self._at]
        self._at += bool(token)
        return token

    def _take(self, wanted: str) -> None:
        if self._next() != wanted:
            raise ToolError(f"There is a '{wanted}' missing.")

    def _sum(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolError(f"The expression is nested deeper than {MAX_DEPTH} levels.")
        value = self._product()
        while self._peek() in ("+", "-"):
            if self._next() == "+":
                value = _limited(value + self._product())
            else:
                value = _limited(value - self._product())
        self._depth -= 1
        return value

    def _product(self) -> Fraction:
        value = self._sign()
        while self._peek() in ("*", "/"):
            if self._next() == "*":
                value = _limited(value * self._sign())
            else:
                divisor = self._sign()
                if divisor == 0:
                    raise ToolError("It divides by zero.")
                value = _limited(value / divisor)
        return value

    def _sign(self) -> Fraction:
        is_negative = False
        while self._peek() == "-":
            self._next()
            is_negative = not is_negative
        value = self._atom()
        return -value if is_negative else value

    def _atom(self) -> Fraction:
        token = self._next()
        if token[:1].isdigit():
            return _number(token)
        if token == "(":
            value = self._sum()
            self._take(")")
            return value
        if token in _FUNCTIONS:
            return self._function(token)
        if not token:
            raise ToolError("The expression ends too early.")
        if token.isalpha():
            raise ToolError("The calculator knows numbers, + - * / ( ), max, min and abs.")
        raise ToolError(f"There is a number missing before '{token}'.")

    def _function(self, name: str) -> Fraction:
        self._take("(")
        values = [self._sum()]
        while self._peek() == ",":
            self._next()
            values.append(self._sum())
        self._take(")")
        if name == "abs" and len(values) != 1:
            raise ToolError("abs takes one number.")
        return _FUNCTIONS[name](values)


def _number(token: str) -> Fraction:
    if len(token) > MAX_NUMBER_DIGITS:
        raise ToolError(f"A number has more than {MAX_NUMBER_DIGITS} digits.")
    return Fraction(token)


def _limited(value: Fraction) -> Fraction:
    if abs(value.numerator) >= _VALUE_LIMIT or value.denominator >= _VALUE_LIMIT:
        raise ToolError(f"The result has more than {MAX_VALUE_DIGITS} digits.")
    return value


def run(arguments: Arguments, images: Sequence[Image]) -> Outcome:
    """Runs the tool on {"expression": text}."""
    expression = arguments.get("expression")
    if not isinstance(expression, str) or len(arguments) != 1:
        raise ToolError("The calculator takes one argument, expression, which is text.")
    return Outcome(text=calculate(expression))


TOOL = Tool(
    name="calculator",
    version="1",
    description="Calculates exactly. Knows numbers, + - * / ( ), max(...), min(...) and abs(...).",
    schema={
        "type": "object",
        "properties": {
            "expression": {
                "type": "string",
                "description": "What to calculate, such as 3*(4+5) or max(7, 12).",
                "maxLength": MAX_CHARS,
            }
        },
        "required": ["expression"],
        "additionalProperties": False,
    },
    run=run,
)
