"""The audit: rounding bounds by hand, planted errors found, claims, power by hand, and the committed output."""

import json
import shutil
from dataclasses import replace
from fractions import Fraction as F
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import RESULTS
from typer.testing import CliRunner

from asgkit.cli.app import app
from asgkit.report.audit.audit import as_json, as_markdown, run_audit
from asgkit.report.audit.claims import CLAIMS, Comparison
from asgkit.report.audit.power import FACTOR, geneval_error, paired_error, power, share_error
from asgkit.report.tables.published import load_published
from asgkit.runs.files import write_json
from asgkit.stats.rounding import (
    CONFLICT,
    CONSISTENT,
    INCONSISTENT,
    WITHIN,
    Interval,
    above,
    bounds,
    judge,
    mean,
    same,
    show,
    worst,
)


@pytest.fixture(scope="module")
def audit():
    return run_audit(RESULTS / "paper")


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(RESULTS / "paper", tmp_path / "paper"))


def found(audit, kind, row, column):
    match = [f for f in audit.findings if (f.kind, f.row, f.column) == (kind, row, column)]
    assert len(match) == 1, match
    return match[0]


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert text.count(old) == 1, text.count(old)
    (folder / name).write_text(text.replace(old, new))


# -- rounding -------------------------------------------------------------------------------------------------------
def test_bounds_follow_the_printed_decimals():
    assert bounds("50.6") == Interval(F("50.55"), F("50.65"))
    assert bounds("87") == Interval(F("86.5"), F("87.5"))
    assert bounds("87.0") == Interval(F("86.95"), F("87.05"))
    assert bounds("-1") == Interval(F("-1.5"), F("-0.5"))
    assert bounds("0.404") == Interval(F("0.4035"), F("0.4045"))
    with pytest.raises(ValueError, match="no printed number"):
        bounds("")


def test_the_overall_of_vargpt_by_hand():
    parts = [bounds(text) for text in ("96", "53", "48", "83", "13", "21")]
    assert mean(parts) == Interval(F(311, 6), F(317, 6))  # 314/6 -+ 1/2
    assert judge(bounds("53"), mean(parts)) == WITHIN  # 52.33 rounds to 52, but 52.5 .. 52.83 rounds to 53
    assert judge(bounds("52"), mean(parts)) == CONSISTENT
    assert judge(bounds("54"), mean(parts)) == INCONSISTENT


def test_a_value_on_the_boundary_counts_for_both_prints():
    half = Interval(F("73.85"), F("73.85"))  # exactly between 73.8 and 73.9
    assert judge(bounds("73.9"), half) == judge(bounds("73.8"), half) == CONSISTENT
    assert judge(bounds("74.0"), half) == INCONSISTENT
    touching = Interval(F("73.65"), F("73.75"))  # its end is 73.8's lower end
    assert judge(bounds("73.8"), touching) == WITHIN
    assert judge(bounds("73.8"), Interval(F("73.65"), F("73.7499"))) == INCONSISTENT


def test_one_number_prints_alike_at_equal_decimals():
    assert same(bounds("83"), bounds("83")) == CONSISTENT
    assert same(bounds("83"), bounds("84")) == INCONSISTENT  # though 83.5 is an end of both
    assert same(bounds("0.82").times(100), bounds("82")) == CONSISTENT
    assert same(bounds("78.81"), bounds("79")) == CONSISTENT == same(bounds("79"), bounds("78.81"))
    assert same(bounds("78.81"), bounds("82")) == INCONSISTENT
    assert same(bounds("78.496"), bounds("79")) == INCONSISTENT
    assert same(bounds("78.4996"), bounds("78.5")) == CONSISTENT


def test_above_tells_a_print_that_could_hold_from_one_that_cannot():
    assert above(bounds("87"), bounds("86")) == CONSISTENT
    assert above(bounds("86"), bounds("86")) == WITHIN and above(bounds("86"), bounds("86"), ties=True) == CONSISTENT
    assert above(bounds("85"), bounds("86")) == INCONSISTENT  # at most equal, and only at 85.5
    assert above(bounds("85"), bounds("86"), ties=True) == WITHIN
    assert above(bounds("84"), bounds("86"), ties=True) == INCONSISTENT


