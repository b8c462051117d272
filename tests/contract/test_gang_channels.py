"""The aggregator's channels to decoders: dialled again before anybody needs them."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from cogitate.aggregator import gang_client
from cogitate.aggregator.gang_client import Channels

pytestmark = pytest.mark.contract
READY, IDLE = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE


async def decoder(port: int = 0) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


async def until(channel: grpc.aio.Channel, *wanted: grpc.ChannelConnectivity) -> None:
    async with asyncio.timeout(20):
        while channel.get_state() not in wanted:
            await asyncio.sleep(0.01)


async def test_a_decoder_that_was_used_and_came_back_is_connected_unasked() -> None:
    server, port = await decoder()
    channels = Channels()
    channel = channels.to(f"127.0.0.1:{port}")
    await asyncio.sleep(0.1)
    assert channel.get_state() is IDLE  # nobody wanted anything of it yet
    await channel.channel_ready()
    await asyncio.sleep(0.3)  # who keeps it has to see that it is used
    await server.stop(None)
    await until(channel, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
    server, _ = await decoder(port)
    await until(channel, READY)
    await channels.close()
    await server.stop(None)


async def test_one_that_is_gone_for_long_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang_client, "RETURN_S", 0.0)
    server, port = await decoder()
    channels = Channels()
    channel = channels.to(f"127.0.0.1:{port}")
    await channel.channel_ready()
    await server.stop(None)
    await until(channel, IDLE)
    await asyncio.sleep(0.3)
    assert channel.get_state() is IDLE
    await channels.close()
