"""A real mesh for tests: every service its own process, with an OTLP receiver beside it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.processes import busy_ports
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc

PORTS = 9
BASES = (20_000, 32_000)


@dataclass
class OtlpReceiver(otlp_grpc.TraceServiceServicer):
    """Keeps every span it is sent."""

    spans: list[Any] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:
        with self.lock:
            self.spans += [
                span
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ]
        return otlp.ExportTraceServiceResponse()

    def of_trace(self, trace_id: str) -> list[Any]:
        """The spans of one trace so far."""
        with self.lock:
            return [span for span in self.spans if span.trace_id.hex() == trace_id]


@dataclass(frozen=True)
class Mesh:
    """A running mesh."""

    base_port: int
    state: Path
    receiver: OtlpReceiver

    @property
    def address(self) -> str:
        """The gateway's."""
        return f"127.0.0.1:{self.base_port}"

    @property
    def http(self) -> str:
        """Where the gateway speaks HTTP."""
        note = json.loads(next(self.state.rglob("mesh.json")).read_text())
        return next(f"http://{m['http']}" for m in note["members"] if m["http"])

    @property
    def store(self) -> Path:
        """The local span store."""
        return next(self.state.rglob("traces.sqlite"))

    def pid_of(self, name: str) -> int:
        """The process of a member, by its name."""
        note = json.loads(next(self.state.rglob("mesh.json")).read_text())
        return next(m["process"]["pid"] for m in note["members"] if m["name"] == name)

    def run(self, *arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        """Runs a `cogitate` command against this mesh."""
        return cogitate(self.state, *arguments, timeout_s=timeout_s)


def cogitate(
    state: Path, *arguments: str, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs a `cogitate` command with a state folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cogitate.cli", *arguments],
        env={**os.environ, "COGITATE_STATE": str(state), "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def free_base_port() -> int:
    """A port with enough free ones after it, below those that outgoing connections are given."""
    while True:
        base = random.randrange(*BASES)
        if not busy_ports("127.0.0.1", range(base, base + PORTS)):
            return base


@contextmanager
def running_mesh(state: Path, *flags: str) -> Iterator[Mesh]:
    """Starts the mesh in the background, with more flags of `up`, and takes it down."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(4))
    otlp_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    base = free_base_port()
    endpoint = f"http://127.0.0.1:{port}"
    started = cogitate(
        state, "up", "--detach", "--base-port", str(base), "--otlp-endpoint", endpoint,
        *flags,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield Mesh(base, state, receiver)
    finally:
        stopped = cogitate(state, "down")
        server.stop(None)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