def test_show_and_worst():
    assert [show(F(157, 3)), show(F(85)), show(F(-1, 2)), show(F(100))] == ["52.3333", "85", "-0.5", "100"]
    assert worst([CONSISTENT, INCONSISTENT, WITHIN]) == INCONSISTENT


@given(st.lists(st.decimals(min_value=0, max_value=100, places=4), min_size=1, max_size=8), st.integers(0, 2))
def test_true_numbers_that_are_rounded_never_contradict_their_mean(parts, places):
    true = sum((F(p) for p in parts), F()) / len(parts)
    printed = bounds(f"{round(true * 10**places)}e-{places}")
    rounded = [bounds(f"{round(F(p) * 10**places)}e-{places}") for p in parts]
    assert mean(rounded).holds(true) and printed.holds(true)
    assert judge(printed, mean(rounded)) != INCONSISTENT


# -- findings -------------------------------------------------------------------------------------------------------
def test_known_findings_of_the_published_tables(audit):
    vargpt = found(audit, "overall from parts", "VARGPT-v1.1", "Overall")
    assert (vargpt.printed, vargpt.recomputed, vargpt.bound, vargpt.verdict) == (
        "53", "52.3333", "[51.8333, 52.8333]", WITHIN)
    plus = [f for f in audit.findings if f.kind == "overall from parts" and f.file == "gvu_geneval_plus_plus.csv"
            and f.verdict != CONSISTENT]
    assert [(f.row, f.printed, f.recomputed, f.verdict) for f in plus] == [("GvU", "0.404", "0.4321", INCONSISTENT)]
    assert found(audit, "two sources", "BAGEL", "MME-P+MME-C").verdict == CONSISTENT  # 1687.0 + 701.0 = 2388
    assert found(audit, "average from parts", "Joint (ours)", "BLIP3o-8B und_avg").recomputed == "73.85"
    show_o = [f for f in audit.findings if f.kind == "two sources" and f.row == "Show-o"]
    assert len(show_o) == 7 and {f.verdict for f in show_o} == {CONFLICT}


def test_every_printed_gain_is_checked_and_agrees(audit):
    gains = [f for f in audit.findings if f.kind == "printed gain"]
    assert len(gains) == 3 * 8 + 3 * 7 and {f.verdict for f in gains} == {CONSISTENT}


@pytest.mark.parametrize(("printed", "verdict"), [("3.4", WITHIN), ("3.6", WITHIN), ("3.7", INCONSISTENT),
                                                  ("3.3", INCONSISTENT)])
def test_a_planted_gain_is_found(copy, printed, verdict):
    change(copy, "table2_printed_deltas.csv", "BAGEL,3.5,", f"BAGEL,{printed},")
    gain = found(run_audit(copy), "printed gain", "BAGEL", "MMMU")
    # 58.8 - 55.3 = 3.5 within [3.4, 3.6]; 3.4 reaches up to 3.45, 3.3 up to 3.35 only
    assert (gain.recomputed, gain.bound, gain.verdict) == ("3.5", "[3.4, 3.6]", verdict)


def test_a_planted_slip_in_a_repeated_row_is_found(copy, audit):
    before = {(f.kind, f.row, f.column) for f in audit.open()}
    change(copy, "table5_loop_coupling.csv", "Full framework,52.8,86.1", "Full framework,52.8,87.1")
    new = {(f.kind, f.row, f.column) for f in run_audit(copy).open()} - before
    assert ("repeated row", "Full framework", "MMBench") in new
    assert ("average from parts", "Joint (ours)", "BLIP3o-8B und_avg") in new  # the average over that row breaks too


def test_a_planted_setting_and_a_planted_system_size_are_found(copy):
    change(copy, "tableS1_hyperparameters.csv", "Generation,candidates L,3", "Generation,candidates L,4")
    change(copy, "table3_geneval.csv", "self-evolving,UniGame,Janus-Pro-7B,7B", "self-evolving,UniGame,Janus-Pro-7B,8B")
    held = {(f.kind, f.row): f.verdict for f in run_audit(copy).findings if f.column in ("setting", "params")}
    assert held["adopted setting", "Generations L = 3"] == INCONSISTENT
    assert held["repeated row", "UniGame"] == INCONSISTENT


