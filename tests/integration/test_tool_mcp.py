"""MCP servers behind the tool-executor: real servers, one of which misbehaves."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.kit import lifecycle
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError
from cogitate.tool_executor.config import ToolExecutorConfig
from cogitate.tool_executor.server import build
from cogitate.v1 import common_pb2
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1 import tool_executor_service_pb2_grpc as pb_grpc
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1.vision_encoder_service_pb2_grpc import VisionEncoderServiceStub
from cogitate.vision_encoder.config import VisionEncoderConfig
from cogitate.vision_encoder.server import build as build_encoder
from google.protobuf.duration_pb2 import Duration
from PIL import Image as PILImage

from tests.fakes.vision_model import write_model

pytestmark = pytest.mark.integration

FAKES = Path(__file__).parents[1] / "fakes"


class Files:
    """The configuration file, and what the raw server notes."""

    def __init__(self, folder: Path) -> None:
        self.config = folder / "mcp.json"
        self.path = folder / "notes"
        self.path.touch()

    @property
    def notes(self) -> list[str]:
        return self.path.read_text().splitlines()

    @property
    def pids(self) -> list[int]:
        return [int(note.split()[1]) for note in self.notes if note.startswith("started")]

    def write(self, **servers: dict[str, Any]) -> str:
        self.config.write_text(json.dumps({"mcpServers": servers}))
        return str(self.config)

    def raw(self, *flags: str, **more: Any) -> dict[str, Any]:
        args = [str(FAKES / "mcp_raw.py"), str(self.path), *flags]
        return {"command": sys.executable, "args": args, **more}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@asynccontextmanager
async def executor(mcp_config: str, **knobs: Any) -> AsyncIterator[Any]:
    # A server of the SDK takes long to start on a busy machine.
    knobs = {"mcp_connect_s": 50.0, "default_timeout_s": 25.0, "drain_grace_s": 2.0, **knobs}
    config = ToolExecutorConfig(python_enabled=False, mcp_config=mcp_config, **knobs)
    async with (
        lifecycle.serving(config, build) as running,
        open_channel(running.address) as channel,
    ):
        yield pb_grpc.ToolExecutorServiceStub(channel)


def request(name: str, arguments: Any, call_id: str = "1", **fields: Any) -> pb.ExecuteRequest:
    call = common_pb2.ToolCall(call_id=call_id, name=name, arguments_json=json.dumps(arguments))
    return pb.ExecuteRequest(
        **{"contemplation_id": "c", "call": call, "allowed_tools": [name], **fields}
    )


async def execute(stub: Any, asked: pb.ExecuteRequest) -> pb.ExecutionFinished:
    (only,) = [event async for event in stub.Execute(asked, **outgoing(40))]
    return only.finished


async def text_of(stub: Any, name: str, call_id: str, **arguments: Any) -> tuple[str, bool]:
    result = (await execute(stub, request(name, arguments, call_id))).result
    return result.parts[0].text, result.is_error


async def error_of(stub: Any, asked: pb.ExecuteRequest) -> CogitateError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await execute(stub, asked)
    return from_rpc_error(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def names(stub: Any) -> list[str]:
    listed = await stub.ListTools(pb.ListToolsRequest(), **outgoing(5))
    return [tool.name for tool in listed.tools if "." in tool.name]


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.02)


async def until_listed(stub: Any, name: str, *, is_there: bool = True) -> None:
    async with asyncio.timeout(60):
        while (name in await names(stub)) != is_there:
            await asyncio.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_server_of_the_sdk_by_stdio(files: Files) -> None:
    server = {"command": sys.executable, "args": [str(FAKES / "mcp_sdk.py")]}
    async with executor(files.write(sums=server)) as stub:
        await until_listed(stub, "sums.add")
        assert await names(stub) == [
            "sums.add", "sums.broken", "sums.draw", "sums.sleep", "sums.token",
        ]  # fmt: skip
        done = await execute(stub, request("sums.add", {"a": 2, "b": 3}))
        assert (done.result.parts[0].text, done.result.is_error) == ("5", False)
        assert (done.provenance.tool, done.provenance.origin) == ("sums.add@1.2", "sums")
        assert not done.provenance.replayed
        again = await execute(stub, request("sums.add", {"a": 2, "b": 3}))
        assert again.provenance.replayed and again.result == done.result
        text, is_error = await text_of(stub, "sums.add", "2", a="x", b=3)
        assert is_error and "valid integer" in text
        text, is_error = await text_of(stub, "sums.broken", "3")
        assert is_error and "broken" in text
        short = request("sums.sleep", {"seconds": 30}, "4", timeout=Duration(nanos=300_000_000))
        done = await execute(stub, short)
        assert done.result.is_error and "longer than 0.3 s" in done.result.parts[0].text
        assert await text_of(stub, "calculator", "5", expression="1+1") == ("2", False)


async def test_a_server_of_the_sdk_by_http(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_TEST_TOKEN", "t0k")
    port = free_port()
    url = f"http://127.0.0.1:{port}/mcp"
    config = files.write(far={"url": url, "headers": {"Authorization": "Bearer ${MCP_TEST_TOKEN}"}})
    command = [sys.executable, str(FAKES / "mcp_sdk.py"), str(port)]

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    running = None
    try:
        # Before it is there, and after it went away, only its own tools are missing.
        async with executor(config, mcp_refresh_s=0.2) as stub:
            assert await names(stub) == []
            error = await error_of(stub, request("far.add", {"a": 1, "b": 2}))
            assert error.code == "NOT_FOUND" and "'far' is not connected" in error.message
            running = serve()
            await until_listed(stub, "far.add")
            assert await text_of(stub, "far.add", "1", a=1, b=2) == ("3", False)
            assert await text_of(stub, "far.token", "2") == ("Bearer t0k", False)
            running.kill()
            running.wait()
            await until_listed(stub, "far.add", is_there=False)
            error = await error_of(stub, request("far.add", {"a": 1, "b": 3}, "3"))
            assert (error.code, error.retryable) == ("UNAVAILABLE", True)
            # What it had answered is still known.
            known = await execute(stub, request("far.add", {"a": 1, "b": 2}, "1"))
            assert known.provenance.replayed and known.result.parts[0].text == "3"
            running = serve()
            await until_listed(stub, "far.add")
            assert await text_of(stub, "far.add", "3", a=1, b=3) == ("4", False)
    finally:
        if running is not None:
            running.kill()
            running.wait()


async def test_what_a_server_says_is_text(files: Files) -> None:
    alone = {"vision_encoder_address": f"127.0.0.1:{free_port()}", "max_output_bytes": 1000}
    async with executor(files.write(raw=files.raw()), **alone) as stub:
        await until_listed(stub, "raw.echo")
        listed = await stub.ListTools(pb.ListToolsRequest(), **outgoing(5))
        about = next(tool for tool in listed.tools if tool.name == "raw.echo")
        assert "\x1b" not in about.description and len(about.description) <= 1024
        assert not {"raw.huge", "raw.not/a name"} & {tool.name for tool in listed.tools}
        assert await text_of(stub, "raw.echo", "1", text="a\x1b[0m</s>") == (
            "a\ufffd[0m</s>",
            False,
        )
        assert await text_of(stub, "raw.mistake", "2") == ("no such thing\ufffd<|im_start|>", True)
        text, is_error = await text_of(stub, "raw.picture", "3")
        # There is no vision-encoder to keep it.
        assert text.startswith("here\n[an image came that cannot be shown: ") and not is_error
        text, is_error = await text_of(stub, "raw.refuse", "4")
        assert is_error and text == "The MCP server refused the call: not for you"
        done = await execute(stub, request("raw.echo", {"text": "é" * 2000}, "5"))
        assert done.result.truncated and len(done.result.parts[0].text.encode()) <= 1000
        error = await error_of(stub, request("raw.echo", {}, "6", allowed_tools=["raw.look"]))
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "TOOL_DENIED")
        error = await error_of(stub, request("raw.none", {}, "7"))
        assert error.code == "NOT_FOUND" and "has no such tool" in error.message


async def test_images_are_stored_and_given_by_digest(files: Files, tmp_path: Path) -> None:
    write_model(tmp_path)
    encoder = VisionEncoderConfig(
        models=("tiny",), model_paths=(str(tmp_path),), max_image_pixels_count=10_000
    )
    server = {"command": sys.executable, "args": [str(FAKES / "mcp_sdk.py")]}
    async with (
        lifecycle.serving(encoder, build_encoder) as vision,
        open_channel(vision.address) as channel,
        executor(
            files.write(sums=server),
            vision_encoder_address=vision.address,
            mcp_max_image_bytes=300,
        ) as stub,
    ):
        await until_listed(stub, "sums.draw")
        whose = {"metadata": (("x-cogitate-tenant", "t1"),), "timeout": 40}
        asked = request("sums.draw", {"width": 40, "height": 30}, "1")
        (only,) = [event async for event in stub.Execute(asked, **whose)]
        said, shown = only.finished.result.parts
        assert said.text == "a picture" and not only.finished.result.is_error
        image = shown.image
        assert (image.width_px, image.height_px, image.HasField("box")) == (40, 30, False)
        assert not image.data and only.finished.provenance.origin == "sums"
        # It is its tenant's, can be looked at, and is red.
        blobs = VisionEncoderServiceStub(channel)
        asked_for = vision_pb.GetBlobRequest(digest=image.digest)
        data = b"".join([part.chunk async for part in blobs.GetBlob(asked_for, **whose)])
        assert PILImage.open(io.BytesIO(data)).getpixel((3, 3)) == (200, 0, 0)
        view = vision_pb.View(blob_digest=image.digest)
        encoded = await blobs.Encode(vision_pb.EncodeRequest(model="tiny", views=[view]), **whose)
        assert encoded.views[0].token_count == 16
        with pytest.raises(grpc.aio.AioRpcError):
            [part async for part in blobs.GetBlob(asked_for, timeout=5)]
        # What is no image, or too large, is said, and the text is there all the same.
        for number, (arguments, why) in enumerate(
            [
                ({"width": 40, "height": 30, "cut": 20}, "damaged or cut off"),
                ({"width": 200, "height": 51}, "more pixels than allowed"),
                ({"width": 3000, "height": 3000}, "larger than 300 bytes"),
                ({"width": 40, "height": 30, "cut": 10_000}, "file is empty"),
            ]
        ):
            done = await execute(stub, request("sums.draw", arguments, f"2{number}"))
            (part,) = done.result.parts
            assert part.text.startswith("a picture\n[an image came that cannot be shown: ")
            assert why in part.text and not done.result.is_error
        assert await text_of(stub, "sums.add", "3", a=1, b=1) == ("2", False)


async def test_noise_stays_out_of_the_log_and_secrets_out_of_the_server(
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COGITATE_SECRET", "s3cret")
    monkeypatch.setenv("FOR_IT", "given")
    server = files.raw(env={"OWN": "${FOR_IT}"})
    caplog.set_level(logging.DEBUG, "cogitate")
    async with executor(files.write(raw=server)) as stub:
        await until_listed(stub, "raw.noise")
        assert await text_of(stub, "raw.noise", "1") == ("quiet", False)
        text, _ = await text_of(stub, "raw.environment", "2")
        assert "OWN=given" in text and "s3cret" not in text and "PATH=" in text
        assert (await text_of(stub, "raw.nonsense", "3"))[1]
    output = capfd.readouterr()
    everything = caplog.text + output.out + output.err
    assert "noise" not in everything and "not JSON" not in everything


async def test_a_server_that_dies_costs_the_call_and_comes_back(files: Files) -> None:
    short = {"mcp_max_message_bytes": 1024 * 1024}
    async with executor(files.write(raw=files.raw(), other=files.raw()), **short) as stub:
        await until_listed(stub, "raw.die")
        await until_listed(stub, "other.echo")
        for number, name in enumerate(("die", "long_line"), 1):
            text, is_error = await text_of(stub, f"raw.{name}", f"a{number}")
            assert is_error and "went away" in text
            # An effect may have happened, so it is not done again under the same id.
            again = await execute(stub, request(f"raw.{name}", {}, f"a{number}"))
            assert again.provenance.replayed
            assert await text_of(stub, "other.echo", f"b{number}", text="x") == ("x", False)
            await until_listed(stub, f"raw.{name}")
            assert await text_of(stub, "raw.echo", f"c{number}", text="y") == ("y", False)
        assert len(files.pids) == 4


async def test_who_leaves_stops_what_has_no_effect_and_nothing_else(files: Files) -> None:
    async with executor(files.write(raw=files.raw())) as stub:
        await until_listed(stub, "raw.look")
        looking = asyncio.ensure_future(execute(stub, request("raw.look", {}, "1")))
        await asyncio.sleep(0.2)
        looking.cancel()
        await until(lambda: "cancelled" in files.notes)
        acting = asyncio.ensure_future(execute(stub, request("raw.effect", {"text": "x"}, "2")))
        await asyncio.sleep(0.2)
        acting.cancel()
        await until(lambda: "effect x" in files.notes)
        done = await execute(stub, request("raw.effect", {"text": "x"}, "2"))
        assert done.provenance.replayed and done.result.parts[0].text == "done"
        assert files.notes.count("effect x") == 1 and files.notes.count("cancelled") == 1
        # A call that takes too long is cancelled, too.
        short = request("raw.look", {}, "3", timeout=Duration(nanos=200_000_000))
        assert (await execute(stub, short)).result.is_error
        await until(lambda: files.notes.count("cancelled") == 2)


async def test_a_hanging_server_holds_up_nobody_else(files: Files) -> None:
    async with executor(files.write(raw=files.raw()), mcp_running_count=2) as stub:
        await until_listed(stub, "raw.look")
        hanging = [
            asyncio.ensure_future(execute(stub, request("raw.look", {}, f"h{n}"))) for n in range(2)
        ]
        await asyncio.sleep(0.2)
        short = request("raw.echo", {}, "e", timeout=Duration(nanos=200_000_000))
        error = await error_of(stub, short)
        assert (error.code, error.reason) == ("ABORTED", "EVICTED")
        assert await text_of(stub, "calculator", "k", expression="2*3") == ("6", False)
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


@pytest.mark.parametrize("flags", [(), ("stubborn",)])
async def test_servers_end_with_the_service(files: Files, flags: tuple[str, ...]) -> None:
    async with executor(files.write(raw=files.raw(*flags))) as stub:
        await until_listed(stub, "raw.echo")
        (pid,) = files.pids
        assert is_alive(pid)
    assert not is_alive(pid)
    assert "input ended" in files.notes  # it was asked before it was killed


def test_servers_end_with_a_killed_service(files: Files, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    config = files.write(raw=files.raw("stubborn"))
    running = subprocess.Popen(
        [sys.executable, "-m", "cogitate.tool_executor", "--ready-file", str(ready),
         "--python-enabled", "false", "--mcp-config", config],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 30
        while not (ready.exists() and files.pids):
            assert running.poll() is None and time.monotonic() < ends
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    ends = time.monotonic() + 2
    while any(map(is_alive, files.pids)):
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "cannot be read"), ("{", "not valid"), ('{"mcpServers": {"a": {}}}', "server 'a'")],
)
def test_a_bad_file_ends_the_service_with_a_sentence(
    tmp_path: Path, text: str | None, says: str
) -> None:
    path = tmp_path / "mcp.json"
    if text is not None:
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "cogitate.tool_executor", "--mcp-config", str(path)],
        env=dict(os.environ), capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and says in done.stderr
