"""OpenAI's requests as the mesh's; total but for what cannot be said, which raises InvalidRequest.

Ids of calls that go to a client hold the contemplation that waits for their results, so that no
gateway has to remember it: `call_`, its 32 hex digits, `_`, the call's own id.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from cogitate.gateway.http.openai import schemas as s
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

# What no client of OpenAI's is told anyway.
UNTOLD: Final = ("placed", "prefilled", "round_started", "widened", "steered", "queued")
_EFFORTS: Final[dict[str, common_pb2.Effort.ValueType]] = {
    "none": common_pb2.EFFORT_INSTANT,
    "minimal": common_pb2.EFFORT_INSTANT,
    "low": common_pb2.EFFORT_INSTANT,
    "medium": common_pb2.EFFORT_THINKING,
    "high": common_pb2.EFFORT_CONTEMPLATING,
    "xhigh": common_pb2.EFFORT_CONTEMPLATING,
}
_ROLES: Final[dict[str, common_pb2.Role.ValueType]] = {
    "system": common_pb2.ROLE_SYSTEM,
    "developer": common_pb2.ROLE_SYSTEM,
    "user": common_pb2.ROLE_USER,
    "assistant": common_pb2.ROLE_ASSISTANT,
}
_DATA_URI: Final = re.compile(r"data:image/(png|jpeg|jpg|webp|gif);base64,")
_CALL_ID: Final = re.compile(r"call_([0-9a-f]{32})_(.{1,256})", re.DOTALL)
# The fields of a spec, as OpenAI calls them; longest first where one begins another.
_NAMES: Final = (
    ("sampling_params.json_schema", "response_format"),
    ("sampling_params.logprobs", "top_logprobs"),
    ("sampling_params.", ""),
    ("response_json_schema", "response_format"),
    ("client_tools", "tools"),
    ("allowed_tools", "cogitate.tools"),
    ("initial_agent_count", "cogitate.initial_agents"),
    ("agent_count", "cogitate.agents"),
    ("budget.max_tokens", "cogitate.budget_tokens"),
    ("budget.max_cost_micro_usd", "cogitate.budget_usd"),
    ("budget.deadline_time", "cogitate.deadline_s"),
    ("constraints.", "cogitate."),
    ("max_round_count", "cogitate.rounds"),
    ("tables", "cogitate.tables"),
)
_OWN: Final = ("strategy", "quorum", "equivalence", "priority", "on_disconnect")


@dataclass(frozen=True)
class Results:
    """What a client's tools returned, for the contemplation that waits for it."""

    contemplation_id: str
    results: tuple[common_pb2.ToolResult, ...]
    num_returned: int  # with those of earlier turns

    def behind(self, num_before: int) -> Results:
        """The same where the earlier turns are not in the conversation."""
        return replace(self, num_returned=num_before + len(self.results))


def call_id(contemplation_id: str, inner: str) -> str:
    """Returns the id by which a client hears of a call."""
    return f"call_{uuid.UUID(contemplation_id).hex}_{inner}"


def parse_call_id(outer: str) -> tuple[str, str] | None:
    """Returns the contemplation and its own id of the call; None if it is not one of ours."""
    found = _CALL_ID.fullmatch(outer)
    return (str(uuid.UUID(found[1])), found[2]) if found else None


def request_id(key: str) -> str:
    """Returns the id by which a request sent twice is one; `key` is an Idempotency-Key, if any."""
    if not key:
        return str(uuid.uuid4())
    if len(key) > 255:
        raise InvalidRequest("the Idempotency-Key has more than 255 characters")
    return str(uuid.uuid5(uuid.NAMESPACE_OID, key))


@contextmanager
def renaming(conversation: str) -> Iterator[None]:
    """Makes the mesh's refusals speak of fields as OpenAI calls them."""
    try:
        yield
    except InvalidRequest as error:
        if not (error.field or "").startswith("spec."):
            raise
        raise _renamed(error, conversation) from None


