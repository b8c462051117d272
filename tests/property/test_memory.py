"""Memory pressure: it slows, it never kills, and nobody's tokens change.

Gangs of different priorities share a pool that one of them alone may fill; agents are preempted,
paused, killed, forked and held in any order, and each still writes what it would write alone.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.scheduler import StepLimits
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.loader import LoadedModel
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tiny_model import CONTROL, write_tiny_model

pytestmark = pytest.mark.property

ID = {name: i for i, name in enumerate(CONTROL)}
RESULT = tuple(Position(i) for i in (ID["result"], 40, 41, ID["end_result"]))
SIZE = 16
_models: dict[str, LoadedModel] = {}


def loaded(step: str, directories: pytest.TempPathFactory) -> LoadedModel:
    """The tiny model, on a runner whose rows are their own."""
    if step not in _models:
        directory = write_tiny_model(directories.mktemp("models"))
        torch.set_num_threads(1)
        wanted = Wanted(device="cpu", step=step, threads=1)
        _models[step] = loader.load("tiny", directory, wanted)
        assert _models[step].runner.batch_invariant
    return _models[step]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded("native", tmp_path_factory)


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded("torch", tmp_path_factory)


class Stage:
    """An engine stepped on the test's own thread, and what it said by gang."""

    def __init__(self, model: LoadedModel, **limits: Any) -> None:
        self.said: dict[int, list[ev.Event]] = defaultdict(list)
        made = {"num_blocks": 400, "block_size": SIZE, "max_sequences": 16,
                "max_waiting_gangs": 99, "max_injected": 16, **limits}  # fmt: skip
        self.engine = Engine(model, EngineLimits(**made), self._hear)
        self.answers_calls = True

    def _hear(self, key: int, events: list[ev.Event]) -> None:
        self.said[key] += events
        for event in events:
            if isinstance(event, ev.ToolCall) and self.answers_calls:
                self.engine.inject(key, event.agent_id, event.call_id, RESULT)

    @property
    def num_preemptions(self) -> int:
        return self.engine.counters.num_preemptions

    def step(self) -> None:
        commands, self.engine._commands = self.engine._commands, []
        with torch.inference_mode():
            for command in commands:
                command(self.engine)
            self.engine._turn()
        self.engine.pool.check_integrity()

    def rest(self, most: int = 3000) -> None:
        """Steps until only a command could change anything."""
        for _ in range(most):
            self.step()
            if not self.engine._busy and not self.engine._commands:
                return
        raise AssertionError("it does not come to rest")

    def tokens(self, key: int, agent_id: int) -> list[int]:
        deltas = [e for e in self.said[key] if isinstance(e, ev.Delta) and e.agent_id == agent_id]
        assert [e.token_offset for e in deltas] == list(range(len(deltas)))
        return [e.token_id for e in deltas]

    def ends(self, key: int) -> dict[int, ev.Finished]:
        return {e.agent_id: e for e in self.said[key] if isinstance(e, ev.Finished)}

    def holders(self) -> list[tuple[int, int]]:
        """Who has memory, in order of service."""
        return [
            (gang.key, agent_id)
            for gang in self.engine._gangs.values()
            for agent_id, agent in gang.agents.items()
            if agent.sequence.num_computed
        ]


def agent(agent_id: int, num_tokens: int = 60, seed: int = 21, **fields: Any) -> AgentStart:
    calls = ((ID["call"], 4.0), (ID["run"], 6.0))
    params = SamplingParams(temperature=0.9, max_tokens=num_tokens, logit_bias=calls)
    return AgentStart(agent_id, 1, params, seed, (Position(70 + agent_id),), **fields)


def gang(*agents: AgentStart, prefix: int = 20, **fields: Any) -> GangStart:
    return GangStart(tuple(Position(30 + i % 40) for i in range(prefix)), agents, **fields)


_alone: dict[tuple[int, int, int, int, int], list[int]] = {}


def alone(model: LoadedModel, start: GangStart, agent_id: int) -> list[int]:
    """The tokens of an agent that has an engine for itself."""
    own = next(a for a in start.agents if a.agent_id == agent_id)
    key = id(model), len(start.prefix), agent_id, own.seed, own.params.max_tokens
    if key not in _alone:
        stage = Stage(model)
        stage.engine.open(1, replace(start, agents=(own,), priority=0))
        stage.rest()
        assert set(stage.ends(1)) == {agent_id}
        _alone[key] = stage.tokens(1, agent_id)
    return _alone[key]


GANGS = st.lists(
    st.builds(
        lambda count, prefix, num_tokens, seed, priority: gang(
            *(agent(i, num_tokens, seed) for i in range(count)), prefix=prefix, priority=priority
        ),
        st.integers(1, 4),
        st.sampled_from([3, 16, 37]),
        st.sampled_from([9, 40, 80]),
        st.integers(1, 3),
        st.sampled_from([0, 0, 0, 5]),
    ),
    min_size=2,
    max_size=5,
)
OPS = st.lists(
    st.tuples(
        st.sampled_from(["step"] * 4 + ["kill", "pause", "go on", "hold", "fork", "states"]),
        st.integers(0, 4),
        st.integers(0, 5),
        st.integers(1, 12),
    ),
    max_size=40,
)


