"""Envoy's external processor: one stream for each HTTP request, asked about its headers.

Where Envoy is configured to send nothing but headers of requests, as it should be, the stream ends
with the answer: nothing of the request passes here, and a router that dies is not missed by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from cogitate.kit import metrics
from cogitate.kit.errors import CogitateError, InvalidRequest
from cogitate.kit.interceptors import long_lived
from cogitate.kit.metric_registry import Metric
from cogitate.kit.telemetry import Attr
from cogitate.peers import ext_proc_pb2 as pb
from cogitate.peers import ext_proc_pb2_grpc as pb_grpc
from cogitate.router.picking import asking, replies
from cogitate.router.picking.picker import Picker
from cogitate.router.runtime import Runtime

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
SUBSET_NAMESPACE: Final = "envoy.lb.subset_hint"

Context = grpc.aio.ServicerContext[Any, Any]
Parts = AsyncIterator[pb.ProcessingRequest]


class ExternalProcessor(pb_grpc.ExternalProcessorServicer):
    """Answers Envoy; keeps nothing between requests."""

    def __init__(self, runtime: Runtime, picker: Picker) -> None:
        self._runtime, self._picker = runtime, picker

    @long_lived
    async def Process(self, request_iterator: Parts, context: Context) -> None:  # type: ignore[override]
        """Says where a request goes; whatever else of it comes here goes on as it is."""
        modes = pb.ProtocolConfiguration()  # Envoy says it with the first part
        try:
            async with asyncio.timeout(None) as scope:
                with self._runtime.stream(scope):
                    async for request in request_iterator:
                        is_first = request.HasField("request_headers")
                        if request.HasField("protocol_config"):
                            modes = request.protocol_config
                        if is_first:
                            await context.write(await self._pick(request))
                        else:
                            await context.write(replies.passed_on(request, modes))
                        if is_first and _nothing_follows(request):
                            return
        except TimeoutError:
            raise self._runtime.ended() from None

    async def _pick(self, request: pb.ProcessingRequest) -> pb.ProcessingResponse:
        monotonic = self._runtime.clock.monotonic
        began = monotonic()
        headers = headers_of(request.request_headers)
        try:
            ask = asking.ask_of(headers, subset_of(request), self._runtime.config.max_agent_count)
            reply = replies.picked(await self._picker.pick(ask))
            state = "picked"
        except CogitateError as error:
            reply = replies.refused(error, asking.is_grpc(headers))
            state = error.reason.lower()
        metrics.record(Metric.PICK_DURATION, monotonic() - began, {Attr.STATE: state})
        return reply


def headers_of(message: pb.HttpHeaders) -> dict[str, str]:
    """Headers by name; of several with one name the first, which nobody behind Envoy could add."""
    found: dict[str, str] = {}
    for header in message.headers.headers:
        value = header.value or header.raw_value.decode("utf-8", "replace")
        found.setdefault(header.key.lower(), value)
    return found


def subset_of(request: pb.ProcessingRequest) -> str | None:
    """The endpoints in question by the proxy's own metadata, with commas; None if it says none."""
    said = request.metadata_context.filter_metadata.get(SUBSET_NAMESPACE)
    if said is None or asking.SUBSET not in said.fields:
        return None
    value = said.fields[asking.SUBSET]
    if value.WhichOneof("kind") == "list_value":
        return ",".join(item.string_value for item in value.list_value.values)
    if value.WhichOneof("kind") != "string_value":
        raise InvalidRequest(f"{asking.SUBSET} must be a list or a text", field=asking.SUBSET)
    return value.string_value


def _nothing_follows(request: pb.ProcessingRequest) -> bool:
    """Whether Envoy sends no bodies, and said so: old ones do not say."""
    said = request.protocol_config
    return request.HasField("protocol_config") and not (
        said.request_body_mode or said.response_body_mode
    )
