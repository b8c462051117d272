"""The forward pass over a block-table cache against plain full-sequence Llama in float64."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Seq

import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model.batch import build_step
from cogitate.agent_decoder.model.llama import Llama, LlamaConfig
from cogitate.agent_decoder.model.looks import Tiles

pytestmark = pytest.mark.unit

VOCAB, HIDDEN, NUM_BLOCKS, BLOCK = 40, 16, 16, 4
CPU = torch.device("cpu")
Weights = dict[str, torch.Tensor]
Cache = list[torch.Tensor]


def make(
    heads: int, kv_heads: int, *, tied: bool = True, dim: int = 6
) -> tuple[LlamaConfig, Weights]:
    config = LlamaConfig(HIDDEN, 24, 2, heads, kv_heads, dim, VOCAB, 1e-5, 500.0, 64, tied)
    generator = torch.Generator().manual_seed(heads * 10 + kv_heads)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5

    weights = {"model.embed_tokens.weight": random(VOCAB, HIDDEN) * 4}
    weights["model.norm.weight"] = 1 + random(HIDDEN)
    if not tied:
        weights["lm_head.weight"] = random(VOCAB, HIDDEN)
    for i in range(config.num_layers):
        p = f"model.layers.{i}"
        weights |= {
            f"{p}.input_layernorm.weight": 1 + random(HIDDEN),
            f"{p}.post_attention_layernorm.weight": 1 + random(HIDDEN),
            f"{p}.self_attn.q_proj.weight": random(heads * dim, HIDDEN),
            f"{p}.self_attn.k_proj.weight": random(kv_heads * dim, HIDDEN),
            f"{p}.self_attn.v_proj.weight": random(kv_heads * dim, HIDDEN),
            f"{p}.self_attn.o_proj.weight": random(HIDDEN, heads * dim),
            f"{p}.mlp.gate_proj.weight": random(24, HIDDEN),
            f"{p}.mlp.up_proj.weight": random(24, HIDDEN),
            f"{p}.mlp.down_proj.weight": random(HIDDEN, 24),
        }
    return config, weights


def reference(config: LlamaConfig, weights: Weights, positions: Seq[Position]) -> torch.Tensor:
    """Logits of every position, written from the paper with loops: (T, vocab) float64."""
    w = {name: value.double() for name, value in weights.items()}
    rows = [
        w["model.embed_tokens.weight"][p.token_id] if p.embedding is None
        else torch.from_numpy(p.embedding).double()
        for p in positions
    ]  # fmt: skip
    x, d = torch.stack(rows), config.head_dim

    def norm(v: torch.Tensor, name: str) -> torch.Tensor:
        scale = (v.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()
        return v * scale * w[name]

    def rope(v: torch.Tensor) -> torch.Tensor:  # (heads, T, d)
        out = v.clone()
        for t in range(v.shape[1]):
            for i in range(d // 2):
                angle = torch.tensor(t * config.rope_theta ** (-2 * i / d), dtype=torch.float64)
                a, b = v[:, t, i], v[:, t, i + d // 2]
                out[:, t, i] = a * angle.cos() - b * angle.sin()
                out[:, t, i + d // 2] = b * angle.cos() + a * angle.sin()
        return out

    for layer in range(config.num_layers):
        p = f"model.layers.{layer}"
        n = norm(x, f"{p}.input_layernorm.weight")
        q, k, v = (
            (n @ w[f"{p}.self_attn.{c}_proj.weight"].T).view(len(rows), -1, d).transpose(0, 1)
            for c in "qkv"
        )
        q, k = rope(q), rope(k)
        mixed = []
        for head in range(config.num_heads):
            kv = head * config.num_kv_heads // config.num_heads
            scores = q[head] @ k[kv].T / d**0.5
            future = torch.ones(len(rows), len(rows)).triu(1).bool()
            mixed.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[kv])
        x = x + torch.cat(mixed, dim=-1) @ w[f"{p}.self_attn.o_proj.weight"].T
        n = norm(x, f"{p}.post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(n @ w[f"{p}.mlp.gate_proj.weight"].T)
        x = x + (gate * (n @ w[f"{p}.mlp.up_proj.weight"].T)) @ w[f"{p}.mlp.down_proj.weight"].T
    head_name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return norm(x, "model.norm.weight") @ w[head_name].T


def step(llama: Llama, cache: Cache, *chunks: Chunk) -> torch.Tensor:
    """One engine step; returns the logits of each chunk's last position."""
    made = build_step(chunks, BLOCK, NUM_BLOCKS * BLOCK, CPU)
    logits = llama.forward(made, cache)
    for chunk in chunks:
        chunk.sequence.num_computed += chunk.length
        for _ in range(chunk.length):
            chunk.sequence.pending.popleft()
    return logits


