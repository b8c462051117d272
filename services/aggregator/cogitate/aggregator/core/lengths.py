"""How much agents write, learned from those that ended: nobody knows it beforehand.

What a router wants to know is when a gang is done, hence how much the longest of its agents writes.
That depends on the model, on what the agents are for, on how long the question is, on the most
they may write and on how many they are. Until one just like it has ended, a kind is taken to be as
those are that differ in the least of these.

Invariants (tests/property/test_lengths.py):
1. What is expected is at least 1, and within what the agents may and must write.
2. After many gangs of one length that length is expected, within a tenth.
3. No more than `MOST_KINDS` kinds are remembered, those that were met last.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

# Tokens an agent is taken to write until one of its kind has.
GUESS = 160
MOST_KINDS = 4096
# Of the newest in the mean, once there are more than a few. It is one of logarithms: the middle of
# lengths that differ by factors.
_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Kind:
    """What lengths go by. `least` and `most`: tokens an agent must and may write, 0: no limit."""

    model: str
    role: str
    count: int
    least: int = 0
    most: int = 0
    prompt: int = 0  # its tokens, about

    @property
    def keys(self) -> tuple[tuple[object, ...], ...]:
        """Under which it is remembered, the closest first. Most numbers count by their size."""
        alike, count = (self.model, self.role), self.count.bit_length()
        most, prompt = self.most.bit_length(), self.prompt.bit_length()
        return (
            (*alike, self.most, prompt, count),
            (*alike, most, prompt, count),
            (*alike, most, -1, count),
            (*alike, most, -1, -1),
        )


class Lengths:
    """Owns what is known: by key how many gangs were seen, and the mean logarithm."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], tuple[int, float]] = OrderedDict()

    def expected(self, kind: Kind) -> int:
        """Tokens the longest of such agents writes."""
        known = next((self._known[key] for key in kind.keys if key in self._known), None)
        tokens = GUESS if known is None else round(math.exp(known[1]))
        return max(1, kind.least, min(tokens, kind.most or tokens))

    def learn(self, kind: Kind, longest: int) -> None:
        """A gang is done, and its longest agent had written so much."""
        value = math.log(max(1, longest))
        for key in kind.keys:
            count, mean = self._known.pop(key, (0, 0.0))
            mean += max(_SHARE, 1 / (count + 1)) * (value - mean)
            self._known[key] = count + 1, mean
        while len(self._known) > MOST_KINDS:
            self._known.popitem(last=False)
