"""The error tree agrees with the wire: codes, reasons, and the way there and back."""

from __future__ import annotations

import grpc
import pytest
from cogitate.kit import channels, errors
from cogitate.v1 import errors_pb2

pytestmark = pytest.mark.unit

CLASSES = [cls for cls in errors.every_class() if cls.__module__ == errors.__name__]


def as_rpc_error(error: errors.CogitateError) -> grpc.aio.AioRpcError:
    """Returns what a client sees of an error."""
    code, message, trailers = channels.to_status(error)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), message)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_has_a_grpc_code_and_a_reason_of_the_enum(
    cls: type[errors.CogitateError],
) -> None:
    assert cls.code in grpc.StatusCode.__members__
    assert f"ERROR_REASON_{cls.reason}" in errors_pb2.ErrorReason.keys()
    assert cls.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "cls", [cls for cls in CLASSES if cls is not errors.Overloaded], ids=lambda cls: cls.__name__
)
def test_an_error_survives_the_wire(cls: type[errors.CogitateError]) -> None:
    sent = cls("no luck", metadata={"owner": "10.0.0.1:1"}, retry_after_s=0.25, field="spec.n")
    got = channels.from_rpc_error(as_rpc_error(sent))
    assert type(got) is cls
    assert (got.code, got.reason, got.retryable) == (sent.code, sent.reason, sent.retryable)
    assert (got.message, got.metadata) == (sent.message, sent.metadata)
    assert (got.retry_after_s, got.field) == (0.25, "spec.n")


def test_an_overridden_reason_survives_and_the_class_follows_the_code() -> None:
    sent = errors.InvalidRequest("what model?", reason="UNKNOWN_MODEL")
    got = channels.from_rpc_error(as_rpc_error(sent))
    assert type(got) is errors.InvalidRequest
    assert got.reason == "UNKNOWN_MODEL"


def test_a_known_reason_decides_the_class_and_the_code_is_kept() -> None:
    sent = errors.Rejected("too slow", reason="EVICTED")
    got = channels.from_rpc_error(as_rpc_error(sent))
    assert type(got) is errors.Evicted
    assert got.code == "RESOURCE_EXHAUSTED"
    assert errors.Evicted.code == "ABORTED"


@pytest.mark.parametrize(
    ("code", "cls", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.NoEndpoint, "UNAVAILABLE"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Rejected, "REJECTED"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.INTERNAL, errors.CogitateError, "INTERNAL"),
        (grpc.StatusCode.DATA_LOSS, errors.CogitateError, "INTERNAL"),
    ],
)
def test_a_bare_status_is_understood_by_its_code_and_its_text_is_dropped(
    code: grpc.StatusCode, cls: type[errors.CogitateError], reason: str
) -> None:
    bare = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret prompt")
    got = channels.from_rpc_error(bare)
    assert type(got) is cls
    assert (got.code, got.reason) == (code.name, reason)
    assert "secret" not in str(got)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"", "text"])
def test_garbage_details_do_not_break_the_reading(garbage: bytes | str) -> None:
    trailers = grpc.aio.Metadata((channels.STATUS_DETAILS_KEY, garbage))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailers, "x")
    assert type(channels.from_rpc_error(error)) is errors.NotFound


def test_another_domains_details_are_not_taken_for_ours() -> None:
    sent = errors.NotOwner("go there", metadata={"owner": "evil:1"})
    code, message, trailers = channels.to_status(sent)
    foreign = tuple((key, value.replace(b"cogitate", b"evilmesh")) for key, value in trailers)
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*foreign), message)
    got = channels.from_rpc_error(error)
    assert got.metadata == {}
    assert not isinstance(got, errors.NotOwner)


@pytest.mark.parametrize("letter", ["a", "é", "\N{OWL}", "\ud800"])
def test_any_error_fits_into_the_trailers(letter: str) -> None:
    huge = errors.InvalidRequest(
        letter * 100_000,
        metadata={f"key{n}": letter * 10_000 for n in range(1000)},
        field=letter * 10_000,
        retry_after_s=1.0,
    )
    _, message, trailers = channels.to_status(huge)
    # As sent: the message percent-encoded, the details in base64.
    size = 3 * len(message.encode()) + sum(len(key) + len(v) * 4 / 3 for key, v in trailers)
    assert size < 8192
