"""Random-effects intervals: parts of the error by hand, limits, equivalence, and that they agree with each other."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from scipy.stats import t

from asgkit.stats import effects
from asgkit.stats.effects import (
    Estimate,
    Shares,
    crossed,
    crossed_between,
    over_arm,
    over_base,
    own_items,
    own_items_between,
)
from asgkit.stats.intervals import difference_between_arms, paired_bootstrap

GAINS = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0]])


def runs(seeds: int, items: int = 200, spread: float = 0.05, mean: float = 0.1, seed: int = 0) -> np.ndarray:
    """Gains (S, Q) with parts of seeds, items and both."""
    rng = np.random.default_rng(seed)
    return (mean + spread * rng.normal(size=(seeds, 1)) + 0.3 * rng.normal(size=items)
            + 0.1 * rng.normal(size=(seeds, items)))


def test_the_parts_of_the_error_by_hand():
    """Row means .5 .75 .5, column means 2/3 1 0 2/3: two-way analysis of variance on paper."""
    found = crossed(GAINS)
    seeds = np.var([0.5, 0.75, 0.5], ddof=1) / 3
    left = GAINS - GAINS.mean(1, keepdims=True) - GAINS.mean(0) + GAINS.mean()
    items = np.var([2 / 3, 1, 0, 2 / 3], ddof=1) / 4 - (left**2).sum() / 6 / 12
    assert found.error == pytest.approx(math.sqrt(seeds + items)) and found.delta == pytest.approx(7 / 12)
    share = seeds / (seeds + items)
    assert found.shares.freedom() == pytest.approx(1 / (share**1.1 / 2 + (1 - share) ** 2 / 3))
    assert found.shares.freedom(0.005) == pytest.approx(1 / (share**0.2 / 2 + (1 - share) ** 2 / 3))  # 2 - 4 / 2, cut
    assert found.shares.freedom(0.1) == found.shares.freedom(0.05)
    assert (found.n_items, found.n_seeds) == (4, 3)


def test_items_alone_and_seeds_alone_are_students_intervals():
    one = crossed(GAINS[:1]).interval()
    plain = scipy_stats.ttest_1samp(GAINS[0], 0).confidence_interval()
    assert (one.low, one.high) == pytest.approx((max(-1, plain.low), min(1, plain.high)), abs=1e-6)
    assert one.note == "items only (one seed)"
    levels = np.repeat([[0.1], [0.2], [0.25]], 50, 1)  # no item differs from another: seeds are all there is
    plain = scipy_stats.ttest_1samp(levels[:, 0], 0)
    found = crossed(levels)
    assert found.shares.freedom() == pytest.approx(2) and found.p_value() == pytest.approx(plain.pvalue)
    assert (found.interval().low, found.interval().high) == pytest.approx(tuple(plain.confidence_interval()), abs=1e-6)


def test_two_arms_by_hand_and_their_signs():
    a, b = runs(3, seed=1), runs(5, mean=0.0, seed=2)
    found, turned = crossed_between(a, b), crossed_between(b, a)
    assert found.delta == pytest.approx(a.mean() - b.mean()) and turned.delta == -found.delta
    assert (turned.error, turned.shares, found.n_seeds) == (found.error, found.shares, 3)
    same = np.ones((1, 60))  # where items do not differ this is Welch's test of the runs' levels
    x, y = np.array([[0.1], [0.3], [0.2]]), np.array([[0.0], [0.05], [0.1], [0.02]])
    welch = scipy_stats.ttest_ind(x[:, 0], y[:, 0], equal_var=False)
    assert crossed_between(x * same, y * same).p_value() == pytest.approx(welch.pvalue)
    assert own_items_between(x * same, y * same).p_value() == pytest.approx(welch.pvalue)


def test_own_items_are_students_interval_of_the_runs_means():
    gains = [runs(1, items, seed=s)[0] for s, items in enumerate((40, 60, 50))]
    plain = scipy_stats.ttest_1samp([values.mean() for values in gains], 0)
    found = own_items(gains)
    assert found.p_value() == pytest.approx(plain.pvalue) and (found.n_items, found.n_seeds) == (150, 3)
    assert own_items(gains[:1]) == crossed(gains[0])
    tied = own_items([GAINS[0], GAINS[2]])  # equal means: the items' error is left, sqrt((1/12 + 1/12) / 4)
    assert tied.error == pytest.approx((1 / 24) ** 0.5) and tied.shares.freedom() == 6 and tied.n_seeds == 2
    apart = own_items([GAINS[0] + 0.2, GAINS[2]], most=9.0)
    assert apart.error == pytest.approx(0.1) and apart.shares.freedom() == pytest.approx(1)


@given(st.integers(2, 6), st.floats(0.5, 0.999), st.integers(0, 99))
def test_the_p_value_inverts_the_interval(seeds, level, seed):
    for found in (crossed(runs(seeds, 40, seed=seed, mean=0.02), most=9.0),
                  crossed_between(runs(seeds, 40, seed=seed), runs(3, 40, mean=0.0, seed=seed + 1), most=9.0)):
        held, p = found.interval(level), found.p_value()
        if abs(p - (1 - level)) > 1e-4:
            assert (held.low > 0 or held.high < 0) == (p < 1 - level)


@given(st.floats(-0.03, 0.03), st.floats(0.001, 0.02), st.floats(2, 50), st.floats(0.001, 0.05))
def test_equivalence_is_the_ninety_percent_interval_within_the_margin(delta, error, freedom, margin):
    found = Estimate(delta, error, Shares(0.0, math.inf, freedom), 100, 3)
    reach = t.ppf(0.95, freedom) * error
    if abs(margin - abs(delta) - reach) > 1e-6:
        assert (found.equivalence(margin) < 0.05) == (abs(delta) + reach < margin)
    sides = [t.cdf((delta - margin) / error, freedom), t.sf((delta + margin) / error, freedom)]
    assert found.equivalence(margin) == pytest.approx(max(sides))  # the worse of the two one-sided tests


def test_nothing_changed_and_one_point_by_hand():
    none = crossed(np.zeros((3, 10)))
    assert (none.interval().low, none.interval().high, none.p_value(), none.equivalence(0.01)) == (0, 0, 1, 0)
    sure = crossed(np.full((3, 10), 0.02))
    assert (sure.p_value(), sure.equivalence(0.01), sure.equivalence(0.03)) == (0, 1, 0)
    with pytest.raises(ValueError, match="above 0"):
        none.equivalence(0.0)


def test_no_interval_leaves_what_is_possible():
    wide = crossed(np.repeat([[-0.4], [0.6]], 30, 1))
    assert (wide.interval().low, wide.interval().high) == (-1, 1)
    assert crossed(np.repeat([[-0.4], [0.6]], 30, 1), most=9.0).interval().high > 5


def test_a_seed_part_that_came_out_small_does_not_shorten_twice():
    """Beside Satterthwaite (k = 2), whose interval covers 92% with three seeds, ours is never the shorter one."""
    for seed in range(20):
        gains = runs(3, 100, spread=0.1, seed=seed)
        share = gains.mean(1).var(ddof=1) / 3 / crossed(gains).error ** 2
        assert crossed(gains).shares.freedom() <= 1 / (share**2 / 2 + (1 - share) ** 2 / 99) + 1e-9


def test_reports_use_one_method_and_may_name_the_other():
    base, evolved = np.zeros(50), runs(3, 50)
    assert over_base(base, evolved, method="bootstrap") == paired_bootstrap(base, evolved)
    assert over_arm(evolved, evolved[:2], method="bootstrap") == difference_between_arms(evolved, evolved[:2])
    assert over_base(base, evolved, method="random effects") == crossed(evolved).interval()
    assert over_arm(evolved, evolved[:2], method="random effects", level=0.9) == crossed_between(
        evolved, evolved[:2]).interval(0.9)
    expected = paired_bootstrap(base, evolved) if effects.METHOD == "bootstrap" else crossed(evolved).interval()
    assert over_base(base, evolved) == expected
    with pytest.raises(ValueError, match="choose one of bootstrap, random effects"):
        over_base(base, evolved, method="exact")


@pytest.mark.parametrize("wrong", [np.zeros((2, 1)), np.zeros((2, 2, 2)), np.array([[0.0, np.nan]])])
def test_wrong_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match="shape"):
        crossed(wrong)


def test_other_items_and_single_runs_are_refused():
    with pytest.raises(ValueError, match="3 and 4 items"):
        crossed_between(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="another seed"):
        own_items_between([np.zeros(3)], [np.zeros(3)] * 2)
    with pytest.raises(ValueError, match="at least one run"):
        own_items([])
