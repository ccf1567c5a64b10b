"""Series of logs and their statistics: numbers by hand, then properties, then what a broken input must raise."""


import figure_data as data
import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr, t

from asgkit.report.figures import series
from asgkit.report.measured import load_measured
from asgkit.runs.packed_log import NAME, pack_log, read_packed_log


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return load_measured(data.make_results(tmp_path_factory.mktemp("series") / "results"))


def frame(values, seed=0, steps=None):
    steps = range(1, len(values) + 1) if steps is None else steps
    return pd.DataFrame({"base": "b", "arm": "a", "seed": seed, "step": list(steps), "value": values})


def test_a_signal_is_the_mean_over_images_and_candidates(measured):
    run = measured.arms(data.CLEAN[0])["joint"][1]
    log = data.records(1)
    found = series.signal(run, "generator/rewards").set_index("step")["value"]
    wanted = [np.mean(r["generator/rewards"]) for r in log if r["step"] == 4]
    assert found[4] == pytest.approx(np.mean(wanted)) and set(found.index) == {r["step"] for r in log
                                                                               if r["phase"] == "G"}
    silent = series.signal(run, "proposer/zero_variance").set_index("step")["value"]
    assert silent[1] == 0.0 and silent[2] == 1.0
    with pytest.raises(KeyError, match="no/field"):
        series.signal(run, "no/field")


def test_an_edited_log_is_read_anew(tmp_path):
    results = tmp_path / "results"
    data.write_base(results, data.CLEAN[0])
    path = data.write_run(results, data.CLEAN[0], "joint", 0) / NAME
    run = load_measured(results).runs[0]
    before = series.signal(run, "solver/token_entropy")["value"].iloc[0]
    pack_log(read_packed_log(path)[1:], path)
    assert series.signal(run, "solver/token_entropy")["value"].iloc[0] != before


def test_moving_mean_by_hand_and_per_seed():
    both = pd.concat([frame([1.0, 2.0, 6.0]), frame([9.0, 9.0, 9.0], seed=1)])
    assert series.moving(both, 3)["value"].tolist() == pytest.approx([1.5, 3.0, 4.0, 9.0, 9.0, 9.0])


def test_interval_over_seeds_by_hand():
    both = pd.concat([frame([1.0, 5.0]), frame([3.0, 5.0], seed=1)])
    found = series.over_seeds(both)
    half = t.ppf(0.975, 1) * np.sqrt(2.0) / np.sqrt(2.0)
    assert found["mean"].tolist() == [2.0, 5.0]
    assert found["high"].tolist() == pytest.approx([2.0 + half, 5.0])
    assert series.over_seeds(frame([1.0]))["low"].isna().all()
    short = pd.concat([frame([1.0, 5.0]), frame([3.0], seed=1)])
    assert series.over_seeds(short)["step"].tolist() == [1]  # step 2 has one seed of two


def test_means_before_checkpoints_use_each_step_once(measured):
    run = measured.arms(data.CLEAN[0])["joint"][0]
    own = series.signal(run, "solver/token_entropy").set_index("step")["value"]
    found = series.before_checkpoints(run, "solver/token_entropy", [0, 50, 100])
    assert found.index.tolist() == [50, 100]
    assert found[50] == pytest.approx(own[own.index <= 50].mean())
    assert found[100] == pytest.approx(own[own.index > 50].mean())


def test_detrended_lines_are_nothing_and_spread_is_one():
    line = 3.0 + 0.5 * np.arange(10)
    wave = np.sin(np.arange(10))
    found = series.detrend(np.stack([line, line + wave]))
    assert np.abs(found[0]).max() == 0.0
    assert found[1].std() == pytest.approx(1.0) and abs(np.polyfit(np.arange(10), found[1], 1)[0]) < 1e-9


def test_group_correlations_are_those_of_scipy_and_skip_flat_groups():
    rng = np.random.default_rng(0)
    scores, truth = rng.random((4, 6)), rng.integers(0, 2, (4, 6)).astype(float)
    truth[1] = 1.0
    found = series.group_correlations(scores, truth)
    assert found == pytest.approx([spearmanr(scores[i], truth[i]).statistic for i in (0, 2, 3)])
    with pytest.raises(ValueError, match="two \\(G, L\\) arrays"):
        series.group_correlations(scores, truth[:2])


@pytest.mark.parametrize("lag", [-2, 0, 3])
def test_lagged_correlation_finds_a_planted_lag(lag):
    rng = np.random.default_rng(1)
    u = rng.standard_normal((3, 60))
    g = np.roll(u, lag, axis=1) + 0.3 * rng.standard_normal((3, 60))
    found = series.lagged_correlation(u, g, range(-5, 6), resamples=200)
    peak = int(np.argmax(found.r.mean(0)))
    assert found.lags[peak] == lag
    assert found.low[peak] > found.null_high[peak]  # a relation stands out of the band of none
    others = np.delete(found.r.mean(0), peak)
    assert ((others < np.delete(found.high, peak)) & (others > np.delete(found.low, peak))).all()


def test_band_of_no_relation_holds_unrelated_series():
    inside = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found = series.lagged_correlation(rng.standard_normal((2, 40)), rng.standard_normal((2, 40)), [0, 1],
                                          resamples=200)
        inside += ((found.r.mean(0) > found.null_low) & (found.r.mean(0) < found.null_high)).tolist()
    assert np.mean(inside) > 0.85


def test_lags_that_leave_too_little_are_refused():
    with pytest.raises(ValueError, match="use smaller lags"):
        series.lagged_correlation(np.zeros((1, 10)), np.zeros((1, 10)), [3])
    with pytest.raises(ValueError, match="two \\(S, C\\) arrays"):
        series.lagged_correlation(np.zeros((1, 10)), np.zeros((1, 9)), [0])


def test_cluster_interval_needs_three_clusters_and_repeats_itself():
    mean = lambda picked: float(np.mean([(0.0, 1.0, 5.0)[i] for i in picked]))
    low, high = series.cluster_interval(mean, 3)
    assert (low, high) == series.cluster_interval(mean, 3) and 0.0 <= low < 2.0 < high <= 5.0
    assert np.isnan(series.cluster_interval(mean, 2)).all()


def test_auroc_half_shrinks_with_questions():
    rng = np.random.default_rng(0)
    wrong = np.arange(400) % 4 == 0
    scores = rng.standard_normal(400) + wrong
    assert 0.0 < series.auroc_half(scores, wrong) < series.auroc_half(scores[:60], wrong[:60])
