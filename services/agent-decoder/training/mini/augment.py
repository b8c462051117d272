"""Turns uint8 views into the encoder's input, with the disturbances of training."""

import numpy as np
import torch
import torch.nn.functional as F
from cogitate.evals.render import Pixels
from torch import Tensor

from mini.views import MEAN, STD

CROP_SIGMA, TEXT_SIGMA, WHOLE_SIGMA, SCENE_SIGMA = 27.0, 12.0, 8.0, 6.0
WARP_SHARE = 0.5


def normalise(views: Pixels) -> Tensor:
    """(N, 64, 64, 3) uint8 to (N, 3, 64, 64) float32, channels last in memory."""
    values = torch.from_numpy(np.array(views)).permute(0, 3, 1, 2).float()
    scaled = (values / 255 - MEAN) / STD
    return scaled.contiguous(memory_format=torch.channels_last)


def _uniform(count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, 1, 1, 1) * (high - low) + low


def disturb(views: Pixels, sigma: float) -> Tensor:
    """Normalises with gaussian pixel noise up to `sigma` (of 255), a new gain and brightness."""
    x = normalise(views)
    count = len(x)
    x = x + torch.randn_like(x) * _uniform(count, 0, sigma / 255 / STD)
    x = x * _uniform(count, 0.9, 1.1) + _uniform(count, -0.15, 0.15)
    return x.clamp(-MEAN / STD, (1 - MEAN) / STD)


def warp(x: Tensor) -> Tensor:
    """Turns, stretches, slants and moves half of the crops a little: new hands from few scans."""
    count = round(len(x) * WARP_SHARE)
    if count == 0:
        return x
    angle = torch.randn(count) * 0.06
    scale_x, scale_y = 1 + torch.randn(count) * 0.08, 1 + torch.randn(count) * 0.08
    slant = torch.randn(count) * 0.1
    first = torch.stack([scale_x * angle.cos(), slant - angle.sin(), torch.randn(count) * 0.04], 1)
    second = torch.stack([angle.sin(), scale_y * angle.cos(), torch.randn(count) * 0.04], 1)
    grid = F.affine_grid(torch.stack([first, second], 1), [count, 3, 64, 64], align_corners=False)
    warped = F.grid_sample(x[:count], grid, padding_mode="border", align_corners=False)
    return torch.cat([warped, x[count:]]).contiguous(memory_format=torch.channels_last)


def crop_input(crops: Pixels) -> Tensor:
    """Training input of crops; warped before the noise, as paper is before a camera."""
    x = warp(normalise(crops))
    sigma = _uniform(len(x), 0, CROP_SIGMA / 255 / STD)
    x = (x + torch.randn_like(x) * sigma) * _uniform(len(x), 0.9, 1.1)
    x = x + _uniform(len(x), -0.15, 0.15)
    return x.clamp(-MEAN / STD, (1 - MEAN) / STD)


def scene_input(views: Pixels) -> Tensor:
    """Training input of shape scenes: mirrored at random, with a little noise."""
    x = disturb(views, SCENE_SIGMA)
    mirrored = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(mirrored, x.flip(3), x).contiguous(memory_format=torch.channels_last)
