"""The errors of the mesh: one tree, plain data, no transport.

    CogitateError                 INTERNAL            INTERNAL
    ├── InvalidRequest            INVALID_ARGUMENT    INVALID_REQUEST
    ├── OutOfRange                OUT_OF_RANGE        OUT_OF_RANGE
    ├── NotFound                  NOT_FOUND           NOT_FOUND
    ├── AlreadyExists             ALREADY_EXISTS      ALREADY_EXISTS
    ├── PermissionDenied          PERMISSION_DENIED   PERMISSION_DENIED
    ├── Unauthenticated           UNAUTHENTICATED     UNAUTHENTICATED
    ├── Overloaded                (one of these two)                      retryable
    │   ├── Rejected              RESOURCE_EXHAUSTED  REJECTED            retryable, never queued
    │   └── Evicted               ABORTED             EVICTED             retryable, was queued
    ├── BudgetExceeded            RESOURCE_EXHAUSTED  BUDGET_EXCEEDED
    ├── NoEndpoint                UNAVAILABLE         NO_ENDPOINT         retryable
    ├── NotOwner                  FAILED_PRECONDITION NOT_OWNER           metadata: owner
    ├── NoQuorum                  FAILED_PRECONDITION NO_QUORUM
    ├── DeadlineExceeded          DEADLINE_EXCEEDED   DEADLINE_EXCEEDED
    ├── Cancelled                 CANCELLED           CANCELLED
    ├── EngineFailure             INTERNAL            ENGINE_FAILURE
    └── ToolFailure               INTERNAL            TOOL_FAILURE
        ├── ToolDenied            PERMISSION_DENIED   TOOL_DENIED
        ├── ToolTimedOut          DEADLINE_EXCEEDED   TOOL_TIMED_OUT
        └── ToolCrashed           INTERNAL            TOOL_CRASHED

`code` is the name of a gRPC status code, `reason` a value of the wire enum ErrorReason without its
prefix. The message reaches the caller, so it is written for the caller: no paths, no prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class CogitateError(Exception):
    """An error with a place on the wire.

    `metadata` holds whatever varies in the message; `retry_after_s` says when a retry may help;
    `field` names the offending field of the request, dotted from its root.
    """

    code: str = "INTERNAL"
    reason: str = "INTERNAL"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
        field: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_s = retry_after_s
        self.field = field
        if reason is not None:
            self.reason = reason


class InvalidRequest(CogitateError):
    """The request can never succeed as it stands."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"


class OutOfRange(CogitateError):
    """A position lies outside what exists, such as an event number not yet written."""

    code = "OUT_OF_RANGE"
    reason = "OUT_OF_RANGE"


class NotFound(CogitateError):
    """The named thing does not exist, or not for this tenant."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(CogitateError):
    """The id is taken by something different."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class PermissionDenied(CogitateError):
    """The caller is known and may not."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class Unauthenticated(CogitateError):
    """The caller is not known."""

    code = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class Overloaded(CogitateError):
    """There is no room now. Catch this; raise one of its two kinds."""

    code = "RESOURCE_EXHAUSTED"
    reason = "REJECTED"
    retryable = True


class Rejected(Overloaded):
    """Refused before it was queued; nothing was done."""


class Evicted(Overloaded):
    """Taken out after it was queued; work may have been spent."""

    code = "ABORTED"
    reason = "EVICTED"


class BudgetExceeded(CogitateError):
    """The tokens, the money or the calls that were granted are spent."""

    code = "RESOURCE_EXHAUSTED"
    reason = "BUDGET_EXCEEDED"


class NoEndpoint(CogitateError):
    """Nobody who could serve this is reachable."""

    code = "UNAVAILABLE"
    reason = "NO_ENDPOINT"
    retryable = True


class NotOwner(CogitateError):
    """The epoch is stale; `metadata["owner"]` is the address of the right owner, when known."""

    code = "FAILED_PRECONDITION"
    reason = "NOT_OWNER"


class NoQuorum(CogitateError):
    """The ballots cannot reach a decision any more."""

    code = "FAILED_PRECONDITION"
    reason = "NO_QUORUM"


class DeadlineExceeded(CogitateError):
    """The time the caller gave is over."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Cancelled(CogitateError):
    """The caller, or the outcome, made this unnecessary."""

    code = "CANCELLED"
    reason = "CANCELLED"


class EngineFailure(CogitateError):
    """The engine broke; its state is not to be trusted."""

    code = "INTERNAL"
    reason = "ENGINE_FAILURE"


class ToolFailure(CogitateError):
    """A tool gave no result."""

    code = "INTERNAL"
    reason = "TOOL_FAILURE"


class ToolDenied(ToolFailure):
    """The tool, or this use of it, is not allowed."""

    code = "PERMISSION_DENIED"
    reason = "TOOL_DENIED"


class ToolTimedOut(ToolFailure):
    """The tool used up its time and was stopped."""

    code = "DEADLINE_EXCEEDED"
    reason = "TOOL_TIMED_OUT"


class ToolCrashed(ToolFailure):
    """The tool died."""

    reason = "TOOL_CRASHED"


# What a bare status code means when the peer gave no reason, or one this build does not know.
_BY_CODE: dict[str, type[CogitateError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": OutOfRange,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAUTHENTICATED": Unauthenticated,
    "RESOURCE_EXHAUSTED": Rejected,
    "ABORTED": Evicted,
    "UNAVAILABLE": NoEndpoint,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Cancelled,
}


def every_class() -> Iterator[type[CogitateError]]:
    """Yields the classes of the tree, parents first, in the order they are written."""
    pending = [CogitateError]
    while pending:
        cls = pending.pop(0)
        yield cls
        pending.extend(cls.__subclasses__())


def from_wire(
    code: str,
    reason: str,
    message: str,
    *,
    metadata: Mapping[str, str] | None = None,
    retry_after_s: float | None = None,
    field: str | None = None,
) -> CogitateError:
    """Rebuilds an error from its parts; an unknown reason falls back to the class of the code."""
    by_reason = {cls.reason: cls for cls in every_class() if cls.__module__ == __name__}
    cls = by_reason.get(reason) or _BY_CODE.get(code, CogitateError)
    if not reason and code == "UNAVAILABLE":
        reason = code  # the transport's own verdict; nobody said that there is no endpoint
    error = cls(
        message,
        metadata=metadata,
        retry_after_s=retry_after_s,
        field=field,
        reason=reason or None,
    )
    error.code = code
    return error
