"""Endings and what decoders and routers say, as messages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cogitate.aggregator import endings, wire
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.journal import Record
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import common_pb2 as common
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        ("INVALID_REQUEST", 3),
        ("UNKNOWN_MODEL", 3),
        ("DEADLINE_EXCEEDED", 4),
        ("BUDGET_EXCEEDED", 8),
        ("REJECTED", 8),
        ("ENGINE_FAILURE", 13),
        ("NO_ENDPOINT", 14),
        ("UNAVAILABLE", 14),
        ("SOMETHING_NEW", 14),
    ],
)
def test_the_code_matches_the_cause(reason: str, number: int) -> None:
    assert endings.status_number(reason) == number


def finished() -> tuple[Contemplation, dict[str, object]]:
    machine = Contemplation(
        m.Spec(
            contemplation_id="c",
            model="mini",
            effort="CONTEMPLATING",
            num_agents=2,
            strategy="vote",
            quorum="unbeatable",
            equivalence="auto",
            seed=7,
            temperature=None,
            budget_tokens=0,
            max_tokens=0,
        )
    )
    machine.start()
    placed = router_pb.PlacedGang(
        price_per_hour_micro_usd=3_600_000_000, price_per_million_tokens_micro_usd=2_000_000
    )
    gang = m.PlacedGang("1.1", "e", "p", "r", (0, 1), "why", placed)
    machine.handle(m.Granted(1, (gang,), "fake"))
    machine.handle(m.Admitted("1.1", "build", {}))
    call = m.Call("a0.1.c1", "zoom", "{}")
    machine.handle(m.ToolCalled("1.1", 0, 1, call))
    result = common.ToolResult(call_id="a0.1.c1")
    machine.handle(m.ToolReturned("a0.1.c1", m.Result(False, "", result)))
    for agent_id in (0, 1):
        ended = m.AgentEnded("1.1", agent_id, 1, "STOP", f"It is {3}.", 10, 2, -0.5 + -agent_id)
        effects = machine.handle(ended)
    [verdict] = [e for e in effects if isinstance(e, m.Emit) and e.kind == "verdict"]
    return machine, verdict.fields


def test_a_verdict_accounts_for_itself() -> None:
    machine, fields = finished()
    verdict = endings.build("verdict", fields, machine, 2.0, 1).verdict
    assert (verdict.answer, verdict.key, verdict.degraded) == ("It is 3.", "3", False)
    certificate = verdict.certificate
    assert (certificate.seed, certificate.quorum, certificate.model) == (7, "unbeatable", "mini")
    assert dict(certificate.build_digests) == {"e": "build"}
    assert [e.agent_id for e in certificate.evidence] == [0]
    ledger = certificate.ledger
    assert (ledger.generated_token_count, ledger.used_token_count) == (20, 20)
    assert (ledger.tool_call_count, ledger.tool_execution_count) == (1, 1)
    assert ledger.cost_micro_usd == 2_000_000 + 40
    assert verdict.usage.injected_token_count == 4
    assert verdict.duration.ToMilliseconds() == 2000


def test_failures_and_cancellations_carry_the_bill() -> None:
    machine, _ = finished()
    fields = {"reason": "NO_QUORUM", "message": "none", "retryable": True, "retry_after_s": None}
    failed = endings.build("failed", fields, machine, 1.0, 0).failed
    assert (failed.code, failed.ledger.generated_token_count) == (9, 20)
    cancelled = endings.build("cancelled", {"reason": "REQUESTED"}, machine, 1.0, 0).cancelled
    assert (cancelled.reason, cancelled.ledger.used_token_count) == ("REQUESTED", 20)


def test_numbers_that_are_none_and_reasons_nobody_knows_come_to_nothing() -> None:
    confidence = common.Confidence(
        mean_logprob=float("nan"), group_confidence=float("inf"), lowest_group_confidence=1.5
    )
    event = decoder_pb.AgentFinished(agent_id=1, attempt=1, confidence=confidence)
    event.finish_reason = 99  # type: ignore[assignment]
    [ended] = wire.to_inputs("g", decoder_pb.DecodeResponse(finished=event))
    assert isinstance(ended, m.AgentEnded)
    assert ended.finish == "UNSPECIFIED"
    assert (ended.mean_logprob, ended.group_confidence) == (wire.WORST_LOGPROB, 0.0)
    assert ended.lowest_confidence == 1.5
    delta = decoder_pb.AgentDelta(logprobs=[-1.0, float("nan")])
    step = decoder_pb.GangStep(deltas=[delta])
    [stepped] = wire.to_inputs("g", decoder_pb.DecodeResponse(step=step))
    assert isinstance(stepped, m.Stepped)
    assert stepped.deltas[0].logprob_sum == wire.WORST_LOGPROB


def test_events_this_version_does_not_know_are_skipped() -> None:
    assert wire.to_inputs("g", decoder_pb.DecodeResponse()) == []
    draining = decoder_pb.DecodeResponse(draining=decoder_pb.GangDraining())
    assert wire.to_inputs("g", draining) == []


def test_refusals_and_denials_say_when_to_come_back() -> None:
    refused = decoder_pb.GangRefused(reason="REJECTED", message="full")
    assert wire.to_refusal("g", refused) == m.GangLost("g", "REJECTED", "full", None)
    refused.retry_delay.FromMilliseconds(250)
    assert wire.to_refusal("g", refused).retry_after_s == 0.25
    denied = router_pb.LeaseDenied(attempt=2, reason="NO_ENDPOINT", message="none")
    assert wire.to_denied(denied) == m.Denied(2, "NO_ENDPOINT", "none", None)


def test_summaries() -> None:
    accepted = pb.ContemplationEvent(accepted=pb.Accepted(model="mini", agent_count=2))
    ending = pb.ContemplationEvent(failed=pb.Failed())
    running = Record("c", "t", "", b"", b"", 1, accepted.SerializeToString(), last_event=3)
    ended = replace(running, end_ns=9, ending=ending.SerializeToString())
    State = pb.ContemplationSummary
    assert wire.to_summary(running).state == State.STATE_RUNNING
    assert wire.to_summary(running, awaits_client=True).state == State.STATE_AWAITING_CLIENT
    summary = wire.to_summary(ended, awaits_client=True)
    assert (summary.state, summary.model, summary.agent_count) == (State.STATE_FAILED, "mini", 2)
    assert summary.end_time.ToNanoseconds() == 9
    with pytest.raises(wire.Damaged):
        wire.to_summary(replace(running, accepted=b"\xff"))
