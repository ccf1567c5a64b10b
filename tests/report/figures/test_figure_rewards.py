"""Judges, update rules and reward against truth: places of the points, and what is said of the missing ones."""

import json

import figure_data as data
import numpy as np
import pytest
import report_data

from asgkit.report.figures import rewards as figures
from asgkit.report.measured import load_measured

FLOW = data.CLEAN[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return data.make_results(tmp_path_factory.mktemp("rewards") / "results")


@pytest.fixture(scope="module")
def measured(results):
    return load_measured(results)


def test_arms_and_backbones_come_from_the_grid_file():
    arms = figures.grid_arms("generator_updates")
    assert arms["g-rwr"] == ["tiny-flow", "tiny-diffusion"] and arms["g-awm-3"] == ["tiny-flow"]


def test_a_judge_without_measurement_is_named_and_left_out(measured):
    fig, points, _ = figures.judges(measured)
    assert set(points["arm"]) == {"g-only", "judge-oracle"}
    assert "judge-60: no accuracy of its judge in measured/base/some-judge" in " ".join(fig.get_supxlabel().split())
    assert "g-only: no judging.json beside its accuracy" in " ".join(fig.get_supxlabel().split())
    truth = points[(points["arm"] == "judge-oracle") & (points["kind"] == "mean")].set_index("panel")
    assert truth["x"].to_dict() == truth["x_high"].to_dict() == {"accuracy": 100.0, "rank": 1.0}


def test_judges_stand_at_their_own_accuracy(tmp_path):
    results = data.make_results(tmp_path / "results")
    data.write_base(results, "some-judge")
    judging = {"reward": {"spearman": {"reward": {"mean": 0.4, "standard_error": 0.1, "groups": 9}}}}
    path = results / "measured" / "base" / "some-judge" / "judging.json"
    path.write_text(json.dumps(judging))
    measured = load_measured(results)
    _, points, used = figures.judges(measured)
    assert path in measured.bases["some-judge"].evidence()
    rank = points[(points["arm"] == "judge-60") & (points["panel"] == "rank") & (points["kind"] == "mean")].iloc[0]
    assert (rank["x"], rank["x_low"], rank["x_high"]) == pytest.approx((0.4, 0.204, 0.596))
    own = points[(points["arm"] == "judge-60") & (points["panel"] == "accuracy")]
    right = measured.bases["some-judge"].items["majority"]
    assert own["x"].tolist() == pytest.approx([100 * right.mean()] * 2)
    held, run = measured.bases[FLOW], measured.arms(FLOW)["judge-60"][0]
    gain = 100 * (run.values("drawings/overall") - held.values("drawings/overall")).mean()
    assert own["gain"].tolist() == pytest.approx([gain, gain])
    assert measured.bases["some-judge"] in used


def test_update_rules_show_gains_and_what_was_not_run(measured):
    _, points, _ = figures.generator_updates(measured)
    own = points[(points["base"] == FLOW) & (points["arm"] == "g-rwr")]
    assert own["kind"].tolist() == ["mean", "seed", "seed"]
    mean = own[own["kind"] == "mean"].iloc[0]
    assert mean["low"] <= mean["gain"] <= mean["high"]
    assert mean["gain"] == pytest.approx(own[own["kind"] == "seed"]["gain"].mean())
    kinds = points.set_index(["base", "arm"])["kind"]
    assert kinds[FLOW, "g-nft"] == "not run" and kinds["tiny-diffusion-clean", "g-awm-3"] == "not in the grid"


def test_reward_meets_truth_on_checkpoints(measured):
    _, points, used = figures.reward_truth(measured)
    own = points[(points["base"] == FLOW) & (points["kind"] == "seed") & (points["seed"] == 2)]
    assert own["step"].tolist() == [50, 100] and own["y"].tolist() == [57.0, 62.0]
    mean = points[(points["base"] == FLOW) & (points["kind"] == "mean")]
    assert np.isfinite(mean["y_half"].iloc[-1]) and mean["y"].tolist() == [56.0, 61.0]
    assert {run.arm for run in used} == {"joint"}  # loops without drawings and runs without a curve have no place


def test_without_runs_every_figure_is_an_empty_panel(tmp_path):
    for make, grid in zip(figures.FIGURES.values(), ("judges", "generator_updates", "headline"), strict=True):
        _, points, used = make(load_measured(tmp_path))
        assert f"asgkit batch {grid}" in points["missing"].item() and used == []


def test_the_test_data_are_what_a_measurement_must_be(measured):
    assert measured.bases[FLOW].values("drawings/overall").mean() == pytest.approx(
        report_data.make_items(1)["drawings"].mean())
