"""Starts what the layout says: namespaces, the network, the processes. Needs root and TUN."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from cogitate.cli.mesh.processes import post_mortem
from cogitate.kit.lifecycle import OWNER

from tests.multihost import layout
from tests.multihost.layout import DESK, DEVICE, NUMBERS, Choices, Layout, Process

START_S: Final = 180.0
STOP_S: Final = 20.0
GENTLE: Final = 10
QUIET: Final = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
# Who takes work ends before who does it.
STOP_ORDER: Final = ("gateway", "aggregator", "")


class Unavailable(Exception):
    """This machine cannot do it; the message says why."""


def check() -> None:
    """Raises Unavailable if there is anything missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise Unavailable("network namespaces need Linux and root")
    for program, package in (("ip", "iproute2"), ("nsenter", "util-linux"), ("nats-server",) * 2):
        if not any((Path(p) / program).exists() for p in os.environ["PATH"].split(os.pathsep)):
            raise Unavailable(f"there is no {program}: apt-get install {package}")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise Unavailable("/dev/net/tun is not there: TUN devices are not allowed here")
    name = f"cogitate-{os.getpid()}-check"
    try:
        _run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as error:
        raise Unavailable(f"no network namespace can be made: {error.stderr.strip()}") from None
    _run("ip", "netns", "delete", name)


class Mesh:
    """All of it, running. Use as a context manager; one owner, the main thread."""

    def __init__(
        self,
        folder: Path,
        choices: Choices | None = None,
        on_change: Callable[[str, str], None] = lambda name, what: None,
    ) -> None:
        choices = choices or Choices(net=_free_net())
        self.layout = Layout(choices, folder)
        self._choices, self._folder, self._on_change = choices, folder, on_change
        self._namespaces: dict[str, str] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._wan: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()  # around a command and its answer

    def __enter__(self) -> Self:
        try:
            self._join_sites()
            for kind in ("logs", "ready", *self._namespaces):
                (self._folder / kind).mkdir(parents=True, exist_ok=True)
            names = list(self.layout.processes)
            for name in names:
                self.spawn(name)
            self.wait_until_serving(names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes, the network and the namespaces."""
        for service in STOP_ORDER:
            self._end([n for n in self._children if not service or self._service(n) == service])
        if self._wan is not None and self._wan.stdin is not None:
            self._wan.stdin.close()
            self._wan.wait(10)
        for namespace in self._namespaces.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("ip", "netns", "delete", namespace)
        self._namespaces.clear()

    # -- the network ----------------------------------------------------------------------------

    def _join_sites(self) -> None:
        for site in NUMBERS:
            if site != DESK:
                name = f"cogitate-{os.getpid()}-{site}"
                _run("ip", "netns", "add", name)
                self._namespaces[site] = name
        paths = {site: f"/run/netns/{name}" for site, name in self._namespaces.items()}
        # The desk's device is in the machine's own namespace, so it has a name of its own.
        self._wan = subprocess.Popen(
            [sys.executable, "-m", "tests.multihost.wan"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0,
        )  # fmt: skip
        plan = layout.wan_plan(self._choices, paths)
        plan["sites"][DESK]["device"] = self._desk_device
        self._tell(plan)
        for site in NUMBERS:
            inside = ("-n", self._namespaces[site]) if site != DESK else ()
            device = self._desk_device if site == DESK else DEVICE
            net = f"10.{self._choices.net}.0.0/16"
            at = layout.address(self._choices, site)
            _run("ip", *inside, "address", "add", f"{at}/24", "dev", device)
            _run("ip", *inside, "link", "set", device, "up")
            _run("ip", *inside, "route", "add", net, "dev", device)
            if inside:
                _run("ip", *inside, "link", "set", "lo", "up")

    @property
    def _desk_device(self) -> str:
        return f"cgt{self._choices.net}"

    def _tell(self, command: Any) -> Any:
        assert self._wan is not None and self._wan.stdin is not None and self._wan.stdout
        with self._lock:
            self._wan.stdin.write(json.dumps(command) + "\n")
            self._wan.stdin.flush()
            answer = self._wan.stdout.readline()
        if not answer:
            raise Unavailable("the network between the sites cannot be made; see above")
        return json.loads(answer)

    def cut(self, site: str) -> float:
        """Cuts a site off; returns when."""
        return float(self._tell({"cut": site}))

    def heal(self, site: str) -> float:
        """Joins it again; returns when."""
        return float(self._tell({"heal": site}))

    def counts(self) -> list[dict[str, Any]]:
        """Packets and bytes so far, by pair of sites and by the server's port."""
        return list(self._tell({"counts": 1}))

    # -- the processes --------------------------------------------------------------------------

    def spawn(self, name: str, *, gently: bool = False) -> None:
        """Starts a process; it serves once ``wait_until_serving`` returns.

        ``gently``: at a low priority until then. On a machine of its own it would take no time from
        the others, and importing torch takes one of few cores for a second.
        """
        one = self.layout.processes[name]
        self.layout.ready(name).unlink(missing_ok=True)
        gentle = ("nice", "-n", str(GENTLE)) if gently else ()
        inside = (*gentle, "nsenter", f"--net=/run/netns/{self._namespaces[one.site]}", "--")
        with self.layout.log(name).open("ab") as log:
            self._children[name] = subprocess.Popen(
                [*inside, *one.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **QUIET, OWNER: str(os.getpid())}, process_group=0,
            )  # fmt: skip
        self._on_change(name, "starting")

    def wait_until_serving(self, names: Iterable[str]) -> None:
        """Returns when all serve. Raises Unavailable when one dies or takes too long."""
        waiting, ends = list(names), time.monotonic() + START_S
        while waiting:
            for name in list(waiting):
                code = self._children[name].poll()
                if code is not None:
                    raise Unavailable(post_mortem(name, code, self.layout.log(name)))
                if self._serves(self.layout.processes[name]):
                    waiting.remove(name)
                    _as_others(self._children[name].pid)
                    self._on_change(name, "serving")
            if time.monotonic() > ends:
                raise Unavailable(f"not ready in time: {', '.join(waiting)}")
            time.sleep(0.05)

    def _serves(self, one: Process) -> bool:
        if one.service == "nats":
            where = (layout.address(self._choices, one.site), layout.NATS_PORT)
            with socket.socket() as probe:
                probe.settimeout(1.0)
                return probe.connect_ex(where) == 0
        if not one.address:
            return True
        return self.layout.ready(one.name).exists()

    def pid(self, name: str) -> int:
        """The process of that name."""
        return self._children[name].pid

    def signal(self, name: str, number: signal.Signals) -> float:
        """Signals a process; returns when."""
        at = time.monotonic()
        self._children[name].send_signal(number)
        return at

    def end(self, name: str) -> None:
        """Asks a process to end, and waits for it."""
        self._end([name])

    def _end(self, names: Iterable[str]) -> None:
        children = [self._children.pop(name) for name in list(names)]
        for child in children:
            if child.poll() is None:
                child.terminate()
        ends = time.monotonic() + STOP_S
        for child in children:
            try:
                child.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _service(self, name: str) -> str:
        return self.layout.processes[name].service


def _as_others(pid: int) -> None:
    """Gives all threads of a process the usual priority."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), 0)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def _free_net() -> int:
    """A number n so that nothing here has an address in 10.n.0.0/16; others look at once, too."""
    taken = _run("ip", "-4", "route")
    numbers = range(64, 128)
    begin = os.getpid() % len(numbers)
    return next(n for n in (*numbers[begin:], *numbers[:begin]) if f"10.{n}." not in taken)