def sequence(positions: Seq[Position], blocks: Seq[int], num_computed: int = 0) -> Sequence:
    return Sequence(deque(positions), list(blocks), num_computed)


def tokens(*ids: int) -> list[Position]:
    return [Position(i) for i in ids]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("heads", "kv_heads", "tied"), [(4, 4, True), (4, 2, False), (6, 1, True)])
def test_prefill_and_decode(heads: int, kv_heads: int, tied: bool) -> None:
    config, weights = make(heads, kv_heads, tied=tied)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    positions = tokens(3, 1, 4, 1, 5, 9, 2, 6, 5)
    expected = reference(config, weights, positions)
    made = sequence(positions, [7, 2, 11])  # scattered on purpose
    close(step(llama, cache, Chunk(made, 6))[0], expected[5])
    for at in (6, 7, 8):
        close(step(llama, cache, Chunk(made, 1))[0], expected[at])


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 9])
def test_chunked_prefill(chunk: int) -> None:
    config, weights = make(4, 2)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    positions = tokens(*range(9))
    made = sequence(positions, [1, 3, 5])
    while made.pending:
        logits = step(llama, cache, Chunk(made, min(chunk, len(made.pending))))
    close(logits[0], reference(config, weights, positions)[-1])


def test_unlike_sequences_in_one_step() -> None:
    """A decode, a short and a long chunk together: each as if it were alone."""
    config, weights = make(4, 2)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    decoding, short, other, long = (
        tokens(1, 2, 3, 4, 5), tokens(6, 7, 8), tokens(20, 21), tokens(*range(9, 20))
    )  # fmt: skip
    first = sequence(decoding, [0, 1])
    step(llama, cache, Chunk(first, 4))
    logits = step(
        llama,
        cache,
        Chunk(first, 1),
        Chunk(sequence(short, [2]), 3),
        Chunk(sequence(other, [9]), 2),
        Chunk(sequence(long, [3, 4, 5]), 11),
    )
    for row, positions in enumerate((decoding, short, other, long)):
        close(logits[row], reference(config, weights, positions)[-1])


def test_embeddings_in_place_of_tokens() -> None:
    config, weights = make(4, 2)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    rows = np.random.default_rng(0).normal(size=(3, HIDDEN)).astype(np.float32)
    positions = [*tokens(1, 2), *(Position(6, row) for row in rows), *tokens(3)]
    found = step(llama, cache, Chunk(sequence(positions, [4, 8]), 6))[0]
    close(found, reference(config, weights, positions)[-1])
    assert not torch.allclose(
        found.double(), reference(config, weights, tokens(1, 2, 6, 6, 6, 3))[-1]
    )


def test_forks_share_full_blocks_and_copy_the_partial_one() -> None:
    config, weights = make(4, 2)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    prefix = tokens(1, 2, 3, 4, 5, 6)
    step(llama, cache, Chunk(sequence(prefix, [0, 1]), 6))
    forks = []
    for agent, block in enumerate((5, 6)):
        for layer in cache:
            layer[block * BLOCK : (block + 1) * BLOCK] = layer[BLOCK : 2 * BLOCK]
        fork = sequence(tokens(10 + agent, 20 + agent, 30), [0, block, 8 + agent])
        fork.num_computed = 6
        forks.append(fork)
    for _ in range(3):
        logits = step(llama, cache, *(Chunk(fork, 1) for fork in forks))
    for agent in (0, 1):
        written = [*prefix, *tokens(10 + agent, 20 + agent, 30)]
        close(logits[agent], reference(config, weights, written)[-1])


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_what_many_share_is_looked_at_once(heads: int, kv_heads: int, in_tiles: bool) -> None:
    """Four on a prefix, one of them with a chunk, beside a stranger."""
    config, weights = make(heads, kv_heads)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    tiles = Tiles(rows=8, queries=2, positions=12, looks=2) if in_tiles else None
    prefix = tokens(*range(24))
    step(llama, cache, Chunk(sequence(prefix, [0, 2, 4, 6, 8, 10]), 24))
    written = [[*prefix, *tokens(*range(30, 31 + i))] for i in (0, 0, 3, 0)]
    made = [sequence(all_[24:], [0, 2, 4, 6, 8, 10, 11 + i], 24) for i, all_ in enumerate(written)]
    chunks = [Chunk(one, len(one.pending)) for one in made]
    stranger = tokens(7, 8, 9)
    chunks.insert(2, Chunk(sequence(stranger, [15]), 3))
    written.insert(2, stranger)
    laid_out = build_step(chunks, BLOCK, NUM_BLOCKS * BLOCK, CPU, tiles)
    assert laid_out.looks and len(laid_out.groups) == (0 if in_tiles else 1)
    logits = llama.forward(laid_out, cache)
    for row, positions in enumerate(written):
        close(logits[row], reference(config, weights, positions)[-1])


