"""How much agents write, learned from those that ended: nobody knows it beforehand.

What a router wants to know is when a gang is done, hence how much the longest of its agents writes.
That depends on the model, on what the agents are for, on how long the question is, on the most
they may write and on how many they are. Until one just like it has ended, a kind is taken to be as
those are that differ in the least of these.

Of each kind the lengths of single agents are kept, whatever the width of their gang, and the middle
one of the longest of `count` such is expected: the order statistic whose rank is 0.5 ** (1 /
count). Where too few are known for that rank, lengths are taken to be lognormal. Agents of a gang
share a question and may end each other, so their lengths are not independent: once enough gangs of
that width have ended, the middle one of their longest is expected instead.

Invariants (tests/property/test_lengths.py):
1. What is expected is at least 1, and within what the agents may and must write.
2. After many gangs of one length that length is expected, within a tenth.
3. No more than `MOST_KINDS` kinds are remembered, those that were met last.
4. Of more agents no less is expected, while no width has enough gangs of its own.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

# Tokens an agent is taken to write until one of its kind has.
GUESS = 160
MOST_KINDS = 4096
# Lengths of agents and of gangs of a width that are kept, the latest, and how many gangs are enough
# to go by them alone.
_AGENTS, _GANGS, _ENOUGH = 64, 32, 8
# What the logarithm of lengths is taken to vary by, as if so many had shown it.
_SPREAD, _SHOWN = 0.6, 4
_NORMAL = statistics.NormalDist()


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
        alike = (self.model, self.role)
        most, prompt = self.most.bit_length(), self.prompt.bit_length()
        return (
            (*alike, "exactly", self.most, prompt),
            (*alike, "about", most, prompt),
            (*alike, "about", most),
        )


@dataclass(slots=True)
class _Seen:
    """What agents of a kind wrote, and by the size of the gang the longest of each gang."""

    agents: deque[int] = field(default_factory=lambda: deque(maxlen=_AGENTS))
    longest: dict[int, deque[int]] = field(default_factory=dict)

    def add(self, count: int, lengths: list[int]) -> None:
        self.agents.extend(lengths)
        known = self.longest.setdefault(count.bit_length(), deque(maxlen=_GANGS))
        known.append(max(lengths))

    def longest_of(self, count: int) -> float:
        """The middle one of the longest of so many agents."""
        gangs = self.longest.get(count.bit_length(), ())
        if len(gangs) >= _ENOUGH:
            return statistics.median(gangs)
        return _longest_of(sorted(self.agents), count)


class Lengths:
    """Owns what is known, by key."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[object, ...], _Seen] = OrderedDict()

    def expected(self, kind: Kind) -> int:
        """Tokens the longest of such agents writes."""
        seen = next((self._known[key] for key in kind.keys if key in self._known), None)
        tokens = GUESS if seen is None else round(seen.longest_of(kind.count))
        return max(1, kind.least, min(tokens, kind.most or tokens))

    def mean(self, kind: Kind) -> int:
        """Tokens such an agent writes in the mean, no more than the longest is expected to."""
        seen = next((self._known[key] for key in kind.keys if key in self._known), None)
        longest = self.expected(kind)
        if seen is None:
            return longest
        return max(1, min(longest, round(statistics.fmean(seen.agents))))

    def learn(self, kind: Kind, lengths: Iterable[int]) -> None:
        """A gang is done, and its agents had written so much; those that wrote nothing are none."""
        written = [length for length in lengths if length > 0]
        if not written:
            return
        for key in kind.keys:
            seen = self._known.pop(key, None) or _Seen()
            seen.add(kind.count, written)
            self._known[key] = seen
        while len(self._known) > MOST_KINDS:
            self._known.popitem(last=False)


def _longest_of(lengths: list[int], count: int) -> float:
    """The middle one of the longest of `count`, from lengths in order, of which there are some."""
    share, last = math.pow(0.5, 1 / count), len(lengths) - 1
    rank = share * len(lengths) - 0.5
    if rank <= last:
        below = int(rank)
        above = min(last, below + 1)
        return lengths[below] * math.pow(lengths[above] / lengths[below], rank - below)
    logs = [math.log(length) for length in lengths]
    mean = statistics.fmean(logs)
    squares = sum((value - mean) ** 2 for value in logs) + _SHOWN * _SPREAD**2
    spread = math.sqrt(squares / (len(logs) + _SHOWN))
    return max(lengths[-1], math.exp(mean + spread * _NORMAL.inv_cdf(share)))
