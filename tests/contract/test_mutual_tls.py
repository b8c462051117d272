"""Services that know each other by certificates: who gets in, who may call what, renewal."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.cli.certificates.authority import Authority, Signed
from cogitate.kit import access, channels, identity, lifecycle, listening
from cogitate.kit.config import ServiceConfig
from cogitate.kit.identity import Identity
from cogitate.kit.renewing import RenewingChannel
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes import certificates
from tests.fakes.contract import kind, methods

pytestmark = pytest.mark.contract

FLEET = "cogitate.v1.RouterService/GetFleet"
REPORT = "cogitate.v1.RouterService/Report"
ORCA = "xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
DENIED, UNAVAILABLE = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE

# Written a second time, by caller, so that a slip in the table shows.
MAY: dict[str, set[str]] = {
    "gateway": {
        *(f"cogitate.v1.ContemplationService/{name}" for name in (
            "Contemplate", "Attach", "GetContemplation", "ListContemplations",
            "CancelContemplation", "DeleteContemplation", "SubmitToolResult", "SteerContemplation",
        )),
        FLEET, "cogitate.v1.VisionEncoderService/PutBlob",
        "cogitate.v1.VisionEncoderService/GetBlob",
        ORCA,  # the Envoy beside it shows its certificate
    },
    "aggregator": {
        "cogitate.v1.RouterService/Lease", "cogitate.v1.AgentDecoderService/Decode",
        "cogitate.v1.VisionEncoderService/Encode", "cogitate.v1.ToolExecutorService/Execute",
        "cogitate.v1.ToolExecutorService/ListTools",
    },
    "router": {"cogitate.v1.EndpointService/WatchEndpoint"},
    "vision-encoder": {
        "cogitate.v1.VisionEncoderService/GetBlob",
        "cogitate.v1.VisionEncoderService/FetchEmbedding",
    },
    "tool-executor": {"cogitate.v1.VisionEncoderService/PutBlob"},
    "agent-decoder": {
        REPORT, "cogitate.v1.VisionEncoderService/GetBlob",
        "cogitate.v1.VisionEncoderService/FetchEmbedding",
        "cogitate.v1.AgentDecoderService/FetchConversation",
    },
    "cli": set(),
    "admin": {
        *(f"cogitate.v1.AdminService/{name}" for name in (
            "CreateKey", "ListKeys", "RevokeKey", "ListTenants", "SetBudget", "DrainGateway",
        )),
        FLEET, "cogitate.v1.AgentDecoderService/GetEndpoint",
        "cogitate.v1.VisionEncoderService/GetEncoderInfo",
        "cogitate.v1.ToolExecutorService/ListTools",
    },
    "envoy": {
        "cogitate.v1.AgentDecoderService/Decode",
        "envoy.service.ext_proc.v3.ExternalProcessor/Process",
        ORCA,
    },
    "keda": {
        f"externalscaler.ExternalScaler/{name}"
        for name in ("IsActive", "StreamIsActive", "GetMetricSpec", "GetMetrics",
                     "StreamMetricSpec")
    },
}  # fmt: skip


class Everything:
    """Serves every method of the contract and answers nothing; counts who got that far."""

    names: Sequence[str] = ()

    def __init__(self, server: grpc.aio.Server) -> None:
        self.called: list[str] = []
        by_service: dict[str, dict[str, Any]] = {}
        for name, method in methods().items():
            service, _, short = name.partition("/")
            if "OpenRca" in service:
                continue  # the kit serves that one
            make = getattr(grpc, f"{kind(method)}_rpc_method_handler")
            by_service.setdefault(service, {})[short] = make(
                self._streaming(name) if method.server_streaming else self._answering(name)
            )
        for service, handlers in by_service.items():
            handler = grpc.method_handlers_generic_handler(service, handlers)
            server.add_generic_rpc_handlers((handler,))

    def _answering(self, name: str) -> Any:
        async def answer(request: Any, context: Any) -> bytes:
            self.called.append(name)
            return context.auth_context()["x509_pem_cert"][0] if name == FLEET else b""

        return answer

    def _streaming(self, name: str) -> Any:
        async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
            self.called.append(name)
            yield b""
            if name == REPORT:
                async for _ in request:
                    yield b""

        return stream

    async def start(self) -> None: ...

    async def drain(self, grace_s: float) -> None: ...

    async def stop(self) -> None: ...


@asynccontextmanager
async def served(folder: Path, **knobs: Any) -> AsyncIterator[tuple[lifecycle.Running, Any]]:
    """A service called `router` with certificates."""
    certificates.write(folder / "router", certificates.signed("router"))
    config = replace(
        ServiceConfig(), tls_dir=str(folder / "router"), load_report_interval_s=0.1, **knobs
    )

    async def build(_: ServiceConfig, server: grpc.aio.Server) -> Any:
        return Everything(server)

    async with lifecycle.serving(config, build) as running:
        yield running, running.service


def shown(made: Signed, roots: Authority | None = None) -> grpc.ChannelCredentials:
    """What a client that has this certificate uses."""
    trusted = (roots or certificates.authority()).signed.certificate
    return grpc.ssl_channel_credentials(trusted, made.key, made.certificate)


CORE_FAILED, CORE_TRIES = "Internal error from Core", 4


async def status(
    channel: grpc.aio.Channel, name: str, method: Any = None
) -> tuple[grpc.StatusCode, str]:
    """Calls a method with an empty request; returns how it ended.

    A call that is refused while grpc.aio still writes is now and then told as grpc.aio's own
    failure (`Failed grpc_call_start_batch`): that says nothing of the service, and is asked again.
    """
    for _ in range(CORE_TRIES):
        code, said = await _status_once(channel, name, method)
        if said != CORE_FAILED:
            break
    return code, said


async def _status_once(
    channel: grpc.aio.Channel, name: str, method: Any
) -> tuple[grpc.StatusCode, str]:
    found = method or methods()[name]
    call: Any = getattr(channel, kind(found))(f"/{name}")
    made = call(iter([b""]) if found.client_streaming else b"", timeout=20)
    try:
        if found.server_streaming:
            async for _ in made:
                break
            made.cancel()
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("caller", [*access.SERVICES, *access.CLIENTS])
async def test_every_cell_of_the_table(tmp_path: Path, caller: str) -> None:
    async with (
        served(tmp_path) as (running, service),
        grpc.aio.secure_channel(
            running.address, shown(certificates.signed(caller, hosts=()))
        ) as channel,
    ):
        for name in methods():
            code, said = await status(channel, name)
            if name in MAY[caller]:
                assert code is grpc.StatusCode.OK, (caller, name, said)
            else:
                assert (code, said) == (
                    DENIED, f"{caller} may not call {name}; docs/security.md says who may",
                )  # fmt: skip
        assert (
            set(service.called) | {"xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"}
            >= MAY[caller]
        )
        assert set(service.called) <= MAY[caller]


@pytest.mark.parametrize(
    ("made", "code", "said"),
    [
        (lambda: certificates.signed("gateway", domain="other.test"), DENIED, "trust domain"),
        (lambda: certificates.signed("tool-executor"), DENIED, "tool-executor may not call"),
        (lambda: certificates.signed(uris=()), DENIED, "must hold one name"),
        (
            lambda: certificates.signed(
                uris=("spiffe://mesh.test/gateway", "spiffe://mesh.test/cli")
            ),
            DENIED,
            "must hold one name",
        ),
        (certificates.over, UNAVAILABLE, ""),
        (certificates.early, UNAVAILABLE, ""),
        (
            lambda: certificates.signed("gateway", by=certificates.authority("strangers")),
            UNAVAILABLE,
            "",
        ),
        (lambda: Authority.made(certificates.HOUR).signed, UNAVAILABLE, ""),
    ],
    ids=[
        "wrong domain", "wrong service", "no name", "two names", "expired", "not yet valid",
        "foreign authority", "self-signed",
    ],
)  # fmt: skip
async def test_who_is_not_let_in(
    tmp_path: Path, made: Any, code: grpc.StatusCode, said: str
) -> None:
    async with served(tmp_path) as (running, service):
        async with grpc.aio.secure_channel(running.address, shown(made())) as channel:
            found, words = await status(channel, FLEET)
            assert found is code and said in words
        assert not service.called
        async with grpc.aio.secure_channel(
            running.address, shown(certificates.signed("gateway"))
        ) as channel:
            assert (await status(channel, FLEET))[0] is grpc.StatusCode.OK


async def test_neither_plaintext_nor_a_client_without_a_certificate_gets_in(
    tmp_path: Path,
) -> None:
    roots = certificates.authority().signed.certificate
    async with served(tmp_path) as (running, service):
        for channel in (
            grpc.aio.insecure_channel(running.address),
            grpc.aio.secure_channel(running.address, grpc.ssl_channel_credentials(roots)),
        ):
            async with channel:
                assert (await status(channel, FLEET))[0] is UNAVAILABLE
        assert not service.called


@pytest.mark.parametrize(
    "made",
    [
        lambda: certificates.signed(by=certificates.authority("strangers")),
        certificates.over,
        lambda: certificates.signed(hosts=("elsewhere",)),
    ],
    ids=["foreign authority", "expired", "another host"],
)
async def test_a_server_is_looked_at_too(tmp_path: Path, made: Any) -> None:
    server, bad = grpc.aio.server(), made()
    service = Everything(server)
    pair = [(bad.key, bad.certificate)]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    await server.start()
    mine = Identity(certificates.write(tmp_path, certificates.signed("gateway")))
    with identity.acting(mine):
        async with channels.open_channel(f"127.0.0.1:{port}") as channel:
            assert (await status(channel, FLEET))[0] is UNAVAILABLE
    await server.stop(None)
    assert not service.called


async def test_a_name_may_be_expected_of_servers_instead_of_their_host(tmp_path: Path) -> None:
    """As SPIRE's certificates, which name no host."""
    mine = certificates.write(tmp_path / "me", certificates.signed("gateway"))
    async with AsyncExitStack() as stack:
        certificates.write(tmp_path / "it", certificates.signed("router", hosts=("mesh.test",)))
        server = grpc.aio.server()
        Everything(server)
        with identity.acting(Identity(tmp_path / "it")):
            address = listening.bind(server, "127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, None)
        for name, code in (("mesh.test", grpc.StatusCode.OK), ("", UNAVAILABLE)):
            with identity.acting(Identity(mine, server_name=name)):
                async with channels.open_channel(address) as channel:
                    assert (await status(channel, FLEET))[0] is code


async def test_certificates_are_renewed_under_load_and_no_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity, "LOOK_S", 0.02)
    rounds, calls, seen = 5, 0, set()
    mine = certificates.write(tmp_path / "gateway", certificates.signed("gateway"))
    theirs = certificates.write(tmp_path / "decoder", certificates.signed("agent-decoder"))
    async with served(tmp_path) as (running, _), AsyncExitStack() as stack:
        with identity.acting(Identity(mine)):
            channel = await stack.enter_async_context(channels.open_channel(running.address))
        with identity.acting(Identity(theirs)):
            reports = await stack.enter_async_context(channels.open_channel(running.address))
        assert isinstance(channel, RenewingChannel) and isinstance(reports, RenewingChannel)
        ask = channel.unary_unary(f"/{FLEET}")
        ends = asyncio.Event()

        async def words() -> AsyncIterator[bytes]:
            while not ends.is_set():
                yield b"x"
                await asyncio.sleep(0.01)

        async def report() -> int:
            return len([one async for one in reports.stream_stream(f"/{REPORT}")(words())])

        async def load() -> None:
            nonlocal calls
            while not ends.is_set():
                seen.add(await ask(b"", timeout=5))
                calls += 1
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            streaming = group.create_task(report())
            for _ in range(4):
                group.create_task(load())
            for number in range(rounds):
                before = calls
                for name in ("gateway", "router", "agent-decoder"):
                    folder = tmp_path / ("decoder" if name == "agent-decoder" else name)
                    certificates.write(folder, certificates.signed(name))
                while calls < before + 100 or len(seen) < number + 2:
                    await asyncio.sleep(0.01)
            ends.set()
        assert streaming.result() > 10, "the stream went on across renewals"
        # Each renewal was shown to the server by a connection of its own.
        assert len(seen) == rounds + 1
        # Writes its three files in turn; what was read half-way was not taken.
        async with asyncio.timeout(5):
            while channel._retired:
                await asyncio.sleep(0.01)
        assert await server_serial(running.address) == serial(certificates_of(tmp_path / "router"))


