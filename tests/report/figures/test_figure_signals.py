"""Figures 3 and S2: what is plotted against the log and the items; what is missing says how to get it."""

import figure_data as data
import numpy as np
import pytest

from asgkit.report.figures import signals as figures
from asgkit.report.figures.style import save_figure
from asgkit.report.measured import load_measured
from asgkit.report.provenance import as_text, embedded, provenance
from asgkit.runs.packed_log import NAME
from asgkit.stats.intervals import auroc


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return data.make_results(tmp_path_factory.mktemp("signals") / "results")


@pytest.fixture(scope="module")
def measured(results):
    return load_measured(results)


def test_thirds_hold_equal_numbers_of_pictures(measured):
    found = figures.chosen_questions(measured.arms(data.CLEAN[0])["joint"][0])
    assert found["third"].value_counts().tolist() == [data.CYCLES * 3 * data.IMAGES // 3] * 3
    assert found.groupby("third")["step"].max()["early"] < found.groupby("third")["step"].min()["late"]
    rising = found.groupby("third")["ste"].mean()
    assert rising["early"] < rising["middle"] < rising["late"]


def test_figure_3_plots_every_seed_and_every_question(measured):
    fig, points, used = figures.figure3(measured, data.CLEAN[0])
    assert [run.seed for run in used] == [0, 1, 2]
    scatter = points[points["panel"] == "b"]
    assert len(scatter) == 3 * data.CYCLES * 3 * data.IMAGES
    seeds = points[(points["panel"] == "c") & (points["kind"] == "seed") & (points["series"] == "S_fid")]
    assert seeds.groupby("seed").size().tolist() == [data.CYCLES * 2] * 3
    shares = [float(text.get_text().split("%")[0]) for text in fig.axes[1].texts]
    assert sum(shares) == pytest.approx(100, abs=2)
    # the drawn raw lines are the very points of the table
    raw = [line for line in fig.axes[2].lines if line.get_linewidth() == 0.3]
    assert len(raw) == 2 * 3 and np.allclose(raw[0].get_ydata(), seeds[seeds["seed"] == 0]["y"])


def test_outcomes_by_hand():
    items = {"fraction": np.array([1.0, 5 / 7, 5 / 7, 4 / 7]), "majority": np.array([True, True, False, True])}
    assert figures.outcome(items).tolist() == [0, 0, 1, 2]


def test_figure_s2_means_and_areas_are_those_of_the_items(measured):
    fig, points, used = figures.figure_s2(measured, data.CLEAN[0])
    held = measured.bases[data.CLEAN[0]]
    kind = figures.outcome(held.items)
    row = points[(points["panel"] == "ste") & (points["arm"] == "base") & (points["group"] == "consistent, wrong")]
    assert row[row["kind"] == "seed"]["value"].tolist() == pytest.approx([held.items["ste"][kind == 1].mean()])
    assert row[row["kind"] == "questions"]["n"].tolist() == [(kind == 1).sum()]
    area = auroc(held.items["ste"][kind < 2], kind[kind < 2] == 1)
    assert f"base: AUROC {area:.2f} ±" in fig.axes[0].get_title()
    assert len(used) == 1 + 3


@pytest.mark.parametrize("make", figures.BASE_FIGURES.values())
def test_missing_runs_name_the_grid(measured, make):
    for base, grid in (("tiny-diffusion-clean", "headline"), ("tiny-ar-registers", "registers")):
        _, points, used = make(measured, base)
        assert f"asgkit batch {grid}" in points["missing"].item() and used == []


def test_twice_the_same_bytes_with_provenance_in_png_and_pdf(tmp_path, measured, results):
    made = []
    for folder in ("one", "two"):
        fig, points, used = figures.figure3(measured, data.CLEAN[0])
        record = provenance(used, results)
        made.append(save_figure(fig, tmp_path / folder / "figure3", points, record))
    for first, second in zip(*made, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.suffix
    pdf, png, *_ = made[0]
    assert embedded(png) == embedded(pdf) == as_text(record)
    assert f"measured/runs/{data.CLEAN[0]}-joint-s2/{NAME}" in record["inputs"]
