"""Protos to values and back. Total functions: bad input raises InvalidRequest and nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from cogitate.kit.errors import InvalidRequest
from cogitate.router.core.learning import Work
from cogitate.router.core.leases import News
from cogitate.router.core.types import (
    Confirm,
    Constraints,
    Declare,
    Denied,
    Description,
    EndpointSnapshot,
    GangNeed,
    Granted,
    GrantedShare,
    Load,
    Queued,
    Rejection,
    Replace,
    Terms,
)
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb2
from cogitate.v1 import router_service_pb2 as router_pb2
from google.protobuf.duration_pb2 import Duration

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ANYWHERE = re.compile(r"(0\.0\.0\.0|\[::\]|\*)?:")  # what one listens on and nobody can dial
_CONTEMPLATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NUMBERS = {
    name.removeprefix("CAPABILITY_"): number for name, number in decoder_pb2.Capability.items()
}
_NAMES = {number: name for name, number in _NUMBERS.items()}
_MAX_NAME_CHARS = 256
_MAX_NAMES = 256
_MAX_WAIT_S = 3600


def description(message: decoder_pb2.EndpointDescription, dialled: str = "") -> Description:
    """Returns an endpoint's description. Raises InvalidRequest naming the field.

    `dialled`: where it was reached, in place of an address that names no machine.
    """
    _check(bool(_ID.fullmatch(message.endpoint_id)), "endpoint_id", "is malformed")
    named = message.address if not _ANYWHERE.match(message.address) else ""
    address = named or dialled or message.address
    _check(0 < len(address) <= _MAX_NAME_CHARS, "address", "is missing or too long")
    _check(0 < len(message.models) <= _MAX_NAMES, "models", "are missing or too many")
    _check(all(message.models), "models", "contain an empty name")
    texts = [message.provider, message.region, message.failure_domain, message.engine]
    texts += [message.hardware, message.build_digest, message.process_id, *message.models]
    _check(max(map(len, texts)) <= _MAX_NAME_CHARS, "description", "contains a text too long")
    _check(message.max_sequence_count > 0, "max_sequence_count", "must be at least 1")
    counts = (message.total_block_count, message.block_size_count, message.max_model_len)
    prices = (
        message.price_per_hour_micro_usd,
        message.price_per_million_tokens_micro_usd,
        message.price_per_million_prompt_tokens_micro_usd,
    )
    _check(min(*counts, *prices) >= 0, "description", "contains a negative number")
    return Description(
        endpoint_id=message.endpoint_id,
        address=address,
        provider=message.provider,
        region=message.region,
        failure_domain=message.failure_domain,
        models=tuple(message.models),
        capabilities=_capabilities(message.capabilities),
        engine=message.engine,
        hardware=message.hardware,
        price_per_hour_micro_usd=message.price_per_hour_micro_usd,
        price_per_million_tokens_micro_usd=message.price_per_million_tokens_micro_usd,
        price_per_million_prompt_tokens_micro_usd=message.price_per_million_prompt_tokens_micro_usd,
        is_spot=message.is_spot,
        total_blocks=message.total_block_count,
        block_size=message.block_size_count,
        max_sequences=message.max_sequence_count,
        build_digest=message.build_digest,
        max_model_len=message.max_model_len,
        process_id=message.process_id,
    )


def load(message: decoder_pb2.EndpointLoad) -> Load:
    """Returns a load as it was reported, absurd or not: the fleet judges that."""
    return Load(
        running=message.running_sequence_count,
        waiting=message.waiting_sequence_count,
        paused=message.paused_sequence_count,
        free_blocks=message.free_block_count,
        prefill_tokens_per_s=message.prefill_tokens_per_s,
        step_s=seconds(message.step_duration),
        step_batch_size=message.step_batch_size,
        sampled_tokens=message.sampled_token_count,
        computed_prompt_tokens=message.computed_prompt_token_count,
        cached_prompt_tokens=message.cached_prompt_token_count,
        draining=message.draining,
        cpu_utilization=message.cpu_utilization,
        mem_utilization=message.mem_utilization,
        application_utilization=message.application_utilization,
        kv_cache_utilization=message.kv_cache_utilization,
        waiting_gangs=message.waiting_gang_count,
        running_gangs=message.running_gang_count,
        gangs_per_s=message.gangs_per_s,
        failures_per_s=message.failures_per_s,
        preemptions=message.preemption_count,
        used_tokens=message.used_token_count,
        killed_tokens=message.killed_token_count,
        lost_tokens=message.lost_token_count,
        flops_per_s=message.flops_per_s,
        traffic_bytes_per_s=message.traffic_bytes_per_s,
        work=Work(
            steps=message.decode_step_count,
            step_s=seconds(message.decode_duration),
            sequences=message.decode_sequence_count,
            positions=message.decode_position_count,
            prompt_positions=message.computed_prompt_token_count,
            prompt_s=seconds(message.prefill_duration),
        ),
    )


def declare(message: router_pb2.DeclareGangs) -> Declare:
    """Returns a declaration. Raises InvalidRequest naming the field."""
    limits = message.constraints
    _check(limits.min_failure_domain_count >= 0, "min_failure_domain_count", "is negative")
    _check(limits.min_surviving_agent_count >= 0, "min_surviving_agent_count", "is negative")
    _check(limits.max_price_per_hour_micro_usd >= 0, "max_price_per_hour_micro_usd", "is negative")
    _check(message.budget.max_cost_micro_usd >= 0, "budget.max_cost_micro_usd", "is negative")
    constraints = Constraints(
        providers=frozenset(limits.providers),
        regions=frozenset(limits.regions),
        min_failure_domains=limits.min_failure_domain_count,
        max_price_per_hour_micro_usd=limits.max_price_per_hour_micro_usd,
        excluded=frozenset(limits.excluded_endpoint_ids),
        min_survivors=limits.min_surviving_agent_count,
    )
    contemplation_id = _contemplation_id(message.contemplation_id)
    _check(len(message.tenant) <= _MAX_NAME_CHARS, "tenant", "is too long")
    max_wait_s = seconds(message.max_wait_duration)
    _check(0 <= max_wait_s <= _MAX_WAIT_S, "max_wait_duration", "is negative or over an hour")
    has_deadline = message.HasField("remaining_duration")
    remaining_s = seconds(message.remaining_duration) if has_deadline else math.inf
    _check(remaining_s >= 0, "remaining_duration", "is negative")
    return Declare(
        contemplation_id=contemplation_id,
        attempt=_attempt(message.attempt),
        gangs=_gangs(contemplation_id, message.gangs),
        owner_epoch=message.owner_epoch,
        terms=Terms(constraints, message.budget.max_cost_micro_usd, message.policy),
        tenant=message.tenant,
        priority=message.priority,
        max_wait_s=max_wait_s,
        remaining_s=remaining_s,
        avoided=_names(message.avoided_endpoint_ids, "avoided_endpoint_ids"),
        probed=_names(message.probed_endpoint_ids, "probed_endpoint_ids"),
    )


def replace(message: router_pb2.ReplaceAgents) -> Replace:
    """Returns a request for new places. Raises InvalidRequest naming the field."""
    contemplation_id = _contemplation_id(message.contemplation_id)
    return Replace(
        contemplation_id=contemplation_id,
        attempt=_attempt(message.attempt),
        gangs=_gangs(contemplation_id, message.gangs),
        failures=_failures(message.failures),
        avoided=_names(message.avoided_endpoint_ids, "avoided_endpoint_ids"),
        probed=_names(message.probed_endpoint_ids, "probed_endpoint_ids"),
    )


def confirm(message: router_pb2.ConfirmPlacement) -> Confirm:
    """Returns a confirmation. Raises InvalidRequest naming the field."""
    gangs = tuple((g.gang_id, g.endpoint_id, len(g.agent_ids)) for g in message.gangs)
    _check(len(gangs) <= _MAX_NAMES, "gangs", "are too many")
    _check(len({gang_id for gang_id, _, _ in gangs}) == len(gangs), "gangs", "repeat a gang_id")
    ids = [name for gang_id, endpoint_id, _ in gangs for name in (gang_id, endpoint_id)]
    _check(all(_ID.fullmatch(name) for name in ids), "gangs", "contain a malformed id")
    return Confirm(
        contemplation_id=_contemplation_id(message.contemplation_id),
        attempt=_attempt(message.attempt),
        gangs=gangs,
        failures=_failures(message.failures),
        providers=frozenset(gang.provider for gang in message.gangs),
        regions=frozenset(gang.region for gang in message.gangs),
    )


def grant(granted: Granted, vision_encoder_address: str) -> router_pb2.LeaseResponse:
    """Returns a grant as the aggregator hears it."""
    message = router_pb2.LeaseGranted(
        contemplation_id=granted.contemplation_id,
        attempt=granted.attempt,
        gangs=[_placed(gang) for gang in granted.gangs],
        rejected=_rejected(granted.rejected),
        policy=granted.policy,
        vision_encoder_address=vision_encoder_address,
    )
    return router_pb2.LeaseResponse(granted=message)


def denial(denied: Denied, retry_delay_s: float) -> router_pb2.LeaseResponse:
    """Returns a denial as the aggregator hears it."""
    message = router_pb2.LeaseDenied(
        contemplation_id=denied.contemplation_id,
        attempt=denied.attempt,
        reason=denied.reason,
        message=denied.message,
        retry_delay=duration(denied.retry_after_s or retry_delay_s) if denied.retryable else None,
        rejected=_rejected(denied.rejected),
        waited_duration=None if denied.waited_s is None else duration(denied.waited_s),
    )
    return router_pb2.LeaseResponse(denied=message)


def queued(item: Queued) -> router_pb2.LeaseResponse:
    """Returns the news of a wait as the aggregator hears it."""
    message = router_pb2.LeaseQueued(
        contemplation_id=item.contemplation_id,
        attempt=item.attempt,
        ahead_count=item.ahead,
        expected_duration=None if item.expected_s is None else duration(item.expected_s),
    )
    return router_pb2.LeaseResponse(queued=message)


def invalid(contemplation_id: str, attempt: int, message: str) -> router_pb2.LeaseResponse:
    """Returns the denial of a command that is malformed; the stream's other leases go on."""
    return denial(Denied(contemplation_id[:128], attempt, "INVALID_REQUEST", message), 0)


