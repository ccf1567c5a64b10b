"""One table per grid: every arm against the base and against the arm that its grid names as its reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from asgkit.config import measured_name, resolve
from asgkit.grids.experiment import same_config
from asgkit.grids.load import Grid, GridRun, load_grid, shipped_grids
from asgkit.report.measured import Measured, Run
from asgkit.report.tables.families import counted, seed_note
from asgkit.report.tables.gains import EXACT, Gains
from asgkit.report.tables.tables import designed, refuse_untraced, texts
from asgkit.stats.effects import METHOD, WORDS

ARM_METRICS = ("answers/single", "answers/majority", "answers/canonical", "answers/sampled", "drawings/overall",
               "drawings_best/overall")
COLUMNS = ("grid", "base", "arm", "against", "metric", "score", "delta", "low", "high", "exact", "seeds", "planned",
           "n", "interval", "per_seed", "source", "run_ids")
BASE = "base"


@dataclass(frozen=True)
class ArmRuns:
    """One arm on one base as a grid plans it: the measured runs of its own, its reference arm and that one's runs."""

    base: str
    arm: str
    planned: int
    runs: tuple[Run, ...]
    reference: str | None
    others: tuple[Run, ...]


@dataclass(frozen=True)
class Plan:
    """A grid against what was measured: its arms, and the ids of runs left out as unfinished or made otherwise."""

    arms: list[ArmRuns]
    unfinished: list[str]
    strange: list[str]


def grid_arms(measured: Measured, grid: Grid) -> Plan:
    """Every arm of a grid on every base, in its order.

    A measured run counts where its stored configuration is the one that the grid asks for.
    """
    held = {run.name: run for run in measured.runs}
    plan: dict[tuple[str, str], list[Run | None]] = {}
    unfinished: list[str] = []
    strange: list[str] = []
    for made in grid.runs():
        name = made.experiment.name
        if name in measured.unfinished:
            unfinished.append(name)
        run = held.get(name)
        if run is not None and not _as_planned(run, made):
            strange.append(name)
            run = None
        plan.setdefault((measured_name(made.backbone, made.base), made.arm), []).append(run)
    arms = []
    for (base, arm), runs in plan.items():
        reference = grid.reference_of(arm)
        others = measured.arms(base).get(reference, []) if reference else []
        own = sorted((run for run in runs if run is not None), key=lambda run: run.seed)
        arms.append(ArmRuns(base, arm, len(runs), tuple(own), reference, tuple(others)))
    return Plan(arms, unfinished, strange)


def _as_planned(run: Run, made: GridRun) -> bool:
    wanted = made.experiment.config()
    preset = resolve(made.preset, {"backbone": made.backbone})
    return same_config(run.config, wanted.model_dump(mode="json"), preset.model_dump(mode="json"))


def grid_table(name: str, arms: Iterable[ArmRuns], measured: Measured, gains: Gains) -> pd.DataFrame:
    """Each arm's differences to the base and to its reference, in points; columns COLUMNS.

    `exact` is `unchanged, exact` where every raw result of every run is that of the other side. Arms without
    measured runs leave no rows. Raises Untraceable where a score does not follow from its items.
    """
    rows = []
    for arm in arms:
        if arm.runs and arm.base in measured.bases:
            rows += [_row(name, arm, against, metric, measured, gains) for against in _sides(arm)
                     for metric in ARM_METRICS]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _sides(arm: ArmRuns) -> list[str]:
    return [BASE, arm.reference] if arm.reference and arm.others else [BASE]