def test_missing_cells_make_no_finding(copy, audit):
    assert not [f for f in audit.findings if f.row == "Chameleon" and f.kind == "overall from parts"]
    change(copy, "table2_printed_deltas.csv", "BAGEL,3.5,", "BAGEL,,")
    after = run_audit(copy)
    assert len(after.findings) == len(audit.findings) - 1
    change(copy, "table3_geneval.csv", "98,71,34,81,17,21,54,yes", "98,,34,81,17,21,54,yes")
    gone = [f for f in run_audit(copy).findings if (f.file, f.row) == ("table3_geneval.csv", "Emu3")
            and f.column in ("Two obj.", "Overall")]
    assert {f.kind for f in gone} == {"two sources"} and len(gone) == 1  # no average, one source less


def test_whole_items_by_hand(audit):
    held = {(f.file, f.column, f.printed): f for f in audit.findings if f.kind == "whole items"}
    missed = held["table4_ablation.csv", "MMMU", "52.5"]
    assert missed.verdict == INCONSISTENT
    assert missed.recomputed == "472/900 = 52.4444 or 473/900 = 52.5556"
    assert held["table2_understanding.csv", "MMMU", "55.3"].recomputed == "498/900 = 55.3333"
    twice = held["table2_understanding.csv", "RWQA", "70.9"]  # 70.8497 -> 70.85 -> 70.9
    assert twice.verdict == WITHIN and twice.recomputed == "542/765 = 70.8497" and "rounded twice" in twice.note
    plus = [f for f in audit.findings if f.kind == "whole items" and f.file == "gvu_geneval_plus_plus.csv"]
    assert len(plus) == 70 and {f.verdict for f in plus} == {CONSISTENT}


# -- claims ---------------------------------------------------------------------------------------------------------
def claim(words: str):
    return next(c for c in CLAIMS if words in c.words)


def test_claims_count_their_comparisons():
    tables = load_published(RESULTS / "paper")
    assert len(list(claim("all eight").comparisons(tables))) == 24
    kept = list(claim("leaves understanding at the base").comparisons(tables))
    assert len(kept) == 10 and {c.verdict() for c in kept} == {CONSISTENT}
    assert [str(c).split(": ")[1] for c in claim("leaves drawings").comparisons(tables)] == [
        "83 against 84", "83 against 84", "81 against 82"]
    sweeps = list(claim("best or tied").comparisons(tables))
    assert len(sweeps) == 29  # 43 settings, 13 adopted, one illegible GenEval


def test_a_claim_that_a_cell_breaks_is_found(copy):
    change(copy, "table4_ablation.csv", "70.5,68.2,1696.5,658.0,85", "70.5,68.9,1696.5,658.0,85")
    broken = [f for f in run_audit(copy).findings if f.kind == "claim in words" and "cycle" in f.relation]
    assert [f.verdict for f in broken] == [INCONSISTENT]
    assert broken[0].recomputed == "8 of 9 comparisons hold as printed" and "68.7 against 68.9" in broken[0].note


def test_a_gain_in_words_may_be_rounded():
    gain = Comparison(bounds("56").minus(bounds("53")), "gives", bounds("3"), "x")
    assert gain.verdict() == CONSISTENT and replace(gain, right=bounds("4")).verdict() == WITHIN
    assert replace(gain, right=bounds("5")).verdict() == INCONSISTENT


def test_every_claim_has_its_place():
    assert len({c.words for c in CLAIMS}) == len(CLAIMS) and all(c.place for c in CLAIMS)


