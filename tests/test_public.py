"""The public face: its names, what they are called with, and that it costs nothing to import."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import asgkit

# What scripts rely on. Adding a keyword at the end is fine; anything else here is a break and needs a new version.
SIGNATURES = {
    "load_backbone": "name, *, base, lora_rank, lora_alpha, lora_dropout, seed, device, precision, quantise",
    "check_backbone": "backbone, images, captions, questions, *, tolerance, only",
    "resolve": "preset, overrides",
    "Trainer": "config, backbone, pool, run, *, judge, scorer, measure, stop, team",
    "train": "config, path, *, resume, judge, progress",
    "open_backbone": "config, device",
    "RunDirectory": "path, *, keep",
    "read_log": "path",
    "GroupRecipe": "tools",
    "load_recipe": "name",
    "proposer_reward": "difficulty, self_consistency, *, valid, duplicate, w_ste, w_sc, invalid, duplicate_penalty",
    "normalise_answer": "text",
    "vote": "answers",
    "solver_rewards": "vote, *, words, gamma, negative, length_weight, length_target, noncanonical, low_info",
    "token_entropy": "logits",
    "solver_token_entropy": "entropy, mask, first, aggregation",
    "RollingPercentile": "window, cold",
    "soft_match": "prediction, reference, *, word_boundaries",
    "generator_reward": "fidelity, cycle, diversity, contradiction, quality, *, w_fidelity, w_cycle, w_diversity, "
                        "w_contradiction, min_quality, renormalise",
    "group_advantages": "rewards, *, mask, epsilon, scale",
}
TYPES = ("Backbone", "Config", "Recipe")  # protocols and the configuration: pinned by tests of their own


def signature(thing) -> str:
    """Names of the parameters, `*` before those that are keywords alone."""
    names, starred = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            names, starred = [*names, "*"], True
        names.append(parameter.name)
    return ", ".join(names)


def test_the_names_are_these_and_each_says_what_it_is():
    assert set(asgkit.__all__) == {"__version__", *SIGNATURES, *TYPES}
    for name in (*SIGNATURES, *TYPES):
        assert inspect.getdoc(getattr(asgkit, name)), name


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_signature_is_pinned(name):
    assert signature(getattr(asgkit, name)) == SIGNATURES[name]


def test_a_wrong_name_lists_the_right_ones():
    with pytest.raises(AttributeError, match="no attribute 'load_backbones'; its public names: .*load_backbone"):
        asgkit.load_backbones  # noqa: B018
    assert set(asgkit.__all__) <= set(dir(asgkit))


def test_importing_the_package_brings_nothing_heavy():
    code = "import asgkit, sys; print([m for m in ('torch', 'peft', 'pandas', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_map_names_every_room():
    root = next(iter(asgkit.__path__))
    rooms = {p.name for p in Path(root).iterdir() if p.is_dir() and p.name != "__pycache__"}
    files = {p.stem for p in Path(root).glob("*.py") if p.stem != "__init__"}
    words = set(asgkit.__doc__.replace("/", " ").replace(":", " ").split())
    assert rooms | files <= words
