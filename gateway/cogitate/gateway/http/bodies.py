"""A request's body: read within limits of size and time, parsed strictly, checked."""

from __future__ import annotations

import asyncio
from typing import Final, TypeVar

import pydantic
import pydantic_core
from cogitate.gateway.core.violations import Violation
from cogitate.gateway.http.problems import HttpError
from cogitate.kit.errors import Cancelled, InvalidRequest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

# A body may take as long as the knob says, and a second more for each of these.
_SLOWEST_BYTES_PER_S: Final = 64 * 1024
_SHOWN: Final = 5
_LINGER_S: Final = 0.5
_LINGER_BYTES: Final = 4 * 1024 * 1024

M = TypeVar("M", bound=pydantic.BaseModel)


async def parse(request: Request, model: type[M], *, max_bytes: int, timeout_s: float) -> M:
    """Reads the body of `request` as `model`. Raises InvalidRequest naming every wrong field."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind.lower() != "application/json":
        raise InvalidRequest("the body must be JSON: send content-type application/json")
    raw = await read(request, max_bytes=max_bytes, timeout_s=timeout_s)
    try:
        return model.model_validate(from_json(raw))
    except pydantic.ValidationError as error:
        raise _invalid(error) from None


def from_json(raw: bytes) -> object:
    """Returns what the JSON text says. Raises InvalidRequest; NaN and Infinity are no JSON."""
    try:
        return pydantic_core.from_json(raw, allow_inf_nan=False)
    except (ValueError, RecursionError):
        raise InvalidRequest(
            "the body is not valid JSON in UTF-8, or is nested too deeply", reason="BAD_JSON"
        ) from None


async def read(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Returns the whole body. Raises HttpError if it is too large or comes too slowly."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > max_bytes:
        raise too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    loop = asyncio.get_running_loop()
    began = loop.time()
    stream = request.stream()
    try:
        while True:
            async with asyncio.timeout_at(began + patience_s(timeout_s, size)):
                part = await anext(stream)
            if (size := size + len(part)) > max_bytes:
                raise too_large(max_bytes)
            parts.append(part)
    except StopAsyncIteration:
        return b"".join(parts)
    except ClientDisconnect:
        raise Cancelled("the client left before its request was whole") from None
    except TimeoutError:
        raise too_slow() from None


async def linger(receive: Receive) -> None:
    """Reads on for a moment: closed at once, the connection would lose the answer on its way."""
    size = 0
    try:
        async with asyncio.timeout(_LINGER_S):
            while size < _LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


def patience_s(timeout_s: float, size_bytes: int) -> float:
    """Returns how long a body of which `size_bytes` came may take, in seconds from its first."""
    return timeout_s + size_bytes / _SLOWEST_BYTES_PER_S


def too_slow() -> HttpError:
    """Returns the error of a body that takes longer."""
    return HttpError("the request's body comes too slowly", reason="REQUEST_TIMED_OUT")


def too_large(max_bytes: int) -> HttpError:
    """Returns the error of a body larger than that."""
    return HttpError(
        f"the body is larger than {max_bytes} bytes; upload images once with UploadBlob, or send "
        "smaller ones",
        reason="BODY_TOO_LARGE",
        metadata={"max_bytes": str(max_bytes)},
    )


def _invalid(error: pydantic.ValidationError) -> InvalidRequest:
    """The names of the fields and what they must be; never what was sent."""
    found = [
        Violation(_path(one["loc"]), _plain(one["msg"]))
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    shown = "; ".join(f"{one.field}: {one.reason}" for one in found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return InvalidRequest(
        shown + more,
        field=found[0].field,
        metadata={"field": found[0].field[:128], "violation_count": str(len(found))},
    )


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for one in loc:
        if isinstance(one, int):
            path += f"[{one}]"
        else:
            path += f".{one[:64]}" if path else one[:64]
    return path or "body"


def _plain(message: str) -> str:
    return "is not a known field" if message.startswith("Extra inputs") else message[:200]