def news(item: News) -> router_pb2.LeaseResponse:
    """Returns an endpoint's change as the aggregator hears it."""
    left = item.changed.remaining_s
    message = router_pb2.EndpointNews(
        endpoint_id=item.changed.endpoint_id,
        contemplation_ids=item.contemplation_ids,
        state=item.changed.change,
        remaining_duration=None if left is None else duration(left),
    )
    return router_pb2.LeaseResponse(news=message)


def fleet_endpoint(snapshot: EndpointSnapshot, now: float) -> router_pb2.FleetEndpoint:
    """Returns an endpoint as `GetFleet` shows it; an unknown load is absent."""
    return router_pb2.FleetEndpoint(
        description=_description(snapshot.description),
        load=None if snapshot.load is None else _load(snapshot.load),
        report_age=duration(max(0.0, now - snapshot.reported_at_s)),
        state=snapshot.state,
        booked_agent_count=snapshot.booked_agents,
        speed=_speed(snapshot),
    )


def duration(value_s: float) -> Duration:
    """Returns seconds as a Duration, to the microsecond."""
    message = Duration()
    message.FromMicroseconds(round(value_s * 1e6))
    return message


def seconds(message: Duration) -> float:
    """Returns a Duration in seconds; never raises, whatever its parts are."""
    return message.seconds + message.nanos / 1e9


