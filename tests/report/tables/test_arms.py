"""Tables of the experiments: references, matched seeds, exact side effects, premises, and twins of published tables."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import report_data as data
import yaml

from asgkit.config import resolve
from asgkit.grids.load import Grid, shipped_grids
from asgkit.report.measured import Untraceable, load_measured
from asgkit.report.tables import families
from asgkit.report.tables.arms import (
    ARM_METRICS,
    all_grids,
    grid_arms,
    grid_caption,
    grid_shown,
    grid_table,
    made_by,
)
from asgkit.report.tables.families import (
    CLEAR_GAIN,
    NOT_CLEAR,
    bearing,
    families_shown,
    families_table,
    mark,
    premise_note,
)
from asgkit.report.tables.gains import (
    APART,
    BOTH,
    EXACT,
    MATCHED,
    ONE,
    Gain,
    Gains,
    matched,
    per_seed_text,
)
from asgkit.report.tables.published import load_published
from asgkit.report.tables.published_tables import TWINS, twin
from asgkit.report.tables.twins import ROWS, twin_caption, twin_rows
from asgkit.stats.effects import crossed, crossed_between
from asgkit.stats.intervals import difference_between_arms, paired_bootstrap

PAPER = shipped_grids()["headline"].parents[2] / "results" / "paper"
DRAWN = ("drawings", "drawings_best")


def add_run(results, arm, seed, gain=0.3, keep=(), overrides=()):
    """A run whose side `keep` ("answers" or "drawings") is the base's own, with the resolved configuration."""
    base, items = data.make_items(1), data.make_items(seed + 20, gain)
    drawn = {key: (base if "drawings" in keep else items)[key] for key in DRAWN}
    asked = {key: (base if "answers" in keep else items)[key] for key in items if key not in DRAWN}
    path = results / "measured" / "runs" / f"{data.BASE}-{arm}-s{seed}"
    data.write_measurement(path, drawn | asked, 5)
    config = resolve("tiny", [*overrides, f"seed={seed}"]).model_dump(mode="json")
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def results(tmp_path):
    """The shared fixture and arms of both loops: u-only leaves drawings, g-only answers as the base has them."""
    results = data.make_results(tmp_path / "results")
    for seed in (0, 1):
        add_run(results, "u-only", seed, keep=("drawings",), overrides=["schedule.generation=0"])
        add_run(results, "g-only", seed, keep=("answers",), overrides=["schedule.understanding=0"])
    add_run(results, "u-x", 1, gain=0.1, keep=("drawings",), overrides=["schedule.generation=0", "solver.ste=false"])
    return results


GRID = Grid(title="T", question="why?", seeds=[0, 1], reference={"u-": "u-only", "": "joint"}, arms={
    "u-only": ["schedule.generation=0"], "g-only": ["schedule.understanding=0"],
    "u-x": ["schedule.generation=0", "solver.ste=false"], "u-y": ["solver.framings=3"]})


# -- gains ----------------------------------------------------------------------------------------------------------
def test_gains_are_those_of_the_plain_functions(results):
    measured = load_measured(results)
    base, arms, gains = measured.bases[data.BASE], measured.arms(data.BASE), Gains(load_measured(results), 500)
    before = base.values("answers/single")
    joint = np.stack([run.values("answers/single") for run in arms["joint"]])
    found = gains.over_base(base, arms["joint"], "answers/single")
    plain = paired_bootstrap(before, joint, resamples=500)
    assert (found.delta, found.low, found.high) == pytest.approx(
        (100 * plain.delta, 100 * plain.low, 100 * plain.high), abs=1e-3)
    assert found.interval == BOTH and found.per_seed == pytest.approx(100 * (joint - before).mean(1))
    oracle = np.stack([run.values("answers/single") for run in arms["oracle"]])
    apart = difference_between_arms(joint, oracle, resamples=500)
    assert gains.over_arm(base, arms["joint"], arms["oracle"], "answers/single").delta != pytest.approx(
        100 * apart.delta)  # the oracle's one seed is among the joint's: matched, so the other joint seed is left out


