"""Schemathesis on the OpenAPI document: every check of its own, and no finding.

A smoke by default; `make fuzz-http` runs thousands of cases.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import openai
import pytest

from tests.fakes.front import happy, mesh

EXAMPLES = int(os.environ.get("COGITATE_FUZZ_EXAMPLES", "4"))
LONG = EXAMPLES > 20
PHASES = "examples,coverage,fuzzing,stateful" if LONG else "examples,fuzzing,stateful"

pytestmark = [pytest.mark.contract, pytest.mark.timeout(1800 if LONG else 150)]


async def test_schemathesis_finds_nothing() -> None:
    async with mesh(happy, http_listen="127.0.0.1:0") as m:
        url = f"http://{m.http}"
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            made = await client.responses.create(model="mini", input="What?")
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("st")),
            "--config-file", str(Path(__file__).parents[1] / "schemathesis.toml"),
            "run", f"{url}/openapi.json", "--phases", PHASES, "--no-color",
            "--max-examples", str(EXAMPLES), "--max-response-time", "5",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "COGITATE_FUZZ_RESPONSE_ID": made.id},
        )  # fmt: skip
        assert process.stdout
        report = (await process.stdout.read()).decode()
        assert await process.wait() == 0, report
        cases = re.search(r"(\d+) generated", report)
        assert cases and int(cases[1]) >= 8 * EXAMPLES, report
        assert "Missing test data" not in report, report
        print(report[-600:])
        # Most conversations made at random end with no question and are refused; some must not be.
        assert len(m.aggregator.played) > 1 + EXAMPLES // 10
