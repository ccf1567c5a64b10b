"""Verdicts on a premise: hand-made numbers on either side of each threshold, and too few to tell."""

import copy
import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from asgkit.report.premise import (
    STATES,
    auroc_error,
    judge_premise,
    print_verdicts,
    share_error,
    state_of,
)
from asgkit.stats.intervals import auroc

GOOD = {
    "answers": {"n": 400, "single": 70.0, "majority_minus_single": {"delta": 5.0, "se": 1.0},
                "majority_minus_canonical": {"delta": 3.0, "se": 1.0}},
    "detectors": {"majority": {"wrong": 100, "h_sc": 0.7, "ste": 0.8},
                  "unanimous": {"n": 200, "majority_wrong": 40, "majority_ste": 0.75}},
    "drawings": {"overall": 60.0}, "drawn_images": {"n": 200, "majority": 80.0}, "reader": {"noise 0": 99.8},
    "reward": {"used": 60, "spearman": {"reward": {"mean": 0.4, "standard_error": 0.1, "groups": 30}},
               "best_of": {"mixed_groups": 50.0}},
    "oracle_gain": {"runs": ["b-oracle-s0"], "gains": {
        "answers/single": {"delta": 4.0, "low": 2.0, "high": 6.0},
        "drawings/overall": {"delta": 9.0, "low": 5.0, "high": 13.0}}},
}
# condition: (path into the premise, a value that fails, a value that cannot be told)
SPOILED = {
    "room in answers": (("answers", "single"), 97.0, None),
    "the vote beats a framing": (("answers", "majority_minus_single", "delta"), -5.0, 1.0),
    "the vote beats the canonical framing": (("answers", "majority_minus_canonical", "delta"), -3.0, -1.0),
    "H_sc finds wrong majorities": (("detectors", "majority", "h_sc"), 0.3, 0.52),
    "STE finds wrong majorities": (("detectors", "majority", "ste"), 0.3, 0.48),
    "STE finds wrong unanimous votes": (("detectors", "unanimous", "majority_ste"), 0.3, 0.55),
    "room in drawings": (("drawings", "overall"), 2.0, None),
    "the truth can be read": (("reader", "noise 0"), 90.0, None),
    "the Solver reads drawings": (("drawn_images", "majority"), 30.0, 55.0),
    "R_g ranks drawings rightly": (("reward", "spearman", "reward", "mean"), -0.4, 0.1),
    "groups are mixed": (("reward", "best_of", "mixed_groups"), 0.0, 15.0),
}


def spoil(path, value):
    result = copy.deepcopy(GOOD)
    *parents, last = path
    place = result
    for key in parents:
        place = place[key]
    place[last] = value
    return result


def states(result):
    return {verdict.condition: verdict.state for verdict in judge_premise(result)}


def test_a_good_base_holds_everywhere_and_every_condition_is_spoiled_below():
    found = states(GOOD)
    assert set(found.values()) == {"holds"}
    assert set(found) == {*SPOILED, "an oracle reward improves answers", "an oracle reward improves drawings"}


@pytest.mark.parametrize("condition", SPOILED)
def test_one_bad_number_fails_its_condition_and_no_other(condition):
    path, bad, unclear = SPOILED[condition]
    found = states(spoil(path, bad))
    assert found.pop(condition) == "fails" and set(found.values()) == {"holds"}
    if unclear is not None:
        assert states(spoil(path, unclear))[condition] == "not shown"


@pytest.mark.parametrize(("low", "high", "state"), [(1.0, 2.0, "holds"), (-1.0, 2.0, "not shown"),
                                                    (-3.0, -1.0, "fails")])
def test_an_oracle_gain_is_judged_by_its_interval(low, high, state):
    result = copy.deepcopy(GOOD)
    result["oracle_gain"]["gains"]["answers/single"] |= {"low": low, "high": high}
    assert states(result)["an oracle reward improves answers"] == state


def test_without_oracle_runs_the_command_is_named_and_without_the_question_nothing_is_said():
    none = {"runs": [], "folder": None, "gains": {}, "command": "asgkit do this"}
    verdicts = judge_premise({**GOOD, "oracle_gain": none})[-2:]
    assert [(v.state, "asgkit do this" in v.implies) for v in verdicts] == [("not measured", True)] * 2
    assert len(judge_premise({k: v for k, v in GOOD.items() if k != "oracle_gain"})) == len(SPOILED)


def test_what_cannot_be_computed_is_undefined():
    bare = copy.deepcopy(GOOD)
    bare["detectors"]["majority"] = {"wrong": 0, "h_sc": None, "ste": None}
    bare["drawn_images"] = {"n": 0, "majority": None}
    bare["reward"] = {"used": 0, "spearman": {}, "best_of": None}
    found = states(bare)
    assert [name for name, state in found.items() if state == "undefined"] == [
        "H_sc finds wrong majorities", "STE finds wrong majorities", "the Solver reads drawings",
        "R_g ranks drawings rightly", "groups are mixed"]


def test_errors_by_hand():
    assert auroc_error(1, 1) == pytest.approx(0.5)  # sqrt(3 / 12)
    assert auroc_error(0, 5) is None and auroc_error(5, 0) is None
    assert share_error(50.0, 100) == pytest.approx(5.0) and share_error(100.0, 9) == 0.0
    assert share_error(None, 9) is None and share_error(50.0, 0) is None


def test_auroc_error_is_the_exact_spread_over_all_orders():
    areas = [auroc(order, np.array([True, True, False, False, False])) for order in itertools.permutations(range(5))]
    assert np.std(areas) == pytest.approx(auroc_error(2, 3))


@given(st.floats(-50, 50), st.floats(0, 10), st.floats(-50, 50))
def test_states_mirror_around_the_threshold_and_more_error_never_decides(value, error, threshold):
    state = state_of(value, error, threshold)
    mirror = {"holds": "fails", "fails": "holds", "not shown": "not shown"}
    assert state in STATES and state_of(-value, error, -threshold) == mirror[state]
    assert state_of(value, 2 * error + 1, threshold) in (state, "not shown")


def test_the_table_names_implications_only_where_a_condition_does_not_hold():
    console = Console(record=True, width=250, file=io.StringIO())
    verdicts = judge_premise(spoil(*SPOILED["R_g ranks drawings rightly"][:2]))
    print_verdicts(verdicts, console)
    text = console.export_text()
    assert all(v.condition in text and (v.implies in text) == (v.state != "holds") for v in verdicts)
