"""Counter-based sampling: the draw depends on (seed, agent, sampled tokens) and nothing else.

Named dimensions: ``B`` sequences, ``V`` vocabulary.

Invariants (``tests/unit/test_sampling.py``, ``tests/property/test_sampling.py``):

1. A row's draw does not depend on the other rows.
2. A sampled token is never outside the kept set of top-k, top-p and min-p.
3. Temperature 0 is the greedy argmax, ties to the lowest token id.

Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

# DeepConf's token confidence: mean negative log probability of this many likeliest tokens.
CONFIDENCE_TOP_K = 20


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one agent samples; the defaults change nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    @property
    def adjusts_logits(self) -> bool:
        """Whether penalties or biases change the logits of this row."""
        return bool(
            self.frequency_penalty
            or self.presence_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn for a batch, row by row."""

    token_ids: list[int]
    logprobs: list[float]  # of the drawn tokens under the unmodified distribution, natural log
    confidences: list[float]  # mean negative log probability of the likeliest tokens
    top: list[tuple[list[int], list[float]]]  # asked-for likeliest tokens; empty lists elsewhere


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds of Philox. counter (B, 4), key (B, 2), values below 2**32 → (B, 4) uint32."""
    words = [counter[:, i].astype(np.uint64) for i in range(4)]
    keys = [key[:, i].astype(np.uint64) for i in range(2)]
    for _ in range(10):
        products = (_MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2])
        words = [
            (products[1] >> _SHIFT) ^ words[1] ^ keys[0],
            products[1] & _MASK,
            (products[0] >> _SHIFT) ^ words[3] ^ keys[1],
            products[0] & _MASK,
        ]
        keys = [(keys[0] + _WEYL[0]) & _MASK, (keys[1] + _WEYL[1]) & _MASK]
    return np.stack(words, axis=1).astype(np.uint32)


def uniforms(seeds: Sequence[int], agent_ids: Sequence[int], counts: Sequence[int]) -> np.ndarray:
    """One draw in [0, 1) a row, with 53 random bits. seeds may be any 64-bit integers. → (B,)."""
    mask = 0xFFFFFFFF
    key = np.array([[seed & mask, (seed >> 32) & mask] for seed in seeds], dtype=np.uint64)
    counter = np.array(
        [
            [count & mask, (count >> 32) & mask, agent_id & mask, 0]
            for agent_id, count in zip(agent_ids, counts, strict=True)
        ],
        dtype=np.uint64,
    )
    words = philox4x32(counter, key).astype(np.uint64)
    bits = ((words[:, 0] >> np.uint64(5)) << np.uint64(26)) | (words[:, 1] >> np.uint64(6))
    return bits.astype(np.float64) / float(1 << 53)


def adjust_logits(
    logits: torch.Tensor, params: SamplingParams, sampled_token_ids: Sequence[int]
) -> torch.Tensor:
    """Applies penalties and biases to one row (V,); returns a new row."""
    row = logits.clone()
    if sampled_token_ids:
        ids, counts = torch.unique(torch.tensor(sampled_token_ids), return_counts=True)
        values = row[ids]
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - params.frequency_penalty * counts - params.presence_penalty
        row[ids] = values
    for token_id, bias in params.logit_bias:
        row[token_id] += bias
    return row


def keep_mask(probs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens of one row (V,) of probabilities may be drawn. The likeliest always may."""
    keep = torch.ones_like(probs, dtype=torch.bool)
    if 0 < params.top_k < probs.numel():
        threshold = torch.topk(probs, params.top_k).values[-1]
        keep &= probs >= threshold
    if params.min_p > 0.0:
        keep &= probs >= params.min_p * probs.max()
    if params.top_p < 1.0:
        ordered, order = torch.sort(probs, descending=True, stable=True)
        # A token stays if the mass before it is still under top_p: the first always stays.
        before = torch.cumsum(ordered, 0) - ordered
        keep &= torch.zeros_like(keep).scatter(0, order, before < params.top_p)
    return keep


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    seeds: Sequence[int],
    agent_ids: Sequence[int],
    sampled: Sequence[Sequence[int]],
) -> Sampled:
    """Draws one token a row.

    logits (B, V) float32; ``sampled`` holds each agent's own sampled tokens so far, whose number is
    the counter of its random stream.
    """
    log_probs = torch.log_softmax(logits, dim=-1)
    rows = logits
    if any(p.adjusts_logits for p in params):
        rows = torch.stack(
            [
                adjust_logits(logits[i], p, sampled[i]) if p.adjusts_logits else logits[i]
                for i, p in enumerate(params)
            ]
        )
    token_ids = rows.argmax(dim=-1)
    drawn = [i for i, p in enumerate(params) if p.temperature > 0.0]
    if drawn:
        draws = uniforms(
            [seeds[i] for i in drawn],
            [agent_ids[i] for i in drawn],
            [len(sampled[i]) for i in drawn],
        )
        token_ids[drawn] = _draw(rows[drawn], [params[i] for i in drawn], draws)
    top_k = min(CONFIDENCE_TOP_K, logits.shape[-1])
    top_values, top_ids = log_probs.topk(top_k, dim=-1)
    confidences = (-top_values.mean(dim=-1)).tolist()
    top = [
        (top_ids[i, : p.logprobs].tolist(), top_values[i, : p.logprobs].tolist())
        if p.logprobs
        else ([], [])
        for i, p in enumerate(params)
    ]
    chosen = log_probs.gather(1, token_ids[:, None])[:, 0].tolist()
    return Sampled(token_ids.tolist(), chosen, confidences, top)


def _draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], draws: np.ndarray
) -> torch.Tensor:
    """Inverse-CDF draw in float64, so rounding does not hang on the batch. → (B,) int64."""
    temperatures = torch.tensor([p.temperature for p in params], dtype=torch.float64)
    probs = torch.softmax(logits.double() / temperatures[:, None], dim=-1)
    for i, p in enumerate(params):
        if p.top_k or p.min_p or p.top_p < 1.0:
            probs[i] *= keep_mask(probs[i], p)
    cumulative = probs.cumsum(dim=-1)
    targets = torch.from_numpy(draws).unsqueeze(1) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    # Rounding may land past the last kept token: step back to the last one with mass.
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(index, last)
