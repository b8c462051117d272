"""Every limit of a request at its edge, every range inside and outside."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from cogitate.gateway import wire
from cogitate.gateway.config import GatewayConfig
from cogitate.gateway.core import validation
from cogitate.gateway.core.spec import (
    UNKNOWN,
    Box,
    Call,
    Constraints,
    Image,
    Limits,
    Message,
    Result,
    Sampling,
    Spec,
    Text,
    Tool,
)
from cogitate.kit.config import load
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

pytestmark = pytest.mark.unit

LIMITS = Limits()
DIGEST = "sha256:" + "0" * 64
UUID = "123e4567-e89b-42d3-a456-426614174000"


def user(*parts: Any) -> Message:
    """The question."""
    return Message("USER", parts or (Text("What?"),))


def asking(**fields: Any) -> Spec:
    """A spec that is fine but for what is given."""
    return replace(Spec(conversation=(user(),)), **fields)


def fields_of(spec: Spec, limits: Limits = LIMITS) -> list[str]:
    """The fields found wrong."""
    return [one.field for one in validation.violations(spec, limits)]


def test_a_plain_question_is_fine() -> None:
    assert [] == fields_of(asking())
    validation.check(asking(), LIMITS)


@pytest.mark.parametrize(
    ("field", "fine", "wrong"),
    [
        ("agent_count", (None, 1, 64), (0, -1, 65, 1_000_000)),
        ("request_id", ("", UUID), ("x", UUID + "0")),
        ("model", ("", "mini", "a" * 64), ("../etc", "a" * 65, "a b")),
        ("strategy", ("", "vote", "best_of"), ("Vote!", "a" * 40, "vote; drop")),
        ("quorum", ("", "verified", "first:3"), ("first:", "ALL OF THEM", "../x")),
        ("effort", ("UNSPECIFIED", "INSTANT"), (UNKNOWN,)),
        ("on_disconnect", ("UNSPECIFIED", "CONTINUE"), (UNKNOWN,)),
        ("max_round_count", (0, 16), (-1, 17)),
        ("initial_agent_count", (0, 64), (-1, 65)),
        ("priority", (-100, 100), (-101, 101)),
        (
            "equivalence",
            ("", "auto", "json", "embedding", "embedding:0.9"),
            ("fuzzy", "embedding:", "embedding:x", "embeddings", "auto:1", "embedding:" + "9" * 17),
        ),
        ("parent_contemplation_id", ("", UUID), ("a b", "a" * 129)),
        ("response_json_schema", ("", "{}"), ("[]", "{", "[" * 100_000)),
    ],
)
def test_fields_at_the_edge(field: str, fine: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    for value in fine:
        assert [] == fields_of(asking(**{field: value})), value
    limits = replace(LIMITS, max_text_length=1_000_000)
    for value in wrong:
        assert [field] == fields_of(asking(**{field: value}), limits), value


@pytest.mark.parametrize(
    ("field", "name", "fine", "wrong"),
    [
        ("max_tokens", "budget.max_tokens", (0, 1_000_000), (-1, 1_000_001)),
        ("max_cost_micro_usd", "budget.max_cost_micro_usd", (0, 2**60), (-1,)),
        ("deadline_s", "budget.deadline_time", (None, 0.001, 120.0), (0.0, -5.0, 120.1)),
    ],
)
def test_budget_at_the_edge(
    field: str, name: str, fine: tuple[Any, ...], wrong: tuple[Any, ...]
) -> None:
    for value in fine:
        assert [] == fields_of(asking(**{field: value})), value
    for value in wrong:
        assert [name] == fields_of(asking(**{field: value})), value


@pytest.mark.parametrize(
    ("field", "fine", "wrong"),
    [
        ("temperature", (None, 0, 2), (-0.01, 2.01, math.nan, math.inf)),
        ("top_p", (None, 0.01, 1), (0, 1.01, -1, math.nan)),
        ("top_k", (0, 10**9), (-1,)),
        ("min_p", (0, 1), (-0.1, 1.1, math.nan)),
        ("frequency_penalty", (-2, 2), (-2.1, 2.1, math.nan)),
        ("presence_penalty", (-2, 2), (-2.1, 2.1, math.nan)),
        ("repetition_penalty", (0, 10), (-0.1, 10.1, math.nan)),
        ("max_tokens", (None, 1, 1_000_000), (0, -1, 1_000_001)),
        ("min_tokens", (0, 1_000_000), (-1, 1_000_001)),
        ("logprobs", (None, 0, 20), (-1, 21)),
        ("stop_token_ids", ((), (0, 5), (1,) * 256), ((-1,), (1,) * 257)),
        ("json_schema", (None, "{}"), ("", "1")),
        ("regex", (None, "a+"), ("",)),
        ("logit_bias", ({}, {1: -100.0, 2: 100.0}), ({-1: 0.0}, {1: 100.5}, {1: math.nan})),
    ],
)
def test_sampling_at_the_edge(field: str, fine: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    for value in fine:
        assert [] == fields_of(asking(sampling=Sampling(**{field: value}))), value
    for value in wrong:
        found = fields_of(asking(sampling=Sampling(**{field: value})))
        assert [f"sampling_params.{field}"] == found, value


def test_what_all_agents_may_sample_is_at_the_edge() -> None:
    fine, above = Sampling(max_tokens=15_625), Sampling(max_tokens=15_626)
    assert [] == fields_of(asking(agent_count=64, sampling=fine))
    assert ["sampling_params.max_tokens"] == fields_of(asking(agent_count=64, sampling=above))
    assert [] == fields_of(asking(sampling=above))


def test_stop_strings_at_the_edge() -> None:
    fine = Sampling(stop=("é" * 64,) * 16)
    assert [] == fields_of(asking(sampling=fine))
    assert ["sampling_params.stop"] == fields_of(asking(sampling=Sampling(stop=("x",) * 17)))
    for wrong in ("", "é" * 64 + "x"):
        found = fields_of(asking(sampling=Sampling(stop=("x", wrong))))
        assert ["sampling_params.stop[1]"] == found


def test_logit_bias_and_min_tokens() -> None:
    many = Sampling(logit_bias=dict.fromkeys(range(301), 0.0))
    assert ["sampling_params.logit_bias"] == fields_of(asking(sampling=many))
    above = Sampling(max_tokens=5, min_tokens=6)
    assert ["sampling_params.min_tokens"] == fields_of(asking(sampling=above))


@pytest.mark.parametrize(
    ("conversation", "field"),
    [
        ((), "conversation"),
        ((user(Text("")),), "conversation[0].parts"),
        ((user(Text(" \n\t")),), "conversation[0].parts"),
        ((user(Image(digest=DIGEST)),), "conversation[0].parts"),
        ((Message("ASSISTANT", (Text("x"),)),), "conversation[0].role"),
        ((Message("UNSPECIFIED", (Text("x"),)), user()), "conversation[0].role"),
        ((Message(UNKNOWN, (Text("x"),)), user()), "conversation[0].role"),
        ((user(Text("x"), None),), "conversation[0].parts[1]"),
    ],
)
def test_a_conversation_asks_something(conversation: tuple[Message, ...], field: str) -> None:
    assert [field] == fields_of(Spec(conversation=conversation))


def test_messages_at_the_edge() -> None:
    assert [] == fields_of(Spec(conversation=(user(),) * 64))
    assert ["conversation"] == fields_of(Spec(conversation=(user(),) * 65))


def test_text_length_at_the_edge_counts_everything_that_is_text() -> None:
    limits = replace(LIMITS, max_text_length=10)
    assert [] == fields_of(Spec(conversation=(user(Text("x" * 10)),)), limits)
    assert ["conversation"] == fields_of(Spec(conversation=(user(Text("x" * 11)),)), limits)
    with_schema = asking(response_json_schema="{}")
    assert [] == fields_of(with_schema, replace(LIMITS, max_text_length=7))
    assert ["conversation"] == fields_of(with_schema, replace(LIMITS, max_text_length=6))
    tools = asking(client_tools=(Tool("t", description="x" * 10),))
    assert ["conversation"] == fields_of(tools, limits)


def test_images_at_the_edge() -> None:
    image = Image(digest=DIGEST)
    assert [] == fields_of(Spec(conversation=(user(Text("?"), *[image] * 8),)))
    assert ["conversation"] == fields_of(Spec(conversation=(user(Text("?"), *[image] * 9),)))
    inside = Message("TOOL", (Result("c", (image,) * 9),))
    assert ["conversation"] == fields_of(Spec(conversation=(inside, user())))


@pytest.mark.parametrize(
    ("image", "field"),
    [
        (Image(digest=DIGEST), None),
        (Image(digest=DIGEST, box=Box(0, 0, 1000, 1000)), None),
        (Image(data_bytes=16 * 1024 * 1024), None),
        (Image(data_bytes=16 * 1024 * 1024 + 1), "image.data"),
        (Image(), "image"),
        (Image(digest=DIGEST, data_bytes=1), "image"),
        (Image(digest="sha256:XYZ"), "image.digest"),
        (Image(digest=DIGEST, box=Box(-1, 0, 10, 10)), "image.box"),
        (Image(digest=DIGEST, box=Box(10, 0, 10, 10)), "image.box"),
        (Image(digest=DIGEST, box=Box(0, 0, 10, 1001)), "image.box"),
        (Image(data_bytes=1, box=Box(0, 5, 10, 4)), "image.box"),
    ],
)
def test_each_image(image: Image, field: str | None) -> None:
    found = fields_of(Spec(conversation=(user(Text("?"), image),)))
    assert ([f"conversation[0].parts[1].{field}"] if field else []) == found


def test_calls_and_results_in_a_conversation() -> None:
    fine = (
        Message("ASSISTANT", (Call("c", "zoom", "{}"),)),
        Message("TOOL", (Result("c", (Text("x"), Image(digest=DIGEST))),)),
        user(),
    )
    assert [] == fields_of(Spec(conversation=fine))
    wrong = (
        Message("ASSISTANT", (Call("c", "no such name", "not json"),)),
        Message("TOOL", (Result("c", (Result("d"), None)),)),
        user(),
    )
    assert [
        "conversation[0].parts[0].tool_call.name",
        "conversation[0].parts[0].tool_call.arguments_json",
        "conversation[1].parts[0].tool_result.parts[0]",
        "conversation[1].parts[0].tool_result.parts[1]",
    ] == fields_of(Spec(conversation=wrong))


def test_tools_at_the_edge() -> None:
    assert [] == fields_of(asking(allowed_tools=("zoom", "x" * 64)))
    assert [] == fields_of(asking(allowed_tools=("none",)))
    assert [] == fields_of(asking(allowed_tools=("t",) * 64))
    assert ["allowed_tools"] == fields_of(asking(allowed_tools=("t",) * 65))
    assert ["allowed_tools"] == fields_of(asking(allowed_tools=("none", "zoom")))
    assert ["allowed_tools[1]"] == fields_of(asking(allowed_tools=("zoom", "x" * 65)))
    assert ["client_tools"] == fields_of(
        asking(client_tools=tuple(Tool(f"t{i}") for i in range(65)))
    )
    assert [
        "client_tools[0].name",
        "client_tools[1].client_side",
        "client_tools[1].parameters_json_schema",
        "client_tools[2].name",
    ] == fields_of(
        asking(
            client_tools=(
                Tool("a b"),
                Tool("t", client_side=False, parameters_json_schema="1"),
                Tool("t"),
            )
        )
    )


def test_constraints_at_the_edge() -> None:
    fine = Constraints(("aurora",) * 64, min_failure_domain_count=64)
    assert [] == fields_of(asking(constraints=fine))
    wrong = Constraints(
        providers=("p",) * 65,
        regions=("a b",),
        excluded_endpoint_ids=("",),
        min_failure_domain_count=65,
        max_price_per_hour_micro_usd=-1,
    )
    assert [
        "constraints.providers",
        "constraints.regions[0]",
        "constraints.excluded_endpoint_ids[0]",
        "constraints.min_failure_domain_count",
        "constraints.max_price_per_hour_micro_usd",
    ] == fields_of(asking(constraints=wrong))


def test_filters_name_events() -> None:
    known = {
        field.name for field in pb2.ContemplationEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    }
    assert known == validation.EVENTS
    assert ["filter.excluded_events[1]"] == fields_of(asking(excluded_events=("deltas", "tokens")))


def test_steering_and_client_results() -> None:
    small = replace(LIMITS, max_text_length=3, max_image_count=1)
    image = Image(digest=DIGEST)
    assert [] == validation.steering(user(Text("abc"), image), small)
    for wrong in (user(Text("abcd")), user(Text("a"), image, image), Message("USER"), user(None)):
        assert validation.steering(wrong, small)
    assert [] == validation.client_result(Result("c", (Text("abc"),)), small)
    (found,) = validation.client_result(Result("", (Text("abc"),)), small)
    assert "result.call_id" == found.field
    (found,) = validation.client_result(Result("c", (None,)), small)
    assert "result.parts[0]" == found.field


def test_the_error_names_the_first_and_counts_the_rest_and_holds_no_text() -> None:
    secret = "my secret question"
    spec = Spec(
        conversation=(Message("ASSISTANT", (Text(secret),)),) * 6 + (Message("USER"),),
        agent_count=0,
        priority=999,
        allowed_tools=("a b",) * 5,
    )
    with pytest.raises(InvalidRequest) as caught:
        validation.check(spec, LIMITS)
    assert "spec.conversation[6].parts" == caught.value.field
    assert "agent_count is 0, it must be 1 to 64" in caught.value.message
    assert caught.value.message.endswith("and 3 more")
    assert secret not in caught.value.message


def test_limits_are_knobs() -> None:
    config = load(
        GatewayConfig,
        "gateway",
        ["--max-agent-count", "16"],
        {"COGITATE_GATEWAY_MAX_TEXT_LENGTH": "5", "COGITATE_GATEWAY_MAX_AGENT_COUNT": "3"},
    )
    assert (16, 5) == (config.limits.max_agent_count, config.limits.max_text_length)
    assert Limits() == GatewayConfig().limits


def test_wire_reads_every_field() -> None:
    request = pb2.ContemplateRequest()
    spec = request.spec
    part = spec.conversation.add(role=common_pb2.ROLE_USER).parts
    part.add(text="?")
    part.add(image=common_pb2.ImagePart(data=b"123", box=common_pb2.Box(x1_permille=7)))
    spec.agent_count, spec.effort, spec.quorum = 3, common_pb2.EFFORT_INSTANT, "all"
    spec.sampling_params.temperature = 0.0
    spec.budget.deadline_time.FromSeconds(105)
    request.filter.excluded_events.append("deltas")
    read = wire.spec(request, now_s=100.0)
    assert (3, "INSTANT", "all", 5.0) == (
        read.agent_count,
        read.effort,
        read.quorum,
        read.deadline_s,
    )
    assert 0.0 == read.sampling.temperature
    assert read.sampling.top_p is None
    assert Image("", 3, Box(0, 0, 7, 0)) == read.conversation[0].parts[1]
    assert ("deltas",) == read.excluded_events
    assert wire.spec(pb2.ContemplateRequest(), now_s=0.0).agent_count is None
    spec.effort = 99  # type: ignore[assignment]  # an open enumeration
    assert UNKNOWN == wire.spec(request, now_s=0.0).effort


def test_wire_is_total_on_nested_results() -> None:
    deep = common_pb2.ToolResult(call_id="0")
    for i in range(1, 20):
        outer = common_pb2.ToolResult(call_id=str(i))
        outer.parts.add(tool_result=deep)
        deep = outer
    assert Result("19", (Result("18"),)) == wire.result(deep)
