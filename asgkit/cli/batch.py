"""`asgkit batch`: a grid of runs through papermill. `asgkit.cli.app` registers it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asgkit.cli.console import out, refusing
from asgkit.errors import Refused
from asgkit.runs.wording import duration, table

if TYPE_CHECKING:
    from asgkit.experiments.batch import Batch, Task
    from asgkit.grids.load import Grid, GridRun


def batch(
    grid: Annotated[str | None, typer.Argument(help="A grid file (.yaml), or the name of a shipped grid.",
                                               show_default=False)] = None,
    listed: Annotated[bool, typer.Option("--list", help="Show the shipped grids.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs and their state, and start none.")] = False,
    only: Annotated[str, typer.Option(help="Only runs whose name matches, for example '*-joint-s0'.")] = "*",
    workers: Annotated[int, typer.Option(min=1, help="Runs at once, one thread each.")] = 1,
    work: Annotated[Path | None, typer.Option(help="Folder of trainings, notebooks and manifest.json (default: "
                                                   "results/runs/batch/GRID).")] = None,
    measured: Annotated[Path, typer.Option(help="Where bases are read and finished runs go.")] = Path(
        "results/measured"),
    notebook: Annotated[Path, typer.Option(help="Notebook that makes one run.")] = Path("notebooks/batch/run.ipynb"),
    until_decided: Annotated[bool, typer.Option("--until-decided", help="Add seeds until every comparison with the "
                                                "reference is a gain, a loss or no effect.")] = False,
    max_seeds: Annotated[int, typer.Option(min=2, help="With --until-decided: seeds of an arm at most.")] = 10,
    margin: Annotated[float, typer.Option(help="With --until-decided: points below which a difference is none.")] = 1.0,
) -> None:
    """Run every run of a grid in a notebook of its own; finished ones are skipped, stopped ones go on.

    Ctrl-C stops it (in the background, where shells switch Ctrl-C off: kill PID); the same command continues. Exit
    status 1 if a run failed. Examples:

    [bold]asgkit batch --list[/] · the shipped grids and their questions

    [bold]asgkit batch coupling --dry-run[/] · which runs, and what is done already

    [bold]asgkit batch coupling --workers 2[/] · two at a time

    [bold]asgkit batch my/grid.yaml --only '*-s0'[/] · the first seed of your own grid

    [bold]asgkit batch vote --until-decided --max-seeds 8[/] · more seeds where they are needed
    """
    from asgkit.experiments import batch as engine
    from asgkit.grids.load import find_grid, load_grid

    if listed == (grid is not None):
        raise Refused("name a grid or give --list: asgkit batch coupling, asgkit batch --list")
    if grid is None:
        _show_grids()
        return
    path = find_grid(grid)
    content = load_grid(path)
    runs = _chosen(content.runs(), only)
    work = work or Path("results/runs/batch") / path.stem
    if until_decided and only != "*":
        raise Refused("--until-decided decides a whole grid: leave --only out, or write a grid of fewer arms")
    engine.check_parameters(notebook, [])
    tasks = [engine.grid_task(run, notebook, work, measured) for run in runs]
    held = engine.Batch.open(work, notebook)
    out.print(f"{content.title}: {content.question}", markup=False, highlight=False)
    if dry_run:
        _show_plan(held, tasks, runs, work, workers)
        return
    engine.prepare(runs, measured)
    make = lambda some: _run(held, [engine.grid_task(run, notebook, work, measured) for run in some], some, measured,
                             workers)
    done = _decide(content, make, measured, work, max_seeds, margin) if until_decided else make(runs)
    if not done:
        raise typer.Exit(1)


def _decide(grid: Grid, make: Callable[[list[GridRun]], bool], measured: Path, work: Path, most: int, margin: float
            ) -> bool:
    """Run seed after seed, show what was decided and write WORK/decisions.json; False when a run failed."""
    from asgkit.experiments.until_decided import Plan, as_json
    from asgkit.experiments.until_decided import until_decided as decide
    from asgkit.report.measured import Untraceable
    from asgkit.runs.files import write_json

    plan = Plan.of(grid, measured, most, margin)
    with refusing(Untraceable):
        states = decide(plan, make, lambda text: out.print(text, markup=False, highlight=False))
    if states is None:
        return False
    content = as_json(states, most, margin)
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "decisions.json", content)
    rows = [(f"{row['base']}: {row['arm']} - {row['against']}", row["metric"], row["verdict"], _interval(row),
             row["measured_seeds"], row["lacks"]) for row in content["contrasts"]]
    out.print(table(f"decided with at most {most} seeds, no effect below {margin:g} points",
                    ("comparison", "metric", "verdict", "difference, interval of its look", "seeds", "lacks"), rows))
    out.print(f"decisions: {work / 'decisions.json'}; list the added seeds in the grid before you report them",
              markup=False, highlight=False)
    return True


def _interval(row: dict[str, Any]) -> str:
    if "delta" not in row:
        return ""
    interval = f"{row['delta']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
    return f"{interval} at {100 * row['level']:.1f}%, {row['seeds']} seeds"


def _run(held: Batch, tasks: list[Task], runs: list[GridRun], measured: Path, workers: int) -> bool:
    from asgkit.config import measured_name
    from asgkit.experiments.batch import headline

    bases = {run.experiment.name: measured_name(run.backbone, run.base) for run in runs}
    try:
        return held.run(tasks, workers=workers, measure=lambda name: headline(name, bases[name], measured),
                        say=lambda text: out.print(text, markup=False, highlight=False))
    except KeyboardInterrupt:
        out.print("stopped; the same command goes on where it was")
        raise typer.Exit(130) from None
    finally:
        out.print(summary(held, tasks))
        out.print(f"manifest: {held.folder / 'manifest.json'}", markup=False, highlight=False)


def _show_grids() -> None:
    from asgkit.grids.load import load_grid, shipped_grids

    rows = []
    for name, path in shipped_grids().items():
        content = load_grid(path)
        rows.append((name, content.title, content.question, len(content.runs())))
    out.print(table("shipped grids", ("grid", "title", "question", "runs"), rows))


def _chosen(runs: list[GridRun], pattern: str) -> list[GridRun]:
    found = [run for run in runs if fnmatchcase(run.experiment.name, pattern)]
    if not found:
        raise Refused(f"no run matches --only {pattern!r}; there are {', '.join(r.experiment.name for r in runs[:3])}"
                      f"{' and others' if len(runs) > 3 else ''}; quote the pattern, for example --only '*-s0'")
    return found


def _show_plan(held: Batch, tasks: list[Task], runs: list[GridRun], work: Path, workers: int) -> None:
    """The runs with their state; a new one may be measured already (skipped in seconds) or have a training to go on."""
    states = {task.name: held.state(task) for task in tasks}
    rows = [(task.name, states[task.name], _found(task, run, work)) for task, run in zip(tasks, runs, strict=True)]
    out.print(table(f"{len(rows)} runs", ("run", "state", "found"), rows))
    todo = sum(state != "done" for state in states.values())
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    spent = [held.entries[name]["seconds"] for name, state in states.items() if state == "done"]
    left = (f"; about {duration(math.ceil(todo / workers) * fmean(spent))} with --workers {workers}"
            if spent and todo else "")
    out.print(f"{counts}: {todo} to run{left}", markup=False, highlight=False)


def _found(task: Task, run: GridRun, work: Path) -> str:
    from asgkit.experiments.measure import finished

    assert task.evidence is not None  # a grid's tasks all have one
    if finished(run.experiment, task.evidence.parents[2]):
        return "measured"
    return "a training to go on" if (work / task.name / "config.yaml").is_file() else ""


def summary(held: Batch, tasks: list[Task]) -> Any:
    """A table of runs with status, seconds and headline scores (percent, and the change against the base)."""
    rows = []
    for task in tasks:
        entry = held.entries.get(task.name, {})
        scores = entry.get("metrics", {})
        rows.append((task.name, held.state(task), entry.get("attempts", ""), entry.get("seconds", ""),
                     *(_score(scores, side) for side in ("answers", "drawings"))))
    return table("runs", ("run", "status", "attempts", "seconds", "answers", "drawings"), rows)


def _score(scores: dict[str, float], side: str) -> str:
    return f"{scores[side]:.1f} ({scores[f'{side}_change']:+.1f})" if side in scores else ""
