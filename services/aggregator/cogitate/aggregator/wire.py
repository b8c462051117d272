"""Messages to domain values and back. Total functions: what is wrong raises InvalidRequest."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.answers import claim_stands
from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.journal import Record
from cogitate.kit.errors import CogitateError
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb
from google.protobuf.message import DecodeError, Message

# Stands for a log probability that is no number: it never breaks a tie.
WORST_LOGPROB = -1000.0
# Reasons are words of ours or of an endpoint's engine, never text.
_REASON = re.compile(r"[A-Z_]{1,40}")


class Damaged(CogitateError):
    """What was journalled cannot be read."""

    code = "DATA_LOSS"
    reason = "INTERNAL"


# -- from the decoder --------------------------------------------------------------------------


def to_inputs(gang_id: str, response: decoder_pb.DecodeResponse) -> list[m.Input]:
    """A gang's event as inputs; events this version does not know are skipped."""
    kind = response.WhichOneof("event") or ""
    convert = _INPUTS.get(kind)
    return [convert(gang_id, getattr(response, kind))] if convert else []


def _step(gang_id: str, step: decoder_pb.GangStep) -> m.Input:
    deltas = tuple(
        m.Delta(
            agent_id=d.agent_id,
            attempt=d.attempt,
            token_offset=d.token_offset,
            token_ids=tuple(d.token_ids),
            text=d.text,
            is_answer=d.is_answer,
            logprob_sum=_finite(math.fsum(d.logprobs) if d.logprobs else 0.0, WORST_LOGPROB),
            tokens=_tokens(d) if d.tokens else (),
        )
        for d in step.deltas
    )
    return m.Stepped(gang_id, deltas)


def _tokens(delta: decoder_pb.AgentDelta) -> tuple[dict[str, Any], ...]:
    """Each token by itself; none where the endpoint leaves some of it out."""
    count = len(delta.token_ids)
    tops = list(delta.top_logprobs) or [decoder_pb.TopLogprobs()] * count
    if not len(delta.tokens) == len(delta.logprobs) == len(tops) == count:
        return ()
    told = zip(delta.tokens, delta.logprobs, tops, strict=True)
    return tuple(
        {
            "token": token,
            "logprob": _finite(logprob, WORST_LOGPROB),
            "top": [
                {"token": other, "logprob": _finite(value, WORST_LOGPROB)}
                for other, value in zip(top.tokens, top.logprobs, strict=False)
            ],
        }
        for token, logprob, top in told
    )


def _tool_call(gang_id: str, event: decoder_pb.AgentToolCall) -> m.Input:
    call = m.Call(event.call.call_id, event.call.name, event.call.arguments_json)
    return m.ToolCalled(gang_id, event.agent_id, event.attempt, call)


def _finished(gang_id: str, event: decoder_pb.AgentFinished) -> m.Input:
    return m.AgentEnded(
        gang_id=gang_id,
        agent_id=event.agent_id,
        attempt=event.attempt,
        finish=_finish_name(event.finish_reason),
        answer=event.answer,
        num_sampled=event.usage.sampled_token_count,
        num_injected=event.usage.injected_token_count,
        mean_logprob=_finite(event.confidence.mean_logprob, WORST_LOGPROB),
        lowest_confidence=_finite(event.confidence.lowest_group_confidence, 0.0),
        group_confidence=_finite(event.confidence.group_confidence, 0.0),
        num_prompt=max(0, event.usage.prompt_token_count),
        num_cached=max(0, event.usage.cached_token_count),
        reason=event.kill_reason if _REASON.fullmatch(event.kill_reason) else "",
    )


def _finish_name(number: int) -> str:
    """A reason this version does not know is UNSPECIFIED."""
    known = common.FinishReason.DESCRIPTOR.values_by_number.get(number)
    return known.name.removeprefix("FINISH_REASON_") if known else "UNSPECIFIED"


def _finite(value: float, otherwise: float) -> float:
    """No NaN comes near a comparison."""
    return value if math.isfinite(value) else otherwise


def _prefilled(gang_id: str, event: decoder_pb.GangPrefilled) -> m.Input:
    return m.Prefilled(
        gang_id,
        event.prompt_token_count,
        event.cached_token_count,
        event.prefill_duration.ToNanoseconds() / 1e9,
    )


