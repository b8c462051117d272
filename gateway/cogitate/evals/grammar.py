"""Paraphrases by grammar: a few rules that give thousands of forms of the same question.

A rule is text with choices in brackets, `[the|all the|]`, which may nest; `<name>` is another
rule, `{name}` a slot that is filled when the form is used. Forms are numbered, so that any of them
can be made without making the others; one in `HELD_OUT_ONE_IN`, by a hash of its text, is kept for
evaluation and never seen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

HELD_OUT_ONE_IN = 8
KNOWN_FORMS: ContextVar[bool] = ContextVar("only forms of training", default=False)
"""What new forms alone cost is seen where fonts and words are held out, and forms are not."""
NUMBER_WORDS = ("zero one two three four five six seven eight nine ten eleven twelve").split()
_TOKEN = re.compile(r"[\[\]|]|<\w+>|[^\[\]|<>]+")
_SPACES = re.compile(r"\s+")
_LOOSE = re.compile(r"\s+([.,?!:;])")
_BEGINS = re.compile(r"(?:^|[.?!] )[a-z]")


@dataclass(frozen=True)
class _Text:
    text: str
    count: int = 1

    def form(self, index: int) -> str:
        return self.text


@dataclass(frozen=True)
class _Sequence:
    parts: tuple[_Node, ...]

    @cached_property
    def count(self) -> int:
        return prod(part.count for part in self.parts)

    def form(self, index: int) -> str:
        said = []
        for part in self.parts:
            index, own = divmod(index, part.count)
            said.append(part.form(own))
        return "".join(said)


@dataclass(frozen=True)
class _Choice:
    options: tuple[_Node, ...]

    @cached_property
    def count(self) -> int:
        return sum(option.count for option in self.options)

    def form(self, index: int) -> str:
        for option in self.options:
            if index < option.count:
                return option.form(index)
            index -= option.count
        raise IndexError(index)


_Node = _Text | _Sequence | _Choice


class Grammar:
    """The forms of one question. Raises KeyError for a rule that is not there."""

    def __init__(self, start: str, rules: Mapping[str, str]) -> None:
        self._rules = rules
        self._made: dict[str, _Node] = {}
        self._root = self._parse(start)

    @property
    def count(self) -> int:
        """How many forms there are; some may read the same."""
        return self._root.count

    def form(self, index: int) -> str:
        """Returns a form by its number, 0 to count - 1, spaced and begun as a sentence."""
        text = _SPACES.sub(" ", self._root.form(index)).strip()
        text = _LOOSE.sub(r"\1", text)
        return _BEGINS.sub(lambda begin: begin[0].upper(), text)

    def draw(self, rng: np.random.Generator, *, held_out: bool) -> str:
        """Draws a form of a split, its slots still open. Choices are drawn one by one.

        A long list of synonyms in one way to ask does not crowd out the other ways.
        """
        held_out = held_out and not KNOWN_FORMS.get()
        while True:
            text = self.form(_draw(self._root, rng))
            if is_held_out(text) == held_out:
                return text

    def _parse(self, text: str) -> _Node:
        tokens = _TOKEN.findall(text)
        if "".join(tokens) != text:
            raise ValueError(f"the rule {text!r} has a stray bracket")
        node, rest = self._choice(tokens)
        if rest:
            raise ValueError(f"the rule {text!r} closes a bracket too many")
        return node

    def _choice(self, tokens: list[str]) -> tuple[_Node, list[str]]:
        options: list[_Node] = []
        parts: list[_Node] = []
        while tokens and tokens[0] != "]":
            token, tokens = tokens[0], tokens[1:]
            if token == "|":
                options.append(_Sequence(tuple(parts)))
                parts = []
            elif token == "[":
                inner, tokens = self._choice(tokens)
                if not tokens:
                    raise ValueError("a bracket is not closed")
                parts.append(inner)
                tokens = tokens[1:]
            elif token.startswith("<"):
                parts.append(self._rule(token[1:-1]))
            else:
                parts.append(_Text(token))
        options.append(_Sequence(tuple(parts)))
        return _Choice(tuple(options)), tokens

    def _rule(self, name: str) -> _Node:
        if name not in self._made:
            self._made[name] = self._parse(self._rules[name])
        return self._made[name]


def is_held_out(form: str) -> bool:
    """Tells whether a form belongs to the evaluation split; small letters count as capital ones."""
    return hashlib.sha256(form.lower().encode()).digest()[0] % HELD_OUT_ONE_IN == 0


def number_word(rng: np.random.Generator, number: int) -> str:
    """Returns a number up to twelve in words half of the time, any other in digits."""
    if number < len(NUMBER_WORDS) and rng.random() < 0.5:
        return NUMBER_WORDS[number]
    return str(number)


def _draw(node: _Node, rng: np.random.Generator) -> int:
    """Returns the number of a form of the node, every choice on the way equally likely."""
    match node:
        case _Text():
            return 0
        case _Sequence():
            index = 0
            for part in reversed(node.parts):
                index = index * part.count + _draw(part, rng)
            return index
        case _Choice():
            pick = int(rng.integers(len(node.options)))
            before = sum(option.count for option in node.options[:pick])
            return before + _draw(node.options[pick], rng)
