"""Errors as HTTP tells them: OpenAI's shape, with reason and metadata for machines beside it."""

from __future__ import annotations

import json
import logging
import uuid
from typing import Any, Final

from cogitate.kit import telemetry
from cogitate.kit.errors import CogitateError, DeadlineExceeded
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

_STATUS: Final[dict[str, int]] = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "FAILED_PRECONDITION": 409,
    "RESOURCE_EXHAUSTED": 503,
    "ABORTED": 503,
    "CANCELLED": 499,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "DEADLINE_EXCEEDED": 504,
}
# Reasons that say more than their code does.
_STATUS_OF_REASON: Final[dict[str, int]] = {
    "BUDGET_EXCEEDED": 429,
    "TENANT_LIMIT": 429,
    "METHOD_NOT_ALLOWED": 405,
    "BODY_TOO_LARGE": 413,
    "REQUEST_TIMED_OUT": 408,
    "UNKNOWN_MODEL": 404,
    "UNSUPPORTED_MEDIA_TYPE": 415,
}
_KIND: Final[dict[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}
_RETRY_STATUS: Final = frozenset({429, 503})


class HttpError(CogitateError):
    """Something only HTTP knows; `reason` decides the status."""

    code = "INVALID_ARGUMENT"


def status_of(error: CogitateError) -> int:
    """Returns the HTTP status that means what `error` does."""
    return _STATUS_OF_REASON.get(error.reason) or _STATUS.get(error.code, 500)


def body_of(error: CogitateError) -> dict[str, Any]:
    """Returns the body an OpenAI client understands, `{"error": {…}}`."""
    status = status_of(error)
    kind = _KIND.get(status, "invalid_request_error" if status < 500 else "server_error")
    told: dict[str, Any] = {
        "message": error.message,
        "type": kind,
        "param": error.field,
        "code": error.reason.lower(),
    }
    if error.metadata:
        told["metadata"] = error.metadata
    if error.retry_after_s is not None:
        told["retry_after_s"] = error.retry_after_s
    return {"error": told}


def response_of(error: CogitateError) -> tuple[int, list[tuple[str, str]], bytes]:
    """Returns status, headers and body. Says when a retry helps, and that none does."""
    status = status_of(error)
    headers = [("content-type", "application/json")]
    if error.retry_after_s is not None:
        headers.append(("retry-after-ms", str(max(1, round(error.retry_after_s * 1000)))))
    if status in _RETRY_STATUS:
        headers.append(("retry-after", str(max(1, round(error.retry_after_s or 1)))))
    if not error.retryable:
        # OpenAI's clients try 408, 409, 429 and 5xx again by themselves unless told not to.
        headers.append(("x-should-retry", "false"))
    return status, headers, json.dumps(body_of(error), ensure_ascii=False).encode()


def translate(raised: BaseException) -> CogitateError:
    """Returns the error a client is told; what nobody foresaw is logged under a number."""
    if isinstance(raised, BaseExceptionGroup):
        return translate(raised.exceptions[0])
    if isinstance(raised, CogitateError):
        return raised
    if isinstance(raised, HTTPException):
        return _of_routing(raised)
    if isinstance(raised, TimeoutError):
        return DeadlineExceeded("the request took longer than this gateway allows")
    incident = uuid.uuid4().hex[:12]
    logger.error("incident %s over HTTP: %s", incident, telemetry.stack_of(raised))
    return CogitateError(f"internal error (incident {incident})", metadata={"incident": incident})


def _of_routing(raised: HTTPException) -> CogitateError:
    if raised.status_code == 405:
        allowed = (raised.headers or {}).get("Allow", "")
        return HttpError(
            f"this path takes {allowed}",
            reason="METHOD_NOT_ALLOWED",
            metadata={"allow": allowed},
        )
    error = HttpError("there is nothing at this path; see /openapi.json")
    error.code, error.reason = "NOT_FOUND", "NOT_FOUND"
    return error