_INPUTS: dict[str, Callable[[str, Any], m.Input]] = {
    "admitted": lambda gang, e: m.Admitted(gang, e.build_digest, dict(e.hints)),
    "prefilled": _prefilled,
    "step": _step,
    "tool_call": _tool_call,
    "finished": _finished,
    "awaiting_grant": lambda gang, e: m.GrantUsedUp(gang, e.agent_id),
}


def to_refusal(gang_id: str, refused: decoder_pb.GangRefused) -> m.GangLost:
    """The endpoint does not take the gang, for now or for good."""
    delay = refused.retry_delay
    retry_after_s = delay.ToNanoseconds() / 1e9 if refused.HasField("retry_delay") else None
    return m.GangLost(gang_id, refused.reason or "UNAVAILABLE", refused.message, retry_after_s)


def to_result(result: common.ToolResult, question: str) -> m.Result:
    """A tool's result. A proof of something that was not asked is taken off it."""
    if not claim_stands(result.proof.claim, question):
        result.ClearField("proof")
    pictures = tuple(to_picture(part.image) for part in result.parts if part.HasField("image"))
    return m.Result(result.is_error, result.proof.answer, result, pictures)


def to_picture(image: common.ImagePart) -> m.Picture:
    """An image of a tool; its bytes are in the store, under the digest."""
    box = image.box
    edges = (box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)
    return m.Picture(
        image.digest, edges if image.HasField("box") else None, image.width_px, image.height_px
    )


def from_picture(picture: m.Picture) -> common.ImagePart:
    """As tools take it."""
    image = common.ImagePart(
        digest=picture.digest, width_px=picture.width_px, height_px=picture.height_px
    )
    if picture.box is not None:
        x0, y0, x1, y1 = picture.box
        image.box.CopyFrom(
            common.Box(x0_permille=x0, y0_permille=y0, x1_permille=x1, y1_permille=y1)
        )
    return image


# -- from the router ---------------------------------------------------------------------------


def to_granted(granted: router_pb.LeaseGranted) -> m.Granted:
    """A placement. Gang ids are the router's own."""
    gangs = tuple(
        m.PlacedGang(
            gang_id=gang.gang_id,
            endpoint_id=gang.endpoint_id,
            provider=gang.provider,
            region=gang.region,
            agent_ids=tuple(gang.agent_ids),
            reason=gang.reason,
            payload=gang,
            price_per_million=gang.price_per_million_tokens_micro_usd,
        )
        for gang in granted.gangs
    )
    return m.Granted(granted.attempt, gangs, granted.policy, granted)


def to_denied(denied: router_pb.LeaseDenied) -> m.Denied:
    """Why there is no place."""
    delay = denied.retry_delay
    retry_after_s = delay.ToNanoseconds() / 1e9 if denied.HasField("retry_delay") else None
    is_final = denied.HasField("waited_duration")
    return m.Denied(denied.attempt, denied.reason, denied.message, retry_after_s, is_final)


def to_queued(queued: router_pb.LeaseQueued) -> m.Queued:
    """How long the wait for a place is."""
    expected = queued.expected_duration
    known = queued.HasField("expected_duration")
    return m.Queued(
        queued.attempt, queued.ahead_count, expected.ToNanoseconds() / 1e9 if known else None
    )


# -- to the decoder ----------------------------------------------------------------------------


def capabilities(
    has_images: bool, has_tools: bool, sampling: common.SamplingParams
) -> list[decoder_pb.Capability.ValueType]:
    """What an endpoint must have to run the agents."""
    needs = [decoder_pb.CAPABILITY_KILL]
    needs += [decoder_pb.CAPABILITY_VISION] if has_images else []
    needs += [decoder_pb.CAPABILITY_TOOLS] if has_tools else []
    if sampling.HasField("json_schema"):
        needs.append(decoder_pb.CAPABILITY_JSON_SCHEMA)
    elif sampling.HasField("regex"):
        needs.append(decoder_pb.CAPABILITY_CONSTRAINT)
    return needs


