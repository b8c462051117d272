"""A gang under any commands and tokens: every agent ends once, every block comes back."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

import pytest
from cogitate.agent_decoder.core.block_pool import BlockPool
from cogitate.agent_decoder.core.events import (
    AwaitingGrant,
    Delta,
    Finish,
    Finished,
    GangDone,
    Injected,
    ToolCall,
)
from cogitate.agent_decoder.core.forking import fork, history, snapshot
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.memory import fits, misfit
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.scheduler import StepLimits, schedule
from cogitate.agent_decoder.core.sequence import Agent, Position, Sequence, State
from cogitate.agent_decoder.core.starts import (
    AgentStart,
    GangRules,
    GangStart,
    InjectedPositions,
    SampledTokens,
)
from cogitate.agent_decoder.core.transcript import ControlTokens
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

pytestmark = pytest.mark.property

END, CALL, RUN, ANSWER, STOP_ID = 256, 257, 258, 259, 65
MAX_LEN, MAX_INJECTED, BLOCK = 24, 5, 4
AGENT_IDS = st.sampled_from([0, 1, 2])


def decode(token_ids: Seq[int]) -> str:
    return bytes(t for t in token_ids if t < 256).decode(errors="replace")


RULES = GangRules(
    ControlTokens(end=frozenset({END}), call=CALL, run=RUN, answer=ANSWER),
    decode,
    marks_answers=True,
    max_model_len=MAX_LEN,
    max_injected=MAX_INJECTED,
)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 12),
    min_tokens=st.integers(0, 1),
    stop=st.sampled_from([(), ("bc",)]),
    stop_token_ids=st.sampled_from([(), (STOP_ID,)]),
    ignore_eos=st.booleans(),
)
REPLAY = st.sampled_from(
    [
        (),
        (SampledTokens((97, 98)),),
        (SampledTokens((97, CALL, 98, RUN)), InjectedPositions((Position(1), Position(2)))),
        (SampledTokens((97, CALL, 98, RUN)),),
        (SampledTokens((97, END)),),
    ]
)


def starts(agent_id: int) -> st.SearchStrategy[AgentStart]:
    return st.builds(
        AgentStart,
        agent_id=st.just(agent_id),
        attempt=st.just(1),
        params=PARAMS,
        seed=st.just(0),
        opening=st.integers(0, 2).map(lambda n: (Position(97),) * n),
        replay=REPLAY,
        granted=st.integers(0, 4),
    )


class Cache:
    """What the engine and a model do with blocks; remembers what each slot of the cache holds."""

    def __init__(self, start: GangStart, chunk: int) -> None:
        self.pool = BlockPool(40, BLOCK)
        self.gang = Gang(1, start, RULES, self.pool, 0.0)
        self.limits = StepLimits(64, chunk)
        # Of each slot its token and, in a chain, all before it.
        self.slots: dict[int, dict[int, int]] = {}

    def compute_step(self) -> list[Agent]:
        """One step; the agents that can sample now."""
        gang = self.gang
        if gang.waiting:
            gang.admit(0.0)
        agents = [a.sequence for a in gang.agents.values() if a.sequence.num_computed]
        sequences = [gang.root, *agents]
        chunks = schedule(sequences, self.limits)
        for chunk in chunks:
            gang.allocate(chunk.sequence, chunk.length)
        self.copy_blocks()
        for chunk in chunks:
            for _ in range(chunk.length):
                self.compute(chunk.sequence, chunk.sequence.pending.popleft().token_id)
        if gang.prefix_logits is None and not gang.root.pending:
            gang.prefix_logits = "logits"
            gang.prefilled = True
        self.bring_in()
        return [
            agent
            for agent in gang.agents.values()
            if agent.sequence.state is State.RUNNING and not agent.sequence.pending
        ]

    def bring_in(self) -> None:
        for agent in list(self.gang.agents.values()):
            if self.gang.prefix_logits is not None and agent.waits_for_room:
                self.gang.branch(agent, self.gang.root, self.gang.root.num_computed)
        self.copy_blocks()

    def copy_blocks(self) -> None:
        for source, target in self.gang.copies:
            self.slots[target] = dict(self.slots[source])
        self.gang.copies.clear()

    def compute(self, sequence: Sequence, token_id: int) -> None:
        """Writes a position as a model would: from what the blocks before it hold."""
        at = sequence.num_computed
        before = self.held(sequence, at - 1) if at else 0
        block = sequence.block_table[at // BLOCK]
        self.slots.setdefault(block, {})[at % BLOCK] = hash((before, token_id))
        assert self.pool.ref_count(block) == 1, "wrote a block that others read"
        sequence.num_computed += 1

    def held(self, sequence: Sequence, at: int) -> int:
        return self.slots[sequence.block_table[at // BLOCK]][at % BLOCK]

    def fork(self, parent_id: int, kept: int, start: AgentStart, *, has_room: bool = True) -> str:
        """As the engine does it."""
        self.copy_blocks()
        refused = fork(self.gang, parent_id, kept, start, max_agents=9, has_room=has_room)
        self.copy_blocks()
        return refused

    def blocks_hold_what_was_done(self) -> None:
        if self.gang.copies or self.gang.waiting:
            return
        prefix = [position.token_id for position in self.gang.start.prefix]
        for agent in self.gang.agents.values():
            done = [*prefix, *(p.token_id for p in agent.opening)]
            for segment in history(agent, len(agent.sampled)):
                if isinstance(segment, SampledTokens):
                    done += segment.token_ids
                else:
                    done += [p.token_id for p in segment.positions]
            if agent.sequence.num_computed:
                assert agent.sequence.num_positions == len(done)
            if agent.sequence.num_computed > len(prefix):
                assert agent.sequence.pending, "the logits of its last position are not kept"
            chain = 0
            for at in range(agent.sequence.num_computed):
                chain = hash((chain, done[at]))
                assert self.held(agent.sequence, at) == chain, "a block holds something else"


class GangMachine(RuleBasedStateMachine):
    """Plays the engine on one gang: admits, computes chunks, samples what hypothesis says."""

    @initialize(
        prefix=st.integers(1, 11),
        agents=st.tuples(starts(0), starts(1)),
        waits=st.booleans(),
        chunk=st.integers(1, 6),
    )
    def begin(self, prefix: int, agents: tuple[AgentStart, ...], waits: bool, chunk: int) -> None:
        self.cache = Cache(GangStart((Position(1),) * prefix, agents), chunk)
        self.pool, self.gang = self.cache.pool, self.cache.gang
        assume(not any(misfit(self.gang, agent) for agent in agents))
        self.started = {(a.agent_id, a.attempt): a for a in agents}
        self.granted = {a.agent_id: a.granted or a.params.max_tokens for a in agents}
        self.deltas: list[tuple[int, int]] = []
        self.finished: dict[tuple[int, int], Finished] = {}
        self.done: GangDone | None = None
        self.num_injected = 0
        if not waits:
            self.admit()

    @precondition(lambda self: self.gang.waiting and self.gang.agents and not self.done)
    @rule()
    def admit(self) -> None:
        assert fits(self.gang, 9)
        self.gang.admit(1.0)

    @precondition(lambda self: not self.gang.waiting and not self.done)
    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        for agent in self.cache.compute_step():
            self.take(agent, data)

    def take(self, agent: Agent, data: st.DataObject) -> None:
        tokens = [97, 98, 99, 0xE2, STOP_ID, END, CALL, RUN, RUN, ANSWER]
        banned = agent.row().banned
        token = data.draw(st.sampled_from([t for t in tokens if t not in banned]))
        logprob = data.draw(st.sampled_from([-0.5, -0.5, -0.5, float("nan")]))
        assert len(agent.sampled) < self.granted[agent.agent_id], "more than was granted"
        self.gang.take(agent, token, logprob, 1.0)

    @rule(ids=st.lists(AGENT_IDS, max_size=2))
    def kill(self, ids: list[int]) -> None:
        running = [a for a in self.gang.agents.values() if a.agent_id in ids or not ids]
        self.gang.kill(ids, "DECIDED")
        ends = [e for e in self.gang.events if isinstance(e, Finished)]
        for agent in running:
            assert [e.kill_reason for e in ends if e.agent_id == agent.agent_id][-1] == "DECIDED"

    @rule(agent_id=AGENT_IDS, count=st.integers(0, 4), late=st.booleans())
    def inject(self, agent_id: int, count: int, late: bool) -> None:
        agent = self.gang.agents.get(agent_id)
        call_id = "a9.9.c9" if late or agent is None else agent.pending_call_id
        before = len(self.gang.events)
        self.gang.inject(agent_id, call_id, [Position(5)] * count)
        if late or agent is None:
            assert len(self.gang.events) == before

    @rule(agent_id=AGENT_IDS, total=st.integers(-1, 20))
    def grant(self, agent_id: int, total: int) -> None:
        if agent := self.gang.agents.get(agent_id):
            before = agent.granted
            self.gang.grant({agent_id: total})
            assert agent.granted >= before
            self.granted[agent_id] = max(self.granted[agent_id], total)
        else:
            self.gang.grant({agent_id: total})

    @rule(ids=st.lists(AGENT_IDS, max_size=2))
    def pause(self, ids: list[int]) -> None:
        before = {i: len(a.sampled) for i, a in self.gang.agents.items()}
        self.gang.pause(ids)
        assert before == {i: len(a.sampled) for i, a in self.gang.agents.items()}

    @precondition(lambda self: not self.gang.closed)
    @rule(data=st.data(), parent_id=AGENT_IDS, agent_id=st.integers(0, 5), kept=st.integers(-1, 6))
    def fork(self, data: st.DataObject, parent_id: int, agent_id: int, kept: int) -> None:
        attempt = 1 + max((n for a, n in self.started if a == agent_id), default=0)
        made = data.draw(starts(agent_id))
        start = AgentStart(agent_id, attempt, made.params, 0, granted=made.granted)
        self.drain()
        parent = self.gang.agents.get(parent_id)
        before = self.pool.num_free, list(self.gang.agents)
        refused = self.cache.fork(parent_id, kept, start)
        if refused:
            assert before == (self.pool.num_free, list(self.gang.agents))
            return
        assert parent is not None
        kept = len(parent.sampled) if kept == -1 else kept
        replay = history(parent, kept)
        self.started[agent_id, attempt] = replace(start, replay=replay)
        self.granted[agent_id] = start.granted or start.params.max_tokens
        if agent := self.gang.agents.get(agent_id):
            assert agent.sampled == parent.sampled[:kept]

    @precondition(lambda self: not self.gang.closed)
    @rule(data=st.data(), agent_id=AGENT_IDS)
    def add(self, data: st.DataObject, agent_id: int) -> None:
        attempt = 1 + max((n for a, n in self.started if a == agent_id), default=0)
        start = data.draw(starts(agent_id))
        start = AgentStart(
            agent_id, attempt, start.params, 0, start.opening, start.replay, granted=start.granted
        )
        if misfit(self.gang, start) or len(self.gang.agents) > 3:
            return
        if not fits(self.gang, 9, start):
            return
        self.drain()
        self.granted[agent_id] = start.granted or start.params.max_tokens
        self.started[agent_id, attempt] = start
        self.gang.add_agent(start)

    @rule(agent_id=AGENT_IDS)
    def preempt(self, agent_id: int) -> None:
        """Whoever has memory may have to yield it, and the prefix once nobody else has any."""
        agent = self.gang.agents.get(agent_id)
        holders = [a for a in self.gang.agents.values() if a.sequence.num_computed]
        events = len(self.gang.events)
        if agent in holders:
            before = list(agent.positions()), agent.sequence.state
            self.gang.preempt(agent)
            assert before == (list(agent.sequence.pending), agent.sequence.state)
        elif not holders and self.gang.root.block_table:
            self.gang.preempt_prefix()
            assert self.gang.waiting
        assert len(self.gang.events) == events, "nobody need know"

    @rule()
    def close(self) -> None:
        self.gang.close()

    @rule()
    def flush(self) -> None:
        self.drain()

    def drain(self) -> None:
        self.gang.close_if_done()
        for event in self.gang.events:
            assert self.done is None, "something after GangDone"
            if isinstance(event, Delta):
                key = event.agent_id, event.attempt
                assert key not in self.finished, "a token after the end"
                self.deltas.append(key)
                offset = self.started[key].num_sampled + self.deltas.count(key) - 1
                assert event.token_offset == offset
            elif isinstance(event, Finished):
                key = event.agent_id, event.attempt
                assert key in self.started
                assert key not in self.finished, "two ends"
                self.finished[key] = event
                assert event.num_sampled == self.started[key].num_sampled + self.deltas.count(key)
            elif isinstance(event, ToolCall | AwaitingGrant):
                assert event.num_sampled > 0 or isinstance(event, AwaitingGrant)
            elif isinstance(event, Injected):
                self.num_injected += event.num_positions
            elif isinstance(event, GangDone):
                self.done = event
        self.gang.events.clear()

    @invariant()
    def memory_adds_up(self) -> None:
        if not hasattr(self, "num_injected"):
            return
        self.pool.check_integrity()
        if self.gang.waiting:
            assert self.pool.num_free == self.pool.num_blocks
        for agent in self.gang.agents.values():
            sequence = agent.sequence
            if self.gang.closed:
                assert sequence.state not in (State.PAUSED, State.AWAITING_GRANT)
            if sequence.state is State.PAUSED:
                assert agent.pending_call_id or agent.paused
            if agent.paused:
                assert sequence.state is not State.RUNNING
        self.cache.blocks_hold_what_was_done()

    def teardown(self) -> None:
        if not hasattr(self, "num_injected"):
            return
        self.gang.kill((), "END")
        self.gang.close()
        self.drain()
        assert self.done is not None
        assert set(self.finished) == set(self.started)
        assert self.pool.num_free == self.pool.num_blocks
        assert self.done.num_sampled == len(self.deltas)
        assert self.done.num_injected == self.num_injected


OPS = ["step"] * 6 + ["fork"] * 4 + ["kill", "pause", "go on", "supersede", "preempt", "no room"]
REPLAYED = st.sampled_from([(), (SampledTokens((97, 98)),), (SampledTokens((CALL, RUN)),)])


@settings(max_examples=150, deadline=None)
@given(
    prefix=st.integers(1, 9),
    opening=st.integers(0, 5),
    chunk=st.integers(1, 6),
    replay=REPLAYED,
    ops=st.lists(
        st.tuples(st.sampled_from(OPS), st.integers(0, 4), st.integers(-1, 9)),
        min_size=10,
        max_size=50,
    ),
)
def test_forks_of_forks_hold_what_was_done_whatever_ends(
    prefix: int,
    opening: int,
    chunk: int,
    replay: tuple[SampledTokens, ...],
    ops: list[tuple[str, int, int]],
) -> None:
    opens = tuple(Position(100 + i) for i in range(opening))
    start = agent_start(opening=opens, replay=replay, params=SamplingParams(max_tokens=11))
    cache = Cache(GangStart(tuple(Position(i) for i in range(prefix)), (start,)), chunk)
    gang, attempt = cache.gang, 1
    gang.admit(0.0)
    for what, which, number in ops:
        if what == "step":
            for agent in cache.compute_step():
                # Calls now and then; otherwise each agent has words of its own.
                token = (CALL, RUN)[number % 2] if number > 6 else 97 + agent.agent_id + number
                gang.take(agent, token, -0.5, 1.0)
        elif what == "preempt":
            if (agent := gang.agents.get(which)) and agent.sequence.num_computed:
                gang.preempt(agent)
        elif what in ("fork", "supersede", "no room"):
            attempt += 1
            target = (which + 1 + number % 3) % 5 if what == "supersede" else 4 + attempt
            params = SamplingParams(max_tokens=8 + number % 4)
            copy = agent_start(agent_id=target, attempt=attempt, params=params)
            if len(gang.agents) < 8 and gang.agents:
                parent_id = list(gang.agents)[which % len(gang.agents)]
                cache.fork(parent_id, number, copy, has_room=what != "no room")
        elif what == "kill":
            gang.kill([which], "DECIDED")
        elif what == "pause":
            gang.pause([which])
        else:
            for agent in list(gang.agents.values()):
                gang.inject(agent.agent_id, agent.pending_call_id, [Position(5)] * (number % 3))
        cache.pool.check_integrity()
        cache.blocks_hold_what_was_done()
    gang.kill([], "END")
    gang.close()
    assert gang.close_if_done()
    assert cache.pool.num_free == cache.pool.num_blocks


TestGang = GangMachine.TestCase
TestGang.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


def gang_of(*agents: AgentStart, prefix: int = 3) -> Gang:
    """A gang that is admitted and prefilled."""
    pool = BlockPool(40, BLOCK)
    gang = Gang(1, GangStart((Position(1),) * prefix, agents), RULES, pool, 0.0)
    gang.admit(0.0)
    gang.allocate(gang.root, prefix)
    gang.root.pending.clear()
    gang.root.num_computed = prefix
    gang.prefix_logits = "logits"
    for agent in list(gang.agents.values()):
        gang.branch(agent, gang.root, prefix)
    return gang


def agent_start(**fields: object) -> AgentStart:
    params = SamplingParams(max_tokens=8)
    return AgentStart(**{"agent_id": 0, "attempt": 1, "params": params, "seed": 0, **fields})  # type: ignore[arg-type]


def ends(gang: Gang) -> list[tuple[Finish, str]]:
    return [(e.finish, e.kill_reason) for e in gang.events if isinstance(e, Finished)]


def test_a_call_does_not_get_around_the_grant() -> None:
    gang = gang_of(agent_start(granted=2))
    agent = gang.agents[0]
    gang.take(agent, CALL, -0.5, 1.0)
    gang.take(agent, RUN, -0.5, 1.0)
    gang.inject(0, agent.pending_call_id, [Position(5)])
    assert agent.sequence.state is State.AWAITING_GRANT
    gang.grant({0: 3})
    assert agent.sequence.state is State.RUNNING


def test_a_resumed_agent_that_used_its_grant_up_waits_at_once() -> None:
    gang = gang_of(agent_start(granted=2, replay=(SampledTokens((97, 98)),)))
    assert gang.agents[0].sequence.state is State.AWAITING_GRANT


def test_a_resumed_agent_that_had_ended_ends_at_once() -> None:
    assert ends(gang_of(agent_start(replay=(SampledTokens((97, END)),)))) == [(Finish.STOP, "")]
    full = agent_start(replay=(SampledTokens((97,) * 8),))
    assert ends(gang_of(full)) == [(Finish.LENGTH, "")]


def test_a_resumed_agent_makes_the_call_it_had_just_written_once() -> None:
    replay = (SampledTokens((CALL, 98, RUN)),)
    fresh = gang_of(agent_start(attempt=2, replay=replay))
    calls = [e for e in fresh.events if isinstance(e, ToolCall)]
    assert [(c.call_id, c.raw_text) for c in calls] == [("a0.2.c2", "b")]
    waiting = gang_of(agent_start(attempt=2, replay=replay, pending_call_id="a0.1.c1"))
    assert not [e for e in waiting.events if isinstance(e, ToolCall)]
    assert waiting.agents[0].sequence.state is State.PAUSED


def test_the_mean_logprob_of_a_resumed_agent_counts_its_earlier_tokens() -> None:
    gang = gang_of(agent_start(replay=(SampledTokens((97, 98, 99)),), mean_logprob=-2.0))
    gang.take(gang.agents[0], 97, -1.0, 1.0)
    assert gang.agents[0].mean_logprob == pytest.approx(-7 / 4)


def test_text_held_back_is_shown_when_the_limit_ends_the_agent() -> None:
    gang = gang_of(agent_start(params=SamplingParams(max_tokens=3, stop=("bcd",))))
    for token in (ANSWER, 98, 99):
        gang.take(gang.agents[0], token, -0.5, 1.0)
    assert "".join(e.text for e in gang.events if isinstance(e, Delta)) == "bc"
    assert [e.answer for e in gang.events if isinstance(e, Finished)] == ["bc"]


def test_closing_ends_what_waits_for_a_command_and_lets_the_rest_go_on() -> None:
    gang = gang_of(*(agent_start(agent_id=i, granted=2) for i in range(3)))
    for token in (CALL, RUN):
        gang.take(gang.agents[0], token, -0.5, 1.0)
        gang.take(gang.agents[1], 97, -0.5, 1.0)
    gang.close()
    assert ends(gang) == [(Finish.CANCELLED, "CLOSED"), (Finish.BUDGET, "")]
    gang.take(gang.agents[2], 97, -0.5, 1.0)
    gang.take(gang.agents[2], 97, -0.5, 1.0)
    assert ends(gang)[2:] == [(Finish.BUDGET, "")]
    assert gang.close_if_done()


def test_low_confidence_ends_an_agent_only_after_a_full_window() -> None:
    gang = gang_of(agent_start(params=SamplingParams(max_tokens=100)), prefix=1)
    gang.rules = GangRules(RULES.control, decode, True, 1000, 0)
    gang.set_threshold(5.0)
    for i in range(32):
        assert not ends(gang), i
        gang.take(gang.agents[0], 97, -0.5, 1.0)
    assert ends(gang) == [(Finish.CONFIDENCE, "CONFIDENCE")]


def test_a_threshold_holds_from_the_token_at_which_it_came() -> None:
    """Who is under it already runs on to its next token; its end says from where it was held."""
    params = SamplingParams(max_tokens=100)
    gang = gang_of(*(agent_start(agent_id=i, params=params) for i in range(3)), prefix=1)
    gang.rules = GangRules(RULES.control, decode, True, 1000, 0)
    for _ in range(40):
        gang.take(gang.agents[0], 97, -0.5, 1.0)
    gang.finish(gang.agents[2], Finish.CANCELLED)
    gang.set_threshold(5.0)
    gang.add_agent(agent_start(agent_id=3, params=params))
    gang.take(gang.agents[0], 97, -0.5, 1.0)
    for agent_id in (1, 3):
        for _ in range(32):
            gang.take(gang.agents[agent_id], 97, -0.5, 1.0)
    ended = [e for e in gang.events if isinstance(e, Finished)]
    assert [(e.agent_id, e.num_sampled, e.num_unheld) for e in ended] == [
        (2, 0, None),
        (0, 41, 40),
        (1, 32, 0),
        (3, 32, 0),
    ]


def test_what_does_not_fit_is_told_before_it_runs() -> None:
    gang = gang_of(agent_start())
    assert "longer than its limits" in misfit(gang, agent_start(replay=(SampledTokens((97,) * 9),)))
    injected = InjectedPositions((Position(1),) * (MAX_INJECTED + 1))
    assert "longer than its limits" in misfit(gang, agent_start(replay=(injected,)))
    assert "shorten" in misfit(gang, agent_start(opening=(Position(1),) * (MAX_LEN - 3)))
    assert not misfit(gang, agent_start(opening=(Position(1),) * (MAX_LEN - 4)))


def test_an_injection_that_does_not_fit_ends_the_agent() -> None:
    gang = gang_of(agent_start())
    for token in (CALL, RUN):
        gang.take(gang.agents[0], token, -0.5, 1.0)
    gang.inject(0, "a0.1.c1", [Position(5)] * (MAX_INJECTED + 1))
    assert ends(gang) == [(Finish.LENGTH, "")]
    assert not [e for e in gang.events if isinstance(e, Injected)]


def test_pause_keeps_the_memory_until_something_answers_no_call() -> None:
    gang = gang_of(agent_start(granted=3), agent_start(agent_id=1))
    gang.take(gang.agents[0], 97, -0.5, 1.0)
    gang.pause([0, 9])
    agent = gang.agents[0]
    assert (agent.sequence.state, gang.agents[1].sequence.state) == (State.PAUSED, State.RUNNING)
    held = list(agent.sequence.block_table)
    gang.grant({0: 4})
    gang.inject(0, "a0.1.c1", [Position(5)])  # answers a call nobody made
    assert agent.sequence.state is State.PAUSED
    gang.inject(0, "", [])
    assert (agent.sequence.state, agent.sequence.block_table) == (State.RUNNING, held)
    assert [e.num_positions for e in gang.events if isinstance(e, Injected)] == [0]


def test_a_result_reaches_an_agent_that_was_paused_and_it_stands_still() -> None:
    gang = gang_of(agent_start())
    agent = gang.agents[0]
    for token in (CALL, RUN):
        gang.take(agent, token, -0.5, 1.0)
    gang.pause([])
    gang.inject(0, "a0.1.c1", [Position(5)])
    assert agent.sequence.state is State.PAUSED
    gang.inject(0, "", [Position(6)])
    assert agent.sequence.state is State.RUNNING
    assert [p.token_id for p in agent.sequence.pending] == [CALL, RUN, 5, 6]
    assert history(agent, 1) == (SampledTokens((CALL,)),)
    assert history(agent, 2)[1:] == (
        InjectedPositions((Position(5),)), InjectedPositions((Position(6),))
    )  # fmt: skip


def test_a_paused_agent_ends_when_no_command_can_come() -> None:
    gang = gang_of(agent_start())
    gang.pause([0])
    gang.close()
    assert ends(gang) == [(Finish.CANCELLED, "CLOSED")]


def test_a_snapshot_says_all_that_was_done() -> None:
    gang = gang_of(agent_start(params=SamplingParams(max_tokens=8, stop=("bcd",))))
    agent = gang.agents[0]
    for token in (97, CALL, 99, RUN):
        gang.take(agent, token, -0.5, 2.0)
    waiting = snapshot(agent)
    assert (waiting.segments, waiting.pending_call_id) == (
        (SampledTokens((97, CALL, 99, RUN)),), "a0.1.c1"
    )  # fmt: skip
    gang.inject(0, "a0.1.c1", [Position(5)], "origin")
    for token in (98, 99):
        gang.take(agent, token, -0.5, 2.0)
    made = snapshot(agent)
    assert made.segments[1:] == (
        InjectedPositions((Position(5),), "origin"), SampledTokens((98, 99))
    )  # fmt: skip
    assert (made.num_sampled, made.withheld, made.mean_logprob) == (6, "bc", -0.5)


def test_forks_that_cannot_be_made_change_nothing() -> None:
    gang = gang_of(agent_start())
    gang.take(gang.agents[0], 97, -0.5, 1.0)
    free, pool = gang.pool.num_free, gang.pool
    copy = agent_start(agent_id=1)

    def refused(parent: int, kept: int, start: AgentStart) -> str:
        return fork(gang, parent, kept, start, max_agents=9, has_room=True)

    assert refused(5, -1, copy) == "NOT_FOUND"
    assert refused(0, 2, copy) == refused(0, -2, copy) == "INVALID_REQUEST"
    assert refused(0, -1, agent_start(attempt=2)) == "INVALID_REQUEST"
    gang.pool = BlockPool(3, BLOCK)
    assert refused(0, -1, copy) == "REJECTED"
    gang.pool = pool
    assert (gang.pool.num_free, list(gang.agents)) == (free, [0])
