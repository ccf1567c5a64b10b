"""Calibrated intervals of a paired difference: items crossed with training seeds, or items of each seed's own.

A gain of seed s on item q is `mu + a_s + b_q + e_sq`. The mean's variance is a part of the seeds, estimated from few
runs, plus a part of the items, estimated from hundreds. Student's quantile with Satterthwaite's degrees of freedom is
too short there, since a seed part that came out small shortens the interval twice: by itself, and by its weight in the
degrees of freedom. So the weight has a smaller exponent (`Shares.freedom`), chosen so that a 95% interval covers 94 to
96% from 3 seeds on, whatever the parts are. `asgkit.stats.coverage` shows it. Two seeds cannot be calibrated: their
interval is on the wide side (95 to 99.8%). Left over: unmatched arms of very unequal size, the smaller of which spreads
more, cover 93%, and 90% with two runs against five: give both arms equally many seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from asgkit.stats.intervals import Interval, difference_between_arms, paired_bootstrap

Method = Literal["bootstrap", "random effects"]
METHOD: Method = "bootstrap"  # of every table, figure and claim: change it here, together with new results
LEAST = 1e-12  # a p-value below it is given as this
WORDS: dict[Method, str] = {"bootstrap": "bootstrap", "random effects": "random-effects"}  # `95% ... intervals`


@dataclass(frozen=True)
class Shares:
    """What an error is made of: the seeds' share with its degrees of freedom, those of the items, two runs or more."""

    seeds: float
    seeds_freedom: float
    items_freedom: float
    two_runs: bool = False

    def freedom(self, alpha: float = 0.05) -> float:
        """Degrees of freedom of the whole, `1 / (share^k / seeds + (1 - share)^2 / items)`.

        Satterthwaite has k = 2. Here k = 2 - c / seeds, 1.1 for three runs and nearing 2 as they grow, but 0.2 where an
        arm has two runs, the side of too wide. c = 1.8, and more for a stricter alpha, whose quantiles lie where few
        degrees of freedom matter most: 1.8 + 2.2 log10(0.05 / alpha).
        """
        c = 1.8 + 2.2 * max(0.0, math.log10(0.05 / alpha))
        k = 0.2 if self.two_runs else max(0.2, 2.0 - c / self.seeds_freedom)
        seeds = self.seeds**k / self.seeds_freedom if self.seeds > 0 else 0.0
        return 1.0 / (seeds + (1.0 - self.seeds) ** 2 / self.items_freedom)


@dataclass(frozen=True)
class Estimate:
    """A difference with its standard error and what that is made of; it cannot be beyond `most` either way."""

    delta: float
    error: float
    shares: Shares
    n_items: int
    n_seeds: int
    most: float = 1.0

    def interval(self, level: float = 0.95) -> Interval:
        """`delta -+ t error`, cut to what is possible; six decimals, as those of the bootstrap."""
        quantile = float(stdtrit(self.shares.freedom(1 - level), 0.5 + level / 2))  # Student's, twenty times faster
        reach = quantile * self.error
        ends = (min(self.most, max(-self.most, self.delta + side * reach)) for side in (-1, 1))
        low, high = (round(end, 6) + 0.0 for end in ends)
        return Interval(self.delta, low, high, self.n_items, self.n_seeds, level)

    def p_value(self) -> float:
        """Two-sided p-value of no difference: the least alpha whose 1 - alpha interval leaves 0 out."""
        return min(1.0, 2.0 * self._beyond(abs(self.delta)))

    def equivalence(self, margin: float) -> float:
        """p-value of two one-sided tests (TOST): below alpha, the difference is less than `margin` either way.

        It is below alpha exactly where the 1 - 2 alpha interval lies inside (-margin, margin). Unit: that of the
        values, so 0.01 for one point of shares. Raises ValueError for a margin that is not above 0.
        """
        if not margin > 0:
            raise ValueError(f"a margin must be above 0, got {margin}")
        return self._beyond(margin - abs(self.delta))

    def _beyond(self, distance: float) -> float:
        """P(T > distance / error), T's degrees of freedom those of that alpha; without any error 0, 1/2 or 1."""
        if self.error == 0 or distance == 0:
            return 0.5 - 0.5 * float(np.sign(distance))
        if distance < 0:
            return 1.0 - self._beyond(-distance)
        tail = lambda p: float(stdtr(self.shares.freedom(2 * p), -distance / self.error))
        if tail(LEAST) <= LEAST:
            return LEAST
        return float(brentq(lambda p: tail(p) - p, LEAST, 0.5))


