"""Statistics: hand-computed values, independent implementations, and coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from asgkit.stats.intervals import (
    auroc,
    block_bootstrap,
    block_indices,
    coverage,
    difference_between_arms,
    draw_items,
    holm,
    interval_between,
    interval_of,
    iqm,
    mcnemar,
    paired_bootstrap,
    probability_of_improvement,
    roc_curve,
    spearman_within,
)


def test_paired_bootstrap_of_a_constant_gain_has_no_width():
    base = np.array([0.0, 0.5, 0.2, 0.1])
    found = paired_bootstrap(base, np.stack([base + 0.3] * 3), resamples=200)
    assert found.delta == pytest.approx(0.3)
    assert (found.low, found.high) == (pytest.approx(0.3), pytest.approx(0.3))
    assert (found.n_items, found.n_seeds, found.note) == (4, 3, "items and seeds")


def test_one_seed_resamples_items_only_and_matches_the_normal_interval():
    rng = np.random.default_rng(1)
    gains = rng.normal(0.1, 1.0, 2000)
    found = paired_bootstrap(np.zeros(2000), gains)
    half = 1.96 * gains.std(ddof=1) / np.sqrt(2000)
    assert (found.n_seeds, found.note) == (1, "items only (one seed)")
    assert found.high - found.delta == pytest.approx(half, rel=0.05)
    assert found.delta - found.low == pytest.approx(half, rel=0.05)


def test_pairing_removes_the_items_own_difficulty():
    rng = np.random.default_rng(2)
    hard = rng.random(500)
    paired = paired_bootstrap(hard, hard + 0.05 + rng.normal(0, 0.01, (3, 500)))
    assert paired.high - paired.low < 0.1
    shuffled = paired_bootstrap(hard, rng.permutation(hard) + 0.05)
    assert shuffled.high - shuffled.low > 0.05


def test_seed_spread_widens_the_interval_as_a_t_interval_would():
    levels = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])  # five runs that differ in nothing but their level
    found = paired_bootstrap(np.zeros(50), np.repeat(levels[:, None], 50, 1))
    half = scipy_stats.t.ppf(0.975, 4) * levels.std(ddof=1) / np.sqrt(5)
    assert found.high - found.delta == pytest.approx(half, rel=0.12)


def test_same_seed_same_interval():
    rng = np.random.default_rng(3)
    base, evolved = rng.random(40), rng.random((4, 40))
    assert paired_bootstrap(base, evolved, seed=7) == paired_bootstrap(base, evolved, seed=7)
    assert paired_bootstrap(base, evolved, seed=7) != paired_bootstrap(base, evolved, seed=8)


def _world(runs):
    def draw(rng):
        base = (rng.random(120) < 0.6).astype(float)
        levels = 0.05 + rng.normal(0.0, 0.03, (runs, 1))
        return base, base + levels + rng.normal(0.0, 0.3, 120) + rng.normal(0.0, 0.1, (runs, 120))
    return draw


@pytest.mark.parametrize("runs", [3, 5])
def test_coverage_is_near_nominal(runs):
    assert 0.90 <= coverage(_world(runs), 0.05, trials=200, resamples=400) <= 1.0


def test_coverage_notices_a_wrong_centre():
    assert coverage(_world(5), 0.40, trials=40, resamples=200) < 0.2


def test_difference_between_arms():
    base = np.linspace(0, 1, 30)
    found = difference_between_arms(np.stack([base + 0.2] * 3), np.stack([base - 0.1] * 2), resamples=300)
    assert found.delta == pytest.approx(0.3) and found.low == pytest.approx(0.3, abs=1e-6)
    assert found.n_seeds == 2
    with pytest.raises(ValueError, match="evaluate both on the same"):
        difference_between_arms(np.zeros((2, 3)), np.zeros((2, 4)))


def test_items_drawn_once_give_the_same_intervals():
    rng = np.random.default_rng(4)
    base, first, second = rng.random(60), rng.random((3, 60)), rng.random((5, 60))
    drawn = draw_items(np.concatenate([first, second]) - base, resamples=500)
    one, other = drawn.pick([0, 1, 2]), drawn.pick(range(3, 8))
    assert interval_of(one) == paired_bootstrap(base, first, resamples=500)
    both, apart = interval_between(one, other), difference_between_arms(first, second, resamples=500)
    # gains over one base on the same resampled items: the base cancels, up to float32
    assert (both.delta, both.low, both.high) == pytest.approx((apart.delta, apart.low, apart.high), abs=1e-5)
    assert both.n_seeds == 3


def test_matched_seeds_cancel_what_they_share():
    rng = np.random.default_rng(5)
    luck = rng.normal(0, 0.2, (3, 1))  # a seed's own luck, in both arms
    items = rng.random(80)
    first, second = draw_items(items + luck + 0.1, resamples=500), draw_items(items + luck, resamples=500)
    matched, apart = interval_of(first - second), interval_between(first, second)
    assert (matched.delta, matched.low, matched.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-5)
    assert apart.high - apart.low > 0.1
    with pytest.raises(ValueError, match="numbers of runs"):
        first - second.pick([0])


def test_paired_bootstrap_of_one_seed_agrees_with_scipy():
    gains = np.random.default_rng(6).exponential(1.0, 300)
    theirs = scipy_stats.bootstrap((gains,), np.mean, n_resamples=10_000, method="percentile",
                                   rng=np.random.default_rng(0)).confidence_interval
    ours = paired_bootstrap(np.zeros(300), gains)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_blocks_are_runs_of_neighbours():
    rows = block_indices(10, 4, 50)
    assert rows.shape == (50, 10) and rows.min() >= 0 and rows.max() <= 9
    steps = np.diff(rows, axis=1) % 10
    assert (steps[:, [0, 1, 2, 4, 5, 6, 8]] == 1).all()  # within the blocks of 4, 4 and 2
    assert not (steps[:, 3] == 1).all()
    assert np.array_equal(block_indices(7, 7, 3)[:, 1:], (block_indices(7, 7, 3)[:, :-1] + 1) % 7)
    with pytest.raises(ValueError, match="between 1 and"):
        block_indices(10, 11, 5)


def test_block_bootstrap_of_single_steps_agrees_with_scipy():
    series = np.random.default_rng(7).normal(2.0, 1.0, 200)
    theirs = scipy_stats.bootstrap((series,), np.mean, n_resamples=4000, method="percentile",
                                   rng=np.random.default_rng(0)).confidence_interval
    value, low, high = block_bootstrap(series, np.mean, block=1, resamples=4000)
    assert value == pytest.approx(series.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.015)


def test_block_bootstrap_keeps_columns_together():
    series = np.arange(40.0)
    value, low, high = block_bootstrap(np.stack([series, 3 - 2 * series], 1), block=5, resamples=50,
                                       statistic=lambda xy: float(np.corrcoef(xy.T)[0, 1]))
    assert (value, low, high) == pytest.approx((-1.0, -1.0, -1.0))


def _covers(block):
    """Share of 150 AR(1) series, rho = 0.7, whose interval holds the true mean 0."""
    rng, hits = np.random.default_rng(8), 0
    for trial in range(150):
        noise, series = rng.normal(size=250), np.empty(250)
        series[0] = noise[0]
        for i in range(1, 250):
            series[i] = 0.7 * series[i - 1] + noise[i]
        _, low, high = block_bootstrap(series, np.mean, block=block, resamples=200, seed=trial)
        hits += low <= 0 <= high
    return hits / 150


def test_blocks_cover_where_single_steps_do_not():
    assert _covers(25) > 0.82 and _covers(1) < 0.75


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="Q >= 1"):
        paired_bootstrap(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(np.zeros(2), np.array([[0.0, np.nan]]))


def test_iqm_by_hand():
    assert iqm([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0]) == pytest.approx(3.5)


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.lists(st.integers(0, 4), min_size=1, max_size=6))
def test_probability_of_improvement_is_scaled_mann_whitney(first, second):
    u = scipy_stats.mannwhitneyu(first, second).statistic
    assert probability_of_improvement(first, second) == pytest.approx(u / (len(first) * len(second)))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_iqm_lies_between_the_quartiles_of_whole_values(values):
    ordered = np.sort(values)
    cut = len(ordered) // 4
    assert iqm(values) == pytest.approx(ordered[cut : len(ordered) - cut].mean())


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_value_and_bonferroni(p):
    for raw, adjusted in zip(p, holm(p), strict=True):
        assert raw - 1e-12 <= adjusted <= min(1.0, len(p) * raw) + 1e-12


def test_mcnemar_by_hand_and_against_scipy():
    first = np.array([1, 1, 1, 1, 0, 1, 0], bool)
    second = np.array([0, 0, 0, 0, 1, 1, 0], bool)  # b = 4, c = 1: p = 2 (1 + 5) / 32
    assert mcnemar(first, second) == pytest.approx(0.375)
    assert mcnemar(first, second) == pytest.approx(scipy_stats.binomtest(1, 5, 0.5).pvalue)
    assert mcnemar(first, first) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_and_roc_equal_sklearn(pairs):
    scores, positive = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    if positive.all() or not positive.any():
        with pytest.raises(ValueError, match="both classes"):
            auroc(scores, positive)
        return
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))
    false, true = roc_curve(scores, positive)
    ours = np.trapezoid(true, false)
    assert ours == pytest.approx(auroc(scores, positive))
    theirs = sklearn_roc(positive, scores, drop_intermediate=False)
    assert np.allclose(false, theirs[0]) and np.allclose(true, theirs[1])


def test_spearman_within_ignores_differences_between_groups():
    truth = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]], float)
    signal = np.array([[1, 2, 3, 4], [9, 8, 7, 6], [14, 13, 12, 11]], float)
    found = spearman_within(signal, truth)
    each = [scipy_stats.spearmanr(signal[i], truth[i]).statistic for i in (0, 2)]
    assert found.groups == 2  # the second group's truth has no variance
    assert found.mean == pytest.approx(np.mean(each))
    assert found.standard_error == pytest.approx(np.std(each, ddof=1) / np.sqrt(2))
    assert spearman_within(np.ones((2, 3)), np.eye(3)[:2]).mean is None
