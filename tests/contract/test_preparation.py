"""The prompt of `synthesis` computed ahead, over sockets: what it changes and what it does not."""

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
    End,
    Hold,
    Mesh,
    Step,
    check_grammar,
    check_tokens,
    kinds,
    mesh,
    open_stream,
    rest,
    spec,
    until,
)
from tests.contract.test_takeover import crash, twins

pytestmark = pytest.mark.contract

SYNTHESIS = {"strategy": "synthesis", "agent_count": 4, "quorum": "all"}


class Scripts:
    """Agents 0 to 3 write drafts, each when it may; agent 4 the answer."""

    def __init__(self) -> None:
        self.holds = [Hold() for _ in range(4)]

    def __call__(self, agent: decoder_pb.AgentSpec) -> Sequence[Step]:
        number = agent.agent_id
        if agent.resume_state.pending_call_id:
            return []
        if number == 4:
            return ["The ", "answer.", End("The answer.")]
        return ["w ", self.holds[number], "x ", End(f"draft {number}")]

    def release(self, *numbers: int) -> None:
        for number in numbers:
            self.holds[number].open.set()


def ahead(decoders: Sequence[Any]) -> list[decoder_pb.OpenGang]:
    """The gangs that were opened to compute a prompt only."""
    opened = [gang for decoder in decoders for gang in decoder.opened]
    return [g for g in opened if g.agents[0].resume_state.pending_call_id]


def shown(gang: decoder_pb.OpenGang) -> str:
    return gang.conversation[-2].parts[0].text


async def until_ahead(m: Mesh, count: int) -> None:
    """Waits until so many were opened and have ended: none of their agents is left."""
    await until(lambda: len(ahead(m.decoders)) == count)
    await until(lambda: sum(d.running for d in m.decoders) == 4 - count)


async def asked(m: Mesh, scripts: Scripts) -> list[pb.ContemplationEvent]:
    """One draft after the other."""
    asking = asyncio.create_task(m.ask(**SYNTHESIS, sampling_params=common.SamplingParams(seed=7)))
    await until(lambda: sum(d.running for d in m.decoders) == 4)
    for number in range(4):
        scripts.release(number)
        if m.runtime.config.prepare and number < 3:
            await until_ahead(m, number + 1)
        await until(lambda n=number: sum(d.running for d in m.decoders) <= 3 - n)
    return await asking


def without_prompts(events: list[pb.ContemplationEvent]) -> list[Any]:
    """What was said, of prompts, places and times nothing."""
    told = []
    for event in events:
        body = getattr(event, event.WhichOneof("event") or "")
        if event.WhichOneof("event") in (
            "ballot_cast",
            "verdict_delta",
            "decided",
            "round_started",
        ):
            told.append(body)
    verdict = events[-1].verdict
    told.append((verdict.answer, verdict.key, verdict.certificate.ledger.generated_token_count))
    return told


async def test_drafts_are_computed_ahead_and_nothing_else_changes() -> None:
    scripts = [Scripts(), Scripts()]
    found = []
    for prepare, script in zip((True, False), scripts, strict=True):
        async with mesh(script, script, prepare=prepare) as m:
            events = await asked(m, script)
            assert check_grammar(events).verdict.answer == "The answer."
            gangs = ahead(m.decoders)
            assert len(gangs) == (3 if prepare else 0)
            [moved], [declared] = m.router.told("replace"), m.router.told("declare")
            assert moved.gangs[0].prefix_token_count > declared.gangs[0].prefix_token_count + 9
            final = next(g for d in m.decoders for g in d.opened if g.agents[0].agent_id == 4)
            # All of them where the first one was; the router is told to prefer it.
            [where] = [d for d in m.decoders if ahead([d])] if prepare else [None]
            assert moved.gangs[0].prefilled_endpoint_id == (where.endpoint_id if where else "")
            for earlier, later in zip(gangs, [*gangs[1:], final], strict=False):
                assert shown(later).startswith(shown(earlier) + "\n")
                assert later.conversation[-1].role == earlier.conversation[-1].role
                assert len(later.conversation) == len(earlier.conversation)
            assert {g.priority for g in gangs} == ({-1} if prepare else set())
            assert {g.tenant for g in gangs} <= {final.tenant}
            prefilled = [e.prefilled for e in events if e.HasField("prefilled")]
            assert events[-1].verdict.usage.prompt_token_count == 10 * len(prefilled)
            assert sum(d.num_sampled for d in m.decoders) == 4 * 2 + 2
            assert sum(d.running for d in m.decoders) == 0
            found.append((without_prompts(events), check_tokens(events), final.conversation))
    assert found[0] == found[1]


