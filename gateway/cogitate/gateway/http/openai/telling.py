"""What of a contemplation an OpenAI client is told, as pieces in order.

A fold over the contemplation's events: the same events give the same pieces, so that a stream can
be told again from the journal. Of one agent the reasoning and the answer are told as they are
written; of several the ballots as they fall, as reasoning, and the answer when it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from cogitate.gateway.endings import error_of, failure
from cogitate.kit.errors import CogitateError
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2


@dataclass(frozen=True)
class Reasoned:
    """Text on the way to the answer."""

    text: str


@dataclass(frozen=True)
class Answered:
    """Text of the answer, and the tokens it was sampled as where that was asked for."""

    text: str
    tokens: tuple[pb2.TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Called:
    """Calls the client is to answer: every agent that is left waits for one of them."""

    calls: tuple[common_pb2.ToolCall, ...]


@dataclass(frozen=True)
class Ended:
    """The answer stands. `reason` is OpenAI's finish reason, stop or length."""

    verdict: common_pb2.Verdict
    reason: str


Piece = Reasoned | Answered | Called | Ended


@dataclass
class Waiting:
    """Which agents wait for what, to know when nobody goes on without the client."""

    calls: dict[str, common_pb2.ToolCall] = field(default_factory=dict)
    agents: dict[int, str] = field(default_factory=dict)  # to the call each waits for, if any

    def feed(self, kind: str, event: pb2.ContemplationEvent) -> bool:
        """Takes an event; returns whether anything changed."""
        if kind == "agent_started":
            self.agents.setdefault(event.agent_started.agent_id, "")
        elif kind == "tool_call_started":
            started = event.tool_call_started
            self.agents[started.agent_id] = started.shared_call_id or started.call.call_id
        elif kind == "awaiting_client":
            self.calls[event.awaiting_client.call.call_id] = event.awaiting_client.call
        elif kind == "tool_call_finished":
            self.agents[event.tool_call_finished.agent_id] = ""
            self.calls.pop(event.tool_call_finished.call_id, None)
        elif kind == "ballot_cast":
            self.agents.pop(event.ballot_cast.ballot.agent_id, None)
        elif kind == "agent_killed":
            self.agents.pop(event.agent_killed.agent.agent_id, None)
        else:
            return False
        return True

    def due(self) -> tuple[common_pb2.ToolCall, ...]:
        """The calls to answer, once every agent waits for one; else none."""
        if not self.agents or not all(call in self.calls for call in self.agents.values()):
            return ()
        return tuple(self.calls.values())


