"""Questions from a file of JSON lines, one object a line.

    {"id": "7", "question": "What is 3 + 4?", "answer": "7"}
    {"id": "8", "question": "Which is largest?", "choices": ["a mouse", "a cow"], "answer": "B"}
    {"id": "9", "question": "How many?", "image": "9.png", "answers": ["two", "2"], "system": "…"}

`answer` may be a number, and in the form of GSM8K's files, where it follows `####`. Image paths are
relative to the file. `choices` are written below the question by letter, their answer is a letter
or a choice in full, and agents are held to the letters unless `regex` says otherwise. `equivalence`
says how answers are compared, by the mesh's own names. Other fields are left alone.
"""

from __future__ import annotations

import hashlib
import json
import string
import sys
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from cogitate.aggregator.core.answers import EQUIVALENCES, key_of
from cogitate.evals.question import Question

STDIN: Final = "-"
_GSM8K_MARK: Final = "####"
_LETTERS: Final = string.ascii_uppercase


class BadQuestion(ValueError):
    """Raised for a line that is no question; the message says which line and why."""


def load(path: str, limit: int | None = None) -> list[Question]:
    """Returns the file's questions, at most `limit`; "-" reads standard input.

    Blank lines are skipped. Raises BadQuestion, also for a file that holds none or can't be read.
    """
    if path == STDIN:
        return parse(sys.stdin, "stdin", Path.cwd(), limit)
    try:
        with open(path, encoding="utf-8") as lines:
            return parse(lines, Path(path).stem, Path(path).parent, limit)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadQuestion(f"cannot read {path}: {why}") from None


def parse(lines: Iterable[str], name: str, folder: Path, limit: int | None) -> list[Question]:
    """Returns the questions of a set called `name`; `folder` is what image paths start from."""
    questions: list[Question] = []
    seen: dict[str, int] = {}
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for number, line in islice(filled, limit):
        try:
            question = _question(line, name, folder)
            if question.id in seen:
                raise BadQuestion(f"has the id of line {seen[question.id]}: {question.id!r}")
        except BadQuestion as error:
            raise BadQuestion(f"{name}, line {number}: {error}") from None
        seen[question.id] = number
        questions.append(question)
    if not questions:
        raise BadQuestion(f"{name} holds no question")
    return questions


def is_right(answer: str, truths: tuple[str, ...], equivalence: str) -> bool:
    """Tells whether the mesh would count the answer as the same as one of the truths."""
    key = key_of(answer, equivalence)
    return bool(key) and any(key == key_of(truth, equivalence) for truth in truths)


def _question(line: str, name: str, folder: Path) -> Question:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise BadQuestion("is not JSON") from None
    if not isinstance(fields, dict):
        raise BadQuestion("is not a JSON object")
    text = _text(fields, "question")
    if not text.strip():
        raise BadQuestion("has no `question`")
    truths = _truths(fields)
    equivalence = _text(fields, "equivalence") or "auto"
    if equivalence not in EQUIVALENCES:
        raise BadQuestion(f"`equivalence` must be one of {', '.join(EQUIVALENCES)}")
    regex = _text(fields, "regex")
    if choices := _choices(fields):
        letters = _LETTERS[: len(choices)]
        text += "".join(f"\n{a}. {b}" for a, b in zip(letters, choices, strict=True))
        text += "\nAnswer with the letter only."
        truths = tuple(_letter(truth, choices) for truth in truths)
        regex = regex or "|".join(letters)
    for truth in truths:
        if not key_of(truth, equivalence):
            raise BadQuestion(f"`answer` says nothing that can be compared as {equivalence}")
    return Question(
        id=_id(fields, line),
        dataset=name,
        text=text,
        image_png=None,
        truth=truths[0],
        check=partial(is_right, truths=truths, equivalence=equivalence),
        images=_images(fields, folder),
        system=_text(fields, "system"),
        equivalence=equivalence,
        regex=regex,
    )


def _id(fields: dict[str, Any], line: str) -> str:
    """A question without an id is called by what its line holds."""
    given = fields.get("id")
    if given is None:
        return hashlib.sha256(line.strip().encode()).hexdigest()[:12]
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise BadQuestion("`id` must be text or a whole number")
    return str(given)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadQuestion(f"`{name}` must be text")
    return value


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    values = fields.get(name) or []
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise BadQuestion(f"`{name}` must be a list of texts")
    return values


def _truths(fields: dict[str, Any]) -> tuple[str, ...]:
    several = fields.get("answers")
    if several is not None and "answer" in fields:
        raise BadQuestion("has both `answer` and `answers`")
    found = several if isinstance(several, list) else [fields.get("answer")]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise BadQuestion("needs an `answer`, text or number, or a list `answers` of them")
    if not found:
        raise BadQuestion("`answers` is empty")
    return tuple(str(one).rpartition(_GSM8K_MARK)[2].strip() for one in found)


def _choices(fields: dict[str, Any]) -> list[str]:
    choices = _texts(fields, "choices")
    if choices and not 2 <= len(choices) <= len(_LETTERS):
        raise BadQuestion(f"`choices` must be 2 to {len(_LETTERS)}")
    return choices


def _letter(truth: str, choices: list[str]) -> str:
    if truth in choices:
        return _LETTERS[choices.index(truth)]
    if len(truth) == 1 and truth.upper() in _LETTERS[: len(choices)]:
        return truth.upper()
    raise BadQuestion("`answer` is neither one of the `choices` nor the letter of one")


def _images(fields: dict[str, Any], folder: Path) -> tuple[Path, ...]:
    names = _texts(fields, "images")
    if one := _text(fields, "image"):
        names = [one, *names]
    paths = tuple(folder / name for name in names)
    for path in paths:
        if not path.is_file():
            raise BadQuestion(f"there is no image {path}")
    return paths
