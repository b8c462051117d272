"""Spans and latencies of a gang, from the events the engine tells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.events import Finish
from cogitate.agent_decoder.gang_spans import GangSpans
from cogitate.kit import metrics, telemetry
from cogitate.kit.config import ServiceConfig
from cogitate.kit.trace_store import StoredSpan, TraceStore
from cogitate.v1 import agent_decoder_service_pb2 as pb
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

pytestmark = pytest.mark.unit

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333{}-01"


@dataclass
class Clock:
    """Both clocks of the module under test, in seconds."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class Stage:
    """One gang of two agents, and what was recorded of it."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.clock, self.store = clock, TraceStore(folder / "spans.sqlite")
        self.reader = InMemoryMetricReader()
        config = ServiceConfig(trace_store=str(folder / "spans.sqlite"))
        self._made = (
            telemetry.setup("tester", config),
            metrics.setup("tester", config, [self.reader]),
        )
        agents = [pb.AgentSpec(agent_id=i, traceparent=PARENT.format(i)) for i in (0, 1)]
        gang = pb.OpenGang(contemplation_id="c1", gang_id="g1", model="mini", agents=agents)
        self.gang = GangSpans(gang, "e1", "local")

    def told(self, after_s: float, *events: ev.Event) -> None:
        self.clock.now += after_s
        self.gang.observe(events)

    def spans(self, name: str) -> list[StoredSpan]:
        self.gang.end()
        self._made[0].shutdown()
        found = [s for t in self.store.traces() for s in self.store.spans(t.trace_id)]
        return sorted((s for s in found if s.name == name), key=lambda s: (s.start_ns, s.span_id))

    def histogram(self, name: str) -> Any:
        return metrics.values(self.reader).get(name, [])

    def close(self) -> None:
        for made in self._made:
            made.shutdown()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    monkeypatch.setattr(time, "time_ns", clock.time_ns)
    made = Stage(tmp_path, clock)
    yield made
    made.close()


def delta(agent_id: int, attempt: int = 1) -> ev.Delta:
    return ev.Delta(agent_id, attempt, 0, 1, "", 0.0, 0.0, False)


def end(agent_id: int, finish: Finish, reason: str = "", attempt: int = 1) -> ev.Finished:
    return ev.Finished(agent_id, attempt, finish, "", 9, 0, 0.0, 0.0, 0.0, reason)


def call(agent_id: int) -> ev.ToolCall:
    return ev.ToolCall(agent_id, 1, "c", "zoom", "{}", "", 2)


def seconds(span: StoredSpan) -> tuple[float, float]:
    return round(span.start_ns / 1e9 - 1000, 3), round(span.end_ns / 1e9 - 1000, 3)


def test_the_prefill_says_what_was_computed_and_found(stage: Stage) -> None:
    stage.told(3.0, ev.Admitted(), ev.Prefilled(100, 1.0, 2.0, 64, 3))
    (prefill,) = stage.spans("prefill")
    assert seconds(prefill) == (1.0, 3.0)
    assert prefill.attributes == {
        "gen_ai.usage.input_tokens": 100,
        "cogitate.cached_tokens": 64,
        "cogitate.step_count": 3,
        "cogitate.agent_count": 2,
    }
    ((labels, queued),) = stage.histogram("cogitate.queue.duration")
    assert (queued.count, queued.sum) == (1, 1.0)
    assert labels["gen_ai.request.model"] == "mini"


def test_every_stretch_of_decoding_is_a_segment(stage: Stage) -> None:
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(1.0, delta(0), delta(1))
    stage.told(1.0, delta(0), call(0), delta(1), end(1, Finish.STOP))
    stage.told(5.0, ev.Injected(0, "c", 4))
    stage.told(0.5, delta(0))
    stage.told(0.5, delta(0), delta(0), ev.AwaitingGrant(0, 5))
    stage.told(2.0, delta(0), end(0, Finish.CANCELLED, "DECIDED"))
    spans = stage.spans("decode")
    told = [
        (s.parent_id[-1], seconds(s), s.attributes["gen_ai.usage.output_tokens"],
         s.attributes["cogitate.reason"])
        for s in spans
    ]  # fmt: skip
    assert sorted(told) == [
        ("0", (1.0, 3.0), 2, "TOOL_CALL"),
        ("0", (8.0, 9.0), 3, "AWAITING_GRANT"),
        ("0", (11.0, 11.0), 1, "DECIDED"),  # a grant is no event: it begins with its token
        ("1", (1.0, 3.0), 2, "STOP"),
    ]


def test_latencies_leave_pauses_out_and_requests_do_not(stage: Stage) -> None:
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(1.0, delta(0))
    stage.told(1.0, delta(0), call(0))
    stage.told(5.0, ev.Injected(0, "c", 4))
    stage.told(0.5, delta(0))
    stage.told(0.5, delta(0), end(0, Finish.STOP))
    stage.told(0.0, end(1, Finish.ERROR, "NOT_FINITE"))
    ((labels, first),) = stage.histogram("gen_ai.server.time_to_first_token")
    assert (first.count, first.sum) == (1, 2.0)
    ((_, each),) = stage.histogram("gen_ai.server.time_per_output_token")
    assert (each.count, each.sum) == (1, (1.0 + 0.5) / 2)
    ended = {
        labels.get("error.type"): point.sum
        for labels, point in stage.histogram("gen_ai.server.request.duration")
    }
    assert ended == {None: 9.0, "NOT_FINITE": 9.0}
    assert labels == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "mini",
        "gen_ai.provider.name": "local",
    }


def test_an_agent_killed_before_it_could_decode_has_no_segment(stage: Stage) -> None:
    stage.told(1.0, end(0, Finish.CANCELLED, "DECIDED"))
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(1.0, end(1, Finish.CANCELLED, "DECIDED"))
    (only,) = stage.spans("decode")
    assert (only.parent_id[-1], seconds(only)) == ("1", (2.0, 3.0))
    assert only.attributes["gen_ai.usage.output_tokens"] == 0


def test_a_newer_attempt_ends_the_older_ones_segment(stage: Stage) -> None:
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(1.0, delta(0), delta(0))
    stage.clock.now += 1.0
    stage.gang.add([pb.AgentSpec(agent_id=0, attempt=2, traceparent=PARENT.format(5))])
    stage.told(1.0, delta(0), end(0, Finish.CANCELLED, "SUPERSEDED"), delta(0, 2))
    stage.told(1.0, end(0, Finish.STOP, attempt=2))
    told = [(s.parent_id[-1], seconds(s)) for s in stage.spans("decode")]
    assert sorted(told) == [("0", (1.0, 3.0)), ("5", (3.0, 5.0))]


def test_what_is_open_when_the_stream_breaks_is_ended(stage: Stage) -> None:
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(1.0, delta(0), delta(1), delta(1))
    told = {
        s.parent_id[-1]: s.attributes["gen_ai.usage.output_tokens"] for s in stage.spans("decode")
    }
    assert told == {"0": 1, "1": 2}


def test_an_agent_that_begins_waiting_has_no_segment_until_it_is_answered(stage: Stage) -> None:
    waiting = pb.ResumeState(pending_call_id="c")
    stage.gang.add(
        pb.AgentSpec(agent_id=i, traceparent=PARENT.format(i), resume_state=waiting) for i in (2, 3)
    )
    stage.told(1.0, ev.Prefilled(10, 0.0, 1.0))
    stage.told(2.0, ev.Injected(2, "c", 4), end(3, Finish.CANCELLED, "CLOSED"))
    stage.told(1.0, end(0, Finish.STOP), end(1, Finish.STOP), end(2, Finish.STOP))
    durations = stage.histogram("gen_ai.server.request.duration")
    assert sum(point.count for _, point in durations) == 3, "3 never was asked to decode"
    told = [(s.parent_id[-1], seconds(s)) for s in stage.spans("decode")]
    assert sorted(told) == [("0", (1.0, 4.0)), ("1", (1.0, 4.0)), ("2", (3.0, 4.0))]
