"""`cogitate mcp` with the SDK's own client: by standard input and output, and by HTTP."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests.integration.mesh import Mesh, free_base_port, running_mesh

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples"
BOARD = EXAMPLES / "board.png"
QUESTION = "What is the sum of the red cards?"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with running_mesh(tmp_path_factory.mktemp("state")) as mesh:
        yield mesh


def command(mesh: Mesh, *flags: str) -> list[str]:
    return ["-m", "cogitate.cli", "mcp", "--address", mesh.address, *flags]


@asynccontextmanager
async def by_pipe(mesh: Mesh, *flags: str) -> AsyncIterator[Client]:
    told = StdioServerParameters(
        command=sys.executable, args=command(mesh, *flags), env=dict(os.environ)
    )
    async with Client(stdio_client(told)) as client:
        yield client


def text(result: Any) -> str:
    return str(result.content[0].text)


async def test_an_agent_asks_many(mesh: Mesh) -> None:
    seen: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(done)

    async with by_pipe(mesh, "--images", str(EXAMPLES)) as client:
        tools = {one.name: one for one in (await client.list_tools()).tools}
        assert set(tools) == {"contemplate", "list_models"}
        assert tools["contemplate"].output_schema
        uri = f"data:image/png;base64,{base64.b64encode(BOARD.read_bytes()).decode()}"
        for image in (uri, "board.png"):
            result = await client.call_tool(
                "contemplate",
                {"question": QUESTION, "images": [image], "agents": 4, "quorum": "all"},
                progress_callback=progress,
            )
            assert not result.is_error, text(result)
            answered: Any = result.structured_content
            assert answered["answer"] == "The sum is 72." and len(answered["votes"]) == 4
            assert answered["agreeing"] >= 3 and answered["tokens"] > 0 and answered["trace_id"]
        assert seen.count(4) == 2
        models: Any = (await client.call_tool("list_models", {})).structured_content
        assert models["result"] == [{"name": "mini", "vision": True}]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"question": ""}, "asks nothing"),
        ({"question": "x", "agents": 0}, "agents"),
        ({"question": "x", "model": "nobody"}, "model"),
        ({"question": "x", "quorum": "most"}, "quorum"),
        ({"question": "x", "images": ["/etc/passwd"]}, "below the folder"),
        ({"question": "x", "images": ["../README.md"]}, "below the folder"),
        ({"question": "x", "images": ["data:image/png;base64,%"]}, "base64"),
        ({"question": "x", "images": ["https://example.org/x.png"]}, "below the folder"),
        ({"question": "x", "images": ["sha256:" + "0" * 64]}, "not stored"),
    ],
)
async def test_what_cannot_be_is_an_error_the_model_can_read(
    mesh: Mesh, arguments: dict[str, Any], said: str
) -> None:
    async with by_pipe(mesh, "--images", str(EXAMPLES)) as client:
        result = await client.call_tool("contemplate", arguments)
    assert result.is_error and said in text(result)
    assert "Traceback" not in text(result)


async def test_by_http(mesh: Mesh) -> None:
    listen = f"127.0.0.1:{free_base_port()}"
    process = subprocess.Popen([sys.executable, *command(mesh, "--http", listen)])
    try:
        url = f"http://{listen}/mcp"
        async with httpx2.AsyncClient() as http:
            for _ in range(200):
                try:
                    await http.post(url, json={})
                    break
                except httpx2.ConnectError:
                    await asyncio.sleep(0.1)
            rebound = await http.post(url, json={}, headers={"host": "evil.example"})
            assert rebound.status_code == 421
        async with Client(url) as client:
            result = await client.call_tool("list_models", {})
            assert not result.is_error
    finally:
        process.terminate()
        process.wait(10)
