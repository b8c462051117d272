"""Attention over shared stretches, merged, against plain softmax over each whole context."""

from __future__ import annotations

import random
from collections import deque

import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence
from cogitate.agent_decoder.model.attention import attend
from cogitate.agent_decoder.model.batch import build_step
from cogitate.agent_decoder.model.llama import LlamaConfig, StepInput
from cogitate.agent_decoder.model.looks import Tiles
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.property

BLOCK, NUM_SLOTS, CPU = 4, 4 * 400, torch.device("cpu")
HEADS = st.sampled_from([(4, 4, 8), (6, 2, 8), (5, 1, 6), (2, 2, 16)])


def sequence(table: list[int], num_computed: int, length: int) -> Sequence:
    return Sequence(deque([Position(0)] * length), table, num_computed)


@st.composite
def gangs(draw: st.DrawFn) -> list[Chunk]:
    """Sequences that begin as others do: prefixes, forks of forks, strangers; one row or many."""
    dice = random.Random(draw(st.integers(0, 2**32)))
    blocks = dice.sample(range(NUM_SLOTS // BLOCK), NUM_SLOTS // BLOCK)
    chunks: list[Chunk] = []
    for _ in range(draw(st.integers(1, 9))):
        table: list[int] = []
        if chunks and dice.random() < 0.85:
            parent = dice.choice(chunks).sequence
            full = parent.num_computed // BLOCK
            table = parent.block_table[: dice.choice([full, dice.randint(0, full)])]
        length = dice.choice([1, 1, 1, dice.randint(2, 40)])
        num_computed = len(table) * BLOCK + dice.choice([0, dice.randint(0, 20), 90])
        while len(table) * BLOCK < num_computed + length:
            table.append(blocks.pop())
        chunks.append(Chunk(sequence(table, num_computed, length), length))
    dice.shuffle(chunks)
    return chunks


def contents(step: StepInput, heads: tuple[int, int, int], dtype: torch.dtype) -> tuple[
    torch.Tensor, torch.Tensor
]:  # fmt: skip
    """Queries of the step's rows, and a cache in which only the padding's slot is zero."""
    generator = torch.Generator().manual_seed(len(step.token_ids))
    num_heads, kv_heads, dim = heads
    query = torch.randn(len(step.token_ids), num_heads, dim, generator=generator) * 2
    kv = torch.randn(NUM_SLOTS + 1, 2, kv_heads, dim, generator=generator)
    kv[-1] = 0
    return query.to(dtype), kv.to(dtype)


def slow(chunks: list[Chunk], query: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """Each query alone in float64: scores of all it sees, their softmax, the mean of values."""
    query, kv = query.double(), kv.double()
    found = torch.empty_like(query)
    repeat, row = query.shape[1] // kv.shape[2], 0
    for chunk in chunks:
        slots = [b * BLOCK + i for b in chunk.sequence.block_table for i in range(BLOCK)]
        for position in range(
            chunk.sequence.num_computed, chunk.sequence.num_computed + chunk.length
        ):
            seen = kv[slots[: position + 1]]
            for head in range(query.shape[1]):
                scores = seen[:, 0, head // repeat] @ query[row, head] / query.shape[2] ** 0.5
                found[row, head] = scores.softmax(0) @ seen[:, 1, head // repeat]
            row += 1
    return found


def looked(step: StepInput, query: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
    """What the looks of the step give; NaN for rows that are in none."""
    return attend(query, [look.placed(kv.shape[2], _rows(step)) for look in step.looks], kv)[
        : len(step.token_ids)
    ]


def _rows(step: StepInput) -> int:
    return len(step.token_ids) + (-len(step.token_ids) % step.tile if step.tile else 0)


def padded(step: StepInput, query: torch.Tensor) -> torch.Tensor:
    return torch.cat([query, query.new_zeros(_rows(step) - len(query), *query.shape[1:])])


def tiles_of(heads: tuple[int, int, int]) -> Tiles:
    num_heads, kv_heads, dim = heads
    return Tiles.of(LlamaConfig(16, 16, 1, num_heads, kv_heads, dim, 9, 1e-5, 1e4, 512, True))


@given(chunks=gangs(), heads=HEADS, in_tiles=st.booleans(), half=st.booleans())
def test_looks_that_are_merged_are_the_softmax_of_the_whole(
    chunks: list[Chunk], heads: tuple[int, int, int], in_tiles: bool, half: bool
) -> None:
    """In float32 to 2e-5; in bfloat16 to the rounding of the result, for values of about 3."""
    tiles = tiles_of(heads) if in_tiles else None
    step = build_step(chunks, BLOCK, NUM_SLOTS, CPU, tiles)
    query, kv = contents(step, heads, torch.bfloat16 if half else torch.float32)
    found = looked(step, padded(step, query), kv).double()
    alone = {int(row) for group in step.groups for row in group.rows[group.valid]}
    rows = [row for row in range(len(query)) if row not in alone]
    assert found[sorted(alone)].isnan().all()
    assert not (in_tiles and alone)
    expected = slow(chunks, query, kv)
    torch.testing.assert_close(found[rows], expected[rows], atol=2e-2 if half else 2e-5, rtol=0)


@given(chunks=gangs(), heads=HEADS, in_tiles=st.booleans(), which=st.integers(0, 8))
def test_a_nan_reaches_only_those_who_see_its_block(
    chunks: list[Chunk], heads: tuple[int, int, int], in_tiles: bool, which: int
) -> None:
    tiles = tiles_of(heads) if in_tiles else None
    step = build_step(chunks, BLOCK, NUM_SLOTS, CPU, tiles)
    query, kv = contents(step, heads, torch.float32)
    before = looked(step, padded(step, query), kv)
    sick = chunks[which % len(chunks)].sequence.block_table[-1]
    kv[sick * BLOCK : (sick + 1) * BLOCK] = torch.nan
    after = looked(step, padded(step, query), kv)
    row = 0
    for chunk in chunks:
        own = slice(row, row := row + chunk.length)
        if sick not in chunk.sequence.block_table:
            assert torch.equal(before[own].nan_to_num(9), after[own].nan_to_num(9))
        elif not step.groups:
            assert after[own].isnan().any()


def test_forks_share_what_they_share_beyond_the_prefix() -> None:
    """Four agents on a prefix of 20 blocks, two of which go on together for 20 more."""
    prefix, branch = list(range(20)), list(range(20, 40))
    tables = [[*prefix, 50], [*prefix, *branch, 51], [*prefix, 52], [*prefix, *branch, 53]]
    chunks = [Chunk(sequence(t, len(t) * BLOCK - 2, 1), 1) for t in tables]
    stranger = Chunk(sequence([60, 61], 7, 1), 1)
    step = build_step([*chunks, stranger], BLOCK, NUM_SLOTS, CPU)
    shared, deeper, rest = step.looks
    assert shared.rows.tolist() == [[0, 1, 2, 3]]
    assert shared.slots.tolist() == [list(range(80))]
    assert deeper.rows.tolist() == [[1, 3]]
    assert deeper.slots.tolist() == [list(range(80, 160))]
    assert rest.rows.tolist() == [[0], [1], [2], [3]]
    assert rest.slots[:, 0].tolist() == [200, 204, 208, 212]
    assert [group.rows.tolist() for group in step.groups] == [[[4]]]


def test_blocks_that_are_written_in_the_step_are_not_shared() -> None:
    table = list(range(30))
    chunks = [Chunk(sequence(table, 80, 40), 40), Chunk(sequence([*table[:21], 50], 85, 1), 1)]
    step = build_step(chunks, BLOCK, NUM_SLOTS, CPU)
    assert step.looks[0].slots.shape == (1, 80)


@pytest.mark.parametrize("num_agents", [1, 3, 9])
def test_tiles_have_one_shape_and_read_a_shared_stretch_once_for_each_look(num_agents: int) -> None:
    tiles = Tiles(rows=16, queries=3, positions=16, looks=2)
    prefix = list(range(12))
    chunks = [Chunk(sequence([*prefix, 20 + i], 49, 1), 1) for i in range(num_agents)]
    step = build_step(chunks, BLOCK, NUM_SLOTS, CPU, tiles)
    assert step.tile == 16 and not step.groups
    assert {(look.rows.shape, look.slots.shape) for look in step.looks} == {((2, 3), (2, 16))}
    pairs = [pair for look in step.looks for pair in zip(look.rows, look.slots, strict=True)]
    used = [(rows, slots) for rows, slots in pairs if (rows != 16).any()]
    shared = [rows for rows, slots in used if slots[0] < 48]
    assert len(shared) == 3 * -(-num_agents // 3)  # three stretches of the prefix
    assert len(used) - len(shared) == num_agents  # and for each agent its own
