"""Endpoints that are slow, hang, or fail again and again, and how the aggregator goes round them.

The decoders are scripted: the same agent writes the same tokens wherever it runs, as on one build.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

from tests.contract.test_aggregator import (
    Mesh,
    check_grammar,
    check_tokens,
    every,
    first,
    kinds,
    mesh,
    open_stream,
    rest,
    saying,
    spec,
    until,
)
from tests.contract.test_takeover import crash, runtime, twins
from tests.fakes.decoder import Call, End, FakeDecoder, Hold, Step
from tests.fakes.tools import FakeTools, text

pytestmark = pytest.mark.contract

TOKENS = 30
WORDS = [f"w{i} " for i in range(TOKENS)]
# So impatient that tests are short; only the order of things is asserted, never a time.
IMPATIENT = {"pulse_interval_s": 0.02, "hedge_min_gain_s": 0.2, "stall_min_s": 0.2}
HUNG = {**IMPATIENT, "stall_max_s": 0.3, "hedge_factor": 0.0}


def lost(events: Sequence[pb.ContemplationEvent]) -> list[tuple[int, str, str, bool]]:
    told = [event.agent_lost for event in events if event.HasField("agent_lost")]
    return [(e.agent_id, e.endpoint_id, e.reason, e.resumed) for e in told]


def replacements(m: Mesh) -> list[Any]:
    return m.router.told("replace")


async def quiet(m: Mesh) -> None:
    """Until no decoder has an agent any more: losers are killed, too."""
    await until(lambda: not any(d.running for d in m.decoders))


async def test_a_straggler_goes_on_where_it_is_faster_and_its_loser_is_killed_and_booked() -> None:
    async with mesh(*[every(*WORDS, End("7"))] * 2, **IMPATIENT) as m:
        slow, fast = m.decoders
        slow.step_s = 0.15
        events = await m.ask(agent_count=4)
        await quiet(m)
    ending = check_grammar(events)
    assert check_tokens(events) == dict.fromkeys(range(4), TOKENS)
    assert {entry[1:] for entry in lost(events)} == {("d0", "SLOW", True)}
    assert all(r.avoided_endpoint_ids == ["d0"] for r in replacements(m))
    certificate = ending.verdict.certificate
    assert len(certificate.ballots) == 4
    assert not ending.verdict.degraded
    # Every token any engine sampled is in the ledger: those of both attempts of an agent, too.
    ledger = certificate.ledger
    assert ledger.used_token_count == 4 * TOKENS
    assert ledger.generated_token_count == slow.num_sampled + fast.num_sampled
    assert ledger.hedged_token_count == ledger.lost_token_count
    assert [a.reason for a in certificate.lost_attempts] == ["SLOW"] * len(lost(events))
    reasons = [c.kill.reason for c in slow.commands if c.HasField("kill")]
    assert reasons == ["HEDGED"] * len(lost(events))
    resumed = [a for a in fast.agents() if a.attempt == 2]
    assert all(a.resume_state.sampled_token_count < TOKENS for a in resumed)


async def test_a_second_attempt_that_is_slower_is_given_up_and_nobody_sees_it() -> None:
    """The straggler was only held up: it ends first, and its rival is killed."""
    hold = Hold()

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        held = hold if agent.attempt == 1 else Hold()
        slow = [*WORDS[:10], held, *WORDS[10:], End("7")]
        return slow if agent.agent_id == 0 else [*WORDS, End("7")]

    async with mesh(script, script, **IMPATIENT) as m:
        call = open_stream(m, agent_count=4)
        await first(call)
        await until(lambda: any(a.attempt == 2 for a in m.decoders[1].agents()))
        hold.open.set()
        events = await rest(call)
        await quiet(m)
        told = [c.kill.reason for c in m.decoders[1].commands if c.HasField("kill")]
    certificate = events[-1].verdict.certificate
    assert lost(events) == []
    assert [a.reason for a in certificate.lost_attempts] == ["HEDGED"]
    assert told == ["HEDGED"]
    assert check_tokens(events) == dict.fromkeys(range(4), TOKENS)


async def test_a_gang_that_hangs_goes_on_elsewhere_and_its_zombie_is_not_heard() -> None:
    hold = Hold()

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        rest_ = [*WORDS[10:], End("7")]
        return [*WORDS[:10], hold, *rest_] if agent.attempt == 1 else [*WORDS[:10], *rest_]

    async with mesh(script, every(*WORDS, End("7")), **HUNG) as m:
        zombie = m.decoders[0]
        zombie.deaf = True  # it hangs: commands are not obeyed either
        call = open_stream(m, agent_count=2)
        await first(call)
        await until(lambda: any(a.attempt == 2 for a in m.decoders[1].agents()))
        hold.open.set()  # and now it wakes, and writes on as if nothing had been
        events = await rest(call)
        assert zombie.num_sampled >= 10
    assert kinds(events)[-1] == "verdict"
    assert check_tokens(events) == dict.fromkeys(range(2), TOKENS)


async def test_under_a_budget_a_gang_that_hangs_moves_and_is_cut_off() -> None:
    """What a race costs is not what a budget is for."""

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        return [*WORDS[:10], Hold()] if agent.attempt == 1 else [*WORDS, End("7")]

    async with mesh(script, every(*WORDS, End("7")), **HUNG) as m:
        events = await m.ask(agent_count=2, budget=common.Budget(max_tokens=500))
        await asyncio.wait_for(m.decoders[0].ended.wait(), 5)
    assert lost(events) == [(0, "d0", "STALLED", True)]
    assert check_tokens(events) == dict.fromkeys(range(2), TOKENS)
    assert check_grammar(events).verdict.certificate.ledger.used_token_count == 2 * TOKENS


async def test_a_hang_is_waited_out_where_there_is_nowhere_to_go() -> None:
    hold = Hold()
    async with mesh(every(*WORDS[:10], hold, *WORDS[10:], End("7")), **HUNG) as m:
        call = open_stream(m, agent_count=2)
        await first(call)
        await until(lambda: replacements(m))
        hold.open.set()
        events = await rest(call)
    assert lost(events) == []
    assert kinds(events).count("placed") == 1, "the same place again is none"
    assert len(m.decoders[0].opened) == 1
    assert len(events[-1].verdict.certificate.ballots) == 2


async def test_a_paused_agent_and_a_cold_prompt_are_no_hang() -> None:
    script = every(*WORDS[:10], Call("zoom"), *WORDS[10:], End("7"))
    async with mesh(
        script, script, tools=FakeTools({"zoom": text("a crop")}, delay_s=1.0), **HUNG
    ) as m:
        for decoder in m.decoders:
            decoder.prefills.clear()
        call = open_stream(m, agent_count=2)
        await first(call)
        await until(lambda: all(d.opened for d in m.decoders))
        await asyncio.sleep(0.7)
        for decoder in m.decoders:
            decoder.prefills.set()
        events = await rest(call)
    assert replacements(m) == []
    assert "agent_lost" not in kinds(events)
    assert m.runtime._neighbours.guard.num_stalls == 0


async def test_a_wait_in_the_routers_queue_is_no_hang() -> None:
    async with mesh(saying("7"), **HUNG) as m:
        m.router.delay_s = 0.8
        events = await m.ask(agent_count=2)
    assert replacements(m) == []
    assert events[-1].verdict.key == "7"


async def test_a_gang_that_has_not_begun_leaves_an_endpoint_that_is_silent_to_others() -> None:
    """It has no pace of its own; that another gang of the endpoint hangs is what is known."""
    async with mesh(every(*WORDS[:10], Hold()), every(*WORDS, End("7")), **HUNG) as m:
        asleep = m.decoders[0]
        one = open_stream(m, agent_count=2)
        await first(one)
        await until(lambda: asleep.num_sampled == 10)
        asleep.admits.clear()
        asleep.deaf = True  # that it obeys would be a sign of life
        m.router.avoids = False  # or it would not be placed there at all
        asking = asyncio.create_task(m.ask(agent_count=2))
        await until(lambda: len(asleep.opened) == 2)
        m.router.avoids = True
        events = await asking
        one.cancel()
    assert lost(events) == [(0, "d0", "SLOW", True)]
    assert check_tokens(events) == dict.fromkeys(range(2), TOKENS)
    assert check_grammar(events).verdict.key == "7"


async def test_a_race_is_taken_over_with_all_else(tmp_path: Path) -> None:
    """Both attempts end with the owner; the heir goes on from what clients saw, and races anew."""
    hold = Hold()

    def script(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        held = hold if agent.attempt < 3 and agent.agent_id == 0 else WORDS[10]
        return [*WORDS[:10], held, *WORDS[10:], End("7")]

    async with twins(tmp_path / "journal.db", script, script, **HUNG) as m:
        question = pb.ContemplateRequest(spec=spec(agent_count=1))
        call = m.gateway.Contemplate(question, timeout=20)
        id_ = await first(call)
        await until(lambda: {a.attempt for d in m.decoders for a in d.agents()} == {1, 2})
        owner = m.owner_of(id_)
        machine = runtime(owner).runner_of(id_).machine
        await until(lambda: machine.agents[0].rival is not None)
        await crash(owner)
        events = await rest(call)
    assert kinds(events)[-1] == "verdict"
    assert {entry[2] for entry in lost(events)} == {"OWNER_LOST"}
    assert check_tokens(events) == {0: TOKENS + 1}
    certificate = events[-1].verdict.certificate
    assert [a.reason for a in certificate.lost_attempts] == ["HEDGED", "OWNER_LOST"]
    ledger = certificate.ledger
    assert ledger.generated_token_count == ledger.used_token_count + ledger.lost_token_count


# -- the retry budget --------------------------------------------------------------------------


def dying(agent: decoder_pb.AgentSpec) -> Sequence[Step]:
    return ["a", "b", End(finish="ERROR")]


async def test_without_retries_an_agent_that_is_lost_ends_and_says_why() -> None:
    none = {"retry_share": 0.0, "retry_floor_count": 0}
    async with mesh(dying, saying("7"), **none) as m:
        events = await m.ask(agent_count=4)
    assert sorted(lost(events)) == [
        (0, "", "RETRY_BUDGET_SPENT", False),
        (0, "d0", "ENGINE_FAILURE", True),
        (2, "", "RETRY_BUDGET_SPENT", False),
        (2, "d0", "ENGINE_FAILURE", True),
    ]
    verdict = check_grammar(events).verdict
    assert verdict.degraded_reasons == ["AGENTS_LOST"]
    assert len(m.decoders[1].opened) == 1
    assert replacements(m) == []


async def test_when_nobody_is_left_it_fails_with_what_to_do() -> None:
    async with mesh(dying, dying, retry_share=0.0, retry_floor_count=0) as m:
        events = await m.ask(agent_count=2)
    failed = check_grammar(events).failed
    assert (failed.reason, failed.code, failed.retryable) == ("RETRY_BUDGET_SPENT", 14, True)
    assert "raise retry_share" in failed.message


async def test_in_a_full_outage_there_are_no_more_attempts_than_allowed() -> None:
    """30 contemplations of 4 agents, and every attempt is lost: 120 attempts and 12 more."""
    knobs = {"retry_share": 0.1, "retry_floor_count": 0, "retry_window_s": 60.0}
    async with mesh(dying, dying, dying, max_agent_loss_count=100, **knobs) as m:
        ended = await asyncio.gather(*(m.ask(agent_count=4) for _ in range(30)))
        attempts = sum(len(d.agents()) for d in m.decoders)
    assert {check_grammar(events).WhichOneof("event") for events in ended} == {"failed"}
    assert 120 <= attempts <= 132
    assert m.runtime._neighbours.guard.retries.num_refused


# -- breakers ----------------------------------------------------------------------------------


async def test_an_endpoint_that_fails_again_and_again_is_left_out_then_tried_then_used() -> None:
    knobs = {"breaker_failure_count": 2, "breaker_open_s": 0.3}
    async with mesh(dying, saying("7"), **knobs) as m:
        bad: FakeDecoder = m.decoders[0]
        for _ in range(2):
            await m.ask(agent_count=2)
        opened = len(bad.opened)
        await m.ask(agent_count=2)
        assert m.router.told("declare")[-1].avoided_endpoint_ids == ["d0"]
        assert len(bad.opened) == opened
        await asyncio.sleep(0.35)
        bad.script = saying("7")  # it is well again
        await m.ask(agent_count=2)
        asked = m.router.told("declare")[-1]
        assert (asked.avoided_endpoint_ids, asked.probed_endpoint_ids) == ([], ["d0"])
        await m.ask(agent_count=2)
        asked = m.router.told("declare")[-1]
        assert (asked.avoided_endpoint_ids, asked.probed_endpoint_ids) == ([], [])
        assert m.runtime._neighbours.guard.breakers.num_open() == 0


async def test_the_last_endpoint_is_used_though_its_breaker_is_open() -> None:
    async with mesh(dying, breaker_failure_count=1, breaker_open_s=60.0) as m:
        await m.ask(agent_count=1)
        m.decoders[0].script = saying("7")
        events = await m.ask(agent_count=1)
    assert m.router.told("declare")[-1].avoided_endpoint_ids == ["d0"]
    assert events[-1].verdict.key == "7"


async def test_an_endpoint_that_is_full_is_no_failing_one() -> None:
    async with mesh(saying("7"), saying("7"), breaker_failure_count=1) as m:
        full = decoder_pb.GangRefused(reason="REJECTED", message="full")
        full.retry_delay.FromMilliseconds(10)
        m.decoders[0].refusals.append(full)
        await m.ask(agent_count=2)
        assert m.runtime._neighbours.guard.breakers.num_open() == 0
