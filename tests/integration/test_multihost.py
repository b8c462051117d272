"""Two providers and a home site, joined by a network of ours: one is cut off and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cogitate.kit.trace_store import TraceStore
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

from tests.multihost import mesh
from tests.multihost.trace_sink import Sink

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def possible() -> None:
    try:
        mesh.check()
    except mesh.Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("possible")
def test_no_contemplation_is_lost_when_a_site_is_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "tour.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.multihost", "tour", "--cut-s", "3", "--json", str(out),
         "--folder", str(tmp_path)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    account = found["account"]
    assert account["asked"] == account["answered"] == found["traces"]["whole"] > 6
    [cut] = [mark for mark in found["marks"] if mark["what"] == "cut aurora"]
    assert cut["running"] > 0
    assert cut["converged_s"] is not None, "the sites do not agree again"
    assert None not in found["left_s"], "a lease or an agent is left behind"
    assert out.with_suffix(".png").stat().st_size > 10_000
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    assert f"cogitate-{found['pid']}-" not in left.stdout


def test_spans_of_other_sites_are_stored_as_they_were_sent(tmp_path: Path) -> None:
    request = pb.ExportTraceServiceRequest()
    sent = request.resource_spans.add()
    sent.resource.attributes.append(_pair("service.name", AnyValue(string_value="router")))
    span = sent.scope_spans.add().spans.add(
        trace_id=bytes(range(16)), span_id=b"abcdefgh", parent_span_id=b"ABCDEFGH", name="place",
        kind=2, start_time_unix_nano=5, end_time_unix_nano=9,
    )  # fmt: skip
    numbers = ArrayValue(values=[AnyValue(int_value=1), AnyValue(int_value=2)])
    span.attributes.append(_pair("numbers", AnyValue(array_value=numbers)))
    span.status.code = 2  # type: ignore[assignment]
    moment = span.events.add(name="queued", time_unix_nano=6)
    moment.attributes.append(_pair("share", AnyValue(double_value=0.5)))
    Sink(tmp_path / "traces.sqlite").Export(request, None)
    [stored] = TraceStore(tmp_path / "traces.sqlite").spans(bytes(range(16)).hex())
    assert (stored.service, stored.name, stored.kind) == ("router", "place", "SERVER")
    assert (stored.status, stored.start_ns, stored.end_ns) == ("ERROR", 5, 9)
    assert stored.parent_id == b"ABCDEFGH".hex()
    assert stored.attributes == {"numbers": [1, 2]}
    [event] = stored.events
    assert (event.name, event.time_ns, event.attributes) == ("queued", 6, {"share": 0.5})


def _pair(key: str, value: AnyValue) -> KeyValue:
    return KeyValue(key=key, value=value)
