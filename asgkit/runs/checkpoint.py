"""What a trainer needs to go on exactly where it stopped, written and read without pickle."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asgkit.backbones.base import ROLES, Backbone
from asgkit.runs.directory import Checkpoint, ConfigChanged
from asgkit.runs.state import Tensors, pack, restore_rng, rng_state, unpack

if TYPE_CHECKING:
    from asgkit.trainer import Trainer

PARTS = ("window", "baseline", "target", "guard", "pool", "replay")  # trainer attributes with a plain state


def save_trainer(trainer: Trainer) -> None:
    """Write a checkpoint of everything that decides the trainer's next step."""
    tensors: Tensors = pack("replay", trainer.replay.tensors())
    values: dict[str, Any] = {name: getattr(trainer, name).state_dict() for name in PARTS}
    values |= {"tokens": trainer.tokens, "shards": _shards(trainer), "optimisers": {}}
    for role, optimiser in trainer.optimisers.items():
        held, values["optimisers"][role] = optimiser.state()
        tensors |= pack(f"optimiser/{role}", held)
    held, values["rng"] = rng_state({})
    tensors |= pack("rng", held)
    trainer.run.save_checkpoint(trainer.step, partial(_write_roles, trainer.backbone), tensors, values)


def _write_roles(backbone: Backbone, folder: Path) -> None:
    for role in ROLES:
        backbone.save_role(role, folder / role)


def resume_trainer(trainer: Trainer) -> bool:
    """Load the newest valid checkpoint of the trainer's run and rewind its log to it; False when there is none.

    Every rank loads it, rank 0 rewinds. Raises ConfigChanged when the step had another number of shards: its batch,
    and with it every later sample, would be another one.
    """
    found = trainer.run.newest_valid_checkpoint()
    if found:
        _restore(trainer, found)
    trainer.team.meet()  # nobody may still be reading what the first rank now drops
    if trainer.team.first:
        trainer.run.rewind(found.step if found else 0)
    trainer.team.meet()
    return found is not None


def _shards(trainer: Trainer) -> int:
    return trainer.team.size * trainer.config.schedule.accumulate


def _restore(trainer: Trainer, found: Checkpoint) -> None:
    before, now = found.values.get("shards", 1), _shards(trainer)  # a run of one process before there were shards
    if before != now:
        raise ConfigChanged(f"{trainer.run.path} takes its steps from {before} shard(s) (processes x "
                            f"schedule.accumulate), not from {now}: resume it with as many processes as it began with")
    for role, optimiser in trainer.optimisers.items():
        trainer.backbone.load_role(role, found.path / role)
        optimiser.restore(unpack(f"optimiser/{role}", found.tensors), found.values["optimisers"][role])
    for name in PARTS:
        getattr(trainer, name).load_state_dict(found.values[name])
    trainer.replay.load_tensors(unpack("replay", found.tensors))
    restore_rng({}, unpack("rng", found.tensors), found.values["rng"])
    trainer.step, trainer.tokens = found.step, found.values["tokens"]
