"""How many more attempts than agents there may be: retries must not become the load.

Over any window, retries are at most a share of the first attempts in it, or a small count where
there is little traffic (Envoy's and Finagle's retry budgets).
Attempts that move a lost agent and those that hedge a slow one count; a question to the router, a
refusal before any work, and what a takeover starts anew do not.

Invariant (``tests/property/test_aggregator_breakers.py``): in every window retries <= max(floor,
share x first attempts).
"""

from __future__ import annotations

from collections import deque


class RetryBudget:
    """Owns the counts of the last ``window_s``; of one aggregator, over all contemplations."""

    def __init__(self, share: float, floor: int, window_s: float) -> None:
        self._share, self._floor, self._window_s = share, floor, window_s
        self._first: deque[tuple[float, int]] = deque()
        self._again: deque[tuple[float, int]] = deque()
        self._num_first = self._num_again = 0

    def began(self, count: int, now: float) -> None:
        """So many agents made their first attempt."""
        self._first.append((now, count))
        self._num_first += count

    def take(self, count: int, now: float) -> int:
        """How many of ``count`` retries may be made; they are counted."""
        self._forget(now)
        left = max(self._floor, int(self._share * self._num_first)) - self._num_again
        taken = max(0, min(count, left))
        if taken:
            self._again.append((now, taken))
            self._num_again += taken
        return taken

    def _forget(self, now: float) -> None:
        while self._first and self._first[0][0] <= now - self._window_s:
            self._num_first -= self._first.popleft()[1]
        while self._again and self._again[0][0] <= now - self._window_s:
            self._num_again -= self._again.popleft()[1]
