"""Time as a value that can be handed in, so that a test can hand in another."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What a shell may know about time; cores are given `now` as a number."""

    def monotonic(self) -> float:
        """Returns seconds from an arbitrary origin; never goes back."""
        ...

    def time(self) -> float:
        """Returns seconds since the Unix epoch; may jump."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Waits. A cancellation point even when `delay_s` is zero or less."""
        ...


class SystemClock:
    """The real clock."""

    def monotonic(self) -> float:
        """Returns `time.monotonic()`."""
        return time.monotonic()

    def time(self) -> float:
        """Returns `time.time()`."""
        return time.time()

    async def sleep(self, delay_s: float) -> None:
        """Waits on the running event loop."""
        await asyncio.sleep(delay_s)
