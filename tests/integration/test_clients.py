"""Clients of other kinds, unmodified, against a real mesh. `make clients` installs them."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.mesh import Mesh, running_mesh

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".cache" / "peers"
BOARD = ROOT / "examples" / "board.png"
BUF = Path(sys.executable).parent / "buf"
QUESTION, ANSWER = "What is the sum of the red cards?", "The sum is 72."
PARTS = [
    {"image": {"data": base64.b64encode(BOARD.read_bytes()).decode()}},
    {"text": QUESTION},
]
ASKED = {"spec": {"conversation": [{"role": "ROLE_USER", "parts": PARTS}], "agentCount": 4}}


def installed(name: str) -> Path:
    """The folder of a client, or the test is skipped."""
    if not (PEERS / name / ".installed").exists():
        pytest.skip(f"no {name}: make clients")
    return PEERS / name


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The origin of a page that is not the gateway's."""
    folder = str(PEERS / "node")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, page: str) -> Iterator[Mesh]:
    os.environ["COGITATE_GATEWAY_HTTP_ALLOWED_ORIGINS"] = page
    try:
        with running_mesh(tmp_path_factory.mktemp("state")) as mesh:
            yield mesh
    finally:
        del os.environ["COGITATE_GATEWAY_HTTP_ALLOWED_ORIGINS"]


def output(*command: str | Path, folder: Path | None = None, **environment: str) -> str:
    """What a program prints, which must succeed."""
    ran = subprocess.run(
        [str(one) for one in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_the_typescript_example(mesh: Mesh) -> None:
    """Generated from the contract, it speaks gRPC to the gateway."""
    folder = installed("node")
    bin = folder / "node_modules" / ".bin"
    output(bin / "tsc", "--noEmit", folder=folder)
    asked = ("ask.ts", QUESTION, BOARD)
    told = output(bin / "tsx", *asked, folder=folder, COGITATE_ADDRESS=mesh.address)
    assert "votes for" in told and told.rstrip().splitlines()[-1] == ANSWER


def test_openai_for_node(mesh: Mesh) -> None:
    folder = installed("node")
    told = json.loads(output("node", "openai_client.mjs", f"{mesh.http}/v1", BOARD, folder=folder))
    assert told["whole"] == told["streamed"] == ANSWER
    assert told["response"] == ANSWER
    assert told["usage"] > 0 and told["models"] == ["mini"]
    assert told["events"][0] == "response.created" and told["events"][-1] == "response.completed"
    assert "response.output_text.delta" in told["events"]
    assert told["error"] == {"kind": "NotFoundError", "status": 404, "code": "unknown_model"}


def test_litellm(mesh: Mesh) -> None:
    python = installed("litellm-client") / "bin" / "python"
    told = json.loads(
        output(
            python, ROOT / "tests" / "peers" / "litellm_client.py", f"{mesh.http}/v1", BOARD,
            LITELLM_LOCAL_MODEL_COST_MAP="True", PYTHONPATH="",
        ).splitlines()[-1]
    )  # fmt: skip
    assert told["whole"] == told["streamed"] == ANSWER
    assert told["usage"] > 0 and told["error"] == {"kind": "NotFoundError", "status": 404}


@pytest.mark.parametrize("protocol", ["grpc", "grpcweb", "connect"])
def test_buf_curl(mesh: Mesh, protocol: str, tmp_path: Path) -> None:
    """By gRPC it asks the gateway itself for the contract, by reflection."""
    (tmp_path / "asked.json").write_text(json.dumps(ASKED))
    flags: tuple[Any, ...] = ("--protocol", protocol, "--data", f"@{tmp_path}/asked.json")
    if protocol == "grpc":
        flags, base = (*flags, "--http2-prior-knowledge"), f"http://{mesh.address}"
    else:
        flags, base = (*flags, "--schema", ROOT / "protos"), mesh.http
    method = f"{base}/cogitate.v1.ContemplationService/Contemplate"
    told = output(BUF, "curl", *flags, method)
    decoder, events = json.JSONDecoder(), []
    while told := told.lstrip():
        event, end = decoder.raw_decode(told)
        events.append(event["event"])
        told = told[end:]
    assert events[-1]["verdict"]["answer"] == ANSWER
    assert "accepted" in events[0] and len({e["eventNumber"] for e in events}) == len(events)


@pytest.mark.parametrize("dialect", ["connect-json", "connect-proto", "grpc-web"])
def test_connect_web_in_chromium(mesh: Mesh, page: str, dialect: str) -> None:
    """Connect's own client in a real browser, on a page of another origin."""
    installed("node")
    api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(f"{page}/package.json")
        tab.add_script_tag(url=f"{page}/connect_web.js")
        call = "([dialect, base, image, text]) => ask(dialect, base, image, text)"
        asked = [dialect, mesh.http, list(BOARD.read_bytes())]
        told = tab.evaluate(call, [*asked, QUESTION])
        empty = tab.evaluate(call, [*asked, ""])
        browser.close()
    assert told["models"] == ["mini"] and told["answer"] == ANSWER and not told["error"]
    assert told["events"][0] == "accepted" and told["events"][-1] == "verdict"
    assert "[invalid_argument]" in empty["error"] and "asks nothing" in empty["error"]
