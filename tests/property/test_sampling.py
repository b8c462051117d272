"""Sampling: a row is drawn as if it were alone, and only from what may be drawn."""

from __future__ import annotations

import pytest
import torch
from cogitate.agent_decoder.core.sampling import (
    Row,
    SamplingParams,
    keep_mask,
    sample,
    uniforms,
)
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.property

VOCAB = 24
LOGITS = st.lists(st.floats(-30, 30, width=32) | st.just(-30.0), min_size=VOCAB, max_size=VOCAB)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.1, 0.8, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 1e-6]),
    top_k=st.sampled_from([0, 1, 5, VOCAB]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    frequency_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    presence_penalty=st.sampled_from([0.0, 2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (4, -100.0))]),
    logprobs=st.sampled_from([0, 3]),
)
ROWS = st.builds(
    Row,
    PARAMS,
    st.lists(st.integers(0, VOCAB - 1), max_size=6),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([(), (0, 1, 2)]),
)
BATCH = st.lists(st.tuples(LOGITS, ROWS), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(BATCH)
def test_a_rows_draw_does_not_depend_on_the_others(batch: list[tuple[list[float], Row]]) -> None:
    logits = torch.tensor([values for values, _ in batch])
    together = sample(logits, [row for _, row in batch])
    for i, (_, row) in enumerate(batch):
        alone = sample(logits[i : i + 1], [row])
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0] == together.logprobs[i]
        assert alone.confidences[0] == together.confidences[i]
        assert alone.top[0] == together.top[i]


@settings(max_examples=80, deadline=None)
@given(LOGITS, ROWS)
def test_what_is_drawn_may_be_drawn(values: list[float], row: Row) -> None:
    logits = torch.tensor([values])
    token_id = sample(logits, [row]).token_ids[0]
    assert token_id not in row.banned
    plain = not row.banned and not row.params.adjusts_logits
    if plain and row.params.temperature:
        probs = torch.softmax(logits[0].double() / row.params.temperature, -1)
        assert keep_mask(probs, row.params)[token_id]


@settings(max_examples=100, deadline=None)
@given(LOGITS, PARAMS)
def test_the_likeliest_is_always_kept(values: list[float], params: SamplingParams) -> None:
    probs = torch.softmax(torch.tensor(values).double(), -1)
    assert keep_mask(probs, params)[probs.argmax()]


@settings(max_examples=50, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**40))
def test_draws_do_not_depend_on_how_many_are_made_at_once(seed: int, agent: int, at: int) -> None:
    ahead = uniforms(seed, agent, at, 8)
    assert [uniforms(seed, agent, at + i, 1)[0] for i in range(8)] == ahead
    assert all(0 <= draw < 1 for draw in ahead)
