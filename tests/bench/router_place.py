"""How long a placement takes: `python tests/bench/router_place.py`. Prints; asserts nothing."""

from __future__ import annotations

import time

from cogitate.router.core.placement import PlacementPolicy, place
from cogitate.router.core.types import (
    Constraints,
    Description,
    EndpointSnapshot,
    GangNeed,
    Load,
)


def fleet(count: int) -> list[EndpointSnapshot]:
    """Returns unlike endpoints of seven providers."""
    return [
        EndpointSnapshot(
            Description(f"e{i}", "host:1", f"p{i % 7}", models=("mini",), max_sequences=64),
            load=Load(running=i % 13, step_s=0.01 + i % 17 / 1000, step_batch_size=1.0 + i % 13),
        )
        for i in range(count)
    ]


def main() -> None:
    """Prints one line for each size."""
    for endpoints, agents in ((10, 8), (100, 16), (1000, 16), (1000, 64)):
        need = GangNeed(
            "c", "mini", tuple(range(agents)), prefix_tokens=500, tokens_per_agent=500,
            constraints=Constraints(min_failure_domains=2),
        )  # fmt: skip
        snapshots = fleet(endpoints)
        started = time.perf_counter()
        placement = place(need, snapshots, 0.0, PlacementPolicy())
        elapsed_ms = (time.perf_counter() - started) * 1000
        shares = len(placement.shares)
        print(f"{endpoints:5} endpoints {agents:3} agents {shares:2} used {elapsed_ms:7.1f} ms")


if __name__ == "__main__":
    main()
