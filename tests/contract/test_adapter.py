"""The engine `openai` behind AgentDecoderService, over real sockets, before a scripted provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cogitate.agent_decoder.adapter.client import retry_after_s
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.server import build
from cogitate.kit import lifecycle
from cogitate.kit.config import ConfigError
from cogitate.kit.errors import EngineFailure
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

from tests.fakes.decode_stream import Caller, kinds
from tests.fakes.provider import Provider

pytestmark = pytest.mark.contract

TOOL = common.ToolSpec(name="calculator", parameters_json_schema='{"type":"object"}')
# Knobs that keep a test short; a limit under test is set beside them.
QUICK = {"openai_max_retry_count": 0, "openai_start_s": 0.0, "openai_check_s": 0.1}


class Adapter(Caller):
    """A running decoder."""

    def __init__(self, running: lifecycle.Running) -> None:
        super().__init__(running.address)
        self.service: Any = running.service
        self.runtime = self.service._runtime

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        return opening(*agents, **fields)


@asynccontextmanager
async def adapter(provider: Provider, **knobs: Any) -> AsyncIterator[Adapter]:
    config = AgentDecoderConfig(
        **{
            "engine": "openai", "model": "m", "openai_model": provider.model, "endpoint_id": "e1",
            "openai_base_url": provider.base_url, "drain_grace_s": 0.2, **QUICK, **knobs,
        }
    )  # fmt: skip
    async with lifecycle.serving(config, build, name="agent-decoder") as running:
        made = Adapter(running)
        try:
            yield made
        finally:
            await made.close()


def spec(agent_id: int = 0, **fields: Any) -> pb.AgentSpec:
    sampling = {"max_tokens": 50, "temperature": 0.9, **fields.pop("sampling", {})}
    params = common.SamplingParams(**sampling)
    return pb.AgentSpec(**{"agent_id": agent_id, "seed": 5, "sampling_params": params, **fields})


def opening(*agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
    parts = fields.pop("parts", None) or [common.Part(text="How many?")]
    return pb.OpenGang(
        **{
            "contemplation_id": "c1", "gang_id": "1", "attempt": 1, "owner_epoch": 3, "model": "m",
            "agents": agents or [spec()],
            "conversation": [common.Message(role=common.ROLE_USER, parts=parts)], **fields,
        }
    )  # fmt: skip


async def test_a_gang_of_calls_and_its_account() -> None:
    async with (
        Provider(extra_tokens=1) as provider,
        adapter(
            provider,
            openai_price_per_million_prompt_tokens_micro_usd=1_000_000,
            openai_price_per_million_tokens_micro_usd=3_000_000,
        ) as made,
    ):
        stream = await made.run(spec(0), spec(1), spec(2))
        assert kinds(stream.seen)[:2] == ["admitted", "prefilled"]
        assert kinds(stream.seen)[-1] == "gang_finished"
        ends = [r.finished for r in stream.seen if r.HasField("finished")]
        assert [e.finish_reason for e in ends] == [common.FINISH_REASON_STOP] * 3
        # Four words that were shown and one token that was only counted, each.
        assert [e.usage.sampled_token_count for e in ends] == [5] * 3
        assert [len(stream.tokens(i)) for i in range(3)] == [5] * 3
        assert {e.answer for e in ends} == {stream.text(i).strip() for i in range(3)}
        assert len({stream.text(i) for i in range(3)}) > 1, "each draws by a seed of its own"
        account = stream.seen[-1].gang_finished
        assert account.usage.sampled_token_count == 15
        assert account.usage.cached_token_count == 9
        prompt = account.usage.prompt_token_count
        assert prompt > 0 and account.cost_micro_usd == prompt + 3 * 15
        told = [r.prefilled.prompt_token_count for r in stream.seen if r.HasField("prefilled")]
        assert sum(told) + sum(e.usage.prompt_token_count for e in ends) == prompt
        assert sum(e.usage.cached_token_count for e in ends) == 9
        load = (await made.endpoint()).load
        assert (load.used_token_count, load.lost_token_count) == (15, 0)
        assert provider.most_running == 3


async def test_a_step_is_of_all_gangs_that_run() -> None:
    # Slow enough that the two are beside each other for nearly all of their words.
    async with Provider(words=40, gap_s=0.02) as provider, adapter(provider) as made:
        both = await asyncio.gather(
            made.run(spec(0), spec(1), gang_id="1"), made.run(spec(0), gang_id="2")
        )
        assert provider.most_running == 3 and len(both) == 2
        load = (await made.endpoint()).load
        # Each gang tells the time of its own steps; each is of up to three sequences.
        assert 2 * load.decode_step_count < load.decode_sequence_count
        assert load.decode_sequence_count <= 3 * load.decode_step_count


async def test_what_was_asked_is_what_is_sent() -> None:
    async with Provider(owner="llamacpp") as provider, adapter(provider) as made:
        sampling = {
            "top_p": 0.5, "top_k": 7, "stop": ["END"], "presence_penalty": 0.5, "max_tokens": 3,
            "logprobs": 2,
        }  # fmt: skip
        stream = await made.run(spec(sampling=sampling))
        (body,) = provider.streams
        assert (body["model"], body["max_tokens"], body["stop"]) == ("served", 3, ["END"])
        assert body["temperature"] == pytest.approx(0.9)
        assert (body["top_p"], body["top_k"], body["presence_penalty"]) == (0.5, 7, 0.5)
        assert body["messages"] == [{"role": "user", "content": "How many?"}]
        deltas = [d for r in stream.seen for d in r.step.deltas]
        assert all(x == -0.5 for d in deltas for x in d.logprobs)
        assert [len(t.token_ids) for d in deltas for t in d.top_logprobs] == [2] * 3
        finished = next(r.finished for r in stream.seen if r.HasField("finished"))
        assert finished.finish_reason == common.FINISH_REASON_LENGTH
        assert finished.confidence.mean_logprob == -0.5
        assert finished.confidence.group_confidence == 1.0


async def test_capabilities_are_what_the_server_showed() -> None:
    everything = {
        pb.CAPABILITY_KILL, pb.CAPABILITY_TOOLS, pb.CAPABILITY_LOGPROBS, pb.CAPABILITY_SEED,
        pb.CAPABILITY_CONTINUE, pb.CAPABILITY_FORK, pb.CAPABILITY_JSON_SCHEMA,
        pb.CAPABILITY_CONVERSATION_REFERENCE,
    }  # fmt: skip
    poor = Provider(tops=0, continues=False, seeds=False, schemas=False, takes_tools=False)
    sighted = Provider(takes_images=True)
    for provider, wanted in (
        (Provider(), everything),
        (Provider(tops=5), everything),
        (poor, {pb.CAPABILITY_KILL, pb.CAPABILITY_CONVERSATION_REFERENCE}),
        (sighted, everything | {pb.CAPABILITY_VISION}),
    ):
        async with provider, adapter(provider) as made:
            description = (await made.endpoint()).description
            assert set(description.capabilities) == wanted
            assert (description.engine, description.models) == ("adapter", ["m"])
            stream = await made.run()
            assert set(stream.seen[0].admitted.capabilities) == wanted
            assert stream.text(0).strip()
            logprobs = [x for r in stream.seen for d in r.step.deltas for x in d.logprobs]
            assert bool(logprobs) == (pb.CAPABILITY_LOGPROBS in wanted), "none is made up"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tools": [TOOL]}, "calls of tools"),
        ({"agents": [spec(assistant_prefix="So")]}, "CAPABILITY_CONTINUE"),
        ({"agents": [spec(hint="So")]}, "CAPABILITY_CONTINUE"),
        ({"agents": [spec(sampling={"json_schema": "{}"})]}, "CAPABILITY_JSON_SCHEMA"),
        ({"agents": [spec(sampling={"regex": "a"})]}, "CAPABILITY_CONSTRAINT"),
        ({"agents": [spec(sampling={"logit_bias": {1: 1.0}})]}, "CAPABILITY_TOKEN_IDS"),
        ({"agents": [spec(sampling={"stop_token_ids": [1]})]}, "CAPABILITY_TOKEN_IDS"),
        ({"agents": [spec(sampling={"top_k": 3})]}, "top_k"),
        ({"agents": [spec(sampling={"logprobs": 1})]}, "likeliest"),
        ({"parts": [common.Part(image=common.ImagePart(digest="d"))]}, "no images"),
    ],
)
async def test_what_is_missing_is_refused_by_a_sentence(fields: dict[str, Any], words: str) -> None:
    poor = Provider(tops=0, continues=False, seeds=False, schemas=False, takes_tools=False)
    agents = fields.pop("agents", [])
    async with poor as provider, adapter(provider) as made:
        stream = await made.opened(*agents, **fields)
        (response,) = await stream.end()
        assert response.refused.reason == "INVALID_REQUEST"
        assert words in response.refused.message


FAULTS = {
    "status:400": "UPSTREAM_REFUSED",
    "status:401": "UPSTREAM_DENIED",
    "status:404": "UPSTREAM_NOT_FOUND",
    "status:429": "UPSTREAM_BUSY",
    "status:500": "UPSTREAM_FAILED",
    "error200": "UPSTREAM_ERROR",
    "error_event": "UPSTREAM_ERROR",
    "truncated": "UPSTREAM_TRUNCATED",
    "hang": "UPSTREAM_TIMEOUT",
    "hang_later": "UPSTREAM_TIMEOUT",
    "other_model": "UPSTREAM_MODEL_MISMATCH",
    "no_json": "UPSTREAM_MALFORMED",
    "no_object": "UPSTREAM_MALFORMED",
    "html": "UPSTREAM_MALFORMED",
    "two_choices": "UPSTREAM_MALFORMED",
    "nan": "UPSTREAM_MALFORMED",
    "close": "UPSTREAM_DOWN",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_bad_provider_costs_its_agent_and_no_sibling(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    provider = Provider(
        choose_fault=lambda body: fault if body["messages"][-1]["content"] == "Bad." else ""
    )
    hangs = fault.startswith("hang")
    knobs = {"openai_first_token_s": 4.0, "openai_token_gap_s": 2.0} if hangs else {}
    async with provider, adapter(provider, **knobs) as made:
        bad = spec(0, assistant_prefix="Bad.")
        stream = await made.run(bad, spec(1), spec(2))
        ends = {r.finished.agent_id: r.finished for r in stream.seen if r.HasField("finished")}
        assert ends[0].finish_reason == common.FINISH_REASON_ERROR
        assert ends[0].kill_reason == FAULTS[fault]
        assert [ends[i].finish_reason for i in (1, 2)] == [common.FINISH_REASON_STOP] * 2
        assert ends[0].usage.sampled_token_count == len(stream.tokens(0))
        assert "SECRET" not in caplog.text and "SECRET" not in str(stream.seen)


async def test_busy_servers_are_asked_again_after_the_time_they_say() -> None:
    provider = Provider(faults=["status:429", "status:500"])
    async with provider, adapter(provider, openai_max_retry_count=2) as made:
        stream = await made.run()
        assert stream.text(0).strip() and len(provider.streams) == 3
    provider = Provider(faults=["status:429"], retry_after="3600")
    async with provider, adapter(provider, openai_max_retry_count=2) as made:
        stream = await made.run()
        (end,) = (r.finished for r in stream.seen if r.HasField("finished"))
        assert end.kill_reason == "UPSTREAM_BUSY" and len(provider.streams) == 1


def test_retry_after_is_seconds_or_a_date() -> None:
    assert [retry_after_s(x) for x in ("3", "-1", "x", None, "inf")] == [3.0, 0.0, None, None, None]
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


async def test_a_kill_closes_the_call_and_nothing_follows() -> None:
    async with Provider(words=500, gap_s=0.01) as provider, adapter(provider) as made:
        stream = await made.opened(*(spec(i, sampling={"max_tokens": 500}) for i in range(2)))
        await stream.until("step", 3)
        await stream.send(kill=pb.KillAgents(agent_ids=[1], reason="DECIDED"))
        finished = await stream.until("finished")
        assert (finished.agent_id, finished.kill_reason) == (1, "DECIDED")
        assert len(stream.tokens(1)) == finished.usage.sampled_token_count
        async with asyncio.timeout(5):
            while provider.running > 1:
                await asyncio.sleep(0.01)
        await stream.until("step", kinds(stream.seen).count("step") + 3)
        assert len(stream.tokens(1)) == finished.usage.sampled_token_count
        assert provider.num_broken == 1
        stream.call.cancel()
        async with asyncio.timeout(5):
            while provider.running:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("continues", [True, False])
async def test_grants(continues: bool) -> None:
    """Asked for no more than was granted where the server continues, else not read on."""
    async with Provider(continues=continues, words=6) as provider, adapter(provider) as made:
        stream = await made.opened(spec(granted_token_count=2))
        assert (await stream.until("awaiting_grant")).sampled_token_count == 2
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 4}))
        assert (await stream.until("awaiting_grant", 2)).sampled_token_count == 4
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 50}))
        finished = await stream.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_STOP
        assert len(stream.text(0).split()) == 6
        asked = [body["max_tokens"] for body in provider.streams]
        assert asked == ([2, 2, 46] if continues else [50])


async def test_a_tool_is_called_and_its_result_comes_as_a_message() -> None:
    arguments = '{"expression": "1+1"}'
    async with Provider(calls=[("calculator", arguments)]) as provider, adapter(provider) as made:
        stream = await made.opened(spec(), tools=[TOOL])
        called = await stream.until("tool_call")
        assert (called.call.name, called.call.call_id) == ("calculator", "a0.1.c1")
        assert json.loads(called.call.arguments_json) == {"expression": "1+1"}
        state_of = pb.RequestResumeStates(agent_ids=[0])
        await stream.send(request_resume_states=state_of)
        state = (await stream.until("resume_state")).state
        assert state.pending_call_id == "a0.1.c1"
        result = common.ToolResult(call_id="a0.1.c1", parts=[common.Part(text="2")])
        inject = pb.InjectAgent(agent_id=0, call_id="a0.1.c1", tool_result=result)
        await stream.send(inject=inject)
        finished = await stream.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_STOP
        user, assistant, tool = provider.streams[-1]["messages"]
        assert user["role"] == "user"
        (made_call,) = assistant["tool_calls"]
        assert made_call["function"]["name"] == "calculator"
        assert json.loads(made_call["function"]["arguments"]) == {"expression": "1+1"}
        assert tool == {"role": "tool", "tool_call_id": made_call["id"], "content": "2"}
        # The same from its state: the call was made before, and is not made again.
        again = await made.opened(spec(attempt=2, resume_state=state), tools=[TOOL], gang_id="2")
        await again.send(inject=inject)
        await again.until("finished")
        assert provider.streams[-1]["messages"][1:] == [assistant, tool]


async def test_probabilities_are_left_out_beside_tools_where_the_server_tells_not_both() -> None:
    provider = Provider(tops_beside_tools=False)
    async with provider, adapter(provider) as made:
        plain, calling = await made.run(), await made.run(tools=[TOOL], gang_id="2")
        assert ["logprobs" in body for body in provider.streams] == [True, False]
        told = [
            [x for r in s.seen for d in r.step.deltas for x in d.logprobs] for s in (plain, calling)
        ]
        assert told[0] and not told[1]
        assert calling.text(0) == plain.text(0)
        refused = await made.opened(spec(sampling={"logprobs": 1}), tools=[TOOL], gang_id="3")
        (response,) = await refused.end()
        assert "likeliest tokens beside tools" in response.refused.message


@pytest.mark.parametrize("echoes", [False, True])
async def test_resume_steer_and_fork_go_on_behind_the_text(echoes: bool) -> None:
    async with Provider(words=6, echoes=echoes) as provider, adapter(provider) as made:
        stream = await made.opened(spec(granted_token_count=3))
        await stream.until("awaiting_grant")
        await stream.send(request_resume_states=pb.RequestResumeStates())
        state = (await stream.until("resume_state")).state
        begun = stream.text(0)
        resumed = await made.run(spec(attempt=2, resume_state=state), gang_id="2")
        assert provider.streams[-1]["messages"][-1] == {"role": "assistant", "content": begun}
        assert len(resumed.tokens(0)) == 3
        assert len(resumed.text(0).split()) == 3  # what was begun is not said again
        fork = pb.ForkAgent(agent_id=0, token_offset=2, agent=pb.AgentSpec(agent_id=7, seed=8))
        await stream.send(fork=fork)
        end = await stream.until("finished")
        assert (end.agent_id, end.usage.sampled_token_count) == (7, 6)
        kept = "".join(begun[: begun.rindex(" ")])
        assert provider.streams[-1]["messages"][-1]["content"] == kept
        await stream.send(pause=pb.PauseAgents(agent_ids=[0]))
        await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 50}))
        await stream.send(inject=pb.InjectAgent(agent_id=0, text=" or"))
        await stream.until("finished", 2)
        assert provider.streams[-1]["messages"][-1]["content"] == begun + " or"


async def test_a_state_of_another_process_is_refused() -> None:
    async with Provider() as provider, adapter(provider) as made:
        segment = pb.Segment(sampled=pb.TokenIds(token_ids=[9]))
        for digest in ("sha256:other", ""):
            state = pb.ResumeState(segments=[segment], build_digest=digest)
            stream = await made.opened(spec(resume_state=state))
            (response,) = await stream.end()
            assert response.refused.reason == "BUILD_MISMATCH"


async def test_reasoning_is_shown_and_is_no_answer() -> None:
    async with Provider(reasons="Let me see.") as provider, adapter(provider) as made:
        stream = await made.run()
        (end,) = (r.finished for r in stream.seen if r.HasField("finished"))
        deltas = [d for r in stream.seen for d in r.step.deltas]
        thought = "".join(d.text for d in deltas if not d.is_answer)
        assert thought == "Let me see. " and end.answer and "see" not in end.answer


async def test_a_server_that_goes_away_is_not_ready_until_it_is_back() -> None:
    async with Provider(words=500, gap_s=0.01) as provider, adapter(provider) as made:
        assert not (await made.endpoint()).load.draining
        running = await made.opened(spec(sampling={"max_tokens": 500}))
        await running.until("step", 2)
        port = int(provider.address.rpartition(":")[2])
        await provider.leave()
        finished = await running.until("finished")
        assert finished.finish_reason == common.FINISH_REASON_ERROR
        async with asyncio.timeout(10):
            while not (await made.endpoint()).load.draining:
                await asyncio.sleep(0.02)
        (response,) = await (await made.opened()).end()
        assert response.refused.reason == "UNAVAILABLE"
        assert response.refused.HasField("retry_delay")
        await provider.listen(port)
        async with asyncio.timeout(10):
            while (await made.endpoint()).load.draining:
                await asyncio.sleep(0.02)
        provider.words = 3
        assert (await made.run()).text(0).strip()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"openai_model": "unknown"}, "does not list"),
        ({"openai_base_url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
    ],
)
async def test_what_cannot_work_says_so_at_the_start(knobs: dict[str, Any], words: str) -> None:
    async with Provider() as provider:
        with pytest.raises(EngineFailure, match=words):
            async with adapter(provider, **knobs):
                pass


async def test_the_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "key").write_text("k-from-file\n")
    monkeypatch.setenv("SOME_KEY", "k-from-env")
    caplog.set_level("DEBUG", "cogitate")
    for knobs, key in (
        ({"openai_key_file": str(tmp_path / "key")}, "k-from-file"),
        ({"openai_key_variable": "SOME_KEY"}, "k-from-env"),
    ):
        async with Provider() as provider, adapter(provider, **knobs) as made:
            await made.run()
            assert all(f"authorization: Bearer {key}" in head for head in provider.headers)
            assert key not in str(await made.endpoint())
            assert key not in caplog.text and key not in repr(made.runtime.config)
    for wrong in ({"openai_key_file": str(tmp_path / "no")}, {"openai_key_variable": "NONE_SUCH"}):
        async with Provider() as provider:
            with pytest.raises(ConfigError, match="key"):
                async with adapter(provider, **wrong):
                    pass


async def test_calls_at_once_are_limited() -> None:
    async with (
        Provider(gap_s=0.01) as provider,
        adapter(provider, openai_max_call_count=2) as made,
    ):
        stream = await made.run(*(spec(i) for i in range(5)))
        assert provider.most_running == 2
        assert kinds(stream.seen).count("finished") == 5
