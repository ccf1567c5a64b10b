"""Run a grid through a parameterised notebook: one process per run, resumable, with a manifest.

A run is done when its notebook ended with the sentinel that belongs to it (see `asgkit.experiments.job`), its
measurement is there, and the manifest holds its content hash: resolved configuration, code cells of the notebook, and
name. A later batch skips it; every other run is started again, and its training goes on from its newest checkpoint.

    WORK/manifest.json          token, status, attempts, seconds, message and headline scores of every run
    WORK/notebooks/NAME.ipynb   the executed notebook; NAME.failed.ipynb and NAME.log after a failure
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from asgkit.config import Config, PoolConfig, measured_name
from asgkit.errors import Refused
from asgkit.experiments.job import Job, Outcome, has_sentinel
from asgkit.grids.load import GridRun
from asgkit.runs.files import sha256, write_json
from asgkit.runs.wording import duration

NOTEBOOK = Path("notebooks/batch/run.ipynb")
COMMITTED = Path("results/measured")
POLL_S = 0.1  # between two looks at the workers
STOP_S = 20.0  # for a worker to shut its kernel down before it is killed
ATTEMPTS = 2  # a kernel that died once may have met a full memory; twice is not bad luck


@dataclass(frozen=True)
class Task:
    """One run as the batch sees it: its notebook's parameters, its content hash, and the file that proves it."""

    name: str
    parameters: dict[str, Any]
    token: str
    evidence: Path | None = None


@dataclass
class Batch:
    """A folder of executed notebooks with its manifest."""

    folder: Path
    notebook: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, notebook: Path) -> Batch:
        """The batch of a folder with what its manifest says of earlier runs. Raises Refused for a damaged manifest."""
        path = folder / "manifest.json"
        if not path.is_file():
            return cls(folder, notebook)
        try:
            return cls(folder, notebook, json.loads(path.read_text(encoding="utf-8"))["runs"])
        except (ValueError, KeyError) as error:
            raise Refused(f"{path} is damaged ({error!r}): delete it; finished trainings are not lost") from error

    def output(self, name: str) -> Path:
        """The executed notebook of a run."""
        return self.folder / "notebooks" / f"{name}.ipynb"

    def note(self, name: str, **values: Any) -> None:
        """Change a run's entry and write the manifest atomically."""
        self.entries[name] = {**self.entries.get(name, {}), **values}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "manifest.json", {"notebook": str(self.notebook), "runs": self.entries})

    def state(self, task: Task) -> str:
        """`done`, or why it must run: `new`, `changed` (another hash), `failed`, `stopped`, `lost` (files are gone)."""
        entry = self.entries.get(task.name)
        if entry is None:
            return "new"
        if entry["token"] != task.token:
            return "changed"
        if entry["status"] != "done":
            return "stopped" if entry["status"] == "running" else entry["status"]
        output = self.output(task.name)
        whole = output.is_file() and has_sentinel(output, task.token)
        return "done" if whole and (task.evidence is None or task.evidence.is_file()) else "lost"

    def run(self, tasks: Sequence[Task], *, workers: int = 1, say: Callable[[str], None] = print,
            measure: Callable[[str], dict[str, float]] | None = None) -> bool:
        """Execute what is not done, `workers` notebooks at once with one thread each; True when nothing failed.

        `measure(name)` gives the headline scores of a finished run. Ctrl-C stops the kernels, removes partial
        notebooks and is raised again. Raises Refused for parameters that the notebook does not declare, and when
        another batch works in the folder.
        """
        for task in tasks:
            check_parameters(self.notebook, task.parameters)
        with _locked(self.folder):
            for left in (self.folder / "notebooks").glob("*.partial.ipynb"):
                left.unlink()  # of a batch that was killed
            todo = deque(task for task in tasks if self.state(task) != "done")
            say(f"{len(tasks)} runs, {len(tasks) - len(todo)} done already")
            _Pool(self, workers, say, measure).work(todo)
        return all(self.state(task) == "done" for task in tasks)


@dataclass
class _Worker:
    """A running process."""

    task: Task
    job: Job
    process: subprocess.Popen[str]
    log: TextIO
    attempt: int
    began: float


