"""Published numbers: strict reading, missing cells, places, printed layouts and measured twins."""

import json
import math
import shutil
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest
from paths import RESULTS

from asgkit.report.measured import Untraceable
from asgkit.report.tables.published import PublishedError, files, load_elsewhere, load_published, published
from asgkit.report.tables.published_tables import (
    MISSING,
    TWIN_COLUMNS,
    UNMEASURED,
    caption,
    changes,
    layout,
    layouts,
    render,
    save_layouts,
    twin,
)
from asgkit.report.tables.tables import forms_of
from asgkit.runs.files import sha256

PAPER = RESULTS / "paper"


@pytest.fixture(scope="module")
def tables():
    return load_published(PAPER)


@pytest.fixture
def copy(tmp_path):
    """A copy of the published tables that a test may spoil."""
    return Path(shutil.copytree(PAPER, tmp_path / "paper"))


def spoil(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) >= 1
    (folder / name).write_text(text.replace(old, new, 1))


# -- reading --------------------------------------------------------------------------------------------------------
def test_a_cell_keeps_its_print_its_unit_and_its_place(tables):
    cell = tables["2"].rows["BAGEL"]["MME-P"]
    assert (cell.printed, cell.unit, cell.value) == ("1687.0", "points", Decimal("1687.0"))
    assert cell.place == "ASG, arXiv 2606.27376, Table 2, row BAGEL, column MME-P"
    assert tables["GvU-GenEval"].rows["GvU"]["Overall"].unit == "fraction"


def test_every_file_in_the_folder_is_read_and_described():
    assert sorted(path.name for path in PAPER.glob("*.csv")) == sorted(files())


def test_the_sweeps_file_is_three_tables(tables):
    factors = {id: list(dict.fromkeys(cells["factor"].printed for cells in tables[id].rows.values()))
               for id in ("S2", "S3", "S4")}
    assert [len(tables[id].rows) for id in factors] == [16, 12, 15]
    assert factors["S3"] == ["Learning rate", "Weight decay", "LoRA dropout", "KL coefficient"]


def test_an_empty_cell_is_missing_and_never_zero(tables):
    assert tables["S2"].rows["STE window W = 256"]["GenEval"].value is None
    assert "GenEval" not in tables["S2"].numbers("STE window W = 256")
    frame = published(PAPER)
    row = frame[(frame["table"] == "S2") & (frame["row"] == "STE window W = 256") & (frame["column"] == "GenEval")]
    assert row["printed"].item() == "" and math.isnan(row["value"].item())
    assert tables["GvU-GenEval++"].rows["SD XL"]["Multi-Count"].value == 0  # a printed zero is a number


def test_the_tidy_frame_is_reported_only_and_has_no_cell_twice():
    frame = published(PAPER)
    assert set(frame["source"]) == {"reported"} and not frame.duplicated(["table", "row", "column"]).any()
    assert frame["place"].is_unique
    numbers = frame[frame["unit"] != "text"]
    assert (numbers["value"].isna() == (numbers["printed"] == "")).all()
    assert numbers[numbers["table"] == "2"]["value"].sum() == pytest.approx(
        sum(float(c) for c in numbers[(numbers["table"] == "2") & (numbers["printed"] != "")]["printed"]))


@pytest.mark.parametrize(("name", "old", "new", "words"), [
    ("table3_geneval.csv", "Overall", "Over all", "columns must be"),
    ("table4_ablation.csv", "52.0,", "52.O,", "52.O"),
    ("table4_ablation.csv", "52.0,", "5e1,", "5e1"),
    ("table4_ablation.csv", "52.0,", "nan,", "nan"),
    ("table5_loop_coupling.csv", "52.0,", "52,0,", "cells expected"),
    ("table2_understanding.csv", "unified,Janus-Pro-7B,", "unified,Janus,", "repeated"),
    ("tableS2_S3_S4_sweeps.csv", "S2,LoRA", "S9,LoRA", "S9"),
    ("tableS2_S3_S4_sweeps.csv", "16,yes,", "16,Yes,", "Yes"),
    ("gvu_dpg.csv", ",gvu", ",asg", "source"),
])
def test_a_spoilt_file_is_refused_with_its_name(copy, name, old, new, words):
    spoil(copy, name, old, new)
    with pytest.raises(PublishedError, match=name) as error:
        load_published(copy)
    assert words in str(error.value)


