"""Asks one question in one setting: a gang, or a baseline that does without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cogitate.aggregator.core.answers import key_of
from cogitate.cli.measure.setting import GANG, JUDGE, Setting
from cogitate.cli.measure.statistics import Outcome
from cogitate.client import Answer, AskOptions, AsyncClient, CogitateError, InvalidRequest
from cogitate.client import Unavailable as Unavailable
from cogitate.evals.question import Question
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

_MAX_TRIES: Final = 200
# Fields of the request that a setting decides; what else is refused is the question's own fault.
_FIELDS: Final = (
    "strategy",
    "quorum",
    "effort",
    "agent_count",
    "initial_agent_count",
    "sampling_params",
    "budget",
)


class SettingRefused(Exception):
    """The mesh does not know or allow the setting, whatever is asked; the message is its own."""


class MeshAway(Exception):
    """Nobody answered; going on would only count failures that are not the mesh's."""


@dataclass(frozen=True)
class Call:
    """One contemplation as the client saw it; `outcome.right` is not decided yet."""

    outcome: Outcome
    answer: Answer | None = None


async def ask(
    client: AsyncClient, question: Question, setting: Setting, seed: int, budget_tokens: int = 0
) -> Outcome:
    """Asks once, and says whether the answer is right.

    `budget_tokens` is what a retry may spend. No answer is a wrong answer, with its reason. Raises
    SettingRefused and MeshAway.
    """
    if setting.kind == GANG:
        outcome = (await _call(client, question.text, setting.options(question, seed))).outcome
    elif setting.kind == JUDGE:
        outcome = await _judge(client, question, setting, seed)
    else:
        outcome = await _retry(client, question, setting, seed, budget_tokens)
    first_s = outcome.first_answer_s
    return replace(
        outcome,
        right=not outcome.error and question.check(outcome.answer),
        # To the microsecond, so that a file holds exactly what is counted.
        latency_s=round(outcome.latency_s, 6),
        first_answer_s=None if first_s is None else round(first_s, 6),
    )


async def _judge(client: AsyncClient, question: Question, setting: Setting, seed: int) -> Outcome:
    """Calls independently, waits for all, and has one more call judge what they answered."""
    began = time.monotonic()
    asked = [
        _call(client, question.text, setting.call(question, seed, number, "thinking"))
        for number in range(setting.agents)
    ]
    # All are waited for, also when one of them has to stop the evaluation.
    calls: list[Call] = []
    for done in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(done, BaseException):
            raise done
        calls.append(done)
    waited_s = time.monotonic() - began
    said = [one.answer.answer if one.answer is not None else "" for one in calls]
    text = judged_text(question.text, said)
    last = await _call(client, text, setting.verdict(question, seed))
    summed = _summed([*calls, last])
    key = last.answer.key if last.answer is not None else ""
    same = [bool(key) and key_of(one, question.equivalence or "auto") == key for one in said]
    first_s = last.outcome.first_answer_s
    return replace(
        summed,
        latency_s=waited_s + last.outcome.latency_s,
        first_answer_s=None if first_s is None else waited_s + first_s,
        agreement=sum(same) / len(same) if last.answer is not None else None,
    )


def judged_text(question: str, answers: Sequence[str]) -> str:
    """Returns what the judge is asked; a call that gave no answer is said to have given none."""
    listed = "\n".join(f"{i}. {one.strip() or 'no answer'}" for i, one in enumerate(answers, 1))
    return (
        f"{question}\n\n{len(answers)} attempts at this question answered:\n{listed}\n\n"
        "Decide which is right, or find the right answer yourself. "
        "Reply with the answer to the question only."
    )


