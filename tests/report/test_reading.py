"""Views for readers: flips counted by hand, and verdicts of a few claims that are those of the claims themselves."""


import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from paths import RESULTS
from report_data import BASE, make_results

from asgkit.report.claims.claims import assess_all, load_claims
from asgkit.report.measured import load_measured
from asgkit.report.reading import claim_lines, flips, line_ends, shown
from asgkit.stats.intervals import mcnemar

CLAIMS = RESULTS / "claims.yaml"


def test_flips_by_hand():
    groups = np.array(["a"] * 6 + ["b"] * 4)
    before = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0], bool)
    after = np.array([1, 1, 1, 1, 1, 0, 1, 1, 0, 0], bool)
    table = flips(groups, before, after).set_index("group")
    assert table.index.tolist() == ["all", "a", "b"]
    assert table["n"].tolist() == [10, 6, 4]
    assert table["fixed"].tolist() == [5, 5, 0] and table["broken"].tolist() == [1, 1, 0]
    assert table["net"].tolist() == pytest.approx([40, 100 * 4 / 6, 0])
    assert table["p"].tolist() == pytest.approx([14 / 64, 14 / 64, 1.0])  # 2 (C(6,0) + C(6,1)) / 2^6
    assert table["holm"].tolist()[1:] == pytest.approx([28 / 64, 1.0])  # two groups; all items are not one of them
    assert np.isnan(table.loc["all", "holm"])


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_groups_add_up_to_all_and_the_net_is_the_gain(items):
    groups, before, after = (np.array(column) for column in zip(*items, strict=True))
    table = flips(groups, before, after)
    parts = table.iloc[1:]
    for name in ("n", "fixed", "broken"):
        assert parts[name].sum() == table[name].iloc[0]
    assert table["net"].iloc[0] == pytest.approx(100 * (after.mean() - before.mean()))
    assert table["p"].iloc[0] == mcnemar(before, after)
    assert (parts["holm"] >= parts["p"] - 1e-12).all()


def test_flips_refuses_other_lengths():
    with pytest.raises(ValueError, match=r"\(Q,\)"):
        flips(np.array(["a"]), np.array([True]), np.array([True, False]))


def test_tables_are_rounded_and_say_what_is_not_there():
    frame = pd.DataFrame({"base": ["a", "b"], "gain": [1.26, np.nan], "seeds": [3, 5]})
    assert shown(frame, "Gains.").data.splitlines() == [
        "Gains.", "", "| base | gain | seeds |", "|---|---|---|", "| a | 1.3 | 3 |", "| b | - | 5 |"]
    assert "| 0.0 |" in shown(pd.DataFrame({"x": [-0.01]}), "No minus zero.").data
    assert "| a | 1.26 | 3 |" in shown(frame, "Gains.", 2).data


def test_line_ends_are_the_first_and_last_means():
    points = pd.DataFrame({"series": ["a", "a", "a", "b", "b"], "kind": ["seed", "mean", "mean", "mean", "mean"],
                           "step": [9, 2, 1, 1, 3], "value": [0.0, 5.0, 4.0, 7.0, 6.0]})
    assert line_ends(points, ["series"]).to_numpy().tolist() == [["a", 4.0, 5.0], ["b", 7.0, 6.0]]


def test_line_ends_of_an_empty_figure_name_the_command():
    points = pd.DataFrame({"missing": ["no run; asgkit batch long"]})
    assert line_ends(points, ["series"])["missing"].item() == "no run; asgkit batch long"


@pytest.fixture
def results(tmp_path):
    made = make_results(tmp_path / "results")
    claims = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))["claims"][:4]
    for claim in claims:
        claim["rule"]["bases"] = [BASE]
    (made / "claims.yaml").write_text(yaml.safe_dump({"claims": claims}), encoding="utf-8")
    return made


def test_claim_lines_are_the_comparisons_of_the_claims_asked_for(results):
    measured = load_measured(results)
    ids = ["entropy-finds-errors", "ste-when-votes-agree"]
    table = claim_lines(results, measured, ids)
    held = {claim.id: claim for claim in load_claims(results / "claims.yaml")}
    parts = [part for name in ids for part in assess_all([held[name]], measured)[0].parts]
    assert table["claim"].tolist() == ids
    assert table["verdict"].tolist() == [part.verdict for part in parts]
    assert table["n"].tolist() == [part.found.items for part in parts]
    assert claim_lines(results, measured, ids, [BASE]).equals(table)
    assert claim_lines(results, measured, ids, ["another"]).empty


def test_an_unknown_claim_is_named(results):
    with pytest.raises(KeyError, match="no-such-claim"):
        claim_lines(results, load_measured(results), ["no-such-claim"])