def _row(grid: str, arm: ArmRuns, against: str, metric: str, measured: Measured, gains: Gains) -> dict[str, Any]:
    base = measured.bases[arm.base]
    found = (gains.over_base(base, arm.runs, metric) if against == BASE
             else gains.over_arm(base, arm.runs, arm.others, metric))
    used = arm.runs if against == BASE else (*arm.runs, *arm.others)
    score = sum(100 * float(run.values(metric).mean()) for run in arm.runs) / len(arm.runs)
    return {"grid": grid, "base": arm.base, "arm": arm.arm, "against": against, "metric": metric, "score": score,
            "delta": found.delta, "low": found.low, "high": found.high, "exact": EXACT if found.exact else "",
            "seeds": len(found.seeds), "planned": arm.planned, "n": found.n, "interval": found.interval,
            "per_seed": " ".join(f"{d:+.2f}" for d in found.per_seed), "source": "measured",
            "run_ids": " ".join(run.name for run in used)}


def grid_shown(name: str, arms: Iterable[ArmRuns], table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed: per arm a line against the base and one against its reference.

    An arm without runs, or one whose reference has none, says which command makes them.
    """
    refuse_untraced(table)
    held = dict(iter(table.groupby(["base", "arm", "against"], sort=False)))
    lines = []
    for arm in arms:
        if not arm.runs:
            lines.append({"base": arm.base, "arm": arm.arm, ARM_METRICS[0]: f"not measured: asgkit batch {name}"})
            continue
        for against in (BASE, *([arm.reference] if arm.reference else [])):
            group = held.get((arm.base, arm.arm, against))
            missing = {ARM_METRICS[0]: f"{against} not measured: {made_by(against)}"}
            cells = missing if group is None else _cells(group)
            lines.append({"base": arm.base, "arm": arm.arm, "minus": against, **cells})
    return texts(lines, ["base", "arm", "minus", *ARM_METRICS, "seeds", "n"])


def _cells(group: pd.DataFrame) -> dict[str, str]:
    cells = {r.metric: r.exact or f"{r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}]" for r in group.itertuples()}
    first = group.iloc[0]
    seeds = str(first.seeds) if first.seeds == first.planned else f"{first.seeds} of {first.planned}"
    return cells | {"seeds": seeds, "n": " / ".join(str(n) for n in dict.fromkeys(group["n"]))}


def grid_caption(name: str, grid: Grid, table: pd.DataFrame, plan: Plan) -> str:
    """Title and question of the grid, what its intervals are, how many there are, and what was left out."""
    question = grid.question if grid.question.endswith((".", "?")) else grid.question + "."
    text = (f"{grid.title}: {question} Differences in percentage points with 95% {WORDS[METHOD]} intervals "
            "over items and seeds: of each arm to its base, and to its reference arm (items paired, seeds matched "
            f"where both have them). '{EXACT}': no answer or drawing differs. Grid {name}.")
    text += counted(table[table["exact"] == ""]) + seed_note(table["seeds"]) + designed(table["base"])
    text += f" Not finished, so left out: {', '.join(plan.unfinished)}." if plan.unfinished else ""
    return text + (f" Made with other settings, so left out: {', '.join(plan.strange)}." if plan.strange else "")


def grid_page(name: str, measured: Measured, gains: Gains) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """A shipped grid as (tidy table, the table as it is printed, its caption); raises KeyError for no such grid."""
    plan = grid_arms(measured, all_grids()[name])
    table = grid_table(name, plan.arms, measured, gains)
    return table, grid_shown(name, plan.arms, table), grid_caption(name, all_grids()[name], table, plan)


def made_by(arm: str) -> str:
    """The command that makes the runs of an arm, or measures the base; for another arm, that no grid has it."""
    if arm == BASE:
        return "asgkit batch headline"
    found = _grid_of_arm().get(arm)
    return f"asgkit batch {found}" if found else "no grid has it"


@lru_cache(maxsize=1)
def all_grids() -> Mapping[str, Grid]:
    """The shipped grids by name, read once."""
    return {name: load_grid(path) for name, path in shipped_grids().items()}


@lru_cache(maxsize=1)
def _grid_of_arm() -> dict[str, str]:
    """The headline's arms are its own, although other grids may hold arms of these names too."""
    ordered = sorted(all_grids().items(), key=lambda item: item[0] != "headline", reverse=True)
    return {arm: name for name, grid in ordered for arm in grid.all_arms()}
