"""Tokens by name, for whoever asked for log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from cogitate.v1 import agent_decoder_service_pb2 as pb
from cogitate.v1 import common_pb2 as common

_REMEMBERED = 4096


class Speller:
    """Writes the text of tokens beside their ids; of control tokens it is empty."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._text = lru_cache(_REMEMBERED)(lambda token_id: decode((token_id,)))

    def spell(self, step: pb.GangStep, params: Mapping[int, common.SamplingParams]) -> None:
        """Fills in the text for agents whose `params` ask for it, by agent id."""
        for delta in step.deltas:
            asked = params.get(delta.agent_id)
            if asked is None or not asked.HasField("logprobs"):
                continue
            delta.tokens.extend(map(self._text, delta.token_ids))
            for top in delta.top_logprobs:
                top.tokens.extend(map(self._text, top.token_ids))
