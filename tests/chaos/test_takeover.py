"""Aggregators are killed while clients stream, and clients' connections are cut: nothing is lost.

    COGITATE_CHAOS_KILLS=200 COGITATE_CHAOS_CUTS=10000 pytest -s tests/chaos/test_takeover.py

COGITATE_CHAOS_JOURNAL is one of sqlite, fsync and nats. With COGITATE_CHAOS_JSON=FILE the gaps are
written there. A gap is the time from the kill to the
first event, and to the first new token, that the client got of the heir.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.cli.mesh.plan import Member, Options, log_file, members, port_count, ready_file
from cogitate.cli.mesh.processes import Processes, free_ports
from cogitate.kit.errors import NotOwner
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.fakes.nats_server import nats_server
from tests.fakes.watch import ENDINGS, Watch

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(7200)]

KILLS = int(os.environ.get("COGITATE_CHAOS_KILLS", "6"))
CUTS = int(os.environ.get("COGITATE_CHAOS_CUTS", "100"))
SEED = int(os.environ.get("COGITATE_CHAOS_SEED", "1"))
JOURNAL = os.environ.get("COGITATE_CHAOS_JOURNAL", "sqlite")
BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"
AGENTS = 8
SAMPLE_SEED = 2


@dataclass
class Mesh:
    """A mesh of real processes with two aggregators."""

    processes: Processes
    folder: Path
    address: str
    revived: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def owner_of(self, id_: str) -> str:
        """The name of the aggregator that has a contemplation: the one that lets us attach."""
        for member in self.processes.members:
            if "aggregator" in member.module:
                with grpc.insecure_channel(member.address) as channel:
                    request = pb.AttachRequest(contemplation_id=id_)
                    call = ContemplationServiceStub(channel).Attach(request, timeout=5)
                    try:
                        next(call)
                        return member.name
                    except grpc.RpcError as error:
                        assert (
                            NotOwner.reason.encode()
                            in dict(error.trailing_metadata())["grpc-status-details-bin"]
                        )
                    finally:
                        call.cancel()
        raise AssertionError("nobody has it")

    def kill(self, name: str) -> float:
        """Kills without a word; returns when."""
        at = time.monotonic()
        if name in self.revived:
            self.revived[name].kill()
            self.revived[name].wait()
        else:
            [pid] = [m.process.pid for m in self.processes.noted() if m.name == name]
            os.kill(pid, signal.SIGKILL)
        return at

    def revive(self, name: str) -> None:
        """Starts it again and waits until it serves."""
        [member] = [m for m in self.processes.members if m.name == name]
        ready_file(self.folder, name).unlink(missing_ok=True)
        with log_file(self.folder, name).open("ab") as log:
            self.revived[name] = subprocess.Popen(
                [sys.executable, "-m", member.module, *member.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **member.environment},
            )
        ends = time.monotonic() + 60
        while not ready_file(self.folder, name).exists():
            assert time.monotonic() < ends, f"{name} does not come back"
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends everything."""
        self.processes.stop()
        for process in self.revived.values():
            process.terminate()
        for process in self.revived.values():
            process.wait(30)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    options = Options(decoders=2, aggregators=2)
    planned = members(options, free_ports(port_count(options)), folder, folder / "traces.sqlite")
    with ExitStack() as stack:
        url = stack.enter_context(nats_server(folder)) if JOURNAL == "nats" else ""
        planned = tuple(journalling(member, url) for member in planned)
        made = Mesh(Processes(planned, folder), folder, planned[0].address)
        stack.callback(made.stop)
        made.processes.start()
        yield made


def journalling(member: Member, url: str) -> Member:
    """With the journal that is asked for."""
    arguments = list(member.arguments)
    if "--journal" in arguments and url:
        arguments[arguments.index("--journal") + 1] = url
    elif "--journal" in arguments and JOURNAL == "fsync":
        arguments += ["--journal-fsync", "true"]
    return replace(member, arguments=tuple(arguments))


def question(image: Any, **fields: Any) -> pb.ContemplationSpec:
    made = pb.ContemplationSpec(
        request_id=str(uuid.uuid4()), agent_count=AGENTS, quorum="all", **fields
    )
    message = made.conversation.add(role="ROLE_USER")
    message.parts.add().image.CopyFrom(image)
    message.parts.add(text=QUESTION)
    made.sampling_params.seed = SAMPLE_SEED
    return made