async def _retry(
    client: AsyncClient, question: Question, setting: Setting, seed: int, budget_tokens: int
) -> Outcome:
    """Has one agent try again until a tool proves its answer or the budget is spent.

    Its latency is the sum of its tries: that is what retrying costs.
    """
    calls: list[Call] = []
    for number in range(_MAX_TRIES):
        options = setting.call(question, seed, number, "contemplating")
        calls.append(await _call(client, question.text, options))
        last = calls[-1].outcome
        spent = sum(one.outcome.tokens for one in calls)
        if last.proved or spent >= budget_tokens or not last.tokens:
            break
    before_s = sum(one.outcome.latency_s for one in calls[:-1])
    return replace(
        _summed(calls),
        latency_s=before_s + last.latency_s,
        first_answer_s=None if last.first_answer_s is None else before_s + last.first_answer_s,
    )


def _summed(calls: Sequence[Call]) -> Outcome:
    """The last call's answer, with the tokens of all."""
    outcomes = [one.outcome for one in calls]
    return replace(
        outcomes[-1],
        tokens=sum(one.tokens for one in outcomes),
        used_tokens=sum(one.used_tokens for one in outcomes),
        killed_tokens=sum(one.killed_tokens for one in outcomes),
        lost_tokens=sum(one.lost_tokens for one in outcomes),
        degraded=any(one.degraded for one in outcomes),
        left_out=tuple(sorted({name for one in outcomes for name in one.left_out})),
    )


async def _call(client: AsyncClient, text: str, options: AskOptions) -> Call:
    """Has one contemplation; the clock runs here, where the client is."""
    began = time.monotonic()
    first_s: float | None = None
    left_out: set[str] = set()
    event = pb2.ContemplationEvent()
    try:
        async with client.contemplate(text, **options) as stream:
            async for event in stream:
                if first_s is None and _answers(event):
                    first_s = time.monotonic() - began
                if event.HasField("feature_degraded"):
                    left_out.add(event.feature_degraded.feature)
            latency_s = time.monotonic() - began
            answer = await stream.answer()
    except CogitateError as error:
        _stop(error, accepted=event.event_number > 0)
        # What was spent before it failed is spent all the same.
        spent = _ledger(event.failed.ledger)
        return Call(replace(spent, latency_s=time.monotonic() - began, error=error.reason))
    outcome = replace(
        _ledger(answer.verdict.certificate.ledger),
        latency_s=latency_s,
        first_answer_s=first_s,
        agreement=_agreement(answer),
        proved=answer.proved,
        abstained=answer.abstained,
        degraded=answer.degraded,
        answer=answer.answer,
        left_out=tuple(sorted(left_out)),
    )
    # A mesh that keeps no ledger still says what was sampled.
    return Call(replace(outcome, tokens=outcome.tokens or answer.usage.sampled_tokens), answer)


def _ledger(raw: common_pb2.Ledger) -> Outcome:
    return Outcome(
        right=False,
        latency_s=0.0,
        tokens=raw.generated_token_count,
        used_tokens=raw.used_token_count,
        killed_tokens=raw.killed_token_count,
        lost_tokens=raw.lost_token_count,
    )


def _answers(event: pb2.ContemplationEvent) -> bool:
    """Tells whether a client sees the first of an answer here."""
    if event.HasField("deltas"):
        return any(one.is_answer and one.text for one in event.deltas.deltas)
    return event.HasField("verdict_delta") or event.HasField("verdict")


def _agreement(answer: Answer) -> float | None:
    if not answer.ballots:
        return None
    return sum(one.key == answer.key for one in answer.ballots) / len(answer.ballots)


def _stop(error: CogitateError, *, accepted: bool) -> None:
    """Raises if the error is not this question's."""
    if error.reason == "UNKNOWN_MODEL":
        raise SettingRefused(error.message)
    if isinstance(error, InvalidRequest):
        field = error.field.removeprefix("spec.")
        if field != "sampling_params.regex" and field.split(".")[0] in _FIELDS:
            raise SettingRefused(error.message)
    if isinstance(error, Unavailable) and not accepted:
        raise MeshAway(error.message)
