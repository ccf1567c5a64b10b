"""Seeds one at a time until a difference is decided: how often one may look, and at which level each time.

Looking at a 95% interval after every new seed finds a "gain" where there is none far more often than in 5% of cases.
So the 5% are spent over the looks, in proportion to the seeds that are in (Lan and DeMets), and each look has a level
of its own. `asgkit.stats.coverage` checks the error rate of the whole rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.stats import norm

from asgkit.stats.effects import Estimate, inside

Verdict = Literal["gain", "loss", "no effect", "open"]
GRID = 4001  # points of the density of the test statistic, over REACH standard deviations either way
REACH = 8.0


@dataclass(frozen=True)
class Looks:
    """One look per number of seeds from `first` to `last`; errors in all of them together: `alpha` at most.

    `margin`: a difference below it, either way, counts as none; in the unit of the values (0.01: one point of shares).
    Raises ValueError for fewer than two first seeds, `last` below `first`, or a margin or alpha out of range.
    """

    first: int
    last: int
    margin: float
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 2 <= self.first <= self.last:
            raise ValueError(f"looks need 2 <= first <= last seeds, got {self.first} and {self.last}")
        if not (self.margin > 0 and 0 < self.alpha < 0.5):
            raise ValueError(f"margin must be above 0 and alpha in (0, 0.5), got {self.margin} and {self.alpha}")

    def alphas(self, total: float | None = None) -> tuple[float, ...]:
        """The two-sided alpha of each look that adds up to `total` (alpha) over all looks."""
        return spent(self.first, self.last, self.alpha if total is None else total)


@dataclass(frozen=True)
class Decision:
    """What was decided, after how many seeds, and the last estimate with the interval of its look.

    The interval holds the true difference at every look together with probability 1 - alpha: it may be reported
    although one stopped on seeing it, which an ordinary 95% interval may not.
    """

    verdict: Verdict
    seeds: int
    estimate: Estimate
    level: float
    low: float
    high: float


def decide(estimate_of: Callable[[int], Estimate], seeds: int, looks: Looks) -> Decision:
    """The first decision among the looks that `seeds` seeds allow, else `open` with the last look's interval.

    `estimate_of(n)`: the estimate from the first n seeds, in a fixed order; the looks are replayed from the first on,
    so the answer does not depend on how often it was asked for. gain, loss: the look's interval leaves 0 out;
    no effect: two one-sided tests at the look's level, each of error alpha over all looks. Raises ValueError for
    fewer seeds than the first look needs.
    """
    if seeds < looks.first:
        raise ValueError(f"the first look needs {looks.first} seeds, there are {seeds}")
    two_sided, two_tests = looks.alphas(), looks.alphas(2 * looks.alpha)
    for look, count in enumerate(range(looks.first, min(seeds, looks.last) + 1)):
        estimate = estimate_of(count)
        found = _look(estimate, two_sided[look], two_tests[look], looks.margin, count)
        if found.verdict != "open":
            break
    return found


def _look(estimate: Estimate, two_sided: float, two_tests: float, margin: float, seeds: int) -> Decision:
    """One look; two_tests: the alpha of both one-sided tests together."""
    held = estimate.interval(1.0 - two_sided)
    verdict: Verdict = "open"
    if held.low > 0 or held.high < 0:
        verdict = "gain" if held.low > 0 else "loss"
    elif inside(estimate.interval(1.0 - two_tests), margin):
        verdict = "no effect"
    return Decision(verdict, seeds, estimate, held.level, held.low, held.high)


@lru_cache(maxsize=64)
def spent(first: int, last: int, alpha: float) -> tuple[float, ...]:
    """Two-sided alphas of looks after first, first + 1, ... last seeds; over all of them `alpha` is spent.

    After n seeds `alpha n / last` is spent: `P(|Z_k| >= c_k, no earlier look beyond) = alpha (n_k - n_(k-1)) / last`,
    for a sum of independent equal steps, whose density is carried from look to look. Errors that the seeds share (the
    items) tie the looks closer together and only make the rule stricter than it says.
    """
    step = 2 * REACH / (GRID - 1)
    at = np.linspace(-REACH, REACH, GRID)  # of B_n = Z_n sqrt(n / last)
    density = norm.pdf(at, scale=math.sqrt(first / last))
    kernel = norm.pdf(at, scale=math.sqrt(1 / last)) * step
    kernel /= kernel.sum()
    found = []
    for count in range(first, last + 1):
        bound = _bound(at, density, alpha * (first if count == first else 1) / last)
        found.append(float(2 * norm.sf(bound / math.sqrt(count / last))))
        inside = np.where(np.abs(at) < bound, density, 0.0)
        density = np.convolve(inside, kernel, mode="same")
    return tuple(found)


def _bound(at: np.ndarray, density: np.ndarray, mass: float) -> float:
    """The b with P(|B| >= b) = mass under a symmetric density, between the points of its grid."""
    step, upper = at[1] - at[0], at >= 0
    beyond = 2 * step * (density[upper][::-1].cumsum()[::-1] - density[upper] / 2)  # trapezoids from each point on
    return float(np.interp(-mass, -beyond, at[upper]))