def to_agent_spec(
    order: m.AgentOrder, sampling: common.SamplingParams, seed: int, traceparent: str
) -> decoder_pb.AgentSpec:
    """How an agent starts or goes on."""
    spec = decoder_pb.AgentSpec(
        agent_id=order.agent_id,
        attempt=order.attempt,
        sampling_params=sampling,
        seed=seed,
        granted_token_count=order.granted,
        traceparent=traceparent,
    )
    if order.temperature is not None:
        spec.sampling_params.temperature = order.temperature
    if order.hint_index is not None:
        spec.hint_index = order.hint_index
    if order.max_tokens:
        spec.sampling_params.max_tokens = order.max_tokens
    spec.assistant_prefix = order.opening
    if order.segments or order.pending_call_id:
        spec.resume_state.CopyFrom(
            decoder_pb.ResumeState(
                segments=[_segment(segment) for segment in order.segments],
                sampled_token_count=order.num_sampled,
                build_digest=order.build_digest,
                pending_call_id=order.pending_call_id,
                confidence=common.Confidence(mean_logprob=order.mean_logprob),
            )
        )
    return spec


def _segment(segment: m.Segment) -> decoder_pb.Segment:
    if segment.token_ids:
        return decoder_pb.Segment(sampled=decoder_pb.TokenIds(token_ids=segment.token_ids))
    return decoder_pb.Segment(tool_result=segment.result)


def digest_of(message: Message) -> str:
    """Names a prompt, or a conversation."""
    return f"sha256:{hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()}"


def to_messages(turns: Iterable[tuple[str, str]]) -> list[common.Message]:
    """What a later round is shown after the conversation."""
    return [
        common.Message(
            role=common.Role.Value(f"ROLE_{speaker.upper()}"), parts=[common.Part(text=text)]
        )
        for speaker, text in turns
    ]


def kill(effect: m.Kill) -> decoder_pb.DecodeRequest:
    """Stops agents."""
    return decoder_pb.DecodeRequest(
        kill=decoder_pb.KillAgents(agent_ids=effect.agent_ids, reason=effect.reason)
    )


def grant(effect: m.Grant) -> decoder_pb.DecodeRequest:
    """Raises grants."""
    return decoder_pb.DecodeRequest(
        grant=decoder_pb.GrantTokens(granted_token_counts=effect.totals)
    )


def set_threshold(effect: m.SetThreshold) -> decoder_pb.DecodeRequest:
    """Stops agents that lose confidence."""
    threshold = decoder_pb.SetConfidenceThreshold(group_confidence=effect.group_confidence)
    return decoder_pb.DecodeRequest(set_confidence_threshold=threshold)


def inject(effect: m.Inject) -> decoder_pb.DecodeRequest:
    """Gives an agent its result."""
    return decoder_pb.DecodeRequest(
        inject=decoder_pb.InjectAgent(
            agent_id=effect.agent_id, call_id=effect.call_id, tool_result=effect.payload
        )
    )


# -- to the client -----------------------------------------------------------------------------


def to_call(call: m.Call) -> common.ToolCall:
    """A tool call."""
    return common.ToolCall(call_id=call.call_id, name=call.name, arguments_json=call.arguments_json)


def to_ballot(ballot: Ballot) -> common.Ballot:
    """A ballot."""
    return common.Ballot(
        agent_id=ballot.agent_id,
        attempt=ballot.attempt,
        answer=ballot.answer,
        key=ballot.key,
        abstained=ballot.abstained,
        proved=ballot.proved,
        weight=ballot.weight,
        confidence=common.Confidence(
            mean_logprob=ballot.mean_logprob,
            lowest_group_confidence=ballot.lowest_confidence,
            group_confidence=ballot.group_confidence,
        ),
        finish_reason=common.FinishReason.Value(f"FINISH_REASON_{ballot.finish}"),
        sampled_token_count=ballot.num_sampled,
        round_number=ballot.round_number,
        judged_key=ballot.about,
    )


def to_placements(gangs: Iterable[m.PlacedGang]) -> list[common.PlacedAgents]:
    """Where agents run."""
    return [
        common.PlacedAgents(
            endpoint_id=gang.endpoint_id,
            provider=gang.provider,
            region=gang.region,
            agent_ids=gang.agent_ids,
            reason=gang.reason,
        )
        for gang in gangs
    ]


def _placed(f: dict[str, Any]) -> pb.Placed:
    return pb.Placed(
        placements=to_placements(f["gangs"]), rejected=f["payload"].rejected, policy=f["policy"]
    )


def _prefilled_event(f: dict[str, Any]) -> pb.Prefilled:
    message = pb.Prefilled(**{k: v for k, v in f.items() if k != "seconds"})
    message.prefill_duration.FromNanoseconds(int(f["seconds"] * 1e9))
    return message


