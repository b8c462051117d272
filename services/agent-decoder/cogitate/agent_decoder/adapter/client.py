"""HTTP to one server: streams of chat completions, time limits, retries, and what errors mean.

    reason                     when                                             tried again
    UPSTREAM_DOWN              no connection, or it broke before the first byte     yes
    UPSTREAM_BUSY              429                                                  yes
    UPSTREAM_FAILED            5xx                                                  yes
    UPSTREAM_DENIED            401, 403                                             no
    UPSTREAM_NOT_FOUND         404                                                  no
    UPSTREAM_REFUSED           any other 4xx                                        no
    UPSTREAM_ERROR             an error in a reply of 200                           no
    UPSTREAM_TIMEOUT           first token or next token too late                   no
    UPSTREAM_TRUNCATED         the stream ended without a finish reason             no
    UPSTREAM_MALFORMED         no JSON, no event stream, not of the API's shape     no
    UPSTREAM_MODEL_MISMATCH    the reply names another model                        no

Only what failed before the first chunk is tried again, and only here: nobody retries around it.
Messages of errors say nothing of what the server wrote: that may be anything, the prompt included.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
from cogitate.agent_decoder.adapter.settings import Settings
from cogitate.kit.errors import EngineFailure

Json = dict[str, Any]

# They log every request's address, which is nobody's business.
for _name in ("httpx2", "httpcore2"):
    logging.getLogger(_name).setLevel(logging.WARNING)

MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
# The first pause before another try; doubled each time, with jitter.
FIRST_PAUSE_S = 0.25


class UpstreamError(EngineFailure):
    """The server did not do what was asked. ``status`` is 0 where there is none."""

    def __init__(
        self, reason: str, message: str, *, status: int = 0, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)
        self.status = status
        self.retryable = reason in ("UPSTREAM_DOWN", "UPSTREAM_BUSY", "UPSTREAM_FAILED")


class ChatServer:
    """One server. ``ready`` is False after calls failed in a way that later ones will, too."""

    def __init__(
        self, settings: Settings, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        self.settings, self.ready = settings, True
        self.num_retries = 0
        headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
        self._http = httpx2.AsyncClient(
            headers=headers,
            # Reads are bounded by token gaps, and waiting for a place by the caller's own limits.
            timeout=httpx2.Timeout(settings.connect_s, read=None, pool=None),
            limits=httpx2.Limits(max_connections=settings.max_calls + 1),
            transport=transport,
        )
        self._places = asyncio.Semaphore(settings.max_calls)

    async def close(self) -> None:
        """Closes every connection."""
        await self._http.aclose()

    async def models(self) -> list[Json]:
        """What the server says it serves. Raises UpstreamError."""
        async with self._answer("GET", "/models", None) as response:
            data = (await _json(response)).get("data")
        if not isinstance(data, list) or not all(isinstance(m, dict) for m in data):
            raise _malformed("its list of models is none")
        return data

    async def complete(self, body: Json) -> Json:
        """One completion at once. Raises UpstreamError."""
        async with self._places, self._answer("POST", "/chat/completions", body) as response:
            reply = await _json(response)
        self._check(reply)
        return reply

    async def stream(self, body: Json) -> AsyncGenerator[Json, None]:
        """The chunks of a completion, to its end. Closing the generator ends the call.

        Raises UpstreamError.
        """
        finished = False
        async with self._places, self._answer("POST", "/chat/completions", body) as response:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                reply = await _json(response)  # a server that does not stream, or an error
                self._check(reply)
                raise _malformed("it did not stream though it was asked to")
            limit_s = self.settings.first_token_s
            events = aiter(httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES))
            while (data := await self._next(events, limit_s)) is not None:
                if data == "[DONE]":
                    break
                chunk = _parse(data)
                self._check(chunk)
                finished = finished or _finish(chunk)
                limit_s = self.settings.token_gap_s
                yield chunk
        if not finished:
            raise UpstreamError("UPSTREAM_TRUNCATED", "the model server's stream broke off")

    async def _next(
        self, events: AsyncIterator[httpx2.ServerSentEvent], limit_s: float
    ) -> str | None:
        """The next event's data; None at the end."""
        try:
            async with asyncio.timeout(limit_s):
                event = await anext(events, None)
        except TimeoutError:
            raise _late() from None
        except httpx2.SSEError:
            raise _malformed("its stream is none") from None
        except (httpx2.TransportError, httpx2.DecodingError):
            raise UpstreamError(
                "UPSTREAM_TRUNCATED", "the model server's stream broke off"
            ) from None
        return None if event is None else event.data

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: Json | None
    ) -> AsyncIterator[httpx2.Response]:
        """A response of 200, after as many tries as are allowed. Raises UpstreamError."""
        response = await self._tried(method, path, body)
        try:
            yield response
        finally:
            await response.aclose()

    async def _tried(self, method: str, path: str, body: Json | None) -> httpx2.Response:
        pause_s = FIRST_PAUSE_S
        for left in range(self.settings.max_retries, -1, -1):
            try:
                return await self._try(method, path, body)
            except UpstreamError as error:
                wait_s = error.retry_after_s
                if wait_s is None:
                    wait_s = pause_s * random.uniform(0.5, 1.5)
                too_long = wait_s > self.settings.max_retry_wait_s
                if not error.retryable or not left or too_long:
                    raise
            self.num_retries += 1
            pause_s *= 2
            await asyncio.sleep(wait_s)
        raise AssertionError("unreachable")

    async def _try(self, method: str, path: str, body: Json | None) -> httpx2.Response:
        request = self._http.build_request(method, self.settings.base_url + path, json=body)
        try:
            async with asyncio.timeout(self.settings.first_token_s):
                response = await self._http.send(request, stream=True)
        except TimeoutError:
            raise _late() from None
        except httpx2.HTTPError as error:
            self.ready = False
            kind = type(error).__name__
            raise UpstreamError(
                "UPSTREAM_DOWN", f"the model server cannot be reached ({kind})"
            ) from None
        status = response.status_code
        if status == 200:
            self.ready = True
            return response
        await response.aclose()
        # What is denied stays so until someone mends it; the regular check then sees it.
        self.ready = status not in (401, 403) and self.ready
        raise _refusal(status, response.headers.get("retry-after"))

    def _check(self, reply: Json) -> None:
        """What any reply must not be. Raises UpstreamError."""
        if reply.get("error"):
            raise UpstreamError("UPSTREAM_ERROR", "the model server answered with an error")
        named, asked = reply.get("model"), self.settings.model
        known = {asked, *self.settings.other_names}
        dated = isinstance(named, str) and named.startswith(f"{asked}-")  # OpenAI adds a date
        if named and named not in known and not dated:
            raise UpstreamError(
                "UPSTREAM_MODEL_MISMATCH",
                f"the model server was asked for {asked!r} and answers as another model; if that "
                "is right, name it in --openai-reply-models",
            )