async def stuck(m: Mesh, scripts: Scripts) -> Any:
    """A question whose preparation never comes to its end; the call."""
    call = open_stream(m, **SYNTHESIS)
    await until(lambda: sum(d.num_sampled for d in m.decoders) == 4)
    for decoder in m.decoders:
        decoder.prefills.clear()
    scripts.release(0)
    await until(lambda: ahead(m.decoders))
    return call


async def test_a_client_that_leaves_ends_it() -> None:
    scripts = Scripts()
    async with mesh(scripts, scripts) as m:
        call = await stuck(m, scripts)
        call.cancel()
        await until(lambda: sum(d.running for d in m.decoders) == 0)


async def test_the_round_does_not_wait_for_it() -> None:
    scripts = Scripts()
    async with mesh(scripts, scripts) as m:
        call = await stuck(m, scripts)
        scripts.release(1, 2, 3)
        await until(lambda: m.router.told("replace"))
        for decoder in m.decoders:
            decoder.prefills.set()
        events = await rest(call)
        assert check_grammar(events).verdict.answer == "The answer."
        assert len(ahead(m.decoders)) == 1
        assert m.router.told("replace")[0].gangs[0].prefilled_endpoint_id == ""
        assert sum(d.running for d in m.decoders) == 0


async def test_an_endpoint_that_refuses_it_costs_nothing_else() -> None:
    scripts = Scripts()
    async with mesh(scripts) as m:
        call = open_stream(m, **SYNTHESIS)
        await until(lambda: sum(d.running for d in m.decoders) == 4)
        m.decoders[0].refusals.append(decoder_pb.GangRefused(reason="REJECTED", message="full"))
        scripts.release(0)
        await until(lambda: ahead(m.decoders))
        scripts.release(1, 2, 3)
        events = await rest(call)
        assert len(ahead(m.decoders)) == 1, "it is not tried again"
    assert check_grammar(events).verdict.answer == "The answer."
    assert not events[-1].verdict.degraded
    assert "agent_lost" not in kinds(events)


async def test_one_that_ran_when_its_owner_died_is_not_there(tmp_path: Path) -> None:
    scripts = Scripts()
    async with twins(tmp_path / "journal.db", scripts) as m:
        [decoder] = m.decoders
        request = pb.ContemplateRequest(spec=spec(**SYNTHESIS))
        call = m.gateway.Contemplate(request, timeout=20)
        events = [(await call.read()).event]
        await until(lambda: decoder.num_sampled == 4)
        decoder.prefills.clear()
        scripts.release(0)
        while not events[-1].HasField("ballot_cast"):  # shown, hence journalled
            events.append((await call.read()).event)
        await until(lambda: len(ahead(m.decoders)) == 1)
        await crash(m.owner_of(events[0].accepted.contemplation_id))
        decoder.prefills.set()
        await until(lambda: decoder.running == 3)
        scripts.release(1)
        await until(lambda: len(ahead(m.decoders)) == 2)
        scripts.release(2, 3)
        events += await rest(call)
        assert check_grammar(events).verdict.answer == "The answer."
        assert [gang.owner_epoch for gang in ahead(m.decoders)][:2] == [1, 2]
        assert shown(ahead(m.decoders)[1]).count("Answer ") == 2
        assert check_tokens(events) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2}
        assert decoder.running == 0