@dataclass
class _Pool:
    """The processes of one `Batch.run`."""

    batch: Batch
    size: int
    say: Callable[[str], None]
    measure: Callable[[str], dict[str, float]] | None
    active: list[_Worker] = field(default_factory=list)

    def work(self, todo: deque[Task]) -> None:
        """Keep `size` workers busy until nothing is left; on any exception stop them first."""
        total, ended = len(todo), 0
        try:
            while todo or self.active:
                while todo and len(self.active) < self.size:
                    self.active.append(self.start(todo.popleft()))
                time.sleep(POLL_S)
                for worker in [w for w in self.active if w.process.poll() is not None]:
                    self.active.remove(worker)
                    if self.ended(worker):
                        ended += 1
                        self.say(f"{ended}/{total} {self.line(worker.task.name)}")
        finally:
            self.stop()

    def start(self, task: Task, attempt: int = 1) -> _Worker:
        """Start a process of its own session, so that Ctrl-C reaches it through us alone."""
        output = self.batch.output(task.name)
        output.parent.mkdir(parents=True, exist_ok=True)
        job = Job(str(self.batch.notebook.resolve()), str(output.resolve()), task.parameters, str(Path.cwd()),
                  task.token)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "JUPYTER_PREFER_ENV_PATH": "1"}
        environment.pop("MPLBACKEND", None)  # in a kernel it would switch the pictures off
        log = output.with_suffix(".log").open("w" if attempt == 1 else "a", encoding="utf-8")
        process = subprocess.Popen([sys.executable, "-m", "asgkit.experiments.job"], stdin=subprocess.PIPE, stdout=log,
                                   stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment)
        worker = _Worker(task, job, process, log, attempt, time.perf_counter())
        assert process.stdin is not None
        process.stdin.write(job.line())
        process.stdin.flush()
        spent = self.batch.entries[task.name]["seconds"] if attempt > 1 else 0.0
        self.batch.note(task.name, token=task.token, status="running", attempts=attempt, seconds=spent, message="",
                        metrics={})
        return worker

    def ended(self, worker: _Worker) -> bool:
        """Note how a process ended; False when it was started once more because its kernel died."""
        code, task = worker.process.returncode, worker.task
        self.close(worker)
        done = code == Outcome.DONE and (task.evidence is None or task.evidence.is_file())
        message = "" if done else (f"{task.evidence} is missing" if code == Outcome.DONE else _last_line(worker))
        self.batch.note(task.name, status="done" if done else "failed", message=message,
                        seconds=round(self.batch.entries[task.name]["seconds"] + _spent(worker), 1))
        died = code == Outcome.KERNEL_DIED or code < 0  # below 0: the process itself was killed
        if died and worker.attempt < ATTEMPTS:
            self.say(f"{task.name}: {message}; starting it once more")
            self.active.append(self.start(task, worker.attempt + 1))
            return False
        if done:
            self.batch.note(task.name, metrics=self.measure(task.name) if self.measure else {})
            for leftover in (worker.job.failed, Path(worker.log.name)):
                leftover.unlink(missing_ok=True)
        return True

    def line(self, name: str) -> str:
        """What is said of an ended run."""
        entry = self.batch.entries[name]
        text = f"{name}: {entry['status']} after {duration(entry['seconds'])}"
        return f"{text}: {entry['message']}" if entry["message"] else text

    def stop(self) -> None:
        """Shut down what still runs: kernels first, then their processes, then partial notebooks."""
        for worker in self.active:
            worker.process.stdin.close()  # the process hears of it and shuts its kernel down
        deadline = time.monotonic() + STOP_S
        for worker in self.active:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            self.close(worker)
            self.batch.note(worker.task.name, status="stopped", message="stopped",
                            seconds=round(self.batch.entries[worker.task.name]["seconds"] + _spent(worker), 1))
        self.active.clear()

    def close(self, worker: _Worker) -> None:
        """Let go of an ended process and of what it may have left half written."""
        worker.process.stdin.close()
        worker.log.close()
        worker.job.partial.unlink(missing_ok=True)


def _spent(worker: _Worker) -> float:
    return time.perf_counter() - worker.began


