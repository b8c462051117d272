"""One Decode stream: commands to a gang in, its events out as inputs of the state machine."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable

import grpc
from cogitate.aggregator import wire
from cogitate.aggregator.core import messages as m
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing
from cogitate.kit.errors import CogitateError
from cogitate.kit.tasks import Supervisor
from cogitate.kit.telemetry import stack_of
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub

logger = logging.getLogger(__name__)


# How long a decoder whose connection ended is dialled again without being asked for anything.
RETURN_S = 60.0


class Channels:
    """Channels to decoders, one for each address, shared by all gangs.

    A decoder that was restarted is dialled at once: to another site, connecting takes two round
    trips, and the first gang there would wait for them.
    """

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._tasks = Supervisor()

    def to(self, address: str) -> grpc.aio.Channel:
        """The channel to an address; opened at the first use."""
        if address not in self._channels:
            self._channels[address] = channel = open_channel(address)
            self._tasks.spawn(_keep(channel), name="keep connected")
        return self._channels[address]

    async def close(self) -> None:
        """Closes all of them."""
        await self._tasks.stop()
        for channel in self._channels.values():
            await channel.close()


async def _keep(channel: grpc.aio.Channel) -> None:
    """Dials again when a connection has ended, for a while."""
    seen_s = -math.inf  # when it was last connected
    while True:
        state = channel.get_state()
        if state is grpc.ChannelConnectivity.READY:
            seen_s = math.inf
        elif seen_s == math.inf:
            seen_s = time.monotonic()
        if state is grpc.ChannelConnectivity.IDLE and time.monotonic() - seen_s < RETURN_S:
            state = channel.get_state(try_to_connect=True)
        await channel.wait_for_state_change(state)


class GangClient:
    """A gang at one endpoint. Every way it can end reaches ``on_input`` as an input.

    With an input comes the message it was made of, if it was made of one.
    """

    def __init__(
        self,
        gang_id: str,
        channel: grpc.aio.Channel,
        opening: pb.OpenGang,
        on_input: Callable[[m.Input, pb.DecodeResponse | None], None],
    ) -> None:
        self._gang_id, self._channel, self._opening = gang_id, channel, opening
        self._on_input = on_input
        # Bounded by what agents can ask for: a command answers an event of theirs.
        self._commands: asyncio.Queue[pb.DecodeRequest | None] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    def send(self, command: pb.DecodeRequest) -> None:
        """Queues a command."""
        self._commands.put_nowait(command)

    def close(self) -> None:
        """No more commands."""
        self._commands.put_nowait(None)

    def break_off(self) -> None:
        """Cuts the stream; nothing more of it is heard."""
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """Runs the stream to its end."""
        call = None
        try:
            stub = AgentDecoderServiceStub(self._channel)
            call = stub.Decode(self._requests(), **outgoing())
            async for response in call:
                if response.HasField("refused"):
                    self._on_input(wire.to_refusal(self._gang_id, response.refused), None)
                    return
                for item in wire.to_inputs(self._gang_id, response):
                    self._on_input(item, response)
            # An orderly end leaves no open agent behind; if it did, they are lost.
            self._lost("UNAVAILABLE", "the endpoint ended the gang")
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            self._lost(failure.reason, str(failure), failure.retry_after_s)
        except CogitateError as failure:
            self._lost(failure.reason, str(failure))
        except Exception as error:
            # Nonsense from one endpoint costs its agents, not the contemplation.
            logger.error("gang %s failed: %s", self._gang_id, stack_of(error))
            self._lost("INTERNAL", "the endpoint's events could not be understood")
        finally:
            if call is not None:
                call.cancel()

    def _lost(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        self._on_input(m.GangLost(self._gang_id, reason, message, retry_after_s), None)

    async def _requests(self) -> AsyncIterator[pb.DecodeRequest]:
        yield pb.DecodeRequest(open=self._opening)
        while (command := await self._commands.get()) is not None:
            yield command
        yield pb.DecodeRequest(close=pb.CloseGang())