def test_seeds_are_matched_where_one_arm_has_all_of_the_others(results):
    measured = load_measured(results)
    base, arms, gains = measured.bases[data.BASE], measured.arms(data.BASE), Gains(measured, 300)
    assert [(a.seed, b.seed) for a, b in matched(arms["u-x"], arms["u-only"])] == [(1, 1)]
    found = gains.over_arm(base, arms["u-x"], arms["u-only"], "answers/majority")
    by_hand = arms["u-x"][0].values("answers/majority").mean() - arms["u-only"][1].values("answers/majority").mean()
    assert found.delta == pytest.approx(100 * by_hand) and found.seeds == (1,) and found.interval == ONE
    assert gains.over_arm(base, arms["u-only"], arms["joint"], "answers/majority").interval == MATCHED
    assert matched(arms["u-x"], arms["oracle"]) == []  # seeds 1 and 0


def test_arms_without_common_seeds_are_resampled_apart(results):
    for seed in (5, 6):
        add_run(results, "late", seed)
    measured = load_measured(results)
    base, arms = measured.bases[data.BASE], measured.arms(data.BASE)
    found = Gains(measured, 400).over_arm(base, arms["late"], arms["joint"], "drawings/overall")
    values = [np.stack([run.values("drawings/overall") for run in arms[arm]]) for arm in ("late", "joint")]
    plain = difference_between_arms(*values, resamples=400)
    assert (found.delta, found.low, found.high) == pytest.approx(
        (100 * plain.delta, 100 * plain.low, 100 * plain.high), abs=1e-3)
    assert found.interval == APART and found.seeds == (5, 6) and not found.exact


# -- one table per grid ---------------------------------------------------------------------------------------------
def test_side_effects_are_exact_or_said_not_to_be(results):
    measured = load_measured(results)
    plan = grid_arms(measured, GRID)
    table = grid_table("g", plan.arms, measured, Gains(measured, 200)).set_index(["arm", "against", "metric"])
    assert plan.strange == plan.unfinished == []
    for metric in ARM_METRICS:
        side = metric.split("/")[0].removesuffix("_best")
        still = {"u-only": "drawings", "g-only": "answers"}
        for arm, kept in still.items():
            row = table.loc[(arm, "base", metric)]
            assert (row["exact"] == EXACT) == (side == kept)
            assert ((row["delta"], row["low"], row["high"]) == (0, 0, 0)) == (side == kept)
    assert table.loc[("u-x", "u-only", "drawings/overall"), "exact"] == EXACT


def test_one_changed_answer_of_one_seed_is_not_exact(results):
    path = add_run(results, "g-z", 0, keep=("answers",), overrides=["schedule.understanding=0"])
    with np.load(path / "items.npz") as held:
        items = dict(held)
    items["framings"] = items["framings"].copy()
    items["framings"][0, 0] ^= True
    other = path.parent / f"{data.BASE}-g-z-s1"
    data.write_measurement(other, items, 5)
    (other / "config.yaml").write_text((path / "config.yaml").read_text().replace("seed: 0", "seed: 1"))
    measured = load_measured(results)
    found = Gains(measured, 50).over_base(measured.bases[data.BASE], measured.arms(data.BASE)["g-z"], "answers/single")
    assert not found.exact and found.text != EXACT


def test_a_grid_is_shown_with_references_commands_and_counts(results):
    (results / "measured" / "runs" / f"{data.BASE}-u-x-s0").mkdir()
    measured = load_measured(results)
    plan = grid_arms(measured, GRID)
    table = grid_table("mine", plan.arms, measured, Gains(measured, 100))
    shown = grid_shown("mine", plan.arms, table)
    assert shown[["arm", "minus"]].to_numpy().tolist() == [
        ["u-only", "base"], ["g-only", "base"], ["g-only", "joint"], ["u-x", "base"], ["u-x", "u-only"], ["u-y", "-"]]
    assert shown["answers/single"].iloc[-1] == "not measured: asgkit batch mine"
    assert shown["seeds"].tolist() == ["2", "2", "2", "1 of 2", "1 of 2", "-"]
    assert shown.loc[1, "answers/majority"] == EXACT and shown.loc[0, "n"] == "28 / 12"
    caption = grid_caption("mine", GRID, table, plan)
    compared = int((table["exact"] == "").sum())
    assert f" {compared} comparisons" in caption and "n = 1, 2" in caption and "T: why? " in caption
    assert f"left out: {data.BASE}-u-x-s0." in caption
    assert set(table["source"]) == {"measured"}