def certificates_of(folder: Path) -> bytes:
    return (folder / "tls.crt").read_bytes()


def serial(certificate: bytes) -> int:
    return x509.load_pem_x509_certificate(certificate).serial_number


async def server_serial(address: str) -> int:
    """The serial number of what a server shows to a new connection."""
    made = certificates.signed("gateway")
    with tempfile.TemporaryDirectory() as folder:
        certificates.write(Path(folder), made)
        context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
        context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
        context.set_alpn_protocols(["h2"])
        host, _, port = address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return serial(ssl.DER_cert_to_PEM_cert(found).encode())


async def test_probes_need_no_certificate_at_the_port_of_health(tmp_path: Path) -> None:
    async with served(tmp_path, health_listen="127.0.0.1:0") as (running, service):
        async with grpc.aio.insecure_channel(running.health_address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert (await status(channel, FLEET))[0] is grpc.StatusCode.UNIMPLEMENTED
        assert not service.called


@pytest.mark.parametrize("reflection", [True, False])
async def test_health_is_open_to_every_certificate_and_reflection_follows_its_knob(
    tmp_path: Path, reflection: bool
) -> None:
    async with (
        served(tmp_path, reflection=reflection) as (running, _),
        grpc.aio.secure_channel(running.address, shown(certificates.signed("cli"))) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        if reflection:
            assert [one async for one in call]
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                assert [one async for one in call]
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_service_that_cannot_show_itself_does_not_start(tmp_path: Path) -> None:
    certificates.write(tmp_path, certificates.over())
    config = replace(ServiceConfig(), tls_dir=str(tmp_path))
    with pytest.raises(OSError, match="is valid from"):
        async with lifecycle.serving(config, lambda config, server: None):  # type: ignore[arg-type]
            pass
