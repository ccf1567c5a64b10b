"""The run directory: configuration, log, status, and checkpoints from which a run resumes bit for bit.

    config.yaml  config.sha256  environment.json  status.json  metrics.json  log.jsonl  timings.jsonl
    samples/step_000123.png: drawings, for the eye
    checkpoints/step_000123/: role folders, state.safetensors, state.json, manifest.json

A checkpoint is written aside, synced, given a manifest of sha256 sums and then renamed, so a killed process
leaves a whole checkpoint or none. Nothing is pickled: tensors are safetensors, the rest is strict JSON.
`asgkit.runs.state` turns optimisers and random generators into such tensors and values; its names are here too.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import yaml
from safetensors.torch import load_file, save_file

from asgkit import __version__
from asgkit.config import flatten
from asgkit.runs.files import (
    append_line,
    read_lines,
    sha256,
    sha256_sums,
    sync,
    sync_tree,
    write_atomic,
    write_json,
)
from asgkit.runs.schema import FieldTable, validate_record
from asgkit.runs.state import (
    StateMismatch,
    Tensors,
    optimizer_state,
    pack,
    private_copy,
    restore_optimizer,
    restore_rng,
    rng_state,
    unpack,
)

__all__ = [
    "Checkpoint", "ConfigChanged", "CorruptCheckpoint", "RunDirectory", "RunExists", "StateMismatch",
    "environment", "load_checkpoint", "optimizer_state", "pack", "read_log", "restore_optimizer",
    "restore_rng", "rng_state", "unpack", "write_json",
]

# None of these changes a step that was already taken; another number of shards in all is refused by the checkpoint.
RESUME_MAY_CHANGE = ("schedule.steps", "schedule.accumulate", "schedule.micro_batch", "checkpoint.*")
LIBRARIES = ("torch", "numpy", "transformers", "peft", "safetensors", "pydantic", "pillow")
PICKLE_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_ABSENT = object()
log = logging.getLogger(__name__)


class RunExists(FileExistsError):
    """The directory already holds a run and `resume` was not asked for."""


class ConfigChanged(ValueError):
    """A resumed run was given a configuration that would change its meaning."""


class CorruptCheckpoint(ValueError):
    """A checkpoint's file is missing, changed or not in its manifest."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: step, folder (role folders lie in it), tensors and plain values."""

    step: int
    path: Path
    tensors: Tensors
    values: dict[str, Any]


