"""What can go wrong, as a client sees it.

    CogitateError
    ├── InvalidRequest         it can never succeed as it stands; `field` names what is wrong
    ├── NotFound               no such contemplation, image or model here
    ├── AlreadyExists          the request id was used with another request
    ├── PermissionDenied       not known, or not allowed
    ├── Overloaded             no room now, or the budget is spent          retryable if it says so
    ├── Unavailable            nobody answers, or no endpoint is there      retryable
    ├── DeadlineExceeded       no answer in time
    ├── Cancelled              the contemplation was cancelled
    └── ContemplationFailed    it was accepted and ended without an answer  retryable if it says so

`reason` is the name of an ErrorReason of the contract without its prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cogitate.v1 import contemplation_service_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

_STATUS_KEY: Final = "grpc-status-details-bin"
_DOMAIN: Final = "cogitate"


class CogitateError(Exception):
    """Base of all; `message` is a sentence for people."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "UNKNOWN",
        reason: str = "",
        retryable: bool = False,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.reason = reason or code
        self.retryable = retryable
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field = field

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reason={self.reason!r}, message={self.message!r})"


class InvalidRequest(CogitateError):
    """The request can never succeed as it stands."""


class NotFound(CogitateError):
    """There is no such contemplation, image or model here."""


class AlreadyExists(CogitateError):
    """The request id was used with another request."""


class PermissionDenied(CogitateError):
    """The caller is not known, or may not do this."""


class Overloaded(CogitateError):
    """There is no room now, or the budget is spent."""


class Unavailable(CogitateError):
    """Nobody answers, or there is no endpoint that could."""


class DeadlineExceeded(CogitateError):
    """There was no answer in time."""


class Cancelled(CogitateError):
    """The contemplation was cancelled."""


class ContemplationFailed(CogitateError):
    """The contemplation was accepted and ended without an answer."""


_BY_CODE: Final[dict[str, type[CogitateError]]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": PermissionDenied,
    "RESOURCE_EXHAUSTED": Overloaded,
    "ABORTED": Overloaded,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}
_BY_US: Final = "Locally cancelled by application!"
_RETRYABLE_REASONS: Final = ("REJECTED", "EVICTED")


def from_rpc(error: Any, address: str) -> CogitateError:
    """Returns what a failed call (sync or async) means; total, whatever the peer sent."""
    code = error.code().name
    status, info, retry, bad = _details(error.trailing_metadata() or ())
    if code == "CANCELLED" and status is None and error.details() != _BY_US:
        code = "UNAVAILABLE"  # a server that shuts down says so to what comes in its last moment
    reason = info.reason if info is not None else ""
    if status is not None:
        message = status.message
    elif code == "UNAVAILABLE":
        message = (
            f"no mesh answers at {address}; start one with `cogitate up`, "
            "or say where it is with COGITATE_ADDRESS"
        )
    else:
        message = f"the call failed: {code}: {error.details() or 'nothing was said'}"
    return _BY_CODE.get(code, CogitateError)(
        message,
        code=code,
        reason=reason,
        retryable=code == "UNAVAILABLE" or reason in _RETRYABLE_REASONS or retry is not None,
        metadata=dict(info.metadata) if info is not None else None,
        retry_after_s=None
        if retry is None
        else retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9,
        field=bad.field_violations[0].field if bad is not None and bad.field_violations else "",
    )


def from_ending(event: contemplation_service_pb2.ContemplationEvent) -> CogitateError:
    """Returns the error an ending other than a verdict stands for."""
    if event.HasField("cancelled"):
        return Cancelled(
            f"the contemplation was cancelled: {event.cancelled.reason.lower()}",
            code="CANCELLED",
            reason=event.cancelled.reason,
        )
    failed = event.failed
    return ContemplationFailed(
        failed.message,
        code=_CODES.get(failed.code, "UNKNOWN"),
        reason=failed.reason,
        retryable=failed.retryable,
        metadata=failed.metadata,
        retry_after_s=failed.retry_delay.ToNanoseconds() / 1e9
        if failed.HasField("retry_delay")
        else None,
    )


_CODES: Final = dict(
    enumerate(
        "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS"
        " PERMISSION_DENIED RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE"
        " UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED".split()
    )
)


def _details(trailers: Any) -> tuple[Any, Any, Any, Any]:
    status = None
    for key, value in trailers:
        if key == _STATUS_KEY and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                return None, None, None, None
    info = _find(status, error_details_pb2.ErrorInfo)
    if info is not None and info.domain != _DOMAIN:
        info = None
    return (
        status,
        info,
        _find(status, error_details_pb2.RetryInfo),
        _find(status, error_details_pb2.BadRequest),
    )


def _find(status: Any, kind: Any) -> Any:
    for detail in status.details if status is not None else ():
        if detail.Is(kind.DESCRIPTOR):
            message = kind()
            try:
                detail.Unpack(message)
            except DecodeError:
                return None
            return message
    return None
