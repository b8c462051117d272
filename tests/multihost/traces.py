"""What the traces say of contemplations: who asked, that it ended, that every agent is in it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import grpc
from cogitate.kit.telemetry import Attr, Span
from cogitate.v1 import gateway_service_pb2 as pb
from cogitate.v1.gateway_service_pb2_grpc import GatewayServiceStub

from tests.multihost.load import Story

# Spans leave a service twice a second at home, and every 5 s from other sites.
SETTLE_S: Final = 12.0


def verify(gateway: str, stories: Iterable[Story], agents: int) -> dict[str, Any]:
    """Asks the gateway for each one's trace, until it is whole or the spans had time to come."""
    waiting = {story.id: story for story in stories if story.id}
    num_asked, faults = len(waiting), {}
    ends = time.monotonic() + SETTLE_S
    num_spans = num_unplaced = 0
    with grpc.insecure_channel(gateway) as channel:
        stub: Any = GatewayServiceStub(channel)
        while waiting:
            for id_ in list(waiting):
                spans = stub.GetTrace(pb.GetTraceRequest(contemplation_id=id_), timeout=30).spans
                fault = missing(spans, agents)
                if not fault:
                    num_spans += len(spans)
                    num_unplaced += not any(span.name == Span.PLACE for span in spans)
                    del waiting[id_]
                faults[id_] = fault
            if time.monotonic() > ends:
                break
            time.sleep(0.5)
    lost = {id_: fault for id_, fault in faults.items() if fault}
    return {
        "asked": num_asked,
        "whole": num_asked - len(lost),
        "spans": num_spans,
        # What a router that was killed had not sent yet.
        "without_the_routers_span": num_unplaced,
        "lost": lost,
    }


def missing(spans: Iterable[pb.TraceSpan], agents: int) -> str:
    """What a whole trace has and this one has not; empty: nothing."""
    spans = list(spans)
    if not any(span.service == "gateway" and not span.parent_span_id for span in spans):
        return "no span of the gateway at its root"
    if not any(_has(span, Span.CONTEMPLATION, Span.VERDICT) for span in spans):
        return "no contemplation with a verdict"
    if not any(span.name == Span.LEASE for span in spans):
        return "no place was asked for"
    told = {_agent(span.attributes) for span in spans if span.name == Span.AGENT}
    absent = [str(i) for i in range(agents) if str(i) not in told]
    return f"not these agents: {', '.join(absent)}" if absent else ""


def _has(span: pb.TraceSpan, name: str, moment: str) -> bool:
    return span.name == name and any(one.name == moment for one in span.moments)


def _agent(attributes: Mapping[str, str]) -> str:
    return attributes.get(Attr.AGENT_ID, "")
