"""The work of a step: against a count by hand, and against torch's own counter of operations."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from cogitate.agent_decoder.core.scheduler import Chunk
from cogitate.agent_decoder.core.sequence import Position, Sequence, State
from cogitate.agent_decoder.core.work import Dimensions, Precision, Totals, operations, traffic
from cogitate.agent_decoder.model.families import llama_config
from cogitate.agent_decoder.model.llama import Llama
from cogitate.agent_decoder.model.loader import read_checkpoint
from cogitate.agent_decoder.model.runner import TorchRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.fakes.tiny_model import write_tiny_model

pytestmark = pytest.mark.unit

# hidden 8, wide 16, 2 layers, 4 heads of 4 on 2 keys, 10 tokens.
SMALL = Dimensions(8, 16, 2, 4, 2, 4, 10)


def had(*steps: tuple[list[tuple[int, int, int]], int]) -> Totals:
    totals = Totals()
    for chunks, num_shared in steps:
        totals.add(chunks, num_shared)
    return totals


def test_weights_by_hand() -> None:
    q, k, v, o = 8 * 16, 8 * 8, 8 * 8, 16 * 8
    gate = up = down = 8 * 16
    assert SMALL.num_weights == 2 * (q + k + v + o + gate + up + down)


def test_one_position_after_two_by_hand() -> None:
    """A sequence of its own, whose third position is computed: it sees three."""
    totals = had(([(1, 3, 0)], 0))
    matrices = 2 * (2 * 768 + 8 * 10)
    attention = 2 * 4 * (3 * 4 + 3 * 4) * 2  # layers, heads, (scores and mixing), two each
    assert operations(SMALL, totals) == matrices + attention
    weights = 2 * 768 * 2.0 + 80 * 4.0
    cached = 2 * 2 * 2 * 4 * 2.0  # layers, keys and values, heads, size, bytes
    assert traffic(SMALL, Precision(2, 4, 2), totals) == weights + (3 + 1) * cached


def test_a_chunk_sees_what_is_before_each_of_its_positions() -> None:
    for length, end in ((1, 1), (3, 3), (4, 9), (5, 5)):
        seen = sum(position + 1 for position in range(end - length, end))
        assert had(([(length, end, 0)], 0)).num_attended == seen


def test_a_prefix_that_three_agents_share_is_read_once() -> None:
    shared = had(([(1, 21, 20), (1, 22, 20), (1, 21, 20)], 20))
    alone = had(([(1, 21, 0), (1, 22, 0), (1, 21, 0)], 0))
    assert (shared.num_read, alone.num_read) == (20 + 1 + 2 + 1, 64)
    assert shared.num_attended == alone.num_attended == 64
    assert operations(SMALL, shared) == operations(SMALL, alone)


def test_work_adds_up_over_steps() -> None:
    first, second = ([(16, 16, 16)], 16), ([(1, 17, 16), (3, 19, 16)], 16)
    both = had(first, second)
    assert operations(SMALL, both) == operations(SMALL, had(first)) + operations(SMALL, had(second))
    precision = Precision(1.125, 2, 2)
    parts = traffic(SMALL, precision, had(first)) + traffic(SMALL, precision, had(second))
    assert traffic(SMALL, precision, both) == pytest.approx(parts)


@pytest.mark.parametrize("num_agents", [1, 3])
def test_torch_counts_the_same(tmp_path: Path, num_agents: int) -> None:
    """A decoding step of the real forward pass: every product torch makes, and no other."""
    checkpoint = read_checkpoint(write_tiny_model(tmp_path))
    c = llama_config(checkpoint.config)
    llama = Llama(c, checkpoint.weights, dtype=torch.float32, device=torch.device("cpu"))
    runner = TorchRunner(llama)
    runner.allocate(16, 16)
    chunks = []
    for i in range(num_agents):
        pending = deque(Position(token) for token in range(1, 8))
        chunks.append(Chunk(Sequence(pending, [i], state=State.RUNNING), 7))
    runner.forward(chunks)
    for chunk in chunks:
        chunk.sequence.num_computed, chunk.sequence.pending = 7, deque([Position(9)])
    # The fused attention of CPUs is one operation that torch's counter does not know.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        runner.forward([Chunk(chunk.sequence, 1) for chunk in chunks])
    model = Dimensions(
        c.hidden_size, c.intermediate_size, c.num_layers, c.num_heads, c.num_kv_heads,
        c.head_dim, c.vocab_size,
    )  # fmt: skip
    totals = had(([(1, 8, 0)] * num_agents, 0))
    assert operations(model, totals) == counter.get_total_flops()
