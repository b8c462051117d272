"""Which vision-encoder is asked: that of this endpoint's site first, then the one a gang names."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.kit.channels import deadline_scope
from cogitate.kit.errors import CogitateError, NoEndpoint
from cogitate.v1 import agent_decoder_service_pb2 as pb

logger = logging.getLogger(__name__)

T = TypeVar("T")


def encoders_of(config: AgentDecoderConfig, gang: pb.OpenGang) -> tuple[str, ...]:
    """Their addresses, in the order in which they are asked."""
    named = (config.vision_encoder_address, gang.vision_encoder_address)
    return tuple(dict.fromkeys(filter(None, named)))


async def first_of(
    addresses: Sequence[str], timeout_s: float, ask: Callable[[str], Awaitable[T]]
) -> T:
    """What the first says, or the next where that one fails, all within `timeout_s`.

    One that has another behind it gets half of the time. Raises what the last one said, NoEndpoint
    if there is none.
    """
    if not addresses:
        raise NoEndpoint("the gang has images but no vision-encoder was named")
    *first, last = addresses
    with deadline_scope(timeout_s):
        for address in first:
            try:
                with deadline_scope(timeout_s / 2):
                    return await ask(address)
            except CogitateError as error:
                logger.info("a vision-encoder said %s, the gang's is asked", error.code)
        return await ask(last)
