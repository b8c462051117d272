"""Stages 3 to 5: encoder and decoder meet, and learn whole traces of every task together.

In `align` the encoder's body is frozen and only its projections learn; later it follows slowly.
Batch-norm statistics stay as stage 1 left them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from mini.augment import TEXT_SIGMA, WHOLE_SIGMA, crop_input, disturb, normalise, scene_input
from mini.batches import Batch, exact_rows, make_batch, own_logits
from mini.model import Decoder, Encoder, ModelConfig, mixed_precision
from mini.stage import Plan, rank_and_world, run
from mini.tasks import Tasks
from mini.tokenizer import PAD, RUN
from mini.traces import CROPS, Pool


@dataclass(frozen=True)
class Part:
    """What a bucket adds to a step: `batches` of `traces`, drawn in a share of the steps."""

    bucket: str
    traces: int
    weight: float = 1.0
    batches: int = 1
    share: float = 1.0


Mix = tuple[Part, ...]
# From the views of each pool (n, 3, 64, 64) to their embeddings (n, tokens, D).
See = Callable[[dict[Pool, Tensor]], dict[Pool, Tensor]]

# First of all where things are: nothing can be read before that is known.
LOCATE: Mix = (
    Part("plan", 56, batches=2),
    Part("where", 32, 1.5, batches=2),
    Part("spell", 128),
    Part("read", 128),
    Part("glance", 24, share=0.4),
    Part("scene", 48, share=0.3),
    Part("short", 10, share=0.5),
    Part("item-1", 14),
    Part("item-2", 12),
    Part("item-3", 8),
    Part("item-instant", 8, share=0.3),
    Part("search", 64, share=0.5),
    Part("role", 6, share=0.4),
)
# Every task at once, whole traces.
FULL_TRACES: Mix = (
    Part("plan", 32, share=0.1),
    Part("long", 10, share=0.6),
    Part("medium", 8, share=0.3),
    Part("short", 10, share=0.4),
    Part("glance", 24, share=0.3),
    Part("scene", 48, share=0.15),
    Part("read", 128, share=0.2),
    Part("search", 64, share=0.6),
    Part("admit", 48, share=0.3),
    Part("where", 24, share=0.3),
    Part("point", 48, 1.5, share=0.7),
    Part("match", 32, share=0.6),
    Part("order", 64, share=0.6),
    Part("pick", 32, share=0.3),
    Part("swap", 24, share=0.8),
    Part("conclude", 16, share=0.3),
    Part("reckon", 32, share=0.7),
    Part("shade", 32, share=0.4),
    Part("spell", 160),
    Part("item-1", 14, share=0.6),
    Part("item-2", 12),
    Part("item-3", 12),
    Part("item-4", 10),
    Part("item-5", 8, share=0.7),
    Part("item-instant", 8, share=0.2),
    Part("role", 10),
    Part("judge", 24),
    Part("again", 8, share=0.6),
)
DEV_TRACES = {
    "read": 256,
    "plan": 56,
    "long": 20,
    "medium": 32,
    "short": 40,
    "glance": 48,
    "scene": 48,
    "search": 80,
    "admit": 96,
    "where": 48,
    "point": 64,
    "match": 96,
    "order": 64,
    "conclude": 48,
    "reckon": 64,
    "shade": 128,
    "pick": 64,
    "swap": 64,
    "spell": 256,
    "item-1": 28,
    "item-2": 48,
    "item-3": 48,
    "item-4": 40,
    "item-5": 32,
    "item-instant": 16,
    "role": 32,
    "judge": 48,
    "audit": 192,
    "same": 96,
    "again": 24,
}
BODY_FACTOR = 0.4
BOX_WEIGHT = 0.4


class VisionLanguageModel(nn.Module):
    """Encoder and decoder side by side."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config).to(memory_format=torch.channels_last)
        self.decoder = Decoder(config)

    def load_parts(self, encoder: Path, decoder: Path) -> None:
        """Takes over the encoder of stage 1 and the decoder of stage 2."""
        reader = torch.load(encoder, weights_only=True)["model"]
        prefix = "encoder."
        parts = {k.removeprefix(prefix): v for k, v in reader.items() if k.startswith(prefix)}
        self.encoder.load_state_dict(parts)
        self.decoder.load_state_dict(torch.load(decoder, weights_only=True)["model"])

    def see(self, inputs: dict[Pool, Tensor]) -> dict[Pool, Tensor]:
        """Encodes views (n, 3, 64, 64) of each pool."""
        x = torch.cat(list(inputs.values())).contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            features = self.encoder.body(x).split([len(part) for part in inputs.values()])
            return {
                pool: (
                    self.encoder.project_crop(f) if pool in CROPS else self.encoder.project_whole(f)
                )
                for pool, f in zip(inputs, features, strict=True)
            }


