"""`asgkit reproduce`: pool, notebook runs, evaluation and report in one command; and the evaluation of one run."""

from __future__ import annotations

import ast
import gzip
import json
import logging
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

import yaml

from asgkit.config import PoolConfig, resolve
from asgkit.console import Refused
from asgkit.scoring import CURVE, FULL, SMALL, choose_decoding, evaluate, learning_curve

POOL = Path(PoolConfig().path)
POOL_SCENES = 2000
NOTEBOOK = Path("notebooks/06_the_full_loop.ipynb")
SMOKE_BASES = ("clean", "registers")
PROFILES = {
    "smoke": "two bases, 10 steps each, at most 12 minutes on 2 cores",
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
    unknown = sorted(parameters.keys() - declared_parameters(notebook))
    if unknown:
        raise Refused(f"{notebook} has no parameters {unknown}; its parameters cell must declare them")
    run_dir.mkdir(parents=True, exist_ok=True)
    partial, final = run_dir / "notebook.partial.ipynb", run_dir / "notebook.ipynb"
    # encryption: "auto" keeps the kernel from warning about plain TCP on the loop-back device at every start
    logging.getLogger("papermill").setLevel(logging.ERROR)  # its reader of the parameters cell complains of quotes
    papermill.execute_notebook(str(notebook), str(partial), parameters=parameters, kernel_name="python3",
                               progress_bar=False, cwd=str(notebook.parent),
                               config=KernelConfig({"KernelManager": {"transport_encryption": "auto"}}))
    if not (run_dir / "run.json").is_file():
        raise Refused(f"{partial} ended without writing run.json: its kernel stopped early; open it to see where")
    os.replace(partial, final)
    return final


def declared_parameters(notebook: Path) -> set[str]:
    """Names assigned in the cell tagged `parameters` (papermill's own reader stumbles over quotes in comments)."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    tree = ast.parse("\n".join(source))
    targets = [t for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)
               for t in (node.targets if isinstance(node, ast.Assign) else [node.target])]
    return {t.id for t in targets if isinstance(t, ast.Name)}


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
        learning_curve(run_dir, CURVE)
        paths += [str(run_dir / "metrics.json"), str(run_dir / "curve.csv")]
    return run_dir


# -- profiles -------------------------------------------------------------------------------------------------------
def reproduce_smoke(results: Path, figures: Path, say: Callable[[str], None]) -> Made:
    """Pool, both bases through the notebook, evaluation, report."""
    made = Made()
    _make_pool(made, say)
    runs = {base: smoke_run(base, results, made, say) for base in SMOKE_BASES}
    fresh = results / "smoke"
    shutil.rmtree(fresh, ignore_errors=True)
    for base, run in runs.items():
        publish(run, fresh, f"tiny-ar-{base}-joint-s{resolve('smoke').seed}")
    _report(results, figures, fresh, figures / "smoke", made, say)
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
    fresh = results / "small"
    for name, *_ in grid:
        publish(results / "runs" / name, fresh, name)
    _report(results, figures, fresh, figures / "small", made, say)
    return made


def is_done(path: Path) -> bool:
    """A run that trained to its last step and was evaluated."""
    status = path / "status.json"
    return (status.is_file() and json.loads(status.read_text())["state"] == "finished"
            and (path / "metrics.json").is_file() and (path / "base" / "metrics.json").is_file())


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


def publish(run: Path, root: Path, name: str) -> None:
    """Copy what a report needs of an evaluated run to root/measured, apart from the committed results/measured.

    name: `<backbone>-<base>-<arm>-s<seed>`, as the report reads it. The log is packed with a fixed time stamp, so
    equal runs give equal bytes.
    """
    target, base = root / "measured" / "runs" / name, root / "measured" / "base" / base_of(run)
    for source, to, names in ((run, target, ("config.yaml", "metrics.json", "items.npz", "curve.csv")),
                              (run / "base", base, ("metrics.json", "items.npz"))):
        to.mkdir(parents=True, exist_ok=True)
        for item in names:
            if (source / item).is_file():
                shutil.copyfile(source / item, to / item)
    (target / "log.jsonl.gz").write_bytes(gzip.compress((run / "log.jsonl").read_bytes(), mtime=0))


def base_of(run: Path) -> str:
    """`<backbone>-<base>` of a run."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return f"{config['backbone']}-{Path(config['base']).stem.removeprefix(config['backbone'] + '-')}"


def _report(results: Path, figures: Path, fresh: Path, fresh_figures: Path, made: Made, say: Callable[[str], None]
            ) -> None:
    """Tables and figures of the committed results, and in folders of their own those of the fresh runs."""
    from asgkit.report.build import build_report

    for what, source, to in (("committed results", results, figures), ("fresh runs", fresh, fresh_figures)):
        if not (source / "measured").is_dir():
            say(f"no {source / 'measured'}: no report of the {what}")
            continue
        with made.timed(f"report of the {what}", say) as paths:
            files = build_report(source, to)
            paths.append(f"{len(files)} files in {source / 'measured'} and {to}")
