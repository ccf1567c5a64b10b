"""Two versions of the kit, or two machines: do they take the same steps? The first field that differs is named.

A change of structure must not change a byte of a log. So the same short runs are made by both, and their logs, weights
and sheets of drawings are compared:

    smoke   ten steps of the smoke preset
    loop    N steps with every memory in use: two shards a step, replay, the adaptive KL rule, REINFORCE on q*

A side is a commit of this clone, a folder that holds the package (`.` is this one), or runs that were recorded before,
here or on another machine.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from asgkit.errors import Refused
from asgkit.runs.files import read_lines, sha256

CASES = {
    "smoke": ("--preset", "smoke"),
    "loop": ("--preset", "tiny", "precision=fp32", "schedule.images=4", "schedule.accumulate=2", "replay.mix=0.5",
             "kl.rate=0.1", "solver.update=reinforce", "solver.train_on=best", "checkpoint.every=10"),
}
SCENES = 64  # pictures of the pool that both sides learn from
START = "from asgkit.cli import app; app()"  # holds for every version of the package


@dataclass(frozen=True)
class Drift:
    """One run on both sides: what was compared, and the first difference in words ("" where there is none)."""

    run: str
    steps: int
    records: int
    fields: int
    files: int
    first: str


def run_drift(a: str, b: str, work: Path, *, steps: int, backbones: Sequence[str],
              say: Callable[[str], None] = print) -> list[Drift]:
    """Record both sides below `work` and compare them run by run. Raises Refused for a side that is none of the three
    kinds, or whose recording lacks a run."""
    sides = [_recorded(side, work / place, steps, backbones, say) for side, place in ((a, "a"), (b, "b"))]
    return [compare_runs(name, *(side / name for side in sides)) for name in run_names(backbones)]


def run_names(backbones: Sequence[str]) -> list[str]:
    """`<backbone>-<case>`, in the order in which they are made."""
    return [f"{backbone}-{case}" for backbone in backbones for case in CASES]


def record_side(tree: Path, folder: Path, *, steps: int, backbones: Sequence[str], say: Callable[[str], None]) -> Path:
    """Make the runs of every case with the package that lies in `tree`, one thread each. Raises Refused when one
    fails."""
    from asgkit.shapes.world import render_pool

    pool = folder / "pool"
    if not pool.is_dir():
        render_pool(pool, SCENES)
    for backbone in backbones:
        for case, settings in CASES.items():
            run = folder / f"{backbone}-{case}"
            if (run / "status.json").is_file():
                continue
            say(f"{folder.name}: {run.name}")
            length = () if case == "smoke" else (f"schedule.steps={steps}",)
            base = () if backbone.startswith("tiny-") else ("base=random",)
            command = [sys.executable, "-c", START, "train", *settings, f"backbone={backbone}", *base, *length,
                       "seed=0", "device=cpu", f"pool.path={pool}", "--run", str(run)]
            done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False,
                                  env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"})
            if done.returncode:
                raise Refused(f"{run.name} failed in {tree}: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return folder


def _recorded(side: str, folder: Path, steps: int, backbones: Sequence[str], say: Callable[[str], None]) -> Path:
    """The folder with the runs of a side, made if need be."""
    path = Path(side)
    if (path / run_names(backbones)[0] / "log.jsonl").is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if (path / "asgkit").is_dir():
        return record_side(path.resolve(), folder.resolve(), steps=steps, backbones=backbones, say=say)
    return record_side(_unpack(side, folder / "tree"), folder.resolve(), steps=steps, backbones=backbones, say=say)


def _unpack(commit: str, folder: Path) -> Path:
    """The package as it was at a commit."""
    packed = subprocess.run(["git", "archive", commit, "asgkit"], capture_output=True, check=False)
    if packed.returncode:
        raise Refused(f"{commit!r} is no commit of this clone, no folder with the package and no folder of recorded "
                      "runs: give a commit, `.`, or a folder made by asgkit drift SIDE --out FOLDER")
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder.resolve()


def compare_runs(name: str, a: Path, b: Path) -> Drift:
    """Log field by field, then the files of the last checkpoint's roles and the sheets of drawings, byte by byte."""
    for folder in (a, b):
        if not (folder / "log.jsonl").is_file():
            raise Refused(f"no run in {folder}: record that side again with the same backbones")
    logs = [[record for _, record in read_lines(folder / "log.jsonl")] for folder in (a, b)]
    files = [_files(folder) for folder in (a, b)]
    first = _first_record(*logs) or _first_file(*files)
    steps = max((record["step"] for record in logs[0]), default=0)
    return Drift(name, steps, len(logs[0]), sum(map(len, logs[0])), len(files[0]), first)


def _first_record(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str:
    for left, right in zip_longest(a, b):
        if left is None or right is None:
            return f"{len(a)} records against {len(b)}"
        for field in dict.fromkeys([*left, *right]):
            if left.get(field) != right.get(field) or (field in left) != (field in right):
                return (f"step {left['step']}, {left['image']}, {field}: {left.get(field, 'absent')!r} against "
                        f"{right.get(field, 'absent')!r}")
    return ""


def _files(run: Path) -> Mapping[str, str]:
    """sha256 of the adapters of the last checkpoint and of the sheets of drawings, by path in the run."""
    last = sorted((run / "checkpoints").glob("step_*"))[-1:]
    paths = [path for folder in last for path in sorted(folder.glob("*/*.safetensors"))]
    paths += sorted((run / "samples").glob("*.png"))
    return {path.relative_to(run).as_posix(): sha256(path.read_bytes()) for path in paths}


def _first_file(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    return next((f"{name} differs" for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)), "")
