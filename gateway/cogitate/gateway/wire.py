"""Protocol messages to plain values and back; total functions, no decisions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cogitate.gateway.core.spec import (
    UNKNOWN,
    Box,
    Call,
    Constraints,
    Image,
    Limits,
    Message,
    Part,
    Result,
    Sampling,
    Spec,
    Table,
    Text,
    Tool,
)
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2
from cogitate.v1 import (
    common_pb2,
    contemplation_service_pb2,
    gateway_service_pb2,
    router_service_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp


def spec(request: contemplation_service_pb2.ContemplateRequest, *, now_s: float) -> Spec:
    """Returns what `request` asks; `now_s` is Unix time, from which the deadline is counted."""
    raw = request.spec
    budget = raw.budget
    return Spec(
        conversation=tuple(message(one) for one in raw.conversation),
        request_id=raw.request_id,
        model=raw.model,
        effort=_enum(common_pb2.Effort, raw.effort, "EFFORT_"),
        agent_count=raw.agent_count if raw.HasField("agent_count") else None,
        strategy=raw.strategy,
        quorum=raw.quorum,
        sampling=_sampling(raw.sampling_params),
        max_tokens=budget.max_tokens,
        max_cost_micro_usd=budget.max_cost_micro_usd,
        deadline_s=seconds(budget.deadline_time) - now_s
        if budget.HasField("deadline_time")
        else None,
        allowed_tools=tuple(raw.allowed_tools),
        client_tools=tuple(
            Tool(tool.name, tool.description, tool.parameters_json_schema, tool.client_side)
            for tool in raw.client_tools
        ),
        constraints=_constraints(raw.constraints),
        on_disconnect=_enum(
            contemplation_service_pb2.OnDisconnect, raw.on_disconnect, "ON_DISCONNECT_"
        ),
        parent_contemplation_id=raw.parent_contemplation_id,
        response_json_schema=raw.response_json_schema,
        equivalence=raw.equivalence,
        initial_agent_count=raw.initial_agent_count,
        max_round_count=raw.max_round_count,
        priority=raw.priority,
        excluded_events=tuple(request.filter.excluded_events),
        tables=tuple(
            Table(one.name, tuple(one.columns), tuple(tuple(row.cells) for row in one.rows))
            for one in raw.tables
        ),
    )


def message(raw: common_pb2.Message) -> Message:
    """Returns one turn."""
    return Message(
        role=_enum(common_pb2.Role, raw.role, "ROLE_"),
        parts=tuple(_part(part) for part in raw.parts),
    )


def result(raw: common_pb2.ToolResult) -> Result:
    """Returns a tool's result; one inside it is cut short here and refused by its kind."""
    return Result(
        raw.call_id,
        tuple(
            Result(part.tool_result.call_id)
            if part.WhichOneof("part") == "tool_result"
            else _part(part)
            for part in raw.parts
        ),
    )


def image(raw: common_pb2.ImagePart) -> Image:
    """Returns an image without its bytes."""
    box = raw.box
    return Image(
        digest=raw.digest,
        data_bytes=len(raw.data),
        box=Box(box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
        if raw.HasField("box")
        else None,
    )


def inline_images(messages: Iterable[common_pb2.Message]) -> list[common_pb2.ImagePart]:
    """Returns the image parts that carry bytes, to be changed in place."""
    return inline_images_of_parts(part for one in messages for part in one.parts)


def inline_images_of_parts(parts: Iterable[common_pb2.Part]) -> list[common_pb2.ImagePart]:
    """Returns the image parts among `parts` and in tool results there that carry bytes."""
    outer = list(parts)
    everything = outer + [inner for part in outer for inner in part.tool_result.parts]
    return [part.image for part in everything if part.image.data]


def seconds(time: Timestamp) -> float:
    """Returns Unix time in seconds; total, whatever the fields hold."""
    return time.seconds + time.nanos / 1e9


def set_seconds(time: Timestamp, value_s: float) -> None:
    """Sets `time` to Unix time in seconds."""
    time.seconds = int(value_s)
    time.nanos = int((value_s - int(value_s)) * 1e9)


def limits(
    value: Limits,
) -> gateway_service_pb2.Limits:
    """Returns the limits as clients see them."""
    raw = gateway_service_pb2.Limits(
        max_agent_count=value.max_agent_count,
        max_image_count=value.max_image_count,
        max_image_bytes=value.max_image_bytes,
        max_image_pixel_count=value.max_image_pixel_count,
        max_text_length=value.max_text_length,
        max_message_count=value.max_message_count,
        max_token_count=value.max_token_count,
    )
    raw.max_duration.FromNanoseconds(int(value.max_duration_s * 1e9))
    return raw


def models(
    fleet: router_service_pb2.GetFleetResponse,
) -> list[gateway_service_pb2.ModelDescription]:
    """Returns the models that endpoints ready for work serve, by name."""
    found: dict[str, gateway_service_pb2.ModelDescription] = {}
    for endpoint in fleet.endpoints:
        if endpoint.state not in ("", "READY"):
            continue
        for name in endpoint.description.models:
            one = found.setdefault(name, gateway_service_pb2.ModelDescription(name=name))
            one.endpoint_count += 1
            one.max_sequence_count += endpoint.description.max_sequence_count
            one.vision |= decoder_pb2.CAPABILITY_VISION in endpoint.description.capabilities
    return [found[name] for name in sorted(found)]


def _part(raw: common_pb2.Part) -> Part | None:
    match raw.WhichOneof("part"):
        case "text":
            return Text(raw.text)
        case "image":
            return image(raw.image)
        case "tool_call":
            call = raw.tool_call
            return Call(call.call_id, call.name, call.arguments_json)
        case "tool_result":
            return result(raw.tool_result)
        case _:
            return None


def _sampling(raw: common_pb2.SamplingParams) -> Sampling:
    return Sampling(
        temperature=raw.temperature if raw.HasField("temperature") else None,
        top_p=raw.top_p if raw.HasField("top_p") else None,
        top_k=raw.top_k,
        min_p=raw.min_p,
        frequency_penalty=raw.frequency_penalty,
        presence_penalty=raw.presence_penalty,
        repetition_penalty=raw.repetition_penalty,
        max_tokens=raw.max_tokens if raw.HasField("max_tokens") else None,
        min_tokens=raw.min_tokens,
        stop=tuple(raw.stop),
        stop_token_ids=tuple(raw.stop_token_ids),
        logprobs=raw.logprobs if raw.HasField("logprobs") else None,
        logit_bias=dict(raw.logit_bias),
        json_schema=raw.json_schema if raw.HasField("json_schema") else None,
        regex=raw.regex if raw.HasField("regex") else None,
    )


def _constraints(raw: router_service_pb2.PlacementConstraints) -> Constraints:
    return Constraints(
        providers=tuple(raw.providers),
        regions=tuple(raw.regions),
        min_failure_domain_count=raw.min_failure_domain_count,
        max_price_per_hour_micro_usd=raw.max_price_per_hour_micro_usd,
        excluded_endpoint_ids=tuple(raw.excluded_endpoint_ids),
    )


def _enum(kind: Any, value: int, prefix: str) -> str:
    names = {number: name for name, number in kind.items()}
    return names[value].removeprefix(prefix) if value in names else UNKNOWN
