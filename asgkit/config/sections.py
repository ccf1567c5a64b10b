"""The configuration as typed, strict, frozen sections: every setting there is, and its bounds."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from asgkit.config.reads import READS
from asgkit.config.roles import GeneratorConfig, ProposerConfig, SolverConfig, Strict

Positive = Field(gt=0)


class PoolConfig(Strict):
    """The unlabelled images: a folder, and how many of its files to use (None: all)."""

    path: str = "data/pool"
    column: str | None = None  # of a data set's rows (asgkit.pool.rows); None: the only one of images, else of texts
    limit: int | None = None


class ScheduleConfig(Strict):
    """Steps in all; per cycle `understanding` U steps, then `generation` G steps; images per shard of a step.

    A step's batch has processes x `accumulate` shards; `micro_batch` bounds the memory of updates, not their result.
    """

    steps: int = Positive
    understanding: int = Field(3, ge=0)
    generation: int = Field(2, ge=0)
    images: int = Positive
    accumulate: int = Field(1, gt=0)  # shards that each process samples, before all take one step together
    micro_batch: int | None = Field(None, gt=0)  # rows per forward and backward pass of an update (None: all at once)
    order: Literal["interleaved", "two_stage"] = "interleaved"  # two_stage: all U steps first, then all G steps

    @model_validator(mode="after")
    def _not_empty(self) -> ScheduleConfig:
        if self.understanding + self.generation == 0:
            raise ValueError("schedule.understanding and schedule.generation cannot both be 0")
        return self


KL_RULES: dict[str, dict[str, float]] = {
    "adaptive": {"coefficient": 0.01, "target": 0.02, "rate": 0.10},  # printed (table S1)
    "fixed": {"coefficient": 0.05, "target": 0.02, "rate": 0.0},  # ours
    "steadied": {"coefficient": 0.05, "target": 0.10, "rate": 0.01},  # ours: ten times as slow, five times as far
}


class KLConfig(Strict):
    """Coefficient of the per-token KL to the frozen base, one controller per role, by one of three rules.

    adaptive: the printed controller, `coefficient *= exp(rate * (KL - target) / target)` within bounds. fixed: the
    coefficient stays (rate 0). steadied: the same controller, slow and with a target that leaves room to learn; on tiny
    models the printed one swings with a period of about 130 steps and takes every gain back. A rule brings its own
    constants; numbers that are given take their place. Without a rule, a rate of 0 means fixed, any other adaptive.
    """

    rule: Literal["adaptive", "fixed", "steadied"] = "adaptive"
    coefficient: float = Field(0.01, gt=0)
    target: float = Field(0.02, gt=0)
    rate: float = Field(0.10, ge=0)
    low: float = Field(1e-3, gt=0)
    high: float = Field(1e2, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _constants_of_the_rule(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if "rule" in given:
            return KL_RULES.get(given["rule"], {}) | given
        return given | {"rule": "fixed" if given.get("rate") == 0 else "adaptive"}

    @model_validator(mode="after")
    def _in_bounds(self) -> KLConfig:
        if not self.low <= self.coefficient <= self.high:
            raise ValueError(f"coefficient {self.coefficient} must lie between low {self.low} and high {self.high}; "
                             "lower kl.low to weaken the penalty")
        if (self.rule == "fixed") != (self.rate == 0):
            raise ValueError(f"rule {self.rule} and rate {self.rate} contradict each other: a fixed coefficient has "
                             "rate 0, and any other rule a rate above 0")
        return self


class LoRAConfig(Strict):
    """Rank, scale and dropout of every role adapter."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    quantise: Literal["", "nf4"] = ""  # nf4: frozen weights of the adapted layers in 4 bits (QLoRA)


class OptimiserConfig(Strict):
    """AdamW, the same for every role; `warmup` counts the role's own steps."""

    weight_decay: float = 0.01
    clip: float = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1)


class ReplayConfig(Strict):
    """Best drawings that may return as images of understanding steps; `mix` is their share."""

    capacity: int = Field(500, ge=0)
    mix: float = Field(0.0, ge=0, le=1)


