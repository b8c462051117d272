"""What the engine vllm does of its own: one prefill a gang, resume token for token, its load.

Run where `COGITATE_TEST_VLLM` names a Python that has vLLM, on SmolLM2 from the model store.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common
from safetensors import safe_open
from tokenizers import Tokenizer

from tests.fakes import vllm_decoder
from tests.fakes.decode_stream import Caller, Stream, kinds

pytestmark = [pytest.mark.contract, pytest.mark.timeout(300)]

COUNT = "Count from one to one hundred in words."
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}


class Endpoint(Caller):
    """The decoder; every gang of its own tenant, so that none finds another's prefix."""

    gangs = 0

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        Endpoint.gangs += 1
        text = fields.pop("text", COUNT)
        fields.setdefault("tenant", secrets.token_hex(4))
        said = common.Message(role=common.ROLE_USER, parts=[common.Part(text=text)])
        return pb.OpenGang(
            contemplation_id=f"c{Endpoint.gangs}", gang_id="g", attempt=1, owner_epoch=1,
            model=vllm_decoder.MODEL, agents=agents, conversation=[said], **fields,
        )  # fmt: skip


@pytest.fixture(scope="module")
def decoder() -> Iterator[vllm_decoder.Decoder]:
    with vllm_decoder.running(enable_prompt_embeds=True, dtype="float32") as running:
        yield running


@pytest.fixture
async def endpoint(decoder: vllm_decoder.Decoder) -> AsyncIterator[Endpoint]:
    made = Endpoint(decoder.address, 120.0)
    try:
        yield made
    finally:
        await made.close()


def spec(agent_id: int = 0, max_tokens: int = 24, seed: int = 3, **fields: Any) -> pb.AgentSpec:
    how = fields.pop("params", {})
    how = {"temperature": 0.8, "ignore_eos": not how.get("json_schema"), **how}
    params = common.SamplingParams(max_tokens=max_tokens, **how)
    return pb.AgentSpec(agent_id=agent_id, seed=seed, sampling_params=params, **fields)


def account(stream: Stream) -> Any:
    return stream.seen[-1].gang_finished.usage


async def test_a_gang_computes_its_prompt_once_but_for_the_last_block(endpoint: Endpoint) -> None:
    about = await endpoint.endpoint()
    size, before = about.description.block_size_count, about.load
    text = " ".join(f"Card {i} shows a {i * 7 % 90}." for i in range(250))
    stream = await endpoint.run(*(spec(i, 4) for i in range(8)), text=text)
    prefix = stream.seen[1].prefilled.prompt_token_count
    again = prefix - (prefix - 1) // size * size  # what no block of vLLM's holds for another
    load = (await endpoint.endpoint()).load
    computed = load.computed_prompt_token_count - before.computed_prompt_token_count
    cached = load.cached_prompt_token_count - before.cached_prompt_token_count
    assert computed == prefix + 7 * again
    assert cached == 7 * (prefix - again)
    assert prefix / computed >= 0.95
    assert account(stream).prompt_token_count - account(stream).cached_token_count == computed


async def test_tenants_do_not_find_each_others_prefixes(endpoint: Endpoint) -> None:
    text = COUNT * 40
    one, two = secrets.token_hex(4), secrets.token_hex(4)
    for tenant, found in ((one, False), (one, True), (two, False)):
        stream = await endpoint.run(spec(0, 2), text=text, tenant=tenant)
        assert bool(account(stream).cached_token_count) is found, tenant


async def test_an_agent_is_resumed_token_for_token(endpoint: Endpoint) -> None:
    whole = await endpoint.run(spec(5))
    tokens, digest = whole.tokens(5), whole.seen[0].admitted.build_digest
    assert len(tokens) == 24
    for at in (1, 9, 23):
        sampled = pb.Segment(sampled=pb.TokenIds(token_ids=tokens[:at]))
        state = pb.ResumeState(segments=[sampled], sampled_token_count=at, build_digest=digest)
        rest = await endpoint.run(spec(5, resume_state=state, attempt=2))
        assert tokens[:at] + rest.tokens(5) == tokens


