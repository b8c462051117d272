"""Plain numbers of the engine since it started, and rates of them.

Written by the engine's thread only, by adding; read by anyone at any time. Whoever reads sees each
number whole, and two numbers at most a step apart.

Tests: ``tests/unit/test_counters.py``, ``tests/property/test_engine.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cogitate.agent_decoder.core.events import Admitted, Delta, Event, Finish, Finished
from cogitate.agent_decoder.core.work import Totals

# Ends by which nobody got to use what the agent wrote, though nobody decided against it either.
LOST_REASONS = frozenset({"LOST", "SUPERSEDED", "SHUTDOWN"})
# Steps whose times are kept until somebody collects them.
MAX_SAMPLES = 65_536


@dataclass(slots=True)
class EngineCounters:
    """Counts since the start, but for what says now. Tokens are used, killed, lost, or of an agent
    that has not ended.
    """

    had: Totals = field(default_factory=Totals)
    step_s: float = 0.0  # time in steps
    # Time and positions of the newest steps, for histograms; None while nobody collects them.
    samples: deque[tuple[float, int]] | None = None
    num_preemptions: int = 0
    num_gangs: int = 0
    num_failed: int = 0  # agents that ended with ERROR
    num_tokens: int = 0
    num_used: int = 0
    num_killed: int = 0
    num_lost: int = 0
    num_running_gangs: int = 0  # now
    num_waiting_gangs: int = 0  # now
    num_used_blocks: int = 0  # now
    num_cached_blocks: int = 0  # now: free blocks that keep a prefix
    _live: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def book_step(
        self, chunks: list[tuple[int, int, int]], num_shared: int, elapsed_s: float
    ) -> None:
        """Takes a step in; chunks as in ``Totals.add``. Without any, only tokens were drawn."""
        self.step_s += elapsed_s
        if chunks:
            before = self.had.num_positions
            self.had.add(chunks, num_shared)
            if self.samples is not None:
                self.samples.append((elapsed_s, self.had.num_positions - before))

    def hear(self, key: int, events: Sequence[Event]) -> None:
        """Counts a gang's events, all of them and in order."""
        live = self._live
        for event in events:
            kind = type(event)
            if kind is Delta:
                assert isinstance(event, Delta)
                agent = (key, event.agent_id, event.attempt)
                live[agent] = live.get(agent, 0) + 1
                self.num_tokens += 1
            elif isinstance(event, Finished):
                num = live.pop((key, event.agent_id, event.attempt), 0)
                self._end(num, event)
            elif kind is Admitted:
                self.num_gangs += 1

    def _end(self, num_tokens: int, end: Finished) -> None:
        self.num_failed += end.finish is Finish.ERROR
        if end.finish is Finish.ERROR or end.kill_reason in LOST_REASONS:
            self.num_lost += num_tokens
        elif end.finish in (Finish.CANCELLED, Finish.CONFIDENCE):
            self.num_killed += num_tokens
        else:
            self.num_used += num_tokens


class RateWindow:
    """Turns growing numbers into rates over the last window, of at least ``min_s`` seconds."""

    def __init__(self, now: float, totals: Sequence[float], min_s: float = 1.0) -> None:
        self._min_s, self._since = min_s, now
        self._totals = tuple(totals)
        self._rates = tuple(0.0 for _ in totals)

    def rates(self, now: float, totals: Sequence[float]) -> tuple[float, ...]:
        """What each grew by a second; the same again until another window is over."""
        elapsed = now - self._since
        if elapsed >= self._min_s:
            pairs = zip(totals, self._totals, strict=True)
            self._rates = tuple(max(0.0, new - old) / elapsed for new, old in pairs)
            self._since, self._totals = now, tuple(totals)
        return self._rates
