"""The engine on a tiny random model: tokens, memory, grants and kills, whatever else runs.

Tokens are compared exactly: torch computes them here, in fixed shapes, so that logits are bit-equal
in any batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.scheduler import StepLimits
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import (
    AgentStart,
    GangStart,
    InjectedPositions,
    SampledTokens,
)
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted
from cogitate.agent_decoder.model.loader import LoadedModel
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.tiny_model import CONTROL, HIDDEN, write_tiny_model

pytestmark = pytest.mark.property

ID = {name: i for i, name in enumerate(CONTROL)}
RESULT = tuple(Position(i) for i in (ID["result"], 40, 41, ID["end_result"]))
PREFIX = tuple(Position(i) for i in (1, 3, *range(30, 47), 2, 4))
LIMITS = EngineLimits(
    num_blocks=512, block_size=4, max_sequences=16, max_waiting_gangs=4, max_injected=32
)
_loaded: list[LoadedModel] = []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    if not _loaded:
        torch.set_num_threads(1)
        directory = write_tiny_model(Path(tmp_path_factory.mktemp("models")))
        _loaded.append(
            loader.load("tiny", directory, Wanted(device="cpu", dtype="float32", block_size=4))
        )
        assert _loaded[0].runner.batch_invariant
    return _loaded[0]


class Table:
    """An engine and what it said, by gang. Answers each tool call with the same short result."""

    def __init__(self, model: LoadedModel, limits: EngineLimits = LIMITS) -> None:
        self.said: dict[int, list[ev.Event]] = defaultdict(list)
        self.answers_calls = True
        self._news = threading.Condition()
        self.engine = Engine(model, limits, self._on_events)

    def _on_events(self, key: int, events: list[ev.Event]) -> None:
        for event in events:
            if isinstance(event, ev.ToolCall) and self.answers_calls:
                self.engine.inject(key, event.agent_id, event.call_id, RESULT)
        with self._news:
            self.said[key] += events
            self._news.notify_all()

    def wait(self, key: int, enough: Callable[[list[ev.Event]], bool]) -> list[ev.Event]:
        with self._news:
            assert self._news.wait_for(lambda: enough(self.said[key]), 30), self.said[key][-3:]
            return list(self.said[key])

    def wait_for(self, key: int, kind: type, count: int = 1) -> list[Any]:
        said = self.wait(key, lambda s: sum(isinstance(e, kind) for e in s) >= count)
        return [event for event in said if isinstance(event, kind)]

    def play(self, key: int, start: GangStart) -> dict[int, list[int]]:
        """Runs a gang to its end; the tokens each agent sampled."""
        self.engine.open(key, start)
        self.wait_for(key, ev.Finished, len(start.agents))
        self.engine.close(key)
        self.wait_for(key, ev.GangDone)
        return self.tokens(key)

    def tokens(self, key: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for event in self.said[key]:
            if isinstance(event, ev.Delta):
                found[event.agent_id].append(event.token_id)
        return dict(found)

    def settle(self) -> None:
        """Waits until every command was applied."""
        done = threading.Event()
        self.engine.submit(lambda engine: done.set())
        assert done.wait(30)

    def is_empty(self) -> bool:
        self.settle()
        self.engine.pool.check_integrity()
        return self.engine.pool.num_free == self.engine.pool.num_blocks


@contextmanager
def table(model: LoadedModel, **limits: Any) -> Iterator[Table]:
    made = Table(model, replace(LIMITS, **limits))
    made.engine.start()
    try:
        yield made
        for key in list(made.said):
            made.engine.abort(key, "END")
        made.settle()
        assert made.is_empty()
    finally:
        made.engine.stop()


def params(**fields: Any) -> SamplingParams:
    calls = ((ID["call"], 4.0), (ID["run"], 6.0))
    return SamplingParams(**{"temperature": 0.9, "max_tokens": 24, "logit_bias": calls, **fields})


def agent(agent_id: int, **fields: Any) -> AgentStart:
    return AgentStart(
        **{"agent_id": agent_id, "attempt": 1, "params": params(), "seed": 11, **fields}
    )


def gang(*agents: AgentStart, prefix: Sequence[Position] = PREFIX) -> GangStart:
    return GangStart(tuple(prefix), agents)


LONG = {"params": params(max_tokens=200, ignore_eos=True)}


# -- invariant 4: an agent's tokens are its own --------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(
    siblings=st.sets(st.integers(1, 9), max_size=5),
    chunk=st.sampled_from([1, 3, 7, 512]),
    budget=st.sampled_from([4, 9, 2048]),
    length=st.integers(1, 24),
    opening=st.integers(0, 3),
)
def test_tokens_do_not_depend_on_siblings_or_chunks(
    model: LoadedModel,
    siblings: set[int],
    chunk: int,
    budget: int,
    length: int,
    opening: int,
) -> None:
    tested = agent(0, opening=tuple(Position(50 + i) for i in range(opening)))
    prefix = PREFIX[:length]
    with table(model) as plain, table(model, step=StepLimits(budget, chunk)) as other:
        alone = plain.play(1, gang(tested, prefix=prefix))
        others = [agent(i, opening=(Position(60),) * (i % 3)) for i in siblings]
        together = other.play(1, gang(tested, *others, prefix=prefix))
        assert together[0] == alone[0]
        # A sibling is what it would be alone, too.
        for each in others[:1]:
            assert (
                plain.play(2, gang(each, prefix=prefix))[each.agent_id] == together[each.agent_id]
            )


def test_tokens_do_not_depend_on_siblings_being_killed_or_added(model: LoadedModel) -> None:
    tested = agent(0, **LONG)
    with table(model) as played:
        alone = played.play(1, gang(tested))[0]
        played.engine.open(2, gang(agent(1, **LONG), tested, agent(2, **LONG)))
        played.wait_for(2, ev.Delta, 20)
        played.engine.kill(2, [1], "DECIDED")
        played.engine.add_agents(2, [agent(3, **LONG)])
        played.wait_for(2, ev.Finished, 2)
        played.engine.kill(2, [2, 3], "DECIDED")
        played.wait(2, lambda s: any(isinstance(e, ev.Finished) and e.agent_id == 0 for e in s))
        assert played.tokens(2)[0] == alone


def test_an_agent_added_late_is_as_one_that_was_there_at_once(model: LoadedModel) -> None:
    with table(model) as played:
        at_once = played.play(1, gang(agent(0), agent(1)))
        played.engine.open(2, gang(agent(0, **LONG)))
        played.wait_for(2, ev.Delta, 3)
        played.engine.add_agents(2, [agent(1)])
        played.wait(2, lambda s: any(isinstance(e, ev.Finished) and e.agent_id == 1 for e in s))
        assert played.tokens(2)[1] == at_once[1]


def test_seeds_and_agents_differ_and_repeat(model: LoadedModel) -> None:
    with table(model) as played:
        first = played.play(1, gang(agent(0), agent(1), agent(2, seed=12)))
        assert len({tuple(tokens) for tokens in first.values()}) == 3
        assert played.play(2, gang(agent(0), agent(1), agent(2, seed=12))) == first


# -- invariant 3: resume ------------------------------------------------------------------------


def segments(played: Table, key: int, count: int) -> tuple[Any, ...]:
    """What agent 0 of a gang did up to its ``count``-th token, as a resume state says it."""
    made: list[Any] = []
    taken = 0
    for event in played.said[key]:
        if isinstance(event, ev.Delta):
            if taken == count:
                break
            taken += 1
            if made and isinstance(made[-1], SampledTokens):
                made[-1] = SampledTokens((*made[-1].token_ids, event.token_id))
            else:
                made.append(SampledTokens((event.token_id,)))
        elif isinstance(event, ev.Injected):
            made.append(InjectedPositions(RESULT))
    return tuple(made)


@pytest.mark.parametrize(("seed", "calls"), [(21, 2), (3, 0)])
def test_resumed_at_every_token_it_goes_on_with_the_same_tokens(
    model: LoadedModel, seed: int, calls: int
) -> None:
    start = agent(0, seed=seed, opening=(Position(70),))
    with table(model, max_waiting_gangs=99) as played:
        whole = played.play(1, gang(start))[0]
        assert sum(isinstance(e, ev.ToolCall) for e in played.said[1]) == calls
        (end,) = (e for e in played.said[1] if isinstance(e, ev.Finished))
        for k in range(len(whole) + 1):
            resumed = replace(start, attempt=2, replay=segments(played, 1, k))
            tokens = played.play(10 + k, gang(resumed, agent(5)))
            assert tokens.get(0, []) == whole[k:], f"resumed after {k} tokens"
            offsets = [
                e.token_offset for e in played.said[10 + k]
                if isinstance(e, ev.Delta) and e.agent_id == 0
            ]  # fmt: skip
            assert offsets == list(range(k, len(whole)))
            (again,) = (
                e for e in played.said[10 + k] if isinstance(e, ev.Finished) and e.agent_id == 0
            )
            assert (again.answer, again.num_sampled, again.finish) == (
                end.answer, end.num_sampled, end.finish
            )  # fmt: skip


# -- invariants 6 and 9: kills and grants ---------------------------------------------------------


@pytest.mark.parametrize("granted", [1, 4])
def test_grants_are_never_exceeded(model: LoadedModel, granted: int) -> None:
    limits = params(max_tokens=9, ignore_eos=True)
    starts = [agent(i, params=limits, granted=granted) for i in range(3)]
    with table(model) as played:
        played.engine.open(1, gang(*starts))
        for total in (*range(granted, 9, 2), 9):
            played.engine.grant(1, dict.fromkeys(range(3), total))
            if total < 9:
                played.wait(
                    1,
                    lambda s, n=total: (
                        sum(isinstance(e, ev.AwaitingGrant) and e.num_sampled == n for e in s) == 3
                    ),
                )
                played.settle()
                assert {len(t) for t in played.tokens(1).values()} == {total}
        played.engine.grant(1, {0: 2, 7: 5})  # never lowers; unknown agents are left alone
        ended = played.wait_for(1, ev.Finished, 3)
        assert {(e.finish, e.num_sampled) for e in ended} == {(ev.Finish.LENGTH, 9)}


def test_a_kill_is_acknowledged_and_nothing_follows(model: LoadedModel) -> None:
    with table(model) as played:
        played.engine.open(1, gang(*(agent(i, **LONG) for i in range(4))))
        played.wait_for(1, ev.Delta, 12)
        played.engine.kill(1, [2], "DECIDED")
        (end,) = played.wait_for(1, ev.Finished)
        assert (end.agent_id, end.finish, end.kill_reason) == (2, ev.Finish.CANCELLED, "DECIDED")
        played.wait_for(1, ev.Delta, 40)
        assert len(played.tokens(1)[2]) == end.num_sampled
        said = played.said[1]
        after = said[said.index(end) + 1 :]
        assert not [e for e in after if getattr(e, "agent_id", None) == 2]
        played.engine.kill(1, [], "DECIDED")
        assert len(played.wait_for(1, ev.Finished, 4)) == 4
        played.engine.kill(1, [], "DECIDED")
        played.engine.close(1)
        (done,) = played.wait_for(1, ev.GangDone)
        assert done.num_sampled == sum(map(len, played.tokens(1).values()))
        assert len(played.wait_for(1, ev.Finished)) == 4


# -- waiting gangs --------------------------------------------------------------------------------


@contextmanager
def crowded(model: LoadedModel, *, waiting: GangStart) -> Iterator[Table]:
    """Gang 1 takes all the room, gang 2 waits."""
    with table(model, max_sequences=3) as played:
        played.engine.open(1, gang(*(agent(i, **LONG) for i in range(3))))
        played.wait_for(1, ev.Admitted)
        played.engine.open(2, waiting)
        played.settle()
        assert not played.said[2]
        yield played


def let_in(played: Table) -> None:
    played.engine.kill(1, [], "DECIDED")
    played.wait_for(2, ev.Admitted)


def test_a_waiting_gang_is_killed_and_closed_where_it_waits(model: LoadedModel) -> None:
    with crowded(model, waiting=gang(agent(0), agent(1))) as played:
        played.engine.kill(2, [1], "DECIDED")
        (end,) = played.wait_for(2, ev.Finished)
        assert (end.agent_id, end.kill_reason, end.num_sampled) == (1, "DECIDED", 0)
        played.engine.abort(2, "CANCELLED")
        (done,) = played.wait_for(2, ev.GangDone)
        assert (done.num_prompt, done.num_sampled) == (0, 0)
        assert not any(isinstance(e, ev.Admitted) for e in played.said[2])


def test_a_gang_whose_agents_were_all_killed_does_not_hold_up_the_next(model: LoadedModel) -> None:
    with crowded(model, waiting=gang(agent(0), agent(1))) as played:
        played.engine.open(3, gang(agent(0)))
        played.engine.kill(2, [], "DECIDED")
        played.engine.kill(1, [0], "DECIDED")
        played.wait_for(3, ev.Finished)


def test_commands_reach_agents_of_a_waiting_gang(model: LoadedModel) -> None:
    paused = agent(0, attempt=2, pending_call_id="a0.1.c1", params=params(max_tokens=3))
    short = agent(1, granted=1, params=params(max_tokens=3, ignore_eos=True, logit_bias=()))
    with crowded(model, waiting=gang(paused, short)) as played:
        played.engine.inject(2, 0, "a0.1.c1", RESULT)
        played.engine.grant(2, {1: 3})
        played.engine.add_agents(2, [agent(4, params=params(max_tokens=2))])
        let_in(played)
        ended = played.wait_for(2, ev.Finished, 3)
        assert {e.agent_id for e in ended} == {0, 1, 4}
        assert not any(isinstance(e, ev.AwaitingGrant) for e in played.said[2])


def test_a_waiting_gang_cannot_grow_past_what_could_ever_be_admitted(model: LoadedModel) -> None:
    with crowded(model, waiting=gang(agent(0), agent(1), agent(2))) as played:
        played.engine.add_agents(2, [agent(3)])
        (end,) = played.wait_for(2, ev.Finished)
        assert (end.agent_id, end.finish, end.kill_reason) == (3, ev.Finish.ERROR, "REJECTED")
        let_in(played)


def test_the_queue_is_bounded_and_empty_queues_still_admit(model: LoadedModel) -> None:
    with table(model, max_sequences=2, max_waiting_gangs=0) as played:
        played.engine.open(1, gang(agent(0, **LONG), agent(1, **LONG)))
        played.wait_for(1, ev.Admitted)
        played.engine.open(2, gang(agent(0)))
        (refused,) = played.wait_for(2, ev.Refused)
        assert (refused.reason, refused.retry_after_s) == ("REJECTED", 1.0)


def test_small_gangs_do_not_overtake_a_large_one(model: LoadedModel) -> None:
    large = gang(*(agent(i) for i in range(3)))
    with crowded(model, waiting=large) as played:
        played.engine.open(3, gang(agent(0)))
        played.engine.kill(1, [0], "DECIDED")
        played.wait_for(1, ev.Finished)
        played.settle()
        assert not played.said[3]
        played.engine.kill(1, [], "DECIDED")
        played.wait_for(3, ev.Admitted)
        assert any(isinstance(e, ev.Admitted) for e in played.said[2])


# -- what cannot be taken -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [
        gang(agent(0), prefix=(Position(40),) * 256),
        gang(agent(0, opening=(Position(40),) * 240)),
        gang(agent(0, replay=(SampledTokens((40,) * 25),))),
        gang(agent(0, replay=(InjectedPositions((Position(40),) * 33),))),
        gang(*(agent(i, params=params(max_tokens=1)) for i in range(17))),
        gang(*(agent(i, **LONG) for i in range(10))),
    ],
    ids=["prefix", "opening", "sampled", "injected", "agents", "memory"],
)
def test_what_can_never_run_is_refused(model: LoadedModel, start: GangStart) -> None:
    with table(model) as played:
        played.engine.open(1, start)
        (refused,) = played.wait_for(1, ev.Refused)
        assert (refused.reason, refused.retry_after_s) == ("INVALID_REQUEST", None)


def test_agents_that_cannot_be_added_end_alone(model: LoadedModel) -> None:
    with table(model, max_sequences=2) as played:
        played.engine.open(1, gang(agent(0, **LONG)))
        played.wait_for(1, ev.Delta)
        too_long = agent(2, opening=(Position(40),) * 240)
        played.engine.add_agents(1, [agent(1, **LONG), too_long, agent(3)])
        ended = played.wait_for(1, ev.Finished, 2)
        assert [(e.agent_id, e.finish, e.kill_reason) for e in ended] == [
            (2, ev.Finish.ERROR, "INVALID_REQUEST"),
            (3, ev.Finish.ERROR, "REJECTED"),
        ]
        before = len(played.tokens(1)[0])
        played.wait(1, lambda s: len(played.tokens(1)[0]) > before)
        assert not any(isinstance(e, ev.Refused) for e in played.said[1])


def test_a_later_attempt_takes_the_place_of_an_earlier_one(model: LoadedModel) -> None:
    with table(model) as played:
        played.engine.open(1, gang(agent(0, **LONG)))
        played.wait_for(1, ev.Delta)
        played.engine.add_agents(1, [agent(0, attempt=2)])
        ended = played.wait_for(1, ev.Finished, 2)
        assert [(e.attempt, e.kill_reason) for e in ended] == [(1, "SUPERSEDED"), (2, "")]


# -- stops ----------------------------------------------------------------------------------------


def test_min_tokens_holds_off_every_kind_of_stop(model: LoadedModel) -> None:
    eager = ((ID["end"], 90.0), (40, 80.0))
    starts = [
        agent(0, params=params(min_tokens=5, logit_bias=eager)),
        agent(1, params=params(min_tokens=5, logit_bias=eager[1:], stop_token_ids=(40,))),
        agent(2, params=params(logit_bias=eager)),
        agent(3, params=params(min_tokens=6, max_tokens=6, logit_bias=eager)),
    ]
    with table(model) as played:
        played.play(1, gang(*starts))
        ended = {e.agent_id: e for e in played.wait_for(1, ev.Finished, 4)}
        assert [ended[i].num_sampled for i in range(4)] == [6, 6, 1, 6]
        assert played.tokens(1)[0] == [40] * 5 + [ID["end"]]
        assert 40 not in played.tokens(1)[1][:5]
        finishes = [ended[i].finish.name for i in range(4)]
        assert finishes == ["STOP", "STOP", "STOP", "LENGTH"]


def test_ignore_eos_goes_on_to_the_limit(model: LoadedModel) -> None:
    eager = params(logit_bias=((ID["end"], 90.0),), ignore_eos=True, max_tokens=7)
    with table(model) as played:
        assert played.play(1, gang(agent(0, params=eager)))[0] == [ID["end"]] * 7


# -- invariant 11: what became of the tokens ------------------------------------------------------


def test_the_ledger_adds_up_and_is_that_of_the_engine(model: LoadedModel) -> None:
    with table(model) as played:
        played.engine.open(1, gang(*(agent(i, **LONG) for i in range(4))))
        played.wait_for(1, ev.Delta, 9)
        played.engine.kill(1, [2], "DECIDED")
        played.engine.add_agents(1, [agent(3, attempt=2, **LONG)])
        played.wait_for(1, ev.Finished, 2)
        played.engine.abort(1, "LOST")
        played.play(2, gang(*(agent(i) for i in range(3))))
        played.wait_for(1, ev.GangDone)
        played.settle()
        by_reason: dict[str, int] = defaultdict(int)
        for end in (e for said in played.said.values() for e in said if isinstance(e, ev.Finished)):
            by_reason[end.kill_reason] += end.num_sampled
        counters = played.engine.counters
        assert counters.num_tokens == played.engine.stats.num_sampled == sum(by_reason.values())
        assert counters.num_used == by_reason[""] > 0
        assert counters.num_killed == by_reason["DECIDED"] > 0
        assert counters.num_lost == by_reason["LOST"] + by_reason["SUPERSEDED"] > 0
        assert counters.had.num_steps > 0 and counters.step_s > 0


# -- failures -------------------------------------------------------------------------------------


def test_a_broken_step_ends_the_running_gangs_and_nothing_else(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with crowded(model, waiting=gang(agent(0))) as played:
        forward, broken = model.runner.forward, threading.Event()

        def break_once(*args: Any) -> Any:
            if not broken.is_set():
                broken.set()
                raise RuntimeError("the prompt was: secret")
            return forward(*args)

        with caplog.at_level(logging.ERROR):
            monkeypatch.setattr(model.runner, "forward", break_once)
            ended = played.wait_for(1, ev.Finished, 3)
            assert {(e.finish, e.kill_reason) for e in ended} == {
                (ev.Finish.ERROR, "ENGINE_FAILURE")
            }
            played.wait_for(1, ev.GangDone)
            played.wait_for(2, ev.Finished)  # it waited, and runs now
        assert "RuntimeError" in caplog.text
        assert "secret" not in caplog.text
        assert played.play(3, gang(agent(0)))


def test_a_gang_that_cannot_even_be_opened_is_told(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with table(model) as played:
        monkeypatch.setattr(Engine, "_refusal", lambda *_: 1 / 0)
        played.engine.open(1, gang(agent(0)))
        (refused,) = played.wait_for(1, ev.Refused)
        assert refused.reason == "ENGINE_FAILURE"


def test_numbers_that_run_over_end_that_agent_only(model: LoadedModel) -> None:
    with table(model) as played:
        expected = played.play(1, gang(agent(0)))[0]
        sick = Position(ID["image"], np.full(HIDDEN, np.nan, dtype=np.float32))
        played.engine.open(2, gang(agent(0, opening=(sick,)), agent(1)))
        tokens = played.play(3, gang(agent(0)))
        ended = {e.agent_id: e for e in played.wait_for(2, ev.Finished, 2)}
        assert (ended[0].finish, ended[0].kill_reason) == (ev.Finish.ERROR, "NOT_FINITE")
        assert ended[1].finish is not ev.Finish.ERROR
        assert tokens[0] == expected


def test_a_held_gang_stands_still_and_the_others_go_on(model: LoadedModel) -> None:
    with table(model) as played:
        played.engine.open(1, gang(agent(0, **LONG)))
        played.wait_for(1, ev.Delta, 5)
        played.engine.hold(1, True)
        played.settle()
        held_at = len(played.tokens(1)[0])
        played.play(2, gang(agent(0)))
        assert len(played.tokens(1)[0]) == held_at
        played.engine.hold(1, False)
        played.wait_for(1, ev.Delta, held_at + 5)
        played.engine.hold(1, True)
        played.engine.kill(1, [], "DECIDED")
        played.wait_for(1, ev.Finished)


def test_an_idle_engine_sleeps(model: LoadedModel) -> None:
    with table(model) as played:
        played.answers_calls = False
        calling = params(logit_bias=((ID["call"], 60.0), (ID["run"], 59.0)))
        played.engine.open(1, gang(agent(0, params=calling, granted=1)))
        played.wait_for(1, ev.AwaitingGrant)
        turns = []
        turn = played.engine._turn
        played.engine._turn = lambda: (turns.append(1), turn())[1]  # type: ignore[method-assign]
        time.sleep(0.05)
        assert not turns


def test_stop_ends_what_runs_and_may_come_before_start(model: LoadedModel) -> None:
    never = Table(model)
    never.engine.stop()
    made = Table(model)
    made.engine.start()
    made.engine.open(1, gang(agent(0, **LONG)))
    made.wait_for(1, ev.Delta)
    made.engine.stop()
    (end,) = made.wait_for(1, ev.Finished)
    assert (end.kill_reason, made.engine.pool.num_free) == ("SHUTDOWN", LIMITS.num_blocks)