def test_a_neighbour_that_is_not_finite_harms_nobody() -> None:
    """Its NaN is in the cache, in slot 0 even, where padding would look if it looked anywhere."""
    config, weights = make(4, 2)
    llama = Llama(config, weights, dtype=torch.float32, device=CPU)
    cache = llama.new_cache(NUM_BLOCKS * BLOCK)
    sick = [Position(1, np.full(HIDDEN, np.nan, dtype=np.float32)), *tokens(*range(8))]
    well = tokens(5, 6)
    made = sequence(sick, [0, 1, 2]), sequence(well, [3])
    step(llama, cache, Chunk(made[0], 8), Chunk(made[1], 1))
    logits = step(llama, cache, Chunk(made[0], 1), Chunk(made[1], 1))
    assert not logits[0].isfinite().any()
    close(logits[1], reference(config, weights, well)[-1])


def test_bfloat16_is_near() -> None:
    config, weights = make(4, 2, dim=8)
    rounded = {name: w.bfloat16().float() for name, w in weights.items()}
    llama = Llama(config, weights, dtype=torch.bfloat16, device=CPU)
    positions = tokens(3, 1, 4, 1, 5)
    found = step(llama, llama.new_cache(NUM_BLOCKS * BLOCK), Chunk(sequence(positions, [0, 1]), 5))
    expected = reference(config, rounded, positions)[-1]
    assert torch.nn.functional.cosine_similarity(found[0].double(), expected, dim=0) > 0.999


def test_the_layout_of_a_step() -> None:
    first = sequence(tokens(11, 12), [3, 1])
    first.num_computed = 4
    second = sequence([Position(6, np.ones(HIDDEN, dtype=np.float32)), *tokens(13, 14)], [2])
    made = build_step([Chunk(first, 1), Chunk(second, 3)], BLOCK, NUM_BLOCKS * BLOCK, CPU)
    assert made.token_ids.tolist() == [11, 6, 13, 14]
    assert made.positions.tolist() == [4, 0, 1, 2]
    assert made.slots.tolist() == [4, 8, 9, 10]
    assert made.embedding_rows is not None and made.embedding_rows.tolist() == [1]
    assert made.logit_rows is not None and made.logit_rows.tolist() == [0, 3]
    decoding, chunked = made.groups
    assert decoding.slots.tolist() == [[12, 13, 14, 15, 4]]
    assert decoding.mask.tolist() == [[[[True] * 5]]]
    assert chunked.rows.tolist() == [[1, 2, 3]]
    assert chunked.mask[0, 0].tolist() == [
        [True, False, False], [True, True, False], [True, True, True]
    ]  # fmt: skip


def test_padding_points_at_no_bodys_slot() -> None:
    chunks = [Chunk(sequence(tokens(1, 2, 3), [1]), 3), Chunk(sequence(tokens(1, 2), [2]), 2)]
    (group,) = build_step(chunks, BLOCK, NUM_BLOCKS * BLOCK, CPU).groups
    assert group.slots.tolist() == [[4, 5, 6], [8, 9, NUM_BLOCKS * BLOCK]]
    assert group.valid.tolist() == [[True] * 3, [True, True, False]]
