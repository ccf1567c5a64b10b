"""Figures 4 and 5: steps of a loop alone are placed with the joint run's; panels say what is missing."""

import figure_data as data
import numpy as np
import pytest

from asgkit.report.figures import dynamics as figures
from asgkit.report.figures import series
from asgkit.report.measured import load_measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return load_measured(data.make_results(tmp_path_factory.mktemp("dynamics") / "results"))


def test_steps_of_a_loop_alone(measured):
    arms = measured.arms(data.CLEAN[0])
    assert figures.joint_step(arms["joint"][0]) == 1.0
    assert figures.joint_step(arms["u-only"][0]) == pytest.approx(5 / 3)
    assert figures.joint_step(measured.arms(data.CLEAN[1])["g-only"][0]) == pytest.approx(5 / 2)


def test_figure_4_scores_are_the_curves(measured):
    fig, points, _ = figures.figure4_scores(measured)
    own = points[(points["base"] == data.CLEAN[0]) & (points["side"] == "answers") & (points["kind"] == "seed")]
    joint, alone = own[own["arm"] == "joint"], own[own["arm"] == "u-only"]
    assert sorted(joint["step"].unique()) == [0, 50, 100] and sorted(alone["step"].unique()) == [0, 50, 100]
    assert joint[(joint["seed"] == 2) & (joint["step"] == 100)]["value"].tolist() == [62.0]
    mean = points[(points["kind"] == "mean") & (points["arm"] == "joint") & (points["step"] == 100)]
    assert mean["value"].iloc[0] == pytest.approx(61.0)
    assert mean["low"].iloc[0] < 60.0 and mean["high"].iloc[0] > 62.0
    texts = " ".join(text.get_text() for ax in fig.axes for text in ax.texts)
    assert "no g-only: asgkit eval RUN --curve" in texts and "no g-only: asgkit batch coupling" in texts
    assert "no joint: asgkit batch headline" in " ".join(points["missing"].dropna())


def test_figure_4_signals_do_not_ask_for_what_no_run_can_log(measured):
    fig, points, _ = figures.figure4_signals(measured)
    answers = " ".join(text.get_text() for text in fig.axes[0].texts)
    assert "u-only (1)" in answers and "no g-only" not in answers
    drawn = points[(points["side"] == "drawings") & (points["base"] == data.CLEAN[1])]
    assert set(drawn["arm"]) == {"joint", "g-only"}
    steps = drawn[(drawn["arm"] == "g-only") & (drawn["kind"] == "seed")]["step"]
    assert steps.min() == 2.5 and steps.max() == 2.5 * 40


def test_figure_5_has_a_raw_line_behind_every_smooth_one(measured):
    fig, points, used = figures.figure5(measured)
    ax = fig.axes[0]
    raw, smooth = ([line for line in ax.lines if line.get_linewidth() == width] for width in (0.3, 1.3))
    assert len(raw) == 3 and len(smooth) == 1
    wanted = series.over_seeds(series.moving(series.signals(measured.arms(data.CLEAN[0])["joint"],
                                                            "solver/self_consistency_entropy")))
    assert np.allclose(smooth[0].get_ydata(), wanted["mean"])
    assert "asgkit batch headline" in " ".join(points["missing"].dropna()) and len(used) == 6


def test_without_runs_every_figure_is_an_empty_panel(tmp_path):
    nothing = load_measured(tmp_path)
    for make in figures.FIGURES.values():
        _, points, used = make(nothing)
        assert "asgkit batch headline" in points["missing"].item() and used == []