@dataclass
class Telling:
    """Folds events to pieces. Raises CogitateError where the end is no answer.

    The client has answered `num_returned` calls, the first ones: what was told before they are all
    delivered is not told again.
    """

    num_returned: int = 0
    contemplation_id: str = ""
    accepted: pb2.Accepted = field(default_factory=pb2.Accepted)
    accept_time_s: float = 0.0
    answer: str = ""  # as far as it was told
    _waiting: Waiting = field(default_factory=Waiting)
    _returned: set[str] = field(default_factory=set)
    _space: str = ""  # white space that may be the end of the answer
    _answer_tokens: dict[int, int] = field(default_factory=dict)
    # Tokens of each agent's answer that were not told yet, where they are known one by one.
    _untold: dict[int, list[pb2.TokenLogprob]] = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        """Whether one agent writes the answer itself."""
        return self.accepted.agent_count == 1

    def feed(self, event: pb2.ContemplationEvent) -> list[Piece]:
        """Returns what `event` adds; nothing where it was told before."""
        kind = event.WhichOneof("event") or ""
        if kind == "accepted":
            self._accept(event)
        past = self.is_past
        if kind == "tool_call_finished" and event.tool_call_finished.call_id in self._waiting.calls:
            self._returned.add(event.tool_call_finished.call_id)
        # An ending ends it whatever was told.
        heard = not past or kind in ("verdict", "failed", "cancelled")
        pieces = list(self._pieces(kind, event)) if heard else []
        changed = self._waiting.feed(kind, event) and not self.is_past
        if changed and (calls := self._waiting.due()):
            pieces.append(Called(calls))
        return pieces

    @property
    def is_past(self) -> bool:
        """Whether what comes was told in an earlier answer."""
        return len(self._returned) < self.num_returned

    def answer_token_count(self, verdict: common_pb2.Verdict) -> int:
        """How many of the tokens are the answer's; the others went into reasoning."""
        return self._answer_tokens.get(_author(verdict), 0)

    def _pieces(self, kind: str, event: pb2.ContemplationEvent) -> Iterator[Piece]:
        if kind == "deltas":
            yield from self._deltas(event.deltas)
        elif kind == "verdict_delta":
            yield from self._write(event.verdict_delta.text)
        elif kind == "ballot_cast" and not self.is_alone:
            yield Reasoned(_ballot(event.ballot_cast))
        elif kind == "decided" and not self.is_alone:
            yield Reasoned(f"Decided: {event.decided.reason}\n")
        elif kind == "text_retracted":
            self._untold.pop(event.text_retracted.agent_id, None)
            if self.is_alone and self.answer:
                raise _withdrawn()
        elif kind == "verdict":
            yield from self._end(event.verdict)
        elif kind == "failed":
            raise failure(event.failed)
        elif kind == "cancelled":
            raise error_of("CANCELLED", "CANCELLED", "the contemplation was cancelled")

    def _accept(self, event: pb2.ContemplationEvent) -> None:
        self.accepted = event.accepted
        self.contemplation_id = event.accepted.contemplation_id
        self.accept_time_s = event.event_time.seconds + event.event_time.nanos / 1e9

    def _deltas(self, deltas: pb2.AgentDeltas) -> Iterator[Piece]:
        for delta in deltas.deltas:
            if delta.is_answer:
                counts = self._answer_tokens
                counts[delta.agent_id] = counts.get(delta.agent_id, 0) + delta.token_count
                if delta.tokens:
                    self._untold.setdefault(delta.agent_id, []).extend(delta.tokens)
            if self.is_alone and delta.text:
                if delta.is_answer:
                    yield from self._write(delta.text, delta.agent_id)
                else:
                    yield Reasoned(delta.text)

    def _write(self, text: str, agent_id: int = -1) -> Iterator[Piece]:
        """The answer is told without white space around it, as the verdict has it."""
        text = self._space + text
        text = text if self.answer else text.lstrip()
        written = text.rstrip()
        self._space = text[len(written) :]
        if written:
            self.answer += written
            yield Answered(written, self._tell_tokens(agent_id))

    def _tell_tokens(self, agent_id: int) -> tuple[pb2.TokenLogprob, ...]:
        return tuple(self._untold.pop(agent_id, ()))

    def _end(self, verdict: common_pb2.Verdict) -> Iterator[Piece]:
        if not verdict.answer.startswith(self.answer):
            raise _withdrawn()
        if rest := verdict.answer[len(self.answer) :]:
            self.answer = verdict.answer
            yield Answered(rest, self._tell_tokens(_author(verdict)))
        cut = {common_pb2.FINISH_REASON_LENGTH, common_pb2.FINISH_REASON_BUDGET}
        ballots = [b for b in verdict.certificate.ballots if b.answer == verdict.answer]
        short = "UNFINISHED" in verdict.degraded_reasons
        short = short or bool(ballots and all(b.finish_reason in cut for b in ballots))
        yield Ended(verdict, "length" if short else "stop")


def _author(verdict: common_pb2.Verdict) -> int:
    """Returns the agent whose answer the verdict took, or -1."""
    ballots = verdict.certificate.ballots
    return next((one.agent_id for one in ballots if one.answer == verdict.answer), -1)


def _ballot(cast: pb2.BallotCast) -> str:
    ballot = cast.ballot
    if ballot.abstained:
        return f"Agent {ballot.agent_id} has no answer.\n"
    said = " ".join(ballot.answer.split())
    return f"Agent {ballot.agent_id}: {said}\n"


def _withdrawn() -> CogitateError:
    return error_of(
        "ABORTED",
        "TEXT_RETRACTED",
        "text that was streamed has to be withdrawn, since its agent went on at another model; ask "
        "again, or ask without streaming",
        retryable=True,
    )
