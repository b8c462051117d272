"""How many more attempts than agents there may be: retries must not become the load.

Retries of a window are at most a share of the agents that ran in it, or a small count where
few did (Envoy's and Finagle's retry budgets). Attempts that move a lost agent and those that hedge
a slow one count; a question to the router, a refusal before any work, and what a takeover starts
anew do not.

Invariant (``tests/property/test_aggregator_breakers.py``): whenever one is made, retries in the
window before it <= max(floor, share x agents that ran in it).
"""

from __future__ import annotations

from collections import deque


class RetryBudget:
    """Owns the counts of the last ``window_s``; of one aggregator, over all contemplations."""

    def __init__(self, share: float, floor: int, window_s: float) -> None:
        self._share, self._floor, self._window_s = share, floor, window_s
        self._running = 0
        self._ended: deque[tuple[float, int]] = deque()
        self._again: deque[tuple[float, int]] = deque()
        self.num_made = self.num_refused = 0  # ever

    def began(self, count: int) -> None:
        """So many agents made their first attempt."""
        self._running += count

    def ended(self, count: int, now: float) -> None:
        """So many of them run no more."""
        self._running -= count
        self._ended.append((now, count))

    def take(self, count: int, now: float) -> int:
        """How many of ``count`` retries may be made; they are counted."""
        for past in (self._ended, self._again):
            while past and past[0][0] <= now - self._window_s:
                past.popleft()
        ran = self._running + sum(count for _, count in self._ended)
        made = sum(count for _, count in self._again)
        taken = max(0, min(count, max(self._floor, int(self._share * ran)) - made))
        if taken:
            self._again.append((now, taken))
        self.num_made += taken
        self.num_refused += count - taken
        return taken