class GvUConfig(Strict):
    """Settings of recipe=gvu: what a drawing is paid, the probability per token of its prompt or the logarithm."""

    reward: Literal["probability", "log_probability"] = "probability"


class CheckpointConfig(Strict):
    """Save every so many steps and keep the newest `keep`."""

    every: int = Field(50, gt=0)
    keep: int = Field(3, gt=0)
    adapters: Literal["kept", "lost"] = "kept"  # lost, as released: a resume begins Proposer and Generator anew


RECIPE_SECTIONS = ("gvu", "own")


def section_of(recipe: str) -> str | None:
    """The section that belongs to a recipe alone: of its name, `own` for a class of one's own, None for asg."""
    if ":" in recipe:
        return "own"
    return recipe if recipe in RECIPE_SECTIONS else None


class Config(Strict):
    """A whole run. `asgkit train --preset tiny seed=3 solver.framings=5` sets keys by their dotted names.

    A section in RECIPE_SECTIONS belongs to the recipe of its name: it is there in that recipe's runs alone.
    """

    preset: str
    recipe: str = "asg"  # asg, gvu, or my_package.my_module:MyRecipe, a class of your own (see `load_recipe`)
    backbone: str = "tiny-ar"  # also my_package.my_module:MyModel, a class of your own (see `load_backbone`)
    base: str = "clean"
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # "" is the method itself
    control: Literal["", "random", "random_vote", "permuted", "other_picture", "constant", "format", "oracle",
                     "oracle_gated", "best_of"] = ""
    max_bad_steps: int = Field(5, gt=0)
    shard_weights: bool = False  # processes hold one copy of the frozen weights together and work in lock step (FSDP2)
    pool: PoolConfig = PoolConfig()
    schedule: ScheduleConfig
    proposer: ProposerConfig
    solver: SolverConfig = SolverConfig()
    generator: GeneratorConfig = GeneratorConfig()
    kl: KLConfig = KLConfig()
    lora: LoRAConfig = LoRAConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    replay: ReplayConfig = ReplayConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    gvu: GvUConfig | None = None
    own: dict[str, Any] | None = None  # settings of a recipe of your own, checked by its `Settings`

    @model_validator(mode="before")
    @classmethod
    def _own_section(cls, tree: Any) -> Any:
        """A recipe's section is there even when nothing in it was set."""
        name = section_of(tree.get("recipe", "asg")) if isinstance(tree, dict) else None
        return tree if name is None or tree.get(name) is not None else {**tree, name: {}}

    @model_validator(mode="after")
    def _recipe_exists(self) -> Config:
        if self.recipe not in READS and ":" not in self.recipe:
            near = difflib.get_close_matches(self.recipe, READS, n=1, cutoff=0.0)
            raise ValueError(f"unknown recipe {self.recipe!r}; did you mean {near[0]!r}? Recipes: {', '.join(READS)}, "
                             "and my_module:MyRecipe for a class of your own")
        return self

    @model_validator(mode="after")
    def _no_section_of_another_recipe(self) -> Config:
        for name in RECIPE_SECTIONS:
            if getattr(self, name) is not None and name != section_of(self.recipe):
                raise ValueError(f"the settings {name}.* belong to another recipe, and this run's is {self.recipe}")
        return self

    @model_serializer(mode="wrap")
    def _without_absent_sections(self, handler: Any) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items()
                if name not in RECIPE_SECTIONS or value is not None}

    @model_validator(mode="after")
    def _somebody_to_exchange_with(self) -> Config:
        if self.control in ("permuted", "other_picture") and self.schedule.images < 2:
            raise ValueError(f"control={self.control} exchanges between the pictures of a shard: set schedule.images "
                             "to 2 or more")
        return self

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> Config:
        if self.shard_weights and self.lora.quantise:
            raise ValueError("shard_weights and lora.quantise do not go together: 4-bit weights cannot be cut")
        return self
