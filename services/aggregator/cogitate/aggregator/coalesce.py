"""Fewer, longer events of text for a reader that fell behind; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cogitate.v1 import contemplation_service_pb2 as pb

# A message grows to about this much text and not further.
MAX_TEXT_BYTES = 64 * 1024


def coalesce(events: Iterable[pb.ContemplationEvent]) -> Iterator[pb.ContemplationEvent]:
    """Merges deltas that follow each other; the message then covers their numbers, first to last.

    Of each agent, text and token offsets stay in order; so do all events that are no deltas.
    """
    merged: pb.ContemplationEvent | None = None
    size_bytes = 0
    for event in events:
        is_text = event.WhichOneof("event") == "deltas"
        if merged is not None and (not is_text or size_bytes > MAX_TEXT_BYTES):
            yield merged
            merged = None
        if not is_text:
            yield event
        elif merged is None:
            merged = pb.ContemplationEvent()
            merged.CopyFrom(event)
            size_bytes = event.ByteSize()
        else:
            size_bytes += event.ByteSize()
            _append(merged, event)
    if merged is not None:
        yield merged


def _append(merged: pb.ContemplationEvent, event: pb.ContemplationEvent) -> None:
    last = {delta.agent_id: delta for delta in merged.deltas.deltas}
    for delta in event.deltas.deltas:
        before = last.get(delta.agent_id)
        if before is None or not _follows(before, delta):
            last[delta.agent_id] = merged.deltas.deltas.add()
            last[delta.agent_id].CopyFrom(delta)
            continue
        before.token_count += delta.token_count
        before.text += delta.text
        before.logprob_sum += delta.logprob_sum
        before.tokens.extend(delta.tokens)
    merged.event_number = event.event_number
    merged.event_time.CopyFrom(event.event_time)


def _follows(before: pb.AgentTextDelta, delta: pb.AgentTextDelta) -> bool:
    """Whether a delta goes on where another stopped, in the same attempt and role."""
    return (
        before.attempt == delta.attempt
        and before.is_answer == delta.is_answer
        and before.token_offset + before.token_count == delta.token_offset
    )
