"""Random numbers of drawings, each row from its own seed: times and noise of a regression loss, starts of a sampler."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from asgkit.backbones.base import NoiseSpec


def draw_times(shape: tuple[int, ...], how: str, rng: np.random.Generator) -> Tensor:
    """Times in (0, 1] of a regression loss: `logit_normal` sigmoid(N(0, 1)), or `uniform`."""
    if how == "logit_normal":
        return torch.from_numpy(1.0 / (1.0 + np.exp(-rng.standard_normal(shape)))).float()
    if how == "uniform":
        return torch.from_numpy(1.0 - rng.random(shape)).float()
    raise ValueError(f"times are 'logit_normal' or 'uniform', not {how!r}")


def draw_noise(how: str, rows: int, draws: int, rng: np.random.Generator) -> NoiseSpec | None:
    """Times and noise seeds for `rows` drawings, the same for policy and reference; None for tokens (`none`)."""
    if how == "none":
        return None
    return NoiseSpec(draw_times((rows, draws), how, rng), rng.integers(2**31, size=rows).tolist())


def row_normals(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (len(seeds), *shape), each row from its own seed: independent of the batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
