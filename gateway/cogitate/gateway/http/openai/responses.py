"""Responses: pieces of a contemplation as one object, or as typed events in order.

Everything is a function of the contemplation's spec and its journalled events, so a response can be
told again from the journal, from any event on. `sequence_number` rises and has gaps: it is the
number of the contemplation's event times STRIDE, and the place among what tells of it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cogitate.gateway.http.openai.asking import call_id
from cogitate.gateway.http.openai.summary import counts, summary
from cogitate.gateway.http.openai.telling import (
    Answered,
    Called,
    Ended,
    Piece,
    Reasoned,
    Telling,
)
from cogitate.kit.errors import CogitateError, NotFound
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

STRIDE: Final = 1024
_ID: Final = re.compile(r"resp_([0-9a-f]{32})(?:_([0-9]{1,4}))?")
_EFFORTS: Final = {
    common_pb2.EFFORT_INSTANT: "low",
    common_pb2.EFFORT_THINKING: "medium",
    common_pb2.EFFORT_CONTEMPLATING: "high",
}
_dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

Event = dict[str, Any]


def response_id(contemplation_id: str, num_returned: int) -> str:
    """Returns a response's id; one that goes on behind results of tools counts these."""
    suffix = f"_{num_returned}" if num_returned else ""
    return f"resp_{uuid.UUID(contemplation_id).hex}{suffix}"


def parse_response_id(text: str) -> tuple[str, int]:
    """Returns the contemplation and how many results came before. Raises NotFound."""
    found = _ID.fullmatch(text)
    if not found:
        raise NotFound("there is no response with this id", field="response_id")
    return str(uuid.UUID(found[1])), int(found[2] or 0)


@dataclass
class Item:
    """An output item that is being written."""

    body: dict[str, Any]
    text: list[str] = field(default_factory=list)


