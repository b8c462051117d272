"""Messages to domain values and back. Total functions: what is wrong raises InvalidRequest."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from cogitate.agent_decoder.core import events as ev
from cogitate.agent_decoder.core.constraint import Constraint
from cogitate.agent_decoder.core.sampling import SamplingParams
from cogitate.agent_decoder.core.starts import InjectedPositions, SampledTokens
from cogitate.agent_decoder.model.templates import Image, Text, Turn
from cogitate.kit.errors import InvalidRequest
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

ROLES = {
    common.ROLE_SYSTEM: "system",
    common.ROLE_USER: "user",
    common.ROLE_ASSISTANT: "assistant",
}
Embedding = np.ndarray  # (tokens, hidden) float32, finite

MAX_STOPS = 16
MAX_STOP_BYTES = 128
MAX_LOGIT_BIASES = 300
MAX_STOP_TOKEN_IDS = 300
MAX_EMBEDDING_ROWS = 4096
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 32

CAPABILITIES = (
    pb.CAPABILITY_TOOLS,
    pb.CAPABILITY_LOGPROBS,
    pb.CAPABILITY_SEED,
    pb.CAPABILITY_RESUME,
    pb.CAPABILITY_FORK,
    pb.CAPABILITY_KILL,
    pb.CAPABILITY_INJECT,
    pb.CAPABILITY_CONSTRAINT,
    pb.CAPABILITY_TOKEN_IDS,
    pb.CAPABILITY_CONTINUE,
    pb.CAPABILITY_JSON_SCHEMA,
)


def image_key(image: common.ImagePart) -> str:
    """Names a view: digest and, for a crop, its box."""
    if not image.HasField("box"):
        return image.digest
    b = image.box
    return f"{image.digest}@{b.x0_permille},{b.y0_permille},{b.x1_permille},{b.y1_permille}"


def to_image(part: common.ImagePart) -> Image:
    """An image by digest; inline bytes never come this far."""
    if not part.digest:
        raise InvalidRequest("an image needs a digest here", field="conversation")
    return Image(image_key(part), part.HasField("box"))


def to_parts(parts: Iterable[common.Part]) -> tuple[Text | Image, ...]:
    """Text and images in order; tool calls and results inside a conversation become text."""
    out: list[Text | Image] = []
    for part in parts:
        kind = part.WhichOneof("part")
        if kind == "text":
            out.append(Text(part.text))
        elif kind == "image":
            out.append(to_image(part.image))
        elif kind == "tool_call":
            out.append(Text(f"{part.tool_call.name} {part.tool_call.arguments_json}"))
        elif kind == "tool_result":
            out += result_parts(part.tool_result)
    return tuple(out)


def result_parts(result: common.ToolResult) -> tuple[Text | Image, ...]:
    """A tool's result. A failure that says nothing is said, or the agent would see a success."""
    parts = to_parts(result.parts)
    return parts if parts or not result.is_error else (Text("The tool failed."),)


def to_turns(conversation: Iterable[common.Message]) -> tuple[Turn, ...]:
    """The conversation as the template takes it."""
    turns = []
    for message in conversation:
        if message.role not in ROLES:
            raise InvalidRequest("a message needs a role: system, user or assistant", field="role")
        turns.append(Turn(ROLES[message.role], to_parts(message.parts)))
    return tuple(turns)


def images_of(parts: Iterable[common.Part]) -> dict[str, common.ImagePart]:
    """Every image view in the parts, by key."""
    found: dict[str, common.ImagePart] = {}
    for part in parts:
        kind = part.WhichOneof("part")
        if kind == "image":
            found[image_key(part.image)] = part.image
        elif kind == "tool_result":
            found |= images_of(part.tool_result.parts)
    return found


