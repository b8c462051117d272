"""What a step costs a model: operations and bytes, from its dimensions and what the step had.

Counted are the matrix products and attention; an addition and a multiplication are two operations.
Left out are norms, activations, the table of tokens and sampling. Bytes are the least that must
move: every weight once a step, every cached position once a sequence, the prefix that a gang shares
once a gang, new positions written.

Test: ``tests/unit/test_work.py``, against a count by hand.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of one number; of bytes with scales, the scales' share is in it."""

    weight: float
    head: float  # of the table of tokens
    cache: float


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Shape of a Llama-family model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def num_weights(self) -> int:
        """Weights of all layers' projections."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads  # q and o, k and v
        attention = self.hidden_size * heads * self.head_dim
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)


@dataclass(slots=True)
class Totals:
    """What steps had. Work is linear in all of it, so sums over many steps do as well."""

    num_steps: int = 0
    num_positions: int = 0  # computed, and written to the cache
    num_logit_rows: int = 0
    num_attended: int = 0  # pairs of a computed position and one that it saw, itself included
    num_read: int = 0  # positions read from the cache, shared ones once a gang

    def add(self, chunks: list[tuple[int, int, int]], num_shared: int) -> None:
        """Takes a step in. A chunk: its positions, its sequence's with them, those it shares.

        ``num_shared`` are the positions that gangs share, each gang's once.
        """
        self.num_steps += 1
        self.num_logit_rows += len(chunks)
        read = num_shared
        for length, end, shared in chunks:
            self.num_positions += length
            self.num_attended += length * end - length * (length - 1) // 2
            read += end - shared
        self.num_read += read


def operations(model: Dimensions, had: Totals) -> int:
    """Floating point operations of the steps."""
    head = model.vocab_size * model.hidden_size
    score_and_mix = 2 * model.num_layers * model.num_heads * model.head_dim
    products = model.num_weights * had.num_positions + head * had.num_logit_rows
    return 2 * (products + score_and_mix * had.num_attended)


def traffic(model: Dimensions, precision: Precision, had: Totals) -> float:
    """Bytes the steps had to move at least."""
    head = model.vocab_size * model.hidden_size * precision.head
    weights = model.num_weights * precision.weight + head
    position = 2 * model.num_layers * model.num_kv_heads * model.head_dim * precision.cache
    return weights * had.num_steps + position * (had.num_read + had.num_positions)