@dataclass
class Response:
    """Folds pieces to typed events and to the object they add up to."""

    spec: pb2.ContemplationSpec
    telling: Telling
    metadata: dict[str, str] | None = None
    background: bool = False
    status: str = "in_progress"
    output: list[dict[str, Any]] = field(default_factory=list)
    verdict: common_pb2.Verdict | None = None
    error: CogitateError | None = None
    reason: str = ""
    _item: Item | None = None

    @property
    def id(self) -> str:
        """The response's id."""
        return response_id(self.telling.contemplation_id, self.telling.num_returned)

    def begin(self) -> list[Event]:
        """The events a response opens with."""
        told = self.whole()
        return [
            {"type": "response.created", "response": told},
            {"type": "response.in_progress", "response": told},
        ]

    def take(self, piece: Piece) -> list[Event]:
        """Returns the events that tell of a piece."""
        match piece:
            case Reasoned(text):
                return self._write("reasoning", text)
            case Answered(text):
                return self._write("message", text)
            case Called(calls):
                return [*self._close(), *self._call(calls), *self._finish("completed")]
            case Ended(verdict, reason):
                self.verdict, self.reason = verdict, reason
                opening = [] if self.telling.answer else self._write("message", "")
                status = "incomplete" if reason == "length" else "completed"
                return [*opening, *self._close(), *self._finish(status)]

    def fail(self, error: CogitateError) -> list[Event]:
        """Returns the last events of a response that failed; the last makes clients raise."""
        self.error = error
        cancelled = error.reason in ("REQUESTED", "CANCELLED", "DISCONNECTED")
        events = [*self._close(), *self._finish("cancelled" if cancelled else "failed")]
        told = {"message": error.message, "type": "server_error", "code": error.reason.lower()}
        return [*events, {"type": "error", **told, "param": None, "error": told}]

    def whole(self) -> dict[str, Any]:
        """The response as an object."""
        spec, sampling, telling = self.spec, self.spec.sampling_params, self.telling
        parent = spec.parent_contemplation_id
        cut = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        error = self.error and {"code": "server_error", "message": self.error.message}
        told: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(telling.accept_time_s),
            "status": self.status,
            "background": self.background,
            "error": error,
            "incomplete_details": cut,
            "instructions": None,
            "max_output_tokens": _given(sampling, "max_tokens"),
            "metadata": self.metadata or {},
            "model": telling.accepted.model or spec.model,
            "output": list(self.output),
            "parallel_tool_calls": True,
            "previous_response_id": response_id(parent, 0) if parent else None,
            "reasoning": {"effort": _EFFORTS.get(spec.effort), "summary": "auto"},
            "store": True,
            "temperature": _given(sampling, "temperature"),
            "text": {"format": _format(spec)},
            "tool_choice": "auto",
            "tools": [_tool(tool) for tool in spec.client_tools],
            "top_p": _given(sampling, "top_p"),
            "truncation": "disabled",
            "usage": None,
            "user": None,
        }
        if self.verdict is not None:
            told["usage"] = _usage(telling, self.verdict)
            told["cogitate"] = summary(telling, self.verdict)
        return told

    def _write(self, kind: str, text: str) -> list[Event]:
        events: list[Event] = []
        if self._item is None or self._item.body["type"] != kind:
            events += [*self._close(), *self._open(kind)]
        assert self._item is not None
        self._item.text.append(text)
        if text:
            events.append(self._part_event(f"{_TEXT[kind]}.delta", delta=text))
        return events

    def _open(self, kind: str) -> list[Event]:
        prefix = {"reasoning": "rs", "message": "msg"}[kind]
        body: dict[str, Any] = {"id": self._item_id(prefix), "type": kind, "status": "in_progress"}
        if kind == "message":
            body |= {"role": "assistant", "content": []}
        else:
            body |= {"summary": []}
        self._item = Item(body)
        return [
            {"type": "response.output_item.added", **self._at(), "item": dict(body)},
            self._part_event(f"{_PART[kind]}.added", part=_part(kind, "")),
        ]

    def _close(self) -> list[Event]:
        if (item := self._item) is None:
            return []
        kind, text = item.body["type"], "".join(item.text)
        part = _part(kind, text)
        events = [
            self._part_event(f"{_TEXT[kind]}.done", text=text),
            self._part_event(f"{_PART[kind]}.done", part=part),
        ]
        at = self._at()
        whole = item.body | {"status": "completed", _PARTS[kind]: [part]}
        self._item = None
        self.output.append(whole)
        return [*events, {"type": "response.output_item.done", **at, "item": whole}]

    def _call(self, calls: Sequence[common_pb2.ToolCall]) -> list[Event]:
        events: list[Event] = []
        for call in calls:
            outer = call_id(self.telling.contemplation_id, call.call_id)
            at = {**self._at(), "item_id": f"fc{outer.removeprefix('call')}"}
            body = {
                "id": at["item_id"], "type": "function_call", "call_id": outer,
                "name": call.name, "status": "completed",
            }  # fmt: skip
            empty = body | {"status": "in_progress", "arguments": ""}
            whole = body | {"arguments": call.arguments_json}
            index = self._at()
            kind = "response.function_call_arguments"
            events += [
                {"type": "response.output_item.added", **index, "item": empty},
                {"type": f"{kind}.delta", **at, "delta": call.arguments_json},
                {"type": f"{kind}.done", **at, "name": call.name, "arguments": call.arguments_json},
                {"type": "response.output_item.done", **index, "item": whole},
            ]
            self.output.append(whole)
        return events

    def _finish(self, status: str) -> list[Event]:
        self.status = status
        told = "failed" if status == "cancelled" else status
        return [{"type": f"response.{told}", "response": self.whole()}]

    def _part_event(self, kind: str, **fields: Any) -> Event:
        assert self._item is not None
        body = self._item.body
        place = "content_index" if body["type"] == "message" else "summary_index"
        event = {"type": f"response.{kind}", **self._at(), "item_id": body["id"], place: 0}
        if kind.startswith("output_text"):
            event["logprobs"] = []
        return event | fields

    def _at(self) -> Event:
        return {"output_index": len(self.output)}

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self.id.removeprefix('resp_')}_{len(self.output)}"


_TEXT: Final = {"message": "output_text", "reasoning": "reasoning_summary_text"}
_PART: Final = {"message": "content_part", "reasoning": "reasoning_summary_part"}
_PARTS: Final = {"message": "content", "reasoning": "summary"}


def frames(events: Sequence[Event], event_number: int, after: int = -1, *, first: int = 0) -> bytes:
    """Returns the frames of the typed events that come after a sequence number."""
    told = []
    for i, event in enumerate(events):
        number = event_number * STRIDE + first + i
        if number > after:
            kind = event["type"]
            told.append(f"event: {kind}\ndata: {_dumps(event | {'sequence_number': number})}\n\n")
    return "".join(told).encode()


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "summary_text", "text": text}


def _given(sampling: common_pb2.SamplingParams, name: Any) -> Any:
    return getattr(sampling, name) if sampling.HasField(name) else None


def _format(spec: pb2.ContemplationSpec) -> dict[str, Any]:
    if not spec.response_json_schema:
        return {"type": "text"}
    schema = json.loads(spec.response_json_schema)
    return {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}


def _tool(tool: common_pb2.ToolSpec) -> dict[str, Any]:
    parameters = json.loads(tool.parameters_json_schema) if tool.parameters_json_schema else {}
    return {
        "type": "function", "name": tool.name, "description": tool.description,
        "parameters": parameters, "strict": False,
    }  # fmt: skip


def _usage(telling: Telling, verdict: common_pb2.Verdict) -> dict[str, Any]:
    prompt, cached, sampled, reasoning = counts(telling, verdict)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": sampled,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + sampled,
    }