def crossed(gains: np.ndarray, *, most: float = 1.0) -> Estimate:
    """Mean gain of S runs over one base, or over matched runs of another arm, all on the same Q items.

    Shapes: gains (S, Q). With one run the error is that of the items alone. Raises ValueError for other shapes, NaN
    or fewer than two items.
    """
    gains = _runs(gains)
    return _estimate(float(gains.mean(1).mean()), gains.mean(0), [gains], len(gains), most)


def crossed_between(first: np.ndarray, second: np.ndarray, *, most: float = 1.0) -> Estimate:
    """Mean of arm `first` minus mean of arm `second`: the same Q items, runs not matched.

    Shapes: (S1, Q), (S2, Q), items in the same order. An arm of one run adds no error of its seeds. Raises ValueError
    as `crossed`.
    """
    a, b = _runs(first), _runs(second)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the arms were measured on {a.shape[1]} and {b.shape[1]} items: evaluate both on the same")
    delta = float(a.mean(1).mean() - b.mean(1).mean())
    return _estimate(delta, a.mean(0) - b.mean(0), [a, b], min(len(a), len(b)), most)


def own_items(gains: Sequence[np.ndarray], *, most: float = 1.0) -> Estimate:
    """Mean gain of S runs, each measured on items of its own: Student's interval over the runs' means.

    Each run's mean holds the error of its seed and of its items, so nothing has to be taken apart and the interval is
    exact for any mixture of the two. Two runs may have equal means by chance: their 95% interval is at least that of
    their items alone. gains: S arrays (Q_s,). With one run the error is that of its items. Raises ValueError for other
    shapes, NaN or fewer than two items in a run.
    """
    runs = [_runs(values)[0] for values in gains]
    if not runs:
        raise ValueError("own_items needs at least one run")
    if len(runs) == 1:
        return crossed(runs[0], most=most)
    means = np.array([values.mean() for values in runs])
    count, delta = sum(map(len, runs)), float(means.mean())
    found = _combined(delta, 0.0, 1, [_level_error(means)], count, len(runs), most)
    if len(runs) > 2:
        return found
    items = sum(float(values.var(ddof=1)) / len(values) for values in runs) / 4
    alone = _combined(delta, items, count - 2, [], count, len(runs), most)
    return max(found, alone, key=lambda one: one.interval().high)


def own_items_between(first: Sequence[np.ndarray], second: Sequence[np.ndarray], *, most: float = 1.0) -> Estimate:
    """Difference of two arms of at least two runs, every run on items of its own: Welch's interval of the runs' means.

    Where runs of equal seed share their items, give their differences to `own_items` instead: they are paired.
    """
    arms = [[_runs(values)[0] for values in runs] for runs in (first, second)]
    if min(map(len, arms)) < 2:
        raise ValueError("own_items_between needs two runs in each arm: train another seed")
    means = [np.array([values.mean() for values in runs]) for runs in arms]
    count = sum(len(values) for runs in arms for values in runs)
    return _combined(float(means[0].mean() - means[1].mean()), 0.0, 1, [_level_error(m) for m in means], count,
                     min(map(len, arms)), most)


def inside(found: Interval, margin: float) -> bool:
    """Whether an interval lies strictly between -margin and margin: at 1 - 2 alpha, two one-sided tests at alpha."""
    return -margin < found.low and found.high < margin


