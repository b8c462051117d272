"""Who asks for places, and how they hear the answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from cogitate.router import wire
from cogitate.router.config import RouterConfig
from cogitate.router.core.leases import News
from cogitate.router.core.types import Denied, Granted, Queued
from cogitate.v1 import router_service_pb2 as router_pb2

Said = Granted | Denied | Queued | News


class Holder(Protocol):
    """Holds leases; `number` tells it from all others there ever were."""

    @property
    def number(self) -> int:
        """Its number."""
        ...

    def tell(self, said: Said) -> bool:
        """Passes an answer or news on, at once; False if it cannot, and then a grant is void."""
        ...


@dataclass(slots=True)
class LeaseStream:
    """An aggregator's lease stream: its number and what waits to be written to it."""

    number: int
    outbox: asyncio.Queue[router_pb2.LeaseResponse]
    scope: asyncio.Timeout
    config: RouterConfig
    overflowed: bool = False

    def tell(self, said: Said) -> bool:
        """Queues it for the stream."""
        if isinstance(said, Granted):
            return self.post(wire.grant(said, self.config.vision_encoder_address))
        if isinstance(said, Denied):
            return self.post(wire.denial(said, self.config.retry_delay_s))
        return self.post(wire.queued(said) if isinstance(said, Queued) else wire.news(said))

    def post(self, message: router_pb2.LeaseResponse) -> bool:
        """Queues a message, or ends the stream if its reader is too far behind."""
        try:
            self.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self.overflowed = True
            end(self.scope)
            return False
        return True


def end(scope: asyncio.Timeout) -> None:
    """Ends what runs inside of a scope, once."""
    if scope.when() is None:
        scope.reschedule(0)
