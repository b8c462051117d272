"""Sampling: Philox against its authors' vectors, what may be drawn, penalties, bans."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cogitate.agent_decoder.core.sampling import (
    Row,
    SamplingParams,
    adjust_all,
    keep_mask,
    philox4x32,
    sample,
    uniforms,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> np.ndarray:
        return np.array([[int(word, 16) for word in text.split()]], dtype=np.uint64)

    assert philox4x32(words(counter), words(key)).tolist() == words(expected).tolist()


def test_draws_are_a_function_of_seed_agent_and_count() -> None:
    ahead = uniforms(7, 3, 0, 64)
    assert ahead == uniforms(7, 3, 0, 64)
    assert uniforms(7, 3, 40, 5) == ahead[40:45]
    assert len({*ahead, *uniforms(8, 3, 0, 64), *uniforms(7, 4, 0, 64)}) == 3 * 64
    assert all(0.0 <= draw < 1.0 for draw in ahead)


def test_draws_take_any_64_bit_seed_and_a_count_past_32_bits() -> None:
    seeds = [0, -1, 1, 2**63 - 1, -(2**63), 2**32]
    assert len({uniforms(seed, 0, 0, 1)[0] for seed in seeds}) == len(seeds)
    assert uniforms(0, 0, 2**32, 1) != uniforms(0, 0, 0, 1)
    assert uniforms(0, 0, 2**32 - 1, 2)[1] == uniforms(0, 0, 2**32, 1)[0]


PROBS = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.06, 0.04], dtype=torch.float64)


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, {0, 1, 2, 3, 4, 5}),
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 2, 3}),  # ties with the k-th stay
        ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 0.5}, {1, 2}),  # ties: the lower id first
        ({"top_p": 0.85}, {0, 1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        ({"min_p": 0.5}, {1, 2, 3}),
        ({"min_p": 0.2, "top_k": 3}, {1, 2, 3}),
    ],
)
def test_kept_tokens(params: dict[str, float], kept: set[int]) -> None:
    mask = keep_mask(PROBS, SamplingParams(**params))  # type: ignore[arg-type]
    assert set(mask.nonzero()[:, 0].tolist()) == kept


def test_penalties_and_biases() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 0.0])
    params = SamplingParams(
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias=((3, 7.0), (2, -1.0)),
    )
    [adjusted] = adjust_all(logits[None], [Row(params, [0, 1, 0], 0.0)])
    assert adjusted.tolist() == [1.0 - 1.0 - 0.25, -4.0 - 0.5 - 0.25, 0.0, 7.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_banned_tokens_are_not_drawn_however_likely() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0], [9.0, 1.0, 0.0]])
    rows = [
        Row(SamplingParams(temperature=0.0), [], 0.0, banned=frozenset({0})),
        Row(SamplingParams(), [], 0.0, banned=(0, 2)),
    ]
    sampled = sample(logits, rows)
    assert sampled.token_ids == [1, 1]
    # Reported probabilities stay the model's own.
    assert sampled.logprobs[0] == pytest.approx(torch.log_softmax(logits[0], -1)[1].item())


def test_a_grammar_lets_only_its_tokens_be_drawn_and_wins_over_a_ban() -> None:
    logits = torch.tensor([[9.0, 1.0, 0.0]] * 3)
    allowed = torch.tensor([False, True, True])
    rows = [
        Row(SamplingParams(temperature=0.0), [], 0.0, allowed=allowed),
        Row(SamplingParams(top_k=1), [], 0.0, (1,), allowed),
        Row(SamplingParams(temperature=0.0), [], 0.0, frozenset({1, 2}), allowed),
    ]
    assert sample(logits, rows).token_ids == [1, 2, 1]
    assert allowed.tolist() == [False, True, True]


def test_temperature_zero_is_greedy_with_ties_to_the_lowest_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]])
    assert sample(logits, [Row(SamplingParams(temperature=0.0), [], 0.9)]).token_ids == [1]


def test_a_draw_inverts_the_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
    found = [
        sample(logits, [Row(SamplingParams(), [], draw)]).token_ids[0]
        for draw in (0.0, 0.49, 0.51, 0.74, 0.76, 1.0 - 2**-53)
    ]
    assert found == [0, 0, 1, 1, 2, 2]


def test_the_last_draw_never_lands_on_a_token_without_mass() -> None:
    logits = torch.full((1, 50), -torch.inf)
    logits[0, 3], logits[0, 7] = 0.1, 0.3
    rows = [Row(SamplingParams(temperature=2.0), [], 1.0 - 2**-53)]
    assert sample(logits, rows).token_ids == [7]


@pytest.mark.parametrize("temperature", [1e-45, 1e-5, 2.0])
def test_any_temperature_above_zero_draws_something(temperature: float) -> None:
    logits = torch.linspace(-5, 5, 32).unsqueeze(0)
    sampled = sample(logits, [Row(SamplingParams(temperature=temperature), [], 0.3)])
    assert 0 <= sampled.token_ids[0] < 32
    assert math.isfinite(sampled.logprobs[0])


def test_logits_that_are_not_finite_are_seen_in_the_logprob_and_harm_no_neighbour() -> None:
    logits = torch.linspace(-5, 5, 32).repeat(2, 1)
    alone = sample(logits[1:], [Row(SamplingParams(), [], 0.5)])
    logits[0] = torch.nan
    sampled = sample(logits, [Row(SamplingParams(), [], 0.5)] * 2)
    assert not math.isfinite(sampled.logprobs[0])
    assert 0 <= sampled.token_ids[0] < 32
    assert sampled.token_ids[1:] == alone.token_ids


def test_top_logprobs_only_where_asked_for() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0]])
    sampled = sample(
        logits, [Row(SamplingParams(logprobs=2), [], 0.1), Row(SamplingParams(), [], 0.1)]
    )
    ids, logprobs = sampled.top[0]
    assert ids == [1, 2]
    assert logprobs == pytest.approx(torch.log_softmax(logits[0], -1)[[1, 2]].tolist())
    assert sampled.top[1] == ([], [])
    assert sampled.confidences[0] == pytest.approx(-torch.log_softmax(logits[0], -1).mean().item())