def test_a_missing_file_says_where_to_get_it(copy):
    (copy / "gvu_dpg.csv").unlink()
    with pytest.raises(FileNotFoundError, match="gvu_dpg.csv"):
        load_published(copy)


def test_other_places_name_cells_that_exist(tables, copy):
    for found in load_elsewhere(PAPER):
        assert found.place and found.unit in ("percent", "fraction", "points")
        for column in found.column.split("+"):
            assert tables[found.table].rows[found.row][column].value is not None
    spoil(copy, "elsewhere.csv", "published", "guessed")
    with pytest.raises(PublishedError, match="line 2"):
        load_elsewhere(copy)


# -- layouts --------------------------------------------------------------------------------------------------------
def test_tables_2_and_3_print_gains_beside_our_scores_only(tables):
    two, three = layout(tables, "2"), layout(tables, "3")
    assert list(two.columns) == ["Group", "Method", "Baseline", "Params", *tables["2-deltas"].rows["BAGEL"]][:4] + [
        "MMMU", "MMBench", "TextVQA", "SEED", "RWQA", "MM-Vet", "MME-P", "MME-C"]
    held = two.set_index("Method")["MMMU"]
    assert held["BAGEL (Ours)"] == "58.8 (+3.5)" and held["BAGEL"] == "55.3" and held["VILA-U"] == MISSING
    held = three.set_index("Method")
    assert held.loc["BLIP3o-8B (Ours)", "Single obj."] == "99 (-1)"
    assert held.loc["BLIP3o-8B (Ours)", "Position"] == "90 (+0)"


def test_sweeps_mark_what_was_adopted_and_what_was_inferred(tables):
    settings = layout(tables, "S2")["Setting"].tolist()
    assert "16*" in settings and "9?" in settings and "256" in settings


def test_changes_against_a_row_and_against_the_adopted_setting_by_hand(tables):
    four = changes(tables, "4", "Full framework")
    assert "Full framework" not in four.index and len(four) == len(tables["4"].rows) - 1
    row = tables["4"].rows["w/o QA fidelity scoring"]
    by_hand = row["GenEval"].value - tables["4"].rows["Full framework"]["GenEval"].value
    assert four.loc["w/o QA fidelity scoring", "GenEval"] == float(by_hand)
    two = changes(tables, "S2")
    adopted = [name for name, cells in tables["S2"].rows.items() if cells["adopted"].printed == "yes"]
    assert not set(adopted) & set(two.index) and len(two) == len(tables["S2"].rows) - len(adopted)
    assert set(two.columns) == {name for name, cell in row.items() if cell.unit != "text"}
    blank = replace(tables["4"].rows["Full framework"]["MMMU"], printed="")
    held = replace(tables["4"], rows={**tables["4"].rows, "Full framework": {
        **tables["4"].rows["Full framework"], "MMMU": blank}})
    assert changes({"4": held}, "4", "Full framework")["MMMU"].isna().all()
    with pytest.raises(KeyError):
        changes(tables, "4", "nothing")


def test_every_table_has_a_layout_of_texts_and_a_caption(tables):
    found = layouts(tables)
    assert set(found) == {"1", "2", "3", "4", "5", "6", "S1", "S2", "S3", "S4", "S5", "GvU-GenEval", "GvU-DPG",
                          "GvU-GenEval++", "GvU-MMT", "UniCorn"}
    for id, frame in found.items():
        assert len(frame) == len(tables[id].rows)
        assert all(isinstance(cell, str) and cell for cell in frame.to_numpy().ravel())
        assert "reported" in caption(tables[id])


def test_layouts_render_as_markdown_booktabs_and_html(tables):
    frame = layout(tables, "S5")
    assert "| Base | - | 71.7 | 84 | 74.0 | 82 |" in render(frame, "T & T", "md")
    tex, html = render(frame, "T & T", "tex"), render(frame, "T & T", "html")
    assert r"\toprule" in tex and r"\caption{T \& T}" in tex and r"Base & - & 71.7 & 84 & 74.0 & 82 \\" in tex
    assert "<caption>T &amp; T</caption>" in html and html.count("<tr>") == 1 + len(frame)
    with pytest.raises(ValueError, match="md, tex or html"):
        render(frame, "T", "docx")


# -- twins ----------------------------------------------------------------------------------------------------------
def one(**changes) -> pd.DataFrame:
    row = {"table": "4", "row": "Full framework", "system": "tiny-ar-clean", "metric": "answers/majority",
           "value": 71.25, "delta": 2.0, "low": 0.75, "high": 3.25, "exact": "", "seeds": 5, "n": 2100,
           "run_ids": "a b", "source": "measured"}
    return pd.DataFrame([row | changes])


