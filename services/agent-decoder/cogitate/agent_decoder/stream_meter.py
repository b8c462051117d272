"""How busy an engine is whose tokens come from elsewhere: no operations, no KV of its own."""

from __future__ import annotations

import time
from collections.abc import Callable

from cogitate.agent_decoder import device
from cogitate.agent_decoder.core.counters import RateWindow
from cogitate.agent_decoder.engine_meter import Utilization
from cogitate.agent_decoder.stream_engine import StreamEngine
from cogitate.kit import metrics
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr

OBSERVED = (
    Metric.GANGS, Metric.AGENTS, Metric.GANGS_OPENED, Metric.AGENTS_FAILED, Metric.TOKENS_SAMPLED,
    Metric.TOKENS, Metric.PREFIX_ASKED, Metric.PREFIX_FOUND, Metric.PREFILL_POSITIONS,
    Metric.BUSY, Metric.CPU_UTILIZATION, Metric.RESIDENT_MEMORY,
)  # fmt: skip


class StreamMeter:
    """Reads one engine, on the event loop or off it."""

    def __init__(
        self, engine: StreamEngine, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine, self._monotonic = engine, monotonic
        self._num_cpus, self._total_bytes = device.num_cpus(), device.total_bytes()
        self._window = RateWindow(monotonic(), self._totals())

    def _totals(self) -> tuple[float, ...]:
        counters = self._engine.counters
        return counters.step_s, counters.num_gangs, counters.num_failed, time.process_time()

    def utilization(self) -> Utilization:
        """Busy is the share of the time in which some call was between two tokens."""
        busy, gangs, failures, cpu = self._window.rates(self._monotonic(), self._totals())
        resident = device.resident_bytes()
        return Utilization(
            busy_share=min(1.0, busy),
            operations_per_s=0.0,
            traffic_per_s=0.0,
            gangs_per_s=gangs,
            failures_per_s=failures,
            cpu_share=min(1.0, cpu / self._num_cpus),
            kv_share=0.0,
            memory_share=resident / self._total_bytes if self._total_bytes else 0.0,
        )

    def measure_peaks(self) -> None:
        """There is no device to try."""

    def export(self) -> None:
        """Has everything read at each collection of metrics."""
        if metrics.enabled():
            metrics.observe(OBSERVED, self._read)

    def _read(self) -> dict[Metric, metrics.Reading]:
        stats, counters = self._engine.stats, self._engine.counters
        fates = {
            "used": counters.num_used,
            "killed": counters.num_killed,
            "lost": counters.num_lost,
        }
        now = self.utilization()
        return {
            Metric.GANGS: metrics.states(running=counters.num_running_gangs, waiting=0),
            Metric.AGENTS: metrics.states(
                running=stats.num_running, waiting=stats.num_waiting, paused=stats.num_paused
            ),
            Metric.GANGS_OPENED: counters.num_gangs,
            Metric.AGENTS_FAILED: counters.num_failed,
            Metric.TOKENS_SAMPLED: counters.num_tokens,
            Metric.TOKENS: [(count, {Attr.FATE: fate}) for fate, count in fates.items()],
            Metric.PREFIX_ASKED: stats.num_prompt + stats.num_cached,
            Metric.PREFIX_FOUND: stats.num_cached,
            Metric.PREFILL_POSITIONS: stats.num_prompt,
            Metric.BUSY: now.busy_share,
            Metric.CPU_UTILIZATION: now.cpu_share,
            Metric.RESIDENT_MEMORY: device.resident_bytes(),
        }
