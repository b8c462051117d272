"""A slow agent and its second attempt, in every interleaving: what the client sees of it."""

from __future__ import annotations

from random import Random

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.agents import AgentState, Rival
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.core.races import HEDGED, behind
from cogitate.aggregator.core.strategies.base import AgentPlan
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

LENGTH = 24


def text_of(ids: tuple[int, ...]) -> str:
    """Some tokens have no text of their own."""
    return "".join(f"{token}," for token in ids if token % 3)


class Engine:
    """Writes the one true sequence from where it starts, in pieces of its own."""

    def __init__(self, gang_id: str, attempt: int, start: int, chance: Random) -> None:
        self.gang_id, self.attempt, self.at, self.chance = gang_id, attempt, start, chance
        self.written, self.alive = 0, True

    def write(self) -> m.Input:
        count = min(self.chance.randint(1, 4), LENGTH - self.at)
        ids = tuple(range(self.at, self.at + count))
        delta = m.Delta(0, self.attempt, self.at, ids, text_of(ids), False, -1.0 * count)
        self.at += count
        self.written += count
        return m.Stepped(self.gang_id, (delta,))

    def end(self, finish: str) -> m.Input:
        self.alive = False
        return m.AgentEnded(self.gang_id, 0, self.attempt, finish, "7", self.at, 0)


def begin() -> Contemplation:
    machine = Contemplation(
        m.Spec(
            contemplation_id="c", model="mini", effort="CONTEMPLATING", num_agents=2,
            strategy="vote", quorum="all", equivalence="auto", seed=1, temperature=None,
            budget_tokens=0, max_tokens=0, patience_s=1.0,
        )
    )  # fmt: skip
    machine.start()
    gang = m.PlacedGang("g", "e", "p", "r", (0, 1), "why")
    machine.handle(m.Granted(1, (gang,), "fake"))
    machine.handle(m.Admitted("g", "build", {}))
    return machine


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_whoever_wins_clients_see_one_sequence_and_every_token_is_booked_once(seed: int) -> None:
    chance = Random(seed)
    machine, seen, engines = begin(), [], [Engine("g", 1, 0, chance)]
    finishes = ["STOP"]

    def put(item: m.Input) -> None:
        for effect in [*machine.handle(item), *machine.flush()]:
            if isinstance(effect, m.Emit) and effect.kind == "deltas":
                seen.extend(effect.fields["deltas"])
            if isinstance(effect, m.Kill) and effect.reason == HEDGED:
                [killed] = [e for e in engines if e.gang_id == effect.gang_id]
                pending.append(killed)

    pending: list[Engine] = []  # kills on their way
    for _ in range(chance.randint(0, 6)):
        if engines[0].at < LENGTH:
            put(engines[0].write())
    for effect in machine.handle(m.Straggling((0,))):
        assert isinstance(effect, m.Declare)
        assert effect.is_retry
        assert effect.slow_at == ("e",)
        begun = machine.handle(
            m.Granted(effect.attempt, (m.PlacedGang("h", "f", "p", "r", (0,), "why"),), "fake")
        )
        [order] = next(e for e in begun if isinstance(e, m.OpenGang)).agents
        engines.append(Engine("h", order.attempt, order.num_sampled, chance))
        put(m.Admitted("h", "build", {}))
    while machine.agents[0].open:
        runs = [engine for engine in engines if engine.alive]
        engine = chance.choice(runs)
        if engine in pending and chance.random() < 0.5:
            pending.remove(engine)
            put(engine.end("CANCELLED"))
        elif len(runs) > 1 and chance.random() < 0.05:
            engine.alive = False
            put(m.GangLost(engine.gang_id, "UNAVAILABLE", "gone"))
            break
        elif engine.at < LENGTH:
            put(engine.write())
        else:
            put(engine.end(chance.choice(finishes)))
    offset, text = 0, ""
    for delta in seen:
        assert delta["token_offset"] == offset, "a gap or a repeat"
        offset += delta["token_count"]
        text += delta["text"]
    assert text == text_of(tuple(range(offset)))
    agent, accounts = machine.agents[0], machine.accounts
    if not agent.open:
        assert offset == LENGTH
        for engine in (e for e in pending if e.alive):
            put(engine.end("CANCELLED"))
        written = sum(engine.written for engine in engines)
        assert accounts.generated == written
        assert accounts.hedged == accounts.lost == written - LENGTH


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32))
def test_what_is_behind_is_exactly_the_rest(start: int, shown: int, seed: int) -> None:
    chance = Random(seed)
    plan = AgentPlan(agent_id=0, temperature=None, hint_index=None)
    first, second = AgentState(plan), Engine("h", 2, start, chance)

    def record(count: int) -> None:
        for token in range(first.num_sampled, first.num_sampled + count):
            first.record(m.Delta(0, 1, token, (token,), text_of((token,)), False, -1.0))

    record(start)
    rival = Rival("h", 2, start, len(first.text), start)
    record(shown)
    while second.at < min(LENGTH, start + shown + 3):
        written = second.write()
        assert isinstance(written, m.Stepped)
        rival.deltas += written.deltas
        rival.num_sampled = second.at
    rest = behind(rival, first)
    if rival.num_sampled < first.num_sampled:
        return  # never asked for
    assert rest is not None
    ids = tuple(token for delta in rest for token in delta.token_ids)
    assert ids == tuple(range(first.num_sampled, second.at))
    assert "".join(delta.text for delta in rest) == text_of(ids)
    rival.deltas[0:1] = [
        m.Delta(0, 2, start, (999,) * len(d.token_ids), "?", False, 0.0) for d in rival.deltas[:1]
    ]
    if shown:
        assert behind(rival, first) is None, "they do not agree"
