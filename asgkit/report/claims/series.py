"""Rules over logs and curves: a run is one observation, so intervals come from the spread between runs (t)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.stats import rankdata, t

from asgkit.report.claims.rules import Found, Rule, lacks, runs_of
from asgkit.report.measured import Measured, Measurement, Run, Untraceable
from asgkit.runs.packed_log import read_packed_log
from asgkit.shapes.text import FAMILIES

LAGS = 3  # cycles each way
_FAMILY = {"is there a": "existence", "what color is": "color", "what shape is": "shape", "how many": "count",
           "in which": "spatial", "where is the": "spatial", "are there more": "comparison",
           "what digit is": "reading"}  # how a question of the shapes world begins
KIND_ERROR = "question/base_error"  # not a field of the log: made from its questions and the base's items
Series = dict[str, dict[int, float]]  # field -> step -> mean over the records of the step


def family_of(question: str) -> str | None:
    """The family of a question of the shapes world by its first words; None for any other question."""
    return next((family for start, family in _FAMILY.items() if question.startswith(f"{start} ")), None)


@lru_cache(maxsize=256)
def _read(path: Path, changed: int) -> tuple[Series, int]:
    """Step means of every number, truth value and list of numbers in a log, and shares of question families.

    `changed` (mtime) makes an edited log be read again.
    """
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    records = read_packed_log(path)
    for record in records:
        for field, value in (*record.items(), *_family_shares(record)):
            if (number := _mean(value)) is not None:
                held = sums[field, record["step"]]
                held[0], held[1] = held[0] + number, held[1] + 1
    series: Series = defaultdict(dict)
    for (field, step), (total, number) in sorted(sums.items(), key=lambda item: item[0][1]):
        series[field][step] = total / number
    return dict(series), len(records)


def _mean(value: Any) -> float | None:
    """A number or truth value, the mean of a list's numbers, or None; types are compared first, since logs are long."""
    kind = type(value)
    if kind is float or kind is int or kind is bool:
        return value
    if kind is not list or (value and type(value[0]) in (str, list)):
        return None
    numbers = [v for v in value if v is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _family_shares(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    family = family_of(record.get("question", ""))
    return ((f"family/{name}", float(name == family)) for name in FAMILIES if family)


def log_series(run: Run, field: str, base: Measurement) -> dict[int, float]:
    """A field's mean per step, steps in order; of KIND_ERROR: the base's error (percent) on the family asked about.

    The latter is a fixed yardstick: it does not move when the Solver grows surer. Raises Untraceable when there is
    no such field.
    """
    series, _ = _log(run)
    if field == KIND_ERROR:
        single, families = base.items["framings"].mean(0), base.items["family"]
        parts = [(100.0 * (1.0 - single[families == name].mean()), series.get(f"family/{name}", {}))
                 for name in FAMILIES]
        return {step: sum(error * share[step] for error, share in parts) for step in parts[0][1]}
    if field not in series:
        raise Untraceable(f"{run.name}: its log has no numbers in {field}; see docs/log_glossary.md")
    return series[field]


def _log(run: Run) -> tuple[Series, int]:
    path = run.log_path
    if path is None:
        raise Untraceable(f"{run.name} has no packed log: copy it from where the run was made, or run it again")
    return _read(path, path.stat().st_mtime_ns)


# -- statistics of one run, and of several --------------------------------------------------------------------------
def thirds(series: dict[int, float]) -> tuple[float, float, float]:
    """Means of the first, middle and last third of the steps; a remainder counts as middle.

    Raises ValueError for fewer than 3 steps.
    """
    values = [series[step] for step in sorted(series)]
    size = len(values) // 3
    if size == 0:
        raise ValueError(f"thirds need at least 3 steps, got {len(values)}")
    return tuple(float(np.mean(part)) for part in (values[:size], values[size:-size], values[-size:]))


def lead(first: Sequence[float], second: Sequence[float], lags: int = LAGS) -> float:
    """How much further `first` runs ahead of `second` than behind it, on series (C,) with a parabola taken out.

    `mean_{d=0..L-1} corr(first_c, second_{c+d}) - mean_{d=1..L} corr(second_c, first_{c+d})`: within a cycle the
    first comes first, so its lag 0 lies as far apart in time as lag 1 of the reverse. Raises ValueError for series
    of other lengths or fewer than 3 L cycles. Source: paper, figure S3; spec: generation, lagged coupling.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or len(a) < 3 * lags:
        raise ValueError(f"lead needs two series of one length, at least {3 * lags} cycles, got {len(a)} and {len(b)}")
    a, b = _detrended(a), _detrended(b)
    ahead = [_correlation(a[: len(a) - d], b[d:]) for d in range(lags)]
    behind = [_correlation(b[: len(b) - d], a[d:]) for d in range(1, lags + 1)]
    return float(np.mean(ahead) - np.mean(behind))


def _detrended(values: np.ndarray) -> np.ndarray:
    time = np.linspace(-1.0, 1.0, len(values))
    return values - np.polyval(np.polyfit(time, values, 2), time)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where a side does not vary (but for rounding): it then tracks nothing."""
    return float(np.corrcoef(a, b)[0, 1]) if min(np.ptp(a), np.ptp(b)) > 1e-9 else 0.0


def over_runs(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean and Student's interval of one number per run, `mean -+ t_{S-1} s / sqrt(S)`; no interval for one run."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) < 2:
        return float(x.mean()), None, None
    reach = t.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return float(x.mean()), float(x.mean() - reach), float(x.mean() + reach)


def between_runs(first: Sequence[float], second: Sequence[float], level: float = 0.95
                 ) -> tuple[float, float | None, float | None]:
    """Difference of means with Welch's interval; no interval where an arm has one run."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    delta = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return delta, None, None
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if sum(parts) == 0:
        return delta, delta, delta
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    reach = float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(sum(parts))
    return delta, delta - reach, delta + reach


def _found(label: str, unit: str, level: float, statistic: Callable[[Run], float], first: list[Run],
           second: list[Run] | None = None) -> Found:
    numbers = [[statistic(run) for run in runs] for runs in (first, second or [])]
    spread = between_runs(*numbers, level) if second else over_runs(numbers[0], level)
    used = (*first, *(second or []))
    return Found(label, unit, *spread, sum(_log(run)[1] for run in used), min(map(len, filter(None, (first, second)))),
                 tuple(run.name for run in used))


# -- rules ----------------------------------------------------------------------------------------------------------
class Trend(Rule):
    """Fields of the log by thirds of the steps: rise (last - first), late (last) or bend (rise of the second half
    minus rise of the first, last - 2 middle + first: below 0 it levels off).

    With `against`, the same of that arm is taken off.
    """

    computed_by: ClassVar[str] = "asgkit.report.claims.series.thirds"
    kind: Literal["trend"]
    arm: str
    against: tuple[str, ...] = ("",)  # "" is the rise itself; an arm: the difference of rises
    fields: list[str] = Field(min_length=1)
    of: Literal["rise", "late", "bend"] = "rise"
    unit: str

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One mean over runs per field, base and opponent. Raises Untraceable."""
        for field in self.fields:
            for base in self.bases:
                yield from (self._one(measured, base, field, other, level) for other in self.against)

    def _one(self, measured: Measured, base: str, field: str, other: str, level: float) -> Found:
        label = f"{base}: {self.arm}{f' - {other}' if other else ''}, {field}, {_OF[self.of][0]}"
        if gap := lacks(measured, base, self.arm, *filter(None, [other])):
            return Found(label, self.unit, note=gap)
        held = measured.bases[base]

        statistic = lambda run: _OF[self.of][1](*thirds(log_series(run, field, held)))
        return _found(label, self.unit, level, statistic, runs_of(measured, base, self.arm),
                      runs_of(measured, base, other) if other else None)


_OF: dict[str, tuple[str, Callable[[float, float, float], float]]] = {
    "rise": ("last third - first third", lambda early, middle, late: late - early),
    "late": ("last third", lambda early, middle, late: late),
    "bend": ("last - 2 middle + first third", lambda early, middle, late: late - 2 * middle + early),
}


class Lead(Rule):
    """Does a field of U steps lead a field of G steps? Cycle means with a parabola taken out, by `lead`."""

    computed_by: ClassVar[str] = "asgkit.report.claims.series.lead"
    kind: Literal["lead"]
    arm: str
    first: str
    second: list[str]

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One mean over runs per base and second field; runs that are too short are named. Raises Untraceable."""
        return (self._one(measured, base, second, level) for base in self.bases for second in self.second)

    def _one(self, measured: Measured, base: str, second: str, level: float) -> Found:
        label = f"{base}: {self.first} ahead of {second}, {self.arm}"
        if gap := lacks(measured, base, self.arm):
            return Found(label, "correlation", note=gap)
        held = measured.bases[base]
        statistic = lambda run: lead(*(cycles(run, log_series(run, field, held)) for field in (self.first, second)))
        try:
            return _found(label, "correlation", level, statistic, runs_of(measured, base, self.arm))
        except TooShort as short:
            return Found(label, "correlation", note=str(short))


class TooShort(ValueError):
    """A run that has no series of cycles; a lead is then not measured, which is no fault of the run."""


def cycles(run: Run, series: dict[int, float]) -> list[float]:
    """Mean per cycle of the run's schedule, whole cycles only (steps count from 1).

    Raises TooShort for fewer than 3 LAGS cycles, or one in which nothing was logged.
    """
    schedule = run.config["schedule"]
    length = schedule["understanding"] + schedule["generation"]
    held: dict[int, list[float]] = defaultdict(list)
    for step, value in series.items():
        held[(step - 1) // length].append(value)
    whole = schedule["steps"] // length
    if whole < 3 * LAGS:
        raise TooShort(f"{run.name} has {whole} cycles, fewer than {3 * LAGS}")
    if gone := [cycle for cycle in range(whole) if cycle not in held]:
        raise TooShort(f"{run.name}: nothing is logged in cycle {gone[0] + 1} of {whole}")
    return [float(np.mean(held[cycle])) for cycle in range(whole)]


class Curve(Rule):
    """A metric of the learning curve: its change from one step to the last, in points, over runs."""

    computed_by: ClassVar[str] = "asgkit.report.claims.series.over_runs"
    kind: Literal["curve"]
    arm: str
    metric: str
    since: int

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One mean over runs per base; curves without the step are named."""
        for base in self.bases:
            label = f"{base}: {self.arm}, {self.metric}, last step - step {self.since}"
            gap, runs = lacks(measured, base, self.arm), runs_of(measured, base, self.arm)
            if without := [run.name for run in runs if self.since not in curve_points(run, self.metric)]:
                gap = f"no curve with step {self.since} of {', '.join(without)}"
            yield Found(label, "points", note=gap) if gap else _found(label, "points", level, self._change, runs)

    def _change(self, run: Run) -> float:
        points = curve_points(run, self.metric)
        return points[max(points)] - points[self.since]


def curve_points(run: Run, metric: str) -> dict[int, float]:
    """Step -> score (percent) of a metric in curve.csv; empty without one."""
    frame = run.curve()
    rows = frame[(frame["side"] + "/" + frame["metric"]) == metric]
    return {int(step): float(value) for step, value in zip(rows["step"], rows["value"], strict=True)}


class Tracking(Rule):
    """Does an inner score go with a benchmark score across a run's checkpoints? Rank correlation, over runs.

    Levels share the passing of time; `changes` correlates what happens from one checkpoint to the next.
    """

    computed_by: ClassVar[str] = "asgkit.report.claims.series.tracking"
    kind: Literal["tracking"]
    arm: str
    field: str
    metric: str
    changes: tuple[bool, ...] = (False, True)

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One mean over runs per base, of levels and of changes. Raises Untraceable."""
        for base in self.bases:
            for changes in self.changes:
                label = f"{base}: {self.field} with {self.metric}, {'changes' if changes else 'levels'}, {self.arm}"
                gap = lacks(measured, base, self.arm)
                if not gap and any(len(curve_points(r, self.metric)) < 4 for r in runs_of(measured, base, self.arm)):
                    gap = "runs without a curve"
                if gap:
                    yield Found(label, "rank correlation", note=gap)
                    continue
                held = measured.bases[base]
                statistic = lambda run, held=held, changes=changes: tracking(
                    log_series(run, self.field, held), curve_points(run, self.metric), changes)
                yield _found(label, "rank correlation", level, statistic, runs_of(measured, base, self.arm))


def tracking(inner: dict[int, float], points: dict[int, float], changes: bool = False) -> float:
    """Spearman's correlation of the inner mean since the last checkpoint with the score at each checkpoint.

    Step 0 has no inner score. `changes`: of differences between neighbouring checkpoints.
    """
    steps = sorted(points)
    means = [float(np.mean([v for s, v in inner.items() if a < s <= b])) for a, b in pairwise(steps)]
    scores = [points[step] for step in steps[1:]]
    if changes:
        means, scores = list(np.diff(means)), list(np.diff(scores))
    return _correlation(rankdata(means), rankdata(scores))
