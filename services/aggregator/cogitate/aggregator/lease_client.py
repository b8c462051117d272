"""The one Lease stream to a router, shared by all contemplations of this aggregator.

Of several routers one is used until it is lost, then the next: each knows the fleet by itself, and
is told what runs.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc
from cogitate.kit.channels import deadline_scope, open_channel
from cogitate.kit.errors import NoEndpoint
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import stack_of
from cogitate.v1 import router_service_pb2 as pb
from cogitate.v1.router_service_pb2_grpc import RouterServiceStub

logger = logging.getLogger(__name__)

RECONNECT_S = 0.2
# A stream that lasted so long had a router; one that is not reached is given up sooner.
STEADY_S = 5.0

LeaseCall: TypeAlias = "grpc.aio.StreamStreamCall[pb.LeaseRequest, pb.LeaseResponse]"
Listener = Callable[[pb.LeaseResponse], None]


@dataclass(slots=True)
class _Question:
    """Something asked of the router. Once it is queued there it survives the stream."""

    request: pb.LeaseRequest
    answer: asyncio.Future[pb.LeaseResponse]
    scope: asyncio.Timeout
    timeout_s: float
    is_queued: bool = False

    def queued(self) -> None:
        """Its patience begins anew, once: the router answers when the longest wait is over."""
        if self.is_queued:
            return
        self.is_queued = True
        longest_s = self.request.declare.max_wait_duration.ToNanoseconds() / 1e9
        self.scope.reschedule(asyncio.get_running_loop().time() + longest_s + self.timeout_s)


class LeaseClient:
    """Keeps the stream open. Leases of a lost stream are made known to the next by confirming them.

    State: who waits for an answer, who listens for news, and what was confirmed. What is queued for
    a stream that breaks is dropped, its leases ended with it. Its questions are asked of the next
    router; once none is reached they are answered with NoEndpoint at once.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._address = addresses[0]
        self._lost = 0  # routers lost in a row
        self._requests: asyncio.Queue[pb.LeaseRequest] = asyncio.Queue()
        self._listeners: dict[str, Listener] = {}
        # What runs, by contemplation and attempt: a confirmation speaks of one attempt.
        self._held: dict[str, dict[int, pb.ConfirmPlacement]] = {}
        self._waiting: dict[tuple[str, int], _Question] = {}
        self._tasks = Supervisor()

    def start(self) -> None:
        """Begins to connect."""
        self._tasks.spawn(self._run(), name="lease")

    async def stop(self) -> None:
        """Ends the stream, and with it every lease."""
        await self._tasks.stop()

    async def place(
        self, contemplation_id: str, request: pb.LeaseRequest, listener: Listener, timeout_s: float
    ) -> pb.LeaseResponse:
        """Declares or replaces gangs; returns Granted or Denied. Raises NoEndpoint on silence.

        A declaration that the router queues is waited for as long as it may wait, and asked again
        of a router that comes back meanwhile.
        """
        if request.HasField("declare"):
            attempt = request.declare.attempt
        else:
            attempt = request.replace.attempt
            self._left(contemplation_id, {f.endpoint_id for f in request.replace.failures})
        key = (contemplation_id, attempt)
        self._listeners[contemplation_id] = listener
        answer: asyncio.Future[pb.LeaseResponse] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(request)
        try:
            async with asyncio.timeout(timeout_s) as scope:
                self._waiting[key] = _Question(request, answer, scope, timeout_s)
                return await answer
        except TimeoutError:
            raise NoEndpoint(
                f"the router at {self._address} did not answer; is it running?",
                reason="UNAVAILABLE",
            ) from None
        finally:
            self._waiting.pop(key, None)

    def confirm(self, confirmation: pb.ConfirmPlacement) -> None:
        """Tells the router what runs; kept, to tell a new router."""
        held = self._held.setdefault(confirmation.contemplation_id, {})
        held[confirmation.attempt] = confirmation
        self._requests.put_nowait(pb.LeaseRequest(confirm=confirmation))

    def release(self, contemplation_id: str) -> None:
        """Ends a lease."""
        if self._listeners.pop(contemplation_id, None) is None:
            return
        self._held.pop(contemplation_id, None)
        release = pb.ReleaseLease(contemplation_id=contemplation_id)
        self._requests.put_nowait(pb.LeaseRequest(release=release))

    def _left(self, contemplation_id: str, endpoint_ids: set[str]) -> None:
        """Forgets what ran on endpoints that failed."""
        held = self._held.get(contemplation_id, {})
        for attempt, confirmation in list(held.items()):
            gangs = [g for g in confirmation.gangs if g.endpoint_id not in endpoint_ids]
            if not gangs:
                del held[attempt]
            elif len(gangs) < len(confirmation.gangs):
                held[attempt] = pb.ConfirmPlacement(
                    contemplation_id=contemplation_id, attempt=attempt, gangs=gangs
                )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        with deadline_scope(None):
            for address in itertools.cycle(self._addresses):
                self._address, began = address, loop.time()
                # A channel for each stream: it resolves a name anew, and dials what that says now.
                async with open_channel(address) as channel:
                    await self._stream(RouterServiceStub(channel).Lease(timeout=None))
                self._lost = 1 if loop.time() - began > STEADY_S else self._lost + 1
                if self._lost >= len(self._addresses):
                    self._lost = 0
                    self._none_is_reached()
                    await asyncio.sleep(RECONNECT_S)

    async def _stream(self, call: LeaseCall) -> None:
        """One stream, to its end."""
        # Written by a task of ours: a request iterator that outlives its call would take the next
        # call's requests.
        sender = asyncio.create_task(self._send(call), name="lease sender")
        try:
            async for response in call:
                self._dispatch(response)
        except grpc.aio.AioRpcError as error:
            logger.info("router %s: %s", self._address, error.code().name)
        except Exception as error:
            logger.error("the lease stream failed: %s", stack_of(error))
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            call.cancel()

    async def _send(self, call: LeaseCall) -> None:
        # All that is queued is in these, or ended with the stream it was queued for.
        while not self._requests.empty():
            self._requests.get_nowait()
        confirmations = [c for held in self._held.values() for c in held.values()]
        questions = list(self._waiting.values())
        for confirmation in confirmations:
            await call.write(pb.LeaseRequest(confirm=confirmation))
        for question in questions:
            if not question.answer.done():
                await call.write(question.request)
        while True:
            await call.write(await self._requests.get())

    def _dispatch(self, response: pb.LeaseResponse) -> None:
        kind = response.WhichOneof("event")
        self._lost = 0
        if kind == "news":
            for contemplation_id in response.news.contemplation_ids:
                if listener := self._listeners.get(contemplation_id):
                    listener(response)
            return
        body = getattr(response, kind) if kind else pb.LeaseDenied()
        question = self._waiting.get((body.contemplation_id, body.attempt))
        if question is None or question.answer.done():
            return
        if kind != "queued":
            question.answer.set_result(response)
            return
        question.queued()
        if listener := self._listeners.get(body.contemplation_id):
            listener(response)

    def _none_is_reached(self) -> None:
        """Every router is down: who waits is told at once, not at the timeout."""
        one = f"the router at {self._address} is"
        message = f"{one if len(self._addresses) == 1 else 'all routers are'} down; ask again later"
        for question in self._waiting.values():
            if not question.answer.done() and not question.is_queued:
                question.answer.set_exception(NoEndpoint(message, reason="UNAVAILABLE"))
