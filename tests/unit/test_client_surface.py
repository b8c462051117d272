"""The SDK's public surface, its imports, and that the two clients are alike."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import cogitate.client
import pytest
from cogitate.client import (
    AsyncClient,
    AsyncContemplationStream,
    Client,
    CogitateError,
    ContemplationStream,
    to_dict,
)
from cogitate.v1 import common_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2

pytestmark = pytest.mark.unit

FOLDER = Path(cogitate.client.__file__).parent
ALLOWED = ("cogitate.client", "cogitate.v1", "grpc", "google.protobuf", "google.rpc")


def test_all_is_sorted_and_is_what_there_is() -> None:
    public = cogitate.client.__all__
    assert sorted(public) == public
    there = {name for name in vars(cogitate.client) if not name.startswith("_")}
    assert set(public) == there


def test_imports_are_grpc_and_protobuf_only() -> None:
    import sys

    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root = name.split(".")[0]
                assert root in sys.stdlib_module_names or name.startswith(ALLOWED), (path, name)


@pytest.mark.parametrize(
    ("sync", "twin"), [(Client, AsyncClient), (ContemplationStream, AsyncContemplationStream)]
)
def test_the_two_clients_are_alike(sync: type, twin: type) -> None:
    def surface(cls: type) -> dict[str, object]:
        return {
            name: tuple(inspect.signature(member).parameters) if callable(member) else type(member)
            for name, member in vars(cls).items()
            if not name.startswith("_")
        }

    assert surface(sync) == surface(twin)


def test_errors_are_one_tree() -> None:
    errors = [
        getattr(cogitate.client, name)
        for name in cogitate.client.__all__
        if isinstance(getattr(cogitate.client, name), type)
        and issubclass(getattr(cogitate.client, name), BaseException)
    ]
    assert 10 == len(errors)
    assert all(issubclass(error, CogitateError) for error in errors)


def test_to_dict_keeps_numbers_and_names() -> None:
    event = pb2.ContemplationEvent(event_number=2**40)
    event.event_time.FromSeconds(0)
    verdict = event.verdict
    verdict.answer = "x"
    verdict.duration.FromMilliseconds(1500)
    verdict.certificate.build_digests["a"] = "b"
    verdict.certificate.ballots.add(agent_id=1, finish_reason=common_pb2.FINISH_REASON_STOP)
    verdict.certificate.evidence.add(image=common_pb2.ImagePart(data=b"123"))
    assert {
        "event_number": 2**40,
        "event_time": "1970-01-01T00:00:00Z",
        "verdict": {
            "answer": "x",
            "duration_s": 1.5,
            "certificate": {
                "ballots": [{"agent_id": 1, "finish_reason": "FINISH_REASON_STOP"}],
                "evidence": [{"image": {"data": {"size_bytes": 3}}}],
                "build_digests": {"a": "b"},
            },
        },
    } == to_dict(event)
    event.verdict.certificate.ballots[0].finish_reason = 99  # type: ignore[assignment]
    assert 99 == to_dict(event)["verdict"]["certificate"]["ballots"][0]["finish_reason"]