def _finish(chunk: Json) -> bool:
    choices = chunk.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


async def _json(response: httpx2.Response) -> Json:
    size, parts = 0, []
    try:
        async for part in response.aiter_bytes():
            size += len(part)
            if size > MAX_REPLY_BYTES:
                raise _malformed("its reply is too large")
            parts.append(part)
    except (httpx2.TransportError, httpx2.DecodingError):
        raise UpstreamError("UPSTREAM_TRUNCATED", "the model server's reply broke off") from None
    return _parse(b"".join(parts))


def _parse(data: str | bytes) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _malformed("it did not send JSON") from None
    if not isinstance(value, dict):
        raise _malformed("it did not send an object")
    return value


def _malformed(why: str) -> UpstreamError:
    return UpstreamError("UPSTREAM_MALFORMED", f"the model server broke its protocol: {why}")


def _late() -> UpstreamError:
    return UpstreamError("UPSTREAM_TIMEOUT", "the model server took too long")


def _refusal(status: int, retry_after: str | None) -> UpstreamError:
    reasons = {401: "DENIED", 403: "DENIED", 404: "NOT_FOUND", 429: "BUSY"}
    reason = "UPSTREAM_" + reasons.get(status, "FAILED" if status >= 500 else "REFUSED")
    return UpstreamError(
        reason,
        f"the model server answered with status {status}",
        status=status,
        retry_after_s=retry_after_s(retry_after),
    )


def retry_after_s(value: str | None) -> float | None:
    """The header's seconds or date as seconds from now; None if there is none that makes sense."""
    if value is None:
        return None
    try:
        return max(0.0, float(value)) if float(value) < float("inf") else None
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
