"""Muon (Jordan et al., 2024): momentum whose matrices are made orthogonal before they are added.

`torch.optim.Muon` takes matrices only; this one takes convolutions, too, as (outputs, the rest).
Steps are as large as AdamW's (Liu et al., 2025), so one learning rate serves both.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mini.model import PRECISION

# Of Newton and Schulz' iteration; from the reference implementation.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5
ADAM_RMS = 0.2


def orthogonal(matrix: Tensor) -> Tensor:
    """Returns about U V^T of (m, n) = U S V^T: singular values between 0.7 and 1.2."""
    x = matrix.to(PRECISION)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if is_tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal, with decoupled weight decay."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Moves every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = p.grad.lerp(average, group["momentum"]).flatten(1)
                update = orthogonal(ahead).view_as(p) * ADAM_RMS * max(ahead.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.to(p.dtype), alpha=-group["lr"])
