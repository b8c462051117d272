"""When are two answers the same? Turns an agent's answer into the key it is compared by.

Equivalences by name, in one dict: "number", "choice", "text", "json", and "auto", which picks the
first of number, choice and text that fits. All but "json" look at the answer's text key, so that
they cannot disagree about what is spacing and what is content. Under "embedding:c" the text key is
an answer's own one, and ``likeness`` says whose key it shares.

Invariants (``tests/property/test_answers.py``): a key's own key is itself; an answer abstains if
and only if its key is empty.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

from cogitate.aggregator.core.kinds import Kind, Number, named

_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "÷": "/", "’": None, "'": None, "_": " "})
_THOUSANDS = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3})+(?![\w,])")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=[0-9])")
_POINT = re.compile(r"(?<![0-9])\.|\.(?![0-9])")
_PUNCTUATION = re.compile(r"[^\w\s.=+*/()-]")
_AROUND_SIGN = re.compile(r"\s*([=+*/()])\s*|(?<=[\w)])\s+(-)\s+(?=[\w(])")
_NUMBER = re.compile(r"(?<![\w.])-?[0-9]+(?:\.[0-9]+)?(?![\w]|\.[0-9])")
_CHOICE = re.compile(r"[(*]*(yes|no|true|false|[a-e])[)*]*")
# How a model says that it has no answer, as a text key. Such a ballot abstains.
_REFUSAL = re.compile(
    r"(?:(?:im |i am )?sorry (?:but )?)?"
    r"i (?:cant|cannot|can not|could not|couldnt|am not able to|am unable to|dont know|do not know)"
    r"(?!\w)"
)


def text_key(answer: str) -> str:
    """Case, punctuation and spacing put aside; numbers and equations stay readable."""
    text: str = unicodedata.normalize("NFC", answer).lower().translate(_SIGNS)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = _PUNCTUATION.sub(" ", text)
    text = _POINT.sub(" ", _LEADING_POINT.sub("0.", text))
    text = " ".join(text.split())
    return _AROUND_SIGN.sub(r"\1\2", text)


def number_key(answer: str) -> str:
    """The one number in the answer in its shortest form; empty if there is none or several."""
    found: list[str] = _NUMBER.findall(text_key(answer))
    if len(found) != 1:
        return ""
    sign = "-" if found[0].startswith("-") else ""
    whole, _, fraction = found[0].lstrip("-").partition(".")
    digits = (whole.lstrip("0") or "0") + "." + fraction.rstrip("0")
    digits = digits.rstrip(".")
    return digits if digits == "0" else sign + digits


def choice_key(answer: str) -> str:
    """yes, no, true, false or a letter from a to e; empty otherwise."""
    match = _CHOICE.fullmatch(text_key(answer))
    return match[1] if match else ""


def json_key(answer: str) -> str:
    """A JSON value with its keys in order; empty if it is not JSON."""
    try:
        value = json.loads(answer, parse_float=_number)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return ""


def _number(digits: str) -> int | float:
    """1.0 and 1e0 are the number 1."""
    value = float(digits)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


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


EMBEDDING = "embedding"
_LIKENESS: dict[str, Kind[float]] = {
    EMBEDDING: Kind(
        lambda cosine: cosine,
        Number("the cosine from which on two answers are the same", 0.9, 0.0, 1.0),
    )
}


def least_cosine(equivalence: str) -> float | None:
    """From which cosine on two answers are the same; None if embeddings are not looked at.

    Raises ValueError with a sentence for a number that is none.
    """
    by_embedding = equivalence.partition(":")[0] == EMBEDDING
    return named(equivalence, _LIKENESS) if by_embedding else None


def is_refusal(answer: str) -> bool:
    """Whether the model says that it has no answer."""
    return bool(_REFUSAL.match(text_key(answer)))


def key_of(answer: str, equivalence: str) -> str:
    """The key of an answer; empty means the ballot abstains."""
    if is_refusal(answer):
        return ""
    by_embedding = equivalence.partition(":")[0] == EMBEDDING
    return text_key(answer) if by_embedding else EQUIVALENCES[equivalence](answer)


_TOKENS = re.compile(r"\w+")


def claim_stands(claim: str, question: str) -> bool:
    """Whether everything a proof claims to be asked for is in the question, word for word."""
    return set(_TOKENS.findall(claim.lower())) <= set(_TOKENS.findall(question.lower()))
