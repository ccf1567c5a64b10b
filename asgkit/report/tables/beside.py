"""What a gain stands beside: the best that the base does without training, random rewards, rewards from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from asgkit.report.measured import Measured, Measurement, Run
from asgkit.report.tables.gains import Gains
from asgkit.report.tables.tables import refuse_untraced, texts
from asgkit.stats.effects import over_base
from asgkit.stats.intervals import Interval

CONTROLS = ("random", "oracle")
_ANSWERED = ("single", "canonical", "majority", "sampled")  # ways to answer that cost no training
_BY_FAMILY = ("single", "majority")  # those that are kept per question family
COLUMNS = ("base", "metric", "base_score", "evolved", "delta", "low", "high", "seeds", "n",
           *(f"{arm}_{part}" for arm in CONTROLS for part in ("delta", "low", "high", "seeds")), "free", "free_score",
           "over_free", "over_free_low", "over_free_high", "source", "run_ids")


def best_free(base: Measurement, metric: str) -> str:
    """The metric under which the untrained base scores best on the same items; the first of equals.

    For answers one framing, the canonical framing, the majority or a sample (within a family: one framing or the
    majority); for drawings the default or the base's best decoding. It is chosen on the items that it is scored on,
    which favours the base a little. Raises KeyError for a side that is not `answers` or `drawings`.
    """
    return max(_ways(metric), key=lambda name: base.values(name).mean())


def _ways(metric: str) -> list[str]:
    side, _, name = metric.partition("/")
    if side == "answers":
        family = name.partition("/")[2]
        return [f"answers/{way}/{family}" for way in _BY_FAMILY] if family else [f"answers/{w}" for w in _ANSWERED]
    if side not in ("drawings", "drawings_best"):
        raise KeyError(f"no way to decode {metric}: metrics start with answers, drawings or drawings_best")
    return [f"drawings/{name}", f"drawings_best/{name}"]


def beside_table(measured: Measured, gains: Gains, bases: Sequence[str], metrics: Sequence[str], arm: str = "joint"
                 ) -> pd.DataFrame:
    """Gains of an arm with what they stand beside; columns COLUMNS, percent and points with 95% intervals.

    `over_free` is the evolved score in `metric` minus the base's score under `best_free`, items paired: what training
    gives over a choice of decoding. A control that was not run leaves its cells empty; a base without a measurement
    or runs of the arm leaves no rows. Raises Untraceable where a score does not follow from its items.
    """
    rows = []
    for name in bases:
        arms = measured.arms(name)
        if name in measured.bases and arm in arms:
            rows += [_row(measured.bases[name], arms, arm, metric, gains) for metric in metrics]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(base: Measurement, arms: dict[str, list[Run]], arm: str, metric: str, gains: Gains) -> dict[str, Any]:
    found, before = gains.over_base(base, arms[arm], metric), 100 * float(base.values(metric).mean())
    free = best_free(base, metric)
    over = _over(base, free, arms[arm], metric, gains.resamples)
    row = {"base": base.name, "metric": metric, "base_score": before, "evolved": before + found.delta,
           "delta": found.delta, "low": found.low, "high": found.high, "seeds": len(found.seeds), "n": found.n,
           "free": free, "free_score": 100 * float(base.values(free).mean()), "over_free": 100 * over.delta,
           "over_free_low": 100 * over.low, "over_free_high": 100 * over.high, "source": "measured",
           "run_ids": " ".join(run.name for one in (arm, *CONTROLS) for run in arms.get(one, []))}
    for control in CONTROLS:
        gain = gains.over_base(base, arms[control], metric) if control in arms else None
        row |= {f"{control}_{part}": getattr(gain, part) if gain else math.nan for part in ("delta", "low", "high")}
        row[f"{control}_seeds"] = len(gain.seeds) if gain else 0
    return row


def _over(base: Measurement, free: str, runs: Sequence[Run], metric: str, resamples: int) -> Interval:
    return over_base(base.values(free), np.stack([run.values(metric) for run in runs]), resamples=resamples)


def beside_shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is printed, one line per base and metric; every number names its seeds."""
    refuse_untraced(table)
    lines = [{"base": r.base, "metric": r.metric, "before": f"{r.base_score:.1f}", "evolved": f"{r.evolved:.1f}",
              "gain": _text(r.delta, r.low, r.high, r.seeds), "seeds": str(r.seeds), "n": str(r.n),
              **{arm: _text(*(getattr(r, f"{arm}_{part}") for part in ("delta", "low", "high", "seeds")))
                 + (f" ({getattr(r, arm + '_seeds')})" if getattr(r, arm + "_seeds") else "") for arm in CONTROLS},
              "base, best untrained": f"{r.free_score:.1f} ({r.free.removesuffix('/overall')})",
              "evolved minus that": _text(r.over_free, r.over_free_low, r.over_free_high, r.seeds)}
             for r in table.itertuples()]
    return texts(lines, ["base", "metric", "before", "evolved", "gain", "seeds", "n", "random", "oracle",
                         "base, best untrained", "evolved minus that"])


def _text(delta: float, low: float, high: float, seeds: int) -> str:
    return f"{delta:+.1f} [{low:+.1f}, {high:+.1f}]" if seeds else "not measured"


def seed_gains(measured: Measured, base: str, arms: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """Gain of every single run over its base: rows (arm, seed, metric, delta), points. An arm without runs has none.

    Raises KeyError for a base that is not measured, Untraceable where a score does not follow from its items.
    """
    held, runs = measured.bases[base], measured.arms(base)
    rows = [(arm, run.seed, metric, 100 * float((run.values(metric) - held.values(metric)).mean()))
            for arm in arms for run in runs.get(arm, []) for metric in metrics]
    return pd.DataFrame(rows, columns=["arm", "seed", "metric", "delta"])
