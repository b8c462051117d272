"""Whatever a client sends: reading and checking it is total, what passes is within limits."""

from __future__ import annotations

import pytest
from cogitate.gateway import wire
from cogitate.gateway.core import validation
from cogitate.gateway.core.spec import Image, Limits, Text
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

LIMITS = Limits(
    max_agent_count=4,
    max_image_count=2,
    max_image_bytes=8,
    max_text_length=40,
    max_message_count=3,
    max_token_count=100,
    max_duration_s=10.0,
)

INT32 = st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 5)
FLOATS = st.floats(width=32) | st.sampled_from([0.0, 1.0, 2.0])
TEXT = st.text(max_size=12) | st.sampled_from(["", " ", "vote", "mini", "{}", "none"])
DIGEST = st.sampled_from(["", "sha256:" + "a" * 64, "sha256:x"])


@st.composite
def boxes(draw: st.DrawFn) -> common_pb2.Box:
    """Any box."""
    return common_pb2.Box(
        x0_permille=draw(INT32),
        y0_permille=draw(INT32),
        x1_permille=draw(INT32),
        y1_permille=draw(INT32),
    )


@st.composite
def parts(draw: st.DrawFn, depth: int = 0) -> common_pb2.Part:
    """Any part, results within results included."""
    part = common_pb2.Part()
    kind = draw(st.sampled_from(["", "text", "image", "tool_call", "tool_result"]))
    if kind == "text":
        part.text = draw(TEXT)
    elif kind == "image":
        part.image.digest = draw(DIGEST)
        part.image.data = draw(st.binary(max_size=10))
        if draw(st.booleans()):
            part.image.box.CopyFrom(draw(boxes()))
    elif kind == "tool_call":
        part.tool_call.name = draw(TEXT)
        part.tool_call.arguments_json = draw(TEXT)
    elif kind == "tool_result":
        part.tool_result.SetInParent()
        if depth < 3:
            part.tool_result.parts.extend(draw(st.lists(parts(depth + 1), max_size=2)))
    return part


@st.composite
def requests(draw: st.DrawFn) -> pb2.ContemplateRequest:
    """Any request."""
    request = pb2.ContemplateRequest()
    spec = request.spec
    for _ in range(draw(st.integers(0, 4))):
        role = draw(st.integers(0, 6))
        message = spec.conversation.add(role=role)  # type: ignore[arg-type]  # open enumeration
        message.parts.extend(draw(st.lists(parts(), max_size=3)))
    spec.model, spec.strategy, spec.quorum = draw(TEXT), draw(TEXT), draw(TEXT)
    if draw(st.booleans()):
        spec.agent_count = draw(INT32)
    spec.initial_agent_count, spec.priority = draw(INT32), draw(INT32)
    spec.sampling_params.temperature = draw(FLOATS)
    spec.sampling_params.min_p = draw(FLOATS)
    spec.sampling_params.max_tokens = draw(INT32)
    spec.budget.max_tokens = draw(st.integers(-(2**63), 2**63 - 1))
    if draw(st.booleans()):
        spec.budget.deadline_time.seconds = draw(st.integers(-(2**63), 2**63 - 1))
        spec.budget.deadline_time.nanos = draw(INT32)
    spec.allowed_tools.extend(draw(st.lists(TEXT, max_size=3)))
    request.filter.excluded_events.extend(draw(st.lists(TEXT, max_size=2)))
    return request


@given(requests())
def test_reading_and_checking_is_total(request: pb2.ContemplateRequest) -> None:
    spec = wire.spec(request, now_s=1_700_000_000.0)
    found = validation.violations(spec, LIMITS)
    try:
        validation.check(spec, LIMITS)
    except InvalidRequest as error:
        assert found
        assert error.field
        assert error.code == "INVALID_ARGUMENT"
    else:
        assert not found


@given(requests())
def test_what_passes_is_within_the_limits(request: pb2.ContemplateRequest) -> None:
    spec = wire.spec(request, now_s=1_700_000_000.0)
    if validation.violations(spec, LIMITS):
        return
    parts = [part for message in spec.conversation for part in message.parts]
    assert 1 <= len(spec.conversation) <= 3
    assert spec.agent_count is None or 1 <= spec.agent_count <= 4
    assert any(isinstance(p, Text) and p.text.strip() for p in spec.conversation[-1].parts)
    assert sum(isinstance(part, Image) for part in parts) <= 2
    assert sum(len(part.text) for part in parts if isinstance(part, Text)) <= 40
    assert 0 <= spec.max_tokens <= 100
    assert spec.deadline_s is None or 0 < spec.deadline_s <= 10


@given(requests())
def test_inline_images_are_found_wherever_they_are_allowed(
    request: pb2.ContemplateRequest,
) -> None:
    spec = wire.spec(request, now_s=0.0)
    if validation.violations(spec, LIMITS):
        return
    for image in wire.inline_images(request.spec.conversation):
        image.ClearField("data")
    assert b"" == b"".join(
        part.image.data for message in request.spec.conversation for part in message.parts
    )
    assert [] == wire.inline_images(request.spec.conversation)
