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


class NatsServer:
    """The process; it can be stopped, frozen and started again where it was."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("nats-server")
        if program is None:
            pytest.skip("nats-server is not installed: apt-get install nats-server")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._command = [
            program, "--addr", "127.0.0.1", "--port", str(self._port), "--jetstream",
            "--store_dir", str(folder / "jetstream"),
        ]  # fmt: skip
        self.url = f"nats://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends = time.monotonic() + START_TIMEOUT_S
        while not _answers(self._port):
            assert self.process.poll() is None, "nats-server ended"
            assert time.monotonic() < ends, "nats-server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        """Without a word."""
        self.process.kill()
        self.process.wait()


@contextmanager
def nats_process(folder: Path) -> Iterator[NatsServer]:
    """Yields the process."""
    server = NatsServer(folder)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def nats_server(folder: Path) -> Iterator[str]:
    """Yields its URL."""
    with nats_process(folder) as server:
        yield server.url


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
