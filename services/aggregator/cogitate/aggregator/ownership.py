"""Whose contemplations are: this aggregator's sign of life, and its claims of what others left.

::

    owner lives --dies, hangs--> abandoned --claimed by one--> owner with the next epoch
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cogitate.aggregator.journal import Journal, JournalError, Record
from cogitate.kit.telemetry import stack_of

logger = logging.getLogger(__name__)

# How often an aggregator that is alone looks whether it still is, unless it is told to look less.
ALONE_S = 0.25


class Watch:
    """Beats and watches. ``adopt`` is given every record that this aggregator came to own.

    It is given a record again if it raises JournalError.
    """

    def __init__(
        self,
        journal: Journal,
        adopt: Callable[[Record], Awaitable[None]],
        *,
        watch_interval_s: float,
        beat_interval_s: float,
    ) -> None:
        self._journal, self._adopt = journal, adopt
        self._watch_interval_s, self._beat_interval_s = watch_interval_s, beat_interval_s
        self._owed: list[Record] = []  # claimed and not adopted: the journal failed in between
        self.stopped = False  # a draining aggregator takes nothing over any more

    async def look(self) -> None:
        """Claims what is abandoned; of several aggregators that try, one gets each."""
        while self._owed:
            await self._adopt(self._owed[0])
            del self._owed[0]
        for id_, epoch in await self._journal.abandoned():
            claimed = None if self.stopped else await self._journal.claim(id_, epoch)
            if claimed is not None:
                self._owed.append(claimed)
                await self._adopt(claimed)
                self._owed.remove(claimed)

    async def watch(self) -> None:
        """Looks again and again."""
        while not self.stopped:
            await self._tried(self.look())
            alone = not self._journal.shared
            await asyncio.sleep(max(self._watch_interval_s, ALONE_S if alone else 0.0))

    async def beat(self) -> None:
        """Says again and again that this aggregator lives."""
        while True:
            await self._tried(self._journal.beat())
            await asyncio.sleep(self._beat_interval_s)

    async def _tried(self, work: Awaitable[None]) -> None:
        try:
            await work
        except JournalError as error:
            # The writer says aloud that the journal fails.
            logger.debug("ownership: %s", stack_of(error))
        except Exception as error:
            logger.error("ownership: %s", stack_of(error))
