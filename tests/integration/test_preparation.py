"""The prompt of `synthesis` computed ahead on a real engine: it is found, and changes no token."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

from tests.contract.test_agent_decoder import decoder
from tests.contract.test_aggregator import aggregator, check_grammar, spec
from tests.fakes.chat_model import write_tokenizer_files
from tests.fakes.decoder import End, FakeDecoder, Hold
from tests.fakes.gguf_files import config_of, random_weights, write_checkpoint
from tests.fakes.router import FakeRouter
from tests.fakes.tools import FakeTools

pytestmark = pytest.mark.integration

# Of the real engine's agents, which write as many.
TOKENS = 300


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    config = config_of("llama", max_position_embeddings=4096)
    write_tokenizer_files(write_checkpoint(root / "chat", config, random_weights(config)))
    return root


async def contemplate(models: Path, *, prepare: bool) -> tuple[list[pb.ContemplationEvent], int]:
    """Agents 0 and 2 write on the real engine, 1 and 3 end when those are done with.

    Returns the events, and the blocks that are in use at the end.
    """
    hold = Hold()
    slow = FakeDecoder(lambda _: ["w ", hold, End("a cat")], endpoint_id="slow")
    sampling = common.SamplingParams(
        seed=3, max_tokens=TOKENS, min_tokens=TOKENS, temperature=1.0, logit_bias={2: -100.0}
    )
    asked = spec(
        strategy="synthesis", agent_count=4, quorum="all", model="chat", sampling_params=sampling,
        allowed_tools=["none"],
    )  # fmt: skip
    async with (
        decoder(models, model="chat", block_size_count=16, endpoint_id="real") as engine,
        slow,
        FakeRouter({"real": engine.address, "slow": slow.address}) as router,
        FakeTools() as tools,
        aggregator(router, tools, prepare=prepare) as (stub, _),
    ):
        call = stub.Contemplate(pb.ContemplateRequest(spec=asked), timeout=60)
        events: list[pb.ContemplationEvent] = []
        async for response in call:
            events.append(response.event)
            # Both drafts are there, and one after the other was computed ahead.
            ballots = sum(e.HasField("ballot_cast") for e in events)
            if ballots == 2 and len(ahead(events)) == (2 if prepare else 0):
                hold.open.set()
        pool: Any = engine.runtime.engine.pool
        async with asyncio.timeout(5):
            while engine.runtime._streams:
                await asyncio.sleep(0.01)
        pool.check_integrity()
        assert {replaced.gangs[0].prefilled_endpoint_id for replaced in router.told("replace")} == {
            "real" if prepare else ""
        }
        return events, pool.num_blocks - pool.num_free


def ahead(events: list[pb.ContemplationEvent]) -> list[pb.Prefilled]:
    """Prompts that were computed ahead."""
    prompts = [e.prefilled for e in events if e.HasField("prefilled")]
    return [p for p in prompts if p.gang_id.startswith("prepare")]


def final(events: list[pb.ContemplationEvent]) -> pb.Prefilled:
    return [e.prefilled for e in events if e.HasField("prefilled")][-1]


def written(events: list[pb.ContemplationEvent]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        for delta in event.deltas.deltas:
            texts[delta.agent_id] = texts.get(delta.agent_id, "") + delta.text
    return texts


async def test_the_synthesizers_prompt_is_mostly_cached_and_its_tokens_are_the_same(
    models: Path,
) -> None:
    with_it, used = await contemplate(models, prepare=True)
    without, _ = await contemplate(models, prepare=False)
    assert used == 0, "a preparation holds no memory"
    assert not ahead(without)
    found, plain = final(with_it), final(without)
    assert found.prompt_token_count == plain.prompt_token_count
    assert found.cached_token_count > 0.7 * found.prompt_token_count
    assert plain.cached_token_count < 0.2 * plain.prompt_token_count
    assert written(with_it) == written(without)
    one, other = check_grammar(with_it).verdict, check_grammar(without).verdict
    assert one.answer == other.answer and len(written(with_it)[4]) > TOKENS / 4
    assert one.certificate.ledger.generated_token_count == 3 * TOKENS + 2
    assert one.certificate.ballots == other.certificate.ballots
    # What the prompts took beside what was cached is what engines computed.
    prompts = [e.prefilled for e in with_it if e.HasField("prefilled")]
    assert one.usage.prompt_token_count == sum(p.prompt_token_count for p in prompts)
    assert one.usage.cached_token_count == sum(p.cached_token_count for p in prompts)
