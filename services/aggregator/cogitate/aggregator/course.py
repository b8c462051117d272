"""The course of one contemplation: its state machine, and what makes numbered events of its emits.

Live and in replay it is the same code, given the same entries: so replay makes the same events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cogitate.aggregator import admission, endings, recording, wire
from cogitate.aggregator.core import messages as m
from cogitate.aggregator.core.contemplation import Contemplation
from cogitate.aggregator.event_log import ENDINGS
from cogitate.aggregator.journal import Record
from cogitate.v1 import contemplation_service_pb2 as pb
from cogitate.v1 import journal_pb2
from google.protobuf.message import DecodeError


@dataclass(frozen=True, slots=True)
class Turn:
    """What one entry led to: effects in order, and the events its emits became."""

    sequence: int  # of the entry, from 1
    entry: journal_pb2.JournalInput
    effects: Sequence[m.Effect]
    events: Sequence[pb.ContemplationEvent]


class Course:
    """Owned by one runner, or by a replay. The first event, Accepted, is not made here."""

    def __init__(self, spec: m.Spec, request: pb.ContemplationSpec, accept_ns: int) -> None:
        self.spec, self.request, self.accept_ns = spec, request, accept_ns
        self.machine = Contemplation(spec)
        self.question = admission.question_of(request)
        self.num_entries = 0
        self.num_events = 1
        self.num_executions = 0
        self._tool_seconds: dict[str, float] = {}
        self._last_ns = accept_ns

    def take(
        self, entry: journal_pb2.JournalInput, item: m.Input | None = None, now_ns: int = 0
    ) -> Turn:
        """Gives an entry to the machine. Live it is dated and counted; times never go back.

        ``item`` is the entry's input where the caller has it already.
        """
        live = bool(now_ns)
        if live:
            entry.input_time.FromNanoseconds(max(now_ns, self._last_ns))
        self._last_ns = entry.input_time.ToNanoseconds()
        effects = self._effects(entry, item)
        events = [self._event(e) for e in effects if isinstance(e, m.Emit)]
        if live:
            entry.event_count = len(events)
        if live and not events and entry.HasField("flushed"):
            return Turn(0, entry, effects, events)  # nothing happened
        self.num_entries += 1
        return Turn(self.num_entries, entry, effects, events)

    def break_off(self, ending: pb.ContemplationEvent, now_ns: int) -> Turn:
        """An ending that the machine did not come to; nothing may be taken after it."""
        self._last_ns = max(now_ns, self._last_ns)
        return Turn(self.num_entries, journal_pb2.JournalInput(), (), [self._number(ending)])

    def _effects(self, entry: journal_pb2.JournalInput, item: m.Input | None) -> list[m.Effect]:
        kind = entry.WhichOneof("input")
        if kind == "started":
            return self.machine.start()
        if kind == "flushed":
            return self.machine.flush()
        if kind == "tool_returned":
            returned = entry.tool_returned
            self._tool_seconds[returned.call_id] = returned.duration.ToNanoseconds() / 1e9
            self.num_executions += returned.executed
        if item is None:
            item = recording.to_input(entry, self.question)
        return self.machine.handle(item) if item is not None else []

    def _event(self, effect: m.Emit) -> pb.ContemplationEvent:
        fields = effect.fields
        if effect.kind in ENDINGS:
            seconds = (self._last_ns - self.accept_ns) / 1e9
            event = endings.build(effect.kind, fields, self.machine, seconds, self.num_executions)
        else:
            if effect.kind == "tool_call_finished":
                seconds = self._tool_seconds.get(fields["call_id"], 0.0)
                fields = {**fields, "seconds": seconds}
            event = wire.to_event(effect.kind, fields)
        return self._number(event)

    def _number(self, event: pb.ContemplationEvent) -> pb.ContemplationEvent:
        self.num_events += 1
        event.event_number = event.first_event_number = self.num_events
        event.event_time.FromNanoseconds(self._last_ns)
        return event


@dataclass(frozen=True, slots=True)
class Replayed:
    """A course played again as far as it was journalled, with all its events from Accepted on."""

    course: Course
    events: Sequence[pb.ContemplationEvent]


def replay(record: Record, entries: Iterable[bytes]) -> Replayed:
    """Plays journalled entries again. Raises Damaged if they cannot be read or do not fit."""
    try:
        acceptance = journal_pb2.JournalAcceptance.FromString(record.acceptance)
        request = pb.ContemplationSpec.FromString(record.spec)
        spec = recording.from_json(m.Spec, acceptance.spec_json)
        course = Course(spec, request, record.accept_ns)
        events = [wire.to_journalled(record.accepted)]
        for raw in entries:
            turn = course.take(journal_pb2.JournalInput.FromString(raw))
            if len(turn.events) != turn.entry.event_count:
                raise wire.Damaged(
                    f"input {turn.sequence} made {len(turn.events)} events and had made "
                    f"{turn.entry.event_count}"
                )
            events += turn.events
    except (DecodeError, ValueError, TypeError, LookupError, struct.error) as error:
        raise wire.Damaged("the journal's inputs of this contemplation are damaged") from error
    return Replayed(course, events)


def first_difference(
    replayed: Sequence[pb.ContemplationEvent], journalled: Sequence[pb.ContemplationEvent]
) -> int:
    """Number of the first event in which a replay differs from the journal; 0 if in none."""
    for number in range(max(len(replayed), len(journalled))):
        if [replayed[number : number + 1]] != [journalled[number : number + 1]]:
            return number + 1
    return 0
