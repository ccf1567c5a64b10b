"""Configuration: the paper's constants, strict keys, overrides, and what a preset changes."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from asgkit.config import PRESETS, ConfigError, flatten, from_dict, keys, parse_override, resolve
from asgkit.updates import AdaptiveKL

# The paper's table S1, row by row.
TABLE_S1 = {
    "schedule.steps": 10_000, "seed": 42, "proposer.learning_rate": 1e-6, "solver.learning_rate": 1e-6,
    "generator.learning_rate": 1e-6, "optimiser.weight_decay": 0.01, "optimiser.clip": 1.0, "lora.rank": 16,
    "lora.alpha": 32, "lora.dropout": 0.05, "schedule.understanding": 3, "schedule.generation": 2,
    "solver.framings": 7, "proposer.candidates": 3, "solver.ste_tokens": 5, "solver.ste_window": 128,
    "solver.ste_aggregation": "max", "generator.candidates": 3, "generator.min_quality": 0.35,
    "generator.min_questions": 2, "generator.w_fidelity": 0.65, "generator.w_cycle": 0.20,
    "generator.w_diversity": 0.10, "generator.w_contradiction": 0.20, "kl.coefficient": 0.01, "kl.target": 0.02,
    "kl.rate": 0.10, "kl.low": 1e-3, "kl.high": 1e2, "kl.rule": "adaptive",
    # not in the table: the reward weights of the text, the Solver's update, and that the method has no control
    "proposer.w_ste": 0.70, "proposer.w_sc": 0.30, "solver.update": "reinforce", "solver.train_on": "best",
    "control": "",
    "pool.limit": 10_000, "precision": "bf16", "solver.focus_hints": False,
}


def value(config, key: str):
    for part in key.split("."):
        config = getattr(config, part)
    return config


def flat(config) -> dict:
    return flatten(config.model_dump())


@pytest.mark.parametrize("key", TABLE_S1)
def test_the_paper_preset_holds_the_papers_constants(key):
    assert value(resolve("paper"), key) == TABLE_S1[key]


def test_smoke_differs_from_tiny_only_in_size_and_precision():
    tiny, smoke = flat(resolve("tiny")), flat(resolve("smoke"))
    assert {key for key in tiny if tiny[key] != smoke[key]} == {
        "preset", "precision", "schedule.steps", "schedule.images", "checkpoint.every"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_yaml(name):
    config = resolve(name)
    assert config.preset == name
    assert from_dict(yaml.safe_load(yaml.safe_dump(config.model_dump()))) == config


def test_overrides_by_text_and_by_dictionary():
    by_text = resolve("smoke", ["seed=3", "solver.framings=5", "solver.train=false", "generator.guidance=2.5"])
    by_dict = resolve("smoke", {"seed": 3, "solver.framings": 5, "solver.train": False, "generator.guidance": 2.5})
    assert by_text == by_dict and by_text.solver.framings == 5 and by_text.solver.train is False
    assert by_text.solver.update == resolve("smoke").solver.update  # the rest of the section stays


def test_an_override_does_not_leak_into_the_preset():
    resolve("smoke", {"schedule.images": 99})
    assert resolve("smoke").schedule.images == 8


@pytest.mark.parametrize("text, expected", [
    ("seed=3", ("seed", 3)), ("solver.learning_rate=1e-4", ("solver.learning_rate", 1e-4)),
    ("solver.train=true", ("solver.train", True)), ("generator.guidance=null", ("generator.guidance", None)),
    ("base=clean", ("base", "clean")), ("pool.path=a=b", ("pool.path", "a=b")), (" seed = 3", ("seed", 3)),
    ("control=", ("control", "")),
])
def test_values_are_read_as_yaml(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["seed", "=3", ""])
def test_overrides_of_another_form_are_refused(text):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_override(text)


@pytest.mark.parametrize("key, near", [("sede", "seed"), ("solver.framing", "solver.framings"),
                                       ("solver.lr_rate", "solver"), ("kl.coeficient", "kl.coefficient")])
def test_an_unknown_key_names_its_nearest_match(key, near):
    with pytest.raises(ConfigError, match=f"unknown key '{key}'; did you mean '{near}"):
        resolve("smoke", {key: 1})


def test_a_section_is_not_a_key_and_lists_its_keys():
    with pytest.raises(ConfigError, match=r"unknown key 'solver'; it is a group: .*solver\.framings"):
        resolve("smoke", {"solver": {"framings": 5}})


def test_a_key_without_its_group_names_every_group_that_has_it():
    with pytest.raises(ConfigError, match=r"did you mean 'schedule\.steps'\?"):
        resolve("smoke", {"steps": 5})
    with pytest.raises(ConfigError, match=r"'proposer\.candidates' or 'generator\.candidates'"):
        resolve("smoke", {"candidates": 5})


def test_a_key_like_no_other_is_answered_with_the_groups():
    with pytest.raises(ConfigError, match=r"begin with, backbone, .*solver\."):
        resolve("smoke", {"zzz": 5})


def test_a_value_that_is_not_yaml_is_refused():
    with pytest.raises(ConfigError, match="not YAML"):
        parse_override("pool.path=[a")


def test_a_refused_value_is_shown():
    with pytest.raises(ConfigError, match="not 'abc'"):
        resolve("smoke", ["seed=abc"])


def test_a_preset_is_not_an_override():
    assert resolve("smoke", ["preset=smoke"]) == resolve("smoke")
    with pytest.raises(ConfigError, match="--preset smoke"):
        resolve("tiny", ["preset=smoke"])


def test_an_unknown_preset_names_the_others():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        resolve("smokes")


@pytest.mark.parametrize("key, bad", [
    ("solver.framings", 0), ("solver.top_p", 1.5), ("lora.dropout", 1.0), ("control", "noise"), ("seed", "three"),
    ("solver.update", "ppo"), ("schedule.images", -1), ("kl.coefficient", 0.0), ("replay.mix", 2),
    ("proposer.target_momentum", 1.0), ("proposer.target_entropy", 1.6), ("solver.ste_window", 7),
    ("precision", "fp16"),
])
def test_values_out_of_range_are_refused_by_name(key, bad):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        resolve("smoke", {key: bad})


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="cannot both be 0"):
        resolve("smoke", {"schedule.understanding": 0, "schedule.generation": 0})
    with pytest.raises(ConfigError, match="must lie between low 0.1 and high"):
        resolve("smoke", {"kl.low": 0.1, "kl.coefficient": 0.05})


PRINTED, FIXED, STEADIED = (0.01, 0.02, 0.10), (0.05, 0.02, 0.0), (0.05, 0.10, 0.01)


@pytest.mark.parametrize(("preset", "overrides", "rule", "numbers"), [
    ("paper", {}, "adaptive", PRINTED), ("tiny", {}, "fixed", FIXED), ("smoke", {}, "fixed", FIXED),
    ("tiny", {"kl.rule": "adaptive"}, "adaptive", PRINTED), ("tiny", {"kl.rule": "steadied"}, "steadied", STEADIED),
    ("paper", {"kl.rule": "fixed"}, "fixed", FIXED), ("paper", {"kl.rate": 0.0}, "fixed", (0.01, 0.02, 0.0)),
    ("tiny", {"kl.rate": 0.1}, "adaptive", (0.05, 0.02, 0.1)),
    ("tiny", {"kl.coefficient": 0.2}, "fixed", (0.2, 0.02, 0)),
    ("tiny", {"kl.rule": "steadied", "kl.target": 0.3}, "steadied", (0.05, 0.3, 0.01)),
])
def test_a_kl_rule_brings_its_constants(preset, overrides, rule, numbers):
    kl = resolve(preset, overrides).kl
    assert (kl.rule, kl.coefficient, kl.target, kl.rate) == (rule, *numbers)


def test_a_kl_rule_and_a_rate_that_contradict_are_refused():
    for overrides in ({"kl.rule": "fixed", "kl.rate": 0.1}, {"kl.rule": "steadied", "kl.rate": 0.0}):
        with pytest.raises(ConfigError, match="contradict each other"):
            resolve("tiny", overrides)


def test_a_run_stored_before_there_were_rules_means_what_it_meant():
    tree = resolve("tiny").model_dump()
    del tree["kl"]["rule"]
    assert from_dict(tree).kl == resolve("tiny").kl
    assert from_dict(tree | {"kl": {"coefficient": 0.05, "rate": 0.1}}).kl.rule == "adaptive"


@pytest.mark.parametrize("rule", ["adaptive", "fixed", "steadied"])
def test_each_rule_moves_its_coefficient_as_it_says(rule):
    kl = resolve("tiny", {"kl.rule": rule}).kl
    controller = AdaptiveKL(kl.coefficient, kl.target, kl.rate, kl.low, kl.high)
    start = [controller.update(x) for x in (0.0, 0.2, 0.2)][-1] / kl.coefficient
    # (0, .2, .2): relative errors -1, 9, 9 at target .02 and rate .1; -1, 1, 1 at .1 and .01
    assert start == pytest.approx({"adaptive": math.exp(1.7), "fixed": 1.0, "steadied": math.exp(0.01)}[rule])


def test_a_stored_configuration_with_a_foreign_key_is_refused():
    tree = resolve("smoke").model_dump()
    tree["solver"]["temprature"] = 1.0
    with pytest.raises(ConfigError, match=r"solver\.temprature"):
        from_dict(tree)


def test_a_configuration_cannot_be_changed():
    config = resolve("smoke")
    with pytest.raises(ValidationError):
        config.seed = 4
    with pytest.raises(ValidationError):
        config.solver.framings = 3


@settings(deadline=None)  # a busy machine is slow, not wrong
@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(1e-8, 1e-1))
def test_overrides_arrive_unchanged(seed, framings, rate):
    config = resolve("smoke", [f"seed={seed}", f"solver.framings={framings}", f"solver.learning_rate={rate!r}"])
    assert (config.seed, config.solver.framings, config.solver.learning_rate) == (seed, framings, rate)


def test_keys_are_leaves_and_complete():
    names = keys()
    assert len(set(names)) == len(names) and "solver.framings" in names and "solver" not in names
    trees = [resolve("smoke"), resolve("smoke", ["recipe=gvu"]), resolve("smoke", ["recipe=m:Mine", "own.x=1"])]
    assert set(names) == {"own" if key.startswith("own.") else key
                          for tree in trees for key in flatten(tree.model_dump())} | {"own"}
