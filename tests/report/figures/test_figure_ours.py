"""Our own figures: agreement, detectors, silent groups and long runs; their points against items and logs."""

import figure_data as data
import numpy as np
import pytest

from asgkit.report.figures import ours as figures
from asgkit.report.figures import series
from asgkit.report.measured import load_measured
from asgkit.stats.intervals import auroc


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return load_measured(data.make_results(tmp_path_factory.mktemp("ours") / "results"))


def test_agreement_and_accuracy_share_one_axis_in_percent(measured):
    _, points, used = figures.self_consistency(measured)
    own = points[(points["panel"] == data.CLEAN[0]) & (points["kind"] == "seed")]
    seen = own[(own["series"] == "agreement") & (own["seed"] == 0)]
    run = measured.arms(data.CLEAN[0])["joint"][0]
    assert np.allclose(seen["value"], 100 * series.signal(run, "solver/majority_fraction")["value"])
    assert own[own["series"] == "accuracy"].groupby("seed").size().tolist() == [3, 3, 3]
    assert len(used) == 6
    missing = " ".join(points["missing"].dropna())
    assert "asgkit batch registers" in missing and "asgkit batch headline" in missing


def test_gains_of_agreement_and_accuracy_are_those_of_the_items(measured):
    _, points, _ = figures.agreement_accuracy(measured)
    own = points[(points["panel"] == data.CLEAN[0]) & (points["arm"] == "joint")]
    held, runs = measured.bases[data.CLEAN[0]], measured.arms(data.CLEAN[0])["joint"]
    wanted = [100 * (run.items["majority"].mean() - held.items["majority"].mean()) for run in runs]
    assert own[own["kind"] == "seed"]["y"].tolist() == pytest.approx(wanted)
    assert own[own["kind"] == "mean"]["y"].tolist() == pytest.approx([np.mean(wanted)])
    assert set(points["arm"].dropna()) == {"joint", "oracle", "u-only"}


def test_reliability_counts_accuracy_and_area_by_hand(measured):
    _, points, used = figures.reliability(measured, data.CLEAN[0])
    held = measured.bases[data.CLEAN[0]]
    votes = points[(points["panel"] == "votes") & (points["arm"] == "base")].set_index("x")
    unanimous = held.items["fraction"] == 1.0
    assert votes.loc[7, "y"] == pytest.approx(100 * held.items["majority"][unanimous].mean())
    assert votes.loc[7, "n"] == unanimous.sum() and votes.loc[7, "low"] < votes.loc[7, "y"] < votes.loc[7, "high"]
    area = points[(points["panel"] == "AUROC") & (points["arm"] == "base") & (points["series"] == "STE")]
    assert area["y"].tolist() == pytest.approx([auroc(held.items["ste"], ~held.items["majority"])])
    dots = points[(points["panel"] == "AUROC") & (points["kind"] == "seed") & (points["series"] == "H_sc")]
    assert dots["seed"].tolist() == [0, 1, 2] and len(used) == 4


def test_silent_groups_are_shares_of_the_log(measured):
    _, points, _ = figures.zero_variance(measured)
    own = points[(points["panel"] == data.CLEAN[0]) & (points["kind"] == "seed") & (points["seed"] == 0)]
    proposer = own[own["series"] == "Proposer"]
    assert proposer["value"].tolist() == [0.0 if step % 2 else 100.0 for step in proposer["step"]]
    assert (own[own["series"] == "Generator"]["value"] == 0).all()


def test_long_runs_stand_beside_the_usual_ones(measured):
    fig, points, used = figures.long_runs(measured)
    assert {run.arm for run in used} == {"u-long", "u-only", "g-only"}
    assert set(points[points["panel"] == "majority fraction"]["arm"]) == {"u-long", "u-only"}
    labels = [text.get_text() for ax in fig.axes for text in ax.texts]
    assert "u-long (1)" in labels and any("asgkit batch long" in label for label in labels)


def test_without_runs_every_panel_names_its_command(tmp_path):
    nothing = load_measured(tmp_path)
    made = [make(nothing) for make in figures.FIGURES.values()]
    made += [make(nothing, data.CLEAN[0]) for make in figures.BASE_FIGURES.values()]
    for _, points, used in made:
        assert points["missing"].str.contains("asgkit batch").all() and used == []
