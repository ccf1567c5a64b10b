"""Many comparisons at once: a p-value for each, Holm's correction within a grid and over all, and what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from asgkit.report.measured import MAIN, Measured
from asgkit.report.tables.arms import Plan
from asgkit.report.tables.gains import Gains
from asgkit.report.tables.tables import refuse_untraced, texts
from asgkit.stats.intervals import holm

MAIN_METRICS = tuple(f"{side}/{metric}" for side, metric in MAIN.items())
APART, ALONE, SAME = "told apart", "only by its own interval", "not told apart"
ONE_SEED = "one seed: items alone"
COLUMNS = ("grid", "base", "arm", "against", "metric", "delta", "low", "high", "seeds", "n", "p", "holm_grid",
           "holm_all", "verdict", "source", "run_ids")
LEVEL = 0.05


def comparisons(plans: Mapping[str, Plan], measured: Measured, gains: Gains, metrics: Sequence[str] = MAIN_METRICS
                ) -> pd.DataFrame:
    """Every arm of some grids against its reference arm; columns COLUMNS, points, p-values two-sided.

    A pair that is equal in every raw result is no comparison (adapters are separate, so it could not differ), and
    each other one is corrected by Holm within its grid and over all rows. `verdict`: told apart (Holm within the grid
    below 0.05), only by its own interval (p alone below 0.05), or not told apart; with one seed neither, since p knows
    the items alone. Raises Untraceable where a score does not follow from its items.
    """
    rows = []
    for grid, plan in plans.items():
        for arm in plan.arms:
            if not (arm.runs and arm.others and arm.base in measured.bases):
                continue
            base, names = measured.bases[arm.base], " ".join(run.name for run in (*arm.runs, *arm.others))
            for metric in metrics:
                found = gains.over_arm(base, arm.runs, arm.others, metric)
                if not found.exact:
                    p = gains.p_value(base, arm.runs, metric, arm.others)
                    rows.append((grid, arm.base, arm.arm, arm.reference, metric, found.delta, found.low, found.high,
                                 len(found.seeds), found.n, p, 0.0, 0.0, "", "measured", names))
    return _corrected(pd.DataFrame(rows, columns=list(COLUMNS)))


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    table["holm_all"] = holm(table["p"])
    for _, group in table.groupby("grid"):
        table.loc[group.index, "holm_grid"] = holm(group["p"])
    table["verdict"] = [_verdict(r) for r in table.itertuples()]
    return table


def _verdict(row: Any) -> str:
    if row.seeds == 1:
        return ONE_SEED
    return APART if row.holm_grid < LEVEL else ALONE if row.p < LEVEL else SAME


def comparisons_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed, the smallest p first."""
    refuse_untraced(table)
    number = lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}"
    lines = [{"grid": r.grid, "base": r.base, "arm": r.arm, "minus": r.against, "metric": r.metric,
              "difference": f"{r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}]", "seeds": str(r.seeds), "n": str(r.n),
              "p": number(r.p), "Holm, grid": number(r.holm_grid), "Holm, all": number(r.holm_all), "": r.verdict}
             for r in table.sort_values("p", kind="stable").itertuples()]
    return texts(lines, ["grid", "base", "arm", "minus", "metric", "difference", "seeds", "n", "p", "Holm, grid",
                         "Holm, all", ""])
