"""What a benchmark ran on, and how fast that reads and multiplies: measured in the same run."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# What decides how fast weights of each type are multiplied.
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_TRIES = 7


def facts() -> dict[str, Any]:
    """The machine and the software, for the JSON beside every figure."""
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in processor.splitlines() if ":" in line)
    values = {name.strip(): value.strip() for name, value in lines.items()}
    flags = values.get("flags", "").split()
    return {
        "processor": values.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "command": " ".join(Path(a).name if "/" in a else a for a in sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def peaks(threads: int) -> dict[str, float]:
    """The best of several tries: GB/s read by sum, dot product and matrix times vector of 256 MB;
    GFLOP/s of a product of square matrices by type.
    """
    torch.set_num_threads(threads)
    block = torch.ones(64_000_000)
    matrix, vector = block.view(8000, 8000), torch.ones(8000)
    reads = (block.sum, lambda: block.dot(block), lambda: matrix @ vector)
    found = {"read_gb_s": max(block.nbytes / _best_s(act) / 1e9 for act in reads)}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(1024, 1024, dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        found[f"{name}_gflop_s"] = _gflop_s(square.__matmul__, square)
    square = torch.ones(512, 512, dtype=torch.int8)  # seconds where no instruction is for it
    found["int8_gflop_s"] = _gflop_s(lambda other: torch._int_mm(square, other), square)
    return {name: round(value, 1) for name, value in found.items()}


def resident_mib(pid: int) -> dict[str, float]:
    """Resident memory of a process now and at its peak, in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {k: int(v.split()[0]) for k, v in (x.split(":", 1) for x in lines) if k.startswith("Vm")}
    return {"now": round(kib["VmRSS"] / 1024, 1), "peak": round(kib["VmHWM"] / 1024, 1)}


def cpu_s(pid: int) -> float:
    """Seconds of the processor the threads a process has now have used, to the nanosecond."""
    used = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it ended meanwhile
            used += int((task / "schedstat").read_text().split()[0])
    return used / 1e9


def _gflop_s(times: Callable[[torch.Tensor], Any], square: torch.Tensor) -> float:
    return 2 * square.shape[0] ** 3 / _best_s(lambda: times(square)) / 1e9


def _best_s(act: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        act()
        times.append(time.perf_counter() - began)
    return min(times)


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()