def _placed(gang: GrantedShare) -> router_pb2.PlacedGang:
    return router_pb2.PlacedGang(
        gang_id=gang.gang_id,
        endpoint_id=gang.description.endpoint_id,
        address=gang.description.address,
        provider=gang.description.provider,
        region=gang.description.region,
        agent_ids=gang.share.agent_ids,
        model=gang.need.model,
        role=gang.need.role,
        reason=gang.share.reason,
        predicted_duration=duration(gang.share.predicted_s),
        predicted_cost_micro_usd=gang.share.predicted_cost_micro_usd,
        price_per_hour_micro_usd=gang.description.price_per_hour_micro_usd,
        price_per_million_tokens_micro_usd=gang.description.price_per_million_tokens_micro_usd,
        price_per_million_prompt_tokens_micro_usd=(
            gang.description.price_per_million_prompt_tokens_micro_usd
        ),
        takes_conversation_references="CONVERSATION_REFERENCE" in gang.description.capabilities,
    )


def _rejected(rejections: Iterable[Rejection]) -> list[router_pb2.RejectedEndpoint]:
    return [
        router_pb2.RejectedEndpoint(
            endpoint_id=r.endpoint_id, reason=r.reason, endpoint_count=r.count
        )
        for r in rejections
    ]


def _description(what: Description) -> decoder_pb2.EndpointDescription:
    return decoder_pb2.EndpointDescription(
        endpoint_id=what.endpoint_id,
        address=what.address,
        provider=what.provider,
        region=what.region,
        failure_domain=what.failure_domain,
        models=what.models,
        capabilities=sorted(_capability_number(name) for name in what.capabilities),
        engine=what.engine,
        hardware=what.hardware,
        price_per_hour_micro_usd=what.price_per_hour_micro_usd,
        price_per_million_tokens_micro_usd=what.price_per_million_tokens_micro_usd,
        price_per_million_prompt_tokens_micro_usd=what.price_per_million_prompt_tokens_micro_usd,
        is_spot=what.is_spot,
        total_block_count=what.total_blocks,
        block_size_count=what.block_size,
        max_sequence_count=what.max_sequences,
        build_digest=what.build_digest,
        max_model_len=what.max_model_len,
        process_id=what.process_id,
    )


