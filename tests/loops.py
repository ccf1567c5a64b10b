"""Small runs for the tests of the loop: a few images, a few steps, every code path."""

from pathlib import Path

import torch

from asgkit.backbones import ROLES
from asgkit.config import Config, resolve
from asgkit.launch import open_backbone
from asgkit.pool.folder import ImagePool
from asgkit.runs.directory import RunDirectory
from asgkit.trainer import Trainer

SMALL = {"device": "cpu", "schedule.images": 3, "schedule.steps": 5, "generator.candidates": 3,
         "generator.questions": 3}


def small_config(pool: Path, changes: dict | None = None) -> Config:
    """The smoke preset with few images; `changes` are dotted keys."""
    return resolve("smoke", SMALL | {"pool.path": str(pool)} | (changes or {}))


def open_trainer(config: Config, folder: Path, *, wrap=lambda backbone: backbone, judge=None) -> Trainer:
    """A trainer in a new run directory; `wrap` may put something around the backbone."""
    backbone = wrap(open_backbone(config))
    pool = ImagePool(config.pool.path, size=backbone.spec.image_side, seed=config.seed)
    return Trainer(config, backbone, pool, RunDirectory.create(folder, config.model_dump()), judge=judge)


def weights(backbone) -> dict[str, list[torch.Tensor]]:
    """Copies of the adapter tensors by role."""
    return {role: [p.detach().clone() for p in backbone.role_parameters(role)] for role in ROLES}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Bit equality of two lists of tensors."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def moved(before: dict[str, list[torch.Tensor]], backbone) -> set[str]:
    """Roles whose weights are no longer those of `before`."""
    after = weights(backbone)
    return {role for role in ROLES if not same(before[role], after[role])}
