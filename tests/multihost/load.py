"""Clients that ask one question after another, and what each of them saw and when."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from cogitate.client import AsyncClient, CogitateError
from cogitate.evals import datasets
from cogitate.evals.question import Question

HANG_S: Final = 60.0
BOARD_SEED: Final = 77


@dataclass
class Story:
    """One contemplation as its client saw it. Times are of the monotonic clock."""

    number: int
    question: str
    asked_at: float
    events: list[tuple[float, str]] = field(default_factory=list)
    id: str = ""
    trace_id: str = ""
    answer: str = ""
    is_right: bool = False
    degraded: tuple[str, ...] = ()
    num_tokens: int = 0
    endpoints: tuple[str, ...] = ()
    num_lost: int = 0  # agents that were told to have lost their place
    num_zooms: int = 0  # agents' calls of it
    error: str = ""
    ended_at: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether an agent has written, and there is no ending yet."""
        return self.ended_at is None and any(kind == "deltas" for _, kind in self.events)

    @property
    def length_s(self) -> float:
        """From the question to the ending."""
        return (self.ended_at or time.monotonic()) - self.asked_at

    def gaps(self) -> list[Gap]:
        """Between the events, in order."""
        return [
            Gap(b[0] - a[0], a[0], self.number, f"{a[1]} to {b[1]}")
            for a, b in itertools.pairwise(self.events)
        ]

    @property
    def first_s(self) -> float:
        """From the question to the first event."""
        return self.events[0][0] - self.asked_at if self.events else self.length_s


@dataclass(frozen=True)
class Gap:
    """Silence in a stream."""

    s: float
    since: float
    story: int
    between: str


class Load:
    """Runs on a thread of its own. Use as a context manager; it ends what it began."""

    def __init__(
        self,
        address: str,
        clients: int,
        agents: int,
        on_end: Callable[[Story], None] = lambda story: None,
        *,
        paused: bool = False,
    ) -> None:
        self._address, self._clients, self._agents, self._on_end = address, clients, agents, on_end
        self.questions: Sequence[Question] = datasets.load("boards", 24, BOARD_SEED)
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._paused = threading.Event()
        if paused:
            self._paused.set()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")
        self.stories: list[Story] = []
        self.begun_at = 0.0

    def __enter__(self) -> Self:
        self.begun_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(2 * HANG_S)

    @property
    def ended(self) -> list[Story]:
        """Those that are over."""
        return [story for story in self.stories if story.ended_at is not None]

    @property
    def running(self) -> list[Story]:
        """Those in whose midst we are."""
        return [story for story in self.stories if story.has_begun]

    def wait_for(self, true: Callable[[], bool], timeout_s: float = 3 * HANG_S) -> None:
        """Returns when something has come true. Raises TimeoutError."""
        ends = time.monotonic() + timeout_s
        while not true():
            if time.monotonic() > ends:
                raise TimeoutError("the load stands still")
            time.sleep(0.005)

    def pause(self) -> None:
        """Asks nothing new, and returns when all is over that was asked."""
        self._paused.set()
        self.wait_for(lambda: len(self.ended) == len(self.stories))

    def resume(self) -> None:
        """Asks again."""
        self._paused.clear()

    async def _run(self) -> None:
        async with AsyncClient(self._address) as client, asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(self._ask_on(client))

    async def _ask_on(self, client: AsyncClient) -> None:
        while not self._stop.is_set():
            if self._paused.is_set():
                await asyncio.sleep(0.02)
                continue
            number = next(self._numbers)
            question = self.questions[number % len(self.questions)]
            story = Story(number, question.text, time.monotonic())
            self.stories.append(story)
            try:
                async with asyncio.timeout(HANG_S):
                    await self._ask(client, question, story)
            except (CogitateError, TimeoutError) as error:
                story.error = f"{type(error).__name__}: {error}"
            story.ended_at = time.monotonic()
            self._on_end(story)

    async def _ask(self, client: AsyncClient, question: Question, story: Story) -> None:
        options: dict[str, Any] = {"agents": self._agents, "strategy": "vote", "quorum": "all"}
        async with client.contemplate(
            question.text, images=list(question.pictures()), seed=story.number,
            on_disconnect="continue", **options,
        ) as stream:  # fmt: skip
            async for event in stream:
                kind = str(event.WhichOneof("event"))
                story.events.append((time.monotonic(), kind))
                story.id, story.trace_id = stream.contemplation_id, stream.trace_id
                story.num_lost += kind == "agent_lost"
                story.num_zooms += event.tool_call_started.call.name == "zoom"
            answer = await stream.answer()
        story.answer, story.is_right = answer.answer, question.check(answer.answer)
        story.degraded = answer.degraded_reasons
        story.num_tokens = answer.usage.sampled_tokens
        story.endpoints = tuple(one.endpoint_id for one in answer.certificate.placements)
