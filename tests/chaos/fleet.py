"""A mesh whose decoders are struck while clients stream, and the books of what the clients saw."""

from __future__ import annotations

import math
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.plan import Member, Options, log_file, members, port_count, ready_file
from cogitate.cli.mesh.processes import Processes, free_ports
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.fakes.decoder_nursery import Nursery
from tests.fakes.watch import ENDINGS, Watch

HANG_S = 30.0  # a contemplation that takes longer hangs


@dataclass
class Fleet:
    """Real processes; those of the decoders can be struck and come back."""

    processes: Processes
    nursery: Nursery
    decoders: Mapping[str, Member]
    folder: Path
    address: str
    step_s: float

    def strike(self, name: str, number: signal.Signals) -> float:
        """Signals a decoder; returns when."""
        return self.nursery.signal(name, number)

    def revive(self, name: str) -> None:
        """Starts it again; it may take a while until it serves."""
        ready_file(self.folder, name).unlink(missing_ok=True)
        log = log_file(self.folder, name)
        self.nursery.spawn(name, self.decoders[name].arguments, log, self.step_s)

    def wait_until_ready(self, *names: str) -> None:
        """Until each of them serves."""
        ends = time.monotonic() + 60
        for name in names:
            while not ready_file(self.folder, name).exists():
                assert time.monotonic() < ends, f"{name} does not come back"
                time.sleep(0.01)

    def of_provider(self, provider: str) -> list[str]:
        """Its decoders."""
        return [name for name in self.decoders if name.rpartition("-")[0] == provider]


@contextmanager
def running_fleet(
    folder: Path, options: Options, step_s: float, knobs: Mapping[str, str]
) -> Iterator[Fleet]:
    """Starts it with more flags of the aggregator, waits until all serve, and takes it down."""
    planned = members(options, free_ports(port_count(options)), folder, folder / "traces.sqlite")
    rest = [m for m in planned if m.module != "cogitate.agent_decoder"]
    flags = tuple(part for flag, value in knobs.items() for part in (f"--{flag}", value))
    rest = [
        replace(m, arguments=m.arguments + flags) if m.name == "aggregator" else m for m in rest
    ]
    decoders = {m.name: m for m in planned if m.module == "cogitate.agent_decoder"}
    processes = Processes(rest, folder)
    with Nursery(planned[-1].environment) as nursery:
        made = Fleet(processes, nursery, decoders, folder, planned[0].address, step_s)
        try:
            processes.start()
            for name in decoders:
                made.revive(name)
            made.wait_until_ready(*decoders)
            time.sleep(1.0)  # until the router has heard of all of them
            yield made
        finally:
            for name in decoders:
                nursery.signal(name, signal.SIGCONT)
            processes.stop()


@dataclass(frozen=True)
class Case:
    """A question, and what it comes to if nothing happens."""

    spec: pb.ContemplationSpec
    outcome: tuple[Any, ...]
    length_s: float


@dataclass(frozen=True)
class Strike:
    """A signal to a decoder; ``ended_at`` is when a stopped one was woken."""

    at: float
    name: str
    ended_at: float = math.inf


@dataclass(frozen=True)
class Move:
    """An agent that left its endpoint, and when its next token was seen (None: it ended)."""

    endpoint: str
    reason: str
    lost_at: float
    resumed_at: float | None


@dataclass
class Books:
    """What clients saw."""

    num_ended: int = 0
    num_agents: int = 0
    num_tokens: int = 0
    moves: list[Move] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    longest_s: float = 0.0


def outcome_of(seen: Watch) -> tuple[Any, ...]:
    """Everything that must not depend on what dies."""
    return seen.outcome()


class Load:
    """Clients that ask one question after another, as threads. Use as a context manager."""

    def __init__(self, address: str, cases: Sequence[Case], clients: int, seed: int) -> None:
        self._cases, self._seed = cases, seed
        self._channel = grpc.insecure_channel(address)
        self._stub = ContemplationServiceStub(self._channel)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]
        self.books = Books()

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * HANG_S)
        self._channel.close()

    def _run(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)
        while not self._stop.is_set():
            case = chance.choice(self._cases)
            began, seen = time.monotonic(), Watch()
            try:
                moves = watched(self._stub, case.spec, seen)
                fault = difference(seen, case)
            except (grpc.RpcError, AssertionError) as error:
                moves, fault = [], f"{type(error).__name__}: {error}"
            with self._lock:
                books = self.books
                books.num_ended += 1
                books.num_agents += len(seen.tokens)
                books.num_tokens += sum(seen.tokens.values())
                books.moves += moves
                books.longest_s = max(books.longest_s, time.monotonic() - began)
                if fault:
                    books.faults.append(f"{fault}; it saw {' '.join(seen.kinds[-12:])}")


def watched(stub: Any, spec: pb.ContemplationSpec, seen: Watch) -> list[Move]:
    """Asks, follows to the ending, and returns the moves there were."""
    asked = pb.ContemplationSpec()
    asked.CopyFrom(spec)
    asked.request_id = str(uuid.uuid4())
    lost: dict[int, tuple[str, str, float]] = {}
    moves: list[Move] = []
    for response in stub.Contemplate(pb.ContemplateRequest(spec=asked), timeout=HANG_S):
        event, now = response.event, time.monotonic()
        seen.take(event)
        told = event.agent_lost
        if told.endpoint_id:
            # Lost again before it went on: the first loss is where its gap began.
            lost.setdefault(told.agent_id, (told.endpoint_id, told.reason, now))
        writing = [d.agent_id for d in event.deltas.deltas if d.agent_id in lost]
        moves += [Move(*lost.pop(agent_id), now) for agent_id in writing]
    return moves + [Move(*where, None) for where in lost.values()]


def difference(seen: Watch, case: Case) -> str:
    """What is not as in the undisturbed run; empty: nothing."""
    if [kind in ENDINGS for kind in seen.kinds].count(True) != 1:
        return "it has not one ending"
    if seen.kinds[-1] != "verdict":
        return f"it ended with {seen.kinds[-1]}: {seen.ending}"
    key, degraded, tokens, text = outcome_of(seen)
    names = ("key", "degraded", "tokens", "text")
    other = [
        name
        for name, ours, theirs in zip(
            names, (key, degraded, tokens, text), case.outcome, strict=True
        )
        if ours != theirs
    ]
    return f"other than undisturbed: {', '.join(other)}" if other else ""


def undisturbed(address: str, specs: Sequence[pb.ContemplationSpec]) -> list[Case]:
    """Runs each question alone."""
    cases = []
    with grpc.insecure_channel(address) as channel:
        stub = ContemplationServiceStub(channel)
        for spec in specs:
            seen = Watch()
            watched(stub, spec, seen)
            assert seen.kinds[-1] == "verdict", seen.ending
            length_s = seen.times[-1][0] - seen.times[0][0]
            cases.append(Case(spec, outcome_of(seen), length_s))
    return cases


def gaps_s(moves: Sequence[Move], strikes: Sequence[Strike]) -> list[float]:
    """Seconds from each strike to the next token of each agent that it moved.

    Who was hedged where nothing was stopped was only slow.
    """
    found = []
    for move in moves:
        before = [s for s in strikes if s.name == move.endpoint and s.at < move.lost_at]
        if not before or move.resumed_at is None:
            continue
        slow = move.reason == "SLOW" and not move.lost_at < before[-1].ended_at < math.inf
        if not slow:
            found.append(move.resumed_at - before[-1].at)
    return found
