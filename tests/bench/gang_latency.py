"""What do more agents cost? Wall time of a question with 1 to 16 agents, and the mesh's memory.

    python -m tests.bench.gang_latency [--rounds 10] [--agents 1,8] [--json F]

The numbers of agents alternate within each round, on one mesh, with quorum ``all`` so that every
agent writes to its end; the table shows medians and the ratio to one agent. Memory is the
proportional set size (PSS) of all processes after the rounds: shared pages count once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from cogitate.client import Client

from tests.integration.mesh import Mesh, running_mesh

BOARD = Path(__file__).parents[2] / "examples" / "board.png"
QUESTION = "What is the sum of the red cards?"


def measure(mesh: Mesh, agents: list[int], rounds: int) -> list[dict[str, float]]:
    """Asks in alternation; the first round warms up and is not counted."""
    walls: dict[int, list[float]] = {n: [] for n in agents}
    tokens: dict[int, list[int]] = {n: [] for n in agents}
    with Client(mesh.address) as client:
        for round_number in range(rounds + 1):
            for n in agents:
                began = time.perf_counter()
                answer = client.ask(
                    QUESTION, images=[BOARD], agents=n, seed=round_number, quorum="all"
                )
                if round_number:
                    walls[n].append(time.perf_counter() - began)
                    tokens[n].append(answer.usage.sampled_tokens)
    base = statistics.median(walls[agents[0]])
    return [
        {
            "agents": n,
            "rounds": rounds,
            "wall_median_s": round(statistics.median(walls[n]), 4),
            "wall_max_s": round(max(walls[n]), 4),
            "ratio": round(statistics.median(walls[n]) / base, 3),
            "tokens_median": statistics.median(tokens[n]),
        }
        for n in agents
    ]


def memory_mib(mesh: Mesh) -> dict[str, float]:
    """PSS of each member."""
    note = json.loads(next(mesh.state.rglob("mesh.json")).read_text())
    found = {}
    for member in note["members"]:
        rollup = Path(f"/proc/{member['process']['pid']}/smaps_rollup").read_text()
        pss = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        found[member["name"]] = round(int(pss.split()[1]) / 1024, 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--agents", default="1,2,4,8,16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    agents = [int(n) for n in args.agents.split(",")]
    with tempfile.TemporaryDirectory() as state, running_mesh(Path(state)) as mesh:
        rows = measure(mesh, agents, args.rounds)
        memory = memory_mib(mesh)
    print(f"{'agents':>6} {'median s':>9} {'max s':>8} {'ratio':>6} {'tokens':>7}")
    for row in rows:
        print(
            f"{row['agents']:>6} {row['wall_median_s']:>9.3f} {row['wall_max_s']:>8.3f} "
            f"{row['ratio']:>6.2f} {row['tokens_median']:>7.0f}"
        )
    print(
        f"memory {sum(memory.values()):.0f} MiB: "
        + ", ".join(f"{k} {v}" for k, v in memory.items())
    )
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "memory_mib": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()