class RunDirectory:
    """One run on disk: `RunDirectory(path)` opens one, `RunDirectory.create` starts or resumes one."""

    def __init__(self, path: str | Path, *, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, not {keep}")
        self.path, self.keep = Path(path), keep
        self.log_path, self.checkpoints = self.path / "log.jsonl", self.path / "checkpoints"
        if not (self.path / "config.yaml").is_file():
            raise FileNotFoundError(f"no run in {path} (no config.yaml): train one with asgkit train --run {path}")
        text = (self.path / "config.yaml").read_text(encoding="utf-8")
        self.config: dict[str, Any] = yaml.safe_load(text)
        self.config_hash = sha256(text.encode())

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any], *, resume: bool = False,
               keep: int = 3, device: str | None = None) -> RunDirectory:
        """Start a run in `path`, or with `resume` continue it (or start it, if there is none yet).

        `config` is the resolved configuration as plain nested data; `keep` is the number of checkpoints kept;
        `device` is what the environment record says the run computes on.

        Raises RunExists if a run is there and `resume` is False; ConfigChanged if a resumed configuration
        differs in any key but `schedule.steps` and `checkpoint.*`, naming the keys.
        """
        path, text = Path(path), yaml.safe_dump(dict(config), sort_keys=True, allow_unicode=True)
        exists = (path / "config.yaml").exists()
        if exists and not resume:
            raise RunExists(f"{path} already holds a run: resume it, or choose another name or delete it")
        record = environment(device)
        if exists:
            _refuse_changes(cls(path, keep=keep).config, yaml.safe_load(text))
            first = json.loads((path / "environment.json").read_text(encoding="utf-8"))
            record = {**first, "resumed": [*first["resumed"], record]}
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / "environment.json", {"resumed": [], **record})
        write_atomic(path / "config.sha256", f"{sha256(text.encode())}  config.yaml\n")
        write_atomic(path / "config.yaml", text)  # last: its presence says that a run is here
        run = cls(path, keep=keep)
        run.checkpoints.mkdir(exist_ok=True)
        return run

    def write_status(self, state: Literal["running", "finished", "stopped", "failed"], step: int, total: int,
                     *, eta_s: float | None = None, message: str = "") -> None:
        """Replace status.json atomically; `eta_s` is the expected time left in seconds."""
        write_json(self.path / "status.json",
                   {"state": state, "step": step, "total": total, "eta_s": eta_s, "message": message})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replace metrics.json (the run's final numbers) atomically; NaN and Inf raise ValueError."""
        write_json(self.path / "metrics.json", metrics)

    def append(self, record: Mapping[str, Any], fields: FieldTable) -> None:
        """Append one record to log.jsonl, keys in the order of the recipe's fields, flushed to the system.

        Raises SchemaError on unknown, missing or mistyped fields, NaN and infinities included.
        """
        validate_record(record, fields)
        append_line(self.log_path, {name: record[name] for name in fields if name in record})

    def append_timing(self, step: int, stages: Mapping[str, float]) -> None:
        """Append the seconds of each stage of a step to timings.jsonl, as `timing_s/<stage>`."""
        times = {f"timing_s/{name}": float(seconds) for name, seconds in stages.items()}
        append_line(self.path / "timings.jsonl", {"step": step, **times})

    def truncate_log(self, step: int) -> None:
        """Drop every record of a later step (and a torn last line) from log.jsonl and timings.jsonl.

        After it, a run resumed at `step` appends what an uninterrupted run would have appended.
        """
        for path in (self.log_path, self.path / "timings.jsonl"):
            if path.exists():
                kept = [line for line, record in read_lines(path) if record["step"] <= step]
                write_atomic(path, "".join(kept))

    def rewind(self, step: int) -> None:
        """Forget everything after `step`: log records and checkpoints (a corrupt newer one, for example)."""
        self.truncate_log(step)
        for path in _step_folders(self.checkpoints):
            if _step_of(path) > step:
                log.warning("removed checkpoint %s: the run continues from step %d", path.name, step)
                shutil.rmtree(path)

    def save_checkpoint(self, step: int, write_roles: Callable[[Path], None], tensors: Tensors,
                        values: dict[str, Any]) -> Path:
        """Write checkpoints/step_N whole or not at all, then prune to the newest `keep`; return its path.

        `write_roles(folder)` writes one folder per role; `tensors` go to state.safetensors and `values`
        (strict JSON: NaN raises ValueError) to state.json. Raises ValueError if a role writes a pickle file.
        """
        final = self.checkpoints / f"step_{step:06d}"
        aside, old = self.checkpoints / f".tmp_step_{step}", self.checkpoints / f".old_step_{step}"
        _clean(*self.checkpoints.glob(".tmp_step_*"), *self.checkpoints.glob(".old_step_*"))
        aside.mkdir(parents=True)
        write_roles(aside)
        _refuse_pickles(aside)
        # A copy each: safetensors refuses views that share storage, and the trainer may go on updating.
        save_file({name: private_copy(t) for name, t in tensors.items()}, aside / "state.safetensors")
        write_json(aside / "state.json", values)
        write_json(aside / "manifest.json",
                   {"step": step, "config_hash": self.config_hash, "files": sha256_sums(aside)})
        sync_tree(aside)
        if self.log_path.exists():
            sync(self.log_path)  # the log must not be behind its checkpoint after a power cut
        if final.exists():
            os.replace(final, old)
        os.replace(aside, final)
        sync(self.checkpoints)
        _clean(old, *_step_folders(self.checkpoints)[:-self.keep])
        return final

    def newest_valid_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, or None; a logged warning lists corrupt ones."""
        corrupt: list[str] = []
        found: Checkpoint | None = None
        for path in reversed(_step_folders(self.checkpoints)):
            try:
                found = load_checkpoint(path)
                break
            except CorruptCheckpoint as error:
                corrupt.append(str(error))
        if corrupt:
            use = f"using step {found.step}" if found else "none is valid"
            log.warning("%d corrupt checkpoint(s) skipped, %s: %s", len(corrupt), use, "; ".join(corrupt))
        return found


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint after checking every file against the manifest's sha256 sums.

    Raises CorruptCheckpoint naming the missing, extra or changed file.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        step, wanted = int(manifest["step"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{path.name}/manifest.json is missing or unreadable: {error!r}") from error
    found = sha256_sums(path)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            what = "not in the manifest" if name not in wanted else "changed" if name in found else "missing"
            raise CorruptCheckpoint(f"{path.name}/{name} is {what}")
    values = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(step, path, load_file(path / "state.safetensors"), values)


def read_log(path: str | Path) -> pd.DataFrame:
    """Read log.jsonl (or a run directory's) into one row per record; a torn last line is left out."""
    path = Path(path)
    return pd.DataFrame([record for _, record in read_lines(path / "log.jsonl" if path.is_dir() else path)])


def environment(device: str | None = None) -> dict[str, Any]:
    """Describe where a run computes: versions, device, threads, git commit; no host name, no path."""
    return {
        "python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine(),
        "versions": {"asgkit": __version__, **{name: _version(name) for name in LIBRARIES}},
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changes": _git("status", "--porcelain", "--untracked-files=no"),
    }


def _refuse_pickles(folder: Path) -> None:
    """Raise ValueError if a role saved itself in a format that runs code when it is loaded."""
    found = sorted(p.name for p in folder.rglob("*") if p.suffix in PICKLE_SUFFIXES)
    if found:
        raise ValueError(f"pickle files in a checkpoint: {found}; save roles as safetensors")


def _refuse_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise ConfigChanged unless two configurations differ only where a resume may change them."""
    before, after = flatten(old), flatten(new)
    # where the first of two stages ends depends on the number of steps, so it would move under steps already taken
    fixed = {"schedule.steps"} if after.get("schedule.order") == "two_stage" else set()
    changed = [f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
               for key in sorted(before.keys() | after.keys())
               if before.get(key, _ABSENT) != after.get(key, _ABSENT)
               and (key in fixed or not any(fnmatchcase(key, pattern) for pattern in RESUME_MAY_CHANGE))]
    if changed:
        raise ConfigChanged(f"cannot resume with another configuration ({'; '.join(changed)}): start a new "
                            f"run or set these keys back; only {', '.join(RESUME_MAY_CHANGE)} may change")


def _clean(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _step_folders(folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted((p for p in folder.glob("step_*") if re.fullmatch(r"step_\d+", p.name)), key=_step_of)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Run git where this package lies; None where there is no git or no git tree."""
    try:
        done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
                              check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
