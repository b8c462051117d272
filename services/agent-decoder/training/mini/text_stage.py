"""Stage 2: the decoder learns the language of traces and countdown's search, without pictures.

Stand-in tokens take the place of pictures, so this stage does not have to wait for the encoder.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from mini.batches import exact_rows, make_batch, own_logits
from mini.model import Decoder, ModelConfig
from mini.numbers import initialise_numbers
from mini.stage import Plan, rank_and_world, run
from mini.tasks import Tasks
from mini.tokenizer import PAD

SEARCH_BATCH = 128
# Batches of the other buckets, of which a step has a few.
OTHERS = 3
SYMBOLIC = (
    ("long", 8),
    ("glance", 16),
    ("medium", 10),
    ("short", 14),
    ("item-2", 16),
    ("item-3", 12),
    ("item-4", 10),
    ("role", 8),
    ("role", 8),
)


class TextStage:
    """Draws symbolic batches and measures exact traces under teacher forcing."""

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, train: Tasks, dev: Tasks, seed: int
    ) -> None:
        self.pad = tokenizer.token_to_id(PAD)
        self.train, self.dev = train, dev
        self.model = Decoder(config)
        initialise_numbers(self.model.embed_tokens.weight, tokenizer, seed)
        self.step = 0

    def _draw(self, tasks: Tasks, bucket: str, count: int, rng: np.random.Generator) -> Tensor:
        count = max(1, count // rank_and_world()[1])
        batch = make_batch([tasks.draw(bucket, rng) for _ in range(count)], self.pad)
        logits, labels = own_logits(self.model, batch, {})
        return F.cross_entropy(logits, labels)

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yields the search loss, then the losses of a few other buckets."""
        yield self._draw(self.train, "search", SEARCH_BATCH, rng)
        for i in rng.permutation(len(SYMBOLIC))[:OTHERS]:
            yield 0.5 * self._draw(self.train, *SYMBOLIC[i], rng)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Returns the rate of exact development traces by bucket."""
        rng = np.random.default_rng(7)
        rates = {}
        for bucket, count in (("search", SEARCH_BATCH), *SYMBOLIC):
            traces = [self.dev.draw(bucket, rng) for _ in range(count)]
            batch = make_batch(traces, self.pad)
            logits, labels = own_logits(self.model, batch, {})
            rates[bucket] = round(float(exact_rows(batch, logits, labels).float().mean()), 3)
            if bucket == "search":
                rates["search_loss"] = round(float(F.cross_entropy(logits, labels)), 4)
        return rates


def train_text(
    plan: Plan, config: ModelConfig, tokenizer: Tokenizer, train: Tasks, dev: Tasks, path: Path
) -> None:
    """Runs the stage and leaves its checkpoint at `path`."""
    stage = TextStage(config, tokenizer, train, dev, plan.seed)
    run(plan, stage.model, stage.losses, stage.measure, path)
