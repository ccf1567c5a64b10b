"""Claims: statistics by hand, verdicts by their definition, rules on made results, the claims file, and its output."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from paths import RESULTS
from report_data import BASE, make_items, make_results, scores_of
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from asgkit.cli.app import app
from asgkit.config import resolve
from asgkit.grids.load import load_grid, shipped_grids
from asgkit.report.claims.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NO_EFFECT,
    NOT_TESTED,
    SUPPORTED,
    TOY,
    VERDICTS,
    Claim,
    ClaimsError,
    as_json,
    as_markdown,
    assess,
    assess_all,
    combine,
    effect,
    judge,
    load_claims,
)
from asgkit.report.claims.rules import Arms, Found, Identical, Pair, difference_of_arms, metric_values
from asgkit.report.claims.series import (
    KIND_ERROR,
    Curve,
    Lead,
    TooShort,
    Trend,
    between_runs,
    cycles,
    family_of,
    lead,
    log_series,
    over_runs,
    thirds,
    tracking,
)
from asgkit.report.claims.signals import area, detection, mean_gap, premise_correlation, together
from asgkit.report.measured import Measured, Untraceable, load_measured
from asgkit.runs.packed_log import NAME, pack_log
from asgkit.shapes.text import FAMILIES, ask_about
from asgkit.shapes.world import sample_scene
from asgkit.stats.intervals import auroc, paired_bootstrap

FILE = RESULTS / "claims.yaml"
AGAIN = "make it again, in the commit that adds runs: asgkit claims --out results/claims.json --out results/claims.md"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made"))


@pytest.fixture
def own(tmp_path):
    """A copy that a test may change."""
    return make_results(tmp_path)


# -- statistics -----------------------------------------------------------------------------------------------------
def test_area_by_hand():
    scores, wrong = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    # pairs (wrong, right): 2>1, 2=2, 3>1, 3>2 -> 3.5 of 4
    weights = np.array([[1.0, 1, 1, 1], [2, 1, 1, 1], [1, 1, 1, 0]])
    # right item of score 1 twice: (2 + .5 + 2 + 1) / 6; without the item of score 3: 1.5 / 2
    np.testing.assert_allclose(area(scores, wrong, weights), [3.5 / 4, 5.5 / 6, 1.5 / 2])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 3)), min_size=4, max_size=30))
def test_area_is_the_auroc_of_replicated_items(rows):
    scores, wrong, times = (np.array(column) for column in zip(*rows, strict=True))
    if wrong.all() or not wrong.any():
        return
    expected = auroc(np.repeat(scores, times), np.repeat(wrong, times))
    assert area(scores.astype(float), wrong, times[None].astype(float))[0] == pytest.approx(expected)


def test_mean_gap_by_hand():
    values, wrong = np.array([1.0, 2.0, 4.0]), np.array([True, False, True])
    np.testing.assert_allclose(mean_gap(values, wrong, np.array([[1.0, 1, 1], [3, 1, 1]])), [0.5, 7 / 4 - 2])


def test_two_signals_tell_more_together_only_where_both_tell_something():
    rng = np.random.default_rng(3)
    wrong = rng.random(1500) < 0.3
    one, two, noise = wrong + rng.normal(size=1500), wrong + rng.normal(size=1500), rng.normal(size=1500)
    flat = np.ones((1, 1500))
    both, alone = area(together(one, two, wrong), wrong, flat)[0], area(one, wrong, flat)[0]
    assert both > alone + 0.05
    assert abs(area(together(one, noise, wrong), wrong, flat)[0] - alone) < 0.02


def test_interval_over_runs_by_hand():
    mean, low, high = over_runs([1.0, 2.0, 3.0])
    assert mean == 2 and high - mean == pytest.approx(4.302653 / 3**0.5) and mean - low == pytest.approx(high - mean)
    assert over_runs([4.0]) == (4.0, None, None)
    assert between_runs([4.0], [1.0, 2.0]) == (2.5, None, None) and between_runs([2, 2], [1, 1]) == (1, 1, 1)


def test_difference_between_runs_is_welchs():
    a, b = [1.0, 2.0, 4.0], [0.5, 0.1, 0.2, 0.6]
    expected = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert between_runs(a, b, 0.9)[1:] == pytest.approx((expected.low, expected.high))


def test_lead_knows_who_comes_first():
    rng = np.random.default_rng(0)
    u = rng.normal(size=60)
    later = np.concatenate([[0.0], u[:-1]])  # g_{c+1} = u_c
    assert lead(u, later) > 0.25 and lead(later[1:], u[1:]) < -0.2
    time = np.linspace(0, 1, 60)
    assert lead(u, later) == pytest.approx(lead(u + 5 * time, later - 3 * time**2))  # a parabola is no lead
    assert lead(np.ones(30), rng.normal(size=30)) == 0
    with pytest.raises(ValueError, match="at least 9 cycles"):
        lead([1, 2, 3], [1, 2, 3])


def test_thirds_and_tracking_by_hand():
    assert thirds({3: 5.0, 1: 1.0, 2: 3.0, 4: 9.0}) == (1.0, 4.0, 9.0)
    assert thirds(dict(enumerate(range(7)))) == (0.5, 3.0, 5.5)
    with pytest.raises(ValueError, match="3 steps"):
        thirds({1: 0.0, 2: 0.0})
    inner = {1: 0.1, 2: 0.3, 3: 0.5, 4: 0.7, 5: 0.4, 6: 0.4}  # means .2, .6, .4 of the steps to 2, 4, 6
    assert tracking(inner, {0: 50.0, 2: 51.0, 4: 60.0, 6: 55.0}) == pytest.approx(1.0)
    assert tracking(inner, {0: 50.0, 2: 60.0, 4: 55.0, 6: 51.0}) == pytest.approx(-0.5)  # ranks 1,3,2 and 3,2,1
    assert tracking(inner, {0: 50.0, 2: 60.0, 4: 55.0, 6: 59.0}, changes=True) == pytest.approx(-1.0)


def test_every_question_of_the_world_has_its_family():
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        scene = sample_scene(rng, "dev")
        for family in FAMILIES:
            if made := ask_about(rng, scene, family):
                assert family_of(made.question) == family
                seen.add(family)
    assert seen == set(FAMILIES) and family_of("what 5 ?") is None


# -- verdicts -------------------------------------------------------------------------------------------------------
def arms(*pairs: Pair, **more) -> Arms:
    return Arms(kind="arms", bases=[BASE], compare=list(pairs), **more)


def found(low: float | None, high: float | None, seeds: int = 3) -> Found:
    middle = 1.0 if low is None or high is None else (low + high) / 2
    return Found("x", "points", middle, low, high, 10, seeds, ("tiny-ar-clean",))


@pytest.mark.parametrize(("low", "high", "side", "bar", "verdict"), [
    (0.1, 2.0, "above", 0.0, SUPPORTED), (-2.0, -0.1, "above", 0.0, CONTRADICTED),
    (-1.0, 2.0, "above", 0.0, INCONCLUSIVE), (0.1, 2.0, "below", 0.0, CONTRADICTED),
    (-2.0, -0.1, "below", 0.0, SUPPORTED), (-0.9, 0.2, "above", -1.0, SUPPORTED),
    (0.0, 1.0, "above", 0.0, INCONCLUSIVE), (None, None, "above", 0.0, INCONCLUSIVE)])
def test_a_verdict_is_the_side_of_the_whole_interval(low, high, side, bar, verdict):
    rule = arms(Pair(first="joint", metric="answers/single"), side=side, bar=bar)
    assert judge(found(low, high), rule, 3)[0] == verdict


def test_too_few_seeds_and_missing_parts_are_never_a_verdict():
    rule = arms(Pair(first="joint", metric="answers/single"))
    assert judge(found(0.1, 2.0, seeds=2), rule, 3) == (INCONCLUSIVE, "2 of 3 seeds")
    assert judge(Found("x", "points", note="no run of joint"), rule, 3) == (NOT_TESTED, "no run of joint")
    assert judge(Found("x", "AUROC", items=40, note="2 wrong"), rule, 0) == (INCONCLUSIVE, "2 wrong")
    assert judge(found(-0.4, 0.9), rule, 3) == (INCONCLUSIVE, "less than 1 point either way")
    assert judge(replace(found(-0.4, 0.9), unit="nats"), rule, 3) == (INCONCLUSIVE, "")


def test_a_claim_holds_where_all_its_parts_do():
    assert combine([SUPPORTED, SUPPORTED]) == SUPPORTED and combine([NOT_TESTED] * 3) == NOT_TESTED
    assert combine([SUPPORTED, NOT_TESTED]) == combine([SUPPORTED, INCONCLUSIVE]) == INCONCLUSIVE
    assert combine([SUPPORTED, CONTRADICTED, NOT_TESTED]) == CONTRADICTED
    assert combine([NO_EFFECT] * 2) == NO_EFFECT and combine([SUPPORTED, NO_EFFECT]) == INCONCLUSIVE


def claim(rule, seeds: int = 0, **more) -> Claim:
    return Claim(id="x", place="Table 9", statement="s", measured="m", rule=rule, seeds=seeds,
                 commands=["asgkit batch x"], **more)


@pytest.mark.parametrize(("wide", "narrow", "more", "verdict"), [
    ((-1.1, 0.9), (-0.9, 0.7), {"margin": 1.0}, NO_EFFECT), ((-1.1, 1.1), (-1.0, 0.9), {"margin": 1.0}, INCONCLUSIVE),
    ((0.1, 0.5), (0.2, 0.4), {"margin": 1.0}, SUPPORTED), ((-0.5, -0.1), (-0.4, -0.2), {"margin": 1.0}, CONTRADICTED),
    ((-1.1, 0.9), (-0.9, 0.7), {}, INCONCLUSIVE), ((0.1, 0.9), (0.2, 0.7), {"side": "within", "bar": 1.0}, SUPPORTED),
    ((-1.1, 0.9), (-0.9, 0.7), {"side": "within", "bar": 1.0}, SUPPORTED),
    ((0.5, 1.5), (0.6, 1.4), {"side": "within", "bar": 1.0}, INCONCLUSIVE),
    ((1.1, 2.0), (1.2, 1.9), {"side": "within", "bar": 1.0}, CONTRADICTED),
    ((-2.0, -1.1), (-1.9, -1.2), {"side": "within", "bar": 1.0}, CONTRADICTED)])
def test_no_effect_is_two_one_sided_tests_within_the_margin(wide, narrow, more, verdict):
    rule = arms(Pair(first="joint", metric="answers/single"), **more)
    got, note = judge(found(*wide), rule, 3, found(*narrow))
    shown = verdict == NO_EFFECT or (verdict == SUPPORTED and rule.side == "within")
    assert got == verdict and ("within 1 points either way" in note) == shown


def test_equality_is_asked_at_ninety_percent_and_never_of_too_few_seeds(results, monkeypatch):
    z, asked = scipy_stats.norm.ppf, []

    def find(self, measured, level):
        asked.append(level)
        return [replace(found(-0.55 * z(0.5 + level / 2), 0.55 * z(0.5 + level / 2)), effect=0.0)]

    monkeypatch.setattr(Arms, "find", find)
    pair, measured = Pair(first="joint", metric="answers/single"), load_measured(results)
    judged = assess(claim(arms(pair, margin=1.0), 3), measured)  # 1.08 at 95%, .90 at 90%
    assert judged.verdict == NO_EFFECT and asked == [0.95, 0.90] and judged.parts[0].found.high > 1
    assert assess(claim(arms(pair, margin=1.0), 4), measured).verdict == INCONCLUSIVE
    assert assess(claim(arms(pair), 3), measured).verdict == INCONCLUSIVE and asked[4:] == [0.95]


@pytest.mark.parametrize("wrong", [{"margin": 1.0, "bar": -1.0}, {"margin": 1.0, "side": "within", "bar": 1.0},
                                   {"side": "within"}, {"margin": 0.0}])
def test_a_margin_or_width_that_means_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="margin|within needs"):
        arms(Pair(first="joint", metric="answers/single"), **wrong)


def test_what_the_paper_says_of_large_models_is_a_toy_on_tiny_ones(results, monkeypatch):
    measured, rule = load_measured(results), arms(Pair(first="joint", metric="answers/single"))
    for names, low, verdict in ((("tiny-ar-clean",), 0.1, TOY), (("bagel-clean",), 0.1, SUPPORTED),
                                (("tiny-ar-clean", "bagel-clean"), 0.1, SUPPORTED),
                                (("tiny-ar-clean",), -9, INCONCLUSIVE)):
        monkeypatch.setattr(Arms, "find", lambda self, measured, level, names=names, low=low: [
            replace(found(low, 2.0), used=names)])
        assert assess(claim(rule, about="large"), measured).verdict == verdict
    monkeypatch.setattr(Arms, "find", lambda self, measured, level: [found(0.1, 2.0)])
    assert assess(claim(rule), measured).verdict == SUPPORTED


def test_new_verdicts_are_shown_where_a_claim_asks_for_them_alone(results):
    measured, pair = load_measured(results), Pair(first="joint", metric="answers/single")
    plain, *others = (as_json(assess_all([held], measured), measured) for held in (
        claim(arms(pair)), claim(arms(pair), about="large"), claim(arms(pair, margin=1.0)),
        claim(arms(pair, side="within", bar=2.0))))
    assert list(plain["counts"]) == [SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED]
    assert "margin" not in plain["claims"][0]["rule"] and "about" not in plain["claims"][0]
    large, margin, within = others
    assert TOY in large["counts"] and large["claims"][0]["about"] == "large" and NO_EFFECT not in large["verdicts"]
    assert NO_EFFECT in margin["counts"] and margin["claims"][0]["rule"]["margin"] == 1.0
    assert plain["claims"][0].keys() <= large["claims"][0].keys()
    assert "**toy**: supported" in as_markdown(large) and "toy" not in as_markdown(plain)
    assert "above 0 (no effect: the 90% interval lies within 1 either way)" in as_markdown(margin)
    assert "Holds where the 90% interval lies within 2 either way" in as_markdown(within)


def test_one_contradiction_of_many_must_survive_a_wider_interval(results, monkeypatch):
    """At 95% the first of two parts lies below 0; at 97.5% only a clear one still does."""
    rule, z = arms(Pair(first="joint", metric="answers/single")), scipy_stats.norm.ppf
    parts = lambda middle: lambda self, measured, level: [
        replace(found(m - z(0.5 + level / 2), m + z(0.5 + level / 2)), effect=m) for m in (middle, 4.0)]
    for middle, verdict in ((-2.1, INCONCLUSIVE), (-2.4, CONTRADICTED)):
        monkeypatch.setattr(Arms, "find", parts(middle))
        judged = assess(claim(rule), load_measured(results))
        assert judged.verdict == verdict and judged.parts[0].verdict == CONTRADICTED
        assert ("no contradiction is left" in judged.reason) == (verdict == INCONCLUSIVE)


# -- rules on made results ------------------------------------------------------------------------------------------
def test_arms_are_the_paired_bootstrap_in_points(results):
    measured = load_measured(results)
    got = difference_of_arms(measured, BASE, Pair(first="joint", metric="answers/single"))
    runs = measured.arms(BASE)["joint"]
    expected = paired_bootstrap(measured.bases[BASE].values("answers/single"),
                                np.stack([run.values("answers/single") for run in runs]))
    assert (got.effect, got.low, got.high) == pytest.approx(
        (100 * expected.delta, 100 * expected.low, 100 * expected.high))
    assert (got.items, got.seeds, got.used) == (28, 2, (BASE, f"{BASE}-joint-s0", f"{BASE}-joint-s1"))
    swapped = difference_of_arms(measured, BASE, Pair(first="random", second="joint", metric="answers/single"))
    straight = difference_of_arms(measured, BASE, Pair(first="joint", second="random", metric="answers/single"))
    assert swapped.effect == pytest.approx(-straight.effect) and straight.seeds == 1
    best = difference_of_arms(measured, BASE, Pair(first="joint", metric="drawings/overall",
                                                   against="drawings_best/overall"))
    assert best.effect == pytest.approx(100 * (np.mean([run.items["drawings"].mean() for run in runs])
                                               - measured.bases[BASE].items["drawings_best"].mean()))


def test_what_is_not_there_is_named(results):
    measured = load_measured(results)
    pair = Pair(first="two-stage", second="joint", metric="answers/single")
    assert difference_of_arms(measured, BASE, pair).note == "no run of two-stage"
    assert difference_of_arms(measured, "tiny-flow-clean", pair).note == "no measurement of the base tiny-flow-clean"
    judged = assess(claim(arms(pair), 3), measured)
    assert (judged.verdict, judged.scope) == (NOT_TESTED, "")


def test_composition_by_hand(results):
    base = load_measured(results).bases[BASE]
    held, tag = base.items["drawings"].mean(1), base.items["tag"]
    heavy = np.isin(tag, ["two", "counting", "position", "attribute"])
    assert metric_values(base, "drawings/composition").mean() == pytest.approx(held[heavy].mean() - held[~heavy].mean())


def test_identical_is_exact(own):
    rule = Identical(kind="identical", arm="u-only", what="drawings", bases=[BASE])
    run = own / "measured" / "runs" / f"{BASE}-u-only-s0"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"backbone": "tiny-ar", "base": "clean", "seed": 0}))
    items = make_items(1) | {"canonical": make_items(9)["canonical"]}  # answers may differ
    for flips, verdict in ((0, SUPPORTED), (1, CONTRADICTED)):
        items["drawings_best"][0, :flips] ^= True
        np.savez_compressed(run / "items.npz", **items)
        (run / "metrics.json").write_text(json.dumps({
            "step": 1, "split": "test", "best_decoding": {"temperature": 0.7, "guidance": 2.0},
            "scores": scores_of(items)}))
        judged = assess(claim(rule, 1), load_measured(own))
        assert (judged.verdict, judged.parts[0].found.effect) == (verdict, flips)
    assert judged.parts[0].found.items == 48 and judged.scope == "on the tiny models"
    assert assess(claim(rule, 2), load_measured(own)).verdict == INCONCLUSIVE


def test_detection_needs_enough_of_both(results):
    measured = load_measured(results)
    score = lambda ste, h_sc, wrong, weights: area(ste, wrong, weights)
    few = detection(measured, BASE, "STE", "AUROC", score, share=1.0)
    assert few.effect is None and few.items == 14 and "at least 10 of each" in few.note
    every = detection(measured, BASE, "STE", "AUROC", score)
    items = measured.bases[BASE].items
    assert every.effect == pytest.approx(auroc(items["ste"], ~items["majority"]))
    assert every.low < every.effect < every.high


def test_premise_correlation_by_hand(own):
    path = own / "measured" / "base" / BASE / "premise.json"
    held = {"reward": {"mean": 0.3, "standard_error": 0.1, "groups": 30}}
    path.write_text(json.dumps({"reward": {"spearman": held}}))
    got = premise_correlation(load_measured(own), BASE, "reward")
    assert (got.effect, got.items) == (0.3, 30) and (got.low, got.high) == pytest.approx((0.104004, 0.495996), abs=1e-5)
    with pytest.raises(Untraceable, match="it has reward"):
        premise_correlation(load_measured(own), BASE, "fidelity")


def write_log(run: Path, records: list[dict]) -> None:
    pack_log(records, run / NAME)


def test_series_of_a_log_by_hand(own):
    base, run = load_measured(own).bases[BASE], load_measured(own).runs[0]
    write_log(run.path, [{"step": 1, "question": "what digit is shown ?", "a": [1, None, 3], "b": None, "c": True},
                         {"step": 1, "question": "how many objects are there ?", "a": 4, "b": 2.0},
                         {"step": 3, "question": "is there a red cross ?", "a": 5}])
    assert log_series(run, "a", base) == {1: 3.0, 3: 5.0} and log_series(run, "b", base) == {1: 2.0}
    single, family = base.items["framings"].mean(0), base.items["family"]
    wrong = {name: 100 * (1 - single[family == name].mean()) for name in FAMILIES}
    assert log_series(run, KIND_ERROR, base) == pytest.approx(
        {1: (wrong["reading"] + wrong["count"]) / 2, 3: wrong["existence"]})
    with pytest.raises(Untraceable, match="no numbers in d"):
        log_series(run, "d", base)


def test_cycles_by_hand_and_leads_of_short_runs(own):
    runs = load_measured(own).arms(BASE)["joint"]
    timed = replace(runs[0], config={"schedule": {"understanding": 1, "generation": 1, "steps": 19}})
    series = {2 * c + 1: float(c) for c in range(9)}
    assert cycles(timed, series | {18: 4.0}) == [0, 1, 2, 3, 4, 5, 6, 7, 6]
    with pytest.raises(TooShort, match="cycle 2 of 9"):
        cycles(timed, {s: v for s, v in series.items() if s != 3})
    for run in runs:
        write_log(run.path, [{"step": 1, "a": 1.0, "b": 2.0}])
        held = yaml.safe_load((run.path / "config.yaml").read_text())
        held["schedule"] = {"understanding": 1, "generation": 1, "steps": 4}
        (run.path / "config.yaml").write_text(yaml.safe_dump(held))
    (short,) = Lead(kind="lead", arm="joint", first="a", second=["b"], bases=[BASE]).find(load_measured(own), 0.95)
    assert short.effect is None and "2 cycles, fewer than 9" in short.note


def test_a_curve_that_lacks_the_step_is_named(results):
    measured = load_measured(results)
    rule = lambda since: Curve(kind="curve", arm="joint", metric="answers/single", since=since, bases=[BASE])
    (gained,), (none,) = (list(rule(step).find(measured, 0.95)) for step in (0, 3))
    change = [run.metrics["scores"]["answers/single"] - measured.bases[BASE].metrics["scores"]["answers/single"]
              for run in measured.arms(BASE)["joint"]]
    assert gained.effect == pytest.approx(np.mean(change)) and gained.seeds == 2
    assert none.effect is None and f"no curve with step 3 of {BASE}-joint-s0" in none.note


def test_a_trend_is_read_off_runs_and_against_a_control(own):
    runs = {run.name: run for run in load_measured(own).runs}
    for name, slope in ((f"{BASE}-joint-s0", 1.0), (f"{BASE}-joint-s1", 1.2), (f"{BASE}-random-s0", 0.1)):
        write_log(runs[name].path, [{"step": s, "a": slope * s} for s in range(1, 10)])
    rule = Trend(kind="trend", arm="joint", against=["", "random"], fields=["a"], unit="nats", bases=[BASE])
    rise, beyond = rule.find(load_measured(own), 0.95)
    assert rise.effect == pytest.approx(6.6) and rise.low == pytest.approx(6.6 - 12.7062 * 0.6, abs=1e-3)  # 6.0 and 7.2
    assert beyond.effect == pytest.approx(6.0) and beyond.low is None and (rise.items, beyond.items) == (18, 27)
    for of, expected in (("late", 8.8), ("bend", 0.0)):  # 8 and 9.6; a straight line does not bend
        (found,) = rule.model_copy(update={"of": of, "against": ("",)}).find(load_measured(own), 0.95)
        assert found.effect == pytest.approx(expected, abs=1e-9)
    judged = assess(claim(rule), load_measured(own))
    assert [part.note for part in judged.parts] == ["", "one run has no interval"]


# -- the claims file ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def committed():
    return load_claims(FILE)


def test_there_are_claims_enough_and_each_rule_names_its_function(committed):
    assert len(committed) >= 20
    for held in committed:
        module, _, name = held.rule.computed_by.rpartition(".")
        assert callable(getattr(importlib.import_module(module), name)), held.id


def test_every_command_makes_the_arms_that_its_claim_needs(committed):
    made = {name: {(run.experiment.name.removesuffix(f"-{run.arm}-s{run.seed}"), run.arm)
                   for run in load_grid(path).runs()} for name, path in shipped_grids().items()
            if any(f"asgkit batch {name}" in held.commands for held in committed)}
    for held in committed:
        names = [command.removeprefix("asgkit batch ") for command in held.commands if "batch" in command]
        runs = {run for name in names for run in made[name]}
        for other in (command for command in held.commands if "batch" not in command):
            overrides = [word for word in other.split() if "=" in word]
            assert other.split()[1] in ("train", "premise") and resolve("tiny", overrides)
        rule = held.rule
        wanted = {rule.arm} if hasattr(rule, "arm") else set()
        wanted |= {arm for pair in getattr(rule, "compare", ()) for arm in (pair.first, pair.second)}
        wanted |= set(getattr(rule, "against", ()))
        if names:  # the two arms without a grid are trained one by one
            gone = {(base, arm) for base in rule.bases for arm in wanted - {"base", ""}} - runs
            assert not gone, f"{held.id}: no grid of its commands makes {gone}"


@pytest.mark.parametrize(("old", "new", "words"), [
    ("side: below", "side: left", "claim 'drift-levels-off'.*side"), ("signal: entropy", "sign: entropy", "sign"),
    ("id: entropy-finds-errors", "id: ste-when-votes-agree", "there twice"), ("kind: within", "kind: without", "kind"),
    ("claims:", "claim:", "claims: Field required"), ("claims:", "claims: [", "not YAML")])
def test_a_claims_file_that_does_not_fit_is_refused(tmp_path, old, new, words):
    text = FILE.read_text()
    assert old in text
    (tmp_path / "claims.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ClaimsError, match=words):
        load_claims(tmp_path / "claims.yaml")


# -- output ---------------------------------------------------------------------------------------------------------
def close(a, b) -> bool:
    """Equal but for the last decimal of a number, which may differ between processors."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(close, a, b))
    return abs(a - b) < 1e-3 if isinstance(a, float) and isinstance(b, float) else a == b


