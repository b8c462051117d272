"""Conversations that are here, for other endpoints of the site: they cross to a site once.

Owners send a conversation to one endpoint of a site and name that one to the others, which fetch it
from there. It is kept while a gang that has it lives, and a little longer.

Invariants:
1. A tenant is given its own conversations only
   (test_decoder_conversations: nobody_reads_anothers).
2. What is fetched is what was named, to the bit
   (test_decoder_conversations: something_else_is_not_taken).
3. No more bytes are kept than may be
   (test_decoder_conversations: the_bound).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from cogitate.kit.auth import current_tenant
from cogitate.kit.channels import from_rpc_error, open_channel, outgoing, remaining_s
from cogitate.kit.errors import CogitateError, NoEndpoint, NotFound
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1.agent_decoder_service_pb2_grpc import AgentDecoderServiceStub

logger = logging.getLogger(__name__)

# How long one is kept when its last gang is gone: a gang that was refused goes to a neighbour then.
LINGER_S = 5.0
# Of the time a caller has, what is spent waiting for one that is still on its way.
PATIENCE = 0.8

Key = tuple[str, str]  # tenant, digest


@dataclass(slots=True)
class _Kept:
    data: bytes
    num_gangs: int = 0
    expiry: asyncio.TimerHandle | None = None


class Hold:
    """What one gang keeps here."""

    def __init__(self, conversations: Conversations, gang: pb.OpenGang) -> None:
        self._conversations, self._gang = conversations, gang
        self._key: Key | None = None

    async def complete(self) -> str:
        """Puts the conversation into the gang if only its name came; says where it was.

        Raises NoEndpoint with CONVERSATION_UNAVAILABLE.
        """
        gang, reference = self._gang, self._gang.conversation_reference
        if not gang.HasField("conversation_reference"):
            return "opening"
        key = (current_tenant(), reference.digest)
        where, data = "here", self._conversations.data(key)
        if data is None:
            where, data = "endpoint", await self._conversations.fetch(reference)
        self.keep(key, data)
        conversation = pb.Conversation.FromString(data)
        messages = [*conversation.messages, *gang.conversation]
        del gang.conversation[:]
        gang.conversation.extend(messages)
        gang.tools.extend(() if reference.without_tools else conversation.tools)
        gang.ClearField("conversation_reference")
        return where

    def keep(self, key: Key, data: bytes) -> None:
        """Keeps it for the gang."""
        self._key = key if self._conversations.keep(key, data) else None

    def end(self) -> None:
        """The gang is gone."""
        if self._key is not None:
            self._conversations.let_go(self._key)


class Conversations:
    """One for each decoder; belongs to its event loop."""

    def __init__(self, capacity_bytes: int, timeout_s: float) -> None:
        self._capacity, self._timeout_s = capacity_bytes, timeout_s
        # By when they came, so that the oldest that nobody needs goes first.
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._num_bytes = 0
        self._awaited: dict[Key, set[asyncio.Future[None]]] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}

    @contextmanager
    def of(self, gang: pb.OpenGang) -> Iterator[Hold]:
        """While the gang is here; what came with it may be had from now on."""
        hold = Hold(self, gang)
        is_here = not gang.HasField("conversation_reference")
        if is_here and 0 < gang.shared_message_count <= len(gang.conversation):
            messages = gang.conversation[: gang.shared_message_count]
            shared = pb.Conversation(messages=messages, tools=gang.tools)
            data = shared.SerializeToString(deterministic=True)
            hold.keep((current_tenant(), digest_of(data)), data)
        try:
            yield hold
        finally:
            hold.end()

    def data(self, key: Key) -> bytes | None:
        """A conversation, serialized, if it is here."""
        kept = self._kept.get(key)
        return kept.data if kept else None

    def keep(self, key: Key, data: bytes) -> bool:
        """Keeps it for one more gang, until it lets go; False if there is no room."""
        if (kept := self._kept.get(key)) is None:
            if not self._make_room(len(data)):
                return False
            kept = self._kept[key] = _Kept(data)
            self._num_bytes += len(data)
        if kept.expiry is not None:
            kept.expiry.cancel()
            kept.expiry = None
        kept.num_gangs += 1
        for waiting in self._awaited.pop(key, ()):
            if not waiting.done():
                waiting.set_result(None)
        return True

    def let_go(self, key: Key) -> None:
        """One gang less needs it."""
        kept = self._kept[key]
        kept.num_gangs -= 1
        if not kept.num_gangs:
            loop = asyncio.get_running_loop()
            kept.expiry = loop.call_later(LINGER_S, self._drop, key)

    async def get(self, digest: str) -> pb.Conversation:
        """One that is here, for the tenant of the call, or comes soon. Raises NotFound."""
        key = (current_tenant(), digest)
        if key not in self._kept:
            await self._arrival(key)
        if (data := self.data(key)) is None:
            raise NotFound("no such conversation came here; send it whole")
        return pb.Conversation.FromString(data)

    async def fetch(self, reference: pb.ConversationReference) -> bytes:
        """Asks the endpoint that has it. Raises NoEndpoint with CONVERSATION_UNAVAILABLE."""
        stub = AgentDecoderServiceStub(self._channel(reference.address))
        request = pb.FetchConversationRequest(digest=reference.digest)
        try:
            response = await stub.FetchConversation(request, **outgoing(self._timeout_s))
        except grpc.aio.AioRpcError as error:
            raise _unavailable(from_rpc_error(error).code) from None
        except CogitateError as error:
            raise _unavailable(error.code) from None
        data: bytes = response.conversation.SerializeToString(deterministic=True)
        if digest_of(data) != reference.digest:
            raise _unavailable("another conversation")
        return data

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()

    async def _arrival(self, key: Key) -> None:
        """Returns when it is here, or when there is no time left to wait."""
        left_s = remaining_s()
        wait_s = self._timeout_s if left_s is None else min(self._timeout_s, left_s * PATIENCE)
        arrived = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(key, set())
        waiting.add(arrived)
        try:
            await asyncio.wait((arrived,), timeout=wait_s)
        finally:
            waiting.discard(arrived)
            if not waiting and self._awaited.get(key) is waiting:
                del self._awaited[key]

    def _make_room(self, num_bytes: int) -> bool:
        """Drops what no gang needs any more, the oldest first, as far as that is needed."""
        for key in [key for key, kept in self._kept.items() if not kept.num_gangs]:
            if self._num_bytes + num_bytes <= self._capacity:
                break
            self._drop(key)
        return self._num_bytes + num_bytes <= self._capacity

    def _drop(self, key: Key) -> None:
        kept = self._kept.pop(key)
        self._num_bytes -= len(kept.data)
        if kept.expiry is not None:
            kept.expiry.cancel()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address, bulk=True)
        return self._channels[address]


def digest_of(data: bytes) -> str:
    """Names a serialized conversation, as owners do."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _unavailable(said: str) -> NoEndpoint:
    logger.info("a conversation did not come from a neighbour (%s), the owner is asked", said)
    return NoEndpoint(
        "the conversation did not come from the endpoint that was named; send it whole",
        reason="CONVERSATION_UNAVAILABLE",
        metadata={"said": said},
    )
