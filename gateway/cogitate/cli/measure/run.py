"""Asks a mesh the questions of a dataset and notes what came of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from cogitate.cli.measure.statistics import Outcome
from cogitate.client import AskOptions, AsyncClient, CogitateError

# A quorum per dataset: where a tool can prove an answer, wait for the proof.
QUORUMS: Final = {"countdown": "verified"}
DEFAULT_QUORUM: Final = "unbeatable"
_MAX_TRIES: Final = 200
# What many agents of `mini` sample with.
RETRY_TEMPERATURE: Final = 0.8
_SEED_STEP: Final = 7919


class Question(Protocol):
    """What `cogitate.evals` gives."""

    @property
    def text(self) -> str:
        """The question."""
        ...

    @property
    def image_png(self) -> bytes | None:
        """Its picture."""
        ...

    @property
    def check(self) -> Callable[[str], bool]:
        """Says whether an answer sentence is right."""
        ...


@dataclass(frozen=True)
class Setting:
    """How the questions are asked."""

    agents: int
    strategy: str = ""
    quorum: str = ""
    seed: int = 0
    deadline_s: float = 60.0
    model: str = ""
    effort: str = ""
    temperature: float | None = None

    def options(self, question: Question, seed: int) -> AskOptions:
        """Returns the client's options; one agent alone is greedy unless told otherwise."""
        single = self.agents == 1
        effort = self.effort or ("thinking" if single else "contemplating")
        temperature = self.temperature
        if temperature is None and single:
            temperature = 0.0
        return AskOptions(
            images=[question.image_png] if question.image_png is not None else [],
            agents=self.agents,
            effort=effort,  # type: ignore[typeddict-item]  # checked by the parser
            strategy=self.strategy,
            quorum=self.quorum,
            seed=seed,
            deadline_s=self.deadline_s,
            temperature=temperature,
            model=self.model,
            # Text is what one watches, not what one measures.
            exclude=["deltas"],
        )


def alone(setting: Setting) -> Setting:
    """One agent that may try again: it samples, for a greedy one would repeat itself."""
    temperature = setting.temperature or RETRY_TEMPERATURE
    return replace(setting, agents=1, strategy="", effort="contemplating", temperature=temperature)


async def measure(
    client: AsyncClient,
    questions: Sequence[Question],
    setting: Setting,
    concurrency: int,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Asks every question once, `concurrency` at a time; outcomes are in the questions' order."""

    async def one(index: int) -> Outcome:
        return await ask(client, questions[index], setting, setting.seed + index)

    return await _each(len(questions), one, concurrency, on_done)


async def retry_baseline(
    client: AsyncClient,
    questions: Sequence[Question],
    setting: Setting,
    budgets: Sequence[int],
    concurrency: int,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Has one agent try again and again, until it proves its answer or has spent the budget.

    `budgets` are the tokens that many agents at once spent on the same question. Its latency is the
    sum of its tries: that is what retrying costs.
    """
    setting = alone(setting)

    async def one(index: int) -> Outcome:
        spent, latency_s = 0, 0.0
        for attempt in range(_MAX_TRIES):
            seed = setting.seed + index + _SEED_STEP * (attempt + 1)
            tried = await ask(client, questions[index], setting, seed)
            spent += tried.tokens
            latency_s += tried.latency_s
            if tried.proved or spent >= budgets[index] or not tried.tokens:
                break
        return Outcome(tried.right, latency_s, spent, tried.proved, tried.error)

    return await _each(len(questions), one, concurrency, on_done)


async def ask(client: AsyncClient, question: Question, setting: Setting, seed: int) -> Outcome:
    """Asks once. No answer is a wrong answer, with its reason; the clock runs at the client."""
    began = time.monotonic()
    try:
        answer = await client.ask(question.text, **setting.options(question, seed))
    except CogitateError as error:
        return Outcome(False, time.monotonic() - began, 0, error=error.reason)
    return Outcome(
        right=question.check(answer.answer),
        latency_s=time.monotonic() - began,
        tokens=answer.certificate.ledger.generated_tokens or answer.usage.sampled_tokens,
        proved=answer.proved,
    )


async def _each(
    count: int,
    work: Callable[[int], Awaitable[Outcome]],
    concurrency: int,
    on_done: Callable[[Outcome], None],
) -> list[Outcome]:
    outcomes: list[Outcome | None] = [None] * count
    waiting = iter(range(count))

    async def worker() -> None:
        for index in waiting:
            outcome = await work(index)
            outcomes[index] = outcome
            on_done(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, count)):
            group.create_task(worker())
    return [one for one in outcomes if one is not None]
