"""Inputs of the state machine as the journal keeps them, and back.

What came as a message is kept as that message, and becomes an input again by the same function.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from cogitate.aggregator import wire
from cogitate.aggregator.core import messages as m
from cogitate.v1 import agent_decoder_service_pb2 as decoder_pb
from cogitate.v1 import journal_pb2 as pb

T = TypeVar("T")

_CLASSES: Mapping[str, type[Any]] = {cls.__name__: cls for cls in get_args(m.Input)}
# What an input was made of, where that is a message.
Source = decoder_pb.DecodeResponse | pb.JournalToolReturned | None


def to_entry(item: m.Input, source: Source = None) -> pb.JournalInput:
    """An input for the journal, without its time and count."""
    if isinstance(source, decoder_pb.DecodeResponse):
        return pb.JournalInput(
            heard=pb.JournalHeard(gang_id=item.gang_id, response=source)  # type: ignore[union-attr]
        )
    if isinstance(source, pb.JournalToolReturned):
        return pb.JournalInput(tool_returned=source)
    if isinstance(item, m.Granted):
        return pb.JournalInput(granted=item.payload)
    if isinstance(item, m.Embedded):
        vector = struct.pack(f"<{len(item.vector)}f", *item.vector)
        embedded = pb.JournalEmbedded(agent_id=item.agent_id, vector=vector, failure=item.failure)
        return pb.JournalInput(embedded=embedded)
    note = pb.JournalNote(kind=type(item).__name__, fields_json=to_json(item))
    return pb.JournalInput(note=note)


def to_input(entry: pb.JournalInput, question: str) -> m.Input | None:
    """The input of an entry; None for those that are no input: the start and flushes."""
    kind = entry.WhichOneof("input")
    if kind == "heard":
        heard = wire.to_inputs(entry.heard.gang_id, entry.heard.response)
        return heard[0] if heard else None
    if kind == "granted":
        return wire.to_granted(entry.granted)
    if kind == "tool_returned":
        returned = entry.tool_returned
        return m.ToolReturned(returned.call_id, wire.to_result(returned.result, question))
    if kind == "embedded":
        packed = entry.embedded.vector
        vector = struct.unpack(f"<{len(packed) // 4}f", packed)
        return m.Embedded(entry.embedded.agent_id, vector, entry.embedded.failure)
    if kind == "note":
        return from_json(_CLASSES[entry.note.kind], entry.note.fields_json)  # type: ignore[no-any-return]
    return None


def to_json(value: Any) -> str:
    """A dataclass of plain values, tuples and frozen sets as JSON. Raises TypeError for others."""
    return json.dumps(asdict(value), default=_sorted)


def from_json(cls: type[T], text: str) -> T:
    """What ``to_json`` made of an instance of ``cls``; fields that are missing have their default.

    Fields the class does not have any more are left out.
    """
    hints = get_type_hints(cls)
    values = {k: _as(hints[k], v) for k, v in json.loads(text).items() if k in hints}
    return cls(**values)


def _sorted(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in the journal")


def _as(hint: Any, value: Any) -> Any:
    """JSON has lists only."""
    if get_origin(hint) is frozenset:
        return frozenset(value)
    return _tuples(value) if isinstance(value, list) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
