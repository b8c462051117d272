"""How long does a program in the sandbox take, as the caller of the real service sees it?

    python -m tests.bench.python_tool [--calls 50] [--pause-s 0.2] [--json F]

Two tool-executors as processes, one with sandboxes that wait, one without; the sides take turns.
"warm" finds a sandbox that waits; "cold" starts one in the call; "calculator" is what gRPC and the
rules of a call cost; "busy" is warm without a pause: new sandboxes start beside the program.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from cogitate.v1 import common_pb2
from cogitate.v1 import tool_executor_service_pb2 as pb
from cogitate.v1 import tool_executor_service_pb2_grpc as pb_grpc

from tests.bench import report

READY_S = 30.0
PROGRAM = {"code": "import math\nprint(sum(math.isqrt(n) for n in range(100)))"}
SUM = {"expression": "3*(4+5)"}


@contextmanager
def executor(warm: int) -> Iterator[pb_grpc.ToolExecutorServiceStub]:
    """A tool-executor as a process, with so many sandboxes that wait."""
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready"
        command = [
            sys.executable, "-m", "cogitate.tool_executor", "--ready-file", str(ready),
            "--python-warm-count", str(warm), "--log-level", "ERROR",
        ]  # fmt: skip
        process = subprocess.Popen(command, env=dict(os.environ))
        try:
            ends = time.monotonic() + READY_S
            while not ready.exists():
                if process.poll() is not None or time.monotonic() > ends:
                    raise SystemExit("the tool-executor does not start")
                time.sleep(0.02)
            with grpc.insecure_channel(ready.read_text().strip()) as channel:
                yield pb_grpc.ToolExecutorServiceStub(channel)
        finally:
            process.terminate()
            process.wait()


def call_ms(stub: Any, call_id: str, tool: str, arguments: dict[str, str]) -> float:
    """Runs one call; returns how long it took in ms."""
    call = common_pb2.ToolCall(call_id=call_id, name=tool, arguments_json=json.dumps(arguments))
    request = pb.ExecuteRequest(contemplation_id="bench", call=call, allowed_tools=[tool])
    began = time.perf_counter()
    *_, last = stub.Execute(request, timeout=30)
    took = time.perf_counter() - began
    if last.finished.result.is_error:
        raise SystemExit(f"{tool}: {last.finished.result.parts[0].text}")
    return round(took * 1e3, 3)


def main() -> None:
    """Prints a line a side, writes."""
    parser = report.parser(__doc__)
    parser.add_argument("--calls", type=int, default=50, help="of each side (%(default)s)")
    parser.add_argument("--warm", type=int, default=2, help="sandboxes that wait (%(default)s)")
    parser.add_argument("--pause-s", type=float, default=0.2, help="between calls (%(default)s)")
    args = parser.parse_args()
    to = report.console()
    runs: dict[str, list[float]] = {"calculator": [], "warm": [], "busy": [], "cold": []}
    with ExitStack() as stack:
        pool = stack.enter_context(executor(args.warm))
        bare = stack.enter_context(executor(0))
        bar = stack.enter_context(report.progress(to))
        task = bar.add_task("calls", total=args.calls)
        for n in range(args.calls):
            runs["calculator"].append(call_ms(pool, f"calculator-{n}", "calculator", SUM))
            runs["cold"].append(call_ms(bare, f"cold-{n}", "python", PROGRAM))
            time.sleep(args.pause_s)
            runs["warm"].append(call_ms(pool, f"warm-{n}", "python", PROGRAM))
            time.sleep(args.pause_s)
            bar.advance(task)
        for n in range(args.calls):
            runs["busy"].append(call_ms(pool, f"busy-{n}", "python", PROGRAM))
    rows = [
        {
            "side": side,
            "p50_ms": report.median(times),
            "p95_ms": round(statistics.quantiles(times, n=20, method="inclusive")[-1], 3),
            "most_ms": max(times),
            "runs": times,
        }
        for side, times in runs.items()
    ]
    to.print(
        report.table(
            f"a call of the tool-executor, {args.calls} of each, ms",
            ("side", "p50", "p95", "most"),
            ((r["side"], r["p50_ms"], r["p95_ms"], r["most_ms"]) for r in rows),
        )
    )
    report.write(args, rows=rows)


if __name__ == "__main__":
    main()
