"""One contemplation against a fleet that does anything a fleet can do, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

LONG = "a text of more words than a fact takes, which nobody else will write in just these words, "
ANSWERS = ["1", "It is 1.", "2", "I can't answer that.", "", *(LONG + end for end in "xyz")]
CALLS = [("calculator", "{}"), ("calculator", '{"a":1}'), ("ask_user", "{}")]
PRICE = 1_500_000  # of a million tokens, in micro-USD
ENDINGS = {"verdict", "failed", "cancelled"}
VECTORS = [(1.0, 0.0), (0.8, 0.6), (0.0, 1.0), ()]  # the last: the model failed
EQUIVALENCES = ["auto", "auto", "embedding:0.75"]


def text_of(ids: tuple[int, ...]) -> str:
    """The same wherever it is written; some tokens have no text of their own."""
    return "".join(f"{token}," for token in ids if token % 4)


@dataclass
class SimAgent:
    """An agent on an endpoint that keeps to its grant."""

    agent_id: int
    attempt: int
    sampled: int
    granted: int  # 0: no limit
    num_calls: int = 0
    pending: str = ""
    kill: str = ""

    @property
    def may_sample(self) -> bool:
        return not (self.pending or self.kill) and (not self.granted or self.sampled < self.granted)


@dataclass
class SimGang:
    """A gang on an endpoint."""

    id: str
    admitted: bool = False
    threshold: float = 0.0
    agents: dict[int, SimAgent] = field(default_factory=dict)


class Fleet:
    """Performs the machine's effects as chance has it, and keeps books of its own."""

    def __init__(self, spec: m.Spec, random: Random) -> None:
        self.spec, self.random = spec, random
        self.machine = Contemplation(spec)
        self.asks: list[m.Declare] = []
        self.waits: list[m.AskLater] = []
        self.gangs: dict[str, SimGang] = {}
        self.tools: list[str] = []
        self.embeds: list[int] = []
        self.ran: list[tuple[str, str]] = []
        self.stale: list[m.Input] = []
        self.events: list[m.Emit] = []
        self.preparing = ""  # the gang that computes the next round's prompt
        self.num_positions = 0  # of prompts that were told of
        self.num_gangs = 0
        self.num_sampled = 0  # by all engines, as their own counters have it
        self.perform(self.machine.start())

    @property
    def limit(self) -> int:
        """Tokens that may be sampled in all, by either budget; 0: no limit."""
        paid = self.spec.budget_micro_usd * 1_000_000 // PRICE
        limits = [limit for limit in (self.spec.budget_tokens, paid) if limit]
        return min(limits, default=0)

    # -- what the machine wants -------------------------------------------------------------

    def put(self, event: m.Input) -> None:
        assert not self.machine.ended
        self.perform(self.machine.handle(event))

    def perform(self, effects: list[m.Effect]) -> None:
        for effect in effects:
            getattr(self, f"do_{type(effect).__name__}")(effect)
        self.check()

    def do_Emit(self, effect: m.Emit) -> None:
        assert not any(event.kind in ENDINGS for event in self.events), "after the ending"
        self.events.append(effect)

    def do_Declare(self, effect: m.Declare) -> None:
        self.asks.append(effect)

    def do_AskLater(self, effect: m.AskLater) -> None:
        self.waits.append(effect)

    def do_OpenGang(self, effect: m.OpenGang) -> None:
        gang = self.gangs[effect.gang.gang_id] = SimGang(effect.gang.gang_id)
        for order in effect.agents:
            ids = [token for segment in order.segments for token in segment.token_ids]
            assert ids == list(range(order.num_sampled)), "resumed with the very tokens"
            if self.limit:
                assert order.granted > order.num_sampled
            gang.agents[order.agent_id] = SimAgent(
                order.agent_id, order.attempt, order.num_sampled, order.granted,
                pending=order.pending_call_id,
            )  # fmt: skip

    def do_Prepare(self, effect: m.Prepare) -> None:
        assert not self.preparing, "one at a time"
        assert self.machine.decision is None, "the round is not decided"
        self.preparing = effect.gang.gang_id

    def do_Kill(self, effect: m.Kill) -> None:
        for agent_id in effect.agent_ids:
            if agent := self.gangs[effect.gang_id].agents.get(agent_id):
                agent.kill = effect.reason

    def do_Grant(self, effect: m.Grant) -> None:
        for agent_id, total in effect.totals.items():
            agent = self.gangs[effect.gang_id].agents[agent_id]
            assert total > agent.granted
            agent.granted = total

    def do_SetThreshold(self, effect: m.SetThreshold) -> None:
        gang = self.gangs[effect.gang_id]
        assert not gang.threshold, "set once, for good"
        gang.threshold = effect.group_confidence

    def do_RunTool(self, effect: m.RunTool) -> None:
        self.tools.append(effect.call.call_id)
        self.ran.append((effect.call.name, effect.call.arguments_json))

    def do_Embed(self, effect: m.Embed) -> None:
        assert effect.answer and effect.agent_id in self.machine.likeness.waiting
        self.embeds.append(effect.agent_id)

    def do_Inject(self, effect: m.Inject) -> None:
        agent = self.gangs[effect.gang_id].agents[effect.agent_id]
        assert agent.pending == effect.call_id, "the result of the call it waits for"
        agent.pending = ""

    def do_BreakOff(self, effect: m.BreakOff) -> None:
        self.gangs.pop(effect.gang_id, None)
        self.preparing = self.preparing if self.preparing != effect.gang_id else ""

    def do_CloseGang(self, effect: m.CloseGang) -> None:
        self.gangs.pop(effect.gang_id, None)

    # -- what can happen ----------------------------------------------------------------------

    def actions(self) -> list[Callable[[], None]]:
        """Everything that can happen now."""
        can: list[Callable[[], None]] = []
        for ask in self.asks:
            can += [lambda a=ask: self.grant(a)] * 3 + [lambda a=ask: self.deny(a)]
            if ask.is_retry and self.random.random() < 0.1:
                can.append(lambda a=ask: self.refuse_retries(a))
        can += [lambda w=wait: self.wait_over(w) for wait in self.waits]
        can += [lambda t=tool: self.tool_returns(t) for tool in self.tools]
        can += [lambda a=agent_id: self.embedded(a) for agent_id in self.embeds]
        for gang in self.gangs.values():
            if self.random.random() < 0.15:
                can.append(lambda g=gang: self.lose(g))
            if not gang.admitted:
                moved = any(agent.sampled for agent in gang.agents.values())
                can += [lambda g=gang: self.admit(g)] * 4
                can += [lambda g=gang: self.refuse(g)] * (4 if moved else 1)
                continue
            if any(agent.may_sample for agent in gang.agents.values()):
                can += [lambda g=gang: self.step(g)] * 3
            for agent in gang.agents.values():
                can.append(lambda g=gang, a=agent: self.finish(g, a))
                if agent.may_sample:
                    can += [lambda g=gang, a=agent: self.call(g, a)] * 2
                    if self.random.random() < 0.05:
                        can.append(lambda g=gang, a=agent: self.garble(g, a))
        if self.preparing:
            can += [lambda: self.prepare(True)] * 3 + [lambda: self.prepare(False)]
        if self.stale:
            can.append(lambda: self.put(self.random.choice(self.stale)))
        if self.random.random() < 0.3:
            can += [self.straggle] * 2
        if self.random.random() < 0.05:
            can.append(lambda: self.put(m.DeadlinePassed()))
            can.append(lambda: self.put(m.MoneySpent()))
            can.append(lambda: self.put(m.CancelRequested("REQUESTED")))
            can.append(lambda: self.put(m.ShuttingDown()))
        return can

    def grant(self, ask: m.Declare) -> None:
        """In a random split; sometimes an agent is forgotten, sometimes a stranger is named."""
        self.asks.remove(ask)
        shares: dict[int, list[int]] = {}
        for agent_id in ask.agent_ids:
            shares.setdefault(self.random.randint(-1 if len(shares) else 0, 2), []).append(agent_id)
        shares.pop(-1, None)
        gangs = []
        for number, agent_ids in shares.items():
            self.num_gangs += 1
            gangs.append(
                m.PlacedGang(
                    f"{ask.attempt}.{self.num_gangs}",
                    f"e{number}",
                    "p",
                    "r",
                    tuple(agent_ids),
                    "why",
                    price_per_million=PRICE,
                )
            )
        granted = m.Granted(ask.attempt, tuple(gangs), "fake")
        self.stale.append(granted)
        self.put(granted)

    def straggle(self) -> None:
        """Any agents, also such as cannot be hedged."""
        agent_ids = self.random.sample(range(6), self.random.randint(1, 3))
        self.put(m.Straggling(tuple(agent_ids)))

    def refuse_retries(self, ask: m.Declare) -> None:
        """To some of the agents or all."""
        count = self.random.randint(1, len(ask.agent_ids))
        if count == len(ask.agent_ids):
            self.asks.remove(ask)
        self.put(m.RetriesRefused(ask.attempt, ask.agent_ids[-count:], "too many"))

    def deny(self, ask: m.Declare) -> None:
        self.asks.remove(ask)
        reasons = [*[("NO_ENDPOINT", 0.5)] * 4, ("NO_ENDPOINT", None), ("NOT_FOUND", None)]
        reason, after_s = self.random.choice(reasons)
        self.put(m.Denied(ask.attempt, reason, "no", after_s))

    def wait_over(self, wait: m.AskLater) -> None:
        self.waits.remove(wait)
        self.put(m.AskAgain(wait.agent_ids))

    def admit(self, gang: SimGang) -> None:
        gang.admitted = True
        self.put(m.Admitted(gang.id, f"build{self.random.randint(0, 1)}", {}))

    def refuse(self, gang: SimGang) -> None:
        moved = any(agent.sampled for agent in gang.agents.values())
        reasons = [("BUILD_MISMATCH", None)] * (4 if moved else 0)
        reasons += [("REJECTED", 0.5), ("INVALID_REQUEST", None)]
        reason, after_s = self.random.choice(reasons)
        self.put(m.GangLost(gang.id, reason, "no", after_s))

    def lose(self, gang: SimGang) -> None:
        for agent in gang.agents.values():
            if agent.may_sample and not self.limit:
                self.stale.append(self.delta(gang, agent, agent.sampled))
        del self.gangs[gang.id]
        self.put(m.GangLost(gang.id, "UNAVAILABLE", "lost"))

    def delta(self, gang: SimGang, agent: SimAgent, offset: int, length: int = 1) -> m.Stepped:
        ids = tuple(range(offset, offset + length))
        return m.Stepped(
            gang.id,
            (m.Delta(agent.agent_id, agent.attempt, offset, ids, text_of(ids), False, -1.0),),
        )

    def step(self, gang: SimGang) -> None:
        deltas = []
        for agent in list(gang.agents.values()):
            if not agent.may_sample or not self.random.random() < 0.6:
                continue
            most = min(3, agent.granted - agent.sampled) if agent.granted else 3
            length = self.random.randint(1, most)
            deltas += self.delta(gang, agent, agent.sampled, length).deltas
            agent.sampled += length
            self.num_sampled += length
        self.put(m.Stepped(gang.id, tuple(deltas)))
        for agent in list(gang.agents.values()):
            used_up = agent.granted and agent.sampled >= agent.granted and not agent.kill
            if used_up and not self.machine.ended and gang.id in self.gangs:
                self.put(m.GrantUsedUp(gang.id, agent.agent_id))

    def prepare(self, goes_well: bool) -> None:
        """The prompt is computed and the gang ends, or the gang is lost at once."""
        gang_id, self.preparing = self.preparing, ""
        lost = m.GangLost(gang_id, "UNAVAILABLE", "the endpoint ended the gang")
        self.stale.append(lost)
        if goes_well:
            done = m.Prefilled(gang_id, 9, 4, 0.25)
            self.stale.append(done)
            self.num_positions += 9
            self.put(done)
        if not self.machine.ended:
            self.put(lost)

    def call(self, gang: SimGang, agent: SimAgent) -> None:
        agent.num_calls += 1
        agent.pending = f"a{agent.agent_id}.{agent.attempt}.c{agent.num_calls}"
        name, arguments = self.random.choice(CALLS)
        call = m.Call(agent.pending, name, arguments)
        if name == "ask_user":
            self.tools.append(agent.pending)
        called = m.ToolCalled(gang.id, agent.agent_id, agent.attempt, call)
        self.stale.append(called)  # a duplicate must not run it again
        self.put(called)

    def garble(self, gang: SimGang, agent: SimAgent) -> None:
        """Skips a token: nothing of this may be shown."""
        self.put(self.delta(gang, agent, agent.sampled + 1))
        if self.machine.decision is None:
            assert gang.id not in self.gangs

    def tool_returns(self, call_id: str) -> None:
        self.tools.remove(call_id)
        proof = self.random.choice(["", "2"])
        returned = m.ToolReturned(call_id, m.Result(False, proof, f"result of {call_id}"))
        self.stale.append(returned)
        self.put(returned)

    def embedded(self, agent_id: int) -> None:
        self.embeds.remove(agent_id)
        vector = self.random.choice(VECTORS)
        embedded = m.Embedded(agent_id, vector, "" if vector else "it failed")
        self.stale.append(embedded)
        self.put(embedded)

    def finish(self, gang: SimGang, agent: SimAgent) -> None:
        """By itself, killed, or broken."""
        ways = ["CANCELLED"] if agent.kill else []
        ways += [] if agent.pending else ["STOP", "LENGTH", "ERROR"]
        ways += ["CONFIDENCE"] if gang.threshold and not agent.pending else []
        if not ways:
            return
        finish = self.random.choice(ways)
        del gang.agents[agent.agent_id]
        ended = m.AgentEnded(
            gang.id, agent.agent_id, agent.attempt, finish, self.random.choice(ANSWERS),
            agent.sampled, 0, lowest_confidence=self.random.choice([0.0, 3.0, 7.5]),
        )  # fmt: skip
        self.stale.append(ended)
        self.put(ended)

    # -- what always holds ----------------------------------------------------------------------

    def check(self) -> None:
        machine = self.machine
        for agent in machine.agents.values():
            if agent.rival is not None:
                assert agent.open and machine.decision is None and not self.limit
                places = [
                    machine.places.gangs[g] for g in (agent.gang_id, agent.rival.gang_id) if g
                ]
                assert len({place.endpoint_id for place in places}) == len(places)
        voters = [ballot.agent_id for ballot in machine.ballots]
        assert len(set(voters)) == len(voters)
        assert len(set(self.ran)) == len(self.ran), "identical calls run once"
        if limit := self.limit:
            assert self.num_sampled <= limit
        if limit := machine.budget.limit:  # prices are known with the first places
            grants = sum(agent.granted for agent in machine.agents.values())
            assert 0 <= machine.budget.pool
            assert machine.budget.pool + grants <= limit

    def check_end(self) -> None:
        assert [event.kind in ENDINGS for event in self.events[:-1]].count(True) == 0
        assert self.events[-1].kind in ENDINGS
        accounts = self.machine.accounts
        assert accounts.generated == self.num_sampled
        assert accounts.prompt == self.num_positions
        assert not self.preparing, "it ends with the round it is for"
        assert min(accounts.used, accounts.killed, accounts.lost) >= 0
        voted = {ballot.agent_id for ballot in self.machine.ballots}
        killed = [agent_id for agent_id, _, _ in self.machine.killed]
        assert len(set(killed)) == len(killed)
        assert not voted & set(killed)
        assert not any(agent.open for agent in self.machine.agents.values())
        assert not self.machine.likeness.waiting
        told = [event for event in self.events if event.kind == "feature_degraded"]
        assert len(told) <= 1
        written: dict[int, int] = {}
        for event in self.events:
            if event.kind == "text_retracted":
                written[event.fields["agent_id"]] = event.fields["token_offset"]
            for delta in event.fields.get("deltas", ()):
                assert delta["token_offset"] == written.get(delta["agent_id"], 0)
                written[delta["agent_id"]] = delta["token_offset"] + delta["token_count"]
        for event in (*self.stale, m.DeadlinePassed(), m.CancelRequested("REQUESTED")):
            assert self.machine.handle(event) == []
        assert self.machine.flush() == []


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from(
        ["auto", "vote", "vote", "confidence:0.5", "refine:3", "best_of", "synthesis", "synthesis"]
    ),
    st.sampled_from(["all", "unbeatable", "verified", "unanimous:2", "first:2", "posterior:0.8"]),
    st.integers(0, 4),
    st.sampled_from([0, 0, 12, 40]),
    st.sampled_from([0, 0, 30]),
    st.sampled_from(EQUIVALENCES),
)
def test_whatever_happens_it_ends_once_and_its_books_are_right(
    seed: int,
    num_agents: int,
    strategy: str,
    quorum: str,
    initial: int,
    budget: int,
    money: int,
    equivalence: str,
) -> None:
    spec = m.Spec(
        contemplation_id="c", model="mini", effort="CONTEMPLATING", num_agents=num_agents,
        strategy=strategy, quorum=quorum, equivalence=equivalence, seed=1, temperature=None,
        budget_tokens=budget, max_tokens=0, initial_agents=min(initial, num_agents),
        client_tools=frozenset({"ask_user"}), patience_s=1.0, prepares=seed % 4 > 0,
        budget_micro_usd=money,
    )  # fmt: skip
    fleet = Fleet(spec, Random(seed))
    for _ in range(300):
        actions = fleet.actions()
        if fleet.machine.ended or not actions:
            break
        fleet.random.choice(actions)()
        if not fleet.machine.ended and fleet.random.random() < 0.2:
            fleet.perform(fleet.machine.flush())
    # Now the deadline passes; kills are acknowledged or their gangs are lost.
    if not fleet.machine.ended:
        fleet.put(m.DeadlinePassed())
    while not fleet.machine.ended:
        gang = next(gang for gang in fleet.gangs.values() if gang.agents)
        if fleet.random.random() < 0.5:
            fleet.lose(gang)
        else:
            fleet.finish(gang, next(iter(gang.agents.values())))
    fleet.check_end()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(ANSWERS)), min_size=4, max_size=4),
    st.permutations(range(4)),
)
def test_the_verdict_does_not_depend_on_the_order_of_ends(
    said: list[tuple[int, str]], order: list[int]
) -> None:
    def verdict(sequence: list[int]) -> tuple[Any, ...]:
        machine = Contemplation(
            m.Spec(
                contemplation_id="c",
                model="mini",
                effort="CONTEMPLATING",
                num_agents=4,
                strategy="vote",
                quorum="all",
                equivalence="auto",
                seed=1,
                temperature=None,
                budget_tokens=0,
                max_tokens=0,
            )
        )
        machine.start()
        gang = m.PlacedGang("g", "e", "p", "r", (0, 1, 2, 3), "why")
        machine.handle(m.Granted(1, (gang,), "fake"))
        effects: list[m.Effect] = []
        for agent_id in sequence:
            weight, answer = said[agent_id]
            effects = machine.handle(
                m.AgentEnded("g", agent_id, 1, "STOP", answer, 1, 0, mean_logprob=-weight)
            )
        [ending] = [e for e in effects if isinstance(e, m.Emit) and e.kind == "verdict"]
        outcome = ending.fields["outcome"]
        return outcome.answer, outcome.key, outcome.abstained, outcome.agent_id

    assert verdict(list(order)) == verdict([0, 1, 2, 3])