@pytest.fixture(scope="module")
def page():
    return json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))


def test_the_committed_output_knows_every_run(page):
    """New runs change verdicts, so whoever adds some makes the output again in the same commit."""
    measured = load_measured(RESULTS)
    assert page["read"] == {"bases": sorted(measured.bases),
                            "runs": {run.name: run.config_hash for run in measured.runs}}, AGAIN


def test_the_committed_output_follows_from_the_runs_that_it_names(page, committed):
    """Of the runs that it names only: runs that were added since are the other test's matter."""
    measured = load_measured(RESULTS)
    named = Measured({name: base for name, base in measured.bases.items() if name in page["read"]["bases"]},
                     [run for run in measured.runs if run.name in page["read"]["runs"]], [])
    fresh = as_json(assess_all(committed, named), named)
    for old, new in zip(page["claims"], fresh["claims"], strict=True):
        assert close(old, new), f"{old['id']}: {AGAIN}"
    assert close(page, fresh), AGAIN
    assert as_markdown(page) == (RESULTS / "claims.md").read_text(encoding="utf-8"), AGAIN


def test_counts_add_up_and_the_page_holds_every_claim(page):
    asked = [v for v in VERDICTS if v in page["verdicts"]]
    assert list(page["counts"]) == asked and {SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED} <= set(asked)
    assert sum(page["counts"].values()) == len(page["claims"])
    text = as_markdown(page)
    for held in page["claims"]:
        assert f"### {held['id']}\n" in text and held["place"] and held["commands"]
        assert (held["verdict"] == NOT_TESTED) == all(p["verdict"] == NOT_TESTED for p in held["comparisons"])
        assert held["verdict"] != SUPPORTED or held["scope"]


