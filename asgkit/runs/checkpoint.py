"""What a run needs to go on exactly where it stopped, written and read without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from asgkit.backbones.base import ROLES, Backbone, Role
from asgkit.runs.directory import Checkpoint, ConfigChanged, RunDirectory
from asgkit.runs.state import Tensors, pack, restore_rng, rng_state, unpack


class Optimiser(Protocol):
    """What moves one learner's weights."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Everything that a resume needs."""

    def restore(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Put a saved state back."""


class Stateful(Protocol):
    """A memory, a counter or a position; its state is plain data and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""


@dataclass(frozen=True)
class Parts:
    """Everything that decides a run's next step, but for the random generators. shards: of a step, over all ranks;
    lost: roles whose adapters a resume does not read."""

    backbone: Backbone
    optimisers: Mapping[str, Optimiser]
    memories: Mapping[str, Stateful]
    shards: int
    lost: Sequence[Role] = ()


def save_parts(run: RunDirectory, step: int, parts: Parts) -> None:
    """Write the checkpoint of a step."""
    tensors: Tensors = {}
    values: dict[str, Any] = {"shards": parts.shards, "optimisers": {}, "memories": {}}
    for name, memory in parts.memories.items():
        state = memory.state_dict()
        held = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
        tensors |= pack(f"memory/{name}", held)
        values["memories"][name] = {key: value for key, value in state.items() if key not in held}
    for name, optimiser in parts.optimisers.items():
        held, values["optimisers"][name] = optimiser.state()
        tensors |= pack(f"optimiser/{name}", held)
    held, values["rng"] = rng_state({})
    tensors |= pack("rng", held)
    run.save_checkpoint(step, partial(_write_roles, parts.backbone), tensors, values)


def _write_roles(backbone: Backbone, folder: Path) -> None:
    for role in ROLES:
        backbone.save_role(role, folder / role)


def load_parts(run: RunDirectory, found: Checkpoint, parts: Parts) -> None:
    """Put a checkpoint's state back. Raises ConfigChanged when the step had another number of shards: its batch, and
    with it every later sample, would be another one."""
    before = found.values["shards"]
    if before != parts.shards:
        raise ConfigChanged(f"{run.path} takes its steps from {before} shard(s) (processes x schedule.accumulate), "
                            f"not from {parts.shards}: resume it with as many processes as it began with")
    for role in ROLES:
        if role not in parts.lost:
            parts.backbone.load_role(role, found.path / role)
    for name, optimiser in parts.optimisers.items():
        optimiser.restore(unpack(f"optimiser/{name}", found.tensors), found.values["optimisers"][name])
    for name, memory in parts.memories.items():
        memory.load_state_dict(found.values["memories"][name] | unpack(f"memory/{name}", found.tensors))
    restore_rng({}, unpack("rng", found.tensors), found.values["rng"])
