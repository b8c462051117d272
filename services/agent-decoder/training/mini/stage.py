"""One stage of training: a resumable loop with warm-up, cosine decay and a progress bar.

Every step draws from a generator seeded by (stage seed, step), so a resumed run sees the same
batches as one that never stopped. Under torchrun each process draws its part of a batch from a
seed of its own, and gradients are averaged: two processes of one thread get more done than one
of two threads.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from mini.muon import Muon

# Gives the losses of one step, each to be backpropagated on its own to keep memory small.
Losses = Callable[[np.random.Generator], Iterable[Tensor]]
# Matrices and convolutions between an embedding and a head.
INSIDE = ("proj.weight", "conv.weight")
Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """What a stage does: `steps` at a peak learning rate, measured now and then."""

    name: str
    steps: int
    learning_rate: float
    seed: int
    warmup: int = 100
    floor: float = 0.03
    weight_decay: float = 0.05
    measure_every_s: float = 240.0
    slow: dict[str, float] = field(default_factory=dict)
    """Learning-rate factors by prefix of parameter name."""
    stop_after: int | None = None
    """Ends early, before the rate has come down; the next stage takes over."""

    @property
    def last_step(self) -> int:
        """The number of steps really made."""
        return self.steps if self.stop_after is None else self.stop_after


def learning_rate(plan: Plan, step: int) -> float:
    """Returns the rate of a step: linear warm-up, then cosine down to `floor` of the peak."""
    warm = min(1.0, (step + 1) / plan.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    return plan.learning_rate * warm * (plan.floor + (1 - plan.floor) * cosine)


def optimisers(model: nn.Module, plan: Plan) -> tuple[torch.optim.Optimizer, ...]:
    """Returns Muon for the matrices inside, AdamW for embeddings, heads, norms and biases.

    Parameters are grouped by learning-rate factor; vectors do not decay.
    """
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factors = [factor for prefix, factor in plan.slow.items() if name.startswith(prefix)]
        is_inside = name.endswith(INSIDE)
        key = (is_inside, factors[0] if factors else 1.0, parameter.ndim > 1)
        groups.setdefault(key, []).append(parameter)
    inside, others = (
        [
            {"params": parameters, "factor": factor, "weight_decay": plan.weight_decay * decays}
            for (is_inside, factor, decays), parameters in groups.items()
            if is_inside is wanted
        ]
        for wanted in (True, False)
    )
    rate = plan.learning_rate
    return Muon(inside, rate), torch.optim.AdamW(others, rate, betas=(0.9, 0.98), fused=True)


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes a checkpoint so that a reader sees either the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    os.replace(partial, path)


def rank_and_world() -> tuple[int, int]:
    """Returns which of how many processes this is; (0, 1) for one that is alone."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Averages gradients over all processes; one that has none counts as zero."""
    if world == 1:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    parts = (flat / world).split([grad.numel() for grad in grads])
    for p, part, grad in zip(parameters, parts, grads, strict=True):
        p.grad = part.view_as(grad)


def run(plan: Plan, model: nn.Module, losses: Losses, measure: Measure, path: Path) -> None:
    """Trains `model` in place; resumes from `path` and leaves the final checkpoint there."""
    both = optimisers(model, plan)
    start = 0
    if path.exists():
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        for optimiser, state in zip(both, checkpoint["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        start = checkpoint["step"]
    # Taken here: loading puts other groups into the optimisers.
    groups = [group for optimiser in both for group in optimiser.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    average: float | None = None
    measured, log = time.monotonic(), path.with_suffix(".jsonl")
    end = plan.last_step
    rank, world = rank_and_world()
    steps = range(start, end)
    progress = tqdm(steps, plan.name, end, initial=start, mininterval=5, disable=rank > 0)
    for step in progress:
        rate = learning_rate(plan, step)
        for group in groups:
            group["lr"] = rate * group["factor"]
        torch.manual_seed(plan.seed * 1_000_003 + step + rank * 7_000_003)
        model.zero_grad(set_to_none=True)
        total = 0.0
        seeds = (plan.seed, step, rank) if rank else (plan.seed, step)
        for loss in losses(np.random.default_rng(seeds)):
            loss.backward()
            total += loss.item()
        share_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in both:
            optimiser.step()
        average = total if average is None else 0.98 * average + 0.02 * total
        progress.set_postfix(loss=f"{average:.4f}", refresh=False)
        is_last = step + 1 == end
        if rank == 0 and (is_last or time.monotonic() - measured > plan.measure_every_s):
            states = [optimiser.state_dict() for optimiser in both]
            save(path, {"model": model.state_dict(), "optimisers": states, "step": step + 1})
            # Measured without compilation: other batch shapes are not worth waiting for.
            with torch.compiler.set_stance("force_eager"):
                values = measure()
            row = {"step": step + 1, "loss": round(average, 4), "rate": rate, **values}
            progress.write(f"{plan.name} {row}")
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            measured = time.monotonic()
    if world > 1:
        dist.barrier()  # the next stage starts from what the first process leaves
