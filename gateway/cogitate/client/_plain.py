"""Messages of the contract as plain dictionaries, for JSON.

Unlike protobuf's own JSON: names stay as in the contract, whole numbers stay numbers, durations are
seconds under a name that ends in `_s`, bytes are told by their length only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def to_dict(message: Message) -> dict[str, Any]:
    """Returns the fields of `message` that are set."""
    plain: dict[str, Any] = {}
    for field, value in message.ListFields():
        key, shown = _field(field, value)
        plain[key] = shown
    return plain


def _field(field: FieldDescriptor, value: Any) -> tuple[str, Any]:
    if hasattr(value, "items"):
        kind = field.message_type
        assert kind is not None, "a map's entries are messages"
        entry = kind.fields_by_name["value"]
        return field.name, {str(k): _value(entry, v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return field.name, [_value(field, one) for one in value]
    name = f"{field.name}_s" if isinstance(value, Duration) else field.name
    return name, _value(field, value)


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Duration):
        return round(value.seconds + value.nanos / 1e9, 6)
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return to_dict(value)
    if isinstance(value, bytes):
        return {"size_bytes": len(value)}
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else int(value)
    if isinstance(value, float):
        return round(value, 6)
    return value
