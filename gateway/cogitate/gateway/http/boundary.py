"""What happens around every HTTP request: who it is for, a span, a deadline, errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from cogitate.gateway.doors import Doors
from cogitate.gateway.http import bodies
from cogitate.gateway.http.connect import PREFIX
from cogitate.gateway.http.problems import response_of, translate
from cogitate.kit import channels, telemetry
from cogitate.kit.errors import Cancelled, CogitateError, InvalidRequest
from opentelemetry import trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_HOST: Final = re.compile(rb"([A-Za-z0-9_.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

# Answered before the body was whole: what is still coming is not read.
_CLOSING: Final = frozenset({408, 413})
_OPEN: Final = frozenset({"/healthz"})  # needs no key; calls of methods are let in by connect.py


class Boundary:
    """Wraps the routes; keeps nothing between requests."""

    def __init__(
        self, app: ASGIApp, doors: Doors, *, deadline_s: float, page: frozenset[str]
    ) -> None:
        """``page`` are the paths that anybody may get."""
        self._app, self._doors, self._deadline_s, self._page = app, doors, deadline_s, page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, whatever happens."""
        if scope["type"] != "http":
            return
        scope["app"] = self  # or Starlette's router answers in plain text
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"]]
        with telemetry.remote_context(headers):
            method = str(scope["method"])
            with telemetry.span(method, kind=trace.SpanKind.SERVER) as span:
                try:
                    _check_host(scope)
                    with (
                        await self._enter(scope, headers),
                        channels.deadline_scope(self._deadline_s),
                    ):
                        async with asyncio.timeout(self._deadline_s):
                            await self._app(scope, receive, watched)
                except asyncio.CancelledError:
                    raise  # the server stops
                except Exception as raised:
                    error = translate(raised)
                    telemetry.fail(span, error)
                    if not begun:
                        await _answer(error, receive, send)
                    elif not isinstance(error, Cancelled):
                        # Half an answer must not look whole: uvicorn cuts the connection.
                        logger.warning("a stream over HTTP was cut: %s", error.reason)
                        raise _Cut(error.reason) from None
                finally:
                    if "endpoint" in scope:
                        name = getattr(scope["endpoint"], "__name__", scope["path"])
                        span.update_name(f"{method} {name}")

    async def _enter(
        self, scope: Scope, headers: list[tuple[str, str]]
    ) -> AbstractContextManager[object]:
        """Lets the caller in before anything looks for the path: nobody can probe for paths."""
        path = scope["path"]
        is_page = path in self._page and scope["method"] in ("GET", "HEAD")
        if is_page or path in _OPEN or path.startswith(PREFIX):
            return nullcontext()
        given = [value for name, value in headers if name == "authorization"]
        if len(given) > 1:
            raise InvalidRequest("there are two Authorization headers")
        await self._doors.prepare(given[0] if given else None)
        return self._doors.enter(given[0] if given else None)


class _Cut(RuntimeError):
    """An answer that had begun cannot be ended as it should."""


def _check_host(scope: Scope) -> None:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        raise InvalidRequest("the Host header must name one host, with or without a port")


async def _answer(error: CogitateError, receive: Receive, send: Send) -> None:
    status, headers, body = response_of(error)
    if "allow" in error.metadata:
        headers.append(("allow", error.metadata["allow"]))
    if status == 401:
        headers.append(("www-authenticate", "Bearer"))
    if status in _CLOSING:
        headers.append(("connection", "close"))
    raw = [(name.encode(), value.encode()) for name, value in headers]
    raw.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if status == 413:
        await bodies.linger(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
