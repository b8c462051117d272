"""The vision-encoder and the tool-executor as processes: they serve, and stop when told."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from cogitate.v1 import tool_executor_service_pb2 as tools_pb
from cogitate.v1 import tool_executor_service_pb2_grpc as tools_grpc
from cogitate.v1 import vision_encoder_service_pb2 as vision_pb
from cogitate.v1 import vision_encoder_service_pb2_grpc as vision_grpc

from tests.fakes.sandbox import missing
from tests.fakes.vision_model import write_model

pytestmark = pytest.mark.integration


@contextmanager
def process(module: str, ready: Path, *flags: str) -> Iterator[grpc.Channel]:
    """Runs a service on a free port, and stops it by SIGTERM, which must end it well."""
    command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    running = subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL)
    try:
        ends = time.monotonic() + 30
        while not ready.exists():
            assert running.poll() is None and time.monotonic() < ends
            time.sleep(0.02)
        with grpc.insecure_channel(ready.read_text().strip()) as channel:
            yield channel
        running.terminate()
        assert running.wait(10) == 0
    finally:
        running.kill()
        running.wait()


def test_the_vision_encoder_runs(tmp_path: Path) -> None:
    write_model(tmp_path, "tiny")
    flags = ("--models", "tiny", "--model-paths", str(tmp_path))
    with process("cogitate.vision_encoder", tmp_path / "ready", *flags) as channel:
        stub = vision_grpc.VisionEncoderServiceStub(channel)
        assert stub.GetEncoderInfo(vision_pb.GetEncoderInfoRequest(), timeout=5).models == ["tiny"]


def test_the_tool_executor_runs(tmp_path: Path) -> None:
    for flags, names in [
        (("--python-enabled", "false"), ["calculator", "lookup", "prove", "zoom"]),
        ((), ["calculator", "lookup", "prove", *([] if missing() else ["python"]), "zoom"]),
    ]:
        with process("cogitate.tool_executor", tmp_path / "ready", *flags) as channel:
            stub = tools_grpc.ToolExecutorServiceStub(channel)
            listed = stub.ListTools(tools_pb.ListToolsRequest(), timeout=5)
            assert [tool.name for tool in listed.tools] == names


def test_a_missing_model_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cogitate.vision_encoder", "--models", "nothing"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "unknown model 'nothing'" in done.stderr
