"""The next round's prompt, computed while agents of this round still write.

Without it a round begins by computing its whole prompt when the last ballot is there. Where that
prompt only grows at its end from draft to draft (``Strategy.prepares``), an endpoint of this round
is given what is known of it after each ballot, as a gang that samples nothing. It leaves the prompt
in the endpoint's prefix cache, finds there what the one before it left, and holds no memory once it
is done. The router is told where, and prefers that endpoint for the round's agents. Nothing depends
on it: an endpoint that refuses or is lost, a cache that was emptied, or another owner cost the
prefill that would have been saved.

Invariants (``tests/property/test_contemplation.py``, ``tests/unit/test_aggregator_preparation.py``,
of the last one ``test_what_is_shown_only_grows_at_its_end``):

1. At most one runs, and none once the outcome of the round stands.
2. Nothing of it reaches agents, ballots or the token budget; the prompt's positions are booked.
3. What it computes is the beginning of what the round shows, if the drafts do not change.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.outbox import Outbox
from cogitate.aggregator.core.places import Places
from cogitate.aggregator.core.rounds import Rounds


class Preparation:
    """Owns the gang that computes ahead. Its methods append to the outbox."""

    def __init__(self, rounds: Rounds, places: Places, outbox: Outbox, *, wanted: bool) -> None:
        self._rounds, self._places, self._out = rounds, places, outbox
        self._may_begin = wanted and rounds.strategy.prepares
        self._ids: set[str] = set()
        self._running: m.PlacedGang | None = None
        self._num_ballots = 0  # when it was last looked at
        self._shown: tuple[tuple[str, str], ...] = ()  # of the round, when one last began

    def heard(self, event: m.Input) -> bool:
        """Takes what is said of such a gang; False if the input is about anything else."""
        if isinstance(event, m.OwnerChanged):
            self._running = None  # its stream ended with the process
        if not isinstance(event, m.Prefilled | m.GangLost) or event.gang_id not in self._ids:
            return False
        if self._running is None or event.gang_id != self._running.gang_id:
            return True  # its end, or one that was given up
        if isinstance(event, m.Prefilled):
            self._places.book_prompt(event, self._running.endpoint_id)
            self._rounds.prefilled_at[self._rounds.number + 1] = self._running.endpoint_id
        else:
            self._may_begin = False  # what went wrong once is not tried again
        self._running = None
        return True

    def look(self, *, decided: bool) -> None:
        """Begins with a prompt that has grown; ends what is not needed any more."""
        if not self._may_begin and self._running is None:
            return
        if decided or self._rounds.is_last:
            self._stop()
        elif self._running is None and len(self._rounds.ballots) > self._num_ballots:
            self._num_ballots = len(self._rounds.ballots)
            self._begin()

    def _begin(self) -> None:
        plan, gang = self._rounds.preview(), self._choose()
        if plan is None or gang is None or plan.shown == self._shown:
            return
        self._shown = plan.shown
        # What stands behind the drafts is computed in vain, for it moves on with every draft: no
        # more of it than templates need to see the same turns.
        *drafts, (speaker, text) = plan.shown
        turns = (*drafts, (speaker, text[:1]))
        gang_id = f"prepare-{len(self._ids) + 1}"
        self._ids.add(gang_id)
        self._running = replace(gang, gang_id=gang_id, agent_ids=())
        self._out.add(m.Prepare(self._running, plan.role, turns, plan.has_tools))

    def _choose(self) -> m.PlacedGang | None:
        """Where the last one was, else where the fewest agents of this round still write."""
        gangs: dict[str, m.PlacedGang] = {}
        writing: Counter[str] = Counter()
        for agent in self._rounds.agents.values():
            if gang := self._places.gangs.get(agent.gang_id):
                gangs[gang.endpoint_id] = gang
                writing[gang.endpoint_id] += agent.open and not agent.voted
        last = self._rounds.prefilled_at.get(self._rounds.number + 1, "")
        at = last if last in gangs else min(gangs, key=writing.__getitem__, default="")
        return gangs.get(at) if sum(writing.values()) else None

    def _stop(self) -> None:
        self._num_ballots = 0  # for the round that follows
        if self._running is not None:
            self._out.add(m.BreakOff(self._running.gang_id))
            self._running = None
