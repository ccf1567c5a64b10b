"""Start or resume one training run: what the command line and the notebooks call."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from asgkit.backbones import Backbone, load_backbone
from asgkit.config import Config
from asgkit.errors import StopRequested, StopSignal
from asgkit.learning.policy import refuse_unfit
from asgkit.pool.open import open_pool
from asgkit.recipes import load_recipe
from asgkit.recipes.controls import Judge, needs_judge
from asgkit.runs.directory import RunDirectory
from asgkit.scale.device import Device, choose_device, make_deterministic
from asgkit.scale.lock_step import SharedStop, shard_backbone
from asgkit.scale.team import LockStep, Team
from asgkit.trainer import Trainer

log = logging.getLogger(__name__)


def open_backbone(config: Config, device: Device | None = None) -> Backbone:
    """The backbone of a configuration with fresh adapters, on the chosen device."""
    device = device or choose_device(config.device, config.precision)
    return load_backbone(config.backbone, base=config.base, lora_rank=config.lora.rank, lora_alpha=config.lora.alpha,
                         lora_dropout=config.lora.dropout, seed=config.seed, device=device.name,
                         precision=device.precision, quantise=config.lora.quantise)


def open_scorer(config: Config, device: Device) -> Backbone | None:
    """The checkpoint that judges drawings in the Solver's place; None when the Solver or its base does."""
    path = config.generator.scorer
    if path in ("live", "frozen"):
        return None
    return load_backbone(config.backbone, base=path, device=device.name, precision=device.precision)


def open_measure(config: Config, device: Device) -> Backbone | None:
    """The other model whose base measures the cycle's similarities; None when it is the model itself."""
    name = config.generator.similarity
    if name == "native":
        return None
    return load_backbone(name, device=device.name, precision=device.precision)


def train(config: Config, path: str | Path, *, resume: bool = False, judge: Judge | None = None,
          progress: Callable[[int, list[dict[str, Any]]], None] | None = None) -> RunDirectory:
    """Train one run in `path` to `schedule.steps`; with `resume` continue from its newest valid checkpoint.

    SIGTERM and Ctrl-C stop it between stages, with status `stopped`; a later resume repeats the unfinished step
    exactly. Under torchrun or accelerate every process calls this alike: they share the images of each step, and the
    first one writes the run.

    Raises ValueError when an oracle control has no judge, RunExists when `path` holds a run and `resume` is False,
    ConfigError when it would sample otherwise than it scores, ConfigChanged when a resumed run would take other steps,
    PoolError when no image can be used, TrainingAborted after a streak of non-finite steps.
    """
    if needs_judge(config.control) != (judge is not None):
        raise ValueError("a judge and an oracle control go together: the method itself must never see the truth")
    device = choose_device(config.device, config.precision)
    make_deterministic()
    with Team.join(device.name, lock_step=config.shard_weights) as team:
        backbone = open_backbone(config, device)
        together = isinstance(team, LockStep)
        if together:
            shard_backbone(backbone, device.name)
        pool = open_pool(config.pool.path, column=config.pool.column, size=backbone.spec.image_side,
                         limit=config.pool.limit, seed=config.seed, rank=team.rank,
                         world_size=team.size)
        refuse_unfit(config, backbone.spec)
        pool.expect(load_recipe(config.recipe).needs, config.recipe)  # before there is a run
        run = _open_run(config, Path(path), device, team, resume)
        scorer, measure = open_scorer(config, device), open_measure(config, device)
        with SharedStop() if together else StopSignal() as stop:
            trainer = Trainer(config, backbone, pool, run, judge=judge, scorer=scorer, measure=measure, stop=stop,
                              team=team)
            _fit(trainer, resume, progress)
    return run


def _open_run(config: Config, path: Path, device: Device, team: Team, resume: bool) -> RunDirectory:
    """The run directory, made by the first rank after every rank has come so far, and opened by the others."""
    team.meet()
    if team.first:
        run = RunDirectory.create(path, config.model_dump(), resume=resume, keep=config.checkpoint.keep,
                                  device=device.reason)
    team.meet()
    return run if team.first else RunDirectory(path, keep=config.checkpoint.keep)


def _fit(trainer: Trainer, resume: bool, progress: Callable[[int, list[dict[str, Any]]], None] | None) -> None:
    """Resume, run to the end, and leave a status that says how it ended."""
    run, first, total = trainer.run, trainer.team.first, trainer.config.schedule.steps
    if resume and trainer.resume():
        log.info("resumed %s at step %d", run.path, trainer.step)
    try:
        trainer.fit(progress)
    except StopRequested as reason:
        # the unfinished step left no trace in the log and moved no weight: the last checkpoint is the truth
        if first:
            run.write_status("stopped", trainer.step - 1, total, message=str(reason))
        raise
    finally:
        error = sys.exception()
        if first and isinstance(error, Exception) and not isinstance(error, StopRequested):
            run.write_status("failed", trainer.step, total, message=f"{type(error).__name__}: {error}")


def use_threads(count: int) -> None:
    """Limit torch to `count` threads: two runs of one thread each finish sooner than one run of two."""
    torch.set_num_threads(count)