def _load(load: Load) -> decoder_pb2.EndpointLoad:
    return decoder_pb2.EndpointLoad(
        running_sequence_count=load.running,
        waiting_sequence_count=load.waiting,
        paused_sequence_count=load.paused,
        free_block_count=load.free_blocks,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        step_duration=duration(load.step_s),
        step_batch_size=load.step_batch_size,
        sampled_token_count=load.sampled_tokens,
        computed_prompt_token_count=load.computed_prompt_tokens,
        cached_prompt_token_count=load.cached_prompt_tokens,
        draining=load.draining,
        cpu_utilization=load.cpu_utilization,
        mem_utilization=load.mem_utilization,
        application_utilization=load.application_utilization,
        kv_cache_utilization=load.kv_cache_utilization,
        waiting_gang_count=load.waiting_gangs,
        running_gang_count=load.running_gangs,
        gangs_per_s=load.gangs_per_s,
        failures_per_s=load.failures_per_s,
        preemption_count=load.preemptions,
        used_token_count=load.used_tokens,
        killed_token_count=load.killed_tokens,
        lost_token_count=load.lost_tokens,
        flops_per_s=load.flops_per_s,
        traffic_bytes_per_s=load.traffic_bytes_per_s,
        decode_step_count=load.work.steps,
        decode_duration=duration(load.work.step_s),
        decode_sequence_count=load.work.sequences,
        decode_position_count=load.work.positions,
        prefill_duration=duration(load.work.prompt_s),
    )


def _speed(snapshot: EndpointSnapshot) -> router_pb2.EndpointSpeed | None:
    if snapshot.speed is None:
        return None
    return router_pb2.EndpointSpeed(
        base_s=snapshot.speed.base_s,
        per_sequence_s=snapshot.speed.per_sequence_s,
        per_position_s=snapshot.speed.per_position_s,
        per_prompt_position_s=snapshot.speed.per_prompt_position_s,
        prediction_error=snapshot.speed_error or 0.0,
    )


def _capabilities(numbers: Iterable[decoder_pb2.Capability.ValueType]) -> frozenset[str]:
    """Names capabilities; a number this build does not know yet is its own name."""
    return frozenset(_NAMES.get(number, str(number)) for number in numbers if number)


def _capability_number(name: str) -> decoder_pb2.Capability.ValueType:
    return _NUMBERS[name] if name in _NUMBERS else decoder_pb2.Capability.ValueType(int(name))


def _gangs(contemplation_id: str, messages: Sequence[router_pb2.GangSpec]) -> tuple[GangNeed, ...]:
    _check(0 < len(messages) <= _MAX_NAMES, "gangs", "are missing or too many")
    agents = [agent for message in messages for agent in message.agent_ids]
    _check(len(set(agents)) == len(agents), "gangs.agent_ids", "name an agent twice")
    _check(min(agents, default=0) >= 0, "gangs.agent_ids", "contain a negative id")
    for message in messages:
        _check(0 < len(message.model) <= _MAX_NAME_CHARS, "gangs.model", "is missing or too long")
        _check(len(message.role) <= _MAX_NAME_CHARS, "gangs.role", "is too long")
        _check(len(message.prefix_digest) <= _MAX_NAME_CHARS, "prefix_digest", "is too long")
        _check(len(message.agent_ids) > 0, "gangs.agent_ids", "are missing")
        where = message.prefilled_endpoint_id
        _check(not where or bool(_ID.fullmatch(where)), "prefilled_endpoint_id", "is malformed")
        counts = (
            message.prefix_token_count,
            message.tokens_per_agent,
            message.mean_tokens_per_agent,
        )
        _check(0 <= min(counts) and max(counts) < 2**40, "gangs", "have an impossible token count")
    return tuple(
        GangNeed(
            contemplation_id=contemplation_id,
            model=message.model,
            agent_ids=tuple(message.agent_ids),
            role=message.role,
            capabilities=_capabilities(message.required_capabilities),
            prefix_tokens=message.prefix_token_count,
            tokens_per_agent=message.tokens_per_agent,
            mean_tokens=message.mean_tokens_per_agent,
            prefilled_at=message.prefilled_endpoint_id,
            prefix_digest=message.prefix_digest,
        )
        for message in messages
    )


def _names(names: Sequence[str], field: str) -> frozenset[str]:
    _check(len(names) <= _MAX_NAMES, field, "are too many")
    return frozenset(names)


def _failures(messages: Sequence[router_pb2.EndpointFailure]) -> tuple[tuple[str, str], ...]:
    _check(len(messages) <= _MAX_NAMES, "failures", "are too many")
    _check(all(_ID.fullmatch(m.endpoint_id) for m in messages), "failures", "have a malformed id")
    return tuple((message.endpoint_id, message.reason) for message in messages)


def _contemplation_id(text: str) -> str:
    _check(bool(_CONTEMPLATION_ID.fullmatch(text)), "contemplation_id", "is malformed")
    return text


def _attempt(number: int) -> int:
    _check(number >= 1, "attempt", "must be at least 1")
    return number


def _check(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidRequest(f"{field} {problem}", field=field)
