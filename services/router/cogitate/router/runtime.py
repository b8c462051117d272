"""The shell around the desk: clock, streams of endpoints and aggregators, the expiry sweep, spans.

State owned: the desk, and one outbox per lease stream. All of it belongs to one event loop; the
desk's methods never await, so nothing changes under a decision.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cogitate.kit import metrics, telemetry
from cogitate.kit.clock import Clock, SystemClock
from cogitate.kit.errors import NoEndpoint, Rejected
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr, Span
from cogitate.router import wire
from cogitate.router.config import RouterConfig
from cogitate.router.core.admission import Admission
from cogitate.router.core.desk import Desk
from cogitate.router.core.estimate import CostModel
from cogitate.router.core.fleet import EndpointChanged, Fleet
from cogitate.router.core.leases import Leases
from cogitate.router.core.placement import PlacementPolicy
from cogitate.router.core.prefixes import Prefixes
from cogitate.router.core.queue import Queue, Waiting
from cogitate.router.core.types import Declare, Denied, Granted, Queued, Replace
from cogitate.router.scaling.demand import Demand
from cogitate.v1 import router_service_pb2 as router_pb2
from opentelemetry.trace import Span as OtelSpan

logger = logging.getLogger(__name__)

_SWEEPS_PER_EXPIRY = 8
# How often room that came free is handed out: each time costs a failed placement, and a look at
# the end of every wait (about 3 ms for 1,000 that wait).
_SERVE_INTERVAL_S = 0.02


@dataclass(slots=True)
class Holder:
    """An aggregator's lease stream: its number and what waits to be written to it."""

    number: int
    outbox: asyncio.Queue[router_pb2.LeaseResponse]
    scope: asyncio.Timeout
    overflowed: bool = False


