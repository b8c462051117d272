"""What does the journal cost? Tokens a second and the aggregator's CPU time, by kind of journal.

    python -m tests.bench.journal_cost [--rounds 40] [--agents 8] [--json F]

Four aggregators before the same router and decoders take turns within a round, each with the same
question and seed: *none* journals nothing (`bare_aggregator`), *memory* is SQLite without a file,
*sqlite* is the default of `cogitate up`, *fsync* survives power loss too, *nats* is JetStream in a
nats-server of its own, where that is installed. Every agent writes to its end. CPU time is the
aggregator process's own, user and system; the server's is told apart.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from cogitate.cli.mesh.plan import Member, Options, members, port_count
from cogitate.cli.mesh.processes import Processes, free_ports
from cogitate.client import Client
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1.contemplation_service_pb2_grpc import ContemplationServiceStub

from tests.bench import report
from tests.fakes.nats_server import nats_process

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"
KINDS = ("none", "memory", "sqlite", "fsync", *(["nats"] if shutil.which("nats-server") else []))
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Measured:
    """One aggregator's runs, a number each."""

    tokens_per_s: list[float] = field(default_factory=list)
    first_event_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    server_cpu_s: float = 0.0
    tokens: int = 0


def planned(folder: Path, nats: str) -> tuple[Member, ...]:
    """The mesh of `cogitate up` with one aggregator of each kind."""
    options = Options(decoders=2, aggregators=len(KINDS))
    ports = free_ports(port_count(options))
    made = []
    kinds = iter(KINDS)
    for member in members(options, ports, folder, folder / "traces.sqlite"):
        if member.module == "cogitate.aggregator":
            member = _of_kind(member, next(kinds), folder, nats)
        made.append(member)
    return tuple(made)


def _of_kind(member: Member, kind: str, folder: Path, nats: str) -> Member:
    arguments = list(member.arguments)
    at = arguments.index("--journal")
    journal = nats if kind == "nats" else str(folder / f"{kind}.sqlite")
    arguments[at : at + 2] = [] if kind in ("none", "memory") else ["--journal", journal]
    if kind == "fsync":
        arguments += ["--journal-fsync", "true"]
    module = "tests.bench.bare_aggregator" if kind == "none" else member.module
    return replace(member, module=module, arguments=tuple(arguments))


def ask(address: str, digest: str, agents: int, seed: int) -> tuple[float, float, int]:
    """One contemplation; returns wall time, time to the second event, and tokens."""
    spec = pb.ContemplationSpec(agent_count=agents, quorum="all", model="mini")
    message = spec.conversation.add(role="ROLE_USER")
    message.parts.add(image=common.ImagePart(digest=digest))
    message.parts.add(text=QUESTION)
    spec.sampling_params.seed = seed
    with grpc.insecure_channel(address) as channel:
        began, first_s = time.perf_counter(), 0.0
        call = ContemplationServiceStub(channel).Contemplate(
            pb.ContemplateRequest(spec=spec), timeout=60
        )
        for response in call:
            if response.event.event_number == 2:
                first_s = time.perf_counter() - began
        wall_s = time.perf_counter() - began
    return wall_s, first_s, response.event.verdict.usage.sampled_token_count


def cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def run(args: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    found = {kind: Measured() for kind in KINDS}
    console = report.console()
    with ExitStack() as stack:
        server = stack.enter_context(nats_process(folder)) if "nats" in KINDS else None
        mesh = Processes(planned(folder, server.url if server else ""), folder)
        stack.callback(mesh.stop)
        mesh.start()
        addresses = {}
        kinds = iter(KINDS)
        pids = {}
        for member, noted in zip(mesh.members, mesh.noted(), strict=True):
            if "aggregator" in member.module:
                kind = next(kinds)
                addresses[kind], pids[kind] = member.address, noted.process.pid
        with Client(mesh.members[0].address) as client:
            digest = client.upload(BOARD)
        with report.progress(console) as bar:
            task = bar.add_task("rounds", total=args.rounds + 1)
            for number in range(args.rounds + 1):
                turn = number % len(KINDS)
                for kind in (*KINDS[turn:], *KINDS[:turn]):
                    before = cpu_s(pids[kind])
                    served = cpu_s(server.process.pid) if server and kind == "nats" else 0.0
                    wall_s, first_s, tokens = ask(addresses[kind], digest, args.agents, number)
                    if number:  # the first warms up
                        one = found[kind]
                        one.tokens_per_s.append(tokens / wall_s)
                        one.first_event_s.append(first_s)
                        one.cpu_s += cpu_s(pids[kind]) - before
                        one.tokens += tokens
                        if server and kind == "nats":
                            one.server_cpu_s += cpu_s(server.process.pid) - served
                bar.advance(task)
    return found


def rows(found: dict[str, Measured], folder: Path) -> list[dict[str, Any]]:
    base = statistics.median(found["none"].tokens_per_s)
    made = []
    for kind, one in found.items():
        # Rounds have questions of unlike length: compare within them.
        ratios = [a / b for a, b in zip(one.tokens_per_s, found["none"].tokens_per_s, strict=True)]
        file = folder / f"{kind}.sqlite"
        made.append(
            {
                "journal": kind,
                "tokens_per_s": round(statistics.median(one.tokens_per_s), 1),
                "ratio_of_medians": round(statistics.median(one.tokens_per_s) / base, 4),
                "median_ratio_in_round": round(statistics.median(ratios), 4),
                "second_event_ms": round(statistics.median(one.first_event_s) * 1e3, 2),
                "cpu_ms_per_1000_tokens": round(one.cpu_s / one.tokens * 1e6, 1),
                "server_cpu_ms_per_1000_tokens": round(one.server_cpu_s / one.tokens * 1e6, 1),
                "bytes_per_token": round(file.stat().st_size / one.tokens, 1)
                if file.exists()
                else 0,
            }
        )
    return made


def main() -> None:
    parser = report.parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--agents", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = run(args, Path(name))
        table = rows(found, Path(name))
    columns = list(table[0])
    report.console().print(
        report.table("the journal's cost", columns, [row.values() for row in table])
    )
    report.write(args, rows=table, runs={k: one.tokens_per_s for k, one in found.items()})


if __name__ == "__main__":
    main()
