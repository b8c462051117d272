"""`cogitate ask --server`: a gang on a server that is there already, by one command."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.fakes.provider import Provider
from tests.integration.mesh import cogitate

pytestmark = pytest.mark.integration


async def test_a_server_answers_with_many_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = Provider(model="/models/Word-1B.gguf", owner="llamacpp", echoes=True, words=3)
    provider.tops_beside_tools = False
    price = "COGITATE_AGENT_DECODER_OPENAI_PRICE_PER_MILLION_PROMPT_TOKENS_MICRO_USD"
    monkeypatch.setenv(price, "2000000")
    async with provider:
        asked = await asyncio.to_thread(
            cogitate, tmp_path, "ask", "--server", f"http://{provider.address}", "--agents", "3",
            "--quorum", "all", "--json", "--seed", "4", "How many?",
        )  # fmt: skip
    assert asked.returncode == 0, asked.stdout + asked.stderr
    verdict = json.loads(asked.stdout.splitlines()[-1])
    certificate = verdict["certificate"]
    assert certificate["model"] == "Word-1B"
    assert {placed["endpoint_id"] for placed in certificate["placements"]} == {"server-1"}
    assert len({ballot["answer"] for ballot in certificate["ballots"]}) == 3  # seeds differ
    assert len(provider.streams) == 3
    # What the server says its prompts were, and what they cost by the price that is set.
    prompts = sum(len(json.dumps(body["messages"])) // 4 for body in provider.streams)
    assert verdict["usage"]["prompt_tokens"] == prompts
    assert certificate["ledger"]["cost_usd"] == pytest.approx(prompts * 2e-6)
    assert not list(tmp_path.glob("private-*"))


async def test_why_a_server_cannot_answer_is_said(tmp_path: Path) -> None:
    async with Provider(
        choose_fault=lambda body: "status:400" * bool(body.get("seed"))
    ) as provider:
        asked = await asyncio.to_thread(
            cogitate, tmp_path, "ask", "--server", provider.base_url, "--agents", "2", "How many?"
        )
    assert asked.returncode == 1
    assert "the engine stopped the agent (UPSTREAM_REFUSED)" in " ".join(asked.stderr.split())