@pytest.fixture(scope="module")
def stub(mesh: Mesh) -> Iterator[Any]:
    with grpc.insecure_channel(mesh.address) as channel:
        yield ContemplationServiceStub(channel)


@pytest.fixture(scope="module")
def image() -> common.ImagePart:
    return common.ImagePart(data=BOARD.read_bytes())


@pytest.fixture(scope="module")
def undisturbed(stub: Any, image: Any) -> Watch:
    seen = Watch()
    for response in stub.Contemplate(pb.ContemplateRequest(spec=question(image)), timeout=60):
        seen.take(response.event)
    assert seen.ending is not None
    return seen


def test_an_aggregator_killed_at_any_moment_is_taken_over(
    mesh: Mesh, stub: Any, image: Any, undisturbed: Watch
) -> None:
    """Invariants 1, 2 and 3: one ending, no event or token lost or twice, the very same tokens."""
    chance = random.Random(SEED)
    length_s = undisturbed.times[-1][0] - undisturbed.times[0][0]
    gaps_s: list[float] = []
    token_gaps_s: list[float] = []
    num_kills = 0
    while num_kills < KILLS:
        seen, killed_at, victim = Watch(), 0.0, ""
        call = stub.Contemplate(pb.ContemplateRequest(spec=question(image)), timeout=60)
        seen.take(next(call).event)
        kill_at = time.monotonic() + chance.uniform(0, length_s)
        for response in call:
            seen.take(response.event)
            if not killed_at and time.monotonic() >= kill_at and seen.ending is None:
                victim = mesh.owner_of(seen.id)
                killed_at = mesh.kill(victim)
        assert seen.ending is not None
        assert seen.outcome() == undisturbed.outcome()
        assert [kind in ENDINGS for kind in seen.kinds].count(True) == 1
        if not killed_at:
            continue  # it ended first
        num_kills += 1
        # What was on its way when the owner died does not count.
        lost_at = next(
            (at for at, kind in seen.times if kind == "agent_lost" and at > killed_at), None
        )
        if lost_at is not None:
            gaps_s.append(lost_at - killed_at)
            resumed = seen.gap_s(lost_at, "deltas")
            if resumed is not None:
                token_gaps_s.append(lost_at + resumed - killed_at)
        mesh.revive(victim)
    report("kills", num_kills, {"event": gaps_s, "token": token_gaps_s})


def test_a_client_cut_off_at_any_moment_gets_exactly_the_rest(
    stub: Any, image: Any, undisturbed: Watch
) -> None:
    chance = random.Random(SEED)
    num_cuts = num_contemplations = 0
    while num_cuts < CUTS:
        num_contemplations += 1
        seen = Watch()
        spec = question(image, on_disconnect=pb.ON_DISCONNECT_CONTINUE)
        call = stub.Contemplate(pb.ContemplateRequest(spec=spec), timeout=60)
        seen.take(next(call).event)
        while True:
            cut_at = time.monotonic() + chance.expovariate(1 / 0.01)
            for response in call:
                seen.take(response.event)
                if time.monotonic() >= cut_at and seen.ending is None:
                    call.cancel()
                    num_cuts += 1
                    break
            if seen.ending is not None:
                break
            call = stub.Attach(
                pb.AttachRequest(contemplation_id=seen.id, after_event_number=seen.last), timeout=60
            )
        assert seen.outcome() == undisturbed.outcome()
    print(f"\n{num_cuts} cuts over {num_contemplations} contemplations")


def report(what: str, count: int, gaps_s: dict[str, list[float]]) -> None:
    """Prints the gaps, and writes them if they were asked for."""
    found: dict[str, Any] = {"journal": JOURNAL, what: count}
    for name, values in gaps_s.items():
        if values:
            ordered = sorted(values)
            found[f"{name}_gap_s"] = {
                "count": len(ordered),
                "median": round(statistics.median(ordered), 3),
                "p99": round(ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 3),
                "max": round(ordered[-1], 3),
            }
    print("\n" + json.dumps(found))
    if path := os.environ.get("COGITATE_CHAOS_JSON"):
        Path(path).write_text(json.dumps(found, indent=2) + "\n")
