"""What the mesh answers, as small frozen values; counts are of tokens unless they say otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cogitate.client._cursor import Cursor
from cogitate.client._errors import CogitateError, from_ending
from cogitate.client._request import Box
from cogitate.v1 import common_pb2, gateway_service_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp


@dataclass(frozen=True)
class Ballot:
    """What one agent answered; `key` is the form by which answers are compared."""

    agent_id: int
    answer: str
    key: str
    abstained: bool
    proved: bool
    weight: float
    mean_logprob: float
    finish_reason: str
    sampled_tokens: int


@dataclass(frozen=True)
class KilledAgent:
    """An agent that was stopped, and why."""

    agent_id: int
    reason: str
    sampled_tokens: int


@dataclass(frozen=True)
class Placement:
    """Where agents ran, and why there."""

    endpoint_id: str
    provider: str
    region: str
    agent_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A region an agent looked at, or a tool's result; a region that a tool showed is both."""

    agent_id: int
    digest: str = ""
    box: Box | None = None
    call_id: str = ""
    text: str = ""
    proof: str = ""


@dataclass(frozen=True)
class Sight:
    """A region an agent looked at, in its `step`-th look, and what it wrote down right after."""

    agent_id: int
    step: int
    digest: str
    box: Box | None
    note: str


@dataclass(frozen=True)
class Ledger:
    """generated = used + killed + lost."""

    generated_tokens: int
    used_tokens: int
    killed_tokens: int
    lost_tokens: int
    cost_usd: float
    tool_calls: int
    tool_executions: int


@dataclass(frozen=True)
class Usage:
    """Tokens over all agents."""

    prompt_tokens: int
    cached_tokens: int
    sampled_tokens: int
    injected_tokens: int


@dataclass(frozen=True)
class Certificate:
    """The verdict's account of itself."""

    strategy: str
    quorum: str
    decision: str
    ballots: tuple[Ballot, ...]
    killed_agents: tuple[KilledAgent, ...]
    placements: tuple[Placement, ...]
    evidence: tuple[Evidence, ...]
    ledger: Ledger
    seed: int
    model: str
    build_digests: Mapping[str, str] = field(default_factory=dict)
    sights: tuple[Sight, ...] = ()
    """Where every agent looked, by agent and step."""


@dataclass(frozen=True)
class Answer:
    """The verdict of a contemplation; `str()` gives the answer itself."""

    answer: str
    key: str
    proved: bool
    abstained: bool
    degraded: bool
    degraded_reasons: tuple[str, ...]
    ballots: tuple[Ballot, ...]
    certificate: Certificate
    usage: Usage
    duration_s: float
    event_count: int
    contemplation_id: str
    trace_id: str
    verdict: common_pb2.Verdict = field(repr=False)

    def __str__(self) -> str:
        return self.answer


@dataclass(frozen=True)
class Model:
    """A model that can be asked."""

    name: str
    vision: bool
    endpoint_count: int
    max_sequence_count: int


@dataclass(frozen=True)
class Endpoint:
    """One decoder as the router sees it."""

    endpoint_id: str
    provider: str
    region: str
    address: str
    state: str
    models: tuple[str, ...]
    engine: str
    hardware: str
    price_per_hour_usd: float
    running: int
    waiting: int
    paused: int
    max_sequence_count: int
    booked: int
    free_blocks: int
    total_blocks: int
    step_s: float
    report_age_s: float
    busy: float = 0.0  # share of the time in steps, 0 to 1
    kv_used: float = 0.0  # share of KV blocks in use, 0 to 1
    is_spot: bool = False
    price_per_million_tokens_usd: float = 0.0
    learned_step_s: float = 0.0  # of one sequence, as the router learned it; 0: not yet
    prediction_error: float = 0.0  # of step times lately, relative


@dataclass(frozen=True)
class Fleet:
    """All endpoints, and how many contemplations hold a lease or wait for room."""

    endpoints: tuple[Endpoint, ...]
    lease_count: int
    queued_count: int = 0


@dataclass(frozen=True)
class Summary:
    """A contemplation's state; times are Unix seconds, 0 while not known."""

    contemplation_id: str
    state: str
    accept_time_s: float
    end_time_s: float
    last_event_number: int
    model: str
    agent_count: int
    trace_id: str
    ending: pb2.ContemplationEvent | None = field(default=None, repr=False)


def answer(cursor: Cursor) -> Answer:
    """Returns the answer of a stream that ended; raises what the ending means if there is none."""
    ending = cursor.ending
    if ending is None:
        raise CogitateError("the stream has not ended yet", code="FAILED_PRECONDITION")
    if not ending.HasField("verdict"):
        raise from_ending(ending)
    verdict = ending.verdict
    certificate = certificate_of(verdict.certificate)
    usage = verdict.usage
    return Answer(
        answer=verdict.answer,
        key=verdict.key,
        proved=verdict.proved,
        abstained=verdict.abstained,
        degraded=verdict.degraded,
        degraded_reasons=tuple(verdict.degraded_reasons),
        ballots=certificate.ballots,
        certificate=certificate,
        usage=Usage(
            usage.prompt_token_count,
            usage.cached_token_count,
            usage.sampled_token_count,
            usage.injected_token_count,
        ),
        duration_s=_duration(verdict.duration),
        event_count=cursor.event_count,
        contemplation_id=cursor.contemplation_id,
        trace_id=cursor.trace_id,
        verdict=verdict,
    )


