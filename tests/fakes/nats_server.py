"""A real nats-server with JetStream on a free port; tests that need one are skipped without it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT_S = 15.0


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    """Yields its URL."""
    program = shutil.which("nats-server")
    if program is None:
        pytest.skip("nats-server is not installed: apt-get install nats-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [program, "--addr", "127.0.0.1", "--port", str(port), "--jetstream", "--store_dir",
         str(folder / "jetstream")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            assert server.poll() is None, "nats-server ended"
            assert time.monotonic() < ends, "nats-server does not answer"
            time.sleep(0.02)
        yield f"nats://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
