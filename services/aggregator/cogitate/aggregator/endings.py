"""Builds the messages a contemplation ends with: verdict and certificate, failure, cancellation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from cogitate.aggregator import wire
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.core.outcome import Outcome
from cogitate.aggregator.core.sights import sights
from cogitate.kit.errors import every_class
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb

_NUMBERS: dict[str, int] = {status.name: status.value[0] for status in grpc.StatusCode}
# Reasons without a class of their own.
_CODES = {"UNKNOWN_MODEL": "INVALID_ARGUMENT", "BAD_IMAGE": "INVALID_ARGUMENT"}
MICROSECONDS_PER_HOUR = 3_600_000_000


def build(
    kind: str,
    fields: Mapping[str, Any],
    machine: Contemplation,
    seconds: float,
    num_executions: int,
) -> pb.ContemplationEvent:
    """The ending as an event, of the machine alone. ``seconds`` is the time since acceptance."""
    bill = ledger(machine, seconds, num_executions)
    if kind == "cancelled":
        cancelled = pb.ContemplationCancelled(ledger=bill, reason=fields["reason"])
        return pb.ContemplationEvent(cancelled=cancelled)
    if kind == "failed":
        failed = pb.Failed(
            code=status_number(fields["reason"]),
            reason=fields["reason"],
            message=fields["message"],
            retryable=fields["retryable"],
            ledger=bill,
        )
        if fields["retry_after_s"] is not None:
            failed.retry_delay.FromMicroseconds(round(fields["retry_after_s"] * 1e6))
        return pb.ContemplationEvent(failed=failed)
    return pb.ContemplationEvent(verdict=_verdict(fields["outcome"], machine, bill, seconds))


def status_number(reason: str) -> int:
    """The gRPC status number that belongs to a reason; UNAVAILABLE for those of lost endpoints."""
    codes = dict(_CODES)
    for cls in every_class():  # parents first: theirs is the code of the reason
        codes.setdefault(cls.reason, cls.code)
    return _NUMBERS[codes.get(reason, "UNAVAILABLE")]


def broken() -> pb.ContemplationEvent:
    """The last resort, which looks at nothing that may be the cause."""
    failed = pb.Failed(code=13, reason="INTERNAL", message="internal error", retryable=True)
    return pb.ContemplationEvent(failed=failed)


def lost() -> pb.ContemplationEvent:
    """What a contemplation ends with whose owner died and whose journal does not let it go on."""
    message = "the aggregator died and its journal cannot be continued; ask again"
    failed = pb.Failed(code=14, reason="UNAVAILABLE", message=message, retryable=True)
    return pb.ContemplationEvent(failed=failed)


def ledger(machine: Contemplation, seconds: float, num_executions: int) -> common.Ledger:
    """What the contemplation cost."""
    accounts = machine.accounts
    return common.Ledger(
        generated_token_count=accounts.generated,
        used_token_count=accounts.used,
        killed_token_count=accounts.killed,
        lost_token_count=accounts.lost,
        cost_micro_usd=cost(machine, seconds),
        tool_call_count=machine.tools.num_calls,
        tool_execution_count=num_executions,
        hedged_token_count=accounts.hedged,
    )


def cost(machine: Contemplation, seconds: float) -> int:
    """What it cost so far, an upper estimate: hours are shared by nobody, tokens cost the most."""
    endpoints = {gang.endpoint_id: gang.payload for gang in machine.places.gangs.values()}
    hourly: int = sum(placed.price_per_hour_micro_usd for placed in endpoints.values())
    sampled_price: int = max(
        (placed.price_per_million_tokens_micro_usd for placed in endpoints.values()), default=0
    )
    prompt_price: int = max(
        (placed.price_per_million_prompt_tokens_micro_usd for placed in endpoints.values()),
        default=0,
    )
    running = sum(agent.num_sampled for agent in machine.agents.values() if agent.open)
    tokens = (machine.accounts.generated + running) * sampled_price
    tokens += machine.accounts.prompt * prompt_price
    return round(hourly * seconds * 1_000_000 / MICROSECONDS_PER_HOUR + tokens / 1_000_000)


def _verdict(
    outcome: Outcome, machine: Contemplation, bill: common.Ledger, seconds: float
) -> common.Verdict:
    spec, accounts = machine.spec, machine.accounts
    verdict = common.Verdict(
        answer=outcome.answer,
        key=outcome.key,
        degraded=bool(outcome.degraded_reasons),
        degraded_reasons=outcome.degraded_reasons,
        proved=outcome.proved,
        abstained=outcome.abstained,
        certificate=common.Certificate(
            strategy=spec.strategy,
            quorum=spec.quorum,
            decision=outcome.decision,
            ballots=[wire.to_ballot(ballot) for ballot in machine.ballots],
            killed_agents=[wire.to_killed(killed) for killed in machine.killed],
            placements=wire.to_placements(machine.places.gangs.values()),
            evidence=_evidence(outcome, machine),
            sights=_sights(machine),
            ledger=bill,
            seed=spec.seed,
            model=spec.model,
            build_digests=_builds(machine),
            lost_attempts=[
                common.LostAttempt(**lost._asdict()) for lost in machine.places.lost_attempts
            ],
        ),
        usage=common.Usage(
            prompt_token_count=accounts.prompt,
            cached_token_count=accounts.cached,
            sampled_token_count=accounts.generated,
            injected_token_count=accounts.injected,
        ),
    )
    verdict.duration.FromNanoseconds(int(seconds * 1e9))
    return verdict


def _evidence(outcome: Outcome, machine: Contemplation) -> list[common.Evidence]:
    """What the winning words rest on: the tool results their agent saw."""
    if outcome.agent_id is None:
        return []
    return [
        common.Evidence(agent_id=outcome.agent_id, tool_result=segment.result)
        for segment in machine.agents[outcome.agent_id].segments
        if segment.result is not None
    ]


def _sights(machine: Contemplation) -> list[common.Sight]:
    return [
        common.Sight(
            agent_id=one.agent_id,
            step=one.step,
            image=wire.from_picture(one.picture),
            note=one.note,
        )
        for one in sights(machine.agents.values())
    ]


def _builds(machine: Contemplation) -> dict[str, str]:
    builds = {}
    for agent in machine.agents.values():
        gang = machine.places.gangs.get(agent.gang_id)
        if gang is not None and agent.build_digest:
            builds[gang.endpoint_id] = agent.build_digest
    return builds
