"""Structured first embeddings for digit runs, so that reading and arithmetic start easy."""

import torch
from tokenizers import Tokenizer
from torch import Tensor

from mini.tokenizer import DIGIT_RUNS

PERIODS = (2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
SCALE = 0.05


@torch.no_grad()
def initialise_numbers(embedding: Tensor, tokenizer: Tokenizer, seed: int) -> None:
    """Overwrites rows of `embedding` (vocab, D): a vector per (place, digit) plus waves of value.

    Runs that share a digit at a place, or that are close in value, start out close together.
    """
    generator = torch.Generator().manual_seed(seed)
    size = embedding.shape[1]
    digits = torch.randn(3, 10, size, generator=generator)
    lengths = torch.randn(4, size, generator=generator)
    waves = torch.randn(2 * len(PERIODS), size, generator=generator) / 3
    for run in DIGIT_RUNS:
        row = lengths[len(run)].clone()
        for place, digit in enumerate(reversed(run)):
            row += digits[place, int(digit)]
        angles = 2 * torch.pi * int(run) / torch.tensor(PERIODS)
        row += torch.cat([angles.sin(), angles.cos()]) @ waves
        embedding[tokenizer.token_to_id(run)] = row * SCALE
