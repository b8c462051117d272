"""Our counter-based draws inside vLLM's sampler, in the process of each of its workers.

vLLM draws an agent's tokens one after the other from a generator that begins with its request, so
a request that goes on where another stopped would draw anew. Here the draw of a token is the native
engine's: Philox(seed; agent, tokens sampled so far), by the same code. All but the drawn token is
taken out of the logits, of which vLLM then takes the likeliest; penalties, biases, bans and cuts
are the native engine's, too. What a grammar forbids vLLM has taken out before.

Log probabilities are vLLM's of the logits as the model gave them (`raw_logprobs`, its default).
"""

from __future__ import annotations

from typing import Any

import torch
from cogitate.agent_decoder.core.sampling import Row, SamplingParams, adjust_all, choose, uniforms
from cogitate.agent_decoder.core.sequence import DRAWS_AHEAD, Agent
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

# Where a request carries what is drawn with, among vLLM's extra arguments.
KEY = "cogitate"


def request_of(agent: Agent, params: dict[str, Any]) -> dict[str, Any]:
    """What a request of the agent draws with, as vLLM's messages carry it."""
    return {
        "params": params,
        "seed": agent.seed,
        "agent_id": agent.agent_id,
        "stop_ids": sorted(agent.stop_ids),
        "num_sampled": len(agent.sampled),
        # Penalties alone look at earlier tokens.
        "sampled": list(agent.sampled) if agent.params.adjusts_logits else [],
        "follows": agent.matcher is not None,
    }


class _Draws:
    """One request. ``output`` is vLLM's own list, which grows with every token."""

    def __init__(self, request: dict[str, Any], output: list[int]) -> None:
        self._params = SamplingParams(**request["params"])
        self._seed, self._agent_id = request["seed"], request["agent_id"]
        self._stop_ids = frozenset(request["stop_ids"])
        self._first, self._sampled = request["num_sampled"], request["sampled"]
        self._follows, self._output = request["follows"], output
        self._draws: list[float] = []
        self._draws_from = 0

    def row(self, logits: torch.Tensor) -> Row:
        """What its next token is drawn with. logits (V,), without what a grammar forbids."""
        num_sampled = self._first + len(self._output)
        index = num_sampled - self._draws_from
        if not 0 <= index < len(self._draws):
            self._draws_from, index = num_sampled, 0
            self._draws = uniforms(self._seed, self._agent_id, num_sampled, DRAWS_AHEAD)
        banned = frozenset() if num_sampled >= self._params.min_tokens else self._stop_ids
        sampled = [*self._sampled, *self._output] if self._params.adjusts_logits else ()
        allowed = logits > -torch.inf if self._follows else None
        return Row(self._params, sampled, self._draws[index], banned, allowed)


class CounterDraws(LogitsProcessor):  # type: ignore[misc]  # vLLM is not there when types are
    """Leaves one token a row of those who ask for it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._of: dict[int, _Draws] = {}

    def is_argmax_invariant(self) -> bool:
        """It decides what is likeliest."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows requests as they come, move and go."""
        process_dict_updates(self._of, batch_update, _state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits (B, V) float32; changed in place."""
        indices = [i for i in sorted(self._of) if i < len(logits)]
        if not indices:
            return logits
        mine = logits[indices]
        rows = [self._of[i].row(row) for i, row in zip(indices, mine, strict=True)]
        chosen = choose(adjust_all(mine, rows), rows)
        logits[indices] = -torch.inf
        logits[indices, chosen] = 0.0
        return logits


def _state(params: Any, prompt: list[int] | None, output: list[int]) -> _Draws | None:
    request = (params.extra_args or {}).get(KEY)
    return None if request is None else _Draws(request, output)
