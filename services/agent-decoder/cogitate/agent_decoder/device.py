"""What the process and its device use, and what the device can do at best."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric

# A product of this size is bound by arithmetic, a sum over so much memory by its bandwidth.
_PRODUCT_SIZE = 1024
_SUM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Peaks:
    """The best the device did in a short trial."""

    operations_per_s: float
    bytes_per_s: float


def measure_peaks(device: torch.device, dtype: torch.dtype, budget_s: float = 0.2) -> Peaks:
    """Multiplies matrices and reads memory for half the budget each; blocks so long.

    dtype is the one products are computed in. Whatever else runs makes the figures smaller.
    """
    matrix = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, device=device, dtype=dtype)
    memory = torch.ones(_SUM_BYTES // 4, device=device)
    product_s = _fastest(lambda: matrix @ matrix, device, budget_s / 2)
    sum_s = _fastest(memory.sum, device, budget_s / 2)
    return Peaks(2 * _PRODUCT_SIZE**3 / product_s, _SUM_BYTES / sum_s)


def _fastest(act: Callable[[], torch.Tensor], device: torch.device, budget_s: float) -> float:
    """Time of the fastest run, in seconds; at least one is made."""
    fastest, ends = float("inf"), time.perf_counter() + budget_s
    while True:
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        fastest = min(fastest, now - began)
        if now >= ends:
            return fastest


def num_cpus() -> int:
    """CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Resident memory of the process; 0 where the system does not tell as Linux does."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def total_bytes() -> int:
    """Memory of the machine; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def device_readings(device: torch.device) -> dict[Metric, metrics.Reading]:
    """What CUDA says of the device's memory, and NVML of its load where nvidia-ml-py is installed.

    Empty for a CPU.
    """
    if device.type != "cuda":
        return {}
    free, _ = torch.cuda.mem_get_info(device)
    found: dict[Metric, metrics.Reading] = {
        Metric.DEVICE_MEMORY: metrics.states(
            allocated=torch.cuda.memory_allocated(device),
            reserved=torch.cuda.memory_reserved(device),
            free=free,
        )
    }
    try:
        found[Metric.DEVICE_UTILIZATION] = torch.cuda.utilization(device) / 100
        found[Metric.DEVICE_POWER] = torch.cuda.power_draw(device) / 1000
    except Exception:
        # NVML is an extra, and may be there and refuse: memory is told in any case.
        return found
    return found
