"""The configuration as typed, strict, frozen sections: every setting there is, and its bounds."""

from __future__ import annotations

import difflib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from asgkit.config.reads import READS

Positive = Field(gt=0)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolConfig(_Strict):
    """The unlabelled images: a folder, and how many of its files to use (None: all)."""

    path: str = "data/pool"
    column: str | None = None  # of a data set's rows (asgkit.pool.rows); None: the only one of images, else of texts
    limit: int | None = None


class ScheduleConfig(_Strict):
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


class ProposerConfig(_Strict):
    """Ask: K candidates, their sampling, the weights of R_p and the update."""

    train: bool = True
    candidates: int = Field(3, gt=0)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, gt=0)
    learning_rate: float = Field(1e-6, gt=0)
    w_ste: float = 0.70
    w_sc: float = 0.30
    target_entropy: float = Field(0.90, ge=0.40, le=1.5)  # nats, start of the running target mu
    target_momentum: float = Field(ge=0, lt=1)
    adaptive_target: bool = True
    sigma: float = Field(0.25, gt=0)
    clip: float = Field(0.2, gt=0)
    group: Literal["equal", "released"] = "equal"  # released: the one of highest STE has STE and N votes, the others 3


class SolverConfig(_Strict):
    """Solve: N framings, sampling, STE, and the update (`reinforce` is the paper's)."""

    train: bool = True
    framings: int = Field(7, gt=0)
    votes: Literal["framings", "temperature"] = "framings"  # temperature: N samples of one framing (table 4)
    focus_hints: bool = False  # each call also names one of seven things to look at (the paper's appendix, the release)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, gt=0)
    update: Literal["reinforce", "group", "sft"] = "reinforce"
    train_on: Literal["best", "all"] = "best"  # q* only (paper), or every valid candidate
    min_share: float = Field(0.0, ge=0, le=1)  # vote share that a question needs before it may train the Solver
    pseudo_label_share: float = Field(5 / 7, ge=0, le=1)  # the same for `sft`
    # Votes that say nothing of which answer is better. None: under `sft` a unanimous vote is the surest label, and
    # teaches; else it is skipped: all R_s are alike, and R_s minus the baseline would push down what all said.
    unanimous: Literal["skip", "teach"] | None = None
    all_different: Literal["skip", "teach"] = "teach"  # N answers, the first of which is then the majority
    learning_rate: float = Field(1e-6, gt=0)
    baseline_momentum: float = Field(0.6, ge=0, lt=1)
    low_information_penalty: float = 0.08
    ste: bool = True
    ste_tokens: int = Field(5, gt=0)
    ste_window: int = Field(128, ge=8)  # below 8 values a rank says nothing, so d_ste is a fixed curve
    ste_aggregation: Literal["max", "mean"] = "max"
    ste_from: Literal["answer", "generated"] = "answer"  # generated (released): an answer tag's tokens are among the 5

    @property
    def skips_unanimous(self) -> bool:
        """Whether a unanimous vote is kept from the update."""
        return self.unanimous == "skip" or (self.unanimous is None and self.update != "sft")

    @model_validator(mode="after")
    def _unanimous_can_teach(self) -> SolverConfig:
        if self.unanimous == "teach" and self.update == "group":
            raise ValueError("unanimous=teach changes nothing under update=group: equal rewards have advantage 0")
        return self


