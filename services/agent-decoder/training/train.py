"""Makes `mini` from nothing: renders, trains stage by stage, exports. Stages done are skipped.

    python services/agent-decoder/training/train.py            # everything
    python services/agent-decoder/training/train.py --stage encoder --threads 1
    torchrun --nproc-per-node 2 services/agent-decoder/training/train.py --stage joint --threads 1

`encoder` and `text` do not need each other and can run side by side, a thread each. The stages
after them can run as several processes that share each step. `roles` goes on from what ships and
runs only if it is asked for: what it costs the other tasks is told in the README.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from mini import glimpses, worlds
from mini.corpus import spelled, texts
from mini.encoder_stage import train_encoder
from mini.export import Model, export
from mini.joint_stage import (
    BODY_FACTOR,
    FULL_TRACES,
    Mix,
    VisionLanguageModel,
    load_model,
    train_joint,
)
from mini.joint_stage import LOCATE as LOCATE_MIX
from mini.model import ModelConfig
from mini.pictures import Pictures, open_pictures, render
from mini.role_stage import train_roles
from mini.scenes import Scenes, load_scenes
from mini.stage import Plan
from mini.tasks import Tasks
from mini.text_stage import train_text
from mini.tokenizer import build_tokenizer, load_tokenizer
from tokenizers import Tokenizer

CACHE = Path(__file__).parents[3] / ".cache" / "train"
MODEL = Path(__file__).parent.parent / "cogitate" / "models" / "mini"

BOARDS, DEV_BOARDS = 32000, 500
PAGES, ITEMS, DEV_ITEMS = 24000, 40000, 1000
PICTURE_SEED, SCENE_SEED, CORPUS_SEED, PAGE_SEED, ITEM_SEED = 1000, 5, 0, 70000, 90000

BODY = {"encoder.body": BODY_FACTOR}
ENCODER = Plan("encoder", 5000, 6e-3, seed=1, warmup=80, measure_every_s=240, floor=0.05)
TEXT = Plan("text", 1400, 4e-3, seed=2, warmup=60, stop_after=900)
ALIGN = Plan("align", 100, 3e-3, seed=3, warmup=20, floor=0.8)
LOCATE = Plan("locate", 800, 3e-3, seed=4, warmup=20, slow=BODY, stop_after=350)
JOINT = Plan(
    "joint", 4700, 3e-3, seed=5, warmup=20, measure_every_s=720, slow=BODY, stop_after=4425
)
ROLES = Plan("roles", 500, 2e-3, seed=7, warmup=20, measure_every_s=720)


@dataclass(frozen=True)
class Workshop:
    """Where everything lies; opens data when a stage first needs it."""

    cache: Path
    model: Path
    config: ModelConfig = field(default_factory=ModelConfig)

    def checkpoint(self, stage: str) -> Path:
        """Returns the checkpoint of a stage."""
        return self.cache / f"{stage}.pt"

    @cached_property
    def pictures(self) -> Pictures:
        """The rendered boards."""
        return open_pictures(self.cache / "pictures")

    @cached_property
    def glimpses(self) -> glimpses.Glimpses:
        """Crops of pages and what they say."""
        return glimpses.open_glimpses(self.cache / "glimpses")

    @cached_property
    def worlds(self) -> worlds.Worlds:
        """The drawn items."""
        return worlds.open_worlds(self.cache / "worlds")

    @cached_property
    def scenes(self) -> Scenes:
        """The shape scenes."""
        return load_scenes(SCENE_SEED)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, built once."""
        path = self.cache / "tokenizer.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(CORPUS_SEED)
            build_tokenizer(texts(rng), spelled()).save(str(path))
        return load_tokenizer(path)

    def tasks(self, tokenizer: Tokenizer, *, dev: bool, symbolic: bool) -> Tasks:
        """Returns the tasks of the training boards and items, or of those kept to measure."""
        first_dev = len(self.pictures.boards) - DEV_BOARDS
        boards = range(first_dev, first_dev + DEV_BOARDS) if dev else range(first_dev)
        first_item = len(self.worlds.items) - DEV_ITEMS
        items = range(first_item, first_item + DEV_ITEMS) if dev else range(first_item)
        return Tasks(
            self.pictures, self.scenes, tokenizer, boards, self.worlds, items,
            symbolic=symbolic,
        )  # fmt: skip

    def is_done(self, plan: Plan) -> bool:
        """Tells whether a stage has run all its steps."""
        path = self.checkpoint(plan.name)
        if not path.exists():
            return False
        return bool(torch.load(path, weights_only=True, mmap=True)["step"] >= plan.last_step)


