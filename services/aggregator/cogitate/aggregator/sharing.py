"""A conversation crosses to each site once: who is sent it, and who is told where it is.

A site is a provider's region. Of a contemplation's gangs at one, the first is sent the conversation
and the tools; the others are told its digest, and which endpoint has it. Where that fails they are
sent it, too (``GangClient``). At the aggregator's own site nothing crosses, so all are sent it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cogitate.aggregator import wire
from cogitate.aggregator.config import AggregatorConfig
from cogitate.aggregator.gang_client import GangClient
from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import router_service_pb2 as router_pb

logger = logging.getLogger(__name__)

# For how long an endpoint that could not fetch from another is not told to again.
AVOID_S = 60.0

Site = tuple[str, str]  # provider, region


class Neighbourhoods:
    """Which endpoints could not reach which others, lately; shared by all contemplations."""

    def __init__(
        self, config: AggregatorConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.home: Site = (config.provider, config.region)
        self._clock = clock
        self._avoided: dict[tuple[str, str], float] = {}  # addresses; until when

    def failed(self, asking: str, asked: str) -> None:
        """One had not from the other what it was to have."""
        now = self._clock()
        logger.info("%s had no conversation from %s: it is sent", asking, asked)
        self._avoided = {pair: until for pair, until in self._avoided.items() if until > now}
        self._avoided[asking, asked] = now + AVOID_S

    def may_ask(self, asking: str, asked: str) -> bool:
        """Whether one may be told to fetch from the other."""
        return self._avoided.get((asking, asked), 0.0) <= self._clock()


@dataclass(frozen=True, slots=True)
class _Sent:
    site: Site
    address: str
    gang: GangClient


class Sharing:
    """Of one contemplation: what it sent where."""

    def __init__(self, neighbourhoods: Neighbourhoods, num_messages: int) -> None:
        """num_messages: how many every gang's conversation begins with."""
        self._all, self._num_messages = neighbourhoods, num_messages
        self._sent: list[_Sent] = []

    def join(self, placed: router_pb.PlacedGang, gang: GangClient) -> None:
        """Decides how a gang opens, before it does."""
        site = (placed.provider, placed.region)
        if site == self._all.home or not placed.takes_conversation_references:
            return
        whole = gang.opening
        whole.shared_message_count = self._num_messages
        gang.digest = wire.digest_of(
            pb.Conversation(messages=whole.conversation[: self._num_messages], tools=whole.tools)
        )
        for sent in self._sent:
            near = sent.site == site and self._all.may_ask(placed.address, sent.address)
            # A gang without tools does with a conversation that has some.
            if near and (held := sent.gang.held) and (held == gang.digest or not whole.tools):
                reference = pb.ConversationReference(
                    digest=held, address=sent.address, without_tools=not whole.tools
                )
                gang.refer(reference, partial(self._all.failed, placed.address, sent.address))
                break
        self._sent.append(_Sent(site, placed.address, gang))
