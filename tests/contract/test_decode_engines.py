"""What every engine does behind Decode, and what each may leave out: the same tests for all.

A real server takes part where `COGITATE_TEST_SERVER` names one, as `http://host:port/v1 model`:
`llama-server -m model.gguf --alias model --jinja`, or `vllm serve`; the engine vllm, where
`COGITATE_TEST_VLLM` names a Python that has vLLM.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.agent_decoder.server import build
from cogitate.kit import lifecycle
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

from tests.fakes import vllm_decoder
from tests.fakes.decode_stream import Caller, kinds
from tests.fakes.provider import Provider
from tests.fakes.tiny_model import write_tiny_model

pytestmark = [pytest.mark.contract, pytest.mark.timeout(300)]  # vLLM takes its time to start

ENGINES = ("native", "openai", "server", "vllm")


class Endpoint(Caller):
    """A running decoder, whatever its engine. A `foreign` one declares what it likes."""

    def __init__(self, address: str, model: str, *, foreign: bool) -> None:
        super().__init__(address, 100.0)
        self.model, self.foreign = model, foreign
        self.capabilities: set[int] = set()

    def opening(self, *agents: pb.AgentSpec, **fields: Any) -> pb.OpenGang:
        text = [common.Part(text="Count from one to one hundred in words.")]
        return pb.OpenGang(
            contemplation_id="c", gang_id="g", attempt=1, owner_epoch=1, model=self.model,
            agents=agents, conversation=[common.Message(role=common.ROLE_USER, parts=text)],
            **fields,
        )  # fmt: skip


@asynccontextmanager
async def knobs_of(engine: str, folder: Path) -> AsyncIterator[dict[str, Any]]:
    if engine == "native":
        write_tiny_model(folder)
        yield {"model": "tiny", "models_path": folder, "threads": 1, "block_count": 256}
    elif engine == "openai":
        async with Provider(words=60, gap_s=0.001) as provider:
            url = provider.base_url
            yield {"model": "m", "openai_model": provider.model, "openai_base_url": url}
    else:
        url, _, model = os.environ.get("COGITATE_TEST_SERVER", "").partition(" ")
        if not model:
            pytest.skip("COGITATE_TEST_SERVER names no server, as `http://host:port/v1 model`")
        yield {"model": model, "openai_base_url": url, "openai_start_s": 5.0}


@pytest.fixture(scope="module")
def vllm_address() -> Iterator[str]:
    # In bfloat16 a cached prefix changes vLLM's logits enough to draw other tokens.
    with vllm_decoder.running(dtype="float32") as decoder:
        yield decoder.address


@asynccontextmanager
async def address_of(engine: str, folder: Path) -> AsyncIterator[tuple[str, str]]:
    """Where a decoder with the engine is, in this process, and what it serves."""
    async with knobs_of(engine, folder) as knobs:
        name = "native" if engine == "native" else "openai"
        config = AgentDecoderConfig(**{"engine": name, "drain_grace_s": 0.2, **knobs})
        async with lifecycle.serving(config, build, name="agent-decoder") as running:
            yield running.address, config.model


@pytest.fixture(params=ENGINES)
async def endpoint(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Endpoint]:
    async with AsyncExitStack() as stack:
        if request.param == "vllm":
            address, model = request.getfixturevalue("vllm_address"), vllm_decoder.MODEL
        else:
            address, model = await stack.enter_async_context(address_of(request.param, tmp_path))
        made = Endpoint(address, model, foreign=request.param == "server")
        stack.push_async_callback(made.close)
        made.capabilities = set((await made.endpoint()).description.capabilities)
        yield made


def spec(agent_id: int = 0, max_tokens: int = 24, **fields: Any) -> pb.AgentSpec:
    params = common.SamplingParams(max_tokens=max_tokens, temperature=0.8)
    return pb.AgentSpec(agent_id=agent_id, seed=3, sampling_params=params, **fields)


async def test_events_come_in_order_and_the_account_adds_up(endpoint: Endpoint) -> None:
    before = (await endpoint.endpoint()).load
    stream = await endpoint.run(*(spec(i) for i in range(3)))
    seen = kinds(stream.seen)
    assert seen[:2] == ["admitted", "prefilled"] and seen[-1] == "gang_finished"
    assert set(stream.seen[0].admitted.capabilities) == endpoint.capabilities
    ends = [r.finished for r in stream.seen if r.HasField("finished")]
    assert sorted(e.agent_id for e in ends) == [0, 1, 2]
    for end in ends:
        assert end.finish_reason in (common.FINISH_REASON_STOP, common.FINISH_REASON_LENGTH)
        assert end.usage.sampled_token_count == len(stream.tokens(end.agent_id)) <= 24
    total = sum(end.usage.sampled_token_count for end in ends)
    account = stream.seen[-1].gang_finished.usage
    assert account.sampled_token_count == total > 0 and account.prompt_token_count > 0
    after = (await endpoint.endpoint()).load
    assert after.used_token_count - before.used_token_count == total
    # Others of this module may have run before, on the same process.
    assert after.killed_token_count == before.killed_token_count
    assert after.lost_token_count == before.lost_token_count


async def test_log_probabilities_are_told_or_not_declared(endpoint: Endpoint) -> None:
    stream = await endpoint.run(spec())
    values = [x for r in stream.seen for d in r.step.deltas for x in d.logprobs]
    (end,) = (r.finished for r in stream.seen if r.HasField("finished"))
    if pb.CAPABILITY_LOGPROBS in endpoint.capabilities:
        assert values and max(values) <= 0 and end.confidence.mean_logprob < 0
    else:
        assert not values and end.confidence.mean_logprob == 0


async def test_a_kill_is_acknowledged_and_nothing_follows(endpoint: Endpoint) -> None:
    stream = await endpoint.opened(spec(0, 60), spec(1, 60))
    await stream.until("step", 1)
    await stream.send(kill=pb.KillAgents(agent_ids=[1], reason="DECIDED"))
    await stream.send(close=pb.CloseGang())
    seen = await stream.end()
    ends = {r.finished.agent_id: r.finished for r in seen if r.HasField("finished")}
    assert set(ends) == {0, 1}
    for agent_id, end in ends.items():
        assert end.usage.sampled_token_count == len(stream.tokens(agent_id))
    at = next(i for i, r in enumerate(seen) if r.HasField("finished") and r.finished.agent_id == 1)
    later = [d.agent_id for r in seen[at + 1 :] for d in r.step.deltas]
    assert 1 not in later


async def test_a_grant_is_never_passed(endpoint: Endpoint) -> None:
    stream = await endpoint.opened(spec(0, 12, granted_token_count=3))
    while True:
        response = await stream.read()
        if response.HasField("finished"):
            return  # it had no more to say
        if response.HasField("awaiting_grant"):
            break
    assert len(stream.tokens(0)) == 3
    await stream.send(grant=pb.GrantTokens(granted_token_counts={0: 5}))
    await stream.send(close=pb.CloseGang())
    end = next(r.finished for r in await stream.end() if r.HasField("finished"))
    assert end.usage.sampled_token_count == len(stream.tokens(0)) <= 5


async def test_a_begun_turn_is_continued_or_refused(endpoint: Endpoint) -> None:
    stream = await endpoint.run(spec(assistant_prefix="One, two,"))
    if pb.CAPABILITY_CONTINUE in endpoint.capabilities:
        assert kinds(stream.seen)[0] == "admitted"
    else:
        assert "CAPABILITY_CONTINUE" in stream.seen[0].refused.message


async def test_one_seed_draws_the_same_again(endpoint: Endpoint) -> None:
    if endpoint.foreign and pb.CAPABILITY_SEED not in endpoint.capabilities:
        pytest.skip("this server does not keep to a seed, and says so")
    assert pb.CAPABILITY_SEED in endpoint.capabilities
    texts = [(await endpoint.run(spec())).text(0) for _ in range(2)]
    assert texts[0] == texts[1]


async def test_a_stream_that_is_left_leaves_nothing_behind(endpoint: Endpoint) -> None:
    stream = await endpoint.opened(spec(0, 60), spec(1, 60))
    await stream.until("prefilled")
    stream.call.cancel()
    for _ in range(1000):
        load = (await endpoint.endpoint()).load
        if not (load.running_sequence_count or load.running_gang_count):
            return
    raise AssertionError("agents of a stream that is gone go on")


async def test_tokens_of_the_model_are_taken_or_refused(endpoint: Endpoint) -> None:
    params = common.SamplingParams(max_tokens=3, logit_bias={1: 1.0})
    stream = await endpoint.run(pb.AgentSpec(agent_id=0, sampling_params=params))
    if pb.CAPABILITY_TOKEN_IDS in endpoint.capabilities:
        assert kinds(stream.seen)[-1] == "gang_finished"
    else:
        assert "CAPABILITY_TOKEN_IDS" in stream.seen[0].refused.message
