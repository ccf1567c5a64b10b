"""Gains of arms over their base and over each other; the items of a metric are resampled once, for all runs of a base.

The numbers are those of `stats.effects.over_base` and `over_arm`; only the work is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asgkit.report.measured import Measured, Measurement, Run, same_items, unchanged
from asgkit.stats.effects import Estimate, Method, checked, crossed, crossed_between
from asgkit.stats.intervals import Interval, ItemDraws, draw_items, interval_between, interval_of, p_value

BOTH, MATCHED, APART = "items and seeds", "items and seeds, seeds matched", "items and seeds, seeds apart"
ONE = "items only (one seed)"
EXACT = "unchanged, exact"
FEW = 3  # runs up to which their values are printed one by one: no interval of so few says more than they do


@dataclass(frozen=True)
class Gain:
    """A difference in percentage points with its 95% interval, and how it was found.

    `exact`: every raw result of every run is that of the other side. `per_seed`: the differences of the seeds
    `seeds`, in points; of seeds that were not matched, first seed minus the other arm's mean.
    """

    delta: float
    low: float
    high: float
    n: int
    seeds: tuple[int, ...]
    per_seed: tuple[float, ...]
    interval: str
    exact: bool

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    @property
    def text(self) -> str:
        """`+1.2 [+0.3, +2.1]`, or that nothing changed."""
        return EXACT if self.exact else f"{self.delta:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"

    @property
    def with_seeds(self) -> str:
        """The text and, of 2 or 3 runs, each run's own value: `+1.2 [+0.3, +2.1] (+1.0, +1.4)`."""
        return f"{self.text}{'' if self.exact else per_seed_text(self.per_seed)}"


def per_seed_text(values: Sequence[float], few: int = FEW) -> str:
    """` (+1.0, +1.4)` of at most `few` runs, in points; nothing for one run, which is the mean itself, or for more."""
    return f" ({', '.join(f'{value:+.1f}' for value in values)})" if 1 < len(values) <= few else ""


class Gains:
    """Differences of the runs in `measured`, by the method of all reports unless another is named.

    A bootstrap resamples each metric's items `resamples` times on first use.
    """

    def __init__(self, measured: Measured, resamples: int = 10_000, method: Method | None = None) -> None:
        self.measured, self.resamples, self.method = measured, resamples, checked(method)
        self._stacks: dict[tuple[str, str], tuple[dict[str, int], np.ndarray]] = {}
        self._drawn: dict[tuple[str, str], ItemDraws] = {}
        self._checked: set[str] = set()

    def over_base(self, base: Measurement, runs: Sequence[Run], metric: str) -> Gain:
        """Mean of an arm's runs minus the base: `delta = mean_sq (evolved[s, q] - base[q])`, items paired.

        Raises Untraceable where a score does not follow from its items, or base and run have different ones.
        """
        found = self._found(base, metric, runs)
        exact = all(unchanged(base, run, metric) for run in runs)
        return _gain(found.interval(0.95), self._means(base, metric, runs), [run.seed for run in runs], exact, BOTH)

    def over_arm(self, base: Measurement, runs: Sequence[Run], others: Sequence[Run], metric: str) -> Gain:
        """Mean of one arm minus mean of another on the same base, items paired.

        Seeds are matched where every seed of one arm is there in the other; else the runs are resampled apart.
        Raises as `over_base`.
        """
        pairs = matched(runs, others)
        found = self._found(base, metric, runs, others)
        if pairs:
            first, second = zip(*pairs, strict=True)
            gaps = self._means(base, metric, first) - self._means(base, metric, second)
            exact = all(unchanged(b, a, metric) for a, b in pairs)
            return _gain(found.interval(0.95), gaps, [run.seed for run in first], exact, MATCHED)
        gaps = self._means(base, metric, runs) - self._means(base, metric, others).mean()
        return _gain(found.interval(0.95), gaps, [run.seed for run in runs], False, APART)

    def p_value(self, base: Measurement, runs: Sequence[Run], metric: str, others: Sequence[Run] = ()) -> float:
        """Two-sided p-value of no difference to the base or, with `others`, to another arm: as `stats.p_value`.

        By a bootstrap at least 2 / resamples, then an upper bound. It agrees with the interval of `over_base` or
        `over_arm`. Raises as `over_base`.
        """
        return self._found(base, metric, runs, others).p_value()

    def _found(self, base: Measurement, metric: str, runs: Sequence[Run], others: Sequence[Run] = ()
               ) -> Estimate | _Resampled:
        """One side of matched runs as differences, or two sides, by the method; both answer to level and p-value."""
        pairs = matched(runs, others)
        sides = ([a for a, _ in pairs], [b for _, b in pairs]) if pairs else (runs, others)
        if self.method == "bootstrap":
            first, second = (self._draws(base, metric, side) if side else None for side in sides)
            return _Resampled(*((first - second, None) if pairs else (first, second)), 2 / self.resamples)
        first, second = (self._values(base, metric, side) if side else None for side in sides)
        return crossed_between(first, second) if others and not pairs else crossed(first - second if pairs else first)

    def _means(self, base: Measurement, metric: str, runs: Sequence[Run]) -> np.ndarray:
        return self._values(base, metric, runs).mean(1)

    def _values(self, base: Measurement, metric: str, runs: Sequence[Run]) -> np.ndarray:
        """Gains over the base (S, Q) of some runs."""
        places, gains = self._stack(base, metric)
        return gains[[places[run.name] for run in runs]]

    def _draws(self, base: Measurement, metric: str, runs: Sequence[Run]) -> ItemDraws:
        places, gains = self._stack(base, metric)
        key = (base.name, metric)
        if key not in self._drawn:
            self._drawn[key] = draw_items(gains, resamples=self.resamples)
        return self._drawn[key].pick([places[run.name] for run in runs])

    def _stack(self, base: Measurement, metric: str) -> tuple[dict[str, int], np.ndarray]:
        """Gains over the base (S, Q) of all its runs, and the row of each."""
        key = (base.name, metric)
        if key not in self._stacks:
            every = [run for run in self.measured.runs if run.base == base.name]
            for run in every if base.name not in self._checked else ():
                same_items(base, run)
            self._checked.add(base.name)
            gains = np.stack([run.values(metric) for run in every]) - base.values(metric)
            self._stacks[key] = ({run.name: i for i, run in enumerate(every)}, gains)
        return self._stacks[key]


@dataclass(frozen=True)
class _Resampled:
    """A bootstrap's answer to what an `Estimate` answers too; `second` is None for one side."""

    first: ItemDraws
    second: ItemDraws | None
    smallest: float

    def interval(self, level: float = 0.95) -> Interval:
        """The interval of `paired_bootstrap` or `difference_between_arms`."""
        if self.second is None:
            return interval_of(self.first, level=level)
        return interval_between(self.first, self.second, level=level)

    def p_value(self) -> float:
        """The least alpha, from `smallest` on, whose interval leaves 0 out."""
        return p_value(self.interval, smallest=self.smallest)


def matched(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs of equal seed, if all seeds of one arm are among the other's; else none."""
    first, second = ({run.seed: run for run in arm} for arm in (runs, others))
    common = sorted(first.keys() & second.keys())
    return [(first[s], second[s]) for s in common] if len(common) == min(len(first), len(second)) else []


def _gain(found: Interval, means: np.ndarray, seeds: Sequence[int], exact: bool, note: str) -> Gain:
    note = ONE if found.n_seeds == 1 else note
    return Gain(100 * found.delta, 100 * found.low, 100 * found.high, found.n_items, tuple(seeds),
                tuple(100 * float(mean) for mean in means), note, exact)
