"""The queue in front of one encoder: takes what waits, as one batch, when the encoder is free."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cogitate.kit.clock import Clock
from cogitate.kit.errors import EngineFailure
from cogitate.kit.telemetry import stack_of
from cogitate.vision_encoder.core.batching import FairQueue
from cogitate.vision_encoder.core.types import Embedding
from cogitate.vision_encoder.encoder import Encoder, Item

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Ticket:
    item: Item
    done: asyncio.Future[Embedding]


class Batcher:
    """Encodes views, batched across callers. `run` is its task; it owns the encoder's thread."""

    def __init__(self, encoder: Encoder, *, max_batch: int, wait_s: float, clock: Clock) -> None:
        self.encoder = encoder
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._clock = clock
        self._queue: FairQueue[_Ticket] = FairQueue()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"encode-{encoder.name}")

    async def encode(self, tenant: str, item: Item) -> Embedding:
        """Returns a view's embedding. Cancelled before its batch began, it is never encoded.

        Raises EngineFailure if the encoder twice gave nothing usable for this view.
        """
        ticket = _Ticket(item, asyncio.get_running_loop().create_future())
        self._queue.push(tenant, ticket)
        self._wake.set()
        try:
            return await ticket.done
        finally:
            self._queue.remove(tenant, ticket)

    async def run(self) -> None:
        """Serves the queue until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._wait_s:
                await self._clock.sleep(self._wait_s)
            while tickets := self._queue.take(self._max_batch):
                await self._encode(tickets)

    async def _encode(self, tickets: list[_Ticket]) -> None:
        results = await self._try([ticket.item for ticket in tickets])
        for ticket, result in zip(tickets, results, strict=True):
            if result is None and not ticket.done.done():
                # Alone, so that what spoils a batch fails nobody but itself.
                (result,) = await self._try([ticket.item])
            if ticket.done.done():
                continue  # nobody waits any more
            if result is None:
                ticket.done.set_exception(EngineFailure("the encoder gave no usable embedding"))
            else:
                ticket.done.set_result(result)

    async def _try(self, items: list[Item]) -> list[Embedding | None]:
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self.encoder.encode, items
            )
        except Exception as error:
            logger.error("encoding %d views failed: %s", len(items), stack_of(error))
            return [None] * len(items)

    def close(self) -> None:
        """Lets the thread end after the batch it is in."""
        self._thread.shutdown(wait=False, cancel_futures=True)