# -- power ----------------------------------------------------------------------------------------------------------
def test_standard_errors_by_hand():
    assert share_error(0.5, 100) == pytest.approx(0.05) and share_error(1.0, 80) == 0
    assert paired_error(0.0, 1000) == pytest.approx(0.01)  # sqrt(.1 / 1000)
    assert paired_error(0.2, 100) == pytest.approx(0.04)  # 20 points need 20% that differ: sqrt((.2 - .04) / 100)
    assert pytest.approx(1.959964 + 0.841621, abs=1e-6) == FACTOR
    for wrong in ((1.2, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="at least one item"):
            share_error(*wrong)


def test_geneval_error_as_the_spec_gives_it():
    bagel = [0.99, 0.94, 0.81, 0.88, 0.64, 0.63]
    errors = [round(100 * geneval_error(bagel, rho), 2) for rho in (0.0, 0.3, 0.6, 1.0)]
    assert errors == [0.76, 1.05, 1.28, 1.53]  # spec: related 3.5
    with pytest.raises(ValueError):
        geneval_error(bagel[:5])


def test_power_as_the_spec_gives_it(audit):
    held = {(p.benchmark, p.system): p for p in audit.power}
    unpaired = {name: held[name, "BAGEL"].se_unpaired for name in ("MMMU", "RWQA", "MM-Vet", "MMBench", "TextVQA")}
    assert unpaired == {"MMMU": 2.33, "RWQA": 2.28, "MM-Vet": 4.45, "MMBench": 1.44, "TextVQA": 0.67}
    assert held["SEED", "BAGEL"].smallest_unpaired == pytest.approx(FACTOR * 0.47, abs=0.02)
    assert held["MMMU", "BAGEL"].reading == "needs a paired comparison"
    assert held["MM-Vet", "BAGEL"].reading == "smaller than either smallest difference"
    assert held["TextVQA", "BAGEL"].reading == "larger than either smallest difference"
    assert held["GenEval", "BAGEL"].se_run == 1.05
    assert not [p for p in audit.power if p.benchmark.startswith("MME") or "MMT" in p.benchmark]  # counts not sourced


def test_a_missing_score_leaves_its_gain_out(copy, audit):
    change(copy, "table2_understanding.csv", "BAGEL,BAGEL,7B active,55.3", "BAGEL,BAGEL,7B active,")
    change(copy, "table3_geneval.csv", "100,85,63,92,90,74,84", "100,,63,92,90,74,84")
    held = power(load_published(copy))
    assert [p for p in audit.power if p not in held] == [
        p for p in audit.power if (p.benchmark, p.system) in (("MMMU", "BAGEL"), ("GenEval", "BLIP3o-8B"))]


# -- output ---------------------------------------------------------------------------------------------------------
def test_counts_add_up(audit):
    counts = audit.counts()
    assert sum(counts["all"].values()) == len(audit.findings) > 400
    assert len(audit.open()) == len(audit.findings) - counts["all"][CONSISTENT]


def test_the_committed_audit_is_what_a_fresh_run_gives(audit, tmp_path):
    write_json(tmp_path / "audit.json", as_json(audit))
    assert (tmp_path / "audit.json").read_bytes() == (RESULTS / "audit.json").read_bytes()
    assert as_markdown(audit) == (RESULTS / "audit.md").read_text(encoding="utf-8")
    assert as_json(run_audit(RESULTS / "paper")) == as_json(audit)


def test_the_page_holds_every_finding_and_whole_rows(audit):
    page = as_markdown(audit)
    every = page[page.index("## Every finding"):]
    assert every.count("\n| ") == 1 + len(audit.findings)  # one head
    assert "5%, two-sided" in page and "80%" in page and "MMT-Bench" in page


def asgkit(*arguments: str):
    return CliRunner().invoke(app, ["audit", *arguments, "--paper", str(RESULTS / "paper")], env={"COLUMNS": "240"})


def test_the_command_prints_tables_or_json_and_ends_with_0(audit, tmp_path):
    shown = asgkit()
    assert shown.exit_code == 0 and "GvU" in shown.stdout and "conflict between sources" in shown.stdout
    printed = asgkit("--json", "--out", str(tmp_path / "a.json"))
    assert printed.exit_code == 0 and json.loads(printed.stdout) == as_json(audit)
    assert (tmp_path / "a.json").read_text() == printed.stdout


def test_the_command_refuses_what_it_cannot_do(tmp_path, copy):
    change(copy, "table4_ablation.csv", "51.0,84.5", "51.x,84.5")
    for arguments, words in ((["--out", "audit.txt"], ".json or .md"), (["--out", "no/where.md"], "no folder"),
                             (["--paper", str(tmp_path / "none")], "table1_methods.csv"),
                             (["--paper", str(copy)], "table4_ablation.csv")):
        refused = CliRunner().invoke(app, ["audit", *arguments])
        assert refused.exit_code == 2 and words in refused.stderr and refused.stderr.count("\n") == 1
