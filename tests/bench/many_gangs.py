"""Does anything pile up? Thousands of short gangs in a row through one engine.

    python -m tests.bench.many_gangs [--gangs 10000] [--at-once 8] [--json F]

Gangs of 1 to 4 agents on the embedded model, all by one seed. Of every ten, one is killed at its
beginning, one is killed agent by agent while it runs, and one cannot fit and is refused. Counted:
how each ended, every block free again, the pool's own integrity, resident memory, threads and live
Python objects, after a warm-up and at the end. Blocks are mapped as they are first used: a warm-up
of some hundred gangs touches all.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import threading
import time
from collections import Counter
from typing import Any

from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.load import EngineLimits
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.sequence import Position
from cogitate.agent_decoder.core.starts import AgentStart, GangStart
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model import loader
from cogitate.agent_decoder.model.backend import Wanted

from tests.bench import machine, report
from tests.bench.kv_memory import MINI

NUM_BLOCKS, BLOCK_SIZE, MAX_AGENTS = 512, 16, 32
WARM_SHARE = 0.1  # of the gangs, before anything is counted
WAIT_S = 120.0


class Crowd:
    """Opens gangs on one engine, so many at a time, and counts how they end."""

    def __init__(self, seed: int) -> None:
        model = loader.load("mini", MINI, Wanted(device="cpu", block_size=BLOCK_SIZE, threads=2))
        self._vocabulary = model.config.vocab_size
        limits = EngineLimits(NUM_BLOCKS, BLOCK_SIZE, MAX_AGENTS, 64, 0)
        self.engine = Engine(model, limits, self._hear)
        self.engine.start()
        self._dice = random.Random(seed)
        self._news = threading.Condition()
        self._open: set[int] = set()
        self._next_key = 0
        self.endings: Counter[str] = Counter()
        self.finishes: Counter[str] = Counter()

    def _hear(self, key: int, events: list[ev.Event]) -> None:
        with self._news:
            for event in events:
                if isinstance(event, ev.Finished):
                    self.finishes[event.finish.value] += 1
                elif isinstance(event, ev.GangDone | ev.Refused):
                    self._open.remove(key)  # a second ending raises
                    self.endings[type(event).__name__] += 1
            self._news.notify_all()

    def run(self, count: int, at_once: int, advance: Any) -> None:
        """Runs so many gangs to their ends. Raises TimeoutError if one has none."""
        for _ in range(count):
            self._wait_for_fewer_than(at_once)
            self._one()
            advance()
        self._wait_for_fewer_than(1)

    def _wait_for_fewer_than(self, most: int) -> None:
        with self._news:
            if not self._news.wait_for(lambda: len(self._open) < most, WAIT_S):
                raise TimeoutError("a gang has not ended")

    def _one(self) -> None:
        dice, key = self._dice, self._next_key
        self._next_key += 1
        fate = key % 10
        agents = MAX_AGENTS + 1 if fate == 9 else dice.randint(1, 4)
        params = SamplingParams(temperature=0.8, max_tokens=dice.randint(2, 8), ignore_eos=True)
        prompt = [dice.randrange(self._vocabulary) for _ in range(dice.randint(8, 48))]
        starts = tuple(AgentStart(i, 1, params, seed=key) for i in range(agents))
        with self._news:
            self._open.add(key)
        self.engine.open(key, GangStart(tuple(map(Position, prompt)), starts, salt=str(key % 7)))
        if fate == 7:
            self.engine.abort(key, "DECIDED")
        elif fate == 8:
            time.sleep(0.003)  # it is somewhere in the middle
            for agent in range(agents):
                self.engine.kill(key, (agent,), "DECIDED")
        self.engine.close(key)


def census(crowd: Crowd) -> dict[str, float]:
    """What there is now; garbage is collected first."""
    gc.collect()
    memory = machine.resident_mib(os.getpid())
    return {
        "gangs": sum(crowd.endings.values()),
        "free_blocks": crowd.engine.pool.num_free,
        "resident_mib": memory["now"],
        "peak_mib": memory["peak"],
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Warms up, counts, runs the rest, counts again."""
    crowd = Crowd(args.seed)
    to = report.console()
    warm = max(1, int(args.gangs * WARM_SHARE))
    stages = [census(crowd)]
    with report.progress(to) as progress:
        task = progress.add_task("gangs", total=args.gangs)
        for count in (warm, args.gangs - warm):
            began = time.perf_counter()
            crowd.run(count, args.at_once, lambda: progress.advance(task))
            stages.append({**census(crowd), "seconds": round(time.perf_counter() - began, 2)})
    crowd.engine.pool.check_integrity()
    crowd.engine.stop()
    names = ("before", "after the warm-up", "at the end")
    to.print(
        report.table(
            f"{args.gangs} gangs, {args.at_once} at once",
            ("", "gangs", "free blocks", "resident", "peak", "threads", "objects"),
            (
                (
                    name, s["gangs"], f"{s['free_blocks']} of {NUM_BLOCKS}",
                    f"{s['resident_mib']:.1f} MiB", f"{s['peak_mib']:.1f} MiB", s["threads"],
                    s["objects"],
                )
                for name, s in zip(names, stages, strict=True)
            ),
        )
    )  # fmt: skip
    grown = stages[2]["resident_mib"] - stages[1]["resident_mib"]
    to.print(
        f"ended: {dict(crowd.endings)}; agents: {dict(crowd.finishes)}; "
        f"resident memory grew by {grown:+.1f} MiB after the warm-up"
    )
    return {
        "stages": stages,
        "blocks": NUM_BLOCKS,
        "endings": dict(crowd.endings),
        "finishes": dict(crowd.finishes),
        "resident_growth_mib": round(grown, 1),
    }


def main() -> None:
    """Prints, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--gangs", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    report.write(args, **measure(args))


if __name__ == "__main__":
    main()
