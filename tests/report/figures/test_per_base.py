"""Figures: artists and plotted data against the input, fixed rules for examples, byte-identical files."""

import json

import matplotlib
import numpy as np
import pandas as pd
import pytest
import report_data as data
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from PIL import Image

from asgkit.backbones import load_backbone
from asgkit.evals.run import measure
from asgkit.report.build import _BY_BASE, _FIGURES, _SHARED, build_report
from asgkit.report.figures import per_base as figures
from asgkit.report.figures.examples import collect_examples, pick
from asgkit.report.figures.style import ARMS, OKABE_ITO, arm_order, empty_panel, save_figure
from asgkit.report.measured import Measurement, load_measured
from asgkit.report.provenance import as_text, embedded, provenance, read_sidecar
from asgkit.runs.packed_log import NAME
from asgkit.shapes.detector import detect, satisfies
from asgkit.shapes.text import parse_caption


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return data.make_results(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def measured(results):
    return load_measured(results)


@pytest.mark.skipif("okabe_ito" not in matplotlib.color_sequences, reason="matplotlib before 3.11 has no okabe_ito")
def test_colours_are_those_of_the_library():
    library = {to_hex(c).upper() for c in matplotlib.color_sequences["okabe_ito"]}
    assert {c.upper() for c in OKABE_ITO.values()} == library


def test_every_arm_has_its_own_colour_and_marker():
    assert len(set(ARMS.values())) == len({c for c, _ in ARMS.values()}) == len({m for _, m in ARMS.values()})
    assert arm_order(iter(["zeta", "random", "joint"])) == ["joint", "random", "zeta"]


def test_learning_curve_shows_every_seed_and_the_mean(measured):
    runs = measured.arms(data.BASE)["joint"]
    curves = pd.concat([run.curve() for run in runs])
    fig, points = figures.learning_curve(curves, {"answers": 40.0, "drawings": 50.0, "drawings_best": 70.0})
    left, right = fig.axes
    assert len(left.lines) == 2 + 1 + 1 and len(right.lines) == 2 + 1 + 2  # seeds, mean, base lines
    mean = left.lines[2].get_ydata()
    wanted = curves[(curves["side"] == "answers")].groupby("step")["value"].mean()
    assert np.allclose(mean, wanted)
    assert set(points["arm"]) == {"joint", "base", "base, best decoding"}
    assert len(points[points["arm"] == "joint"]) == 2 * 2 * 2


def test_forest_places_every_gain(measured):
    table = pd.DataFrame([{"arm": a, "metric": m, "delta": d, "low": d - 1, "high": d + 2, "seeds": 2, "n": 9}
                          for a, d in (("joint", 3.0), ("random", -1.0))
                          for m in ("answers/single", "drawings/overall")])
    dots = pd.DataFrame([{"arm": "joint", "seed": s, "metric": "answers/single", "delta": 2.5 + s} for s in (0, 1)])
    fig, points = figures.forest(table, dots)
    ax = fig.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["answers/single (n=9)", "drawings/overall (n=9)"]
    markers = [ARMS[arm][1] for arm in table["arm"]]
    centres = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() in markers]
    assert centres == [[3.0, 3.0], [-1.0, -1.0]]
    assert sorted(x for held in ax.collections for x, _ in held.get_offsets().tolist()) == [2.5, 3.5]
    assert [text.get_text() for text in fig.legends[0].texts] == ["joint (2 seeds)", "random (2 seeds)"]
    assert len(points) == 4 + 2


def test_premise_figure_plots_the_measured_means(measured):
    items = measured.bases[data.BASE].items
    fig, points = figures.premise(items)
    heights = [bar.get_height() for bar in fig.axes[0].patches]
    wanted = [items["framings"].mean(), items["canonical"].mean(), items["majority"].mean(), items["sampled"].mean()]
    assert heights == pytest.approx([100 * w for w in wanted])
    assert (points["panel"] == "scatter").sum() == len(items["majority"])
    unanimous = points[points["series"] == "STE, unanimous"]
    assert unanimous["x"].max() == 1.0 and unanimous["y"].max() == 1.0


def test_premise_figure_without_wrong_answers(measured):
    items = measured.bases[data.BASE].items
    right = np.ones_like(items["majority"])
    _, points = figures.premise({**items, "majority": right})
    assert "roc" not in set(points["panel"]) and (points["series"] == "wrong").sum() == 0


def test_signals_are_means_over_the_images_of_a_step(measured):
    run = measured.arms(data.BASE)["joint"][0]
    fig, points = figures.signals([(run.arm, run.seed, run.log())])
    value = lambda name, step: points[(points["signal"] == name) & (points["step"] == step)]["value"].tolist()
    assert value("solver/token_entropy", 1) == [0.5]
    assert value("generator/rewards", 4) == pytest.approx([0.4])
    assert value("generator/zero_variance", 4) == [1.0] and value("generator/zero_variance", 5) == [0.0]
    assert value("solver/kl", 1) == []  # null in the log: no point, and no zero either
    assert len(fig.axes) == len(figures.SIGNALS)


def test_learning_rates_use_a_log_axis_and_show_seeds(results):
    measured = load_measured(results)
    (fig, points), used = _FIGURES["learning_rates"](measured, data.BASE, pd.DataFrame())
    drawings = fig.axes[1]
    assert drawings.get_xscale() == "log"
    own = points[(points["side"] == "drawings") & (points["kind"] == "mean")]
    assert sorted(zip(own["arm"], own["rate"], strict=True)) == [("joint", 5e-4), ("lr-5e-3", 5e-3)]
    # the arm left the Solver's rate alone, so it has no place on the Solver's axis
    assert set(points[points["side"] == "answers"]["arm"]) == {"joint"}
    assert {run.name for run in used} >= {f"{data.BASE}-lr-5e-3-s0"}


