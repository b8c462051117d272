"""Calls, exemplars and logs over real sockets: one id leads from a number to trace and log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.kit import calls, lifecycle, logs, metrics, telemetry
from cogitate.kit.channels import open_channel
from cogitate.kit.config import ServiceConfig
from cogitate.kit.trace_store import TraceStore
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from tests.fakes import trap_service as traps

pytestmark = pytest.mark.contract

ADDRESS_OF_NOBODY = "127.0.0.1:9"


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    reader = InMemoryMetricReader()
    made = metrics.setup("tester", ServiceConfig(), [reader])
    calls.observe()
    yield reader
    made.shutdown()


@pytest.fixture
async def traced(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    store = tmp_path / "spans.sqlite"
    recording = telemetry.setup("tester", ServiceConfig(trace_store=str(store)))
    service = traps.TrapService()
    config = ServiceConfig(drain_grace_s=1.0)
    async with lifecycle.serving(config, traps.build(service), name="traps") as running:
        yield running.address, store
    recording.shutdown()


def told(reader: InMemoryMetricReader, name: str) -> dict[tuple[str, str], Any]:
    """By method and status."""
    return {
        (attributes["grpc.method"].rpartition("/")[2], attributes.get("grpc.status", "")): value
        for attributes, value in metrics.values(reader).get(name, [])
    }


@pytest.mark.parametrize("way", traps.WAYS)
async def test_every_kind_of_call_is_counted_and_timed(
    way: str, reader: InMemoryMetricReader, traced: tuple[str, Path]
) -> None:
    async with open_channel(traced[0]) as channel:
        await traps.call(channel, way, "echo", timeout=10.0)
        with pytest.raises(grpc.aio.AioRpcError):
            await traps.call(channel, way, "no_quorum", timeout=10.0)
    started = told(reader, "grpc.client.attempt.started")
    assert started == {(way, ""): 2}
    ended = told(reader, "grpc.client.attempt.duration")
    assert {key: point.count for key, point in ended.items()} == {
        (way, "OK"): 1,
        (way, "FAILED_PRECONDITION"): 1,
    }
    assert told(reader, "grpc.server.call.started") == {(way, ""): 2}


@pytest.mark.parametrize("way", traps.WAYS)
async def test_both_ends_tell_what_went_over_the_wire(
    way: str, reader: InMemoryMetricReader, traced: tuple[str, Path]
) -> None:
    async with open_channel(traced[0]) as channel:
        said = await traps.call(channel, way, "echo", timeout=10.0)
    asked = StringValue(value="echo").ByteSize()
    answered = sum(StringValue(value=word).ByteSize() for word in said)
    await asyncio.sleep(0.01)  # an ended call is told in the loop's next turn
    for end, sent, received in (
        ("grpc.client.attempt", asked, answered),
        ("grpc.server.call", answered, asked),
    ):
        for direction, size in (("sent", sent), ("rcvd", received)):
            name = f"{end}.{direction}_total_compressed_message_size"
            sizes = told(reader, name)
            assert {key: (point.count, point.sum) for key, point in sizes.items()} == {
                (way, "OK"): (1, size)
            }, name


async def test_calls_that_are_left_that_wait_too_long_or_reach_nobody_are_told(
    reader: InMemoryMetricReader, traced: tuple[str, Path]
) -> None:
    async with open_channel(traced[0]) as channel:
        stream = traps.open_call(channel, "Generate", "endless", timeout=10.0)
        await anext(stream)
        await stream.aclose()
        with pytest.raises(grpc.aio.AioRpcError):
            await traps.call(channel, "Unary", "wait", timeout=0.05)
    async with open_channel(ADDRESS_OF_NOBODY) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await traps.call(channel, "Collect", "echo", timeout=10.0)
    ended = told(reader, "grpc.client.attempt.duration")
    assert set(ended) == {
        ("Generate", "CANCELLED"),
        ("Unary", "DEADLINE_EXCEEDED"),
        ("Collect", "UNAVAILABLE"),
    }
    targets = {
        attributes["grpc.target"]
        for attributes, _ in metrics.values(reader)["grpc.client.attempt.started"]
    }
    assert targets == {traced[0], ADDRESS_OF_NOBODY}


async def test_without_a_collector_channels_are_grpcs_own(traced: tuple[str, Path]) -> None:
    async with open_channel(traced[0]) as channel:
        assert not isinstance(channel, calls.MeteredChannel)


async def test_a_slow_call_in_a_histogram_leads_to_its_trace(
    reader: InMemoryMetricReader, traced: tuple[str, Path]
) -> None:
    address, store = traced
    async with open_channel(address) as channel:
        with telemetry.span(telemetry.Span.CONTEMPLATION) as root:
            carried = tuple(telemetry.trace_metadata())
            await traps.call(channel, "Unary", "echo", timeout=10.0, metadata=carried)
    (point,) = told(reader, "grpc.server.call.duration").values()
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == root.get_span_context().trace_id
    assert exemplar.value == pytest.approx(point.sum)
    telemetry._active[-1].shutdown()
    spans = TraceStore(store).spans(f"{exemplar.trace_id:032x}")
    named = {span.span_id: span.name for span in spans}
    assert named[f"{exemplar.span_id:016x}"] == "TrapService/Unary"


@pytest.mark.parametrize("format", [logs.TEXT, logs.JSON])
async def test_an_incidents_log_names_the_trace_and_nothing_secret(
    format: str, traced: tuple[str, Path]
) -> None:
    written = io.StringIO()
    make = logs.JsonFormatter if format == logs.JSON else logs.TextFormatter
    handler = logging.StreamHandler(written)
    handler.setFormatter(make("traps"))
    logging.getLogger().addHandler(handler)
    try:
        async with open_channel(traced[0]) as channel:
            with telemetry.span(telemetry.Span.CONTEMPLATION) as root:
                carried = tuple(telemetry.trace_metadata())
                with pytest.raises(grpc.aio.AioRpcError):
                    await traps.call(channel, "Unary", "bug", timeout=10.0, metadata=carried)
    finally:
        logging.getLogger().removeHandler(handler)
    (line,) = [line for line in written.getvalue().splitlines() if "incident" in line]
    trace_id = f"{root.get_span_context().trace_id:032x}"
    assert traps.SECRET not in written.getvalue()
    if format == logs.TEXT:
        assert line.endswith(f"[trace {trace_id}]")
        return
    said = json.loads(line)
    assert said["trace_id"] == trace_id and len(said["span_id"]) == 16
    assert said["severity_text"] == "ERROR" and "incident" in said["body"]
    assert said["resource"] == {"service.name": "traps"}
