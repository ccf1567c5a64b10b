"""Statistics of measured results: numpy in, numbers out, every random draw from a seeded `numpy.random.Generator`.

Items are benchmark questions or prompts, the same for base and evolved and for every seed; seeds are training
runs. Values are per-item scores in [0, 1] (or any unit; results have the same unit).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom, norm, rankdata, t, trim_mean
from sklearn import metrics


@dataclass(frozen=True)
class Interval:
    """A difference with its interval: `n_items` items, `n_seeds` runs (both arms' smaller count for two arms).

    With n_seeds = 1 only items were resampled: the interval says nothing of how another seed would come out.
    """

    delta: float
    low: float
    high: float
    n_items: int
    n_seeds: int
    level: float = 0.95

    @property
    def note(self) -> str:
        """What the interval covers, in words."""
        return "items and seeds" if self.n_seeds > 1 else "items only (one seed)"


def paired_bootstrap(base: np.ndarray, evolved: np.ndarray, *, resamples: int = 10_000, seed: int = 0,
                     level: float = 0.95) -> Interval:
    """Mean gain of S runs over one base on the same Q items, with a percentile bootstrap over items and seeds.

    `delta = mean_sq (evolved[s, q] - base[q])`; each resample draws Q items and S runs with replacement and keeps
    the pairing. Few runs make a percentile interval too short, so seed deviations are first stretched by
    `sqrt(S / (S - 1)) t_{S-1} / z` (quantiles of the level): with two seeds the interval is honestly huge.

    Shapes: base (Q,), evolved (S, Q) or (Q,). Raises ValueError for other shapes, NaN or no items.
    """
    gains = _seeds_by_items(evolved, "evolved") - _items(base)
    return interval_of(draw_items(gains, resamples=resamples, seed=seed), seed=seed, level=level)


def difference_between_arms(first: np.ndarray, second: np.ndarray, *, resamples: int = 10_000, seed: int = 0,
                            level: float = 0.95) -> Interval:
    """Mean of arm `first` minus mean of arm `second`: items paired, runs of the two arms resampled apart.

    Shapes: first (S1, Q), second (S2, Q) on the same items in the same order. Raises ValueError as above.
    """
    a, b = _seeds_by_items(first, "first"), _seeds_by_items(second, "second")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the arms were measured on {a.shape[1]} and {b.shape[1]} items: evaluate both on the same")
    drawn = [draw_items(values, resamples=resamples, seed=seed) for values in (a, b)]
    return interval_between(*drawn, seed=seed, level=level)


def _items(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"base must be finite with shape (Q,), Q >= 1, got shape {values.shape}")
    return values


def _seeds_by_items(values: np.ndarray, name: str) -> np.ndarray:
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite with shape (S, Q), S, Q >= 1, got shape {values.shape}")
    return values


@lru_cache(maxsize=8)
def _item_weights(count: int, resamples: int, seed: int) -> np.ndarray:
    """Share of each item in each resample (R, Q); cached, since every row of a table needs the same."""
    rng = np.random.default_rng([seed, count, 0])
    weights = np.empty((resamples, count))
    for start in range(0, resamples, 500):  # blocks: whole index arrays of 2,000 items would take half a gigabyte
        block = weights[start : start + 500]
        picked = rng.integers(count, size=block.shape) + count * np.arange(len(block))[:, None]
        block[:] = np.bincount(picked.ravel(), minlength=block.size).reshape(block.shape) / count
    return weights


@lru_cache(maxsize=32)
def _run_weights(runs: int, resamples: int, seed: int, arm: int) -> np.ndarray:
    """Share of each run in each resample (R, S); `arm` 0 or 1, so that the runs of two arms are drawn apart."""
    rng = np.random.default_rng([seed, runs, 1 + arm])
    return rng.multinomial(runs, np.full(runs, 1.0 / runs), size=resamples) / runs


@dataclass(frozen=True)
class ItemDraws:
    """Runs with their items resampled, the costly half of a bootstrap: `means` (S,), `deviations` (R, S) from them.

    Items are drawn alike for equal Q, R and seed, so draws of different runs stay paired and may be subtracted.
    """

    means: np.ndarray
    deviations: np.ndarray
    items: int

    def pick(self, runs: Sequence[int]) -> ItemDraws:
        """The draws of some of the runs, by their position."""
        return ItemDraws(self.means[list(runs)], self.deviations[:, list(runs)], self.items)

    def __sub__(self, other: ItemDraws) -> ItemDraws:
        """Differences run by run, S runs each: seeds matched, items paired. Raises ValueError for other shapes."""
        if self.deviations.shape != other.deviations.shape or self.items != other.items:
            raise ValueError("the arms were measured on different items or numbers of runs: evaluate both on the same")
        return ItemDraws(self.means - other.means, self.deviations - other.deviations, self.items)


def draw_items(values: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> ItemDraws:
    """Resample the items of S runs at once. Shapes: values (S, Q) -> means (S,), deviations (R, S)."""
    values = _seeds_by_items(values, "values")
    means = values.mean(1)
    # float64 throughout: sums differ with the number of threads, and must not show in the sixth decimal
    centred = (values - means[:, None]).T
    return ItemDraws(means, _item_weights(values.shape[1], resamples, seed) @ centred, values.shape[1])


def interval_of(gains: ItemDraws, *, seed: int = 0, level: float = 0.95) -> Interval:
    """The interval of `paired_bootstrap` from gains whose items were drawn already."""
    draws = _resampled_means(gains, seed, 0, level)
    return _interval(float(gains.means.mean()), draws, gains.items, len(gains.means), level)


def interval_between(first: ItemDraws, second: ItemDraws, *, seed: int = 0, level: float = 0.95) -> Interval:
    """The interval of `difference_between_arms` from scores, or gains over one base, drawn already."""
    draws = _resampled_means(first, seed, 0, level) - _resampled_means(second, seed, 1, level)
    runs = min(len(first.means), len(second.means))
    return _interval(float(first.means.mean() - second.means.mean()), draws, first.items, runs, level)


def _resampled_means(drawn: ItemDraws, seed: int, arm: int, level: float) -> np.ndarray:
    """Bootstrap means (R,) over items and runs; run levels stretched as `paired_bootstrap` says."""
    runs, centre, stretch = len(drawn.means), drawn.means.mean(), 1.0
    if runs > 1:
        high = 0.5 + level / 2
        stretch = math.sqrt(runs / (runs - 1)) * t.ppf(high, runs - 1) / norm.ppf(high)
    weights = _run_weights(runs, len(drawn.deviations), seed, arm)
    return centre + ((drawn.deviations + stretch * (drawn.means - centre)) * weights).sum(1)


def _interval(delta: float, draws: np.ndarray, items: int, runs: int, level: float) -> Interval:
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    # six decimals: below any effect, above rounding, which differs between processors and numbers of threads
    return Interval(delta, round(float(low), 6) + 0.0, round(float(high), 6) + 0.0, items, runs, level)


def p_value(interval_at: Callable[[float], Interval], *, smallest: float) -> float:
    """Two-sided p-value of no difference that agrees with intervals: the least alpha whose 1 - alpha one leaves 0 out.

    `interval_at`: level -> Interval; found by bisection, so p < 0.05 says the same as a 95% interval clear of 0.
    smallest: the least alpha asked for, 2 / resamples; where even that interval leaves 0 out, it is returned and is
    an upper bound. 1.0 where no interval leaves 0 out. Raises ValueError unless 0 < smallest < 0.5.
    """
    if not 0 < smallest < 0.5:
        raise ValueError(f"smallest must lie between 0 and 0.5, got {smallest}: use at least five resamples")
    clear = lambda alpha: (found := interval_at(1.0 - alpha)).low > 0 or found.high < 0
    inside, outside = smallest, 0.99  # 0 is inside the interval at `inside`, outside it at `outside`
    if clear(inside):
        return inside
    if not clear(outside):
        return 1.0
    for _ in range(16):
        middle = math.sqrt(inside * outside)
        inside, outside = (inside, middle) if clear(middle) else (middle, outside)
    return outside


def block_indices(length: int, block: int, resamples: int, seed: int = 0) -> np.ndarray:
    """Positions (R, T) of a circular block bootstrap: runs of `block` neighbours, the last one cut to fit.

    Raises ValueError unless 1 <= block <= length.
    """
    if not 1 <= block <= length:
        raise ValueError(f"block must be between 1 and the series' length {length}, got {block}")
    starts = np.random.default_rng([seed, length, block]).integers(length, size=(resamples, -(-length // block)))
    picked = (starts[:, :, None] + np.arange(block)) % length
    return picked.reshape(resamples, -1)[:, :length]


def block_bootstrap(series: np.ndarray, statistic: Callable[[np.ndarray], float], *, block: int,
                    resamples: int = 2000, seed: int = 0, level: float = 0.95) -> tuple[float, float, float]:
    """A statistic of a time series with a percentile interval that respects dependence over about `block` steps.

    Returns (value, low, high). Shapes: series (T,) or (T, C), its columns resampled together; `statistic` maps such
    an array to a number. Blocks of T^(1/3) to T/10 steps are usual; a block of 1 takes the steps as independent.
    Raises ValueError for a series that is empty or not finite, or a block that does not fit.
    """
    series = np.asarray(series, dtype=np.float64)
    if len(series) == 0 or not np.isfinite(series).all():
        raise ValueError("block_bootstrap needs a finite series of at least one step")
    draws = [statistic(series[rows]) for rows in block_indices(len(series), block, resamples, seed)]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return float(statistic(series)), float(low), float(high)


def iqm(values: Sequence[float] | np.ndarray) -> float:
    """Interquartile mean: the mean without the lowest and highest quarter (whole values, as `scipy.trim_mean`)."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    if flat.size == 0:
        raise ValueError("iqm needs at least one value")
    return float(trim_mean(flat, 0.25))


def probability_of_improvement(first: Sequence[float], second: Sequence[float]) -> float:
    """P(X > Y) + 0.5 P(X = Y) for a run X of `first` and a run Y of `second`, over all pairs; shapes (S1,), (S2,)."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.size == 0 or b.size == 0:
        raise ValueError("probability_of_improvement needs at least one run of each arm")
    return float(((a[:, None] > b) + 0.5 * (a[:, None] == b)).mean())


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided p-value that two systems err equally often on the same items.

    `p = min(1, 2 P(X <= min(b, c)))`, X ~ Binomial(b + c, 1/2), b and c the items that only one got right.
    Shapes: bool (Q,) each. Raises ValueError when they differ in length.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"mcnemar needs two bool arrays of one length, got {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    total = only_first + only_second
    return 1.0 if total == 0 else float(min(1.0, 2.0 * binom.cdf(min(only_first, only_second), total, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: `max over smaller ones of (m - rank) p`, at most 1."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted.tolist()


def auroc(scores: Sequence[float] | np.ndarray, positive: Sequence[bool] | np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting one half.

    Shapes: (Q,), (Q,) bool. Raises ValueError when one class is empty: the area is then undefined.
    """
    positive = np.asarray(positive, dtype=bool)
    yes, no = int(positive.sum()), int((~positive).sum())
    if yes == 0 or no == 0:
        raise ValueError(f"auroc needs both classes, got {yes} positive and {no} negative items")
    area = metrics.roc_auc_score(positive, np.asarray(scores, dtype=np.float64))
    # scikit-learn sums trapezoids; the area is a whole number of half pairs, so rounding to one drops the sum's error
    return round(2 * yes * no * float(area)) / (2 * yes * no)


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates, from (0, 0) to (1, 1), one point per distinct score, highest first."""
    positive = np.asarray(positive, dtype=bool)
    if positive.all() or not positive.any():
        raise ValueError("a ROC curve needs both classes")
    false, true, _ = metrics.roc_curve(positive, np.asarray(scores, dtype=np.float64), drop_intermediate=False)
    return false, true


@dataclass(frozen=True)
class GroupCorrelation:
    """Mean rank correlation over `groups` groups with its standard error (None for fewer than two groups)."""

    mean: float | None
    standard_error: float | None
    groups: int


def spearman_within(signal: np.ndarray, truth: np.ndarray) -> GroupCorrelation:
    """Spearman's correlation within each group, averaged over the groups in which both sides vary.

    Pooling groups would reward a signal that only tells easy prompts from hard ones; a group-relative update
    never sees that part. Shapes: (G, L) each. Raises ValueError when the shapes differ.
    """
    signal, truth = np.asarray(signal, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if signal.shape != truth.shape or signal.ndim != 2:
        raise ValueError(f"spearman_within needs two (G, L) arrays, got {signal.shape} and {truth.shape}")
    found = [np.corrcoef(rankdata(a), rankdata(b))[0, 1] for a, b in zip(signal, truth, strict=True)
             if np.ptp(a) > 0 and np.ptp(b) > 0]
    if not found:
        return GroupCorrelation(None, None, 0)
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return GroupCorrelation(float(np.mean(found)), error, len(found))


def coverage(draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]], truth: float, *,
             trials: int = 200, resamples: int = 500, seed: int = 0) -> float:
    """Share of simulated (base, evolved) data sets whose `paired_bootstrap` interval holds the true gain."""
    rng = np.random.default_rng(seed)
    hits = 0
    for trial in range(trials):
        found = paired_bootstrap(*draw(rng), resamples=resamples, seed=trial)
        hits += found.low <= truth <= found.high
    return hits / trials