def test_a_reference_that_was_not_run_says_what_runs_it(results):
    measured = load_measured(results)
    grid = GRID.model_copy(update={"reference": "two-stage"})
    arms = grid_arms(measured, grid).arms
    shown = grid_shown("g", arms, grid_table("g", arms, measured, Gains(measured, 50))).set_index(["arm", "minus"])
    assert shown.loc[("u-x", "two-stage"), "answers/single"] == "two-stage not measured: asgkit batch coupling"
    assert made_by("joint") == "asgkit batch headline" and made_by("nothing") == "no grid has it"


def test_a_run_with_other_settings_than_its_grid_is_left_out_by_name(results):
    measured = load_measured(results)
    grid = GRID.model_copy(update={"shared": ["solver.framings=5"]})
    plan = grid_arms(measured, grid)
    assert f"{data.BASE}-u-x-s1" in plan.strange and all(not arm.runs for arm in plan.arms)
    table = grid_table("g", plan.arms, measured, Gains(measured, 50))
    assert f"Made with other settings, so left out: {', '.join(plan.strange)}" in grid_caption("g", grid, table, plan)


def test_an_untraced_row_is_refused(results):
    measured = load_measured(results)
    arms = grid_arms(measured, GRID).arms
    table = grid_table("g", arms, measured, Gains(measured, 50))
    table.loc[2, "run_ids"] = ""
    with pytest.raises(Untraceable, match=r"1 row\(s\)"):
        grid_shown("g", arms, table)


# -- references in grid files ---------------------------------------------------------------------------------------
def test_the_reference_of_an_arm_is_its_own_or_the_longest_start():
    arms = {"u-a": [], "u-only": [], "g-a": [], "own": {"reference": "u-a"}, "x": []}
    found = Grid(title="t", question="q", seeds=[0], arms=arms,
                 reference={"": "joint", "u-": "u-only", "g-": "g-only"})
    assert [found.reference_of(arm) for arm in arms] == ["u-only", None, "g-only", "u-a", "joint"]
    plain = Grid(title="t", question="q", seeds=[0], arms={"joint": []})
    assert plain.reference_of("joint") is None
    assert plain.model_copy(update={"reference": "joint"}).reference_of("joint") is None


def test_references_of_shipped_grids_are_arms_of_shipped_grids():
    grids = all_grids().values()
    named = {(arm, grid.reference_of(arm)) for grid in grids for arm in grid.all_arms()}
    assert {reference for _, reference in named} - {None} <= {arm for grid in grids for arm in grid.all_arms()}
    assert {("u-no-ste", "u-only"), ("g-no-cycle", "g-only"), ("r6-plain", "u-only"), ("frozen-judge", "joint"),
            ("judge-oracle", "g-only"), ("u-only", "joint")} <= named
    assert [arm for arm, reference in named if reference is None] == ["joint"]


# -- the headline ---------------------------------------------------------------------------------------------------
def test_families_hold_every_family_and_tag_with_the_controls_beside(results):
    measured = load_measured(results)
    gains = Gains(measured, 200)
    table = families_table(measured, gains, [data.BASE, "tiny-flow-clean"])
    assert len(table) == 4 + 2 * 7 + 2 * 7 and set(table["source"]) == {"measured"}
    row = table.set_index("metric").loc["drawings/tag/two"]
    base, arms = measured.bases[data.BASE], measured.arms(data.BASE)
    oracle = gains.over_base(base, arms["oracle"], "drawings/tag/two")
    assert (row["oracle_delta"], row["oracle_seeds"], row["seeds"]) == (oracle.delta, 1, 2)
    assert (table["mark"] == CLEAR_GAIN).equals(table["low"] > 0) and NOT_CLEAR in set(table["mark"])
    assert (table["premise"] == "").equals(table["low"] > 0)  # what is no clear gain says what bears on it
    shown = families_shown(table, [data.BASE, "tiny-flow-clean"])
    assert shown.iloc[-1][["base", "metric"]].tolist() == ["tiny-flow-clean", "not measured: asgkit batch headline"]
    assert "(seeds: 1)" in shown.loc[0, "oracle"]


