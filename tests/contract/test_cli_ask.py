"""`cogitate ask` against a scripted mesh: what it prints, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from cogitate.cli.main import main
from cogitate.cli.view.watch import LiveOutput, watch
from cogitate.kit.config import ServiceConfig
from cogitate.kit.lifecycle import serving
from cogitate.v1 import contemplation_service_pb2 as pb2
from rich.console import Console

from tests.fakes import scenarios
from tests.fakes.aggregator import FakeAggregator, Script, Step, Wait

pytestmark = pytest.mark.contract

Event = pb2.ContemplationEvent


@asynccontextmanager
async def mesh(script: Script) -> AsyncIterator[tuple[str, FakeAggregator]]:
    """A scripted mesh; the CLI reaches the aggregator without a gateway."""
    made: list[FakeAggregator] = []

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> FakeAggregator:
        made.append(FakeAggregator(server, script))
        return made[0]

    config = ServiceConfig(listen="127.0.0.1:0", drain_grace_s=0.2)
    async with serving(config, build) as running:
        yield running.address, made[0]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGITATE_STATE", str(tmp_path))
    monkeypatch.delenv("COGITATE_ADDRESS", raising=False)


def eight(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """A countdown of eight agents."""
    return scenarios.countdown(8)


def failing(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """No endpoint is left."""
    failed = pb2.Failed(code=14, reason="NO_ENDPOINT", message="no endpoint is left")
    return (Event(accepted=pb2.Accepted()), Event(failed=failed))


async def run(*arguments: str) -> int:
    """Runs the command in a thread of its own, as a process would."""
    return await asyncio.to_thread(main, arguments)


async def test_json_is_one_event_a_line_and_the_verdict_last(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with mesh(eight) as (address, fake):
        code = await run("ask", "Make 26.", "--agents", "8", "--json", "--address", address)
    assert 0 == code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "accepted" == lines[0]["event"]
    assert list(range(1, len(lines))) == [line["event_number"] for line in lines[:-1]]
    last = lines[-1]
    assert ("verdict", "6*4=24, 24+5=29, 29-3=26.", True) == (
        last["event"],
        last["answer"],
        last["proved"],
    )
    assert [5, 3] == [ballot["agent_id"] for ballot in last["ballots"]]
    assert "verified" == last["certificate"]["quorum"]
    assert 357 == last["usage"]["sampled_tokens"]
    assert 1 == sum(line["event"] == "verdict" for line in lines)
    assert 8 == fake.requests[0].spec.agent_count


async def test_plain_lines_end_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    async with mesh(eight) as (address, _):
        assert 0 == await run("ask", "Make 26.", "--address", address)
    shown = capsys.readouterr().out
    assert "agent 3 votes 26, proved by a tool" in shown
    assert "verdict · proved by a tool" in shown
    assert "\x1b" not in shown


async def test_no_answer_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    async with mesh(failing) as (address, _):
        assert 1 == await run("ask", "?", "--address", address)
        assert "no endpoint is left" in capsys.readouterr().err
        assert 1 == await run("ask", "?", "--address", address, "--json")
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert "NO_ENDPOINT" == last["error"]["reason"]


def unknown_model(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """No endpoint serves it, in the router's words."""
    message = "no endpoint serves the model x; there is: mini"
    failed = pb2.Failed(code=5, reason="UNKNOWN_MODEL", message=message)
    return (Event(accepted=pb2.Accepted()), Event(failed=failed))


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ("smollm2-135m-instruct", "`cogitate models fetch smollm2-135m-instruct` gets it; then"),
        ("mini", "The model is on this machine:"),
        ("mine", "`cogitate models import DIR --name mine` brings in a checkpoint of yours; then"),
    ],
)
async def test_a_model_that_is_not_served_comes_with_what_to_do(
    model: str,
    first: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COGITATE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    async with mesh(unknown_model) as (address, _):
        assert 1 == await run("ask", "?", "--address", address, "--model", model)
        told = capsys.readouterr().err
        assert "there is: mini" in told and first in told
        assert f"`cogitate up --detach --model {model}`" in told
        assert f"--name another --model {model}" in told
        assert 1 == await run("ask", "?", "--address", address, "--model", model, "--json")
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert ("UNKNOWN_MODEL", True) == (
            last["error"]["reason"],
            first in last["error"]["message"],
        )


async def test_the_grammar_of_the_answer_travels(tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer"}')
    async with mesh(eight) as (address, fake):
        for flags in (("--json-schema", str(schema)), ("--regex", "[0-9]+")):
            assert 0 == await run("ask", "?", "--address", address, *flags)
        with pytest.raises(SystemExit, match="2"):
            await run("ask", "?", "--address", address, "--json-schema", "nowhere.json")
    first, second = (request.spec for request in fake.requests)
    assert first.response_json_schema == '{"type": "integer"}'
    assert (second.response_json_schema, second.sampling_params.regex) == ("", "[0-9]+")


async def test_nobody_there_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == await run("ask", "?", "--address", "127.0.0.1:1", "--deadline", "5s")
    assert "no mesh answers at 127.0.0.1:1" in capsys.readouterr().err


async def test_the_live_view_draws_every_agent_and_stays() -> None:
    def slow(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return [*scenarios.countdown(8)[:-1], Wait(0.2), scenarios.countdown(8)[-1]]

    console = Console(force_terminal=True, width=120, height=40, file=io.StringIO(), record=True)
    async with mesh(slow) as (address, _):
        with LiveOutput(console, "Make 26.") as live:
            answer = await watch(address, "Make 26.", {"agents": 8}, live)
    assert answer.proved
    shown = console.export_text()
    for words in ("7 borealis-1", "26 proved", "✕ not needed", "decided agent 3", "Make 26."):
        assert words in shown


async def test_cancelling_the_watch_cancels_the_contemplation() -> None:
    def endless(request: pb2.ContemplateRequest) -> Sequence[Step]:
        return [Event(accepted=pb2.Accepted()), *[Wait(0.01)] * 1000]

    console = Console(force_terminal=True, width=80, height=24, file=io.StringIO())
    async with mesh(endless) as (address, fake):
        with LiveOutput(console, "?") as live:
            task = asyncio.create_task(watch(address, "?", {}, live))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(10):
            await fake.cancelled.wait()