def play(stage: Stage, ops: list[tuple[str, int, int, int]], count: int) -> set[tuple[int, int]]:
    """Opens the gangs one by one among the ops; the agents that were killed."""
    killed: set[tuple[int, int]] = set()
    for what, which, agent_id, number in ops:
        key, engine = 1 + which % count, stage.engine
        if what == "kill":
            engine.kill(key, [agent_id], "DECIDED")
            killed.add((key, agent_id))
        elif what == "pause":
            engine.pause(key, [agent_id])
        elif what == "go on":
            engine.inject(key, agent_id, "", [])
        elif what == "hold":
            engine.hold(key, number % 2 == 0)
        elif what == "fork":
            copy = replace(agent(10 + number), opening=())
            engine.fork(key, agent_id, -1, copy)
        elif what == "states":
            engine.request_states(key, [])
        else:
            for _ in range(number):
                stage.step()
    return killed


def test_gangs_that_have_ended_do_not_keep_the_last_one_waiting(model: LoadedModel) -> None:
    ended = [gang(agent(0, 9, 1), prefix=3) for _ in range(3)]
    longest = gang(agent(0, 80, 1), prefix=3)
    stage = Stage(model, num_blocks=8, max_sequences=4)  # 7 for the last, 1 for each prefix
    for key, start in enumerate([*ended, longest], 1):
        stage.engine.open(key, start)
    stage.rest()
    assert stage.tokens(4, 0) == alone(model, longest, 0)


PRESSURE = {
    "gangs": GANGS,
    "ops": OPS,
    "spare": st.integers(0, 8),
    "places": st.sampled_from([4, 6, 16]),
    "chunk": st.sampled_from([5, 16, 512]),
    "beside": st.sampled_from([None, 7]),
}


@settings(max_examples=25, deadline=None)
@given(**PRESSURE)
def test_agents_write_what_they_would_write_alone_under_any_pressure(
    model: LoadedModel, **pressure: Any
) -> None:
    they_write_what_they_would_write_alone(model, **pressure)


@settings(max_examples=8, deadline=None)
@given(**PRESSURE)
def test_agents_write_what_they_would_write_alone_by_torch(
    by_torch: LoadedModel, **pressure: Any
) -> None:
    they_write_what_they_would_write_alone(by_torch, **pressure)


