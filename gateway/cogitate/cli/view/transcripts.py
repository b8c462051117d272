"""What each agent of a contemplation wrote, and whether two contemplations wrote the same. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cogitate.v1 import contemplation_service_pb2 as pb2


@dataclass
class Transcript:
    """An agent's pieces of text by the offset of their first token, and how many tokens it has."""

    pieces: dict[int, tuple[int, str]] = field(default_factory=dict)

    def retract(self, token_offset: int) -> None:
        """What was written from there on is withdrawn."""
        self.pieces = {at: piece for at, piece in self.pieces.items() if at < token_offset}

    @property
    def num_tokens(self) -> int:
        """Tokens whose text was shown."""
        return max((at + count for at, (count, _) in self.pieces.items()), default=0)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for _, (_, text) in sorted(self.pieces.items()))


@dataclass
class Transcripts:
    """A contemplation as its events tell it."""

    agents: dict[int, Transcript] = field(default_factory=dict)
    stopped: set[int] = field(default_factory=set)
    answer: str = ""
    ending: str = ""
    builds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, events: Iterable[pb2.ContemplationEvent]) -> Transcripts:
        """Takes the events to the ending."""
        found = cls()
        for event in events:
            found.take(event)
        return found

    def take(self, event: pb2.ContemplationEvent) -> None:
        """Takes one event."""
        kind = event.WhichOneof("event")
        if kind == "deltas":
            for delta in event.deltas.deltas:
                agent = self.agents.setdefault(delta.agent_id, Transcript())
                agent.pieces[delta.token_offset] = (delta.token_count, delta.text)
        elif kind == "text_retracted":
            agent = self.agents.setdefault(event.text_retracted.agent_id, Transcript())
            agent.retract(event.text_retracted.token_offset)
        elif kind == "agent_killed":
            self.stopped.add(event.agent_killed.agent.agent_id)
        elif kind == "verdict":
            self.answer, self.ending = event.verdict.answer, kind
            self.builds = dict(event.verdict.certificate.build_digests)
        elif kind in ("failed", "cancelled"):
            self.ending = kind


@dataclass(frozen=True, slots=True)
class Row:
    """One agent: its tokens then and now, and whether they are the same as far as both go."""

    agent_id: int
    before: int
    after: int
    same: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """What a replay showed."""

    rows: Sequence[Row]
    same: bool
    notes: Sequence[str]


def compare(before: Transcripts, after: Transcripts) -> Agreement:
    """Agent by agent; one that was stopped, or never began, in one of the two may have less."""
    rows = [_row(agent_id, before, after) for agent_id in sorted({*before.agents, *after.agents})]
    is_same_answer = (before.ending, before.answer) == (after.ending, after.answer)
    notes = [f"the answer is {'the same' if is_same_answer else 'another one'}: {after.answer!r}"]
    if not set(before.builds.values()) & set(after.builds.values()):
        notes.append("the builds differ: other code or weights, or another kind of machine")
    return Agreement(rows, is_same_answer and all(row.same for row in rows), notes)


def _row(agent_id: int, before: Transcripts, after: Transcripts) -> Row:
    one, other = (each.agents.get(agent_id, Transcript()) for each in (before, after))
    may_differ = not (one.pieces and other.pieces) or agent_id in before.stopped | after.stopped
    shorter, longer = sorted((one.text, other.text), key=len)
    same = longer.startswith(shorter) if may_differ else one.text == other.text
    return Row(agent_id, one.num_tokens, other.num_tokens, same)
