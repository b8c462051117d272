"""Does an engine bear a neighbour? Its tokens a second alone, and beside gRPC on the same cores.

    python -m tests.bench.shared_core [MODEL_DIRECTORY] [--engine cogitate:bfloat16 …] [--json F]

A gRPC server and a client that streams messages to it and reads them back run on the cores that
compute, as the services of a mesh do. Their share of the cores is measured: an engine that loses no
more than that share bears them well, and the column "kept of the rest" is 100 % then. An engine
whose threads wait for each other by spinning loses far more. Alone and beside take turns in each
round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.bench import machine, report
from tests.bench.decode import forms, peers
from tests.bench.decode.__main__ import FOLDERS, MODEL, WARM_TOKENS, job

ENGINES = ("cogitate:bfloat16", "vllm:float32")


class Neighbour:
    """The two gRPC processes; between `go` and `stop` they are busy."""

    def __init__(self, rate: float, size: int) -> None:
        self._server = self._process("serve")
        port = self._read(self._server)
        self._client = self._process("drive", port, str(rate), str(size))
        self._before = self._began = 0.0

    def go(self) -> None:
        """Begins to stream."""
        self._say("go")
        self._before, self._began = self._cpu_s(), time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Ends; returns what was sent, and the share of all cores it took."""
        used, wall_s = self._cpu_s() - self._before, time.perf_counter() - self._began
        self._say("stop")
        found: dict[str, float] = json.loads(self._read(self._client))
        return {**found, "share": used / (wall_s * (os.cpu_count() or 1))}

    def close(self) -> None:
        """Ends both processes."""
        for process in (self._client, self._server):
            process.communicate()  # their input ends, and so do they

    def _cpu_s(self) -> float:
        return machine.cpu_s(self._server.pid) + machine.cpu_s(self._client.pid)

    def _say(self, word: str) -> None:
        assert self._client.stdin is not None
        self._client.stdin.write(f"{word}\n")
        self._client.stdin.flush()

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        if not (line := process.stdout.readline()):
            raise SystemExit("the echo ended")
        return line.strip()

    @staticmethod
    def _process(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.bench.echo", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=peers.ROOT)


@contextlib.contextmanager
def running(args: argparse.Namespace) -> Iterator[tuple[list[peers.Worker], Neighbour]]:
    """The engines and the neighbour, until the block is left."""
    logs = peers.PEERS / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        neighbour = Neighbour(args.rate, args.bytes)
        stack.callback(neighbour.close)
        workers = []
        for engine in peers.chosen(args.engine):
            weights = forms.made(args.model, engine.form)
            log = logs / f"{engine.key.replace(':', '-')}.log"
            workers.append(peers.Worker(engine, weights, args.threads, log))
            stack.callback(workers[-1].close)
        yield workers, neighbour


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of alone and beside, engine by engine; the first warms up and is not counted."""
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with running(args) as (workers, neighbour), report.progress(report.console()) as progress:
        turns = (args.rounds + 1) * len(args.agents) * len(workers)
        task = progress.add_task("rounds", total=turns)
        for number in range(args.rounds + 1):
            for agents in args.agents:
                for worker in workers:
                    tokens = args.tokens if number else min(args.tokens, WARM_TOKENS)
                    asked = job((args.prompt, 1, agents), number, tokens, args.model)
                    alone = worker.run(asked)
                    neighbour.go()
                    beside = worker.run(asked)
                    load = neighbour.stop()
                    if number:
                        key = worker.engine.label, agents
                        run = {"alone": alone, "beside": beside, "load": load}
                        runs.setdefault(key, []).append(run)
                    progress.advance(task)
    return [row(*key, found) for key, found in runs.items()]


def row(engine: str, agents: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of one engine and number of agents."""
    kept = [run["alone"]["total_s"] / run["beside"]["total_s"] for run in runs]
    shares = [run["load"]["share"] for run in runs]
    return {
        "engine": engine,
        "agents": agents,
        "rounds": len(runs),
        "alone_s": report.median(run["alone"]["total_s"] for run in runs),
        "beside_s": report.median(run["beside"]["total_s"] for run in runs),
        "kept": report.median(kept),
        "share_of_cores": report.median(shares, 4),
        "kept_of_what_was_left": report.median(
            k / (1 - share) for k, share in zip(kept, shares, strict=True)
        ),
        "messages_per_s": report.median(r["load"]["echoed"] / r["load"]["seconds"] for r in runs),
        "trip_p99_ms": report.median(run["load"]["trip_p99_ms"] for run in runs),
        "runs": runs,
    }


def main() -> None:
    """Measures, prints, writes."""
    parser = report.parser(__doc__)
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME:TYPE",
        help=f"may be repeated; {' and '.join(ENGINES)} if not given, as far as installed",
    )  # fmt: skip
    parser.add_argument(
        "--agents", type=lambda t: [int(n) for n in t.split(",")], default=[8], metavar="N,N,…"
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="new ones (%(default)s)")
    parser.add_argument("--rate", type=float, default=2000.0, help="messages a second (2000)")
    parser.add_argument("--bytes", type=int, default=64, help="of a message (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="beside one to warm up (%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if not args.engine:
        args.engine = [e.key for e in peers.engines() if e.key in ENGINES and e.is_installed]
    rows = measure(args)
    report.console().print(
        report.table(
            f"an engine beside gRPC at {args.rate:g} messages a second on the same cores",
            ("engine", "agents", "alone", "beside", "kept", "gRPC's share", "kept of the rest",
             "echoed/s", "echo p99"),
            (
                (
                    r["engine"], r["agents"], f"{r['alone_s']:.2f} s", f"{r['beside_s']:.2f} s",
                    f"{r['kept']:.1%}", f"{r['share_of_cores']:.1%}",
                    f"{r['kept_of_what_was_left']:.1%}", f"{r['messages_per_s']:.0f}",
                    f"{r['trip_p99_ms']:.1f} ms",
                )
                for r in rows
            ),
        )
    )  # fmt: skip
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
