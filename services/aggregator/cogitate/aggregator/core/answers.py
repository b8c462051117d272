"""When are two answers the same? Turns an agent's answer into the key it is compared by.

Equivalences by name, in one dict: "number", "choice", "text", "json", and "auto", which picks the
first of number, choice and text that fits.

Invariants (``tests/property/test_answers.py``): a key's own key is itself; an answer abstains if
and only if its key is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(
    r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w])|(?<![\w.])-?\d+(?:\.\d+)?(?!\w)"
)
_CHOICE = re.compile(r"^(yes|no|true|false|[a-e])\b[.!]?$", re.IGNORECASE)
_WORDS = re.compile(r"[^\w\s=+*/()-]")
# How a model says that it has no answer. Such a ballot abstains.
_REFUSAL = re.compile(
    r"^(?:(?:i['’]?m )?sorry,? (?:but )?)?"
    r"i (?:can['’]?t|cannot|can not|could not|couldn['’]?t|am not able to|don['’]?t know)\b",
    re.IGNORECASE,
)
MAX_KEY_CHARS = 512


def number_key(answer: str) -> str:
    """The one number in the answer in its shortest form; empty if there is none or several."""
    found = _NUMBER.findall(answer)
    if len(found) != 1:
        return ""
    try:
        value = Decimal(found[0].replace(",", ""))
    except InvalidOperation:
        return ""
    if value == value.to_integral_value():
        return str(int(value))
    return str(value.normalize())


def choice_key(answer: str) -> str:
    """yes, no, true, false or a letter from a to e; empty otherwise."""
    match = _CHOICE.match(answer.strip())
    return match.group(1).lower() if match else ""


def text_key(answer: str) -> str:
    """Case, punctuation and spacing put aside."""
    return " ".join(_WORDS.sub(" ", answer.lower()).split())[:MAX_KEY_CHARS]


def json_key(answer: str) -> str:
    """A JSON value with its keys in order; empty if it is not JSON."""
    try:
        return json.dumps(json.loads(answer), sort_keys=True, separators=(",", ":"))[:MAX_KEY_CHARS]
    except (ValueError, RecursionError):
        return ""


def auto_key(answer: str) -> str:
    """A number if there is exactly one, else a choice, else the text."""
    return number_key(answer) or choice_key(answer) or text_key(answer)


EQUIVALENCES: dict[str, Callable[[str], str]] = {
    "auto": auto_key,
    "number": number_key,
    "choice": choice_key,
    "text": text_key,
    "json": json_key,
}


def is_refusal(answer: str) -> bool:
    """Whether the model says that it has no answer."""
    return bool(_REFUSAL.match(answer.strip()))


def key_of(answer: str, equivalence: str) -> str:
    """The key of an answer; empty means the ballot abstains."""
    if not answer.strip() or is_refusal(answer):
        return ""
    return EQUIVALENCES[equivalence](answer)
