"""asgkit: learn, check and extend *Ask, Solve, Generate* (arXiv 2606.27376) and its rivals.

A recipe turns unlabelled pictures or prompts into scored samples, scores become advantages, advantages become updates
of three adapters on one frozen model, and every number lands in one log from which tables, figures and claims are made.

    ask solve ste draw updates   the paper's quantities: pure functions, tensors and texts in, numbers out
    trainer launch               one loop for every recipe; start or resume a run
    recipes/                     one short file per method: asg (Algorithm 1, stage by stage), gvu; base, the protocol
    stages/                      what the roles do with a model, batched: propose, answer, caption, draw, judge
    learning/                    what a role learns from and how a weight moves: objectives, optimiser, replay
    runs/                        a run on disk: directory, log and its schema, checkpoints, samples
    scale/                       many processes: team, shards, lock step, device
    backbones/                   the protocol of a model; tiny/ janus/ blip3o/ bagel/ vargpt/; conformance
    pool/                        unlabelled data: pictures or prompts
    shapes/  scenes/             procedural worlds with exact detectors (labels: evaluation and pre-training only)
    config/                      one typed strict configuration; presets with reasons
    grids/                       which runs belong together: YAML files and their loader
    stats/                       intervals, tests, correlations, power, rounding: numbers in, numbers out
    evals/                       benchmarks: shapes, blind, lmms-eval, GenEval
    experiments/                 batches of runs, premise, evaluation, bench, drift, reproduce
    report/                      tables/ figures/ claims/ audit/ page/ from what was measured
    lessons/  cli/               what the notebooks share; the command line
    errors                       what can go wrong or stop a run, by name

Imports go down that list only: cli > lessons > experiments > report > evals > launch > trainer > recipes > learning >
stages > runs > scale > the pure modules > backbones, pool > stats, scenes, shapes, grids > config > errors.

The names below are the public face; they load on first use, so that `import asgkit` is quick.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    # a model
    "Backbone": "backbones", "load_backbone": "backbones", "check_backbone": "backbones.conformance",
    # a run
    "Config": "config", "resolve": "config", "Trainer": "trainer", "train": "launch", "open_backbone": "launch",
    "RunDirectory": "runs.directory", "read_log": "runs.directory",
    # a method
    "Recipe": "recipes.base", "GroupRecipe": "recipes.groups", "load_recipe": "recipes",
    # the paper's quantities
    "proposer_reward": "ask", "normalise_answer": "solve", "vote": "solve", "solver_rewards": "solve",
    "token_entropy": "ste", "solver_token_entropy": "ste", "RollingPercentile": "ste",
    "soft_match": "draw", "generator_reward": "draw", "group_advantages": "updates",
}
__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  # the table is the one place that names them


def __getattr__(name: str) -> Any:
    """A public name, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'asgkit' has no attribute {name!r}; its public names: {', '.join(_HOMES)}")
    value = getattr(import_module(f"asgkit.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
