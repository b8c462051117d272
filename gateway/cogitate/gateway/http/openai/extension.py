"""Events of the agents as JSON, for clients that ask for them: `cogitate.events`."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from cogitate.v1 import contemplation_service_pb2 as pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

# What is told under "all" only: text as it is written.
_TEXT: Final = frozenset({"deltas", "verdict_delta"})
# Told as the answer itself.
_ENDINGS: Final = frozenset({"verdict", "failed", "cancelled"})


def told(event: pb2.ContemplationEvent, wanted: str) -> dict[str, Any] | None:
    """Returns the event as JSON has it, or None if `wanted` (none, decisions, all) is less."""
    kind = event.WhichOneof("event")
    if wanted == "none" or kind is None or kind in _ENDINGS:
        return None
    if kind in _TEXT and wanted != "all":
        return None
    # By hand where there are thousands: `plain` takes ten times as long.
    content = _deltas(event.deltas) if kind == "deltas" else plain(getattr(event, kind))
    return {"type": kind, "event_number": event.event_number, kind: content}


def _deltas(deltas: pb2.AgentDeltas) -> dict[str, Any]:
    return {
        "deltas": [
            {
                "agent_id": one.agent_id,
                "attempt": one.attempt,
                "token_offset": one.token_offset,
                "token_count": one.token_count,
                "text": one.text,
                "is_answer": one.is_answer,
                "logprob_sum": one.logprob_sum,
                **({"tokens": [plain(token) for token in one.tokens]} if one.tokens else {}),
            }
            for one in deltas.deltas
        ]
    }


def plain(value: Any) -> Any:
    """Returns a message's fields; times in seconds, enumerations by name.

    Numbers and flags are there when they are zero, too; what is empty is left out.
    """
    if isinstance(value, Duration | Timestamp):
        return value.seconds + value.nanos / 1e9
    if isinstance(value, Message):
        zeros = {f.name: f.default_value for f in value.DESCRIPTOR.fields if _is_number(f)}
        return zeros | {field.name: _field(field, one) for field, one in value.ListFields()}
    return value


@cache
def _is_number(field: FieldDescriptor) -> bool:
    """Whether it is a number or a flag that is always there."""
    is_plain = field.message_type is None and field.enum_type is None and not field.is_repeated
    return is_plain and not field.has_presence and not isinstance(field.default_value, str | bytes)


def _field(field: FieldDescriptor, content: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): plain(one) for key, one in content.items()}
    if field.is_repeated:
        return [_one(field, one) for one in content]
    return _one(field, content)


def _one(field: FieldDescriptor, content: Any) -> Any:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(content)
        return known.name if known else content
    return None if isinstance(content, bytes) else plain(content)
