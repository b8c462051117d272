"""HTTP/2 by hand at the gateway's gRPC port: floods end or are borne, neighbours are answered."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import Callable

import h2.config
import h2.connection
import h2.exceptions
import pytest
from cogitate.v1 import gateway_service_pb2

from tests.fakes.front import mesh

pytestmark = pytest.mark.contract

STREAMS = 4_000
MEMORY_MIB = 32
HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "x"),
    (":path", "/cogitate.v1.GatewayService/GetServerInfo"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
Flood = Callable[[h2.connection.H2Connection, int], None]


def speaker() -> h2.connection.H2Connection:
    """A client's side of a connection that minds no limit of the server's."""
    made = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=True, validate_outbound_headers=False)
    )
    made.initiate_connection()
    made.remote_settings.max_concurrent_streams = 2**31 - 1
    return made


def open_and_reset(speaks: h2.connection.H2Connection, stream: int) -> None:
    speaks.send_headers(stream, HEADERS)
    speaks.reset_stream(stream)


def only_open(speaks: h2.connection.H2Connection, stream: int) -> None:
    speaks.send_headers(stream, HEADERS)


def ping(speaks: h2.connection.H2Connection, stream: int) -> None:
    speaks.ping(stream.to_bytes(8, "big"))


def settings(speaks: h2.connection.H2Connection, stream: int) -> None:
    speaks.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 65_535 + stream % 7})


def memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def flooded(address: str, flood: Flood, done: threading.Event) -> None:
    """Sends it, until the server closes; what the server says is read and left alone."""
    host, port = address.split(":")
    speaks = speaker()
    with socket.create_connection((host, int(port))) as to:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while to.recv(65_536):
                    pass

        listening = threading.Thread(target=listen, daemon=True)
        listening.start()
        with contextlib.suppress(OSError):  # closed: as it should be
            for number in range(STREAMS):
                flood(speaks, 2 * number + 1)
                if number % 100 == 99:
                    to.sendall(speaks.data_to_send())
        done.wait(20)
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)
        listening.join(5)


@pytest.mark.parametrize("flood", [open_and_reset, only_open, ping, settings])
async def test_a_flood_harms_nobody_else(flood: Flood) -> None:
    async with mesh() as m:
        before_mib, done = memory_mib(), threading.Event()
        flooding = asyncio.create_task(asyncio.to_thread(flooded, m.address, flood, done))
        # While it is sent, and while what it opened stays open.
        for _ in range(40):
            await m.gateway.GetServerInfo(gateway_service_pb2.GetServerInfoRequest(), timeout=20)
            await asyncio.sleep(0.05)
        done.set()
        await flooding
        await m.gateway.GetServerInfo(gateway_service_pb2.GetServerInfoRequest(), timeout=5)
        # The flooder runs in this process, too: what it keeps is counted with the server's.
        assert memory_mib() - before_mib < 2 * MEMORY_MIB
