"""Parses the tool calls a model writes, such as ``zoom(25, 33, 50, 67)``, into JSON arguments.

Chat models write a call as JSON, ``{"name": "zoom", "arguments": {"box": [25, 33, 50, 67]}}``,
which no call of the embedded model looks like.

The text is the model's and therefore untrusted: it is split by hand, never evaluated. Each tool
that the embedded model was trained on has one parser here; others take keyword arguments
(``find(name="sodium", unit="mmol/l")``) or one JSON object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_CALL_CHARS = 2048
_CALL = re.compile(r"\s*([A-Za-z_][A-Za-z0-9._-]{0,63})\s*\((.*)\)\s*", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]{0,63}")
_INTEGER = re.compile(r"-?\d{1,6}")
_KEYWORD = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]{0,63})\s*=\s*(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call's name and its arguments as one JSON object. An unreadable call has an empty name."""

    name: str
    arguments_json: str


UNREADABLE = ParsedCall("", "{}")


def parse_call(text: str) -> ParsedCall:
    """Reads one call; never raises. An unreadable one comes back as UNREADABLE."""
    if len(text) <= MAX_CALL_CHARS and text.lstrip().startswith(("{", "[")):
        return _parse_json_call(text)
    match = _CALL.fullmatch(text) if len(text) <= MAX_CALL_CHARS else None
    if match is None:
        return UNREADABLE
    name, inside = match.group(1), match.group(2).strip()
    try:
        arguments = _PARSERS.get(name, _keywords)(inside)
        # JSON has no NaN and no Infinity, which Python reads and writes all the same.
        written = json.dumps(arguments, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):  # deep JSON recurses
        return UNREADABLE
    return ParsedCall(name, written)


def _parse_json_call(text: str) -> ParsedCall:
    """An object with a name and arguments, or a list of just one; more at once are not read."""
    try:
        call = json.loads(text)
        call = call[0] if isinstance(call, list) and len(call) == 1 else call
        name = call["name"]
        arguments = call["arguments"] if "arguments" in call else call.get("parameters", {})
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not _NAME.fullmatch(name) or not isinstance(arguments, dict):
            return UNREADABLE
        return ParsedCall(name, json.dumps(arguments, separators=(",", ":"), allow_nan=False))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return UNREADABLE


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"not an integer: {text[:20]}")
    return int(text)


def _zoom(text: str) -> dict[str, object]:
    values = [_integer(part) for part in _split(text)]
    if len(values) not in (4, 5):
        raise ValueError("zoom takes four numbers and an optional image index")
    return {"box": values[:4], "image": values[4] if len(values) == 5 else 0}


def _calculator(text: str) -> dict[str, object]:
    if not text:
        raise ValueError("calculator needs an expression")
    return {"expression": text}


def _prove(text: str) -> dict[str, object]:
    target, numbers, *steps = _split(text)
    if not steps:
        raise ValueError("prove needs a target, numbers and steps")
    return {
        "target": _integer(target),
        "numbers": [_integer(number) for number in numbers.split()],
        "steps": steps,
    }


def _lookup(text: str) -> dict[str, object]:
    """``prices, bread`` or ``prices, bread, price``, in quotes where a name has a comma.

    Arguments that are named, as chat models write them, are taken as well.
    """
    if text.startswith("{") or _KEYWORD.fullmatch(_split(text)[0] if text else ""):
        return _keywords(text)
    names = [part.strip("\"'").strip() for part in _split(text)]
    if len(names) not in (2, 3) or not all(names):
        raise ValueError("lookup takes a table, a row and perhaps a column")
    return dict(zip(("table", "row", "column"), names, strict=False))


def _keywords(text: str) -> dict[str, object]:
    """``a=1, b="x"`` or one JSON object."""
    if text.startswith("{"):
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("arguments must be an object")
        return value
    arguments: dict[str, object] = {}
    for part in _split(text):
        match = _KEYWORD.fullmatch(part)
        if match is None:
            raise ValueError("arguments must be named")
        raw = match.group(2).strip()
        if match.group(1) in arguments:
            raise ValueError("an argument is given twice")
        quoted = len(raw) >= 2 and raw[0] == raw[-1] == "'"
        arguments[match.group(1)] = raw[1:-1] if quoted else json.loads(raw)
    return arguments


_PARSERS: dict[str, Callable[[str], dict[str, object]]] = {
    "zoom": _zoom,
    "calculator": _calculator,
    "lookup": _lookup,
    "prove": _prove,
}
