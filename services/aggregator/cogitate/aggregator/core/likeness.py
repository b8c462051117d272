"""Answers that mean the same in other words: ballots by ``embedding:c``.

::

    an agent ends ──► its ballot waits, Embed ──► Embedded ──► cast
                             │                        └─ the model failed ──► cast by its text key
                             ├─ decided without it ──► dropped, booked as a kill
                             └─ cut short ──► cast by its text key

The key of a ballot is that of the first ballot of its round that has the same text key, or whose
vector is at a cosine of at least c; else its own text key. So who votes first matters, and the
order is that of the journal. Vectors are inputs: replay needs no model. An answer that abstains, a
score and the only answer of a round have nothing to be compared with and do not wait, nor does one
whose text has a vector already.

Invariants (``tests/property/test_likeness.py``):

1. Keys are those of a slow reference (test_keys_are_those_of_the_reference).
2. What the model failed at is said once (test_a_model_that_fails_is_told_of_once).
3. Whatever the model does or leaves undone, there is one ending and the books are right
   (test_whatever_happens_it_ends_once_and_its_books_are_right).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import fsum
from operator import mul

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import AgentState
from cogitate.aggregator.core.answers import key_of, least_cosine
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.rounds import Rounds

FEATURE = "EQUIVALENCE_EMBEDDING"


@dataclass(frozen=True, slots=True)
class _Cast:
    """A ballot of this round: its own text key, the key it got, its vector or nothing."""

    own: str
    key: str
    vector: tuple[float, ...]


class Likeness:
    """Owns the ballots that wait for a vector. ``cast`` counts one, with the answer it is for."""

    def __init__(
        self,
        rounds: Rounds,
        outbox: Outbox,
        equivalence: str,
        cast: Callable[[AgentState, str, m.AgentEnded], None],
    ) -> None:
        self.waiting: dict[int, m.AgentEnded] = {}  # by agent, in the order of their ends
        self._rounds, self._out, self._cast = rounds, outbox, cast
        self._equivalence, self._least = equivalence, least_cosine(equivalence)
        self._vectors: dict[int, tuple[float, ...]] = {}  # of ballots that are cast now
        self._round_number = 0
        self._seen: list[_Cast] = []  # of that round, in the order of the journal
        self._is_degraded = False

    def holds(self, agent: AgentState, event: m.AgentEnded) -> bool:
        """Whether the ballot of an agent that ended has to wait; then the model is asked."""
        alone = len(self._rounds.plan.agents) == 1
        if self._least is None or alone or agent.plan.about:
            return False
        own = key_of(event.answer, self._equivalence)
        if not own or any(cast.own == own and cast.vector for cast in self._seen_here()):
            return False
        self.waiting[agent.agent_id] = event
        self._out.add(m.Embed(agent.agent_id, event.answer))
        return True

    def embedded(self, event: m.Embedded) -> None:
        """The model answered; an answer nobody waits for is ignored."""
        if event.agent_id not in self.waiting:
            return
        if event.failure or not event.vector:
            self._degrade(event.failure or "the model gave no vector")
        else:
            self._vectors[event.agent_id] = event.vector
        self._vote(event.agent_id)

    def key(self, agent: AgentState, own: str) -> str:
        """The key of a ballot that is cast now, of its own text key. Remembers it."""
        if self._least is None or not own or agent.plan.about:
            return own
        vector, seen = self._vectors.pop(agent.agent_id, ()), self._seen_here()
        key = next((c.key for c in seen if c.own == own or self._alike(c.vector, vector)), own)
        seen.append(_Cast(own, key, vector))
        return key

    def ask_again(self) -> None:
        """The process that was asked is gone."""
        for agent_id, event in self.waiting.items():
            self._out.add(m.Embed(agent_id, event.answer))

    def give_up(self, why: str) -> None:
        """Casts what waits by its text key: an answer that exists counts."""
        for agent_id in list(self.waiting):
            self._degrade(why)
            self._vote(agent_id)

    def drop(self) -> list[AgentState]:
        """The outcome stands without those that wait; returns them."""
        dropped = [self._rounds.agents[agent_id] for agent_id in self.waiting]
        self.waiting.clear()
        return dropped

    def _seen_here(self) -> list[_Cast]:
        """The ballots of the round that runs."""
        if self._round_number != self._rounds.number:
            self._round_number, self._seen = self._rounds.number, []
        return self._seen

    def _vote(self, agent_id: int) -> None:
        event = self.waiting.pop(agent_id)
        self._cast(self._rounds.agents[agent_id], event.answer, event)

    def _degrade(self, why: str) -> None:
        if not self._is_degraded:
            self._is_degraded = True
            message = f"answers are compared by their text where they have no embedding: {why}"
            self._out.emit("feature_degraded", feature=FEATURE, message=message)

    def _alike(self, one: Sequence[float], other: Sequence[float]) -> bool:
        # Exact and in plain Python: a product that differed in its last bit from one machine to the
        # next would make another ballot in a replay. Vectors of several models cannot be compared.
        if self._least is None or not one or len(one) != len(other):
            return False
        return fsum(map(mul, one, other)) >= self._least