async def test_penalties_look_at_what_came_before(endpoint: Endpoint) -> None:
    how = {"frequency_penalty": 0.7, "repetition_penalty": 1.2, "top_p": 0.9}
    whole = (await endpoint.run(spec(5, params=how))).tokens(5)
    assert len(whole) == 24
    sampled = pb.Segment(sampled=pb.TokenIds(token_ids=whole[:11]))
    state = pb.ResumeState(segments=[sampled], sampled_token_count=11)
    rest = (await endpoint.run(spec(5, params=how, resume_state=state, attempt=2))).tokens(5)
    assert whole[:11] + rest == whole


async def test_a_paused_agent_goes_on_with_the_tokens_it_would_have_drawn(
    endpoint: Endpoint,
) -> None:
    whole = (await endpoint.run(spec(0, 48))).tokens(0)
    stream = await endpoint.opened(spec(0, 48))
    await stream.until("step", 2)
    await stream.send(pause=pb.PauseAgents(agent_ids=[0]))
    await stream.send(request_resume_states=pb.RequestResumeStates(agent_ids=[0]))
    state = (await stream.until("resume_state")).state
    at = state.sampled_token_count
    assert 0 < at < 48 and list(state.segments[0].sampled.token_ids) == whole[:at]
    assert stream.tokens(0) == whole[:at]
    await stream.send(inject=pb.InjectAgent(agent_id=0, text=""))
    await stream.send(close=pb.CloseGang())
    await stream.end()
    assert stream.tokens(0) == whole


async def test_a_copy_draws_as_an_agent_resumed_there(endpoint: Endpoint) -> None:
    stream = await endpoint.opened(spec(0, 40))
    while len(stream.tokens(0)) < 6:
        await stream.read()
    await stream.send(fork=pb.ForkAgent(agent_id=0, token_offset=6, agent=spec(1, 20)))
    await stream.send(close=pb.CloseGang())
    await stream.end()
    head = stream.tokens(0)[:6]
    sampled = pb.Segment(sampled=pb.TokenIds(token_ids=head))
    state = pb.ResumeState(segments=[sampled], sampled_token_count=6)
    alone = await endpoint.run(spec(1, 20, resume_state=state))
    assert stream.tokens(1) == alone.tokens(1) and len(stream.tokens(1)) == 14


async def test_a_grant_is_used_up_and_raised_without_a_break(endpoint: Endpoint) -> None:
    whole = (await endpoint.run(spec(0, 12))).tokens(0)
    stream = await endpoint.opened(spec(0, 12, granted_token_count=5))
    await stream.until("awaiting_grant")
    assert stream.tokens(0) == whole[:5]
    await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 12}))
    await stream.send(close=pb.CloseGang())
    await stream.end()
    assert stream.tokens(0) == whole


async def test_a_kill_frees_what_vllm_held(endpoint: Endpoint) -> None:
    before = (await endpoint.endpoint()).load
    stream = await endpoint.opened(*(spec(i, 400) for i in range(4)))
    await stream.until("step", 3)
    running = (await endpoint.endpoint()).load
    assert running.running_sequence_count + running.waiting_sequence_count == 4
    assert 0 < running.kv_cache_utilization < 1
    assert running.free_block_count < before.free_block_count
    await stream.send(kill=pb.KillAgents(agent_ids=[1, 2, 3], reason="DECIDED"))
    await stream.until("finished", 3)
    told = {i: len(stream.tokens(i)) for i in (1, 2, 3)}
    await stream.until("step", len([r for r in stream.seen if r.HasField("step")]) + 3)
    assert {i: len(stream.tokens(i)) for i in (1, 2, 3)} == told
    assert (await endpoint.endpoint()).load.running_sequence_count == 1
    await stream.send(kill=pb.KillAgents(agent_ids=[], reason="DECIDED"))
    await stream.send(close=pb.CloseGang())
    ends = [r.finished for r in await stream.end() if r.HasField("finished")]
    spent = sum(end.usage.sampled_token_count for end in ends)
    assert {end.kill_reason for end in ends} == {"DECIDED"}
    load = (await endpoint.endpoint()).load
    assert load.killed_token_count - before.killed_token_count == spent > 0
    assert (load.running_sequence_count, load.kv_cache_utilization) == (0, 0)
    assert load.free_block_count == before.free_block_count