def _tool_finished(f: dict[str, Any]) -> pb.ToolCallFinished:
    message = pb.ToolCallFinished(
        agent_id=f["agent_id"],
        call_id=f["call_id"],
        result=f["result"].payload,
        shared=f["shared"],
    )
    message.duration.FromNanoseconds(int(f.get("seconds", 0.0) * 1e9))
    return message


def _killed(f: dict[str, Any]) -> pb.AgentKilled:
    return pb.AgentKilled(agent=to_killed((f["agent_id"], f["reason"], f["num_sampled"])))


def to_killed(killed: tuple[int, str, int]) -> common.KilledAgent:
    """Who was stopped and why."""
    agent_id, reason, num_sampled = killed
    return common.KilledAgent(agent_id=agent_id, reason=reason, sampled_token_count=num_sampled)


def _queued(f: dict[str, Any]) -> pb.Queued:
    message = pb.Queued(ahead_count=f["ahead"])
    if f["expected_s"] is not None:
        message.expected_duration.FromNanoseconds(round(f["expected_s"] * 1e9))
    return message


_EVENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "placed": _placed,
    "prefilled": _prefilled_event,
    "round_started": lambda f: pb.RoundStarted(**f),
    "widened": lambda f: pb.Widened(**f),
    "queued": _queued,
    "agent_started": lambda f: pb.AgentStarted(**f),
    "deltas": lambda f: pb.AgentDeltas(deltas=[pb.AgentTextDelta(**d) for d in f["deltas"]]),
    "tool_call_started": lambda f: pb.ToolCallStarted(**{**f, "call": to_call(f["call"])}),
    "tool_call_finished": _tool_finished,
    "awaiting_client": lambda f: pb.AwaitingClient(
        agent_ids=f["agent_ids"], call=to_call(f["call"])
    ),
    "ballot_cast": lambda f: pb.BallotCast(**{**f, "ballot": to_ballot(f["ballot"])}),
    "decided": lambda f: pb.Decided(**f),
    "verdict_delta": lambda f: pb.VerdictDelta(**f),
    "agent_killed": _killed,
    "agent_lost": lambda f: pb.AgentLost(**f),
    "text_retracted": lambda f: pb.TextRetracted(**f),
    "feature_degraded": lambda f: pb.FeatureDegraded(**f),
}


def to_event(kind: str, fields: dict[str, Any]) -> pb.ContemplationEvent:
    """An event without its number; endings are built by the runner, who knows cost and time."""
    return pb.ContemplationEvent(**{kind: _EVENTS[kind](fields)})


_STATES = {
    None: pb.ContemplationSummary.STATE_RUNNING,
    "verdict": pb.ContemplationSummary.STATE_COMPLETED,
    "failed": pb.ContemplationSummary.STATE_FAILED,
    "cancelled": pb.ContemplationSummary.STATE_CANCELLED,
}


def to_journalled(raw: bytes) -> pb.ContemplationEvent:
    """An event from the journal. Raises Damaged."""
    try:
        return pb.ContemplationEvent.FromString(raw)
    except DecodeError:
        raise Damaged("the journal's record of this contemplation is damaged") from None


def to_asked(record: Record) -> pb.ContemplationSpec:
    """What was asked, with the seed that was used. Raises Damaged."""
    try:
        asked = pb.ContemplationSpec.FromString(record.spec)
    except DecodeError:
        raise Damaged("the journal's record of this contemplation is damaged") from None
    asked.sampling_params.seed = to_journalled(record.accepted).accepted.seed
    return asked


def to_summary(record: Record, *, awaits_client: bool = False) -> pb.ContemplationSummary:
    """A journalled contemplation's state. Raises Damaged."""
    accepted = to_journalled(record.accepted).accepted
    ending = to_journalled(record.ending) if record.ending else None
    summary = pb.ContemplationSummary(
        contemplation_id=record.id,
        state=_STATES[ending.WhichOneof("event") if ending else None],
        last_event_number=record.last_event,
        model=accepted.model,
        agent_count=accepted.agent_count,
        trace=accepted.trace,
    )
    summary.accept_time.FromNanoseconds(record.accept_ns)
    if awaits_client and ending is None:
        summary.state = pb.ContemplationSummary.STATE_AWAITING_CLIENT
    if record.end_ns is not None:
        summary.end_time.FromNanoseconds(record.end_ns)
    return summary
