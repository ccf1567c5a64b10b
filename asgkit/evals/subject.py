"""What a benchmark measures: an open backbone under one role. Base and evolved are one object, adapter off or on."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from asgkit import __version__
from asgkit.backbones.base import ROLES, Backbone, Role
from asgkit.config import Config, from_dict, measured_name, resolve
from asgkit.launch import open_backbone
from asgkit.runs.directory import RunDirectory, load_checkpoint
from asgkit.runs.files import sha256, sha256_sums
from asgkit.scale.device import Device, choose_device


@dataclass(frozen=True)
class Subject:
    """A backbone and the role that answers or draws (None: the frozen base).

    adapters: sha256 of each role's trained adapter, empty for a backbone without a run; model: what a delta needs to
    have in common (backbone, base, precision, device, version of the kit).
    """

    backbone: Backbone
    role: Role | None
    model: dict[str, Any]
    adapters: dict[str, str] = field(default_factory=dict)
    run: str | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in self.adapters:
            raise ValueError(f"role {self.role!r} of an untrained backbone is its base under another name: give a "
                             "run, or role none")

    def under(self, role: Role | None) -> Subject:
        """The same open model under another role."""
        return replace(self, role=role)

    @property
    def record(self) -> dict[str, Any]:
        """What may differ between the two results of a delta."""
        return {"role": self.role or "none", "adapter_sha256": self.adapters[self.role] if self.role else None,
                "run": self.run if self.role else None, "step": self.step if self.role else None}


def adapter_hash(folder: Path) -> str:
    """sha256 over the names and sums of every file of a role folder."""
    return sha256(repr(sorted(sha256_sums(folder).items())).encode())


def parse_role(text: str | None) -> Role | None:
    """A role by name; `none`, `base` or None is the frozen base. Raises ValueError for other words."""
    if text in (None, "none", "base"):
        return None
    if text not in ROLES:
        raise ValueError(f"unknown role {text!r}; choose one of {', '.join(ROLES)}, or none for the frozen base")
    return text


def open_subject(run: str | Path | None = None, *, step: int | None = None, role: Role | None = None,
                 backbone: str = "tiny-ar", base: str = "clean", device: str | None = None,
                 precision: str | None = None) -> Subject:
    """Open a run's backbone with the adapters of one checkpoint (default: the newest valid), or an untrained one.

    backbone, base: only without a run; device, precision: default to the run's configuration, or `auto`. Under
    several processes each one computes on the GPU of its local rank. Raises FileNotFoundError for a run without a
    checkpoint, ValueError for a role without a run.
    """
    directory = RunDirectory(run) if run else None
    config = from_dict(directory.config) if directory else resolve("tiny", {"backbone": backbone, "base": base})
    chosen = _local(choose_device(device or config.device, precision or config.precision))
    opened, adapters, found = open_backbone(config, chosen), {}, None
    if directory:
        found = (load_checkpoint(directory.checkpoints / f"step_{step:06d}") if step is not None
                 else directory.newest_valid_checkpoint())
        if found is None:
            raise FileNotFoundError(f"{run} has no valid checkpoint; train it first: asgkit train --run {run}")
        for name in ROLES:
            opened.load_role(name, found.path / name)
            adapters[name] = adapter_hash(found.path / name)
    return Subject(opened, role, _model(config, chosen), adapters, Path(run).name if run else None,
                   found.step if found else None)


def _local(device: Device) -> Device:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return replace(device, name=f"cuda:{os.environ['LOCAL_RANK']}") if device.name == "cuda" and several else device


def _model(config: Config, device: Device) -> dict[str, Any]:
    return {"backbone": config.backbone, "base": measured_name(config.backbone, config.base),
            "precision": device.precision, "device": device.name.partition(":")[0], "asgkit": __version__}