def certificate_of(raw: common_pb2.Certificate) -> Certificate:
    """Returns a certificate."""
    ledger = raw.ledger
    return Certificate(
        strategy=raw.strategy,
        quorum=raw.quorum,
        decision=raw.decision,
        ballots=tuple(_ballot(one) for one in raw.ballots),
        killed_agents=tuple(
            KilledAgent(one.agent_id, one.reason, one.sampled_token_count)
            for one in raw.killed_agents
        ),
        placements=tuple(
            Placement(one.endpoint_id, one.provider, one.region, tuple(one.agent_ids), one.reason)
            for one in raw.placements
        ),
        evidence=tuple(_evidence(one) for one in raw.evidence),
        ledger=Ledger(
            ledger.generated_token_count,
            ledger.used_token_count,
            ledger.killed_token_count,
            ledger.lost_token_count,
            ledger.cost_micro_usd / 1e6,
            ledger.tool_call_count,
            ledger.tool_execution_count,
        ),
        seed=raw.seed,
        model=raw.model,
        build_digests=dict(raw.build_digests),
        sights=tuple(
            Sight(one.agent_id, one.step, one.image.digest, _box(one.image), one.note)
            for one in raw.sights
        ),
    )


def models(raw: gateway_service_pb2.ListModelsResponse) -> tuple[Model, ...]:
    """Returns the models by name."""
    return tuple(
        Model(one.name, one.vision, one.endpoint_count, one.max_sequence_count)
        for one in raw.models
    )


def fleet(raw: gateway_service_pb2.DescribeFleetResponse) -> Fleet:
    """Returns the fleet."""
    endpoints = []
    for one in raw.endpoints:
        what, load = one.description, one.load
        endpoints.append(
            Endpoint(
                endpoint_id=what.endpoint_id,
                provider=what.provider,
                region=what.region,
                address=what.address,
                state=one.state,
                models=tuple(what.models),
                engine=what.engine,
                hardware=what.hardware,
                price_per_hour_usd=what.price_per_hour_micro_usd / 1e6,
                running=load.running_sequence_count,
                waiting=load.waiting_sequence_count,
                paused=load.paused_sequence_count,
                max_sequence_count=what.max_sequence_count,
                booked=one.booked_agent_count,
                free_blocks=load.free_block_count,
                total_blocks=what.total_block_count,
                step_s=_duration(load.step_duration),
                report_age_s=_duration(one.report_age),
                busy=load.application_utilization,
                is_spot=what.is_spot,
                price_per_million_tokens_usd=what.price_per_million_tokens_micro_usd / 1e6,
                learned_step_s=one.speed.base_s + one.speed.per_sequence_s,
                prediction_error=one.speed.prediction_error,
            )
        )
    return Fleet(tuple(endpoints), raw.lease_count, raw.queued_count)


def summary(raw: pb2.ContemplationSummary, ending: pb2.ContemplationEvent | None = None) -> Summary:
    """Returns a contemplation's state."""
    return Summary(
        contemplation_id=raw.contemplation_id,
        state=_name(pb2.ContemplationSummary.State, raw.state, "STATE_"),
        accept_time_s=_seconds(raw.accept_time),
        end_time_s=_seconds(raw.end_time),
        last_event_number=raw.last_event_number,
        model=raw.model,
        agent_count=raw.agent_count,
        trace_id=raw.trace.trace_id,
        ending=ending,
    )


def _ballot(raw: common_pb2.Ballot) -> Ballot:
    return Ballot(
        agent_id=raw.agent_id,
        answer=raw.answer,
        key=raw.key,
        abstained=raw.abstained,
        proved=raw.proved,
        weight=raw.weight,
        mean_logprob=raw.confidence.mean_logprob,
        finish_reason=_name(common_pb2.FinishReason, raw.finish_reason, "FINISH_REASON_"),
        sampled_tokens=raw.sampled_token_count,
    )


def _evidence(raw: common_pb2.Evidence) -> Evidence:
    if raw.HasField("image"):
        return Evidence(raw.agent_id, digest=raw.image.digest, box=_box(raw.image))
    result = raw.tool_result
    shown = next((part.image for part in result.parts if part.HasField("image")), None)
    return Evidence(
        raw.agent_id,
        digest=shown.digest if shown else "",
        box=_box(shown) if shown else None,
        call_id=result.call_id,
        text=" ".join(part.text for part in result.parts if part.text),
        proof=result.proof.answer,
    )


def _box(image: common_pb2.ImagePart) -> Box | None:
    box = image.box
    if not image.HasField("box"):
        return None
    return Box(box.x0_permille, box.y0_permille, box.x1_permille, box.y1_permille)


def _name(kind: Any, value: int, prefix: str) -> str:
    names = {number: name for name, number in kind.items()}
    return str(names.get(value, value)).removeprefix(prefix)


def _duration(value: Duration) -> float:
    return value.seconds + value.nanos / 1e9


def _seconds(value: Timestamp) -> float:
    return value.seconds + value.nanos / 1e9
