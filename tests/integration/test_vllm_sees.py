"""Pictures through vLLM: `mini` on the engine `vllm` sees and zooms as it does on our own.

Run where `COGITATE_TEST_VLLM` names a Python that has vLLM.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cogitate.cli.measure.setting import Setting
from cogitate.client import AsyncClient
from cogitate.evals import datasets

from tests.fakes import vllm_decoder
from tests.integration.mesh import running_mesh

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ALONE = Setting(1, effort="thinking", deadline_s=60.0)  # which is greedy


async def known(client: AsyncClient, endpoint_id: str) -> None:
    """Waits until the router has heard of an endpoint."""
    async with asyncio.timeout(30):
        while endpoint_id not in {e.endpoint_id for e in (await client.fleet()).endpoints}:
            await asyncio.sleep(0.1)


async def test_pictures_through_vllm_are_seen_as_by_our_engine(tmp_path: Path) -> None:
    questions = [q for name in ("boards", "labels") for q in datasets.load(name, 4, seed=88)]
    vllm_decoder.python("mini")  # skips before a mesh is started
    with running_mesh(tmp_path, "--decoders", "1") as mesh:
        joined = {
            "router-addresses": mesh.base_port + 2, "vision-encoder-address": mesh.base_port + 3,
        }  # fmt: skip
        flags = [f"--{name}=127.0.0.1:{port}" for name, port in joined.items()]
        with vllm_decoder.running(
            *flags, "--provider=elsewhere", "--endpoint-id=vllm-1",
            served="mini", max_model_len=1024, dtype="float32",
        ):  # fmt: skip
            async with AsyncClient(mesh.address) as client:
                await known(client, "vllm-1")
                for i, asked in enumerate(questions):
                    told = {}
                    for provider in ("aurora", "elsewhere"):
                        options = ALONE.options(asked, i)
                        options["providers"] = [provider]
                        answer = await client.ask(asked.text, **options)
                        told[provider] = (answer.answer, answer.usage.sampled_tokens)
                        assert answer.usage.injected_tokens > 0  # it looked closer
                    assert told["aurora"] == told["elsewhere"]