def test_marks_by_hand():
    gain = lambda low, high, exact=False: Gain(0.5 * (low + high), low, high, 9, (0,), (0.0,), ONE, exact)
    assert [mark(gain(0.1, 1.0)), mark(gain(-2.0, -0.1)), mark(gain(-0.1, 0.1)), mark(gain(0.0, 0.0, True))] == [
        CLEAR_GAIN, "clear of 0: loss", NOT_CLEAR, EXACT]


def premise(**changes):
    """A premise of which everything holds but what is changed."""
    found = {"answers": {"n": 400, "single": 60.0, "majority_minus_single": {"delta": 9.0, "se": 1.0},
                         "majority_minus_canonical": {"delta": 3.0, "se": 1.0}},
             "detectors": {"majority": {"wrong": 100, "h_sc": 0.8, "ste": 0.8},
                           "unanimous": {"majority_ste": 0.8, "majority_wrong": 50, "n": 200}},
             "drawings": {"overall": 50.0}, "drawn_images": {"majority": 90.0, "n": 400}, "reader": {"noise 0": 100.0},
             "reward": {"spearman": {"reward": {"mean": 0.5, "standard_error": 0.1, "groups": 40}},
                        "best_of": {"mixed_groups": 60.0}, "used": 40}}
    return found | changes


def test_what_bears_on_a_gain_that_is_not_clear(results):
    folder = results / "measured" / "base" / data.BASE
    base = load_measured(results).bases[data.BASE]
    assert "premise not measured" in bearing(base, "drawings/overall", None)
    assert "backbone=tiny-ar base=clean --split test --out results/measured/base/tiny-ar-clean/premise.json" in (
        premise_note(load_measured(results), [data.BASE]))
    (folder / "premise.json").write_text(json.dumps(premise()))
    none, some = Gain(1, -1, 3, 9, (0,), (1.0,), ONE, False), Gain(2, 1, 3, 9, (0,), (2.0,), ONE, False)
    assert bearing(base, "drawings/overall", some) == "every condition holds; the oracle gains here"
    assert bearing(base, "drawings/overall", none).endswith("the oracle gains nothing clear here either")
    assert "the vote is itself the teacher" in bearing(base, "answers/majority/color", None)
    (folder / "premise.json").write_text(json.dumps(premise(drawn_images={"majority": 20.0, "n": 400})))
    assert "the Solver reads drawings: fails (20.0% right, 400 questions)" in bearing(base, "drawings/overall", None)
    assert "the Solver reads drawings" not in bearing(base, "answers/single", None)
    assert premise_note(load_measured(results), [data.BASE, "tiny-flow-clean"]) == ""


def test_the_vote_is_held_against_the_answers_of_the_same_questions(results):
    base = load_measured(results).bases[data.BASE]
    items = dict(base.items)
    items["majority"], items["canonical"] = np.ones_like(items["majority"]), np.zeros_like(items["canonical"])
    items["framings"] = np.ones_like(items["framings"])
    base.__dict__["items"] = items
    base.__dict__["metrics"] = base.metrics | {"scores": data.scores_of(items)}
    assert families._vote(base, "answers/canonical") == ""  # far better: that condition holds
    assert families._vote(base, "answers/single/color") == "the vote beats these answers: not shown (+0.0 ± 0.0 points)"
    assert families._room(base, "answers/single") == "room to move: fails (base 100.0%)"


# -- twins ----------------------------------------------------------------------------------------------------------
def test_every_row_of_a_twin_is_a_row_of_its_table_and_every_arm_is_in_a_grid(results):
    tables, measured = load_published(PAPER), load_measured(results)
    gains = Gains(measured, 50)
    for id in TWINS:
        found = twin_rows(id, measured, gains)
        shown = twin(tables, id, found.rows, found.missing)  # raises for a row that the table does not have
        assert set(shown["row"]) >= set(ROWS[id]) and "not printed" not in twin_caption(id, {id: "t"})
        assert all(command.startswith("asgkit batch ") for _, _, command in found.missing)
    found = twin_rows("5", measured, gains)
    five = twin(tables, "5", found.rows, found.missing)
    line = five[five["system"] == f"{data.BASE}: g-only"].iloc[0]
    assert line["answers/single"].endswith(f"({EXACT})") and line["source"] == "measured"
    absent = five[five["system"] == "tiny-flow-clean: u-only"].iloc[0]
    assert absent["source"] == "not measured: asgkit batch coupling" and absent["answers/single"] == "-"


