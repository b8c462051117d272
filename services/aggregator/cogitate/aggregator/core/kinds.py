"""Names with a number behind them, such as ``posterior:0.95``, for rules and for strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Number:
    """What the number of a name means, and which numbers it may be; bounds are excluded if open."""

    meaning: str
    default: float
    lowest: float
    highest: float
    whole: bool = False
    is_open: bool = False

    def read(self, text: str) -> float:
        """The number in a text. Raises ValueError with a sentence."""
        try:
            value = float(text) if text else self.default
        except ValueError:
            value = math.nan
        inside = (
            self.lowest < value < self.highest
            if self.is_open
            else self.lowest <= value <= self.highest
        )
        if not inside or (self.whole and value != int(value)):
            kind = "a whole number" if self.whole else "a number"
            between = "between" if self.is_open else "from"
            joint = "and" if self.is_open else "to"
            raise ValueError(
                f"needs {kind} {between} {self.lowest:g} {joint} {self.highest:g}: {self.meaning}"
            )
        return value


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How something is made of its name's number; without a number it takes none."""

    make: Callable[[float], T]
    number: Number | None = None


def named(text: str, kinds: Mapping[str, Kind[T]]) -> T:
    """What a name stands for. Raises ValueError with a sentence that says what there is."""
    name, colon, rest = text.partition(":")
    kind = kinds.get(name)
    if kind is None or (colon and kind.number is None):
        forms = [n if k.number is None else f"{n}:{k.number.default:g}" for n, k in kinds.items()]
        raise ValueError(f"{text[:64]!r} is unknown; there are: {', '.join(sorted(forms))}")
    if kind.number is None:
        return kind.make(0.0)
    try:
        return kind.make(kind.number.read(rest))
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