class GeneratorConfig(_Strict):
    """Draw: L candidates for one caption, M diagnostic questions, the weights of R_g and the update."""

    train: bool = True
    candidates: int = Field(3, gt=0)
    questions: int = Field(3, gt=0)
    votes: int = Field(7, gt=0)  # framings per diagnostic question, on the real image and on every candidate
    caption_temperature: float = Field(0.0, ge=0)
    temperature: float | None = None  # None: the backbone's native sampling
    guidance: float | None = None
    learning_rate: float = Field(1e-6, gt=0)
    w_fidelity: float = 0.65
    w_cycle: float = 0.20
    w_diversity: float = 0.10
    w_contradiction: float = 0.20
    min_quality: float = 0.35
    min_questions: int = Field(2, ge=1)
    clip: float = Field(0.2, gt=0)
    # How candidates weigh in a regression (flow, diffusion); tokens always follow the group-relative advantage.
    regression: Literal["rwr", "awm", "nft"] = "rwr"
    center: bool = False  # rwr: subtract 1, so that the weights of a group sum to 0
    reward_temperature: float = Field(0.1, gt=0)  # rwr: softmax(r / temperature)
    nft_beta: float = Field(0.2, gt=0, le=1)
    # What nft measures winners and losers against: the frozen base, or (policy, as published) the policy that samples,
    # a running mean of the Generator's weights with this decay (0: the Generator itself).
    nft_anchor: Literal["base", "policy"] = "base"
    nft_decay: float = Field(0.5, ge=0, lt=1)
    # The space of a flow's regression: as the backbone gives it, or velocities. tiny-flow gives clean latents, whose
    # squared error is t^2 times that of the velocity; a flow that gives velocities is the same in both.
    regression_space: Literal["native", "velocity"] = "native"
    noise_draws: int = Field(1, gt=0)  # (t, noise) pairs per drawing
    target: Literal["candidates", "source_image"] = "candidates"
    adapter: Literal["generator", "solver"] = "generator"  # which role learns to draw; sampling never uses the Solver's
    # Who writes the prompt t from the real image: the Solver's caption, the same by the Proposer's adapter, or (spec,
    # released) a prompt that the Proposer writes on its own request, sampled at its temperature.
    prompt: Literal["solver", "proposer", "spec"] = "solver"
    # Who answers the questions on the real image: the Solver's vote, the same by the Proposer's adapter, or (expected,
    # released) one answer each that the Proposer writes to its own question.
    references: Literal["solver", "proposer", "expected"] = "solver"
    cycle: Literal["image", "text"] = "image"  # text: the second half of S_cyc never sees the candidate
    similarity: str = "native"  # or a shipped backbone: its base measures S_cyc from outside, as CLIP in the release
    word_boundaries: bool = False  # m: an answer inside another counts as whole words only
    normalise_diversity: bool = False  # S_div over its largest share in the group, as released
    renormalise: bool = False  # the positive weights of R_g over their sum, as released
    scorer: str = "live"  # live: the Solver as it is; frozen: the base; or a checkpoint that judges in its place

    @model_validator(mode="after")
    def _who_learns_is_who_samples(self) -> GeneratorConfig:
        if self.nft_anchor == "policy" and self.adapter == "solver":
            raise ValueError("nft_anchor=policy and adapter=solver do not go together: the Solver's adapter never "
                             "samples")
        return self


KL_RULES: dict[str, dict[str, float]] = {
    "adaptive": {"coefficient": 0.01, "target": 0.02, "rate": 0.10},  # printed (table S1)
    "fixed": {"coefficient": 0.05, "target": 0.02, "rate": 0.0},  # ours
    "steadied": {"coefficient": 0.05, "target": 0.10, "rate": 0.01},  # ours: ten times as slow, five times as far
}


class KLConfig(_Strict):
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


class LoRAConfig(_Strict):
    """Rank, scale and dropout of every role adapter."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    quantise: Literal["", "nf4"] = ""  # nf4: frozen weights of the adapted layers in 4 bits (QLoRA)


class OptimiserConfig(_Strict):
    """AdamW, the same for every role; `warmup` counts the role's own steps."""

    weight_decay: float = 0.01
    clip: float = Field(1.0, gt=0)
    warmup: int = Field(0, ge=0)
    beta2: float = Field(0.999, gt=0, lt=1)


class ReplayConfig(_Strict):
    """Best drawings that may return as images of understanding steps; `mix` is their share."""

    capacity: int = Field(500, ge=0)
    mix: float = Field(0.0, ge=0, le=1)


class GvUConfig(_Strict):
    """Settings of recipe=gvu: what a drawing is paid, the probability per token of its prompt or the logarithm."""

    reward: Literal["probability", "log_probability"] = "probability"


class CheckpointConfig(_Strict):
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


class Config(_Strict):
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
