"""`asgkit reproduce`: pool, notebook runs, evaluation and report in one command; and the evaluation of one run."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from asgkit.config import Config, PoolConfig, from_dict, resolve
from asgkit.console import Refused
from asgkit.files import write_atomic, write_json
from asgkit.launch import open_backbone
from asgkit.runs import CorruptCheckpoint, RunDirectory, load_checkpoint

POOL = Path(PoolConfig().path)
POOL_SCENES = 2000
NOTEBOOK = Path("notebooks/06_the_full_loop.ipynb")
SMOKE_BASES = ("clean", "registers")
FULL = {"per_family": 300, "per_tag": 42, "samples": 4}  # 2,100 questions, 252 prompts x 4 drawings
SMALL = {"per_family": 60, "per_tag": 20, "samples": 2}  # 420 questions, 120 prompts x 2: seconds, wide intervals
PROFILES = {
    "smoke": "two bases, 10 steps each, about 10 minutes on 2 cores",
    "small": "the committed grid of runs, hours on 2 cores",
}


@dataclass
class Made:
    """What a reproduction made: (what, path, seconds) in order."""

    rows: list[tuple[str, str, float]] = field(default_factory=list)

    @contextmanager
    def timed(self, what: str, say: Callable[[str], None]) -> Iterator[list[str]]:
        """Announce a part, time it, and note the paths that its block puts into the yielded list."""
        say(f"{what} ...")
        began, paths = time.perf_counter(), []
        yield paths
        self.rows.append((what, ", ".join(paths), time.perf_counter() - began))


def ensure_pool(path: Path, scenes: int) -> bool:
    """Render the default unlabelled pool if it is missing; True if it was made. Whole or not at all."""
    from asgkit.shapes.world import render_pool

    if path.exists():
        return False
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    render_pool(aside, scenes)
    aside.rename(path)
    return True


# -- evaluation -----------------------------------------------------------------------------------------------------
def choose_decoding(config: Config, per_tag: int, samples: int) -> dict[str, float]:
    """Temperature and guidance that serve the untrained base best, chosen on the dev split: the fair opponent."""
    from asgkit.evals.shapes import best_decoding

    temperature, guidance = best_decoding(open_backbone(config), None, "dev", per_tag, samples)[0]
    return {"temperature": temperature, "guidance": guidance}


def evaluate(path: Path, split: str = "test", step: int | None = None, best: dict[str, float] | None = None,
             *, sizes: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evolved and base model of a run on the same items and seeds, as (evolved, base) results in percent.

    Writes metrics.json and items.npz for the evolved model, base_metrics.json and base_items.npz for its base.
    """
    from asgkit.evals.run import evaluate_run, measure

    config = from_dict(RunDirectory(path).config)
    best = best or choose_decoding(config, sizes["per_tag"], sizes["samples"])
    evolved = evaluate_run(path, split, best, step, **sizes)
    scores, items = measure(open_backbone(config), split, base=True, best=best, **sizes)
    base = {"step": 0, "split": split, "best_decoding": best, "scores": scores}
    write_json(path / "base_metrics.json", base)
    np.savez_compressed(path / "base_items.npz", **items)
    return evolved, base


def learning_curve(path: Path, sizes: dict[str, int]) -> Path:
    """Scores of the base (step 0) and of every kept, valid checkpoint on the dev split; writes RUN/curve.csv."""
    run = RunDirectory(path)
    folders = sorted(run.checkpoints.glob("step_*"))
    if not folders:
        raise FileNotFoundError(f"{path} has no checkpoint: train it first, and keep more than the newest three "
                                "with checkpoint.keep=100")
    rows = [{"step": 0, **_dev_scores(from_dict(run.config), None, sizes)}]
    for folder in folders:
        try:
            load_checkpoint(folder)
        except CorruptCheckpoint as error:
            raise Refused(f"{path}: {error}; delete that checkpoint folder and run the curve again") from error
        rows.append({"step": int(folder.name[5:]), **_dev_scores(from_dict(run.config), folder, sizes)})
    lines = [",".join(rows[0])] + [",".join(f"{v:g}" for v in row.values()) for row in rows]
    write_atomic(path / "curve.csv", "\n".join(lines) + "\n")
    return path / "curve.csv"


