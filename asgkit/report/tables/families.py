"""The headline: every question family and drawing tag on every backbone, and what bears on a gain that is not clear.

A gain whose interval holds 0 is said to be not clear, and beside it stands which condition of the premise does not
hold: on that family or tag itself where its items can tell, else on the base as `premise.json` has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from asgkit.config import measured_name
from asgkit.grids.load import find_grid, load_grid
from asgkit.report.measured import Measured, Measurement, Run
from asgkit.report.premise import ROOM, judge_premise, state_of
from asgkit.report.tables.gains import Gain, Gains
from asgkit.report.tables.tables import METRICS, refuse_untraced, texts

FAMILY_METRICS = tuple(metric for metric in METRICS if metric != "answers/agreement")
CLEAR_GAIN, CLEAR_LOSS, NOT_CLEAR = "clear of 0: gain", "clear of 0: loss", "not clear of 0"
FILE, NO_PREMISE = "premise.json", "premise not measured"
COLUMNS = ("base", "metric", "base_score", "evolved", "delta", "low", "high", "mark", "seeds", "n", "interval",
           "per_seed", "random_delta", "random_low", "random_high", "random_seeds", "oracle_delta", "oracle_low",
           "oracle_high", "oracle_seeds", "premise", "source", "run_ids")
_OF_SIDE = {"answers": ("H_sc finds wrong majorities", "STE finds wrong majorities"),
            "drawings": ("the truth can be read", "the Solver reads drawings", "R_g ranks drawings rightly",
                         "groups are mixed")}


def headline_bases() -> list[str]:
    """The bases of the shipped grid `headline`, as results name them."""
    grid = load_grid(find_grid("headline"))
    return [measured_name(backbone, base) for backbone in grid.backbones for base in grid.bases]


def families_table(measured: Measured, gains: Gains, bases: Sequence[str]) -> pd.DataFrame:
    """The joint arm over its base for every family and tag, the controls' gains beside it; columns COLUMNS, percent.

    A control that was not run leaves its cells empty; a base that was not measured, or has no joint run, leaves no
    rows. Raises Untraceable where a score does not follow from its items.
    """
    rows = []
    for name in bases:
        arms = measured.arms(name)
        if name in measured.bases and "joint" in arms:
            rows += [_row(measured.bases[name], arms, metric, gains) for metric in FAMILY_METRICS]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(base: Measurement, arms: dict[str, list[Run]], metric: str, gains: Gains) -> dict[str, Any]:
    before = 100 * float(base.values(metric).mean())
    found = {arm: gains.over_base(base, arms[arm], metric) for arm in ("joint", "random", "oracle") if arm in arms}
    joint, used = found["joint"], [run for arm in found for run in arms[arm]]
    row = {"base": base.name, "metric": metric, "base_score": before, "evolved": before + joint.delta,
           "delta": joint.delta, "low": joint.low, "high": joint.high, "mark": mark(joint), "seeds": len(joint.seeds),
           "n": joint.n, "interval": joint.interval, "per_seed": " ".join(f"{d:+.2f}" for d in joint.per_seed),
           "premise": "" if joint.low > 0 else bearing(base, metric, found.get("oracle")), "source": "measured",
           "run_ids": " ".join(run.name for run in used)}
    for arm in ("random", "oracle"):
        gain = found.get(arm)
        row |= {f"{arm}_{part}": getattr(gain, part) if gain else math.nan for part in ("delta", "low", "high")}
        row[f"{arm}_seeds"] = len(gain.seeds) if gain else 0
    return row


def mark(gain: Gain) -> str:
    """Whether a gain is clear of 0, in words; one that changed nothing says so."""
    if gain.exact:
        return gain.text
    return NOT_CLEAR if not gain.clear else CLEAR_GAIN if gain.low > 0 else CLEAR_LOSS


def bearing(base: Measurement, metric: str, oracle: Gain | None) -> str:
    """The conditions behind a gain in `metric` that do not hold on the base, with their numbers; else that all hold.

    On the metric's own items: room to move, and for answers what the vote has over them. From premise.json: whether
    signals find errors, the Solver reads drawings, R_g ranks them. Last, whether rewards from the truth do better.
    """
    found = [text for text in (_room(base, metric), _vote(base, metric)) if text]
    path = base.path / FILE
    if path.is_file():
        side = metric.split("/")[0].removesuffix("_best")
        verdicts = judge_premise(json.loads(path.read_text(encoding="utf-8")))
        found += [f"{v.condition}: {v.state} ({v.found})" for v in verdicts
                  if v.condition in _OF_SIDE[side] and v.state != "holds"]
    else:
        found.append(NO_PREMISE)
    found = found or ["every condition holds"]
    return "; ".join([*found, "the oracle was not run" if oracle is None else
                      "the oracle gains here" if oracle.low > 0 else "the oracle gains nothing clear here either"])


def premise_note(measured: Measured, bases: Sequence[str]) -> str:
    """For the caption: which commands measure the premises that the table says are not; empty where none lacks."""
    lacking = [name for name in bases if name in measured.bases and not (measured.bases[name].path / FILE).is_file()]
    commands = ["asgkit premise backbone={} base={} --split test --out results/measured/base/{}/{}".format(
        *name.rsplit("-", 1), name, FILE) for name in lacking]
    return f" {NO_PREMISE.capitalize()}: {'; '.join(commands)}." if commands else ""


def _room(base: Measurement, metric: str) -> str:
    score = 100 * float(base.values(metric).mean())
    return "" if ROOM[0] <= score <= ROOM[1] else f"room to move: fails (base {score:.1f}%)"


def _vote(base: Measurement, metric: str) -> str:
    """What the majority has over the answers of this metric, on the same questions; empty where that holds."""
    side, name = metric.split("/", 1)
    if side != "answers":
        return ""
    kind, _, family = name.partition("/")
    if kind == "majority":
        return "the vote is itself the teacher here"
    gap = base.values(f"answers/majority{'/' + family if family else ''}") - base.values(metric)
    error = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else None
    state = state_of(float(gap.mean()), error)
    shown = f"{100 * gap.mean():+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
    return "" if state == "holds" else f"the vote beats these answers: {state} ({shown} points)"


def families_shown(table: pd.DataFrame, bases: Sequence[str]) -> pd.DataFrame:
    """The headline as it is printed, one line per base and metric; a base without joint runs says what makes them."""
    refuse_untraced(table)
    lines = [_line(row) for row in table.itertuples()]
    have = set(table["base"])
    lines += [{"base": name, "metric": "not measured: asgkit batch headline"} for name in bases if name not in have]
    return texts(lines, ["base", "metric", "before", "evolved", "gain", "", "seeds", "n", "random", "oracle",
                         "premise"])


def _line(row: Any) -> dict[str, str]:
    side = lambda arm: (f"{getattr(row, arm + '_delta'):+.1f} [{getattr(row, arm + '_low'):+.1f}, "
                        f"{getattr(row, arm + '_high'):+.1f}] (seeds: {getattr(row, arm + '_seeds')})"
                        if getattr(row, arm + "_seeds") else "not measured")
    return {"base": row.base, "metric": row.metric, "before": f"{row.base_score:.1f}", "evolved": f"{row.evolved:.1f}",
            "gain": f"{row.delta:+.1f} [{row.low:+.1f}, {row.high:+.1f}]", "": row.mark, "seeds": str(row.seeds),
            "n": str(row.n), "random": side("random"), "oracle": side("oracle"), "premise": row.premise or "-"}


def counted(table: pd.DataFrame) -> str:
    """How many comparisons a table of gains holds, and how many of them chance alone would make look clear."""
    held = len(table)
    return (f" {held} comparisons, each with its own 95% interval: where nothing changed at all, about "
            f"{held / 20:.0f} of them would still be clear of 0.") if held else ""


def seed_note(counts: pd.Series) -> str:
    """What few seeds mean for the intervals of a table; empty where none has fewer than five."""
    few = sorted({int(c) for c in counts if 0 < int(c) < 5})
    if not few:
        return ""
    single = " With n = 1 they cover the items alone and say nothing of another seed." if 1 in few else ""
    return (f" Seeds are few (n = {', '.join(map(str, few))}): intervals are widened by Student's t, and an effect "
            f"that is not clear may still be there.{single}")
