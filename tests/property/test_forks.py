"""Forks and snapshots in the engine: the tokens of a resume, and parents that never notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.memory import most_blocks
from cogitate.agent_decoder.core.sampling import SamplingParams
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
PREFIX = tuple(Position(i) for i in (1, 3, *range(30, 47), 2, 4))


@pytest.fixture(scope="module", params=["native", "torch"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.set_num_threads(1)
    directory = write_tiny_model(tmp_path_factory.mktemp("models"))
    return loader.load("tiny", directory, Wanted(device="cpu", dtype="float32", step=request.param))


class Played:
    """One gang, stepped on the test's own thread: a test acts at the very token it means to.

    Engines on one model share its cache: one is played to its end before the next one is made.
    """

    def __init__(self, model: LoadedModel, *agents: AgentStart, **limits: Any) -> None:
        self.said: list[ev.Event] = []
        made = EngineLimits(**{
            "num_blocks": 200, "block_size": 16, "max_sequences": 16, "max_waiting_gangs": 4,
            "max_injected": 32, **limits,
        })  # fmt: skip
        self.engine = Engine(model, made, lambda key, events: self.said.extend(events))
        self.engine.open(1, GangStart(PREFIX, agents))

    def step(self) -> None:
        """Commands, calls answered, one step, and its news."""
        for event in [e for e in self.said if isinstance(e, ev.ToolCall)]:
            self.engine.inject(1, event.agent_id, event.call_id, RESULT)
        commands, self.engine._commands = self.engine._commands, []
        with torch.inference_mode():
            for command in commands:
                command(self.engine)
            self.engine._turn()
        self.engine.pool.check_integrity()

    def until(self, enough: Callable[[], bool]) -> None:
        for _ in range(2000):
            if enough():
                return
            self.step()
        raise AssertionError("it does not come to that")

    def end(self) -> None:
        """Everyone ends by themselves; nothing is left."""
        started = {e.agent_id for e in self.said if isinstance(e, ev.Delta)}
        self.until(lambda: started <= set(self.ends()) and not self.engine._busy)
        self.engine.close(1)
        self.until(lambda: isinstance(self.said[-1], ev.GangDone))
        assert self.engine.pool.num_free == self.engine.pool.num_blocks

    def tokens(self, agent_id: int) -> list[int]:
        deltas = [e for e in self.said if isinstance(e, ev.Delta) and e.agent_id == agent_id]
        return [e.token_id for e in deltas]

    def ends(self) -> dict[int, ev.Finished]:
        return {e.agent_id: e for e in self.said if isinstance(e, ev.Finished)}

    def snapshot(self, agent_id: int) -> ev.Snapshot:
        self.engine.request_states(1, [agent_id, 99])
        self.until(lambda: any(isinstance(e, ev.Snapshot) for e in self.said))
        (made,) = (e for e in self.said if isinstance(e, ev.Snapshot))
        self.said.remove(made)
        return made


def agent(agent_id: int, **fields: Any) -> AgentStart:
    calls = ((ID["call"], 4.0), (ID["run"], 6.0))
    params = SamplingParams(temperature=0.9, max_tokens=40, logit_bias=calls)
    made = {"attempt": 1, "params": params, "seed": 21, "opening": (Position(70),), **fields}
    return AgentStart(agent_id, **made)


def alone(model: LoadedModel, start: AgentStart) -> list[int]:
    played = Played(model, start)
    played.until(lambda: start.agent_id in played.ends())
    return played.tokens(start.agent_id)


def resumed(start: AgentStart, made: ev.Snapshot) -> AgentStart:
    """As another endpoint would open it."""
    return replace(
        start,
        attempt=2,
        replay=made.segments,
        pending_call_id=made.pending_call_id,
        mean_logprob=made.mean_logprob,
        lowest_confidence=made.lowest_confidence,
    )


@settings(max_examples=12, deadline=None)
@given(steps=st.integers(0, 30), seed=st.integers(0, 50))
def test_opened_elsewhere_from_a_snapshot_it_goes_on_with_the_same_tokens(
    model: LoadedModel, steps: int, seed: int
) -> None:
    start = agent(0, seed=seed)
    whole = alone(model, start)
    played = Played(model, start)
    for _ in range(steps):
        played.step()
    if 0 in played.ends():
        return
    made = played.snapshot(0)
    other = Played(model, resumed(start, made), agent(5))
    if made.pending_call_id:
        other.engine.inject(1, 0, made.pending_call_id, RESULT)
    other.until(lambda: 0 in other.ends())
    assert other.tokens(0) == whole[made.num_sampled :]


@settings(max_examples=12, deadline=None)
@given(
    steps=st.integers(1, 30),
    kept=st.one_of(st.just(-1), st.integers(0, 20)),
    seed=st.integers(0, 50),
    dies=st.booleans(),
)
def test_a_fork_goes_on_as_one_resumed_there_and_its_parent_never_notices(
    model: LoadedModel, steps: int, kept: int, seed: int, dies: bool
) -> None:
    start = agent(0, seed=seed)
    whole = alone(model, start)
    played = Played(model, start)
    for _ in range(steps):
        played.step()
    sampled = played.tokens(0)
    if 0 in played.ends() or kept > len(sampled):
        return
    copy = agent(7, seed=seed + 1)
    made: list[AgentStart] = []
    begin = type(next(iter(played.engine._gangs.values()))).begin

    def spy(gang: Any, started: AgentStart) -> Any:
        made.append(started)
        return begin(gang, started)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cogitate.agent_decoder.core.gang.Gang.begin", spy)
        played.engine.fork(1, 0, kept, copy)
        if dies:
            played.engine.kill(1, [0], "DECIDED")
        played.step()
    (begun,) = made
    played.until(lambda: 7 in played.ends())
    assert begun.num_sampled == (len(sampled) if kept == -1 else kept)
    if not dies:
        played.until(lambda: 0 in played.ends())
        assert played.tokens(0) == whole
    played.end()
    assert played.tokens(7) == alone(model, begun)


def test_a_fork_shares_full_blocks_and_ends_alone_where_there_is_no_room(
    model: LoadedModel,
) -> None:
    plain = SamplingParams(temperature=0.9, max_tokens=100, ignore_eos=True)
    played = Played(model, agent(0, params=plain), max_sequences=2)
    played.until(lambda: len(played.tokens(0)) >= 40)
    gang = played.engine._gangs[1]
    free = played.engine.pool.num_free
    played.engine.fork(1, 0, -1, agent(1, params=plain))
    played.engine.fork(1, 0, -1, agent(2, params=plain))
    played.engine.fork(1, 9, -1, agent(3, params=plain))
    played.step()
    parent, copy = (gang.agents[i].sequence.block_table for i in (0, 1))
    assert parent[:3] == copy[:3] and parent[3] != copy[3]
    assert free - played.engine.pool.num_free < most_blocks(gang, (Position(70),), plain)
    ends = played.ends()
    assert [(ends[i].finish, ends[i].kill_reason) for i in (2, 3)] == [
        (ev.Finish.ERROR, "REJECTED"), (ev.Finish.ERROR, "NOT_FOUND")
    ]  # fmt: skip
    played.end()


def test_forks_of_a_fresh_fork_and_of_a_gang_that_waits(model: LoadedModel) -> None:
    played = Played(model, agent(0))
    played.engine.fork(1, 0, -1, agent(1))  # before the prefix is computed
    played.until(lambda: bool(played.tokens(0)))
    played.engine.fork(1, 0, 0, agent(2))
    played.engine.fork(1, 2, 0, agent(3))  # its block still waits for its content
    played.engine.kill(1, [2], "DECIDED")
    played.until(lambda: {0, 1, 2, 3} <= set(played.ends()))
    for i in (0, 1, 3):
        assert played.tokens(i) == alone(model, agent(i))
    played.end()


def test_a_paused_agent_stands_still_and_goes_on_with_the_same_tokens(model: LoadedModel) -> None:
    whole = alone(model, agent(0))
    played = Played(model, agent(0), agent(1))
    played.until(lambda: len(played.tokens(0)) >= 3)
    played.engine.pause(1, [0])
    played.until(lambda: 1 in played.ends())
    assert len(played.tokens(0)) in (3, 4)
    played.step()
    assert not played.engine._busy
    played.engine.inject(1, 0, "", [])
    played.until(lambda: 0 in played.ends())
    assert played.tokens(0) == whole
    played.end()