def test_before_and_after_mark_each_verdict_and_print_the_rule():
    examples = data.make_examples()
    fig, points = figures.before_after_drawings(examples)
    assert [ax.get_xlabel() for ax in fig.axes[:4]] == ["base ✗", "evolved ✓", "base ✗", "evolved ✗"]
    assert fig.get_supxlabel() == "the first two" and set(points["rule"]) == {"the first two"}
    fig, points = figures.before_after_answers(examples)
    assert fig.axes[0].get_xlabel() == "no ✗  >  yes ✓\ntruth: yes"
    assert fig.get_supxlabel() == "the first two" and len(points) == 2


def test_pick_by_hand():
    groups = np.array(["a", "a", "a", "b", "b", "b"])
    before = np.array([0, 0, 1, 0, 1, 1], bool)
    after = np.array([0, 1, 0, 0, 1, 0], bool)
    # in turn over the groups: 0, 3, 1, 4, 2, 5; changed 1, 2, 5; stayed wrong 0, 3
    assert pick(groups, before, after, changed=2) == [1, 2, 0, 3]
    assert pick(groups, before, after) == [1, 2, 5, 0, 3]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_pick_cannot_prefer_improvements(items):
    groups, before, after = (np.array(column) for column in zip(*items, strict=True))
    assert pick(groups, before, after) == pick(groups, after, before)


def test_examples_show_what_was_measured(tmp_path):
    """The redrawn pictures earn the very verdicts that the items hold, and the answers theirs."""
    backbone, best = load_backbone("tiny-ar"), {"temperature": 0.7, "guidance": 2.0}
    scores, items = measure(backbone, "dev", base=True, best=best, per_family=3, per_tag=2, samples=1)
    for name in ("base", "run"):
        (tmp_path / name).mkdir()
        content = {"step": 0, "split": "dev", "best_decoding": best, "scores": scores}
        (tmp_path / name / "metrics.json").write_text(json.dumps(content))
        np.savez_compressed(tmp_path / name / "items.npz", **items)
    base, run = (Measurement(name, tmp_path / name) for name in ("base", "run"))
    found = collect_examples(backbone, base, run, per_family=3, per_tag=2)
    assert len(found["drawing_prompt"]) > 0 and len(found["answer_question"]) > 0
    verdicts = [satisfies(scene, parse_caption(str(text)))
                for scene, text in zip(detect(found["drawing_base"]), found["drawing_prompt"], strict=True)]
    assert verdicts == found["drawing_base_ok"].tolist()
    assert np.array_equal(found["drawing_base"], found["drawing_evolved"])  # fresh adapters are the base
    assert not (found["answer_base"] == found["answer_truth"]).any()  # nothing changed: only wrong ones are shown
    assert str(found["drawing_rule"]).startswith("first 0 whose verdict changed")
    with pytest.raises(ValueError, match="per_family and per_tag"):
        collect_examples(backbone, base, run, per_family=4, per_tag=2)


def test_saved_figures_are_byte_identical_and_carry_their_provenance(tmp_path, measured, results):
    runs = measured.arms(data.BASE)["joint"]
    record = provenance(runs, results)
    curves = pd.concat([run.curve() for run in runs])
    made = [save_figure(*_stem(tmp_path / name, curves), record) for name in ("one", "two")]
    for first, second in zip(*made, strict=True):
        assert first.read_bytes().replace(b"one", b"two") == second.read_bytes().replace(b"one", b"two"), first.suffix
    pdf, png, csv, sidecar = made[0]
    assert embedded(png) == as_text(record) and read_sidecar(sidecar)[0] == record
    assert f"{data.BASE}-joint-s0".encode() in pdf.read_bytes()
    with Image.open(png) as image:
        assert round(image.info["dpi"][0]) == 200
    assert "joint" in csv.read_text()
    assert {"command", "run_ids", "seeds", "config_hashes", "inputs", "versions"} <= set(record)
    assert f"measured/runs/{data.BASE}-joint-s0/{NAME}" in record["inputs"]


def _stem(path, curves):
    fig, points = figures.learning_curve(curves, {"answers": 40.0})
    return fig, path, points


def test_the_callers_matplotlib_settings_do_not_reach_a_figure(tmp_path, measured):
    curves = measured.arms(data.BASE)["joint"][0].curve()
    plain, points = figures.learning_curve(curves, {})
    first = save_figure(plain, tmp_path / "a", points, {})[1].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):
        loud, points = figures.learning_curve(curves, {})
        second = save_figure(loud, tmp_path / "b", points, {})[1].read_bytes()
    assert first == second


def test_an_empty_panel_names_the_command(tmp_path):
    fig, points = empty_panel("no runs\nasgkit reproduce")
    assert fig.axes[0].texts[0].get_text() == "no runs\nasgkit reproduce"
    assert points["missing"].tolist() == ["no runs\nasgkit reproduce"]


def test_build_without_results_makes_empty_panels_only(tmp_path, monkeypatch):
    monkeypatch.setattr("asgkit.report.build.EXPECTED", ("tiny-ar-clean",))
    written = build_report(tmp_path / "results", tmp_path / "figures")
    assert len([p for p in written if p.suffix == ".png"]) == len(_FIGURES) + len(_BY_BASE) + len(_SHARED)
    assert all("asgkit" in p.read_text() for p in written if p.suffix == ".csv")
    assert not [p for p in build_report(tmp_path / "results", tmp_path / "few", empty=False) if p.suffix == ".png"]
    assert not (tmp_path / "few").exists()
