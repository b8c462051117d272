"""What does waiting cost? CPU time and memory of every process of a mesh that nobody asks anything.

    python -m tests.bench.idle [MODEL_DIRECTORY] [--seconds 10] [--json F]

Measured right after the start, and again after one question, when threads that computed might go
on spinning. Times are the kernel's own, to the nanosecond.
"""

from __future__ import annotations

import time

from cogitate.client import Client

from tests.bench import machine, report
from tests.bench.kv_memory import MINI
from tests.bench.local_mesh import LocalMesh, local_mesh, options_for

SETTLE_S = 2.0


def idle_cpu_s(mesh: LocalMesh, seconds: float) -> dict[str, float]:
    """CPU seconds each process uses meanwhile."""
    time.sleep(SETTLE_S)
    before = {name: machine.cpu_s(pid) for name, pid in mesh.pids.items()}
    time.sleep(seconds)
    return {name: round(machine.cpu_s(pid) - before[name], 4) for name, pid in mesh.pids.items()}


def main() -> None:
    """Prints a line a process, writes."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "model", nargs="?", type=report.resolved, default=MINI, help="the embedded one"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    to = report.console()
    with local_mesh(options_for(args.model, args.threads), to) as mesh:
        fresh = idle_cpu_s(mesh, args.seconds)
        with Client(mesh.address) as client:
            client.ask("What is 19 + 7?", agents=8, model=args.model.name, max_tokens=32)
        after = idle_cpu_s(mesh, args.seconds)
        memory = {name: machine.resident_mib(pid) for name, pid in mesh.pids.items()}
    rows = [
        {
            "process": name,
            "fresh_cpu_s": fresh[name],
            "after_work_cpu_s": after[name],
            "resident_mib": memory[name]["now"],
        }
        for name in mesh.pids
    ]
    to.print(
        report.table(
            f"CPU seconds used in {args.seconds:g} idle seconds",
            ("process", "fresh", "after a question", "share of a core", "resident"),
            (
                (
                    r["process"], f"{r['fresh_cpu_s']:.3f}", f"{r['after_work_cpu_s']:.3f}",
                    f"{r['after_work_cpu_s'] / args.seconds:.2%}", f"{r['resident_mib']:.0f} MiB",
                )
                for r in rows
            ),
        )
    )  # fmt: skip
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