def run_render(shop: Workshop) -> None:
    """Renders boards, pages and items."""
    glimpses.draw(shop.cache / "glimpses", pages=PAGES, seed=PAGE_SEED)
    render(shop.cache / "pictures", boards=BOARDS, seed=PICTURE_SEED)
    worlds.draw(shop.cache / "worlds", items=ITEMS, seed=ITEM_SEED)


def run_encoder(shop: Workshop) -> None:
    """Stage 1."""
    if not shop.is_done(ENCODER):
        path = shop.checkpoint(ENCODER.name)
        train_encoder(ENCODER, shop.config, shop.pictures, shop.scenes, shop.glimpses, path)


def run_text(shop: Workshop) -> None:
    """Stage 2."""
    if not shop.is_done(TEXT):
        train, dev = (shop.tasks(shop.tokenizer, dev=dev, symbolic=True) for dev in (False, True))
        path = shop.checkpoint(TEXT.name)
        train_text(TEXT, shop.config, shop.tokenizer, train, dev, path)


def _run_joint(shop: Workshop, plan: Plan, mix: Mix, start: str) -> None:
    """Runs a stage with pictures, starting from the checkpoint of another."""
    if shop.is_done(plan):
        return
    model = VisionLanguageModel(shop.config)
    if start == TEXT.name:
        model.load_parts(shop.checkpoint(ENCODER.name), shop.checkpoint(TEXT.name))
    else:
        model = load_model(shop.config, shop.checkpoint(start))
    train, dev = (shop.tasks(shop.tokenizer, dev=dev, symbolic=False) for dev in (False, True))
    train_joint(plan, model, shop.tokenizer, train, dev, mix, shop.checkpoint(plan.name))


def run_align(shop: Workshop) -> None:
    """Stage 3."""
    _run_joint(shop, ALIGN, LOCATE_MIX, TEXT.name)


def run_locate(shop: Workshop) -> None:
    """Stage 4."""
    _run_joint(shop, LOCATE, LOCATE_MIX, ALIGN.name)


def run_joint(shop: Workshop) -> None:
    """Stage 5."""
    _run_joint(shop, JOINT, FULL_TRACES, LOCATE.name)


def run_export(shop: Workshop) -> None:
    """Writes the shipped files from the latest stage there is."""
    stages = (JOINT.name, LOCATE.name, ALIGN.name)
    path = next(p for p in map(shop.checkpoint, stages) if p.exists())
    model = load_model(shop.config, path)
    export(Model(shop.config, model.encoder, model.decoder), shop.tokenizer, shop.model)


def run_roles(shop: Workshop) -> None:
    """Stage 6: goes on from the shipped files and replaces the decoder's weights."""
    if shop.is_done(ROLES):
        return
    tokenizer = load_tokenizer(shop.model / "tokenizer.json")
    train, dev = (shop.tasks(tokenizer, dev=dev, symbolic=False) for dev in (False, True))
    path = shop.checkpoint(ROLES.name)
    train_roles(ROLES, shop.config, shop.model, tokenizer, train, dev, path)


STAGES: dict[str, Callable[[Workshop], None]] = {
    "render": run_render,
    "encoder": run_encoder,
    "text": run_text,
    "align": run_align,
    "locate": run_locate,
    "joint": run_joint,
    "export": run_export,
    "roles": run_roles,
}


def main(arguments: Sequence[str]) -> None:
    """Runs the stages asked for, or all of them in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=tuple(STAGES), action="append")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--model", type=Path, default=MODEL)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    shop = Workshop(options.cache, options.model)
    for name in options.stage or (name for name in STAGES if name != ROLES.name):
        STAGES[name](shop)


if __name__ == "__main__":
    main(sys.argv[1:])