def test_effects_are_shown_with_their_interval():
    part = {"effect": 1.234, "low": -0.5, "high": 3.0, "unit": "points"}
    assert effect(part) == "+1.23 [-0.50, +3.00] points" and effect(part | {"effect": None}) == ""
    assert effect(part | {"unit": "nats", "low": None}) == "+1.234 nats"
    assert effect(part | {"unit": "values that differ", "effect": 0.0}) == "0 values that differ"


@pytest.fixture
def small(tmp_path):
    """Two claims of the file, one of them without runs."""
    content = yaml.safe_load(FILE.read_text())
    content["claims"] = [c for c in content["claims"] if c["id"] in ("answers-improve", "removing-ste-costs")]
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "claims.yaml"


def asgkit(*arguments: str):
    return CliRunner().invoke(app, ["claims", *arguments], env={"COLUMNS": "200"})


def test_the_command_prints_tables_or_json_and_writes_both(results, small, tmp_path):
    shown = asgkit("--results", str(results), "--claims", str(small))
    assert shown.exit_code == 0 and "answers-improve" in shown.stdout and "asgkit batch components" in shown.stdout
    told = asgkit("--json", "--results", str(results), "--claims", str(small), "--out", str(tmp_path / "c.json"),
                  "--out", str(tmp_path / "c.md"))
    content = json.loads(told.stdout)
    assert told.exit_code == 0 and (tmp_path / "c.json").read_text() == told.stdout
    assert (tmp_path / "c.md").read_text() == as_markdown(content)
    assert content["counts"] == {SUPPORTED: 0, CONTRADICTED: 0, INCONCLUSIVE: 1, NOT_TESTED: 1}


def test_the_command_refuses_what_it_cannot_do(results, small, tmp_path):
    (tmp_path / "bad.yaml").write_text("claims: []")
    for arguments, words in ((["--out", "c.txt"], ".json or .md"), (["--out", "no/where.md"], "no folder"),
                             (["--results", str(tmp_path / "none")], "no measured results"),
                             (["--results", str(results), "--claims", str(tmp_path / "none.yaml")], "no claims file"),
                             (["--results", str(results), "--claims", str(tmp_path / "bad.yaml")], "bad.yaml")):
        refused = asgkit(*arguments)
        assert refused.exit_code == 2 and words in refused.stderr and refused.stderr.count("\n") == 1
