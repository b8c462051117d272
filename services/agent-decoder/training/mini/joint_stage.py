"""Stages 3 and 4: encoder and decoder meet, and learn whole traces of every task together.

In `align` the encoder's body is frozen and only its projections learn; in `joint` the body follows
slowly. Batch-norm statistics stay as stage 1 left them in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from mini.augment import WHOLE_SIGMA, crop_input, disturb, normalise, scene_input
from mini.batches import Batch, exact_rows, make_batch, own_logits
from mini.model import Decoder, Encoder, ModelConfig
from mini.stage import Plan, run
from mini.tasks import BUCKET_TOKENS, Tasks
from mini.tokenizer import PAD
from mini.traces import Pool


@dataclass(frozen=True)
class Part:
    """What a bucket adds to a step: `batches` of `traces`, drawn in a share of the steps."""

    bucket: str
    traces: int
    weight: float = 1.0
    batches: int = 1
    share: float = 1.0


Mix = tuple[Part, ...]

# Every task at once.
ALL_TASKS: Mix = (
    Part("plan", 56, 1.5),
    Part("long", 8),
    Part("medium", 8),
    Part("short", 8),
    Part("glance", 24),
    Part("search", 80),
)
# The same with less planning, once that is learned, and more of the search, which takes longest.
FULL_TRACES: Mix = (
    Part("plan", 24, share=0.2),
    Part("long", 10),
    Part("medium", 10, share=0.7),
    Part("short", 12, share=0.6),
    Part("glance", 24, share=0.5),
    Part("scene", 64, 1.5),
    Part("search", 64),
    Part("search", 64, share=0.5),
)
# At last, mostly reading: the digits are seen long before each three-digit token is known.
READING: Mix = (
    Part("read", 256, 1.5),
    Part("plan", 24, share=0.2),
    Part("long", 10, share=0.8),
    Part("medium", 10, share=0.8),
    Part("short", 12, share=0.6),
    Part("glance", 24, share=0.5),
    Part("scene", 64, share=0.3),
    Part("search", 64, share=0.6),
)
# Mostly finding the cells of a colour, the last thing to be learned; little of the rest.
LOCATE: Mix = (
    Part("plan", 56, batches=4),
    Part("long", 8, share=0.1),
    Part("medium", 8, share=0.1),
    Part("short", 8, share=0.1),
    Part("glance", 24, share=0.3),
    Part("search", 80, share=0.3),
)
DEV_TRACES = {
    "read": 512,
    "plan": 56,
    "long": 24,
    "medium": 48,
    "short": 48,
    "glance": 48,
    "scene": 48,
    "search": 80,
}
BODY_FACTOR = 0.15


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


class JointStage:
    """Draws batches with pictures and measures exact traces under teacher forcing."""

    def __init__(
        self,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        train: Tasks,
        dev: Tasks,
        mix: Mix,
    ) -> None:
        self.model, self.train, self.dev, self.mix = model, train, dev, mix
        self.pad = tokenizer.token_to_id(PAD)
        self.model.encoder.body.eval()
        self.model.decoder.compile_layers()

    def _views(self, tasks: Tasks, batch: Batch, *, disturbed: bool) -> dict[Pool, Tensor]:
        """Encodes the batch's pictures: {pool: (n, tokens, D)}; pools without any are left out."""
        sources = {
            "board": tasks.pictures.wholes,
            "crop": tasks.pictures.crops,
            "scene": tasks.scenes.views,
        }
        pools = [pool for pool, indices in batch.pictures.items() if indices]
        if not pools:
            return {}
        inputs = []
        for pool in pools:
            pixels = sources[pool][np.array(batch.pictures[pool])]
            if not disturbed:
                inputs.append(normalise(pixels))
            elif pool == "board":
                inputs.append(disturb(pixels, WHOLE_SIGMA))
            else:
                inputs.append(crop_input(pixels) if pool == "crop" else scene_input(pixels))
        x = torch.cat(inputs).contiguous(memory_format=torch.channels_last)
        encoder = self.model.encoder
        with torch.autocast("cpu", torch.bfloat16):
            features = encoder.body(x).split([len(part) for part in inputs])
            return {
                pool: encoder.project_crop(f) if pool == "crop" else encoder.project_whole(f)
                for pool, f in zip(pools, features, strict=True)
            }

    def _run(
        self, tasks: Tasks, bucket: str, count: int, rng: np.random.Generator, *, disturbed: bool
    ) -> tuple[Batch, Tensor, Tensor]:
        traces = [tasks.draw(bucket, rng) for _ in range(count)]
        batch = make_batch(traces, BUCKET_TOKENS[bucket], self.pad)
        views = self._views(tasks, batch, disturbed=disturbed)
        return batch, *own_logits(self.model.decoder, batch, views)

    def losses(self, rng: np.random.Generator) -> Iterator[Tensor]:
        """Yields the weighted loss of each bucket."""
        for part in self.mix:
            if rng.random() >= part.share:
                continue
            for _ in range(part.batches):
                run_of = self._run(self.train, part.bucket, part.traces, rng, disturbed=True)
                yield part.weight / part.batches * F.cross_entropy(*run_of[1:])

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
    stage = JointStage(model, tokenizer, train, dev, mix)
    run(plan, model, stage.losses, stage.measure, path)


def load_model(config: ModelConfig, path: Path) -> VisionLanguageModel:
    """Returns the model of a checkpoint of these stages."""
    model = VisionLanguageModel(config)
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model
