"""Connect and gRPC-Web by the library's own client: the services, answers and errors of gRPC."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import json
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from cogitate.gateway.core.tenants import Grant
from cogitate.gateway.keys import KeyStore
from cogitate.kit.errors import Rejected
from cogitate.v1 import common_pb2, gateway_service_pb2
from cogitate.v1 import contemplation_service_pb2 as pb2
from connectrpc.client import ConnectClient
from connectrpc.code import Code
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.errors import ConnectError
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.protocol import ProtocolType
from google.protobuf import json_format, message_factory
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from tests.fakes.aggregator import Break, Raise, Step
from tests.fakes.front import Mesh, endless, happy, mesh

pytestmark = pytest.mark.contract

SERVICES = (
    pb2.DESCRIPTOR.services_by_name["ContemplationService"],
    gateway_service_pb2.DESCRIPTOR.services_by_name["GatewayService"],
)
METHODS = {one.name: one for service in SERVICES for one in service.methods}
DIALECTS = [
    pytest.param(ProtocolType.CONNECT, google_protobuf_json_codec, id="connect-json"),
    pytest.param(ProtocolType.CONNECT, google_protobuf_binary_codec, id="connect-proto"),
    pytest.param(ProtocolType.GRPC_WEB, google_protobuf_binary_codec, id="grpc-web"),
]
JSON = {"content-type": "application/json"}


def info(name: str) -> MethodInfo[Any, Any]:
    method = METHODS[name]
    request, response = (
        message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)
    )
    kinds = {
        (False, False): StreamType.UNARY,
        (True, False): StreamType.CLIENT_STREAM,
        (False, True): StreamType.SERVER_STREAM,
    }
    return MethodInfo(
        name=name,
        service_name=method.containing_service.full_name,
        input=request,
        output=response,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=kinds[(method.client_streaming, method.server_streaming)],
    )


def path(name: str) -> str:
    return f"/{METHODS[name].containing_service.full_name}/{name}"


def asks(text: str = "What?") -> pb2.ContemplateRequest:
    request = pb2.ContemplateRequest()
    request.spec.conversation.add(role=common_pb2.ROLE_USER).parts.add(text=text)
    return request


@asynccontextmanager
async def front(script: Any = happy, **knobs: Any) -> AsyncIterator[Mesh]:
    async with mesh(script, http_listen="127.0.0.1:0", **knobs) as m:
        yield m


@asynccontextmanager
async def client(m: Mesh, protocol: Any, codec: Any) -> AsyncIterator[ConnectClient]:
    async with ConnectClient(f"http://{m.http}", protocol=protocol, codec=codec()) as made:
        yield made


def details(error: ConnectError) -> dict[str, Any]:
    """The google.rpc details of an error, by kind."""
    found: dict[str, Any] = {}
    for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest):
        for one in error.details:
            if one.type_name == kind.DESCRIPTOR.full_name:
                found[kind.DESCRIPTOR.name] = kind.FromString(one.message_bytes)
    return found


@pytest.mark.parametrize(("protocol", "codec"), DIALECTS)
async def test_every_kind_of_method(protocol: Any, codec: Any) -> None:
    async with front() as m, client(m, protocol, codec) as c:
        served = await c.execute_unary(request=gateway_service_pb2.ListModelsRequest(),
                                       method=info("ListModels"))  # fmt: skip
        assert [one.name for one in served.models] == ["mini"]

        stream = c.execute_server_stream(request=asks(), method=info("Contemplate"))
        events = [one.event async for one in stream]
        assert events[-1].verdict.answer == "42."
        reference = [one.event async for one in m.contemplation.Contemplate(asks())]
        for one in (*events, *reference):
            one.ClearField("event_time")
        events[0].accepted.ClearField("contemplation_id")
        reference[0].accepted.ClearField("contemplation_id")
        assert events == reference

        async def chunks() -> AsyncIterator[gateway_service_pb2.UploadBlobRequest]:
            for part in (PNG[:20], PNG[20:]):
                yield gateway_service_pb2.UploadBlobRequest(chunk=part)

        stored = await c.execute_client_stream(request=chunks(), method=info("UploadBlob"))
        assert stored.image.digest


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize(("protocol", "codec"), DIALECTS)
async def test_errors_are_those_of_grpc(protocol: Any, codec: Any) -> None:
    async with front() as m, client(m, protocol, codec) as c:
        with pytest.raises(ConnectError) as empty:
            async for _ in c.execute_server_stream(
                request=pb2.ContemplateRequest(), method=info("Contemplate")
            ):
                pass
        with pytest.raises(ConnectError) as unknown:
            await c.execute_unary(
                request=pb2.GetContemplationRequest(contemplation_id="nobody"),
                method=info("GetContemplation"),
            )
        with pytest.raises(grpc.aio.AioRpcError) as same:
            await m.contemplation.GetContemplation(
                pb2.GetContemplationRequest(contemplation_id="nobody")
            )
    assert empty.value.code is Code.INVALID_ARGUMENT
    assert details(empty.value)["ErrorInfo"].domain == "cogitate"
    assert details(empty.value)["BadRequest"].field_violations
    assert unknown.value.code is Code[same.value.code().name]
    assert unknown.value.message == same.value.details()


def breaking(request: pb2.ContemplateRequest) -> Sequence[Step]:
    return (*list(happy(request))[:2], Break(grpc.StatusCode.INTERNAL))


@pytest.mark.parametrize(("protocol", "codec"), DIALECTS)
async def test_a_stream_that_fails_in_its_middle_raises(protocol: Any, codec: Any) -> None:
    async with front(breaking) as m, client(m, protocol, codec) as c:
        seen = 0
        with pytest.raises(ConnectError) as failed:
            async for _ in c.execute_server_stream(request=asks(), method=info("Contemplate")):
                seen += 1
    assert seen == 2
    assert failed.value.code is Code.INTERNAL


async def test_a_client_that_leaves_ends_its_contemplation() -> None:
    async with front(endless) as m:
        async with client(m, ProtocolType.CONNECT, google_protobuf_json_codec) as c:
            stream: Any = c.execute_server_stream(request=asks(), method=info("Contemplate"))
            async for _ in stream:
                break
            await stream.aclose()
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 5)


async def test_the_clients_deadline_holds() -> None:
    async with (
        front(endless) as m,
        client(m, ProtocolType.CONNECT, google_protobuf_binary_codec) as c,
    ):
        with pytest.raises(ConnectError) as late:
            async for _ in c.execute_server_stream(
                request=asks(), method=info("Contemplate"), timeout_ms=300
            ):
                pass
        assert late.value.code is Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 5)
        assert 0 < m.aggregator.deadlines_s[0] <= 0.4


def wordy(request: pb2.ContemplateRequest) -> Sequence[Step]:
    """Writes more than any socket holds."""
    delta = pb2.AgentTextDelta(text="x" * 60_000, token_count=1)
    text = pb2.ContemplationEvent(deltas=pb2.AgentDeltas(deltas=[delta]))
    return [pb2.ContemplationEvent(accepted=pb2.Accepted()), *[text] * 2000]


@pytest.mark.parametrize("kind", ["application/connect+json", "application/grpc-web+proto"])
async def test_a_reader_that_stalls_is_cut_off(kind: str) -> None:
    asked = asks()
    message = (
        json_format.MessageToJson(asked).encode() if "json" in kind else asked.SerializeToString()
    )
    body = struct.pack(">BI", 0, len(message)) + message
    async with front(wordy, write_stall_s=0.5) as m:
        host, port = m.http.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        head = f"POST {path('Contemplate')} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.wait_for(m.aggregator.cancelled.wait(), 10)
        # What was written ahead is what sockets hold, not what the agent wrote.
        assert m.aggregator.sent < 300
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        read = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(10):
                while part := await reader.read(1 << 20):
                    read += part
        writer.close()
        assert b"200 OK" in read and not read.endswith(b"0\r\n\r\n"), "half must not look whole"


async def test_every_method_asks_for_a_key(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys", create=True)
    _, key = store.create(Grant("ada"))
    async with (
        front(api_keys=str(tmp_path / "keys")) as m,
        client(m, ProtocolType.CONNECT, google_protobuf_json_codec) as c,
    ):
        async with httpx2.AsyncClient(base_url=f"http://{m.http}") as http:
            for name, method in METHODS.items():
                streams = method.client_streaming or method.server_streaming
                kind = {"content-type": "application/connect+json"} if streams else JSON
                body = struct.pack(">BI", 0, 2) + b"{}" if streams else b"{}"
                for wrong in (None, "Bearer cog_" + "x" * 43, "Bearer", "' OR 1=1--"):
                    headers = kind if wrong is None else {**kind, "authorization": wrong}
                    answer = await http.post(path(name), content=body, headers=headers)
                    assert b'"code": "unauthenticated"' in answer.content.replace(b'":"', b'": "')
                    assert answer.status_code == (200 if streams else 401), name
        good = await c.execute_unary(
            request=gateway_service_pb2.ListModelsRequest(),
            method=info("ListModels"),
            headers={"authorization": f"Bearer {key}"},
        )
        assert good.models
        events = [
            one.event
            async for one in c.execute_server_stream(
                request=asks(),
                method=info("Contemplate"),
                headers={"authorization": f"Bearer {key}"},
            )
        ]
        assert events[-1].verdict.answer == "42."
        assert m.aggregator.metadata[-1]["x-cogitate-tenant"] == "ada"


async def test_bad_bodies_are_refused_in_words_of_ours() -> None:
    limit = 100_000
    async with front(http_max_body_bytes=limit, http_read_timeout_s=0.5) as m:
        async with httpx2.AsyncClient(base_url=f"http://{m.http}") as http:
            unary, stream = path("GetContemplation"), path("Contemplate")
            envelope = {"content-type": "application/connect+proto"}
            zipped = {**JSON, "content-encoding": "gzip"}
            bomb = gzip.compress(b" " * 50_000_000)
            for url, headers, body, status, code in (
                (unary, JSON, b"{", 400, "invalid_argument"),
                (unary, JSON, b'{"contemplationIdd":"x"}', 400, "invalid_argument"),
                (unary, JSON, b'{"contemplationId":3}', 400, "invalid_argument"),
                (unary, JSON, b"[" * 50_000, 400, "invalid_argument"),
                (unary, JSON, b" " * (limit + 1), 400, "invalid_argument"),
                (unary, JSON, b" " * 3_000_000, 400, "invalid_argument"),
                (unary, zipped, bomb, 429, "resource_exhausted"),
                (unary, zipped, b"no gzip", 400, "invalid_argument"),
                (
                    unary,
                    {"content-type": "application/proto"},
                    b"\xff\xff",
                    400,
                    "invalid_argument",
                ),
                (stream, envelope, b"\x07\0\0\0\0", 200, "invalid_argument"),
                (stream, envelope, b"\0\xff\xff\xff\xff", 200, "resource_exhausted"),
                (stream, envelope, b"\0\0\0\0\x05ab", 200, "invalid_argument"),
                (stream, envelope, b"\0\0\0\0\x02\xff\xff", 200, "invalid_argument"),
            ):
                answer = await http.post(url, content=body, headers=headers)
                assert answer.status_code == status, (url, body[:20], answer.content)
                told = json.loads(answer.content[5:] if status == 200 else answer.content)
                told = told.get("error", told)
                assert told["code"] == code, (url, body[:20], told)
                assert "Error" not in told["message"] and "site-packages" not in told["message"]
            for kind in ("application/grpc", "application/grpc+proto", "text/plain", ""):
                answer = await http.post(unary, content=b"{}", headers={"content-type": kind})
                assert answer.status_code == 415
                assert answer.json()["error"]["code"] == "unsupported_media_type"
            assert (await http.get(unary)).status_code == 405
            assert (await http.post("/cogitate.v1.ContemplationService/Nothing")).status_code == 404

            host, port = m.http.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"POST {unary} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(head.encode() + b"Content-Length: 9\r\n\r\n{")
            answered = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            assert b" 400 " in answered and b"comes too slowly" in answered


async def test_other_origins_need_to_be_allowed() -> None:
    asking = {
        "origin": "https://here.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,connect-protocol-version,authorization",
    }
    for origins, allowed in (
        ((), False),
        (("https://here.example",), True),
        (("https://x.y",), False),
    ):
        async with front(http_allowed_origins=origins) as m:
            async with httpx2.AsyncClient(base_url=f"http://{m.http}") as http:
                answer = await http.options(path("ListModels"), headers=asking)
                assert (answer.status_code == 200) is allowed
                got = await http.post(
                    path("ListModels"), content=b"{}", headers={**JSON, "origin": asking["origin"]}
                )
                assert got.status_code == 200
                shared = got.headers.get("access-control-allow-origin")
                assert (shared == asking["origin"]) is allowed
                assert "access-control-allow-credentials" not in got.headers


async def test_refusals_keep_what_helps() -> None:

    def full(request: Any) -> Sequence[Step]:
        return (Raise(Rejected("the mesh is full", retry_after_s=2.5)),)

    async with front(full) as m, client(m, ProtocolType.CONNECT, google_protobuf_json_codec) as c:
        with pytest.raises(ConnectError) as refused:
            async for _ in c.execute_server_stream(request=asks(), method=info("Contemplate")):
                pass
    assert refused.value.code is Code.RESOURCE_EXHAUSTED
    assert "google.rpc.RetryInfo" in {one.type_name for one in refused.value.details}
