"""One contemplation of N agents on one prompt, by our engine and its peers, in alternation.

    python -m tests.bench.decode.install            # the peers, once
    python -m tests.bench.decode [MODEL_DIRECTORY]  # or: make bench-decode
    python -m tests.bench.decode --shape llama-1b --prompt 512,4096 --agents 1,8,16,32

Every engine is a process of its own with the same weights and threads. Within a round they take
turns at each shape, so that a busy moment of the machine meets all of them; the tables show medians
and the ratio of aggregate tokens a second to each peer. All agents sample at temperature 0.8 and
write exactly the tokens asked for. The machine's own peaks are measured in the same run; a step's
floor is what it must read, or multiply, at those. An engine that cannot go on is left out from
there; what it did until then counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import machine, report
from tests.bench.decode import forms, peers, random_model, tables
from tests.bench.decode.plot import draw
from tests.bench.decode.tables import Shape

MODEL = "smollm2-135m-instruct"
FOLDERS = (Path.home() / ".local/share/cogitate/models", peers.ROOT / ".cache" / "models")
WARM_PROMPT, WARM_TOKENS = 128, 8
# Before each turn: the threads of an engine that has just answered wait for more work at full load
# for a while (OpenMP's for a fifth of a second), which the next engine would pay for.
SETTLE_S = 0.5


def main() -> None:
    """Measures, prints, writes."""
    args = parse()
    console = Console(width=None if sys.stdout.isatty() else 140)
    model = random_model.made(args.shape, console) if args.shape else args.model
    engines = peers.chosen(args.engine)
    shapes = [(p, 1, n) for p in args.prompt for n in args.agents]
    if args.several:
        shapes += [(p, args.several, 8) for p in args.prompt]
    found = {"machine": machine.facts(), "peaks": machine.peaks(args.threads)}
    settings = {"model": model.name, "tokens": args.tokens, "threads": args.threads}

    def rows(timings: Timings) -> list[tables.Row]:
        made = tables.rows(timings, model, args.tokens, found["peaks"])
        if args.json:  # after every turn: what was measured stays, whatever comes
            args.json.write_text(json.dumps({**settings, **found, "rows": made}, indent=2) + "\n")
        return made

    measured = Measurement(model, args, console)
    try:
        measured.start(engines)
        measured.run(shapes, rows)
    finally:
        measured.close()
    # Peaks are the best of before and after: a moment's neighbour must not lower the floor's bar.
    after = machine.peaks(args.threads)
    found["peaks"] = {name: max(value, after[name]) for name, value in found["peaks"].items()}
    show(rows(measured.timings), found["peaks"], settings, console)
    if args.plot:
        draw(rows(measured.timings), args.plot)


def show(
    rows: list[tables.Row], peaks: dict[str, float], settings: dict[str, Any], console: Console
) -> None:
    """Prints the tables, and what they were measured with."""
    console.print(tables.speed(rows))
    console.print(tables.floors(rows))
    products = ", ".join(
        f"{value:.0f} {name.removesuffix('_gflop_s')}"
        for name, value in peaks.items()
        if name.endswith("_gflop_s")
    )
    console.print(
        f"machine: {peaks['read_gb_s']} GB/s read, products in GFLOP/s: {products}; "
        f"{settings['model']}, {settings['tokens']} new tokens, {settings['threads']} threads"
    )


def parse() -> argparse.Namespace:
    """The flags."""
    numbers = {"type": lambda text: [int(n) for n in text.split(",")], "metavar": "N,N,…"}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = next((f / MODEL for f in FOLDERS if (f / MODEL).exists()), FOLDERS[0] / MODEL)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=usual, help="(%(default)s)"
    )
    parser.add_argument(
        "--shape", choices=sorted(random_model.SHAPES), help="random weights in place of a model"
    )
    known = ", ".join(engine.key for engine in peers.engines())
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME:TYPE",
        help=f"may be repeated; the usual ones that are installed if not given; one of {known}",
    )  # fmt: skip
    parser.add_argument("--agents", **numbers, default=[1, 8, 16], help="(1,8,16)")
    parser.add_argument("--several", type=int, default=0, metavar="N", help="also N times 8 agents")
    parser.add_argument("--prompt", **numbers, default=[512], help="tokens (512)")
    parser.add_argument("--tokens", type=int, default=128, help="new ones (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="beside a short one to warm up (3)")
    parser.add_argument(
        "--once-over-s", type=float, default=30.0, metavar="S",
        help="what takes longer is not repeated in later rounds (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    return parser.parse_args()


Timings = dict[tuple[peers.Engine, Shape], list[dict[str, float]]]


@dataclass
class Measurement:
    """The running engines and what they took so far."""

    model: Path
    args: argparse.Namespace
    console: Console
    workers: list[peers.Worker] = field(default_factory=list)
    timings: Timings = field(default_factory=dict)

    def start(self, engines: list[peers.Engine]) -> None:
        """Starts those that can be."""
        logs = peers.PEERS / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for engine in engines:
            self.console.print(f"starting {engine.label} …")
            weights = forms.made(self.model, engine.form)
            log = logs / f"{engine.key.replace(':', '-')}.log"
            try:
                self.workers.append(peers.Worker(engine, weights, self.args.threads, log))
            except peers.EngineGone as error:
                self.console.print(f"[red]left out: {error}[/red]")

    def run(self, shapes: list[Shape], after_turn: Any) -> None:
        """All rounds; the first warms up, with short prompts and few tokens, and is not counted."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console) as progress:
            warm = list(dict.fromkeys((min(p, WARM_PROMPT), c, n) for p, c, n in shapes))
            turns = len(warm) + self.args.rounds * len(shapes)
            task = progress.add_task("measuring", total=turns * len(self.workers))
            for number in range(self.args.rounds + 1):
                for shape in shapes if number else warm:
                    for worker in list(self.workers):
                        progress.update(task, description=f"{worker.engine.label} {shape}")
                        self._turn(worker, shape, number)
                        progress.advance(task)
                        if number:
                            after_turn(self.timings)
            progress.update(task, description="measured")

    def close(self) -> None:
        """Ends the engines."""
        for worker in self.workers:
            worker.close()

    def _turn(self, worker: peers.Worker, shape: Shape, number: int) -> None:
        found = self.timings.get((worker.engine, shape), [])
        if any(run["total_s"] > self.args.once_over_s for run in found):
            return
        tokens = self.args.tokens if number else min(self.args.tokens, WARM_TOKENS)
        time.sleep(SETTLE_S)
        try:
            timing = worker.run(job(shape, number, tokens, self.model))
        except peers.EngineGone as error:
            self.console.print(f"[red]left out from here: {error}[/red]")
            self.workers.remove(worker)
            worker.close()
            return
        if number:
            self.timings[worker.engine, shape] = [*found, timing]


def job(shape: Shape, seed: int, tokens: int, model: Path) -> dict[str, Any]:
    """Prompts that begin differently, so that no cache of an earlier round helps."""
    prompt, contemplations, agents = shape
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    prompts = [
        [(seed * 977 + c * 131 + agents * 17 + i * 7) % vocabulary for i in range(prompt)]
        for c in range(contemplations)
    ]
    return {
        "prompts": prompts,
        "agents": agents,
        "num_tokens": tokens,
        "temperature": 0.8,
        "seed": seed,
    }


if __name__ == "__main__":
    main()
