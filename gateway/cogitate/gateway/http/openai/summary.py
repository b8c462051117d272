"""The field `cogitate` of an answer: how it came about, in a few lines; and usage."""

from __future__ import annotations

from typing import Any

from cogitate.gateway.http.openai.telling import Telling
from cogitate.v1 import common_pb2


def summary(telling: Telling, verdict: common_pb2.Verdict) -> dict[str, Any]:
    """Returns what a client that knows Cogitate reads beside the answer."""
    certificate, ledger = verdict.certificate, verdict.certificate.ledger
    counted = [b for b in certificate.ballots if not b.judged_key]
    return {
        "contemplation_id": telling.contemplation_id,
        "trace_id": telling.accepted.trace.trace_id,
        "strategy": certificate.strategy,
        "quorum": certificate.quorum,
        "decision": certificate.decision,
        "agent_count": telling.accepted.agent_count,
        "ballot_count": len(counted),
        "agreeing_count": sum(b.key == verdict.key and not b.abstained for b in counted),
        "killed_count": len(certificate.killed_agents),
        "proved": verdict.proved,
        "abstained": verdict.abstained,
        "degraded": list(verdict.degraded_reasons),
        "seed": certificate.seed,
        "cost_usd": ledger.cost_micro_usd / 1_000_000,
        "tokens": {
            "generated": ledger.generated_token_count,
            "used": ledger.used_token_count,
            "killed": ledger.killed_token_count,
            "lost": ledger.lost_token_count,
        },
        "duration_s": verdict.duration.seconds + verdict.duration.nanos / 1e9,
    }


def counts(telling: Telling, verdict: common_pb2.Verdict) -> tuple[int, int, int, int]:
    """Returns tokens of prompts, of these cached, sampled by all agents, of these reasoning."""
    usage = verdict.usage
    sampled = usage.sampled_token_count
    reasoning = max(0, sampled - telling.answer_token_count(verdict))
    return usage.prompt_token_count, usage.cached_token_count, sampled, reasoning
