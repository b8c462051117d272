"""One test for each thing grpc.aio does by default that would hurt us.

The traps are those of the table in the style guide (named `trap`) and of the platform facts
(M2 to M12). Detection times are asserted loosely: what matters is 2 s against a minute.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cogitate.client._errors import from_rpc as client_error
from cogitate.kit import auth, channels, errors, lifecycle
from cogitate.kit.config import ServiceConfig
from cogitate.kit.errors import CogitateError

from tests.fakes.trap_service import SECRET, WAYS, TrapService, build, call, open_call

pytestmark = pytest.mark.contract

PROGRAM = Path(__file__).parents[1] / "fakes" / "trap_service.py"
SOON_S = 10.0
ROUNDING = 1.04  # on the wire a timeout is rounded up, by 3 % at most
ways = pytest.mark.parametrize("way", [way for way in WAYS if way != "LongLived"])


@asynccontextmanager
async def traps(
    service: TrapService | None = None, **knobs: Any
) -> AsyncIterator[tuple[TrapService, grpc.aio.Channel, str]]:
    service = service or TrapService()
    config = ServiceConfig(drain_grace_s=0.0, **knobs)
    async with lifecycle.serving(config, build(service)) as running:
        async with channels.open_channel(running.address) as channel:
            yield service, channel, running.address


@asynccontextmanager
async def process(*arguments: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *arguments,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **env},
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@asynccontextmanager
async def traps_process(tmp_path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    ready = tmp_path / "ready"
    async with process(f"--ready-file={ready}", "--drain-grace-s=0") as child:
        await until(ready.exists)
        yield child, ready.read_text().strip()


async def until(holds: Callable[[], object], limit_s: float = SOON_S) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(0.01)


async def failure(channel: grpc.aio.Channel, way: str, word: str | bytes) -> CogitateError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, way, word, **channels.outgoing(SOON_S))
    assert SECRET not in str(caught.value)
    return channels.from_rpc_error(caught.value)


@ways
async def test_trap_the_text_of_an_unknown_exception_stays_inside(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with traps() as (_, channel, _):
        with caplog.at_level(logging.DEBUG):
            error = await failure(channel, way, "bug")
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert error.metadata["incident"] in error.message
    assert error.metadata["incident"] in caplog.text
    assert "KeyError at" in caplog.text
    assert SECRET not in caplog.text


@ways
async def test_trap_a_stray_cancellation_is_answered(way: str) -> None:
    async with traps() as (_, channel, _):
        error = await failure(channel, way, "stray")
    assert error.code == "INTERNAL"


@ways
async def test_trap_a_group_of_exceptions_stands_for_its_first(way: str) -> None:
    async with traps() as (_, channel, _):
        error = await failure(channel, way, "group")
    assert type(error) is errors.NoQuorum


@ways
async def test_trap_details_arrive_before_and_after_messages(way: str) -> None:
    async with traps() as (_, channel, _):
        messages = open_call(channel, way, "no_quorum", **channels.outgoing(SOON_S))
        got = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for message in messages:
                got.append(message)  # noqa: PERF401  # what came before the error counts
    assert got == (["before 0", "before 1"] if WAYS[way][1] else [])
    error = channels.from_rpc_error(caught.value)
    assert type(error) is errors.NoQuorum
    assert (error.metadata, error.retry_after_s, error.field) == ({"k": "2"}, 1.5, "spec.quorum")


@pytest.mark.parametrize("word", ["abort", "abort_in_group"])
@ways
async def test_a_handlers_own_abort_is_left_as_it_is(
    way: str, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with traps() as (_, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught, caplog.at_level(logging.INFO):
            await call(channel, way, word, **channels.outgoing(SOON_S))
    assert not caplog.records
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "said by the handler"


async def test_trap_the_deadline_reaches_the_call_below() -> None:
    async with traps() as (_, below, _), traps(TrapService(below)) as (_, channel, _):
        for word in ("ask_below", "ask_below_long"):
            (left,) = await call(channel, "Unary", word, timeout=5.0)
            assert 0.0 < float(left) < 5.0 * ROUNDING
        (answer,) = await call(channel, "Unary", "too_late", timeout=5.0)
        assert answer == "too late"


async def test_trap_an_rpc_without_a_deadline_gets_one() -> None:
    async with traps(default_deadline_s=0.3) as (service, channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call(channel, "Unary", "wait"), SOON_S)
        assert type(channels.from_rpc_error(caught.value)) is errors.DeadlineExceeded
        assert service.ended["wait"] == 1
        (left,) = await call(channel, "Unary", "left", timeout=1000.0)
        assert 0.0 < float(left) <= 0.3


async def test_a_long_lived_rpc_has_only_the_deadline_it_is_given() -> None:
    async with traps(default_deadline_s=0.1) as (_, below, _):
        async with traps(TrapService(below), default_deadline_s=0.1) as (_, channel, _):
            assert await call(channel, "LongLived", "left") == ["None"]
            (left,) = await call(channel, "LongLived", "left", timeout=5.0)
            assert 1.0 < float(left) < 5.0 * ROUNDING
            # Without a limit of its own it cannot call on.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, "LongLived", "ask_below")
            assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_outgoing_needs_a_limit() -> None:
    with pytest.raises(channels.MissingDeadline):
        channels.outgoing()
    with channels.deadline_scope(5.0), channels.deadline_scope(100.0):
        assert 4.0 < channels.outgoing(margin_s=0.5)["timeout"] <= 4.5
        assert channels.outgoing(1.0)["timeout"] == 1.0
        with channels.deadline_scope(None):
            assert channels.remaining_s() is None
            assert channels.outgoing(7.0)["timeout"] == 7.0


async def test_trap_a_cancelled_client_ends_the_handler_and_the_call_below() -> None:
    async with traps() as (inner, below, _), traps(TrapService(below)) as (outer, channel, _):
        task = asyncio.ensure_future(call(channel, "Unary", "wait_below", timeout=60.0))
        await until(lambda: inner.started["wait"])
        task.cancel()
        await until(lambda: inner.ended["wait"] and outer.ended["wait_below"])
        assert task.cancelled()


async def test_trap_an_error_from_below_keeps_its_meaning() -> None:
    async with traps() as (_, below, _), traps(TrapService(below)) as (_, channel, _):
        error = await failure(channel, "Unary", "fail_below")
    assert type(error) is errors.NoQuorum
    assert error.metadata == {"k": "2"}


async def test_trap_a_server_that_shuts_down_says_cancelled() -> None:
    """Nobody cancelled anything: what came in its last moment is to be asked of another."""

    async def cancelled(request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return b""

    server = grpc.aio.server()  # plain, as grpc itself ends a call then
    methods = {"Ask": grpc.unary_unary_rpc_method_handler(cancelled)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("plain", methods),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with channels.open_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/plain/Ask")(b"", timeout=5)
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    for error in (channels.from_rpc_error(caught.value), client_error(caught.value, address)):
        assert (error.code, error.reason, error.retryable) == ("UNAVAILABLE", "UNAVAILABLE", True)


async def test_trap_leaving_the_loop_stops_the_server() -> None:
    async with traps() as (service, channel, _):
        messages = open_call(channel, "Generate", "endless", timeout=60.0)
        async for _ in messages:
            break
        await messages.aclose()  # leaves `cancelling`
        await until(lambda: service.ended["Generate"])


async def test_the_tenant_and_the_trace_travel() -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with traps() as (_, below, _), traps(TrapService(below)) as (_, channel, _):
        with auth.tenant_scope("acme"):
            options = channels.outgoing(SOON_S, metadata=[("traceparent", parent)])
        assert await call(channel, "Unary", "tenant_below", **options) == ["acme"]
        assert await call(channel, "Unary", "trace", **options) == [parent]
        assert await call(channel, "Unary", "tenant", timeout=SOON_S) == ["default"]
        bad = {"timeout": SOON_S, "metadata": ((auth.TENANT_METADATA_KEY, "a/b"),)}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, "Unary", "tenant", **bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_m1_m4_a_killed_and_a_frozen_server_are_detected(tmp_path: Path) -> None:
    """The default channel needs until the deadline, documented keepalive a minute (M2, M3)."""
    async with traps_process(tmp_path) as (child, address):
        async with channels.open_channel(address) as channel:
            waiting = asyncio.ensure_future(call(channel, "Unary", "wait", timeout=60.0))
            await call(channel, "Unary", "echo", timeout=SOON_S)
            child.send_signal(signal.SIGSTOP)
            frozen = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - frozen < SOON_S
            child.kill()


async def test_m5_pings_on_an_idle_stream_are_not_taken_for_an_attack() -> None:
    """With a server's defaults the call is killed after the fourth ping: `too_many_pings`."""
    async with traps() as (service, channel, _):
        with channels.cancelling(
            channel.unary_unary("/cogitate.test.TrapService/Unary")(b"\n\x04wait", timeout=60.0)
        ) as idle:
            await until(lambda: service.started["wait"])
            await asyncio.sleep(6.0)
            assert not idle.done()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_m6_a_killed_or_frozen_client_ends_the_handler(how: signal.Signals) -> None:
    """By default a frozen client holds its handler, and so an engine's slot, for a minute."""
    async with traps() as (service, _, address):
        async with process("hold", address, "Unary", "wait") as client:
            await until(lambda: service.started["wait"])
            client.send_signal(how)
            gone = time.monotonic()
            await until(lambda: service.ended["wait"])
            assert time.monotonic() - gone < SOON_S


