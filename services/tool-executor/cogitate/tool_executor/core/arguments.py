"""Reads the arguments of a call, which a model wrote: within limits first, then as JSON."""

from __future__ import annotations

import json
import math
import re
from typing import NoReturn

from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core.types import Arguments, Json, ToolError

MAX_INTEGER_CHARS = 32
_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_FIELD = "call.arguments_json"


def check_limits(text: str, *, max_bytes: int, max_depth: int) -> None:
    """Raises InvalidRequest if the text is too long or nests objects and arrays too deep."""
    if len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise InvalidRequest(f"the arguments are larger than {max_bytes} bytes", field=_FIELD)
    if _depth(text) > max_depth:
        raise InvalidRequest(f"the arguments are nested deeper than {max_depth}", field=_FIELD)


def read(text: str) -> Arguments:
    """Returns the JSON object in `text`, which is within the limits.

    Raises ToolError, for the model, unless it is one object with distinct keys and finite numbers.
    """
    try:
        value = json.loads(
            text,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_no_constant,
            object_pairs_hook=_distinct,
        )
    except ValueError:
        raise ToolError("The arguments are not valid JSON.") from None
    if not isinstance(value, dict):
        raise ToolError("The arguments must be one JSON object.")
    return value


def _depth(text: str) -> int:
    # Counted before parsing: the parser recurses.
    depth = deepest = 0
    for char in _STRINGS.sub("", text):
        if char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_CHARS:
        raise ValueError("too many digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("too large")
    return value


def _no_constant(_text: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _distinct(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values
