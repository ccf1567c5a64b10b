"""Statistics: hand-computed values, independent implementations, and coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc

from asgkit.report.stats import (
    auroc,
    coverage,
    difference_between_arms,
    holm,
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


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="Q >= 1"):
        paired_bootstrap(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap(np.zeros(2), np.array([[0.0, np.nan]]))


def test_iqm_by_hand():
    assert iqm([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -100.0]) == pytest.approx(3.5)


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([1.0, 3.0], [2.0, 3.0]) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


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
