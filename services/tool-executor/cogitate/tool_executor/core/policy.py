"""Decides whether a call may run, and within which limits.

A tool outside the request's list is refused however well the model asked, and whether or not it
exists; the list is the request's, so nothing a tool or an image says can widen it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cogitate.kit.errors import InvalidRequest, NotFound, ToolDenied
from cogitate.tool_executor.core.types import Call, Tool

MAX_ID_CHARS = 128
MAX_ALLOWED_TOOLS = 128
MAX_IMAGES = 64
TOOL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may take, and what it takes unless it says otherwise."""

    default_timeout_s: float
    max_timeout_s: float
    default_output_bytes: int
    max_output_bytes: int


@dataclass(frozen=True, slots=True)
class Grant:
    """A call that may run, with the limits that hold for it."""

    tool: Tool
    timeout_s: float
    max_output_bytes: int


def admit(
    call: Call,
    tools: Mapping[str, Tool],
    limits: Limits,
    *,
    why_not: Callable[[str], str] = lambda name: "",
) -> Grant:
    """Returns the grant of a call. Limits asked for beyond the maximum are lowered to it.

    Raises InvalidRequest, ToolDenied if the tool is not in the request's list, and NotFound if it
    is but there is no such tool, for the reason that `why_not` knows.
    """
    _check(call)
    if call.tool_name not in call.allowed_tools:
        raise ToolDenied(
            f"the tool {call.tool_name!r} is not allowed in this request",
            metadata={"tool": call.tool_name},
            field="call.name",
        )
    tool = tools.get(call.tool_name)
    if tool is None:
        raise NotFound(
            why_not(call.tool_name)
            or f"there is no tool {call.tool_name!r}; there is: {', '.join(sorted(tools))}",
            metadata={"tool": call.tool_name},
            field="call.name",
        )
    timeout_s = limits.default_timeout_s if call.timeout_s is None else call.timeout_s
    asked = call.max_output_bytes
    max_output_bytes = limits.default_output_bytes if asked is None else asked
    return Grant(
        tool,
        min(timeout_s, limits.max_timeout_s),
        min(max_output_bytes, limits.max_output_bytes),
    )


def _check(call: Call) -> None:
    for name, value in (
        ("contemplation_id", call.contemplation_id),
        ("call.call_id", call.call_id),
    ):
        if not 1 <= len(value) <= MAX_ID_CHARS:
            raise InvalidRequest(f"{name} must have 1 to {MAX_ID_CHARS} characters", field=name)
    if not TOOL_NAME.fullmatch(call.tool_name):
        raise InvalidRequest(
            "the tool's name must be 1 to 64 letters, digits, dots, dashes or underscores",
            field="call.name",
        )
    if len(call.allowed_tools) > MAX_ALLOWED_TOOLS:
        raise InvalidRequest(
            f"at most {MAX_ALLOWED_TOOLS} tools can be allowed", field="allowed_tools"
        )
    if len(call.images) > MAX_IMAGES:
        raise InvalidRequest(f"at most {MAX_IMAGES} images can be given", field="images")
    if call.timeout_s is not None and not call.timeout_s > 0:
        raise InvalidRequest("the timeout must be above zero", field="timeout")
    if call.max_output_bytes is not None and call.max_output_bytes < 1:
        raise InvalidRequest("max_output_bytes must not be negative", field="max_output_bytes")
    if call.owner_epoch < 0:
        raise InvalidRequest("owner_epoch must not be negative", field="owner_epoch")


def fingerprint(call: Call) -> bytes:
    """Returns a digest of all that the result depends on, to tell a retry from another call.

    Arguments count as they are written: a retry is the same bytes.
    """
    images = [
        (image.digest, image.box and (image.box.x0, image.box.y0, image.box.x1, image.box.y1))
        for image in call.images
    ]
    tables = [(table.name, table.columns, table.rows) for table in call.tables]
    parts = json.dumps([call.tool_name, call.arguments_json, images, tables])
    return hashlib.sha256(parts.encode()).digest()
