"""`asgkit doctor`: is everything here that the commands need, and if not, what puts it right."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.markers import default_environment
from packaging.requirements import Requirement
from safetensors import SafetensorError

from asgkit.experiments.reproduce import PROFILES
from asgkit.scale.device import choose_device

DISK_GB = 2.0  # free space below which a grid of runs may not fit
BASES = {  # shipped checkpoints, and what makes them again
    "tiny-ar-clean": "asgkit pretrain tiny-ar --out {path}",
    "tiny-ar-registers": "asgkit pretrain tiny-ar --registers 0.25 --out {path}",
    "tiny-ar-scenes": "asgkit pretrain tiny-ar --world scenes --out {path}",
    "tiny-ar-scenes-registers": "asgkit pretrain tiny-ar --world scenes --registers 0.2 --out {path}",
    "tiny-flow-clean": "asgkit pretrain tiny-flow --out {path}",
    "tiny-diffusion-clean": "asgkit pretrain tiny-diffusion --out {path}",
}


@dataclass(frozen=True)
class Check:
    """One finding: `ok` False means that a command would fail, and `fix` says what to do."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def run_checks() -> list[Check]:
    """Python, packages, device, threads, disk, checkpoints, pool and the minutes of each profile."""
    return [*_python_and_packages(), _device(), _threads(), _disk(), *map(_checkpoint, BASES), _pool(),
            *(Check(f"profile {name}", True, text) for name, text in PROFILES.items())]


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as plain data, with `ok` for all of them together."""
    return {"ok": all(check.ok for check in checks), "checks": [asdict(check) for check in checks]}


def _python_and_packages() -> list[Check]:
    """The interpreter and every run-time dependency against the ranges of pyproject.toml (as installed)."""
    try:
        metadata = importlib.metadata.distribution("asgkit")
    except importlib.metadata.PackageNotFoundError:
        return [Check("asgkit", False, "not installed", "make setup")]
    wanted = metadata.metadata["Requires-Python"]
    have = platform.python_version()
    ok = Requirement(f"python{wanted}").specifier.contains(have, prereleases=True)
    rows = [Check("python", ok, f"{have} (needs {wanted})", "" if ok else "make setup PY=python3.12")]
    environment = {**default_environment(), "extra": ""}
    for requirement in map(Requirement, metadata.requires or []):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            rows.append(_package(requirement))
    return rows


def _package(requirement: Requirement) -> Check:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Check(requirement.name, False, f"missing (needs {requirement.specifier})", "make setup")
    ok = requirement.specifier.contains(version, prereleases=True)
    return Check(requirement.name, ok, f"{version} (needs {requirement.specifier})", "" if ok else "make setup")


def _device() -> Check:
    return Check("device", True, choose_device().reason)


def _threads() -> Check:
    usable = len(os.sched_getaffinity(0))
    return Check("threads", True, f"{usable} cores usable, torch would use {torch.get_num_threads()}; "
                                  "a training run takes one (--threads)")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    ok = free >= DISK_GB
    return Check("disk", ok, f"{free:.1f} GB free here", "" if ok else f"free {DISK_GB:g} GB, or lower checkpoint.keep")


def _checkpoint(base: str) -> Check:
    from asgkit.backbones.tiny.understand import CHECKPOINTS, read_checkpoint

    path = CHECKPOINTS / f"{base}.safetensors"
    fix = f"git checkout -- asgkit/backbones/tiny/checkpoints, or {BASES[base].format(path=os.path.relpath(path))}"
    if not path.is_file():
        return Check(f"base {base}", False, f"{path.name} is missing", fix)
    try:
        read_checkpoint(path, "-".join(base.split("-")[:2]))
    except SafetensorError as error:
        return Check(f"base {base}", False, f"{path.name} is damaged ({error})", fix)
    except ValueError as error:  # a sound file of another model
        return Check(f"base {base}", False, str(error), fix)
    return Check(f"base {base}", True, f"{path.name}, {path.stat().st_size / 1e6:.1f} MB")


def _pool() -> Check:
    from asgkit.experiments.reproduce import POOL

    if POOL.is_dir():
        return Check("pool", True, f"{POOL}: {sum(1 for _ in POOL.iterdir())} files")
    return Check("pool", True, f"{POOL} is not there yet; train and reproduce make it in seconds")

