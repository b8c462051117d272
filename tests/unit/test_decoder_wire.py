"""Messages to domain values: every range at its edge."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from cogitate.agent_decoder import wire
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.model.templates import Image, Text
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

pytestmark = pytest.mark.unit

VOCAB = 100


def params(**fields: Any) -> Any:
    return wire.to_sampling_params(
        common.SamplingParams(**fields), temperature=0.7, max_tokens=50, vocab_size=VOCAB
    )


def test_what_is_absent_is_the_models_default() -> None:
    made = params()
    assert (made.temperature, made.max_tokens, made.top_p) == (0.7, 50, 1.0)
    assert (made.repetition_penalty, made.logprobs, made.min_tokens) == (1.0, 0, 0)
    assert not made.adjusts_logits
    assert not made.cuts_tail


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": 2.0},
        {"top_p": 1.0},
        {"top_p": 1e-30},
        {"min_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 0},
        {"top_k": VOCAB},
        {"max_tokens": 1},
        {"max_tokens": 1_000_000},
        {"min_tokens": 50},
        {"frequency_penalty": -2.0, "presence_penalty": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 10.0},
        {"logprobs": 0},
        {"logprobs": 20},
        {"stop": ["x"] * 16},
        {"stop": ["é" * 64]},
        {"stop_token_ids": [0, VOCAB - 1]},
        {"logit_bias": {0: -100.0, VOCAB - 1: 100.0}},
    ],
)
def test_inside_the_range(fields: dict[str, Any]) -> None:
    params(**fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"temperature": -0.01}, "temperature"),
        ({"temperature": 2.01}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.01}, "min_p"),
        ({"min_p": 1.01}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": VOCAB + 1}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 1_000_001}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 51}, "min_tokens"),
        ({"frequency_penalty": 99.0}, "frequency_penalty"),
        ({"presence_penalty": -2.01}, "presence_penalty"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-30}, "repetition_penalty"),
        ({"repetition_penalty": 10.1}, "repetition_penalty"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["é" * 65]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [VOCAB]}, "stop_token_ids"),
        ({"stop_token_ids": [1] * 301}, "stop_token_ids"),
        ({"logit_bias": {VOCAB: 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {1: 100.5}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": dict.fromkeys(range(301), 1.0)}, "logit_bias"),
    ],
)
def test_outside_the_range(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        params(**fields)
    assert caught.value.field == f"sampling_params.{field}"


def nested(depth: int) -> str:
    return '{"items":' * depth + "true" + "}" * depth


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"json_schema": "{}"}, "json_schema"),
        ({"json_schema": nested(32)}, "json_schema"),
        ({"json_schema": '{"const":"' + "x" * (65536 - 12) + '"}'}, "json_schema"),
        ({"regex": ""}, "regex"),
        ({"regex": "a" * 65536}, "regex"),
    ],
)
def test_a_grammar_within_the_limits(fields: dict[str, Any], kind: str) -> None:
    made = wire.to_constraint(common.SamplingParams(**fields))
    assert made is not None
    assert (made.kind, made.text) == (kind, fields[kind])


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"json_schema": nested(33)}, "json_schema", "32 levels"),
        ({"json_schema": "[" * 60000 + "]" * 4}, "json_schema", "32 levels"),
        ({"json_schema": '{"const":"' + "x" * (65536 - 11) + '"}'}, "json_schema", "65536 bytes"),
        ({"json_schema": "{"}, "json_schema", "not JSON"),
        ({"regex": "é" * 32769}, "regex", "65536 bytes"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos", "exclude"),
    ],
)
def test_a_grammar_outside_the_limits(fields: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        wire.to_constraint(common.SamplingParams(**fields))
    assert caught.value.field == f"sampling_params.{field}"


def test_no_grammar_is_none() -> None:
    assert wire.to_constraint(common.SamplingParams(ignore_eos=True)) is None


def test_empty_stop_strings_mean_nothing() -> None:
    assert params(stop=["", "a"]).stop == ("a",)


def tensor(*shape: int, data: bytes | None = None, dtype: int = common.D_TYPE_FLOAT32) -> Any:
    size = 4 * math.prod(max(0, n) for n in shape)
    made = common.Tensor(shape=shape, data=bytes(size) if data is None else data)
    made.dtype = dtype  # type: ignore[assignment]
    return made


@pytest.mark.parametrize("rows", [1, 4096])
def test_an_embedding_of_the_right_shape(rows: int) -> None:
    assert wire.to_embedding(tensor(rows, 8), 8).shape == (rows, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (tensor(2, 7), "shape"),
        (tensor(0, 8), "shape"),
        (tensor(4097, 8), "shape"),
        (tensor(8), "shape"),
        (tensor(1, 2, 8), "shape"),
        (tensor(-1, 8), "shape"),
        (tensor(2, 8, data=bytes(63)), "bytes"),
        (tensor(2, 8, dtype=common.D_TYPE_FLOAT16), "float32"),
        (tensor(2, 8, dtype=common.D_TYPE_UNSPECIFIED), "float32"),
        (tensor(1, 8, data=struct.pack("<8f", *[0.0] * 7, math.nan)), "finite"),
        (tensor(1, 8, data=struct.pack("<8f", *[0.0] * 7, -math.inf)), "finite"),
    ],
)
def test_an_embedding_that_is_none(wrong: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        wire.to_embedding(wrong, 8)


def test_parts_in_order() -> None:
    crop = common.ImagePart(digest="d", box=common.Box(x0_permille=1, x1_permille=2))
    result = common.ToolResult(parts=[common.Part(text="r"), common.Part(image=crop)])
    parts = [
        common.Part(image=common.ImagePart(digest="d")),
        common.Part(text="t"),
        common.Part(tool_call=common.ToolCall(name="f", arguments_json='{"x":1}')),
        common.Part(tool_result=result),
        common.Part(),
    ]
    assert wire.to_parts(parts) == (
        Image("d", False), Text("t"), Text('f {"x":1}'), Text("r"), Image("d@1,0,2,0", True)
    )  # fmt: skip
    assert set(wire.images_of(parts)) == {"d", "d@1,0,2,0"}


def test_a_failed_tool_that_says_nothing_is_said_to_have_failed() -> None:
    assert wire.result_parts(common.ToolResult(is_error=True)) == (Text("The tool failed."),)
    said = common.ToolResult(is_error=True, parts=[common.Part(text="no such box")])
    assert wire.result_parts(said) == (Text("no such box"),)
    assert wire.result_parts(common.ToolResult()) == ()


def test_what_has_no_place_in_a_conversation() -> None:
    with pytest.raises(InvalidRequest, match="role"):
        wire.to_turns([common.Message(role=common.ROLE_TOOL)])
    with pytest.raises(InvalidRequest, match="digest"):
        wire.to_parts([common.Part(image=common.ImagePart(data=b"png"))])


def delta(agent_id: int) -> ev.Delta:
    return ev.Delta(agent_id, 1, 5, 7, "t", -0.5, 1.5, True, (7, 8), (-0.5, -2.0))


def test_one_step_is_one_message_with_what_led_to_it_before_and_what_followed_after() -> None:
    call = ev.ToolCall(0, 1, "a0.1.c1", "zoom", "{}", "zoom()", 6)
    finished = ev.Finished(1, 1, ev.Finish.BUDGET, "yes", 6, 3, -0.5, math.inf, 1.5, "")
    made = wire.to_responses(
        [
            ev.Admitted(), ev.Prefilled(9, 0.25, 0.5), ev.Injected(0, "c", 3), delta(0), call,
            delta(1), finished, ev.AwaitingGrant(0, 6), ev.Draining(2.5),
            ev.GangDone(9, 12, 3, 4, 0.125),
        ],
        2,
        lambda: pb.GangAdmitted(endpoint_id="e"),
    )  # fmt: skip
    kinds = [response.WhichOneof("event") for response in made]
    assert kinds == [
        "admitted", "prefilled", "injected", "step", "tool_call", "finished", "awaiting_grant",
        "draining", "gang_finished",
    ]  # fmt: skip
    step = made[3].step
    assert (step.step_offset, [d.agent_id for d in step.deltas]) == (2, [0, 1])
    assert list(step.deltas[0].token_ids) == [7]
    assert list(step.deltas[0].top_logprobs[0].token_ids) == [7, 8]
    assert made[5].finished.finish_reason == common.FINISH_REASON_BUDGET
    assert made[5].finished.confidence.lowest_group_confidence == 1.5
    assert made[8].gang_finished.usage.sampled_token_count == 12


def test_tokens_of_several_steps_are_one_delta_and_an_agents_events_keep_their_order() -> None:
    def token(agent_id: int, offset: int) -> ev.Delta:
        return ev.Delta(agent_id, 1, offset, offset, "x", -0.5, 1.5, False)

    call = ev.ToolCall(0, 1, "a0.1.c1", "zoom", "{}", "zoom()", 2)
    made = wire.to_responses(
        [
            token(0, 0), token(1, 0), token(0, 1), call, token(1, 1),
            ev.Injected(0, "a0.1.c1", 3), token(1, 2), token(0, 2),
        ],
        3,
        pb.GangAdmitted,
    )  # fmt: skip
    kinds = [response.WhichOneof("event") for response in made]
    assert kinds == ["step", "tool_call", "injected", "step"]
    first, second = made[0].step, made[3].step
    assert [(d.agent_id, list(d.token_ids), d.text) for d in first.deltas] == [
        (0, [0, 1], "xx"), (1, [0, 1, 2], "xxx"),
    ]  # fmt: skip
    assert [(d.agent_id, d.token_offset) for d in second.deltas] == [(0, 2)]


@pytest.mark.parametrize("finish", list(ev.Finish))
def test_every_finish_has_its_reason_on_the_wire(finish: ev.Finish) -> None:
    event = ev.Finished(1, 1, finish, "", 0, 0, 0.0, math.inf, 0.0)
    (made,) = wire.to_responses([event], 0, pb.GangAdmitted)
    name = common.FinishReason.Name(made.finished.finish_reason)
    assert name == f"FINISH_REASON_{finish.value}"


def test_a_refusal_says_when_to_come_back() -> None:
    assert wire.refused("REJECTED", "full", 1.5).retry_delay.ToNanoseconds() == 1_500_000_000
    assert not wire.refused("INVALID_REQUEST", "never").HasField("retry_delay")