async def test_an_answer_follows_its_schema(endpoint: Endpoint) -> None:
    how = {"json_schema": json.dumps(SCHEMA)}
    agents = [spec(i, 60, params=how) for i in range(3)]
    stream = await endpoint.run(*agents, text="Where is the Eiffel Tower?")
    for end in (r.finished for r in stream.seen if r.HasField("finished")):
        answer = json.loads(end.answer)
        assert set(answer) == {"city", "sure"} and len(answer["city"]) <= 20
        assert end.finish_reason == common.FINISH_REASON_STOP
    wrong = await endpoint.run(spec(0, 8, params={"json_schema": '{"type": 7}'}))
    (end,) = (r.finished for r in wrong.seen if r.HasField("finished"))
    assert (end.finish_reason, end.kill_reason) == (
        common.FINISH_REASON_ERROR, "INVALID_REQUEST",
    )  # fmt: skip


async def test_an_embedding_stands_for_the_token_it_is_of(endpoint: Endpoint) -> None:
    ids = (
        Tokenizer.from_file(str(vllm_decoder.MODELS / vllm_decoder.MODEL / "tokenizer.json"))
        .encode(" Paris is large.")
        .ids
    )
    with safe_open(
        vllm_decoder.MODELS / vllm_decoder.MODEL / "model.safetensors", framework="pt"
    ) as file:
        table = file.get_tensor("model.embed_tokens.weight").float().numpy()
    rows = np.ascontiguousarray(table[ids], np.float32)
    tensor = common.Tensor(dtype=common.D_TYPE_FLOAT32, shape=rows.shape, data=rows.tobytes())
    told = []
    for content in ({"tokens": pb.TokenIds(token_ids=ids)}, {"embedding": tensor}):
        stream = await endpoint.opened(spec(0, 16, params={"temperature": 0.0}))
        await stream.send(pause=pb.PauseAgents(agent_ids=[0]))
        await stream.send(inject=pb.InjectAgent(agent_id=0, **content))
        await stream.send(close=pb.CloseGang())
        await stream.end()
        told.append(stream.tokens(0))
    assert told[0] == told[1] and len(told[0]) == 16


async def test_stop_strings_end_an_agent_and_free_its_request(endpoint: Endpoint) -> None:
    said = (await endpoint.run(spec(0, 30, params={"temperature": 0.0}))).text(0)
    stop = said[20:26]
    stream = await endpoint.run(spec(0, 30, params={"stop": [stop], "temperature": 0.0}))
    (end,) = (r.finished for r in stream.seen if r.HasField("finished"))
    assert end.finish_reason == common.FINISH_REASON_STOP
    assert stream.text(0) == said[: said.index(stop)]
    assert (await endpoint.endpoint()).load.running_sequence_count == 0


async def test_agents_of_a_dead_vllm_end_and_so_does_the_process() -> None:
    with vllm_decoder.running() as decoder:
        endpoint = Endpoint(decoder.address)
        stream = await endpoint.opened(spec(0, 2000))
        await stream.until("step")
        for pid in decoder.workers():
            os.kill(pid, signal.SIGKILL)
        await stream.send(close=pb.CloseGang())
        end = await stream.until("finished")
        assert (end.finish_reason, end.kill_reason) == (
            common.FINISH_REASON_ERROR, "ENGINE_FAILURE",
        )  # fmt: skip
        assert kinds(await stream.end())[-1] == "gang_finished"
        await asyncio.to_thread(decoder.process.wait, 30)
        await endpoint.close()
