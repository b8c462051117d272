"""What the state machine knows of each agent and of the tool calls they share."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cogitate.aggregator.core.ballots import Ballot
from cogitate.aggregator.core.messages import (
    AgentEnded,
    AgentOrder,
    Call,
    Delta,
    Picture,
    Result,
    Segment,
)
from cogitate.aggregator.core.strategies.base import AgentPlan


@dataclass(slots=True)
class Rival:
    """A second attempt that goes on from where the first was; see ``races``."""

    gang_id: str
    attempt: int
    start: int  # tokens the agent had when it began
    num_characters: int  # of text, likewise
    num_sampled: int  # seen of it, those before its start included
    deltas: list[Delta] = field(default_factory=list)
    hint: str = ""
    build_digest: str = ""


@dataclass(slots=True)
class AgentState:
    """One agent over all its attempts. ``open`` until it has voted, was killed or is given up."""

    plan: AgentPlan
    granted: int = 0  # tokens it may sample in all, over its attempts; 0 without a budget
    attempt: int = 1
    gang_id: str = ""  # empty while it has no place
    open: bool = True
    voted: bool = False
    num_sampled: int = 0
    num_losses: int = 0
    num_refusals: int = 0  # by endpoints that were full, since it last ran
    waited_s: float = 0.0  # for a place, since it last ran
    starved: bool = False  # it used up its grant
    killing: str = ""  # the reason it is being stopped for
    build_digest: str = ""
    pending_call: Call | None = None
    proved_answer: str = ""
    text: str = ""  # all it wrote, for a round that builds on it
    answer: str = ""  # what of it is its answer
    segments: list[Segment] = field(default_factory=list)
    num_attempts: int = 1  # begun; the next is one more
    rival: Rival | None = None
    logprob_sum: float = 0.0  # of what it sampled: it breaks ties, wherever it ends

    @property
    def agent_id(self) -> int:
        """Its number."""
        return self.plan.agent_id

    @property
    def placeless(self) -> bool:
        """Whether it needs a place."""
        return self.open and not self.gang_id and self.rival is None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """What tools have shown it, in order."""
        return tuple(picture for segment in self.segments for picture in segment.pictures)

    def record(self, delta: Delta) -> None:
        """Books sampled tokens, so that the agent can go on elsewhere."""
        self.num_sampled += len(delta.token_ids)
        self.logprob_sum += delta.logprob_sum
        self.text += delta.text
        self.answer += delta.text if delta.is_answer else ""
        if not delta.token_ids:
            return
        if self.segments and self.segments[-1].token_ids:
            last = self.segments[-1].token_ids
            self.segments[-1] = Segment(token_ids=last + delta.token_ids)
        else:
            self.segments.append(Segment(token_ids=delta.token_ids))

    def try_again(self) -> None:
        """What its last attempt still says is stale from now on."""
        self.num_attempts += 1
        self.attempt = self.num_attempts

    def forget(self) -> None:
        """Starts over: what it wrote is lost."""
        self.segments.clear()
        self.num_sampled, self.logprob_sum = 0, 0.0
        self.pending_call = None
        self.proved_answer = self.text = self.answer = ""
        self.build_digest = ""

    def order(self) -> AgentOrder:
        """How to start or resume it."""
        return AgentOrder(
            agent_id=self.plan.agent_id,
            attempt=self.attempt,
            temperature=self.plan.temperature,
            hint_index=self.plan.hint_index,
            opening=self.plan.opening,
            max_tokens=self.plan.max_tokens,
            granted=self.granted,
            segments=tuple(self.segments),
            num_sampled=self.num_sampled,
            pending_call_id=self.pending_call.call_id if self.pending_call else "",
            build_digest=self.build_digest,
            mean_logprob=self.logprob_sum / self.num_sampled if self.num_sampled else 0.0,
        )

    def ballot(
        self, answer: str, key: str, round_number: int, event: AgentEnded | None, *, proved: bool
    ) -> Ballot:
        """Its vote; without an event it rests on a proof alone."""
        return Ballot(
            agent_id=self.agent_id,
            attempt=self.attempt,
            answer=answer,
            key=key,
            proved=proved,
            mean_logprob=event.mean_logprob if event else 0.0,
            lowest_confidence=event.lowest_confidence if event else 0.0,
            group_confidence=event.group_confidence if event else 0.0,
            finish=event.finish if event else "STOP",
            num_sampled=self.num_sampled,
            round_number=round_number,
            about=self.plan.about,
        )


@dataclass(slots=True)
class ToolRun:
    """One execution and the agents that wait for it."""

    call: Call
    pictures: tuple[Picture, ...] = ()  # those of the first agent's own that it may mean
    waiting: list[tuple[int, Call]] = field(default_factory=list)
    result: Result | None = None


@dataclass(slots=True)
class ToolRuns:
    """Identical calls of a contemplation run once (single-flight, also after the end)."""

    by_content: dict[tuple[str, str, Picture | None], ToolRun] = field(default_factory=dict)
    by_call_id: dict[str, ToolRun] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @property
    def num_calls(self) -> int:
        """Calls the agents asked for, run or shared."""
        return len(self.seen)

    def join(
        self, agent_id: int, call: Call, pictures: tuple[Picture, ...] = ()
    ) -> tuple[ToolRun, bool]:
        """Adds a call; True if it is the first of its kind and must be run.

        ``pictures`` are those tools have shown this agent, up to the one that it means.
        """
        self.seen.add(call.call_id)
        about = pictures[-1] if pictures else None
        key = (call.name, _canonical(call.arguments_json), about)
        run = self.by_content.get(key)
        first = run is None
        if run is None:
            run = self.by_content[key] = self.by_call_id[call.call_id] = ToolRun(call, pictures)
        run.waiting.append((agent_id, call))
        return run, first

    def unanswered(self) -> list[tuple[int, ToolRun]]:
        """Runs somebody waits for, each with the first agent that does."""
        runs = self.by_call_id.values()
        return [(run.waiting[0][0], run) for run in runs if run.waiting and not run.result]


def _canonical(arguments_json: str) -> str:
    """Arguments that differ in spacing or order only are the same."""
    try:
        return json.dumps(json.loads(arguments_json), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments_json


@dataclass(slots=True)
class Accounts:
    """Tokens by what became of them: generated = used + killed + lost."""

    used: int = 0
    killed: int = 0
    lost: int = 0
    hedged: int = 0  # of the lost ones: two attempts sampled them both
    injected: int = 0
    prompt: int = 0
    cached: int = 0

    def add_prompt(self, count: int, cached: int) -> None:
        """Counts a prompt, of a gang or of a call."""
        self.prompt += count
        self.cached += cached

    @property
    def generated(self) -> int:
        """All tokens the engines sampled."""
        return self.used + self.killed + self.lost
