"""One agent's request to vLLM as a stream of tokens.

A request is for what an agent may sample until it next stands still; what it goes on with is a new
request of everything so far, of which vLLM finds all full blocks in its prefix cache.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import vllm
from cogitate.agent_decoder.core.events import Finish
from cogitate.agent_decoder.core.gang import Gang
from cogitate.agent_decoder.core.sampling import CONFIDENCE_TOP_K
from cogitate.agent_decoder.core.sequence import Agent, Position
from cogitate.agent_decoder.core.starts import GangRules
from cogitate.agent_decoder.stream_engine import Chunk, Drawn, seed_of
from cogitate.agent_decoder.vllm_engine.draws import KEY, request_of
from cogitate.agent_decoder.vllm_engine.grammars import Elsewhere
from cogitate.kit.errors import EngineFailure, InvalidRequest
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import embeds_input, tokens_input
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

# What vLLM does for an agent whose tokens it draws; elsewhere `draws` does all of it.
ITS_OWN = (
    "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repetition_penalty",
)  # fmt: skip


class VllmSource:
    """Draws tokens from an AsyncLLM."""

    shares_prefix = True

    def __init__(self, llm: Any, rules: GangRules, hidden_size: int, *, draws: bool) -> None:
        """``draws``: whether its sampler has ``CounterDraws``."""
        self.rules = rules
        self._llm, self._hidden_size, self._draws = llm, hidden_size, draws
        self._numbers = itertools.count(1)

    @property
    def ready(self) -> bool:
        """Whether vLLM's engine is alive."""
        return not self._llm.errored

    def continues(self, agent: Agent) -> bool:
        """Not within a grammar, which vLLM would begin anew."""
        return agent.matcher is None

    async def draw(self, gang: Gang, agent: Agent, max_tokens: int) -> AsyncGenerator[Chunk, None]:
        """Streams one request; closing it aborts it. Raises CogitateError."""
        if agent.sampled and not self.continues(agent):
            raise InvalidRequest("this endpoint cannot go on within a grammar")
        positions = [*gang.start.prefix, *agent.positions()]
        request = self._llm.generate(
            self._prompt(positions, gang.start.salt),
            self._params(agent, max_tokens),
            f"{gang.key}.{agent.agent_id}.{next(self._numbers)}",
            priority=-gang.start.priority,
        )
        num_prompt = len(positions)
        try:
            async with aclosing(request) as outputs:
                async for output in outputs:
                    yield self._chunk(output, num_prompt, agent.params.logprobs)
                    num_prompt = 0
        except VLLMClientError as error:
            raise InvalidRequest("vLLM refuses the request of this agent") from error

    def _prompt(self, positions: list[Position], salt: str) -> Any:
        """The positions, whose blocks only requests of the same salt find."""
        salted = {"cache_salt": salt} if salt else {}
        ids = [p.token_id for p in positions]
        if all(p.embedding is None for p in positions):
            return tokens_input(ids, **salted)
        rows = np.zeros((len(positions), self._hidden_size), np.float32)
        for i, position in enumerate(positions):
            if position.embedding is not None:
                rows[i] = position.embedding
        return embeds_input(
            torch.from_numpy(rows).to(self._llm.model_config.dtype),
            prompt_token_ids=ids,
            is_token_ids=[p.embedding is None for p in positions],
            **salted,
        )

    def _chunk(self, output: Any, num_prompt: int, num_told: int) -> Chunk:
        (completion,) = output.outputs
        if completion.finish_reason == "error":
            raise EngineFailure("vLLM ended a request with an error")
        return Chunk(
            tokens=_drawn(completion, num_told),
            finish=Finish.LENGTH if completion.finish_reason == "length" else None,
            num_prompt=num_prompt,
            num_cached=min(output.num_cached_tokens or 0, num_prompt),
        )

    def _params(self, agent: Agent, max_tokens: int) -> Any:
        params, outputs = agent.params, None
        if isinstance(agent.matcher, Elsewhere):
            kind = "json" if agent.matcher.constraint.kind == "json_schema" else "regex"
            outputs = StructuredOutputsParams(**{kind: agent.matcher.constraint.text})
        if self._draws:
            # It leaves one token, which is the likeliest.
            how = {"temperature": 0.0, "extra_args": {KEY: request_of(agent, asdict(params))}}
        else:
            how = {name: getattr(params, name) for name in ITS_OWN}
            how["min_tokens"] = min(max_tokens, max(0, params.min_tokens - len(agent.sampled)))
            how["logit_bias"] = dict(params.logit_bias) or None
            # The draw at a position is a function of the seed and the position.
            how["seed"] = seed_of(agent.seed, agent.agent_id, 0)
        return vllm.SamplingParams(
            **how,
            max_tokens=max_tokens,
            # Stop strings and what else ends a turn are the core's; these save vLLM a step.
            stop_token_ids=sorted(agent.stop_ids),
            ignore_eos=agent.params.ignore_eos,
            logprobs=CONFIDENCE_TOP_K,
            detokenize=False,
            structured_outputs=outputs,
            output_kind=RequestOutputKind.DELTA,
        )


def _drawn(completion: Any, num_told: int) -> list[Drawn]:
    """The tokens with what is known of them; the likeliest ``num_told`` of each place."""
    drawn = []
    for token_id, likely in zip(completion.token_ids, completion.logprobs, strict=True):
        # The drawn token is among them whatever its rank.
        ranked = sorted((x.rank, i, x.logprob) for i, x in likely.items())
        top = [(i, value) for rank, i, value in ranked if rank <= CONFIDENCE_TOP_K]
        values = [value for _, value in top if value > -1e4]  # what a grammar forbids is not
        confidence = -sum(values) / len(values) if values else None
        logprob = likely[token_id].logprob
        told = top[:num_told]
        drawn.append(
            Drawn(
                token_id=token_id,
                logprob=0.0 if logprob > 0.0 else logprob,  # NaN stays
                confidence=confidence,
                top=([i for i, _ in told], [value for _, value in told]),
            )
        )
    return drawn
