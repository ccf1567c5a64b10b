"""Gains of arms over their base and over each other; the items of a metric are resampled once, for all runs of a base.

The numbers are those of `stats.paired_bootstrap` and `stats.difference_between_arms`; only the work is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from asgkit.report.measured import Measured, Measurement, Run, same_items, unchanged
from asgkit.stats.intervals import Interval, ItemDraws, draw_items, interval_between, interval_of, p_value

BOTH, MATCHED, APART = "items and seeds", "items and seeds, seeds matched", "items and seeds, seeds apart"
ONE = "items only (one seed)"
EXACT = "unchanged, exact"


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


class Gains:
    """Differences of the runs in `measured`, with each metric's items resampled `resamples` times on first use."""

    def __init__(self, measured: Measured, resamples: int = 10_000) -> None:
        self.measured, self.resamples = measured, resamples
        self._drawn: dict[tuple[str, str], tuple[dict[str, int], ItemDraws]] = {}
        self._checked: set[str] = set()

    def over_base(self, base: Measurement, runs: Sequence[Run], metric: str) -> Gain:
        """Mean of an arm's runs minus the base: `delta = mean_sq (evolved[s, q] - base[q])`, items paired.

        Raises Untraceable where a score does not follow from its items, or base and run have different ones.
        """
        drawn = self._draws(base, metric, runs)
        exact = all(unchanged(base, run, metric) for run in runs)
        return _gain(interval_of(drawn), drawn.means, [run.seed for run in runs], exact, BOTH)

    def over_arm(self, base: Measurement, runs: Sequence[Run], others: Sequence[Run], metric: str) -> Gain:
        """Mean of one arm minus mean of another on the same base, items paired.

        Seeds are matched where every seed of one arm is there in the other; else the runs are resampled apart.
        Raises as `over_base`.
        """
        pairs = matched(runs, others)
        if pairs:
            first, second = zip(*pairs, strict=True)
            drawn = self._draws(base, metric, first) - self._draws(base, metric, second)
            exact = all(unchanged(b, a, metric) for a, b in pairs)
            return _gain(interval_of(drawn), drawn.means, [run.seed for run in first], exact, MATCHED)
        first, second = self._draws(base, metric, runs), self._draws(base, metric, others)
        gaps = first.means - second.means.mean()
        return _gain(interval_between(first, second), gaps, [run.seed for run in runs], False, APART)

    def p_value(self, base: Measurement, runs: Sequence[Run], metric: str, others: Sequence[Run] = ()) -> float:
        """Two-sided p-value of no difference to the base or, with `others`, to another arm: as `stats.p_value`.

        At least 2 / resamples, then an upper bound. It agrees with the interval of `over_base` or `over_arm`. Raises
        as `over_base`.
        """
        pairs = matched(runs, others)
        drawn = self._draws(base, metric, [a for a, _ in pairs] if pairs else runs)
        second = self._draws(base, metric, [b for _, b in pairs] if pairs else others) if others else None
        if second is None or pairs:
            one = drawn if second is None else drawn - second
            return p_value(lambda level: interval_of(one, level=level), smallest=2 / self.resamples)
        return p_value(lambda level: interval_between(drawn, second, level=level), smallest=2 / self.resamples)

    def _draws(self, base: Measurement, metric: str, runs: Sequence[Run]) -> ItemDraws:
        key = (base.name, metric)
        if key not in self._drawn:
            every = [run for run in self.measured.runs if run.base == base.name]
            for run in every if base.name not in self._checked else ():
                same_items(base, run)
            self._checked.add(base.name)
            gains = np.stack([run.values(metric) for run in every]) - base.values(metric)
            self._drawn[key] = ({run.name: i for i, run in enumerate(every)},
                                draw_items(gains, resamples=self.resamples))
        places, drawn = self._drawn[key]
        return drawn.pick([places[run.name] for run in runs])


def matched(runs: Sequence[Run], others: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Pairs of runs of equal seed, if all seeds of one arm are among the other's; else none."""
    first, second = ({run.seed: run for run in arm} for arm in (runs, others))
    common = sorted(first.keys() & second.keys())
    return [(first[s], second[s]) for s in common] if len(common) == min(len(first), len(second)) else []


def _gain(found: Interval, means: np.ndarray, seeds: Sequence[int], exact: bool, note: str) -> Gain:
    note = ONE if found.n_seeds == 1 else note
    return Gain(100 * found.delta, 100 * found.low, 100 * found.high, found.n_items, tuple(seeds),
                tuple(100 * float(mean) for mean in means), note, exact)