async def test_m7_m8_a_reader_that_stops_is_cut_and_holds_nothing() -> None:
    """By default a server writes 85 000 such messages ahead and then waits for ever."""
    async with traps(write_stall_s=0.5) as (service, channel, _):
        stream = channel.unary_stream("/cogitate.test.TrapService/Generate")
        with channels.cancelling(stream(b"\n\x07endless", timeout=60.0)) as unread:
            # The handler's own resources are free even though the status cannot be delivered.
            await until(lambda: service.ended["Generate"])
            assert 100 < service.produced < 10_000
            await until(lambda: not rpc_tasks("Generate"))
            assert await call(channel, "Unary", "echo", timeout=SOON_S) == ["echo"]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in unread:
                    pass
        error = channels.from_rpc_error(caught.value)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "EVICTED")


def rpc_tasks(method: str) -> list[str]:
    return [t.get_name() for t in asyncio.all_tasks() if t.get_name().endswith(f"/{method}]")]


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\n\x02\xff\xfe", b"\n\x05abc"])
@ways
async def test_m9_garbage_is_the_callers_fault_and_described_by_a_fixed_text(
    way: str, garbage: bytes
) -> None:
    async with traps() as (_, channel, _):
        error = await failure(channel, way, garbage)
        assert (type(error), error.message) == (
            errors.InvalidRequest,
            "the request is not a valid message",
        )
        assert (await call(channel, way, "echo", timeout=SOON_S))[-1] == "echo"


