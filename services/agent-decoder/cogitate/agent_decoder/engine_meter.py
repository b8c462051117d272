"""Reads the engine's plain numbers: for routers as one snapshot, for exporters as metrics.

The engine's thread adds to `core.counters` and knows nothing of this; everything here runs on
whoever asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from cogitate.agent_decoder import device
from cogitate.agent_decoder.core import work
from cogitate.agent_decoder.core.counters import MAX_SAMPLES, RateWindow
from cogitate.agent_decoder.engine import Engine
from cogitate.agent_decoder.model.native import library
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr

# Steps a collection tells histograms of, at most.
MAX_RECORDS = 200


@dataclass(frozen=True, slots=True)
class Utilization:
    """Rates over the last second or more, and shares."""

    busy_share: float  # of the time, in steps
    operations_per_s: float
    traffic_per_s: float  # bytes that had to move, at least
    gangs_per_s: float  # admitted
    failures_per_s: float  # agents that ended with ERROR
    cpu_share: float  # of the CPUs the process may use
    kv_share: float  # of the KV blocks, in use
    memory_share: float  # of the machine's memory, resident


class EngineMeter:
    """Reads one engine. Safe to use from any thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._engine, self._monotonic, self._cpu_s = engine, monotonic, cpu_s
        self._device = engine.model.runner.device
        c = engine.model.config
        self._model = work.Dimensions(
            c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
            c.head_dim, c.vocab_size,
        )  # fmt: skip
        self._num_cpus, self._total_bytes = device.num_cpus(), device.total_bytes()
        self._lock = threading.Lock()
        self._window = RateWindow(monotonic(), self._totals())
        self.peaks: device.Peaks | None = None

    def operations(self) -> int:
        """Floating point operations of all steps so far."""
        return work.operations(self._model, self._engine.counters.had)

    def traffic(self) -> float:
        """Bytes all steps so far had to move at least."""
        precision = self._engine.model.runner.precision
        return work.traffic(self._model, precision, self._engine.counters.had)

    def measure_peaks(self) -> None:
        """Tries what the device can do; blocks for a fifth of a second."""
        runner = self._engine.model.runner
        # A CPU without products of bfloat16 computes in float32 whatever the weights are kept in.
        has_half = self._device.type == "cuda" or library.capability() == "AVX512_BF16"
        is_half = has_half and runner.precision.weight == 2
        dtype = torch.bfloat16 if is_half else torch.float32
        self.peaks = device.measure_peaks(self._device, dtype)

    def _totals(self) -> tuple[float, ...]:
        counters = self._engine.counters
        return (
            counters.step_s, self.operations(), self.traffic(),
            counters.num_gangs, counters.num_failed, self._cpu_s(),
        )  # fmt: skip

    def utilization(self) -> Utilization:
        """How busy the engine is."""
        with self._lock:
            busy, operations, traffic, gangs, failures, cpu = self._window.rates(
                self._monotonic(), self._totals()
            )
        return Utilization(
            # A step is booked when it ends: one that began before the window may exceed it.
            busy_share=min(1.0, busy),
            operations_per_s=operations,
            traffic_per_s=traffic,
            gangs_per_s=gangs,
            failures_per_s=failures,
            cpu_share=cpu / self._num_cpus,
            kv_share=self._engine.counters.num_used_blocks / self._engine.limits.num_blocks,
            memory_share=device.resident_bytes() / self._total_bytes if self._total_bytes else 0.0,
        )

    # -- metrics -----------------------------------------------------------------------------

    def export(self) -> None:
        """Has exporters read the engine, if there are any."""
        if not metrics.enabled():
            return
        self._engine.counters.samples = deque(maxlen=MAX_SAMPLES)
        metrics.observe(OBSERVED, self._read)

    def _read(self) -> dict[Metric, metrics.Reading]:
        self._drain()
        return {
            **self._counts(),
            **self._rates(),
            **device.device_readings(self._device),
        }

    def _drain(self) -> None:
        """Hands steps since the last collection to their histograms: all, or evenly picked ones.

        A record costs many times what counting does, and small models make hundreds a second.
        """
        samples = self._engine.counters.samples or deque()
        since = [samples.popleft() for _ in range(len(samples))]
        for elapsed_s, num_positions in since[:: -(-len(since) // MAX_RECORDS) or 1]:
            metrics.record(Metric.STEP_DURATION, elapsed_s)
            metrics.record(Metric.STEP_POSITIONS, num_positions)

    def _counts(self) -> dict[Metric, metrics.Reading]:
        stats, counters = self._engine.stats, self._engine.counters
        used, cached = counters.num_used_blocks, counters.num_cached_blocks
        fates = {
            "used": counters.num_used,
            "killed": counters.num_killed,
            "lost": counters.num_lost,
        }
        return {
            Metric.GANGS: metrics.states(
                running=counters.num_running_gangs, waiting=counters.num_waiting_gangs
            ),
            Metric.AGENTS: metrics.states(
                running=stats.num_running, waiting=stats.num_waiting, paused=stats.num_paused
            ),
            Metric.GANGS_OPENED: counters.num_gangs,
            Metric.AGENTS_FAILED: counters.num_failed,
            Metric.STEPS: counters.had.num_steps,
            Metric.STEP_TIME: counters.step_s,
            Metric.PREEMPTIONS: counters.num_preemptions,
            Metric.KV_BLOCKS: metrics.states(
                used=used, cached=cached, free=self._engine.limits.num_blocks - used - cached
            ),
            Metric.PREFIX_ASKED: stats.num_prompt + stats.num_cached,
            Metric.PREFIX_FOUND: stats.num_cached,
            Metric.PREFILL_POSITIONS: stats.num_prompt,
            Metric.TOKENS_SAMPLED: counters.num_tokens,
            Metric.TOKENS: [(count, {Attr.FATE: fate}) for fate, count in fates.items()],
            Metric.FLOPS: self.operations(),
            Metric.TRAFFIC: self.traffic(),
        }

    def _rates(self) -> dict[Metric, metrics.Reading]:
        now = self.utilization()
        found: dict[Metric, metrics.Reading] = {
            Metric.KV_UTILIZATION: now.kv_share,
            Metric.BUSY: now.busy_share,
            Metric.FLOP_RATE: now.operations_per_s,
            Metric.TRAFFIC_RATE: now.traffic_per_s,
            Metric.CPU_UTILIZATION: now.cpu_share,
            Metric.RESIDENT_MEMORY: device.resident_bytes(),
        }
        if self.peaks is not None:
            found[Metric.FLOP_PEAK] = self.peaks.operations_per_s
            found[Metric.TRAFFIC_PEAK] = self.peaks.bytes_per_s
            if now.busy_share:
                in_steps = now.busy_share * self.peaks.operations_per_s
                found[Metric.FLOP_UTILIZATION] = now.operations_per_s / in_steps
                in_steps = now.busy_share * self.peaks.bytes_per_s
                found[Metric.TRAFFIC_UTILIZATION] = now.traffic_per_s / in_steps
        return found


# What `EngineMeter.export` has read once a collection; the histograms are recorded beside.
OBSERVED = (
    Metric.GANGS, Metric.AGENTS, Metric.GANGS_OPENED, Metric.AGENTS_FAILED,
    Metric.STEPS, Metric.STEP_TIME, Metric.PREEMPTIONS, Metric.KV_BLOCKS, Metric.KV_UTILIZATION,
    Metric.PREFIX_ASKED, Metric.PREFIX_FOUND, Metric.PREFILL_POSITIONS, Metric.TOKENS_SAMPLED,
    Metric.TOKENS, Metric.BUSY, Metric.FLOPS, Metric.TRAFFIC, Metric.FLOP_RATE,
    Metric.TRAFFIC_RATE, Metric.FLOP_PEAK, Metric.TRAFFIC_PEAK, Metric.FLOP_UTILIZATION,
    Metric.TRAFFIC_UTILIZATION, Metric.RESIDENT_MEMORY, Metric.CPU_UTILIZATION,
    Metric.DEVICE_MEMORY, Metric.DEVICE_UTILIZATION, Metric.DEVICE_POWER,
)  # fmt: skip