def _dev_scores(config: Config, folder: Path | None, sizes: dict[str, int]) -> dict[str, float]:
    from asgkit.evals.shapes import evaluate_answers, evaluate_drawings

    backbone = open_backbone(config)
    for role in ("solver", "generator") if folder else ():
        backbone.load_role(role, folder / role)
    answers = evaluate_answers(backbone, "solver" if folder else None, "dev", sizes["per_family"]).summary()
    drawings = evaluate_drawings(backbone, "generator" if folder else None, "dev", sizes["per_tag"], sizes["samples"])
    picked = {f"answers/{name}": answers[name] for name in ("single", "majority", "sampled")}
    return picked | {"drawings/overall": drawings.summary()["overall"]}


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve.csv as numbers."""
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


# -- the notebook ---------------------------------------------------------------------------------------------------
def run_notebook(notebook: Path, run_dir: Path, parameters: dict[str, Any]) -> Path:
    """Execute a parameterised notebook in its own folder; returns the executed copy in the run directory.

    Its last cell writes run.json into the run directory. Success is that file, besides an error-free execution: a
    killed kernel leaves a notebook whose cells all look complete. Raises Refused for parameters that the notebook
    does not declare (papermill would only warn and run the defaults) and when the sentinel is missing.
    """
    import papermill
    from traitlets.config import Config as KernelConfig

    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook {notebook}: run this from the folder of the clone")
    unknown = sorted(parameters.keys() - papermill.inspect_notebook(str(notebook)).keys())
    if unknown:
        raise Refused(f"{notebook} has no parameters {unknown}; its parameters cell must declare them")
    run_dir.mkdir(parents=True, exist_ok=True)
    partial, final = run_dir / "notebook.partial.ipynb", run_dir / "notebook.ipynb"
    # encryption: "auto" keeps the kernel from warning about plain TCP on the loop-back device at every start
    papermill.execute_notebook(str(notebook), str(partial), parameters=parameters, kernel_name="python3",
                               progress_bar=False, cwd=str(notebook.parent),
                               config=KernelConfig({"KernelManager": {"transport_encryption": "auto"}}))
    if not (run_dir / "run.json").is_file():
        raise Refused(f"{partial} ended without writing run.json: its kernel stopped early; open it to see where")
    os.replace(partial, final)
    return final


def clear_smoke_run(path: Path) -> None:
    """Delete an earlier smoke run of this name, so that the command can be repeated; refuse to touch anything else."""
    if not path.exists():
        return
    made_here = {"notebook.partial.ipynb", "notebook.ipynb", "run.json"}
    config = path / "config.yaml"
    ours = yaml.safe_load(config.read_text())["preset"] == "smoke" if config.is_file() else (
        {item.name for item in path.iterdir()} <= made_here)
    if not ours:
        raise Refused(f"{path} holds something that is not a smoke run: move it away and try again")
    shutil.rmtree(path)


def smoke_run(base: str, results: Path, made: Made, say: Callable[[str], None], backbone: str = "tiny-ar",
              notebook: Path = NOTEBOOK) -> Path:
    """One base through the full-loop notebook, then evaluated."""
    config = resolve("smoke", [f"backbone={backbone}", f"base={base}"])
    run_dir = results / "runs" / f"smoke-{backbone}-{base}-s{config.seed}"
    clear_smoke_run(run_dir)
    relative = lambda path: os.path.relpath(path, notebook.parent)  # as when a reader opens the notebook
    with made.timed(f"train {backbone}, base {base}, in the notebook", say) as paths:
        parameters = {"backbone": backbone, "base": base, "preset": "smoke", "seed": config.seed,
                      "steps": config.schedule.steps, "overrides": [], "pool": relative(POOL),
                      "run_dir": relative(run_dir)}
        paths.append(str(run_notebook(notebook, run_dir, parameters)))
    with made.timed(f"evaluate {base}", say) as paths:
        evaluate(run_dir, sizes=SMALL)
        paths.append(str(run_dir / "metrics.json"))
    return run_dir


# -- profiles -------------------------------------------------------------------------------------------------------
def reproduce_smoke(results: Path, figures: Path, say: Callable[[str], None]) -> Made:
    """Pool, both bases through the notebook, evaluation, report."""
    made = Made()
    _make_pool(made, say)
    for base in SMOKE_BASES:
        smoke_run(base, results, made, say)
    _report(results, figures, made, say)
    return made


def reproduce_small(results: Path, figures: Path, say: Callable[[str], None], workers: int = 1) -> Made:
    """The committed grid: every run that is not finished is trained or resumed, then evaluated; then the report."""
    from asgkit.experiments import joint_grid

    made, grid = Made(), list(joint_grid())
    _make_pool(made, say)
    todo = [job for job in grid if not is_done(results / "runs" / job[0])]
    say(f"{len(grid)} runs in the grid, {len(grid) - len(todo)} finished already")
    with made.timed("choose the best decoding of every base", say):
        best = {key: choose_decoding(config, FULL["per_tag"], FULL["samples"])
                for key, config in {_base_key(job): resolve(job[1], job[2]) for job in todo}.items()}
    with made.timed(f"train and evaluate {len(todo)} runs", say) as paths, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(grid_run, job, results / "runs" / job[0], best[_base_key(job)], say) for job in todo]
        for future in jobs:
            paths.append(str(future.result()))
    _report(results, figures, made, say)
    return made


def is_done(path: Path) -> bool:
    """A run that trained to its last step and was evaluated."""
    status = path / "status.json"
    return (status.is_file() and json.loads(status.read_text())["state"] == "finished"
            and (path / "metrics.json").is_file() and (path / "base_metrics.json").is_file())


def _base_key(job: tuple[str, str, Sequence[str]]) -> tuple[str, str]:
    config = resolve(job[1], job[2])
    return config.backbone, config.base


def grid_run(job: tuple[str, str, Sequence[str]], path: Path, best: dict[str, float], say: Callable[[str], None]
             ) -> Path:
    """Train (or resume) and evaluate one run in its own process; its output goes to RUN.txt beside the run."""
    name, preset, overrides = job
    began, asgkit = time.perf_counter(), [sys.executable, "-m", "asgkit.cli"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".txt").open("a", encoding="utf-8") as out:
        for command in (["train", "--preset", preset, "--run", str(path), "--resume", *overrides],
                        ["eval", str(path), "--temperature", str(best["temperature"]),
                         "--guidance", str(best["guidance"])]):
            done = subprocess.run([*asgkit, *command], stdout=out, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                raise Refused(f"run {name} failed at `asgkit {command[0]}`; see {path.with_suffix('.txt')}, then "
                              "start the same command again: finished runs are skipped")
    say(f"{name} done in {time.perf_counter() - began:.0f} s")
    return path


def _make_pool(made: Made, say: Callable[[str], None]) -> None:
    with made.timed("unlabelled pool", say) as paths:
        new = ensure_pool(POOL, POOL_SCENES)
        paths.append(f"{POOL} ({'made' if new else 'was there'})")


def _report(results: Path, figures: Path, made: Made, say: Callable[[str], None]) -> None:
    from asgkit.report.build import build_report

    with made.timed("report: tables and figures", say) as paths:
        paths += [str(path) for path in build_report(results, figures)]