class Runtime:
    """Owns the desk, who waits in front of it, and the open streams."""

    def __init__(self, config: RouterConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.desk = make_desk(config)
        queue = Queue(config.max_queue_count, float(config.queue_quantum_count))
        self.admission = Admission(self.desk, queue)
        self._room = asyncio.Event()  # something changed that may let somebody in
        self._queued: dict[str, OtelSpan] = {}  # the open spans of those who wait
        self.demand = Demand(config.scaler_window_s, config.max_lease_count)
        self._holders: dict[int, Holder] = {}
        self._scopes: set[asyncio.Timeout] = set()
        self._numbers = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._draining = False

    async def start(self) -> None:
        """Starts the sweep that notices silent endpoints, and what lets in those who wait."""
        self._tasks = [
            asyncio.create_task(self._expire(), name="router expiry sweep"),
            asyncio.create_task(self._serve(), name="router queue"),
        ]
        queue = self.admission.queue
        metrics.observe([Metric.ROUTER_QUEUED], lambda: {Metric.ROUTER_QUEUED: len(queue)})

    async def stop(self) -> None:
        """Ends the tasks and the streams."""
        self.end_streams()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def end_streams(self) -> None:
        """Ends every open stream with UNAVAILABLE; peers go on with another router.

        Gangs go on too: endpoints keep what they admitted, and aggregators confirm it elsewhere.
        """
        self._draining = True
        for scope in self._scopes:
            _end(scope)

    def number(self) -> int:
        """Returns a number no other stream has had."""
        return next(self._numbers)

    @contextmanager
    def stream(self, scope: asyncio.Timeout) -> Iterator[None]:
        """Lets `end_streams` end the handler that runs inside `scope`. Raises if it already has."""
        if self._draining:
            raise NoEndpoint("the router is draining", reason="UNAVAILABLE")
        self._scopes.add(scope)
        try:
            yield
        finally:
            self._scopes.discard(scope)

    @contextmanager
    def holder(self, scope: asyncio.Timeout) -> Iterator[Holder]:
        """Opens a lease stream; on leaving, its leases end."""
        outbox: asyncio.Queue[router_pb2.LeaseResponse] = asyncio.Queue(self.config.outbox_count)
        holder = Holder(self.number(), outbox, scope)
        self._holders[holder.number] = holder
        try:
            yield holder
        finally:
            del self._holders[holder.number]
            for contemplation_id in self.admission.waiting_of(holder.number):
                self._left(contemplation_id)
            ended = self.admission.end(holder.number, self.clock.monotonic())
            self._room.set()
            if ended:
                logger.info("a lease stream ended with %d leases", len(ended))

    def command(self, request: router_pb2.LeaseRequest, holder: Holder) -> None:
        """Carries one command out. Answers go to the holder's outbox."""
        which = request.WhichOneof("command")
        now = self.clock.monotonic()
        if which == "declare":
            self._place(wire.declare(request.declare), holder, now, request.declare.traceparent)
        elif which == "replace":
            self._place(wire.replace(request.replace), holder, now, request.replace.traceparent)
        elif which == "confirm":
            self.desk.confirm(wire.confirm(request.confirm), holder.number, now)
            self._room.set()
        elif which == "release":
            if self.admission.release(request.release.contemplation_id, holder.number, now):
                self._left(request.release.contemplation_id)
            self._room.set()
            self.demand.forget(request.release.contemplation_id)

    def _place(
        self, command: Declare | Replace, holder: Holder, now: float, traceparent: str
    ) -> None:
        attributes: dict[Attr, str | int] = {
            Attr.CONTEMPLATION_ID: command.contemplation_id,
            Attr.ATTEMPT: command.attempt,
            Attr.MODEL: command.gangs[0].model,
            Attr.AGENT_COUNT: sum(len(gang.agent_ids) for gang in command.gangs),
        }
        began = self.clock.monotonic()
        self._left(command.contemplation_id)
        span = telemetry.start_span(Span.PLACE, attributes, parent=traceparent or None)
        if isinstance(command, Declare):
            answer = self.admission.declare(command, holder.number, now)
        else:
            answer = self.desk.replace(command, holder.number, now)
        metrics.record(Metric.PLACEMENT_DURATION, self.clock.monotonic() - began)
        self.demand.note(command, answer, now)
        if not isinstance(answer, Queued):
            self._answer(holder, answer, span)
            return
        logger.info("queued %s behind %d", answer.contemplation_id, answer.ahead)
        telemetry.event(Span.QUEUED, on=span)
        self._queued[answer.contemplation_id] = span
        self.post(holder, wire.queued(answer))
        self._room.set()

    def _answer(self, holder: Holder, answer: Granted | Denied, span: OtelSpan) -> None:
        """Tells the answer, and takes a grant back that cannot be told."""
        if isinstance(answer, Denied):
            span.set_attribute(Attr.REASON, answer.reason)
        else:
            endpoints = sorted({gang.share.endpoint_id for gang in answer.gangs})
            span.set_attribute(Attr.ENDPOINT_ID, ",".join(endpoints))
        span.end()
        self._log(answer)
        if isinstance(answer, Denied):
            self.post(holder, wire.denial(answer, self.config.retry_delay_s))
        elif not self.post(holder, wire.grant(answer, self.config.vision_encoder_address)):
            self.admission.rollback(answer)

    def _left(self, contemplation_id: str) -> None:
        """Nobody waits for its answer any more."""
        if span := self._queued.pop(contemplation_id, None):
            span.set_attribute(Attr.REASON, "CANCELLED")
            span.end()

    async def _serve(self) -> None:
        """Lets in those who wait as room comes free, and tells those whose time is over."""
        while True:
            wait_s = self.admission.queue.next_end_s() - self.clock.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait_s == math.inf else max(0.0, wait_s)):
                    await self._room.wait()
            self._room.clear()
            if len(self.admission.queue) or self.admission.gave_way:
                now = self.clock.monotonic()
                answers, more = self.admission.serve(now)
                for item, answer in answers:
                    self._served(item, answer, now)
                if more:
                    self._room.set()
            await self.clock.sleep(_SERVE_INTERVAL_S)

    def _served(self, item: Waiting, answer: Granted | Denied, now: float) -> None:
        state = "granted" if isinstance(answer, Granted) else answer.reason.lower()
        metrics.record(Metric.ROUTER_QUEUE_DURATION, now - item.since_s, {Attr.STATE: state})
        self.demand.note(item.command, answer, now)
        span = self._queued.pop(item.command.contemplation_id)
        self._answer(self._holders[item.holder], answer, span)

    def post(self, holder: Holder, message: router_pb2.LeaseResponse) -> bool:
        """Queues a message, or ends the stream if its reader is too far behind."""
        try:
            holder.outbox.put_nowait(message)
        except asyncio.QueueFull:
            holder.overflowed = True
            _end(holder.scope)
            return False
        return True

    def apply(self, changes: Iterable[EndpointChanged]) -> None:
        """Logs what happened to endpoints and tells the lease holders concerned."""
        self.desk.board(self.clock.monotonic())
        self._room.set()
        for changed in changes:
            logger.info("endpoint %s: %s", changed.endpoint_id, changed.change)
            for news in self.desk.news((changed,)):
                self.post(self._holders[news.holder], wire.news(news))

    def observations(self, endpoint_id: str) -> int:
        """How many reports of steps were learned from."""
        entry = self.desk.fleet.entries.get(endpoint_id)
        return entry.learner.observations if entry and entry.learner else 0

    def learned(self, endpoint_id: str, before: int) -> None:
        """Tells how wrong the prediction was, if the latest report could be compared with one."""
        entry = self.desk.fleet.entries.get(endpoint_id)
        if entry and entry.learner and entry.learner.observations > max(before, 1):
            metrics.record(Metric.STEP_PREDICTION_ERROR, entry.learner.last_error or 0.0)

    def fleet(self) -> router_pb2.GetFleetResponse:
        """Returns the fleet and the number of leases."""
        now = self.clock.monotonic()
        return router_pb2.GetFleetResponse(
            endpoints=[wire.fleet_endpoint(s, now) for s in self.desk.snapshot(now)],
            lease_count=len(self.desk.leases.leases),
            queued_count=len(self.admission.queue),
        )

    def ended(self, holder: Holder | None = None) -> NoEndpoint | Rejected:
        """Returns why a stream was ended from this side."""
        if holder is not None and holder.overflowed:
            return Rejected("the reader does not keep up with the stream", reason="EVICTED")
        return NoEndpoint("the router is draining", reason="UNAVAILABLE")

    def _log(self, answer: Granted | Denied) -> None:
        if isinstance(answer, Denied):
            logger.info("denied %s: %s", answer.contemplation_id, answer.reason)
            return
        placed = ", ".join(
            f"{len(g.share.agent_ids)} on {g.share.endpoint_id}" for g in answer.gangs
        )
        logger.info("granted %s by %s: %s", answer.contemplation_id, answer.policy, placed)

    async def _expire(self) -> None:
        while True:
            await self.clock.sleep(self.config.report_expiry_s / _SWEEPS_PER_EXPIRY)
            self.apply(self.desk.fleet.expire(self.clock.monotonic()))


def _end(scope: asyncio.Timeout) -> None:
    if scope.when() is None:  # not ended before
        scope.reschedule(0)


def make_desk(config: RouterConfig) -> Desk:
    """Builds the core from the knobs."""
    model = CostModel(
        prior_prefill_tokens_per_s=config.prior_prefill_tokens_per_s,
        prior_step_s=config.prior_step_s,
        batch_slope=config.batch_slope,
        prior_tokens_per_agent=config.prior_agent_token_count,
        spread_penalty=config.spread_penalty,
        seconds_per_usd=config.seconds_per_usd,
        growth_share=config.growth_share,
        far_s=config.region_distance_s,
        spot_losses_per_hour=config.spot_losses_per_hour,
    )
    return Desk(
        fleet=Fleet(
            config.report_expiry_s,
            config.max_endpoint_count,
            config.prior_step_s,
            config.batch_slope,
            config.prior_prefill_tokens_per_s,
        ),
        leases=Leases(config.booking_settle_s),
        policy=PlacementPolicy(config.policy, model),
        max_leases=config.max_lease_count,
        max_agents=config.max_agent_count,
        region=config.region,
        prefixes=Prefixes(config.prefix_count, config.prefix_endpoint_count),
    )
