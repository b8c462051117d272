"""Runs the processes of a mesh: starts, watches, stops. One owner, the main thread.

Children have their own process groups, so that Ctrl-C reaches the owner alone and it can stop them
in order; they get SIGTERM from the kernel if the owner dies.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import grpc
from cogitate.cli.mesh import state
from cogitate.cli.mesh.plan import STOP_ORDER, Member, log_file, ready_file
from cogitate.kit import identity, renewing
from cogitate.kit.lifecycle import OWNER
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

# A busy machine may take a minute to import torch twice.
START_TIMEOUT_S: Final = 180.0
STOP_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.05
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


class MeshError(Exception):
    """The mesh cannot start or run; the message says why and what to do."""


class Processes:
    """The children of one mesh. `on_change(name, state)` is told of each step while starting."""

    def __init__(self, members: Sequence[Member], folder: Path) -> None:
        self.members = tuple(members)
        self._folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._reported: set[str] = set()

    def start(
        self,
        on_change: Callable[[str, str], None] = lambda name, what: None,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Starts all at once and waits until every health check says SERVING.

        Raises MeshError, with nothing left running, when one dies or takes too long.
        """
        for kind in ("logs", "ready"):
            (self._folder / kind).mkdir(parents=True, exist_ok=True)
        try:
            for member in self.members:
                self._children[member.name] = self._spawn(member)
                on_change(member.name, "starting")
            self._wait_until_serving(on_change, time.monotonic() + timeout_s)
        except BaseException:
            self.stop()
            raise

    def noted(self) -> tuple[state.NotedMember, ...]:
        """Returns what the note of the mesh says of them."""
        return tuple(
            state.NotedMember(
                member.name,
                member.address,
                str(log_file(self._folder, member.name)),
                state.identity(self._children[member.name].pid),
                member.http,
                member.probe_as,
            )
            for member in self.members
            if member.name in self._children
        )

    def died(self) -> list[tuple[str, int]]:
        """Returns name and exit code of the children that ended since the last call."""
        found = []
        for name, child in self._children.items():
            code = child.poll()
            if code is not None and name not in self._reported:
                self._reported.add(name)
                found.append((name, code))
        return found

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Drains and ends every child; who does not end in time is killed. Idempotent."""
        stopped: set[str] = set()
        modules = {member.name: member.module for member in self.members}
        groups = [[n for n in modules if modules[n] == first] for first in STOP_ORDER]
        groups.append([n for n in modules if modules[n] not in STOP_ORDER])
        for group in groups:
            running = [self._children[name] for name in group if name in self._children]
            for child in running:
                if child.poll() is None:
                    child.terminate()
            ends = time.monotonic() + timeout_s
            for child in running:
                try:
                    child.wait(max(0.0, ends - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            stopped.update(group)
        self._children.clear()

    def _spawn(self, member: Member) -> subprocess.Popen[bytes]:
        ready_file(self._folder, member.name).unlink(missing_ok=True)
        with open(log_file(self._folder, member.name), "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", member.module, *member.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **member.environment, OWNER: str(os.getpid())},
                process_group=0,
            )

    def _wait_until_serving(self, on_change: Callable[[str, str], None], ends: float) -> None:
        waiting = {member.name: member for member in self.members}
        while waiting:
            for name, code in self.died():
                raise MeshError(self._post_mortem(name, code))
            for name, member in list(waiting.items()):
                is_ready = ready_file(self._folder, name).exists()
                if is_ready and is_serving(member.address, probe_as=member.probe_as):
                    del waiting[name]
                    on_change(name, "serving")
            if waiting and time.monotonic() > ends:
                names = ", ".join(waiting)
                raise MeshError(f"not ready in time: {names}; see {self._folder / 'logs'}")
            time.sleep(_POLL_S)

    def _post_mortem(self, name: str, code: int) -> str:
        return post_mortem(name, code, log_file(self._folder, name))


def post_mortem(name: str, code: int, log: str | Path) -> str:
    """Returns what to tell of a child that died: how, and the end of its log."""
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    lines = "\n".join(f"    {line}" for line in state.tail(log))
    return f"{name} {how}; the end of {log}:\n{lines or '    (the log is empty)'}"


def is_serving(address: str, timeout_s: float = 1.0, *, probe_as: str = "") -> bool:
    """Asks a service for its health; `probe_as` is the folder of a certificate to show."""
    options = [("grpc.enable_http_proxy", 0)]
    try:
        shown = renewing.credentials(identity.read(Path(probe_as))) if probe_as else None
    except OSError:
        return False
    with (
        grpc.secure_channel(address, shown, options)
        if shown is not None
        else grpc.insecure_channel(address, options)
    ) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == _SERVING)


def free_ports(count: int) -> list[int]:
    """Returns ports that nothing listens on now; another program may be faster."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def busy_ports(host: str, ports: Sequence[int]) -> list[int]:
    """Returns those of `ports` that something listens on already."""
    busy = []
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                busy.append(port)
    return busy