def they_write_what_they_would_write_alone(
    model: LoadedModel,
    gangs: list[GangStart],
    ops: list[tuple[str, int, int, int]],
    spare: int,
    places: int,
    chunk: int,
    beside: int | None,
) -> None:
    """Invariants 2 and 4 of core/memory.py, 3 and 4 of the design: sampled, at any schedule."""
    largest = max(
        -(-len(g.prefix) // SIZE)
        + len(g.agents) * (-(-(len(g.prefix) + 97) // SIZE) - len(g.prefix) // SIZE)
        for g in gangs
    )
    step = StepLimits(64, chunk, beside)
    stage = Stage(model, num_blocks=largest + spare, max_sequences=places, step=step)
    for key, start in enumerate(gangs, 1):
        stage.engine.open(key, start)
        stage.step()
    killed = play(stage, ops, len(gangs))
    for key in range(1, len(gangs) + 1):
        stage.engine.hold(key, False)
        stage.step()
        for agent_id in range(23):
            stage.engine.inject(key, agent_id, "", [])  # lets paused agents go on
    stage.rest()
    for key, start in enumerate(gangs, 1):
        assert not any(isinstance(e, ev.Refused) for e in stage.said[key])
        ends = stage.ends(key)
        for own in start.agents:
            whole, written = alone(model, start, own.agent_id), stage.tokens(key, own.agent_id)
            assert written == whole[: len(written)]
            if ends[own.agent_id].finish is ev.Finish.CANCELLED:
                assert (key, own.agent_id) in killed
            else:
                assert written == whole, "it ended early"
                assert ends[own.agent_id].finish is not ev.Finish.ERROR
        stage.engine.close(key)
    stage.rest()
    for key in range(1, len(gangs) + 1):
        assert sum(isinstance(e, ev.Admitted) for e in stage.said[key]) <= 1
        assert sum(isinstance(e, ev.Prefilled) for e in stage.said[key]) <= 1
        assert isinstance(stage.said[key][-1], ev.GangDone)
    assert stage.engine.pool.num_free == stage.engine.pool.num_blocks


def losses(stage: Stage) -> Iterator[tuple[list[tuple[int, int]], set[tuple[int, int]]]]:
    """Steps to rest: of each step who had memory, in order, and who lost it and still lives."""
    while True:
        before = stage.holders()
        stage.step()
        live = {(g.key, i) for g in stage.engine._gangs.values() for i in g.agents}
        yield before, (set(before) & live) - set(stage.holders())
        if not stage.engine._busy and not stage.engine._commands:
            return


@settings(max_examples=25, deadline=None)
@given(gangs=GANGS, num_blocks=st.integers(30, 45))
def test_nobody_yields_to_one_behind(
    model: LoadedModel, gangs: list[GangStart], num_blocks: int
) -> None:
    """Invariant 1: who loses its memory comes after all who keep it."""
    stage = Stage(model, num_blocks=num_blocks)
    for key, start in enumerate(gangs, 1):
        stage.engine.open(key, replace(start, priority=0))
    for before, lost in losses(stage):
        kept = [holder for holder in before if holder not in lost]
        assert not lost or not kept or before.index(kept[-1]) < min(map(before.index, lost))


def test_agents_are_preempted_and_come_back(model: LoadedModel) -> None:
    start = gang(*(agent(i, 100) for i in range(4)))
    stage = Stage(model, num_blocks=34)
    for key in (1, 2):
        stage.engine.open(key, start)
    stage.rest()
    assert stage.num_preemptions > 0
    for key, agent_id in itertools.product((1, 2), range(4)):
        assert stage.tokens(key, agent_id) == alone(model, start, agent_id)


def test_a_higher_priority_takes_memory_and_places_from_a_lower(model: LoadedModel) -> None:
    low = gang(*(agent(i, 100) for i in range(4)))
    high = gang(*(agent(i, 40) for i in range(3)), priority=1)
    stage = Stage(model, num_blocks=40, max_sequences=4)
    stage.engine.open(1, low)
    for _ in range(20):
        stage.step()
    assert len(stage.holders()) == len(stage.engine._gangs[1].agents) > 1
    stage.engine.open(2, high)
    stage.step()
    assert [key for key, _ in stage.holders()].count(2) == 0  # its prefix first
    stage.step()
    assert [key for key, _ in stage.holders()].count(2) == 3
    assert stage.num_preemptions >= 2
    stage.rest()
    assert set(stage.ends(2)) == {0, 1, 2}
    assert len(stage.ends(1)) == 4
    for agent_id in range(4):
        assert stage.tokens(1, agent_id) == alone(model, low, agent_id)


def test_gangs_wait_in_order_of_priority_and_deadline(model: LoadedModel) -> None:
    stage = Stage(model, max_sequences=1)
    endless = SamplingParams(temperature=0.9, max_tokens=60, ignore_eos=True)
    first = gang(replace(agent(0), params=endless), deadline_s=1.0)
    stage.engine.open(1, first)
    stage.step()
    stage.step()
    waiting = {2: (0, 9.0), 3: (0, 5.0), 4: (1, 99.0), 5: (0, 5.0)}
    for key, (priority, deadline_s) in waiting.items():
        stage.engine.open(key, gang(agent(0, 9), priority=priority, deadline_s=deadline_s))
    admitted: list[int] = []
    for _ in range(500):
        stage.step()
        for key in waiting:
            if key not in admitted and stage.said[key]:
                admitted.append(key)
    # The one of a higher priority did not wait at all; the first goes on where it stood.
    assert admitted == [4, 3, 5, 2]
    assert len(stage.tokens(1, 0)) == 60


def test_an_agent_that_was_told_to_stand_still_yields_to_a_gang_that_waits(
    model: LoadedModel,
) -> None:
    stage = Stage(model, num_blocks=20)
    first = gang(*(agent(i, 60) for i in range(2)))
    stage.engine.open(1, first)
    for _ in range(40):
        stage.step()
    stage.engine.pause(1, [])
    stage.engine.open(2, gang(*(agent(i, 60) for i in range(2)), deadline_s=5.0))
    stage.rest()
    assert len(stage.ends(2)) == 2
    stage.engine.inject(1, 0, "", [])
    stage.engine.inject(1, 1, "", [])
    stage.rest()
    for agent_id in range(2):
        assert stage.tokens(1, agent_id) == alone(model, first, agent_id)


def test_a_prompt_beside_running_agents_takes_no_more_than_its_slice(model: LoadedModel) -> None:
    stage = Stage(model, prefill_slice_s=0.01)
    stage.engine.open(1, gang(agent(0, 200), prefix=40))
    for _ in range(5):
        stage.step()
    stage.engine.stats.prefill_tokens_per_s = 2000.0
    lengths: list[list[int]] = []
    forward = stage.engine._runner.forward

    def watched(chunks: Any) -> Any:
        lengths.append([chunk.length for chunk in chunks])
        return forward(chunks)

    stage.engine._runner.forward = watched  # type: ignore[method-assign]
    try:
        stage.engine.open(2, gang(agent(0), prefix=100))
        stage.step()
    finally:
        stage.engine._runner.forward = forward  # type: ignore[method-assign]
    assert lengths == [[1, 20]]


def test_the_first_token_never_waits(model: LoadedModel) -> None:
    stage = Stage(model, flush_interval_s=60.0)
    endless = SamplingParams(temperature=0.9, max_tokens=60, ignore_eos=True)
    stage.engine.open(1, gang(*(replace(agent(i), params=endless) for i in range(2))))
    for _ in range(4):
        stage.step()
    deltas = [event for event in stage.said[1] if isinstance(event, ev.Delta)]
    assert [(e.agent_id, e.token_offset) for e in deltas] == [(0, 0), (1, 0)]
