"""A decoder with the engine vllm: a process of its own, in an environment that has vLLM.

`COGITATE_TEST_VLLM` names that environment's Python, such as the one that
`python -m tests.bench.decode.install vllm vllm-decoder` makes:
`.cache/peers/vllm-decoder/bin/python`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cogitate.kit
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

MODEL = "smollm2-135m-instruct"
# Where `cogitate models fetch` puts it.
MODELS = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "cogitate/models"
# Compiling takes minutes where two cores do it, and no test is about it.
QUICK = {"enforce_eager": True, "max_model_len": 4096, "max_num_batched_tokens": 2048}
START_S = 200.0
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Decoder:
    """Where it is, and its process."""

    address: str
    process: subprocess.Popen[bytes]

    def workers(self) -> list[int]:
        """The processes of vLLM's engine."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        children = [pid for task in tasks for pid in task.read_text().split()]
        named = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
        return [pid for pid, command in named.items() if b"resource_tracker" not in command]


def python(model: str = MODEL) -> str:
    """The environment's Python; skips the test where none is named, or the model is not there."""
    found = os.environ.get("COGITATE_TEST_VLLM", "")
    if not found:
        pytest.skip("COGITATE_TEST_VLLM names no Python that has vLLM")
    if model == MODEL and not (MODELS / MODEL).is_dir():
        pytest.skip(f"the model is not there: cogitate models fetch {MODEL}")
    return found


@contextmanager
def running(*flags: str, served: str = MODEL, **arguments: Any) -> Iterator[Decoder]:
    """Starts one with more flags and arguments of vLLM's, waits for it, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    roots = [ROOT, ROOT / "protos/gen", ROOT / "gateway", *(ROOT / "services").iterdir()]
    assert str(cogitate.kit.__path__[0]).startswith(str(ROOT)), "another tree is imported"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, roots)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    command = [
        python(served), "-m", "cogitate.agent_decoder", "--engine", "vllm", "--model", served,
        "--models-path", str(MODELS), "--vllm-arguments", json.dumps(QUICK | arguments),
        "--listen", f"127.0.0.1:{port}", "--drain-grace-s", "1", *flags,
    ]  # fmt: skip
    with started(command, environment) as process:
        address = f"127.0.0.1:{port}"
        _wait(process, address)
        yield Decoder(address, process)


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended by force where it does not end when it is told to."""
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], address: str) -> None:
    ends = time.monotonic() + START_S
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < ends:
            assert process.poll() is None, "the decoder ended while it started"
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.5)
    raise AssertionError(f"the decoder does not serve after {START_S:g} s")
