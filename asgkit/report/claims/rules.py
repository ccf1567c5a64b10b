"""Rules that hold a claim against measured items: typed, strict, each giving estimates with intervals.

A rule never says "supported": it gives one `Found` per comparison, and `claims` judges them all alike.
Rules over the base's signals are in `signals`, over logs and curves in `series`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from asgkit.report.measured import Measured, Measurement, Run, Untraceable, same_items
from asgkit.shapes.benchmark import TAGS
from asgkit.stats.effects import over_arm, over_base
from asgkit.stats.intervals import Interval

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
    """What every rule has: the bases it speaks of, and the side of which number the effect must lie on.

    side "within": the claim is that there is no difference beyond `bar`, either way. margin: how small an effect of
    an "above" or "below" claim counts as none, in the effect's unit; without it no comparison is judged "no effect".
    """

    bases: list[str] = Field(min_length=1)
    side: Literal["above", "below", "within"] = "above"
    bar: float = 0.0
    margin: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _fit(self) -> Self:
        """A margin lies around no effect, and a bar of "within" is a width."""
        if self.margin is not None and (self.side == "within" or self.bar != 0):
            raise ValueError(f"a margin lies around 0: it needs side above or below and bar 0, not {self.side} "
                             f"{self.bar:g}; for a claim of no difference write side: within, bar: {self.margin:g}")
        if self.side == "within" and not self.bar > 0:
            raise ValueError("side within needs a bar above 0: the largest difference that counts as none, bar: 1")
        return self

    @property
    def equal_within(self) -> float | None:
        """The difference up to which two one-sided tests call a comparison equal; None where none is asked for."""
        return self.bar if self.side == "within" else self.margin


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
    """`100 mean(first - second)` by `stats.effects.over_arm`, or by `over_base` against the base.

    Raises Untraceable when a score does not follow from its items or runs were measured on other items.
    """
    label = f"{base}: {pair.first} - {pair.second}, {pair.metric}"
    label += f" against {pair.against}" if pair.against else ""
    if gap := lacks(measured, base, pair.first, pair.second):
        return Found(label, POINTS, note=gap)
    first = runs_of(measured, base, pair.first)
    values = np.stack([metric_values(run, pair.metric) for run in first])
    other = pair.against or pair.metric
    most = 2.0 if pair.metric.endswith("/composition") else 1.0  # that one is a difference of differences
    if pair.second == "base":
        found = over_base(metric_values(measured.bases[base], other), values, level=level, most=most)
        return interval_of(label, POINTS, found, (base, *(run.name for run in first)))
    second = runs_of(measured, base, pair.second)
    others = np.stack([metric_values(run, other) for run in second])
    found = over_arm(values, others, level=level, most=most)
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
