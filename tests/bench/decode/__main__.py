"""One contemplation of N agents on one prompt, by our engine and its peers, in alternation.

    python -m tests.bench.decode.install          # the peers, once
    python -m tests.bench.decode MODEL_DIRECTORY  # or: make bench-decode

Every engine is a process of its own with the same weights and threads. Within a round they take
turns at each shape, so that a busy moment of the machine meets all of them; the table shows medians
and the ratio of aggregate tokens a second to each peer. All agents sample at temperature 0.8 and
write exactly the tokens asked for. The machine's own peaks are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.bench.decode import peers
from tests.bench.decode.plot import draw

DEFAULT_MODEL = Path.home() / ".local/share/cogitate/models/smollm2-135m-instruct"


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    console = Console(width=None if sys.stdout.isatty() else 110)
    engines = peers.chosen(args.engine)
    shapes = [(1, n) for n in args.agents]
    if args.several:
        shapes.append((args.several, 8))
    rows = measure(engines, shapes, args, console)
    peaks = machine_peaks(args.threads)
    console.print(table(rows))
    console.print(
        f"machine: {peaks['read_gb_s']} GB/s read, {peaks['gemm_gflop_s']} GFLOP/s float32 "
        f"product, {args.threads} threads; prompt {args.prompt}, {args.tokens} new tokens"
    )
    if args.json:
        facts = {"prompt": args.prompt, "tokens": args.tokens, "threads": args.threads, **peaks}
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")
    if args.plot:
        draw(rows, args.plot)


def parse() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=str(DEFAULT_MODEL), help="(%(default)s)")
    parser.add_argument("--engine", action="append", default=[], metavar="NAME:DTYPE")
    parser.add_argument(
        "--agents", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8, 16]
    )
    parser.add_argument("--several", type=int, default=0, metavar="N", help="also N times 8 agents")
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


def measure(
    engines: list[peers.Engine],
    shapes: list[tuple[int, int]],
    args: argparse.Namespace,
    console: Console,
) -> list[dict[str, Any]]:
    """One row an engine and shape. The first round warms up and is not counted."""
    logs = peers.PEERS / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    workers, timings = [], {}
    try:
        for engine in engines:
            console.print(f"starting {engine.label} …")
            log = logs / f"{engine.label.replace(' ', '-')}.log"
            workers.append(peers.Worker(engine, args.model, args.threads, log))
        with Progress(console=console) as progress:
            steps = (args.rounds + 1) * len(shapes) * len(workers)
            task = progress.add_task("measuring", total=steps)
            for number in range(args.rounds + 1):
                for shape in shapes:
                    for worker in workers:
                        timing = worker.run(job(shape, number, args))
                        if number:
                            timings.setdefault((worker.engine.label, shape), []).append(timing)
                        progress.advance(task)
    finally:
        for worker in workers:
            worker.close()
    return [summary(label, shape, found, args) for (label, shape), found in timings.items()]


def job(shape: tuple[int, int], seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Prompts that begin differently, so that no cache of an earlier round helps."""
    contemplations, agents = shape
    vocabulary = json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    prompts = [
        [(seed * 977 + c * 131 + agents * 17 + i * 7) % vocabulary for i in range(args.prompt)]
        for c in range(contemplations)
    ]
    return {
        "prompts": prompts,
        "agents": agents,
        "num_tokens": args.tokens,
        "temperature": 0.8,
        "seed": seed,
    }


def summary(
    label: str, shape: tuple[int, int], found: list[dict[str, float]], args: argparse.Namespace
) -> dict[str, Any]:
    """Medians of one engine and shape."""
    contemplations, agents = shape
    total_s = statistics.median(t["total_s"] for t in found)
    return {
        "engine": label,
        "contemplations": contemplations,
        "agents": agents,
        "rounds": len(found),
        "total_s": round(total_s, 3),
        "total_spread_s": [round(f(t["total_s"] for t in found), 3) for f in (min, max)],
        "first_token_s": round(statistics.median(t["first_token_s"] for t in found), 3),
        "tokens_per_s": round(contemplations * agents * args.tokens / total_s, 1),
        "peak_mib": max(t["peak_mib"] for t in found),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Rows by shape, with the ratio of our bfloat16 to each."""
    made = Table(title="one contemplation, N agents")
    for name in (
        "engine",
        "shape",
        "total",
        "first token",
        "tokens/s",
        "ours / it",
        "T(N)/T(1)",
        "peak",
    ):
        made.add_column(name, justify="left" if name == "engine" else "right")
    found = {(r["engine"], r["contemplations"], r["agents"]): r for r in rows}
    for row in sorted(rows, key=lambda r: (r["contemplations"], r["agents"])):
        ours = found.get(("cogitate bfloat16", row["contemplations"], row["agents"]))
        alone = found.get((row["engine"], 1, 1))
        made.add_row(
            row["engine"],
            f"{row['contemplations']} × {row['agents']}",
            f"{row['total_s']:.2f} s",
            f"{1000 * row['first_token_s']:.0f} ms",
            f"{row['tokens_per_s']:.0f}",
            f"{ours['tokens_per_s'] / row['tokens_per_s']:.2f}" if ours else "",
            f"{row['total_s'] / alone['total_s']:.2f}" if alone else "",
            f"{row['peak_mib']:.0f} MiB",
        )
    return made


def machine_peaks(threads: int) -> dict[str, float]:
    """What the machine reaches in torch: reading memory, and a large float32 product."""
    import torch

    torch.set_num_threads(threads)
    block = torch.ones(64_000_000)
    square = torch.ones(1024, 1024)

    def best_s(act: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            act()
            times.append(time.perf_counter() - began)
        return min(times)

    return {
        "read_gb_s": round(block.numel() * 4 / best_s(block.sum) / 1e9, 1),
        "gemm_gflop_s": round(2 * 1024**3 / best_s(lambda: square @ square) / 1e9, 1),
    }


if __name__ == "__main__":
    main()
