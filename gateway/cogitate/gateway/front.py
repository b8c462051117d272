"""What the front door does for whoever asks, by gRPC or HTTP: check, store images, relay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from cogitate.gateway import traces, wire
from cogitate.gateway.charging import Charging
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core import tenants, validation
from cogitate.gateway.core.violations import Violation, require
from cogitate.gateway.doors import Doors, current_grant
from cogitate.gateway.endings import failure
from cogitate.gateway.runtime import Runtime
from cogitate.kit.errors import Cancelled, CogitateError, InvalidRequest
from cogitate.v1 import common_pb2, gateway_service_pb2, router_service_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

MAX_PAGE_SIZE: Final = 1000
# The short calls of the contemplation service: request and response of each.
SHORT: Final[dict[str, tuple[Any, Any]]] = {
    "GetContemplation": (pb2.GetContemplationRequest, pb2.GetContemplationResponse),
    "ListContemplations": (pb2.ListContemplationsRequest, pb2.ListContemplationsResponse),
    "CancelContemplation": (pb2.CancelContemplationRequest, pb2.CancelContemplationResponse),
    "DeleteContemplation": (pb2.DeleteContemplationRequest, pb2.DeleteContemplationResponse),
    "SubmitToolResult": (pb2.SubmitToolResultRequest, pb2.SubmitToolResultResponse),
    "SteerContemplation": (pb2.SteerContemplationRequest, pb2.SteerContemplationResponse),
}
# Of a question that is asked without a stream.
_NOT_ASKED: Final = tuple(
    field.name
    for field in pb2.ContemplationEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.name not in ("accepted", "verdict", "failed", "cancelled")
)


class Front:
    """Owns what charges tenants; every method is one request's whole path to the mesh.

    Whose request it is says the caller, by `Doors.enter` around it. No generator here opens one:
    it may be closed by another task than it ran in.
    """

    def __init__(self, config: GatewayConfig, runtime: Runtime, doors: Doors) -> None:
        self._config, self._runtime, self._doors = config, runtime, doors
        accounts = doors.accounts
        self._charging = Charging(accounts, self._ask) if accounts is not None else None

    def start(self) -> None:
        """Begins to look after contemplations that are not paid for."""
        if self._charging is not None:
            self._charging.start()

    async def stop(self) -> None:
        """Ends that."""
        if self._charging is not None:
            await self._charging.stop()

    async def contemplate(self, request: pb2.ContemplateRequest) -> AsyncGenerator[bytes, None]:
        """Checks the spec, stores its images, then yields the aggregator's events."""
        spec, grant = request.spec, current_grant()
        # Nothing of time is filled in: the same request sent again must stay the same spec.
        spec.model = spec.model or self._config.default_model
        if not spec.allowed_tools:
            spec.allowed_tools.extend(sorted(grant.tools))
        if not spec.constraints.providers:
            spec.constraints.providers.extend(sorted(grant.providers))
        asked = wire.spec(request, now_s=time.time())
        validation.check(asked, self._config.limits)
        tenants.check(asked, grant)
        self._doors.allowances.begin(grant, time.monotonic())
        try:
            async with aclosing(self._charged(grant.tenant, request)) as events:
                async for raw in events:
                    yield raw
        finally:
            self._doors.allowances.end(grant)

    async def _charged(
        self, tenant: str, request: pb2.ContemplateRequest
    ) -> AsyncGenerator[bytes, None]:
        """Stores the images and relays; the tenant's account, if there are any, pays for it."""
        charge = self._charging.begin(tenant, request.spec) if self._charging else None
        accepted = charge.accepted if charge else lambda id: None
        try:
            await self._runtime.store_images(wire.inline_images(request.spec.conversation))
            if charge:
                charge.sent = True
            # Closed by name: a generator that is dropped cancels its call only some time later.
            async with aclosing(self._runtime.relay(request, accepted)) as events:
                async for raw in events:
                    if charge:
                        charge.last = raw
                    yield raw
        except CogitateError as error:
            if charge:
                charge.refused(error)
            raise
        finally:
            if charge:
                charge.leave()

    async def answer(
        self, request: gateway_service_pb2.AskRequest
    ) -> gateway_service_pb2.AskResponse:
        """Runs a contemplation to its verdict. Raises what it ended with instead."""
        if request.spec.client_tools:
            raise InvalidRequest(
                "client_tools need a stream: nobody could answer their calls here",
                field="spec.client_tools",
            )
        asked = pb2.ContemplateRequest(spec=request.spec)
        asked.filter.excluded_events.extend(_NOT_ASKED)
        told = gateway_service_pb2.AskResponse()
        async with aclosing(self.contemplate(asked)) as events:
            async for raw in events:
                event = pb2.ContemplateResponse.FromString(raw).event
                if event.HasField("accepted"):
                    told.contemplation_id = event.accepted.contemplation_id
                elif event.HasField("verdict"):
                    told.verdict.CopyFrom(event.verdict)
                elif event.HasField("failed"):
                    raise failure(event.failed)
                elif event.HasField("cancelled"):
                    raise Cancelled("the contemplation was cancelled")
        return told

    async def attach(self, request: pb2.AttachRequest) -> AsyncGenerator[bytes, None]:
        """Yields the events after a number."""
        validation.contemplation_id(request.contemplation_id)
        found = validation.filter_violations(request.filter.excluded_events)
        if request.after_event_number < 0:
            found.append(Violation("after_event_number", "must not be negative"))
        require(found)
        async with aclosing(self._runtime.relay(request)) as events:
            async for raw in events:
                yield raw

    async def ask(self, name: str, request: Any) -> Any:
        """Makes one of the short calls."""
        if name == "ListContemplations":
            if not 0 <= request.page_size <= MAX_PAGE_SIZE:
                require([Violation("page_size", f"must be 0 to {MAX_PAGE_SIZE}")])
        else:
            validation.contemplation_id(request.contemplation_id)
        images: list[common_pb2.ImagePart] = []
        if name == "SteerContemplation":
            require(validation.steering(wire.message(request.message), self._config.limits))
            images = wire.inline_images([request.message])
        if name == "SubmitToolResult":
            require(validation.client_result(wire.result(request.result), self._config.limits))
            images = wire.inline_images_of_parts(request.result.parts)
        await self._runtime.store_images(images)
        return await self._ask(name, request)

    async def _ask(self, name: str, request: Any) -> Any:
        return await self._runtime.ask_aggregator(name, request, SHORT[name][1])

    async def trace(self, contemplation_id: str) -> gateway_service_pb2.GetTraceResponse:
        """Returns what every service did for a contemplation of the tenant."""
        request = pb2.GetContemplationRequest(contemplation_id=contemplation_id)
        found = await self.ask("GetContemplation", request)  # or it is another tenant's
        config, trace_id = self._config, found.summary.trace.trace_id
        return await asyncio.to_thread(
            traces.read, config.trace_store, trace_id, contemplation_id, config.max_trace_span_count
        )

    async def fleet(self) -> router_service_pb2.GetFleetResponse:
        """Returns the endpoints as the router sees them."""
        runtime = self._runtime
        call = runtime.router.GetFleet(router_service_pb2.GetFleetRequest(), **runtime.options())
        return await runtime.ask("router", call)