class JointStage:
    """Draws batches with pictures and measures exact traces under teacher forcing."""

    def __init__(
        self, decoder: Decoder, see: See, tokenizer: Tokenizer, train: Tasks, dev: Tasks, mix: Mix
    ) -> None:
        self.decoder, self.see, self.train, self.dev, self.mix = decoder, see, train, dev, mix
        self.pad = tokenizer.token_to_id(PAD)
        self.box_tokens = tokenizer.token_to_id("zoom("), tokenizer.token_to_id(RUN)

    def _views(self, tasks: Tasks, batch: Batch, *, disturbed: bool) -> dict[Pool, Tensor]:
        """Encodes the batch's pictures: {pool: (n, tokens, D)}; pools without any are left out."""
        sources = {
            "board": tasks.pictures.wholes,
            "crop": tasks.pictures.crops,
            "scene": tasks.scenes.views,
            "page": tasks.worlds.pages,
            "patch": tasks.worlds.patches,
        }
        inputs: dict[Pool, Tensor] = {}
        for pool, indices in batch.pictures.items():
            if not indices:
                continue
            pixels = sources[pool][np.array(indices)]
            if not disturbed:
                inputs[pool] = normalise(pixels)
            elif pool in ("board", "page", "patch"):
                inputs[pool] = disturb(pixels, TEXT_SIGMA if pool == "patch" else WHOLE_SIGMA)
            else:
                inputs[pool] = crop_input(pixels) if pool == "crop" else scene_input(pixels)
        return self.see(inputs) if inputs else {}

    def _run(
        self, tasks: Tasks, bucket: str, count: int, rng: np.random.Generator, *, disturbed: bool
    ) -> tuple[Batch, Tensor, Tensor]:
        traces = [tasks.draw(bucket, rng) for _ in range(count)]
        batch = make_batch(traces, self.pad)
        views = self._views(tasks, batch, disturbed=disturbed)
        return batch, *own_logits(self.decoder, batch, views)

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yields the weighted loss of each bucket."""
        for part in self.mix:
            if rng.random() >= part.share:
                continue
            count = max(1, part.traces // rank_and_world()[1])
            for _ in range(part.batches):
                _, logits, labels = self._run(self.train, part.bucket, count, rng, disturbed=True)
                yield part.weight / part.batches * self._loss(logits, labels)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy in which edges of boxes count less: they are never known to a percent."""
        at = torch.arange(len(labels))
        begun, ended = (
            torch.where(labels == token, at, -1).cummax(0).values for token in self.box_tokens
        )
        weights = torch.where((begun > ended) & (begun < at), BOX_WEIGHT, 1.0)
        each = F.cross_entropy(logits, labels, reduction="none")
        return (weights * each).sum() / weights.sum()

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Returns the rate of exact development traces by bucket; no pixel noise is added."""
        rng = np.random.default_rng(7)
        rates = {}
        for part in self.mix:
            bucket, count = part.bucket, part.traces
            exact: list[Tensor] = []
            while sum(map(len, exact)) < DEV_TRACES[bucket]:
                run_of = self._run(self.dev, bucket, count, rng, disturbed=False)
                exact.append(exact_rows(*run_of))
                if bucket == "search":
                    rates["search_loss"] = round(float(F.cross_entropy(*run_of[1:])), 4)
            rates[bucket] = round(float(torch.cat(exact).float().mean()), 3)
        return rates


def train_joint(
    plan: Plan,
    model: VisionLanguageModel,
    tokenizer: Tokenizer,
    train: Tasks,
    dev: Tasks,
    mix: Mix,
    path: Path,
) -> None:
    """Runs the stage in place; the body is frozen unless the plan slows it down."""
    is_frozen = "encoder.body" not in plan.slow
    model.encoder.body.requires_grad_(not is_frozen)
    model.encoder.body.eval()
    for layer in model.decoder.layers:
        layer.compile(dynamic=True)  # its passes take four fifths of the time then
    stage = JointStage(model.decoder, model.see, tokenizer, train, dev, mix)
    run(plan, model, stage.losses, stage.measure, path)


def load_model(config: ModelConfig, path: Path) -> VisionLanguageModel:
    """Returns the model of a checkpoint of these stages."""
    model = VisionLanguageModel(config)
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model
