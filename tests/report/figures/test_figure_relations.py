"""Figures S1 and S3: checkpoints against scores, signals within prompts, and lags, on planted relations."""

import figure_data as data
import numpy as np
import pandas as pd
import pytest

from asgkit.report.figures import relations as figures
from asgkit.report.figures import series
from asgkit.report.measured import load_measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return load_measured(data.make_results(tmp_path_factory.mktemp("relations") / "results"))


def test_checkpoints_pair_the_log_before_with_the_score_after(measured):
    run = measured.arms(data.CLEAN[0])["joint"][1]
    found = figures.checkpoint_table(run, "drawings")
    assert found["step"].tolist() == [50, 100] and found["score"].tolist() == [56.0, 61.0]
    own = series.signal(run, "generator/fidelity").set_index("step")["value"]
    assert found["internal"].iloc[0] == pytest.approx(own[own.index <= 50].mean())


def test_a_shared_trend_alone_is_no_relation_once_time_is_removed():
    rng, steps = np.random.default_rng(0), np.arange(1, 9)
    trend = pd.concat([pd.DataFrame({"seed": s, "step": steps, "internal": steps + 0.1 * rng.standard_normal(8),
                                     "score": 2 * steps + 0.1 * rng.standard_normal(8)}) for s in range(4)])
    found = figures.checkpoint_correlations(trend)
    assert found["r"].startswith("1.00")
    assert abs(float(found["time removed"].split()[0])) < 0.5 and "[" in found["time removed"]
    related = trend.assign(score=trend["internal"])
    assert figures.checkpoint_correlations(related)["time removed"].startswith("1.00")
    assert figures.checkpoint_correlations(trend[trend["seed"] == 0])["time removed"] == "needs 2 seeds"


def test_within_prompts_sees_the_planted_order(measured):
    _, points, used = figures.figure_s1_within(measured)
    assert [run.arm for run in used] == ["oracle"]
    mean = points[points["kind"] == "mean"].set_index(["signal", "third"])["value"]
    planted = 2 / np.sqrt(5)  # two of four candidates are right, and they are the upper two
    assert mean["R_g", "early"] == pytest.approx(planted) and abs(mean["S_cyc", "late"]) < 0.5
    groups = figures.candidate_groups(used[0])
    assert len(groups) == data.CYCLES * 2 * data.IMAGES and groups["truth"].map(len).eq(data.CANDIDATES).all()


def test_cycles_are_means_of_their_own_steps(measured):
    run = measured.arms(data.CLEAN[0])["joint"][0]
    own = series.signal(run, "generator/rewards").set_index("step")["value"]
    found = figures.cycle_means(run, "generator/rewards")
    assert len(found) == data.CYCLES and found[1] == pytest.approx(own[[9, 10]].mean())


def test_figure_s3_plots_each_seed_and_both_bands(measured):
    _, points, used = figures.figure_s3(measured)
    one = points[(points["base"] == data.CLEAN[0]) & (points["u"] == "STE")]
    assert one[one["kind"] == "seed"].groupby("seed").size().tolist() == [len(figures.LAGS)] * 3
    mean = one[one["kind"] == "mean"]
    assert (mean["low"] <= mean["high"]).all() and (mean["null_low"] < 0).all() and (mean["null_high"] > 0).all()
    assert np.allclose(mean["value"], one[one["kind"] == "seed"].groupby("lag")["value"].mean())
    assert len(used) == 6


def test_figure_s1_shows_every_checkpoint(measured):
    _, points, _ = figures.figure_s1(measured)
    assert points.groupby(["base", "side"]).size().tolist() == [6] * 4
    assert points["r"].dropna().str.contains("[", regex=False).all()


def test_without_runs_every_figure_is_an_empty_panel(tmp_path):
    for make in figures.FIGURES.values():
        _, points, used = make(load_measured(tmp_path))
        assert "asgkit batch headline" in points["missing"].item() and used == []
