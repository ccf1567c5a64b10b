"""Rules that hold a claim against measured items: typed, strict, each giving estimates with intervals.

A rule never says "supported": it gives one `Found` per comparison, and `claims` judges them all alike.
Rules over the base's signals are in `signals`, over logs and curves in `series`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from asgkit.report.measured import Measured, Measurement, Run, Untraceable, same_items
from asgkit.shapes.benchmark import TAGS
from asgkit.stats.intervals import Interval, difference_between_arms, paired_bootstrap

HEAVY = ("two", "counting", "position", "attribute")  # tags that ask for composition; the others are single objects
POINTS = "points"
ARRAYS = {"answers": ("framings", "sampled", "canonical", "majority", "entropy", "ste", "fraction"),
          "drawings": ("drawings", "drawings_best")}


@dataclass(frozen=True)
class Found:
    """One comparison: effect and interval (None where there is none), items and seeds behind it, what it rests on.

    `seeds` is 0 where no training run is involved. Without an effect, `note` says what is missing.
    """

    label: str
    unit: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    items: int = 0
    seeds: int = 0
    used: tuple[str, ...] = ()
    note: str = ""


class Strict(BaseModel):
    """Unknown keys of results/claims.yaml are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(Strict):
    """What every rule has: the bases it speaks of, and the side of which number the effect must lie on."""

    bases: list[str] = Field(min_length=1)
    side: Literal["above", "below"] = "above"
    bar: float = 0.0


def interval_of(label: str, unit: str, found: Interval, used: tuple[str, ...], scale: float = 100.0) -> Found:
    """A `stats.Interval` as `Found`; scale 100 turns shares into percentage points."""
    return Found(label, unit, scale * found.delta, scale * found.low, scale * found.high, found.n_items, found.n_seeds,
                 used)


def runs_of(measured: Measured, base: str, arm: str) -> list[Run]:
    """Runs of an arm, measured on the items of their base; empty when there are none. Raises Untraceable."""
    runs = measured.arms(base).get(arm, []) if base in measured.bases else []
    for run in runs:
        same_items(measured.bases[base], run)
    return runs


def lacks(measured: Measured, base: str, *arms: str) -> str:
    """What is not measured of a base and arms, in words; empty when all is there."""
    if base not in measured.bases:
        return f"no measurement of the base {base}"
    gone = [arm for arm in arms if arm != "base" and not runs_of(measured, base, arm)]
    return f"no run of {' and '.join(gone)}" if gone else ""


def metric_values(measurement: Measurement, metric: str) -> np.ndarray:
    """Per-item values (Q,) of a metric, as `Measurement.values`, and of `<decoding>/composition`.

    composition = mean over the prompts of HEAVY tags - mean over the other prompts, written as a mean over all P
    prompts: a prompt of a group of n counts P/n or -P/n times its score. Raises Untraceable for unknown metrics.
    """
    decoding, _, name = metric.partition("/")
    if name != "composition":
        return measurement.values(metric)
    values, heavy = measurement.values(f"{decoding}/overall"), np.isin(measurement.items["tag"], HEAVY)
    if heavy.all() or not heavy.any() or set(measurement.items["tag"]) - set(TAGS):
        raise Untraceable(f"{measurement.name}: composition needs prompts of the tags {', '.join(TAGS)}")
    return values * np.where(heavy, len(heavy) / heavy.sum(), -len(heavy) / (~heavy).sum())


# -- training runs against each other or their base -----------------------------------------------------------------
class Pair(Strict):
    """Arm `first` minus arm `second` (or the untrained `base`) on a metric; `against`: the second one's, if another."""

    first: str
    second: str = "base"
    metric: str
    against: str = ""


class Arms(Rule):
    """Differences between arms, in percentage points: paired over items, resampled over items and seeds."""

    computed_by: ClassVar[str] = "asgkit.report.claims.rules.difference_of_arms"
    kind: Literal["arms"]
    compare: list[Pair] = Field(min_length=1)

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One difference per base and pair. Raises Untraceable."""
        return (difference_of_arms(measured, base, pair, level) for pair in self.compare for base in self.bases)


def difference_of_arms(measured: Measured, base: str, pair: Pair, level: float = 0.95) -> Found:
    """`100 mean(first - second)` by `stats.difference_between_arms`, or by `paired_bootstrap` against the base.

    Raises Untraceable when a score does not follow from its items or runs were measured on other items.
    """
    label = f"{base}: {pair.first} - {pair.second}, {pair.metric}"
    label += f" against {pair.against}" if pair.against else ""
    if gap := lacks(measured, base, pair.first, pair.second):
        return Found(label, POINTS, note=gap)
    first = runs_of(measured, base, pair.first)
    values = np.stack([metric_values(run, pair.metric) for run in first])
    other = pair.against or pair.metric
    if pair.second == "base":
        found = paired_bootstrap(metric_values(measured.bases[base], other), values, level=level)
        return interval_of(label, POINTS, found, (base, *(run.name for run in first)))
    second = runs_of(measured, base, pair.second)
    found = difference_between_arms(values, np.stack([metric_values(run, other) for run in second]), level=level)
    return interval_of(label, POINTS, found, tuple(run.name for run in (*first, *second)))


class Identical(Rule):
    """Runs of an arm must give, item for item, what the base gives: no value may differ."""

    computed_by: ClassVar[str] = "asgkit.report.claims.rules.values_that_differ"
    kind: Literal["identical"]
    arm: str
    what: Literal["answers", "drawings"]
    side: Literal["below"] = "below"
    bar: Literal[0.5] = 0.5  # a count below one half is none

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One count per base; it is exact, so both ends of its interval are the count itself."""
        return (values_that_differ(measured, base, self.arm, self.what) for base in self.bases)


def values_that_differ(measured: Measured, base: str, arm: str, what: str) -> Found:
    """Count the values of an arm's runs that are not equal, bit for bit, to the base's. Raises Untraceable."""
    label, unit = f"{base}: {arm} against the base, {what}", "values that differ"
    if gap := lacks(measured, base, arm):
        return Found(label, unit, note=gap)
    before, runs = measured.bases[base].items, runs_of(measured, base, arm)
    differ = float(sum((run.items[name] != before[name]).sum() for run in runs for name in ARRAYS[what]))
    compared = len(runs) * sum(before[name].size for name in ARRAYS[what])
    return Found(label, unit, differ, differ, differ, compared, len(runs), (base, *(run.name for run in runs)))