@ways
async def test_an_answer_that_cannot_be_encoded_is_our_fault(way: str) -> None:
    async with traps() as (_, channel, _):
        error = await failure(channel, way, "nothing")
    assert error.code == "INTERNAL"
    assert "incident" in error.message


@pytest.mark.parametrize(("size", "is_taken"), [(100, True), (7_000, True), (200_000, False)])
async def test_m12_metadata_in_the_first_flight_is_measured_again(
    size: int, is_taken: bool
) -> None:
    """The transport's limit holds only after the peer has acknowledged the settings.

    Now and then it holds already: then it is the transport that refuses, and lists the sizes.
    """
    async with traps() as (service, _, address):
        answer = await raw_unary(address, "Unary", b"\n\x04echo", padding=size)
        assert service.started["echo"] == is_taken
        refused = b"the metadata is too large" in answer or b"x-padding:200041B" in answer
        assert refused == (not is_taken)


async def raw_unary(address: str, way: str, message: bytes, *, padding: int) -> bytes:
    """Sends a unary call whole, without waiting for the server's settings; returns its bytes."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": f"/cogitate.test.TrapService/{way}",
        ":authority": address, "content-type": "application/grpc", "te": "trailers",
        "grpc-timeout": "5S", "x-padding": "x" * padding,
    }  # fmt: skip
    block = b"".join(hpack_literal(name) + hpack_literal(v, b"") for name, v in headers.items())
    parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
    frames = [frame(4, 0, 0, b"")]
    for n, part in enumerate(parts):
        end_headers = 4 if n == len(parts) - 1 else 0
        frames.append(frame(9 if n else 1, end_headers, 1, part))
    frames.append(frame(0, 1, 1, b"\0" + len(message).to_bytes(4, "big") + message))
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frames))
        answer = b""
        async with asyncio.timeout(SOON_S):
            while b"grpc-status" not in answer:
                chunk = await reader.read(65_536)
                assert chunk, "the server closed the connection without a status"
                answer += chunk
        return answer
    finally:
        writer.close()
        await writer.wait_closed()


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
    )


def hpack_literal(text: str, prefix: bytes = b"\0") -> bytes:
    """Encodes a string without compression; `prefix` 0 starts a field that is not indexed."""
    size, rest = len(text), b""
    if size >= 127:
        size, left = 127, size - 127
        while left >= 128:
            rest += bytes([left % 128 + 128])
            left //= 128
        rest += bytes([left])
    return prefix + bytes([size]) + rest + text.encode()
