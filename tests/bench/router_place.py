"""How long placing a gang of 16 takes, and how many a core places a second, by size of the fleet.

`python -m tests.bench.router_place`. Fleets are unlike machines of twelve providers, partly busy,
or equal idle ones (`equal`: nothing can be ruled out). Each gang differs. `place` is the decision
alone on a fleet that is there as arrays; `desk` is the whole command: declaration, booking,
confirmation, a report of every endpoint that was used, release. Wall time, and CPU time of the one
thread: on a machine that does something else only the latter says what a core can do. Every case
is measured in each of several rounds, and its figures are the medians of the rounds: cores that are
shared with others change their speed from minute to minute.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from cogitate.router.core.board import Board
from cogitate.router.core.desk import Desk
from cogitate.router.core.estimate import CostModel
from cogitate.router.core.fleet import Fleet
from cogitate.router.core.learning import Speed
from cogitate.router.core.leases import Leases
from cogitate.router.core.placement import place_on
from cogitate.router.core.types import (
    Confirm,
    Constraints,
    Declare,
    Description,
    EndpointSnapshot,
    GangNeed,
    Granted,
    Load,
    Terms,
)

from tests.bench import report

AGENTS = 16
CONSTRAINTS = {
    "none": Constraints(),
    "2 domains": Constraints(min_failure_domains=2),
    "8 survive": Constraints(min_survivors=8),
    "8 survive, 4 domains": Constraints(min_survivors=8, min_failure_domains=4),
}


def description(i: int, equal: bool) -> Description:
    """One of twelve providers' machines, in eight regions, at seven prices."""
    return Description(
        f"e{i}", "host:1", f"p{i % 12}", f"r{i % 8}", f"z{i % 3}", models=("mini",),
        max_sequences=64, total_blocks=20_000, block_size=16, max_model_len=32_768,
        price_per_hour_micro_usd=1_000_000 if equal else (1 + i % 7) * 500_000,
    )  # fmt: skip


def snapshots(count: int, equal: bool) -> list[EndpointSnapshot]:
    """The fleet as the router sees it."""
    draw = random.Random(1)
    found = []
    for i in range(count):
        off = 0.0 if equal else draw.random()
        speed = Speed(0.01 + 0.03 * off, 0.0004 * (1 + draw.random() * (not equal)), 1e-7, 1e-4)
        running = 0 if equal else i % 13
        load = Load(running, free_blocks=20_000 - 100 * running)
        found.append(EndpointSnapshot(description(i, equal), load=load, speed=speed))
    return found


def gang(number: int, constraints: Constraints) -> GangNeed:
    return GangNeed(
        f"c{number}", "mini", tuple(range(AGENTS)), prefix_tokens=500 + number,
        tokens_per_agent=400 + number % 200, constraints=constraints,
    )  # fmt: skip


def timed(act: Callable[[int], Any], count: int) -> dict[str, float]:
    """Milliseconds of single calls, and calls a second of CPU time."""
    for number in range(10):
        act(-1 - number)
    wall, cpu = [], []
    for number in range(count):
        began, spent = time.perf_counter(), time.thread_time()
        act(number)
        wall.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.thread_time() - spent) * 1e3)
    wall.sort()
    ordered = sorted(cpu)
    last = min(count - 1, int(0.99 * count))
    return {
        "wall_p50_ms": wall[count // 2],
        "wall_p99_ms": wall[last],
        "cpu_p50_ms": ordered[count // 2],
        "cpu_p99_ms": ordered[last],
        "a_second_of_cpu": count / (sum(cpu) / 1e3),
        "count": count,
    }


def on_a_board(count: int, equal: bool, constraints: Constraints) -> Callable[[int], Any]:
    """The decision alone."""
    board = Board.of(snapshots(count, equal), CostModel())
    return lambda number: place_on(gang(number + 20, constraints), board, 0.0, "gang")


def at_a_desk(count: int, constraints: Constraints) -> Callable[[int], Any]:
    """The whole command."""
    desk = Desk(Fleet(1e9, count), Leases(2.0))
    for i in range(count):
        desk.fleet.describe(i, description(i, False), 0.0)
        desk.fleet.report(i, f"e{i}", Load(i % 13, free_blocks=18_000), 0.0)
    desk.board(0.0)

    def act(number: int) -> None:
        now = 1.0 + (number + 20) / 100
        need = gang(number + 20, constraints)
        name = need.contemplation_id
        granted = desk.declare(Declare(name, 1, (need,), 0, Terms(constraints)), 1, now)
        assert isinstance(granted, Granted)
        gangs = tuple(
            (g.gang_id, g.share.endpoint_id, len(g.share.agent_ids)) for g in granted.gangs
        )
        desk.confirm(Confirm(name, 1, gangs), 1, now)
        for _, endpoint_id, _ in gangs:
            i = int(endpoint_id[1:])
            desk.fleet.report(i, endpoint_id, Load(i % 13, free_blocks=18_000), now)
        desk.board(now)
        desk.release(name, 1, now)

    return act


def _range(values: list[int]) -> str:
    return f"{values[0]}–{values[-1]}"


def main() -> None:
    """Prints a table; asserts nothing."""
    parser = report.parser(__doc__ or "")
    parser.add_argument("--endpoints", default="100,1000,10000")
    parser.add_argument("--count", type=int, default=300, help="gangs a round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    console = report.console()
    sizes = [int(part) for part in args.endpoints.split(",")]
    cases = [(size, name) for size in sizes for name in CONSTRAINTS]
    found: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    with report.progress(console) as bar:
        for size, name in bar.track(cases * args.rounds, description="placing"):
            limits = CONSTRAINTS[name]
            acts = {
                "place": on_a_board(size, False, limits),
                "place, equal": on_a_board(size, True, limits),
                "desk": at_a_desk(size, limits),
            }
            for what, act in acts.items():
                found.setdefault((what, size, name), []).append(timed(act, args.count))
    rows: list[dict[str, Any]] = [
        {"endpoints": size, "constraints": name, "what": what}
        | {figure: statistics.median(r[figure] for r in rounds) for figure in rounds[0]}
        | {"a_second_of_cpu_by_round": sorted(round(r["a_second_of_cpu"]) for r in rounds)}
        for (what, size, name), rounds in found.items()
    ]
    columns = (
        "what",
        "endpoints",
        "constraints",
        "p50 ms",
        "p99 ms",
        "CPU p50",
        "CPU p99",
        "a second",
        "of rounds",
    )
    lines = [
        (
            row["what"], row["endpoints"], row["constraints"], f"{row['wall_p50_ms']:.2f}",
            f"{row['wall_p99_ms']:.2f}", f"{row['cpu_p50_ms']:.2f}", f"{row['cpu_p99_ms']:.2f}",
            f"{row['a_second_of_cpu']:.0f}", _range(row["a_second_of_cpu_by_round"]),
        )
        for row in rows
    ]  # fmt: skip
    title = f"placing a gang of {AGENTS}, {args.count} times in each of {args.rounds} rounds"
    console.print(report.table(title, columns, lines))
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
