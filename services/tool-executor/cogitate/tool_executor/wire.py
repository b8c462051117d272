"""Between cogitate.v1 and the domain."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cogitate.kit.errors import InvalidRequest
from cogitate.tool_executor.core.types import Box, Call, Execution, Image, Outcome, Table, Tool
from cogitate.v1 import common_pb2
from cogitate.v1 import tool_executor_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def to_call(request: pb.ExecuteRequest) -> Call:
    """Reads a request. Raises InvalidRequest if an image is not given by digest and box."""
    return Call(
        contemplation_id=request.contemplation_id,
        call_id=request.call.call_id,
        tool_name=request.call.name,
        arguments_json=request.call.arguments_json,
        allowed_tools=frozenset(request.allowed_tools),
        images=tuple(
            _to_image(image, f"images[{index}]") for index, image in enumerate(request.images)
        ),
        tables=tuple(
            Table(table.name, tuple(table.columns), tuple(tuple(row.cells) for row in table.rows))
            for table in request.tables
        ),
        timeout_s=(
            request.timeout.seconds + request.timeout.nanos / 1e9
            if request.HasField("timeout")
            else None
        ),
        max_output_bytes=request.max_output_bytes or None,
        owner_epoch=request.owner_epoch,
    )


def _to_image(image: common_pb2.ImagePart, field: str) -> Image:
    if image.data or not _DIGEST.fullmatch(image.digest):
        raise InvalidRequest("an image must be given by its digest", field=f"{field}.digest")
    box = None
    if image.HasField("box"):
        try:
            box = Box(
                image.box.x0_permille,
                image.box.y0_permille,
                image.box.x1_permille,
                image.box.y1_permille,
            )
        except ValueError:
            raise InvalidRequest(
                "a box needs 0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000", field=f"{field}.box"
            ) from None
    return Image(image.digest, box, image.width_px, image.height_px)


def from_event(event: str | Execution) -> pb.ExecuteResponse:
    """Writes a piece of output, or the end of a call."""
    if isinstance(event, str):
        return pb.ExecuteResponse(output_text=event)
    return from_execution(event)


def from_execution(execution: Execution) -> pb.ExecuteResponse:
    """Writes the end of a call."""
    return pb.ExecuteResponse(
        finished=pb.ExecutionFinished(
            result=_from_outcome(execution.call_id, execution.tool_name, execution.outcome),
            provenance=pb.Provenance(
                tool=f"{execution.tool_name}@{execution.tool_version}",
                origin=execution.origin,
                duration=_duration(execution.duration_s),
                replayed=execution.replayed,
            ),
        )
    )


def _from_outcome(call_id: str, tool_name: str, outcome: Outcome) -> common_pb2.ToolResult:
    parts = [common_pb2.Part(text=outcome.text)] if outcome.text else []
    parts += [common_pb2.Part(image=_from_image(image)) for image in outcome.images]
    result = common_pb2.ToolResult(
        call_id=call_id,
        parts=parts,
        is_error=outcome.is_error,
        truncated=outcome.is_truncated,
    )
    if outcome.proved:
        result.proof.answer = outcome.proved
        result.proof.tool_name = tool_name
        result.proof.claim = outcome.claim
    return result


def _from_image(image: Image) -> common_pb2.ImagePart:
    part = common_pb2.ImagePart(
        digest=image.digest, width_px=image.width_px, height_px=image.height_px
    )
    if image.box is not None:
        part.box.x0_permille = image.box.x0
        part.box.y0_permille = image.box.y0
        part.box.x1_permille = image.box.x1
        part.box.y1_permille = image.box.y1
    return part


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def from_tools(tools: Mapping[str, Tool]) -> pb.ListToolsResponse:
    """Writes the list of tools, ordered by name."""
    return pb.ListToolsResponse(
        tools=[
            common_pb2.ToolSpec(
                name=name,
                description=tools[name].description,
                parameters_json_schema=json.dumps(tools[name].schema, separators=(",", ":")),
            )
            for name in sorted(tools)
        ]
    )