def over_base(base: np.ndarray, evolved: np.ndarray, *, resamples: int = 10_000, level: float = 0.95,
              most: float = 1.0, method: Method | None = None) -> Interval:
    """Mean gain of S runs over one base by the method of all reports. Shapes: (Q,), (S, Q) or (Q,)."""
    if checked(method) == "bootstrap":
        return paired_bootstrap(base, evolved, resamples=resamples, level=level)
    return crossed(np.atleast_2d(evolved) - np.asarray(base), most=most).interval(level)


def over_arm(first: np.ndarray, second: np.ndarray, *, resamples: int = 10_000, level: float = 0.95,
             most: float = 1.0, method: Method | None = None) -> Interval:
    """Difference of two arms whose runs are not matched, by the method of all reports. Shapes: (S1, Q), (S2, Q)."""
    if checked(method) == "bootstrap":
        return difference_between_arms(first, second, resamples=resamples, level=level)
    return crossed_between(first, second, most=most).interval(level)


def checked(method: str | None) -> Method:
    """The method itself, METHOD for None. Raises ValueError for any other word."""
    found = method or METHOD
    if found not in get_args(Method):
        raise ValueError(f"no method {found!r} of intervals: choose one of {', '.join(get_args(Method))}")
    return found


# -- parts of the error ---------------------------------------------------------------------------------------------
def _runs(values: np.ndarray) -> np.ndarray:
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or not np.isfinite(values).all():
        raise ValueError(f"gains must be finite with shape (S, Q), S >= 1, Q >= 2, got shape {values.shape}")
    return values


def _level_error(means: np.ndarray) -> tuple[float, int]:
    """Variance of the mean of some runs as their means show it, and its degrees of freedom."""
    return float(means.var(ddof=1)) / len(means), len(means) - 1


def _residual(values: np.ndarray) -> float:
    """What neither seed nor item explains, as variance of the overall mean; 0 for one run. Shape (S, Q)."""
    runs, items = values.shape
    if runs == 1:
        return 0.0
    left = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    return float((left**2).sum()) / ((runs - 1) * (items - 1)) / (runs * items)


def _estimate(delta: float, items: np.ndarray, arms: Sequence[np.ndarray], seeds: int, most: float) -> Estimate:
    """From item means (Q,) and the arms' runs: the seeds' parts as they are, the items' part without the residual.

    The residual is in the spread of the runs' means already; a part below 0 counts as none.
    """
    share = float(items.var(ddof=1)) / len(items) - sum(map(_residual, arms))
    levels = [_level_error(arm.mean(1)) for arm in arms if len(arm) > 1]
    return _combined(delta, max(0.0, share), len(items) - 1, levels, len(items), seeds, most)


def _combined(delta: float, items: float, item_freedom: int, levels: Sequence[tuple[float, int]], n_items: int,
              seeds: int, most: float) -> Estimate:
    total = items + sum(variance for variance, _ in levels)
    shares = [(variance / total, freedom) for variance, freedom in levels] if total > 0 else []
    return Estimate(delta, math.sqrt(total), _shares(shares, item_freedom), n_items, seeds, most)


def _shares(arms: Sequence[tuple[float, int]], items: int) -> Shares:
    """From each arm's share with its degrees of freedom f_i: of all seeds `share^m / sum(share_i^m / f_i)`.

    Welch has m = 2; 2.5 for arms of equally many runs, where Welch is a little too wide.
    """
    share = sum(part for part, _ in arms)
    if share == 0:
        return Shares(0.0, math.inf, items)
    counts = [freedom for _, freedom in arms]
    m = 2.5 if len(set(counts)) == 1 else 2.0
    own = min(share**m / sum(part**m / freedom for part, freedom in arms), sum(counts))
    return Shares(min(share, 1.0), own, items, min(counts) == 1)
