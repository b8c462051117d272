"""Counter-based sampling: the draw depends on (seed, agent, sampled tokens) and nothing else.

Named dimensions: ``B`` sequences, ``V`` vocabulary.

Invariants (``tests/unit/test_sampling.py``, ``tests/property/test_sampling.py``):

1. A row's draw does not depend on the other rows.
2. A sampled token is never outside the kept set of top-k, top-p and min-p.
3. Temperature 0 is the greedy argmax, ties to the lowest token id.

Source: Philox4x32-10, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cogitate.agent_decoder.core.constraint import restrict

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

    @property
    def cuts_tail(self) -> bool:
        """Whether some tokens of this row may not be drawn."""
        return bool(self.top_k or self.min_p or self.top_p < 1.0)


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of a batch is sampled with."""

    params: SamplingParams
    sampled: Sequence[int]  # the agent's own sampled tokens so far
    draw: float  # its random number for this token, in [0, 1)
    banned: Collection[int] = ()  # tokens that may not be drawn now
    allowed: torch.Tensor | None = None  # (V,) bool: a grammar lets only these be drawn

    @property
    def adjusts_logits(self) -> bool:
        """Whether what is drawn from is not the model's own distribution."""
        return bool(self.banned) or self.allowed is not None or self.params.adjusts_logits


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was drawn for a batch, row by row. Where logits are not finite, neither is logprob."""

    token_ids: list[int]
    logprobs: list[float]  # of the drawn tokens under the unmodified distribution, natural log
    confidences: list[float]  # mean negative log probability of the likeliest tokens
    top: list[tuple[list[int], list[float]]]  # asked-for likeliest tokens; empty lists elsewhere


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Ten rounds of Philox. counter (B, 4), key (B, 2), values below 2**32 → (B, 4) uint32."""
    words = [counter[:, i].astype(np.uint64) for i in range(4)]
    keys = [key[:, i].astype(np.uint64) for i in range(2)]
    for _ in range(10):
        products = [_MULTIPLIERS[0] * words[0], _MULTIPLIERS[1] * words[2]]
        words = [
            (products[1] >> _SHIFT) ^ words[1] ^ keys[0],
            products[1] & _MASK,
            (products[0] >> _SHIFT) ^ words[3] ^ keys[1],
            products[0] & _MASK,
        ]
        keys = [(keys[0] + _WEYL[0]) & _MASK, (keys[1] + _WEYL[1]) & _MASK]
    return np.stack(words, axis=1).astype(np.uint32)


def uniforms(seed: int, agent_id: int, first: int, count: int) -> list[float]:
    """An agent's draws for its tokens ``first`` .. ``first + count - 1``: in [0, 1), 53 bits each.

    seed may be any 64-bit integer. Many at once cost hardly more than one.
    """
    mask = 0xFFFFFFFF
    key = np.array([[seed & mask, (seed >> 32) & mask]], dtype=np.uint64).repeat(count, axis=0)
    counter = np.zeros((count, 4), dtype=np.uint64)
    offsets = np.arange(first, first + count, dtype=np.uint64)
    counter[:, 0], counter[:, 1] = offsets & _MASK, offsets >> _SHIFT
    counter[:, 2] = agent_id & mask
    words = philox4x32(counter, key).astype(np.uint64)
    bits = ((words[:, 0] >> np.uint64(5)) << np.uint64(26)) | (words[:, 1] >> np.uint64(6))
    draws: list[float] = (bits.astype(np.float64) / float(1 << 53)).tolist()
    return draws


def adjust_logits(logits: torch.Tensor, row: Row) -> None:
    """Applies penalties, biases, bans and a grammar to one row (V,), in place."""
    params = row.params
    if row.sampled and params.adjusts_logits:
        ids, counts = torch.unique(torch.tensor(row.sampled), return_counts=True)
        values = logits[ids]
        if params.repetition_penalty != 1.0:
            penalty = params.repetition_penalty
            values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - params.frequency_penalty * counts - params.presence_penalty
        logits[ids] = values
    for token_id, bias in params.logit_bias:
        logits[token_id] += bias
    if row.allowed is not None:
        restrict(logits, row.allowed, row.banned)
    else:
        for token_id in row.banned:
            logits[token_id] = -torch.inf


def adjust_all(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Adjusts the rows of a batch (B, V) that ask for it; returns it as it is where none does."""
    asking = [i for i, row in enumerate(rows) if row.adjusts_logits]
    if not asking:
        return logits
    adjusted = logits.clone()
    for i in asking:
        adjust_logits(adjusted[i], rows[i])
    return adjusted


def keep_mask(probs: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Which tokens of one row (V,) of probabilities may be drawn. The likeliest always may.

    top-k, min-p and top-p each look at the whole distribution; a token must pass all three. Tokens
    as likely as the k-th all pass top-k.
    """
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


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> Sampled:
    """Draws one token a row. logits (B, V) float32 on the CPU, row i belonging to ``rows[i]``."""
    token_ids = choose(adjust_all(logits, rows), rows)
    return _report(logits, token_ids, rows)


def choose(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """One token a row of adjusted logits (B, V). → (B,) int64."""
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0.0]
    if len(drawn) == len(rows):
        return _draw(logits, rows)
    token_ids = logits.argmax(dim=-1)
    if drawn:
        token_ids[drawn] = _draw(logits[drawn], [rows[i] for i in drawn])
    return token_ids


def _draw(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Inverse-CDF draw in float64, so rounding does not hang on the batch. → (B,) int64."""
    columns = torch.tensor([(r.params.temperature, r.draw) for r in rows], dtype=torch.float64)
    probs = torch.softmax(logits.double() / columns[:, :1], dim=-1)
    for i, row in enumerate(rows):
        if row.params.cuts_tail:
            probs[i] *= keep_mask(probs[i], row.params)
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Under the total even where the product rounds up to it, so that the token found has mass.
    targets = torch.minimum(columns[:, 1:] * total, torch.nextafter(total, torch.zeros(1).double()))
    index = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return index.clamp_(max=logits.shape[-1] - 1)  # only logits that are not finite get there


def _report(logits: torch.Tensor, token_ids: torch.Tensor, rows: Sequence[Row]) -> Sampled:
    """Log probabilities under the model's own distribution, temperature and penalties left out."""
    top_values, top_ids = logits.topk(min(CONFIDENCE_TOP_K, logits.shape[-1]), dim=-1)
    norms = logits.logsumexp(dim=-1, keepdim=True)
    top_values = top_values - norms
    chosen = logits.gather(1, token_ids[:, None]) - norms
    top: list[tuple[list[int], list[float]]] = [([], [])] * len(rows)
    for i, row in enumerate(rows):
        if count := row.params.logprobs:
            top[i] = top_ids[i, :count].tolist(), top_values[i, :count].tolist()
    confidences = top_values.mean(dim=-1).neg_()
    return Sampled(token_ids.tolist(), chosen[:, 0].tolist(), confidences.tolist(), top)
