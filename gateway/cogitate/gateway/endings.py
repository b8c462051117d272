"""Endings without an answer, as the errors that callers who do not see events are told."""

from __future__ import annotations

from typing import Final

from cogitate.kit.errors import CogitateError
from cogitate.v1 import contemplation_service_pb2 as pb2
from grpc import StatusCode

_CODES: Final = {code.value[0]: code.name for code in StatusCode}


def failure(failed: pb2.Failed) -> CogitateError:
    """The error that a contemplation ended with."""
    retry_s = failed.retry_delay.seconds + failed.retry_delay.nanos / 1e9
    code = _CODES.get(failed.code, "INTERNAL")
    error = error_of(code, failed.reason or "INTERNAL", failed.message)
    error.metadata = dict(failed.metadata)
    error.retryable = failed.retryable
    error.retry_after_s = retry_s if failed.HasField("retry_delay") else None
    return error


def error_of(code: str, reason: str, message: str, *, retryable: bool = False) -> CogitateError:
    """Returns an error with this code and reason."""
    error = CogitateError(message, reason=reason)
    error.code, error.retryable = code, retryable
    return error