def test_settings_of_the_sweeps_are_those_of_their_arms():
    """`PPS count N = 3` must be a run with three framings: the row's setting against the resolved configuration."""
    keys = {"LoRA rank r": "lora.rank", "PPS count N": "solver.framings",
            "Proposer candidates K": "proposer.candidates", "STE window W": "solver.ste_window",
            "Learning rate": "solver.learning_rate", "Weight decay": "optimiser.weight_decay",
            "LoRA dropout": "lora.dropout",
            "KL coefficient": "kl.coefficient", "Generations L": "generator.candidates",
            "Min. QA pairs": "generator.min_questions", "QA fidelity weight": "generator.w_fidelity",
            "Cycle weight": "generator.w_cycle", "Min. spec quality": "generator.min_quality"}
    configs = {run.arm: run.experiment.config() for grid in all_grids().values() for run in grid.runs()
               if run.backbone == "tiny-ar"}
    for id in ("S2", "S3", "S4"):
        for row, systems in ROWS[id].items():
            factor, setting = row.split(" = ")
            section, key = keys[factor].split(".")
            for _, arm in systems:
                assert getattr(getattr(configs[arm], section), key) == float(setting), (row, arm)


def test_tables_do_not_change_with_the_order_of_the_runs(results):
    measured = load_measured(results)
    turned = type(measured)(measured.bases, measured.runs[::-1], measured.unfinished)
    tables = [families_table(m, Gains(m, 100), [data.BASE]) for m in (measured, turned)]
    for first, second in pairwise(tables):
        pd.testing.assert_frame_equal(first, second, atol=1e-4)


def test_random_effects_give_the_same_differences_with_their_own_intervals(results):
    """The method is one parameter: differences, seeds and exactness stay, intervals are those of effects."""
    measured = load_measured(results)
    base, arms = measured.bases[data.BASE], measured.arms(data.BASE)
    plain, other = Gains(measured, 200), Gains(measured, 200, method="random effects")
    metric = "answers/single"
    joint = np.stack([run.values(metric) for run in arms["joint"]]) - base.values(metric)
    found, held = other.over_base(base, arms["joint"], metric), plain.over_base(base, arms["joint"], metric)
    assert replace(found, low=0, high=0) == replace(held, low=0, high=0)
    expected = crossed(joint).interval()
    assert (found.low, found.high) == (100 * expected.low, 100 * expected.high)
    assert other.p_value(base, arms["joint"], metric) == crossed(joint).p_value()
    oracle = np.stack([run.values(metric) for run in arms["oracle"]]) - base.values(metric)
    pairs = len(matched(arms["joint"], arms["oracle"]))
    between = crossed(joint[:pairs] - oracle[:pairs]) if pairs else crossed_between(joint, oracle)
    assert other.p_value(base, arms["joint"], metric, arms["oracle"]) == between.p_value()
    assert other.over_arm(base, arms["joint"], arms["oracle"], metric).high == 100 * between.interval().high


def test_values_of_few_seeds_are_printed_one_by_one(results):
    assert per_seed_text([1.04, -0.5]) == " (+1.0, -0.5)" and per_seed_text([1.0]) == per_seed_text([1.0] * 4) == ""
    assert per_seed_text([1.0] * 4, few=4) == " (+1.0, +1.0, +1.0, +1.0)"
    measured = load_measured(results)
    base, joint = measured.bases[data.BASE], measured.arms(data.BASE)["joint"]
    found = Gains(measured, 50).over_base(base, joint, "answers/single")
    assert found.with_seeds == found.text + per_seed_text(found.per_seed) and found.with_seeds.endswith(")")
    assert replace(found, exact=True).with_seeds == EXACT