def to_sampling_params(
    params: common.SamplingParams, *, temperature: float, max_tokens: int, vocab_size: int
) -> SamplingParams:
    """Checks ranges and fills in the model's defaults. Raises InvalidRequest naming the field."""
    chosen = params.temperature if params.HasField("temperature") else temperature
    top_p = params.top_p if params.HasField("top_p") else 1.0
    limit = params.max_tokens if params.HasField("max_tokens") else max_tokens
    _check("temperature", chosen, 0.0, 2.0)
    if not 0.0 < top_p <= 1.0:
        raise InvalidRequest("top_p must be above 0 and at most 1", field="sampling_params.top_p")
    _check("min_p", params.min_p, 0.0, 1.0)
    _check("top_k", params.top_k, 0, vocab_size)
    _check("max_tokens", limit, 1, 1_000_000)
    _check("min_tokens", params.min_tokens, 0, limit)
    _check("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    _check("presence_penalty", params.presence_penalty, -2.0, 2.0)
    if params.repetition_penalty:  # 0 means off
        _check("repetition_penalty", params.repetition_penalty, 0.01, 10.0)
    _check("logprobs", params.logprobs, 0, 20)
    _check_lists(params, vocab_size)
    return SamplingParams(
        temperature=chosen,
        top_p=top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        max_tokens=limit,
        min_tokens=params.min_tokens,
        stop=tuple(stop for stop in params.stop if stop),
        stop_token_ids=tuple(params.stop_token_ids),
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        repetition_penalty=params.repetition_penalty or 1.0,
        logit_bias=tuple(sorted(params.logit_bias.items())),
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def to_constraint(params: common.SamplingParams) -> Constraint | None:
    """The grammar that is asked for. Raises InvalidRequest for one no time should be spent on."""
    kind = params.WhichOneof("constraint")
    if kind is None:
        return None
    if params.ignore_eos:
        raise InvalidRequest(
            "ignore_eos and a grammar exclude each other", field="sampling_params.ignore_eos"
        )
    text, field = str(getattr(params, kind)), f"sampling_params.{kind}"
    if len(text.encode()) > MAX_GRAMMAR_BYTES:
        raise InvalidRequest(f"a {kind} has at most {MAX_GRAMMAR_BYTES} bytes", field=field)
    if kind == "json_schema":
        try:
            depth = _depth(json.loads(text))
        except RecursionError:
            depth = MAX_SCHEMA_DEPTH + 1
        except ValueError:
            raise InvalidRequest("the json_schema is not JSON", field=field) from None
        if depth > MAX_SCHEMA_DEPTH:
            raise InvalidRequest(
                f"a json_schema is at most {MAX_SCHEMA_DEPTH} levels deep", field=field
            )
    return Constraint(kind, text)


def _depth(value: Any) -> int:
    """Levels of objects and lists; a plain value has none."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def _check_lists(params: common.SamplingParams, vocab_size: int) -> None:
    """Lists are bounded: each entry costs time at every token."""
    _check("number of stop strings", len(params.stop), 0, MAX_STOPS, field="stop")
    for stop in params.stop:
        _check("bytes of a stop string", len(stop.encode()), 0, MAX_STOP_BYTES, field="stop")
    _check(
        "number of stop_token_ids", len(params.stop_token_ids), 0, MAX_STOP_TOKEN_IDS,
        field="stop_token_ids",
    )  # fmt: skip
    for token_id in params.stop_token_ids:
        _check("a stop token id", token_id, 0, vocab_size - 1, field="stop_token_ids")
    _check(
        "number of logit biases", len(params.logit_bias), 0, MAX_LOGIT_BIASES, field="logit_bias"
    )
    for token_id, bias in params.logit_bias.items():
        _check("the token id of a logit bias", token_id, 0, vocab_size - 1, field="logit_bias")
        _check("a logit bias", bias, -100.0, 100.0, field="logit_bias")


def _check(
    name: str, value: float, minimum: float, maximum: float, *, field: str | None = None
) -> None:
    if not (math.isfinite(value) and minimum <= value <= maximum):
        raise InvalidRequest(
            f"{name} must be from {minimum} to {maximum}", field=f"sampling_params.{field or name}"
        )


def to_embedding(tensor: common.Tensor, hidden_size: int) -> Embedding:
    """Checks type, shape, length and finiteness before a number is used. Raises InvalidRequest."""
    shape = tuple(tensor.shape)
    if tensor.dtype != common.D_TYPE_FLOAT32:
        raise InvalidRequest("an embedding must be float32", field="embedding")
    if len(shape) != 2 or shape[1] != hidden_size or not 0 < shape[0] <= MAX_EMBEDDING_ROWS:
        raise InvalidRequest(
            f"an embedding must be of shape (1 to {MAX_EMBEDDING_ROWS}, {hidden_size})",
            field="embedding",
        )
    if len(tensor.data) != 4 * shape[0] * shape[1]:
        raise InvalidRequest("an embedding must have the bytes of its shape", field="embedding")
    array = np.frombuffer(tensor.data, dtype="<f4").reshape(shape)
    if not np.isfinite(array).all():
        raise InvalidRequest("an embedding must be finite", field="embedding")
    return array


def to_responses(
    events: Sequence[ev.Event], step_offset: int, admitted: Callable[[], pb.GangAdmitted]
) -> list[pb.DecodeResponse]:
    """A gang's newest events: what led to its tokens, one GangStep for all agents, what followed.

    Tokens of several steps are one delta an agent. What an agent says keeps its order; between
    agents there is none.
    """
    responses: list[pb.DecodeResponse] = []
    step = _Step()
    for event in events:
        if isinstance(event, ev.Delta):
            if event.agent_id in step.followed:
                responses += step.end(step_offset)
                step = _Step()
            step.add(event)
        elif isinstance(event, ev.Paused):
            continue  # the contract has no word for it
        elif isinstance(event, ev.Admitted):
            responses.append(pb.DecodeResponse(admitted=admitted()))
        elif isinstance(event, ev.Injected) and event.agent_id not in step.newest:
            responses.append(_response(event))
        elif step.newest:
            step.follow(event)
        else:
            responses.append(_response(event))
    return responses + step.end(step_offset)


class _Step:
    """The deltas of one message, and what is to be told after them."""

    def __init__(self) -> None:
        self.newest: dict[int, pb.AgentDelta] = {}
        self.followed: set[int] = set()
        self._deltas: list[pb.AgentDelta] = []
        self._after: list[pb.DecodeResponse] = []

    def add(self, event: ev.Delta) -> None:
        last = self.newest.get(event.agent_id)
        if last is not None and _follows(last, event):
            _extend(last, event)
            return
        self.newest[event.agent_id] = _delta(event)
        self._deltas.append(self.newest[event.agent_id])

    def follow(self, event: ev.Event) -> None:
        self._after.append(_response(event))
        self.followed.add(getattr(event, "agent_id", -1))

    def end(self, step_offset: int) -> list[pb.DecodeResponse]:
        step = pb.GangStep(step_offset=step_offset, deltas=self._deltas)
        made = [pb.DecodeResponse(step=step)] if self._deltas else []
        return made + self._after


def _follows(last: pb.AgentDelta, event: ev.Delta) -> bool:
    return (
        last.attempt == event.attempt
        and last.is_answer == event.is_answer
        and last.token_offset + len(last.token_ids) == event.token_offset
        and bool(last.top_logprobs) == bool(event.top_token_ids)
        and bool(last.logprobs) == (event.logprob is not None)
    )


def _extend(last: pb.AgentDelta, event: ev.Delta) -> None:
    last.token_ids.append(event.token_id)
    last.text += event.text
    if event.logprob is not None:
        last.logprobs.append(event.logprob)
    last.group_confidence = event.group_confidence
    if event.top_token_ids:
        last.top_logprobs.add(token_ids=event.top_token_ids, logprobs=event.top_logprobs)


def _delta(event: ev.Delta) -> pb.AgentDelta:
    top = []
    if event.top_token_ids:
        top = [pb.TopLogprobs(token_ids=event.top_token_ids, logprobs=event.top_logprobs)]
    return pb.AgentDelta(
        agent_id=event.agent_id,
        attempt=event.attempt,
        token_offset=event.token_offset,
        token_ids=(event.token_id,),
        text=event.text,
        logprobs=() if event.logprob is None else (event.logprob,),
        top_logprobs=top,
        group_confidence=event.group_confidence,
        is_answer=event.is_answer,
    )


def _response(event: ev.Event) -> pb.DecodeResponse:
    if isinstance(event, ev.ToolCall):
        call = common.ToolCall(
            call_id=event.call_id, name=event.name, arguments_json=event.arguments_json
        )
        return pb.DecodeResponse(
            tool_call=pb.AgentToolCall(
                agent_id=event.agent_id,
                attempt=event.attempt,
                call=call,
                sampled_token_count=event.num_sampled,
                raw_text=event.raw_text,
            )
        )
    if isinstance(event, ev.Finished):
        return pb.DecodeResponse(finished=_finished(event))
    if isinstance(event, ev.Injected):
        return pb.DecodeResponse(
            injected=pb.AgentInjected(
                agent_id=event.agent_id,
                call_id=event.call_id,
                injected_token_count=event.num_positions,
            )
        )
    if isinstance(event, ev.Snapshot):
        return pb.DecodeResponse(resume_state=_resume_state(event))
    if isinstance(event, ev.AwaitingGrant):
        return pb.DecodeResponse(
            awaiting_grant=pb.AgentAwaitingGrant(
                agent_id=event.agent_id, sampled_token_count=event.num_sampled
            )
        )
    if isinstance(event, ev.Prefilled):
        prefilled = pb.GangPrefilled(
            prompt_token_count=event.num_positions, cached_token_count=event.num_cached
        )
        prefilled.queue_duration.FromNanoseconds(int(event.queue_s * 1e9))
        prefilled.prefill_duration.FromNanoseconds(int(event.prefill_s * 1e9))
        return pb.DecodeResponse(prefilled=prefilled)
    if isinstance(event, ev.GangDone):
        done = pb.GangFinished(
            usage=common.Usage(
                prompt_token_count=event.num_prompt,
                cached_token_count=event.num_cached,
                sampled_token_count=event.num_sampled,
                injected_token_count=event.num_injected,
            ),
            step_count=event.num_steps,
            cost_micro_usd=event.cost_micro_usd,
        )
        done.decode_duration.FromNanoseconds(int(event.decode_s * 1e9))
        return pb.DecodeResponse(gang_finished=done)
    if isinstance(event, ev.Draining):
        draining = pb.GangDraining(reason="DRAIN")
        draining.remaining_duration.FromNanoseconds(int(event.remaining_s * 1e9))
        return pb.DecodeResponse(draining=draining)
    if isinstance(event, ev.Refused):
        return pb.DecodeResponse(refused=refused(event.reason, event.message, event.retry_after_s))
    raise TypeError(f"no message for {type(event).__name__}")


def origin_of(inject: pb.InjectAgent) -> pb.Segment | None:
    """What an injection with images is made from again; raw embeddings cannot be."""
    if inject.WhichOneof("content") != "tool_result":
        return None
    return pb.Segment(tool_result=inject.tool_result)


def _segment(segment: SampledTokens | InjectedPositions) -> pb.Segment | None:
    if isinstance(segment, SampledTokens):
        return pb.Segment(sampled=pb.TokenIds(token_ids=segment.token_ids))
    if all(position.embedding is None for position in segment.positions):
        # Just these, though a result might be rendered otherwise elsewhere.
        ids = [position.token_id for position in segment.positions]
        return pb.Segment(injected=pb.TokenIds(token_ids=ids))
    origin: pb.Segment | None = segment.origin
    return origin


def _resume_state(event: ev.Snapshot) -> pb.AgentResumeState:
    """Without a state if raw embeddings are part of it: the contract cannot carry those."""
    made = pb.AgentResumeState(agent_id=event.agent_id, attempt=event.attempt)
    segments = [_segment(segment) for segment in event.segments]
    if any(segment is None for segment in segments):
        return made
    lowest = min(event.lowest_confidence, event.group_confidence or math.inf)
    made.state.CopyFrom(
        pb.ResumeState(
            segments=[segment for segment in segments if segment is not None],
            sampled_token_count=event.num_sampled,
            withheld_text=event.withheld,
            pending_call_id=event.pending_call_id,
            confidence=common.Confidence(
                mean_logprob=event.mean_logprob,
                lowest_group_confidence=lowest if math.isfinite(lowest) else 0.0,
                group_confidence=event.group_confidence,
            ),
        )
    )
    return made


def _finished(event: ev.Finished) -> pb.AgentFinished:
    return pb.AgentFinished(
        agent_id=event.agent_id,
        attempt=event.attempt,
        finish_reason=common.FinishReason.Value(f"FINISH_REASON_{event.finish.value}"),
        answer=event.answer,
        usage=common.Usage(
            prompt_token_count=event.num_prompt,
            cached_token_count=event.num_cached,
            sampled_token_count=event.num_sampled,
            injected_token_count=event.num_injected,
        ),
        confidence=common.Confidence(
            mean_logprob=event.mean_logprob,
            lowest_group_confidence=min(event.lowest_confidence, event.group_confidence),
            group_confidence=event.group_confidence,
            threshold_token_count=event.num_unheld,
        ),
        kill_reason=event.kill_reason,
    )


def refused(reason: str, message: str, retry_after_s: float | None = None) -> pb.GangRefused:
    """The refusal of a gang."""
    response = pb.GangRefused(reason=reason, message=message)
    if retry_after_s is not None:
        response.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
    return response
