"""Tables: every cell follows from items of named runs, or the table is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import report_data as data

from asgkit.report.measured import Untraceable, load_measured, unchanged
from asgkit.report.tables.tables import (
    METRICS,
    contrast_table,
    designed,
    forms_of,
    joint_table,
    premise_table,
    refuse_untraced,
    save_table,
    to_html,
    to_latex,
    to_markdown,
    wide,
)


@pytest.fixture
def results(tmp_path):
    return data.make_results(tmp_path / "results")


def test_joint_table_holds_every_arm_and_metric(results):
    table = joint_table(load_measured(results), resamples=100)
    assert list(dict.fromkeys(table["arm"])) == ["joint", "random", "oracle"]  # lr-* has its own figure
    assert set(table["metric"]) == set(METRICS) and len(table) == 3 * len(METRICS)
    assert set(table["source"]) == {"measured"}


def test_a_row_by_hand(results):
    table = joint_table(load_measured(results), resamples=100)
    row = table[(table["arm"] == "joint") & (table["metric"] == "drawings/tag/two")].iloc[0]
    two = slice(data.PER_TAG, 2 * data.PER_TAG)
    base = 100 * data.make_items(1)["drawings"][two].mean()
    evolved = 100 * np.mean([data.make_items(seed + 10, 0.2)["drawings"][two].mean() for seed in (0, 1)])
    assert (row.base_score, row.evolved) == (pytest.approx(base), pytest.approx(evolved))
    assert row.delta == pytest.approx(evolved - base)
    assert row.low <= row.delta <= row.high
    assert (row.seeds, row.n) == (2, data.PER_TAG)
    assert row.run_ids == f"{data.BASE}-joint-s0 {data.BASE}-joint-s1"


def test_one_seed_is_said_in_the_table(results):
    table = joint_table(load_measured(results), resamples=100)
    assert set(table[table["arm"] == "random"]["interval"]) == {"items only (one seed)"}
    shown = wide(table[table["arm"] == "random"])
    assert set(shown["seeds"]) == {"1 (items only)"}


def test_contrasts(results):
    table = contrast_table(load_measured(results), resamples=100).set_index(["contrast", "metric"])
    joint, random = (np.mean([data.make_items(s + 10, gain)["majority"].mean() for s in seeds])
                     for gain, seeds in ((0.2, (0, 1)), (0.0, (0,))))
    assert table.loc[("joint - random", "answers/majority"), "delta"] == pytest.approx(100 * (joint - random))
    best = data.make_items(1)["drawings_best"].mean()
    drawn = np.mean([data.make_items(s + 10, 0.2)["drawings"].mean() for s in (0, 1)])
    assert table.loc[("joint - base at best decoding", "drawings/overall"), "delta"] == pytest.approx(
        100 * (drawn - best))


def test_a_score_that_its_items_do_not_give_is_refused(results):
    path = results / "measured" / "runs" / f"{data.BASE}-joint-s0" / "metrics.json"
    content = json.loads(path.read_text())
    content["scores"]["answers/single"] += 5.0
    path.write_text(json.dumps(content))
    with pytest.raises(Untraceable, match="joint-s0: answers/single"):
        joint_table(load_measured(results), resamples=10)


def test_runs_on_other_items_are_refused(results):
    path = results / "measured" / "runs" / f"{data.BASE}-joint-s0" / "metrics.json"
    path.write_text(path.read_text().replace('"test"', '"dev"'))
    with pytest.raises(Untraceable, match="split"):
        joint_table(load_measured(results), resamples=10)


def test_a_run_named_against_its_configuration_is_refused(results):
    runs = results / "measured" / "runs"
    (runs / f"{data.BASE}-random-s0").rename(runs / f"{data.BASE}-random-s7")
    with pytest.raises(Untraceable, match="seed 0"):
        load_measured(results)


def test_unfinished_runs_are_named_not_dropped(results):
    (results / "measured" / "runs" / f"{data.BASE}-joint-s1" / "items.npz").unlink()
    measured = load_measured(results)
    assert measured.unfinished == [f"{data.BASE}-joint-s1"]
    assert [run.seed for run in measured.arms(data.BASE)["joint"]] == [0]


def test_hidden_folders_are_no_measurements(results):
    before = load_measured(results)
    run = results / "measured" / "runs" / f"{data.BASE}-random-s0"
    shutil.copytree(run, run.with_name(f".{run.name}.partial"))  # killed just before it was renamed
    (results / "measured" / "base" / f".{data.BASE}.partial").mkdir()  # and just after it was begun
    after = load_measured(results)
    assert [r.name for r in after.runs] == [r.name for r in before.runs]
    assert after.bases.keys() == before.bases.keys() and after.unfinished == []


def test_what_shows_the_registers_base_says_what_was_designed():
    assert [designed(pd.Series(names)) for names in (["tiny-ar-clean"], ["tiny-ar-clean", "tiny-ar-registers"])] == [
        "", " On registers the framings err independently by design: its voting gain is built in."]


@pytest.mark.parametrize(("column", "value"), [("source", "reported"), ("run_ids", "")])
def test_untraced_rows_are_refused(results, column, value):
    table = joint_table(load_measured(results), resamples=10)
    table.loc[3, column] = value
    with pytest.raises(Untraceable, match=r"1 row\(s\)"):
        refuse_untraced(table)


def test_wide_markdown_and_latex():
    table = pd.DataFrame([{"base": "b_1", "arm": arm, "metric": "m", "base_score": 50.0, "evolved": 50.0 + d,
                           "delta": d, "low": d - 1, "high": d + 1, "seeds": 5, "n": 10, "source": "measured",
                           "run_ids": "r"} for arm, d in (("random", -2.0), ("joint", 3.0))])
    shown = wide(table)
    assert list(shown.columns) == ["base", "metric", "before", "joint", "random", "seeds", "n"]
    assert shown.loc[0, "joint"] == "53.0 (+3.0 [+2.0, +4.0])"
    assert to_markdown(shown, "Caption.").splitlines()[4] == (
        "| b_1 | m | 50.0 | 53.0 (+3.0 [+2.0, +4.0]) | 48.0 (-2.0 [-3.0, -1.0]) | 5 | 10 |")
    latex = to_latex(shown, "50% & more")
    assert r"b\_1 & m & 50.0" in latex and r"\caption{50\% \& more}" in latex and r"\toprule" in latex


def test_wide_curve_files_are_read_like_long_ones(results):
    run = load_measured(results).arms(data.BASE)["joint"][0]
    long = run.curve().sort_values(["step", "side"]).reset_index(drop=True)
    named = long.assign(name=long["side"] + "/" + long["metric"])
    wide_rows = named.pivot(index="step", columns="name", values="value")
    wide_rows.to_csv(run.path / "curve.csv")
    again = run.curve().sort_values(["step", "side"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(long, again, check_dtype=False)


def test_premise_table_is_text_per_base():
    from asgkit.report.tables.premise import premise_rows

    result = {"answers": {"n": 2, "single": 50.0, "canonical": 50.0, "majority": 60.0, "sampled": 40.0,
                          "majority_minus_single": {"delta": 10.0, "se": 1.0}},
              "detectors": {"canonical": {"wrong": 0, "h_sc": None, "h_sc_sampled": None, "ste": None},
                            "majority": {"wrong": 1, "h_sc": 0.5, "h_sc_sampled": 0.5, "ste": 0.75},
                            "unanimous": {"n": 0, "majority_wrong_share": None, "majority_ste": None}},
              "drawn_images": {"n": 0, "majority": None}, "drawings": {"overall": 10.0},
              "reward": {"groups": 1, "used": 0, "pass_rate": 0.0, "spearman": {}, "best_of": None}}
    table = premise_table({"b": result})
    assert len(table) == len(premise_rows(result))
    assert table.set_index("condition").loc["majority - single", "value"] == "+10.0 ± 1.0"
    assert table.set_index("condition").loc["AUROC wrong canonical: STE", "value"] == "undefined"


def test_html_is_escaped_and_holds_every_cell(tmp_path):
    frame = pd.DataFrame({"a<b": ["1 & 2", "x" * 200]})
    text = to_html(frame, "T & T")
    assert "<caption>T &amp; T</caption>" in text and "<th>a&lt;b</th>" in text
    assert "<td>1 &amp; 2</td>" in text and f"<td>{'x' * 200}</td>" in text and text.count("<tr>") == 3


@pytest.mark.parametrize(("formats", "names"), [
    ("csv,md", ["t.csv", "t.md", "t.json"]), ("", ["t.csv", "t.md", "t.json"]),
    ("tex", ["t.csv", "t.md", "t.tex", "t.json"]),
    ("HTML, md,tex", ["t.csv", "t.md", "t.tex", "t.html", "t.json"]),
])
def test_a_table_is_kept_in_two_forms_and_others_are_made_on_demand(tmp_path, formats, names):
    frame = pd.DataFrame({"a": ["1"]})
    written = save_table(frame, frame, tmp_path / "t", "T", {"command": "c"}, forms_of(formats))
    assert [path.name for path in written] == names and all(path.is_file() for path in written)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert set(json.loads((tmp_path / "t.json").read_text())["outputs"]) == {"t.csv", "t.md"}


def test_an_unknown_form_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="unknown format 'pdf'; choose among csv, md, tex, html"):
        forms_of("csv,pdf")


# -- logs -----------------------------------------------------------------------------------------------------------
def test_a_few_fields_of_a_log_are_those_of_the_whole(results):
    run = load_measured(results).runs[0]
    whole, few = run.log(), run.log(["step", "generator/rewards", "no/such"])
    assert few["step"].tolist() == whole["step"].tolist() and few["no/such"].isna().all()
    held = whole["generator/rewards"].notna()
    assert few["generator/rewards"][held].tolist() == whole["generator/rewards"][held].tolist()
    assert few["generator/rewards"][~held].isna().all()


# -- exactness ------------------------------------------------------------------------------------------------------
def test_unchanged_looks_at_every_raw_result(results):
    base = load_measured(results).bases[data.BASE]
    items = dict(base.items)
    twin = replace(base, path=base.path)
    twin.__dict__["items"] = items
    assert unchanged(base, twin, "answers/single") and unchanged(base, twin, "drawings/overall")
    swapped = items["framings"].copy()
    column = next(i for i in range(swapped.shape[1]) if 0 < swapped[:, i].sum() < 7)
    swapped[:, column] = swapped[::-1, column] if (swapped[:, column] != swapped[::-1, column]).any() else np.roll(
        swapped[:, column], 1)
    twin.__dict__["items"] = items | {"framings": swapped}
    assert swapped.mean() == items["framings"].mean()  # the score does not move
    assert not unchanged(base, twin, "answers/single") and unchanged(base, twin, "answers/canonical")
    family = items["family"][column]
    assert not unchanged(base, twin, f"answers/single/{family}")
    other = next(f for f in items["family"] if f != family)
    assert unchanged(base, twin, f"answers/single/{other}")
