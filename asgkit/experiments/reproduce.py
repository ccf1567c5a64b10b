"""`asgkit reproduce`: pool, notebook runs, evaluation and report in one command; and the evaluation of one run."""

from __future__ import annotations

import ast
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from asgkit.backbones.quantise import can_quantise
from asgkit.config import Config, PoolConfig, measured_name, resolve
from asgkit.errors import Refused
from asgkit.experiments.evaluate import CURVE, SMALL, evaluate, learning_curve
from asgkit.launch import use_threads
from asgkit.runs.files import read_lines
from asgkit.runs.packed_log import NAME, pack_log

if TYPE_CHECKING:
    from asgkit.grids.load import GridRun

POOL = Path(PoolConfig().path)
POOL_SCENES = 2000
NOTEBOOK = Path("notebooks/06_the_full_loop.ipynb")
SMOKE = (("tiny-ar", "clean"), ("tiny-ar", "registers"))  # backbone and base of each short run
PROFILES = {
    "smoke": "two bases, 10 steps each, at most 12 minutes on 2 cores",
    "small": "every run of every shipped grid, days on 2 cores; stop it and go on as you like",
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


def ensure_pool(path: Path, scenes: int, world: str = "shapes") -> bool:
    """Render the default unlabelled pool of a world if it is missing; True if it was made. Whole or not at all."""
    from asgkit.evals.worlds import WORLDS

    if path.exists():
        return False
    aside = path.with_name(f".{path.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    WORLDS[world].render_pool(aside, scenes)
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

    _in_clone(notebook)
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


def _in_clone(notebook: Path) -> None:
    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook {notebook}: run this from the folder of the clone")


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


def smoke_run(backbone: str, base: str, results: Path, made: Made, say: Callable[[str], None],
              notebook: Path = NOTEBOOK) -> Path:
    """One base through the full-loop notebook, then evaluated."""
    config = resolve("smoke", [f"backbone={backbone}", f"base={base}"])
    name = measured_name(backbone, base)
    run_dir = results / "runs" / f"smoke-{name}-s{config.seed}"
    clear_smoke_run(run_dir)
    relative = lambda path: os.path.relpath(path, notebook.parent)  # as when a reader opens the notebook
    with made.timed(f"train {backbone}, base {base}, in the notebook", say) as paths:
        parameters = {"backbone": backbone, "base": base, "preset": "smoke", "seed": config.seed,
                      "steps": config.schedule.steps, "overrides": [], "pool": relative(POOL),
                      "run_dir": relative(run_dir)}
        paths.append(str(run_notebook(notebook, run_dir, parameters)))
    with made.timed(f"evaluate {name}", say) as paths:
        evaluate(run_dir, sizes=SMALL)
        learning_curve(run_dir, CURVE)
        paths += [str(run_dir / "metrics.json"), str(run_dir / "curve.csv")]
    return run_dir


# -- profiles -------------------------------------------------------------------------------------------------------
def reproduce_smoke(results: Path, figures: Path, say: Callable[[str], None]) -> Made:
    """Pool, the bases of `SMOKE` through the notebook, evaluation, report."""
    _in_clone(NOTEBOOK)
    made = Made()
    _make_pool(made, say)
    runs = {measured_name(*pair): smoke_run(*pair, results, made, say) for pair in SMOKE}
    fresh = results / "smoke"
    shutil.rmtree(fresh, ignore_errors=True)
    for base, run in runs.items():
        publish(run, fresh, f"{base}-joint-s{resolve('smoke').seed}")
    _report(results, figures, fresh, figures / "smoke", made, say)
    return made


def reproduce_small(results: Path, figures: Path, say: Callable[[str], None], workers: int = 1) -> Made:
    """Every shipped grid anew: bases measured, every run trained or resumed and evaluated, then the report.

    Everything goes to results/small; what is finished there is skipped, so the command can be stopped and repeated.
    """
    from asgkit.experiments import measure as experiments

    made, grid, fresh = Made(), experiments.committed_runs(), results / "small"
    measured = fresh / "measured"
    _make_pool(made, say)
    todo = _possible([run for run in grid if not experiments.finished(run.experiment, measured)], say)
    for run in {measured_name(run.backbone, run.base): run for run in todo}.values():
        config = run.experiment.config()
        folder = measured / "base" / measured_name(config.backbone, config.base)
        if not experiments.base_measured(folder):
            with made.timed(f"measure base {folder.name}", say) as paths:
                experiments.measure_base(config, folder)
                paths.append(str(folder))
    say(f"{len(grid)} runs in the grids, {len(todo)} to make")
    with made.timed(f"train and evaluate {len(todo)} runs", say) as paths:
        paths.append(str(measured / "runs"))
        for number, path in enumerate(_run_grid(todo, fresh / "runs", measured, workers), start=1):
            say(f"{number}/{len(todo)} {path.name}")
    _report(results, figures, fresh, figures / "small", made, say)
    return made


def _possible(runs: Sequence[GridRun], say: Callable[[str], None]) -> list[GridRun]:
    """The runs whose inputs are there. Each other is named with the input it lacks: a day later would be too late."""
    kept = []
    for run in runs:
        if absent := missing_inputs(run.experiment.config()):
            say(f"left out {run.experiment.name}: {' and '.join(absent)} missing; the grid's file says what makes it")
        else:
            kept.append(run)
    return kept


def missing_inputs(config: Config) -> list[str]:
    """What a run needs and lacks: its pool (the default one is made), the judge it names, an optional library."""
    paths = [] if Path(config.pool.path) == POOL else [config.pool.path]
    paths += [] if config.generator.scorer in ("live", "frozen") else [config.generator.scorer]
    absent = [path for path in paths if not Path(path).exists()]
    return absent + (["bitsandbytes"] if config.lora.quantise and not can_quantise() else [])


def _run_grid(grid: Sequence[GridRun], work: Path, measured: Path, workers: int) -> Iterator[Path]:
    """Finished folders in the order of the grid; each worker is a process of its own with as many threads as this."""
    job = partial(_grid_run, work=work, measured=measured)
    if workers == 1:
        yield from map(job, grid)
        return
    # spawn: a fork of a process in which torch has started threads can hang
    with ProcessPoolExecutor(workers, get_context("spawn"), use_threads, (torch.get_num_threads(),)) as pool:
        yield from pool.map(job, grid)


def _grid_run(run: GridRun, work: Path, measured: Path) -> Path:
    from asgkit.experiments.measure import CURVE_SIZES, run_experiment

    curve = partial(learning_curve, sizes=CURVE_SIZES) if run.curve else None
    return run_experiment(run.experiment, work, measured, curve=curve)


def _make_pool(made: Made, say: Callable[[str], None]) -> None:
    with made.timed("unlabelled pool", say) as paths:
        new = ensure_pool(POOL, POOL_SCENES)
        paths.append(f"{POOL} ({'made' if new else 'was there'})")


def publish(run: Path, root: Path, name: str) -> None:
    """Copy what a report needs of an evaluated run to root/measured, apart from the committed results/measured.

    name: `<backbone>-<base>-<arm>-s<seed>`, as the report reads it. The log is packed (`asgkit.runs.packed_log`), so
    equal runs give equal bytes.
    """
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    target = root / "measured" / "runs" / name
    base = root / "measured" / "base" / measured_name(config["backbone"], config["base"])
    for source, to, names in ((run, target, ("config.yaml", "metrics.json", "items.npz", "curve.csv", "blind.csv")),
                              (run / "base", base, ("metrics.json", "items.npz"))):
        to.mkdir(parents=True, exist_ok=True)
        for item in names:
            if (source / item).is_file():
                shutil.copyfile(source / item, to / item)
    pack_log((record for _, record in read_lines(run / "log.jsonl")), target / NAME)


def _report(results: Path, figures: Path, fresh: Path, fresh_figures: Path, made: Made, say: Callable[[str], None]
            ) -> None:
    """Tables and figures of the committed results, and in folders of their own those of the fresh runs."""
    from asgkit.report.build import build_report

    # of a few fresh runs most figures would be empty panels
    for what, source, to, empty in (("committed results", results, figures, True),
                                    ("fresh runs", fresh, fresh_figures, False)):
        if not (source / "measured").is_dir():
            say(f"no {source / 'measured'}: no report of the {what}")
            continue
        with made.timed(f"report of the {what}", say) as paths:
            files = build_report(source, to, empty=empty)
            paths.append(f"{len(files)} files in {source / 'measured'} and {to}")
