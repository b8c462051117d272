"""vLLM's own metrics as the load report: what it has running and waiting, and its KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cogitate.agent_decoder.engine_meter import Utilization
from cogitate.agent_decoder.stream_engine import StreamEngine
from cogitate.agent_decoder.stream_meter import StreamMeter


@dataclass(slots=True)
class VllmLoad:
    """What vLLM told with its latest step; a stat logger of its, by shape.

    Counters are sums since the start over all its engines (data parallel ones report apart).
    """

    waiting: dict[int, int] = field(default_factory=dict)
    kv_share: dict[int, float] = field(default_factory=dict)
    num_computed: int = 0  # positions of prompts
    num_cached: int = 0  # positions of prompts found in its prefix cache
    num_preemptions: int = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, *_: Any, engine_idx: int = 0, **__: Any
    ) -> None:
        """Called by vLLM on the event loop after each step."""
        if scheduler_stats is not None:
            deferred = scheduler_stats.num_skipped_waiting_reqs
            self.waiting[engine_idx] = scheduler_stats.num_waiting_reqs + deferred
            self.kv_share[engine_idx] = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            prompts = iteration_stats.prompt_token_stats
            self.num_computed += prompts.computed
            self.num_cached += prompts.cached_tokens
            self.num_preemptions += iteration_stats.num_preempted_reqs

    def log_engine_initialized(self) -> None:
        """Nothing to tell."""

    def log(self) -> None:
        """Nothing to tell."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """It is never put to sleep."""


class VllmMeter(StreamMeter):
    """Reads vLLM's metrics whenever the load is asked for."""

    def __init__(self, engine: StreamEngine, load: VllmLoad, num_blocks: int) -> None:
        super().__init__(engine)
        self._load, self._num_blocks = load, num_blocks

    def utilization(self) -> Utilization:
        """As before, with the KV cache; brings the engine's numbers up to date as well."""
        stats, load = self._engine.stats, self._load
        # vLLM tells with each step, and so not of the end of the last.
        num_calls = self._engine.num_calls
        shares = list(load.kv_share.values()) if num_calls else []
        share = sum(shares) / len(shares) if shares else 0.0
        stats.num_waiting = min(sum(load.waiting.values()), num_calls)
        stats.num_running = num_calls - stats.num_waiting
        stats.num_free_blocks = round(self._num_blocks * (1.0 - share))
        stats.num_prompt, stats.num_cached = load.num_computed, load.num_cached
        self._engine.counters.num_preemptions = load.num_preemptions
        return replace(super().utilization(), kv_share=share)