def _last_line(worker: _Worker) -> str:
    lines = Path(worker.log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    said = lines[-1] if lines else "nothing was said"
    return f"killed by signal {-worker.process.returncode}" if worker.process.returncode < 0 else said


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Only one batch at a time works in a folder; the system drops the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise Refused(f"another batch works in {folder}: wait for it, or name another --work") from error
    with held:
        yield


def check_parameters(notebook: Path, parameters: Iterable[str]) -> None:
    """Refuse parameters that the notebook does not declare; papermill would warn and run the defaults."""
    import papermill

    if not notebook.is_file():
        raise FileNotFoundError(f"no notebook {notebook}: run this in the folder of the clone, or name one with "
                                "--notebook")
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(parameters) - known.keys())
    if unknown:
        raise Refused(f"{notebook} has no parameters {', '.join(unknown)}; its cell tagged parameters declares "
                      f"{', '.join(known) or 'none'}")


# -- from a grid ----------------------------------------------------------------------------------------------------
def content_hash(run: GridRun, notebook: Path) -> str:
    """sha256 of what decides a run's outcome: name, resolved configuration, curve or not, the notebook's code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    content = {"name": run.experiment.name, "config": run.experiment.config().model_dump(mode="json"),
               "curve": run.curve, "notebook": code}
    return sha256(json.dumps(content, sort_keys=True).encode())


def grid_task(run: GridRun, notebook: Path, work: Path, measured: Path) -> Task:
    """A grid's run as a task of `notebooks/batch/run.ipynb`, or of a notebook with the same parameters."""
    name, token = run.experiment.name, content_hash(run, notebook)
    parameters = {"preset": run.preset, "backbone": run.backbone, "base": run.base, "arm": run.arm, "seed": run.seed,
                  "overrides": list(run.overrides), "curve": run.curve, "work": str(work), "measured": str(measured),
                  "token": token}
    return Task(name, parameters, token, measured / "runs" / name / "metrics.json")


def prepare(runs: Iterable[GridRun], measured: Path, clone: Path = Path(), say: Callable[[str], None] = print) -> None:
    """What runs share and would otherwise make at the same time: the default pool, and the measured bases.

    A base that `measured` lacks is copied from the clone's results/measured; one that is not there either is measured
    here, which is said: a run is scored with its base's best decoding, and beside its base.
    """
    from asgkit.experiments.reproduce import POOL_SCENES, ensure_pool

    runs = list(runs)
    for run in {measured_name(run.backbone, run.base): run for run in runs}.values():
        _prepare_base(run.experiment.config(), measured / "base", clone / COMMITTED / "base", say)
    if any(run.experiment.config().pool.path == PoolConfig().path for run in runs):
        ensure_pool(clone / PoolConfig().path, POOL_SCENES)


def _prepare_base(config: Config, bases: Path, committed: Path, say: Callable[[str], None]) -> None:
    from asgkit.experiments.measure import base_measured, measure_base

    name = measured_name(config.backbone, config.base)
    target = bases / name
    if base_measured(target):
        return
    if not base_measured(committed / name):
        say(f"measuring the base {name}, which takes minutes: {target} is not there, nor is {committed / name}")
        measure_base(config, target)
        return
    aside = target.with_name(f".{name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(committed / name, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def clone_folder() -> Path:
    """The folder of the clone: here or above. Raises FileNotFoundError outside a clone."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / NOTEBOOK).is_file():
            return folder
    raise FileNotFoundError(f"no {NOTEBOOK} here or above: work in the folder of the clone")


def headline(name: str, base_name: str, measured: Path) -> dict[str, float]:
    """`answers` and `drawings` of a run in percent, and `..._change` against its base on the same items.

    Raises Untraceable when the two were measured on different items or with another decoding.
    """
    from asgkit.report.measured import MAIN, Measurement, same_items

    run, base = Measurement(name, measured / "runs" / name), Measurement(base_name, measured / "base" / base_name)
    same_items(base, run)
    found: dict[str, float] = {}
    for side, metric in MAIN.items():
        key = f"{side}/{metric}"
        found[side] = round(float(run.metrics["scores"][key]), 4)
        found[f"{side}_change"] = round(float(run.metrics["scores"][key] - base.metrics["scores"][key]), 4)
    return found
