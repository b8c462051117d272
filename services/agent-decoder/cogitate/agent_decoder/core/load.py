"""What the engine may do and what it is doing: its sizes and its load report."""

from __future__ import annotations

from dataclasses import dataclass, field

from cogitate.agent_decoder.core.scheduler import StepLimits

# Weight of the newest step in the running means.
SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes of the engine."""

    num_blocks: int
    block_size: int
    max_sequences: int
    max_waiting_gangs: int
    max_injected: int
    flush_interval_s: float = 0.0  # tokens alone are told no more often than this
    prefill_slice_s: float = 0.0  # how long prefixes may make running agents wait; 0: no limit
    step: StepLimits = field(default_factory=StepLimits)


@dataclass(slots=True)
class EngineStats:
    """What the load report tells; read by other threads, written by the engine's only."""

    num_running: int = 0
    num_waiting: int = 0
    num_paused: int = 0
    num_free_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    step_s: float = 0.0
    step_batch: float = 0.0
    num_sampled: int = 0
    num_prompt: int = 0  # positions of prefixes computed
    num_cached: int = 0  # positions of prefixes found computed
    # Since start, of steps without prefixes; sequences and positions they read are summed.
    num_steps: int = 0
    steps_s: float = 0.0
    num_sequences: int = 0
    num_positions: int = 0
    prefill_s: float = 0.0  # of steps with prefixes

    def book_step(
        self, num_sequences: int, num_prefix: int, num_positions: int, elapsed_s: float
    ) -> None:
        """Takes one step in: a step with prefixes tells the prefill's speed, any other its own."""
        self.num_prompt += num_prefix
        if num_prefix:
            self.prefill_s += elapsed_s
            rate = num_prefix / max(elapsed_s, 1e-9)
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, rate)
        elif num_sequences:
            self.num_steps += 1
            self.steps_s += elapsed_s
            self.num_sequences += num_sequences
            self.num_positions += num_positions
            self.step_s = _smooth(self.step_s, elapsed_s)
            self.step_batch = _smooth(self.step_batch, float(num_sequences))


def _smooth(mean: float, value: float) -> float:
    return value if mean == 0.0 else mean + SMOOTHING * (value - mean)