def _renamed(error: InvalidRequest, conversation: str) -> InvalidRequest:
    """The same error with the fields as OpenAI calls them; `conversation` is messages or input."""

    def rename(text: str) -> str:
        for ours, theirs in (*_NAMES, ("conversation", conversation)):
            text = text.replace(ours, theirs)
        for own in _OWN:
            text = re.sub(rf"(^|; ){own}\b", rf"\1cogitate.{own}", text)
        return text

    field = rename(error.field.removeprefix("spec.")) if error.field else None
    return InvalidRequest(
        rename(error.message),
        field=field,
        reason=error.reason,
        metadata=error.metadata | ({"field": field} if field else {}),
    )


def chat(body: s.ChatRequest) -> tuple[pb2.ContemplateRequest, Results | None]:
    """Returns what a chat completion asks, and the results it brings if it goes on with one."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs: true", field="top_logprobs")
    turns: list[common_pb2.Message] = []
    for i, message in enumerate(body.messages):
        turns.append(_chat_turn(message, f"messages[{i}]"))
    spec = _spec(body.model, body.cogitate, body.reasoning_effort)
    spec.conversation.extend(turns)
    sampling = spec.sampling_params
    _set(sampling, body, "temperature top_p top_k min_p repetition_penalty frequency_penalty")
    _set(sampling, body, "presence_penalty seed")
    given = body.max_completion_tokens
    if (most := body.max_tokens if given is None else given) is not None:
        sampling.max_tokens = most
    if body.logprobs:
        sampling.logprobs = body.top_logprobs or 0
    sampling.stop.extend([body.stop] if isinstance(body.stop, str) else body.stop or [])
    for token, bias in (body.logit_bias or {}).items():
        sampling.logit_bias[_token(token)] = bias
    match body.response_format:
        case s.JsonObjectFormat():
            spec.response_json_schema = '{"type": "object"}'
        case s.JsonSchemaFormat(json_schema=named):
            spec.response_json_schema = json.dumps(named.schema_ or {})
    _set_tools(spec, [tool.function for tool in body.tools or ()], body.tool_choice)
    return _request(spec, body.cogitate), _results(turns, "messages")


def response(body: s.ResponseRequest) -> tuple[pb2.ContemplateRequest, Results | None]:
    """Returns what a response is made of, and the results it brings if it goes on with one."""
    effort = body.reasoning.effort if body.reasoning else None
    spec = _spec(body.model, body.cogitate, effort)
    if body.instructions:
        spec.conversation.add(role=common_pb2.ROLE_SYSTEM).parts.add(text=body.instructions)
    if isinstance(body.input, str):
        turns = [_said("user", [common_pb2.Part(text=body.input)])]
    else:
        turns = [
            turn for i, item in enumerate(body.input) for turn in _item_turns(item, f"input[{i}]")
        ]
    spec.conversation.extend(turns)
    _set(spec.sampling_params, body, "temperature top_p seed")
    if body.max_output_tokens is not None:
        spec.sampling_params.max_tokens = body.max_output_tokens
    match body.text and body.text.format:
        case s.JsonObjectFormat():
            spec.response_json_schema = '{"type": "object"}'
        case s.SchemaTextFormat(schema_=schema):
            spec.response_json_schema = json.dumps(schema)
    _set_tools(spec, body.tools or (), body.tool_choice)
    if body.background:
        spec.on_disconnect = pb2.ON_DISCONNECT_CONTINUE
    calls_known = body.previous_response_id is not None
    return _request(spec, body.cogitate), _results(turns, "input", calls_known=calls_known)


def follow(
    spec: pb2.ContemplationSpec, parent: str, before: Sequence[common_pb2.Message], *, led: bool
) -> None:
    """Puts the conversation so far before what is asked now, behind its instructions if `led`."""
    now = list(spec.conversation)
    del spec.conversation[:]
    spec.conversation.extend([*now[:led], *before, *now[led:]])
    spec.parent_contemplation_id = parent


def image(url: str, field: str) -> common_pb2.Part:
    """Returns a picture given as a data URI, or by its digest here. Nothing is ever fetched."""
    if url.startswith("sha256:"):
        return common_pb2.Part(image=common_pb2.ImagePart(digest=url))
    found = _DATA_URI.match(url[:64])
    if not found:
        raise InvalidRequest(
            "an image must be a data URI of base64 (data:image/png;base64,…; png, jpeg, webp or "
            "gif), or the digest of one that was uploaded; nothing is fetched",
            field=field,
            reason="BAD_IMAGE",
        )
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            "the image is not valid base64", field=field, reason="BAD_IMAGE"
        ) from None
    return common_pb2.Part(image=common_pb2.ImagePart(data=data))


def _spec(model: str, own: s.Cogitate, effort: str | None) -> pb2.ContemplationSpec:
    spec = pb2.ContemplationSpec(
        model=model,
        effort=_EFFORTS[effort] if effort else common_pb2.EFFORT_UNSPECIFIED,
        agent_count=own.agents,
        initial_agent_count=own.initial_agents,
        strategy=own.strategy,
        quorum=own.quorum,
        equivalence=own.equivalence,
        max_round_count=own.rounds,
        priority=own.priority,
        on_disconnect=pb2.ON_DISCONNECT_CONTINUE
        if own.on_disconnect == "continue"
        else pb2.ON_DISCONNECT_CANCEL,
    )
    spec.budget.max_tokens = own.budget_tokens
    spec.budget.max_cost_micro_usd = round(own.budget_usd * 1_000_000)
    if own.deadline_s is not None:
        spec.budget.deadline_time.FromNanoseconds(
            max(0, time.time_ns() + int(own.deadline_s * 1e9))
        )
    if own.tools is not None:
        spec.allowed_tools.extend(own.tools or ["none"])
    for table in own.tables:
        rows = [common_pb2.LookupRow(cells=row) for row in table.rows]
        spec.tables.add(name=table.name, columns=table.columns, rows=rows)
    spec.constraints.providers.extend(own.providers)
    spec.constraints.regions.extend(own.regions)
    return spec


def _request(spec: pb2.ContemplationSpec, own: s.Cogitate) -> pb2.ContemplateRequest:
    untold = UNTOLD if own.events == "none" else ()
    return pb2.ContemplateRequest(spec=spec, filter=pb2.EventFilter(excluded_events=untold))


def _set(sampling: common_pb2.SamplingParams, body: Any, names: str) -> None:
    for name in names.split():
        if (value := getattr(body, name)) is not None:
            setattr(sampling, name, value)


def _token(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise InvalidRequest("logit_bias must map token ids to -100 to 100", field="logit_bias")
    return int(text)


def _set_tools(
    spec: pb2.ContemplationSpec, tools: Sequence[s.Function | s.ResponseTool], choice: Any
) -> None:
    if choice not in (None, "auto", "none"):
        raise InvalidRequest(
            'tool_choice can be "auto" or "none": agents cannot be made to call a tool',
            field="tool_choice",
        )
    if choice == "none":
        return
    for tool in tools:
        spec.client_tools.add(
            name=tool.name,
            description=tool.description or "",
            parameters_json_schema=json.dumps(tool.parameters) if tool.parameters else "",
            client_side=True,
        )


def _said(role: str, parts: Iterable[common_pb2.Part]) -> common_pb2.Message:
    return common_pb2.Message(role=_ROLES[role], parts=parts)


def _text(text: str) -> common_pb2.Part:
    return common_pb2.Part(text=text)


def _call(outer: str, name: str, arguments: str) -> common_pb2.Part:
    call = common_pb2.ToolCall(call_id=outer, name=name, arguments_json=arguments)
    return common_pb2.Part(tool_call=call)


def _result(outer: str, parts: Iterable[common_pb2.Part]) -> common_pb2.Message:
    result = common_pb2.ToolResult(call_id=outer, parts=parts)
    part = common_pb2.Part(tool_result=result)
    return common_pb2.Message(role=common_pb2.ROLE_TOOL, parts=[part])


def _chat_turn(message: s.ChatMessage, field: str) -> common_pb2.Message:
    content: Any = message.content
    pieces = [s.TextContent(type="text", text=content)] if isinstance(content, str) else content
    parts = [_chat_part(one, f"{field}.content[{i}]") for i, one in enumerate(pieces or ())]
    match message:
        case s.ToolMessage():
            return _result(message.tool_call_id, parts)
        case s.AssistantMessage():
            if message.refusal:
                parts.append(_text(message.refusal))
            parts += [
                _call(made.id, made.function.name, made.function.arguments)
                for made in message.tool_calls or ()
            ]
            if not parts:
                raise InvalidRequest(
                    f"{field} says nothing: give content or tool_calls", field=f"{field}.content"
                )
    return _said(message.role, parts)


def _chat_part(piece: Any, field: str) -> common_pb2.Part:
    match piece:
        case s.ImageContent():
            return image(piece.image_url.url, f"{field}.image_url.url")
        case s.RefusalContent():
            return _text(piece.refusal)
        case _:
            return _text(piece.text)


def _item_turns(item: s.InputItem, field: str) -> list[common_pb2.Message]:
    match item:
        case s.InputReasoning():
            return []
        case s.InputCall():
            call = _call(item.call_id, item.name, item.arguments)
            return [_said("assistant", [call])]
        case s.InputCallOutput():
            return [_result(item.call_id, _input_parts(item.output, f"{field}.output"))]
        case s.InputMessage():
            return [_said(item.role, _input_parts(item.content, f"{field}.content"))]


def _input_parts(content: str | list[s.InputContent], field: str) -> list[common_pb2.Part]:
    if isinstance(content, str):
        return [_text(content)]
    return [
        image(piece.image_url, f"{field}[{i}].image_url")
        if isinstance(piece, s.InputImage)
        else _text(piece.refusal if isinstance(piece, s.InputRefusal) else piece.text)
        for i, piece in enumerate(content)
    ]


def _results(
    turns: Sequence[common_pb2.Message], field: str, *, calls_known: bool = False
) -> Results | None:
    """The results at the end of the conversation. Raises InvalidRequest if nobody asked for one."""
    made: set[str] = set()
    ours: list[str] = []
    last: list[common_pb2.ToolResult] = []
    for i, turn in enumerate(turns):
        for part in turn.parts:
            if part.HasField("tool_call"):
                made.add(part.tool_call.call_id)
            if part.HasField("tool_result") and not calls_known:
                if part.tool_result.call_id not in made:
                    raise InvalidRequest(
                        f"{field}[{i}] answers a call that no message before it made",
                        field=f"{field}[{i}]",
                    )
            if part.HasField("tool_result") and (one := parse_call_id(part.tool_result.call_id)):
                ours.append(one[0])
        if turn.role != common_pb2.ROLE_TOOL:
            last.clear()
        else:
            last += [part.tool_result for part in turn.parts]
    if not last:
        return None
    found = [parse_call_id(one.call_id) for one in last]
    waiting = {one[0] for one in found if one}
    if len(waiting) != 1 or None in found:
        raise InvalidRequest(
            f"the last of {field} holds results of calls that no contemplation here waits for; "
            "end with a user message to ask anew",
            field=field,
        )
    contemplation_id = waiting.pop()
    return Results(
        contemplation_id,
        tuple(
            common_pb2.ToolResult(call_id=one[1], parts=result.parts)
            for one, result in zip(found, last, strict=True)
            if one
        ),
        ours.count(contemplation_id),
    )