def test_a_twin_without_measurements_says_so_in_every_row(tables):
    frame = twin(tables, "4")
    assert frame["row"].tolist() == list(tables["4"].rows) and set(frame["source"]) == {UNMEASURED}
    assert set(twin(tables, "2")["row"]) == {f"{name}{end}" for name in ("BLIP3o-8B", "BAGEL", "VARGPT-v1.1")
                                             for end in ("", " (Ours)")}


def test_a_twin_shows_interval_seeds_and_items_and_no_reported_number(tables):
    base = one(row="BLIP3o-8B (base)", system="base", value=69.25, delta=math.nan, low=math.nan, high=math.nan, seeds=0)
    same = one(metric="drawings/overall", value=60.0, delta=0.0, low=0.0, high=0.0, exact="unchanged, exact")
    frame = twin(tables, "4", pd.concat([one(), same, base]),
                 [("w/o QA fidelity scoring", "tiny-ar-clean: g-no-fidelity", "asgkit batch components")])
    held = frame.set_index("row")
    line = held.loc["Full framework"]
    assert line["answers/majority"] == "71.2 (+2.0 [+0.8, +3.2])"
    assert line["drawings/overall"] == "60.0 (unchanged, exact)"
    assert (line["seeds"], line["n"], line["source"]) == ("5", "2100", "measured")
    assert held.loc["BLIP3o-8B (base)", "answers/majority"] == "69.2"
    assert (held.loc["BLIP3o-8B (base)", "seeds"], held.loc["BLIP3o-8B (base)", "drawings/overall"]) == (
        MISSING, UNMEASURED)
    absent = held.loc["w/o QA fidelity scoring"]
    assert absent["source"] == "not measured: asgkit batch components" and absent["answers/majority"] == MISSING
    assert set(TWIN_COLUMNS) == set(one().columns)


def test_own_settings_of_a_sweep_stand_in_order_among_the_printed_ones(tables):
    frame = twin(tables, "S2", one(table="S2", row="LoRA rank r = 2"), [("LoRA rank r = 6", "s", "c")])
    assert frame["row"].tolist()[:5] == [f"LoRA rank r = {r}" for r in (2, 4, 6, 8, 16)]
    with pytest.raises(ValueError, match="Luck = 3"):
        twin(tables, "S2", one(table="S2", row="Luck = 3"))
    with pytest.raises(ValueError, match="LoRA rank"):
        twin(tables, "4", one(row="LoRA rank r = 2"))


def test_saved_layouts_name_their_inputs_and_hashes(tables, tmp_path):
    written = save_layouts(tables, PAPER, tmp_path, {"command": "c", "versions": {}})
    assert len(written) == 2 * 16 and (tmp_path / "table_GvU-GenEvalpp.md").is_file()
    more = save_layouts(tables, PAPER, tmp_path / "more", {"command": "c", "versions": {}}, forms_of("tex,html"))
    assert len(more) == 4 * 16 and (tmp_path / "more/table_GvU-GenEvalpp.html").is_file()
    assert (tmp_path / "more/table_2.json").read_bytes() == (tmp_path / "table_2.json").read_bytes()
    record = json.loads((tmp_path / "table_2.json").read_text())
    assert record["source"] == "reported"
    assert record["inputs"] == {f"paper/{name}": sha256((PAPER / name).read_bytes())
                                for name in ("table2_printed_deltas.csv", "table2_understanding.csv")}
    assert record["outputs"]["table_2.md"] == sha256((tmp_path / "table_2.md").read_bytes())
    assert "| 58.8 (+3.5) |" in (tmp_path / "table_2.md").read_text()


@pytest.mark.parametrize(("frame", "error", "words"), [
    (one(source="reported"), Untraceable, "without measured runs"),
    (one(run_ids=""), Untraceable, "without measured runs"),
    (one(row="w/o luck"), ValueError, "w/o luck"),
    (one().drop(columns="seeds"), ValueError, "columns must be"),
    (pd.concat([one(), one(value=1.0)]), ValueError, "two numbers"),
])
def test_a_twin_refuses_what_cannot_be_traced_or_placed(tables, frame, error, words):
    with pytest.raises(error, match=words):
        twin(tables, "4", frame)


def test_tables_without_a_twin_are_refused(tables):
    with pytest.raises(ValueError, match="GvU-DPG"):
        twin(tables, "GvU-DPG")
