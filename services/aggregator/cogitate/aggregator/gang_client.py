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


# How long a decoder still has the conversation of a gang that ended there or was refused: less than
# it keeps it.
HELD_S = 2.0
MISSING = "CONVERSATION_UNAVAILABLE"
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
        self._gang_id, self._channel, self.opening = gang_id, channel, opening
        self._on_input = on_input
        # Bounded by what agents can ask for: a command answers an event of theirs.
        self._commands: asyncio.Queue[pb.DecodeRequest | None] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None
        # What others of the site may be told to fetch from there; empty: nothing.
        self.digest = ""
        # If its endpoint is to fetch that itself: how the gang opens then, who hears that it did
        # not come, and what was commanded before there was an answer.
        self._brief: pb.OpenGang | None = None
        self._on_missing: Callable[[], None] = lambda: None
        self._early: list[pb.DecodeRequest | None] = []
        self._is_answered = False
        self._held_until_s = math.inf

    def refer(self, reference: pb.ConversationReference, on_missing: Callable[[], None]) -> None:
        """Opens it by reference, before it runs. If that fails it is opened whole, unseen."""
        self._brief = pb.OpenGang()
        self._brief.CopyFrom(self.opening)
        del self._brief.conversation[: self.opening.shared_message_count]
        self._brief.ClearField("tools")
        self._brief.ClearField("shared_message_count")
        self._brief.conversation_reference.CopyFrom(reference)
        self._on_missing = on_missing

    @property
    def held(self) -> str:
        """The digest of what its endpoint has for others, as far as is known here; or nothing."""
        if time.monotonic() >= self._held_until_s:
            return ""
        if self._brief is None:
            return self.digest
        return self._brief.conversation_reference.digest if self._is_answered else ""

    def send(self, command: pb.DecodeRequest) -> None:
        """Queues a command."""
        self._commands.put_nowait(command)

    def close(self) -> None:
        """No more commands."""
        self._commands.put_nowait(None)

    def break_off(self) -> None:
        """Cuts the stream; nothing more of it is heard."""
        if self.task is None or not self.task.done():  # else it ended in order, or was refused
            self._held_until_s = -math.inf
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """Runs the stream to its end."""
        try:
            if self._brief is not None:
                if await self._play(self._brief):
                    return
                self._on_missing()
                self._begin_again()
            await self._play(self.opening)
        except grpc.aio.AioRpcError as error:
            failure = from_rpc_error(error)
            self._lost(failure.reason, str(failure), failure.retry_after_s)
        except CogitateError as failure:
            self._lost(failure.reason, str(failure))
        except Exception as error:
            # Nonsense from one endpoint costs its agents, not the contemplation.
            logger.error("gang %s failed: %s", self._gang_id, stack_of(error))
            self._lost("INTERNAL", "the endpoint's events could not be understood")

    async def _play(self, opening: pb.OpenGang) -> bool:
        """Runs one stream; False if it is refused because the conversation did not come."""
        stub = AgentDecoderServiceStub(self._channel)
        call = stub.Decode(self._requests(opening, self._commands), **outgoing())
        try:
            async for response in call:
                if response.HasField("refused"):
                    if opening is self._brief and response.refused.reason == MISSING:
                        return False
                    self._held_until_s = time.monotonic() + HELD_S
                    self._on_input(wire.to_refusal(self._gang_id, response.refused), None)
                    return True
                self._is_answered = True
                self._early.clear()
                for item in wire.to_inputs(self._gang_id, response):
                    self._on_input(item, response)
            # An orderly end leaves no open agent behind; if it did, they are lost.
            self._lost("UNAVAILABLE", "the endpoint ended the gang")
            self._held_until_s = time.monotonic() + HELD_S
            return True
        finally:
            call.cancel()

    def _begin_again(self) -> None:
        """Has it open whole, and all that was commanded commanded again.

        In another queue: the requests of the call before may still wait at the old one.
        """
        self._brief = None
        again, self._commands = self._commands, asyncio.Queue()
        for command in self._early:
            self._commands.put_nowait(command)
        while not again.empty():
            self._commands.put_nowait(again.get_nowait())
        self._early.clear()

    def _lost(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        self._held_until_s = -math.inf
        self._on_input(m.GangLost(self._gang_id, reason, message, retry_after_s), None)

    async def _requests(
        self, opening: pb.OpenGang, commands: asyncio.Queue[pb.DecodeRequest | None]
    ) -> AsyncIterator[pb.DecodeRequest]:
        yield pb.DecodeRequest(open=opening)
        while True:
            command = await commands.get()
            if opening is self._brief and not self._is_answered:
                self._early.append(command)
            if command is None:
                break
            yield command
        yield pb.DecodeRequest(close=pb.CloseGang())
