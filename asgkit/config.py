"""One typed, strict, frozen configuration; presets differ from `paper` only where a comment says why."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Positive = Field(gt=0)


class ConfigError(ValueError):
    """A configuration key or value that cannot be used; the message names the nearest key."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PoolConfig(_Strict):
    """The unlabelled images: a folder, and how many of its files to use (None: all)."""

    path: str = "data/pool"
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
    group: Literal["equal", "released"] = "equal"  # released: only the first candidate gets STE and all N votes


class SolverConfig(_Strict):
    """Solve: N framings, sampling, STE, and the update (`reinforce` is the paper's)."""

    train: bool = True
    framings: int = Field(7, gt=0)
    votes: Literal["framings", "temperature"] = "framings"  # temperature: N samples of one framing (table 4)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(96, gt=0)
    update: Literal["reinforce", "group", "sft"] = "reinforce"
    train_on: Literal["best", "all"] = "best"  # q* only (paper), or every valid candidate
    min_share: float = Field(0.0, ge=0, le=1)  # vote share that a question needs before it may train the Solver
    pseudo_label_share: float = Field(5 / 7, ge=0, le=1)  # the same for `sft`
    learning_rate: float = Field(1e-6, gt=0)
    baseline_momentum: float = Field(0.6, ge=0, lt=1)
    low_information_penalty: float = 0.08
    ste: bool = True
    ste_tokens: int = Field(5, gt=0)
    ste_window: int = Field(128, ge=8)  # below 8 values a rank says nothing, so d_ste is a fixed curve
    ste_aggregation: Literal["max", "mean"] = "max"


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
    noise_draws: int = Field(1, gt=0)  # (t, noise) pairs per drawing
    target: Literal["candidates", "source_image"] = "candidates"
    adapter: Literal["generator", "solver"] = "generator"  # which role learns to draw; sampling never uses the Solver's
    prompt: Literal["solver", "proposer"] = "solver"  # which role writes the prompt t from the real image
    references: Literal["solver", "proposer"] = "solver"  # which role answers the questions on the real image
    cycle: Literal["image", "text"] = "image"  # text: the second half of S_cyc never sees the candidate
    scorer: str = "live"  # live: the Solver as it is; frozen: the base; or a checkpoint that judges in its place


class KLConfig(_Strict):
    """Adaptive coefficient of the per-token KL to the frozen base, one controller per role."""

    coefficient: float = Field(0.01, gt=0)
    target: float = Field(0.02, gt=0)
    rate: float = Field(0.10, ge=0)
    low: float = Field(1e-3, gt=0)
    high: float = Field(1e2, gt=0)

    @model_validator(mode="after")
    def _in_bounds(self) -> KLConfig:
        if not self.low <= self.coefficient <= self.high:
            raise ValueError(f"coefficient {self.coefficient} must lie between low {self.low} and high {self.high}; "
                             "lower kl.low to weaken the penalty")
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


class CheckpointConfig(_Strict):
    """Save every so many steps and keep the newest `keep`."""

    every: int = Field(50, gt=0)
    keep: int = Field(3, gt=0)


class Config(_Strict):
    """A whole run. `asgkit train --preset tiny seed=3 solver.framings=5` sets keys by their dotted names."""

    preset: str
    backbone: str = "tiny-ar"  # also my_package.my_module:MyModel, a class of your own (see `load_backbone`)
    base: str = "clean"
    seed: int = 42
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    # "" is the method itself
    control: Literal["", "random", "random_vote", "permuted", "constant", "format", "oracle", "best_of"] = ""
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

    @model_validator(mode="after")
    def _one_way_to_save_memory(self) -> Config:
        if self.shard_weights and self.lora.quantise:
            raise ValueError("shard_weights and lora.quantise do not go together: 4-bit weights cannot be cut")
        return self


# Every difference from the paper's constants (table S1) is listed here, with its reason.
PAPER: dict[str, Any] = {
    "preset": "paper",
    "schedule": {"steps": 10_000, "images": 1},
    "proposer": {"target_momentum": 0.95},
}
TINY: dict[str, Any] = {
    "preset": "tiny",
    "schedule": {
        "steps": 150,  # 90 U + 60 G steps: minutes on one core, and enough to see which way each score goes
        "images": 16,  # a batch stands in for the paper's ranks and its 10,000 steps
    },
    "proposer": {
        "target_momentum": 0.95,
        "max_new_tokens": 16,  # the longest question of the tiny world has 13 words
        "learning_rate": 5e-5,  # 5e-4 drags the Solver down: the frontier is where the majority is wrong
    },
    "solver": {
        "max_new_tokens": 1,  # every answer of the tiny world is one word
        "update": "sft",  # REINFORCE and group-relative are switches; compared in results/measured
        "train_on": "all",  # 16 votes of 7 a step are too few for a model this small
        "learning_rate": 2e-4,  # LoRA on a million parameters: 1e-6 would not move it, 1e-3 destroys it
        "low_information_penalty": 0.0,  # yes, no and none are whole answers here
    },
    "generator": {
        "candidates": 8,  # L = 3 leaves most groups without contrast
        "regression": "awm",  # the paper's rule (rwr, not centred) loses points here; compared in results/measured
        "noise_draws": 4,  # one (t, noise) pair says little about a drawing
        "votes": 3,  # votes on drawings nearly always agree; three keep the fraction informative
        "learning_rate": 5e-4,  # 2e-3 and more turn gradient noise into damage
    },
    "kl": {"coefficient": 0.05, "rate": 0.0},  # fixed: the adaptive rule has no time to settle in 150 steps
    "lora": {"rank": 8, "alpha": 16, "dropout": 0.0},
    "checkpoint": {"every": 40},
}
SMOKE: dict[str, Any] = {
    **TINY,
    "preset": "smoke",
    "precision": "fp32",  # the same numbers on processors with and without bf16 arithmetic
    "schedule": {"steps": 10, "images": 8},  # two cycles: every code path in seconds
    "checkpoint": {"every": 5},
}
# The one number that depends on how a tiny model draws: a step on token log-probabilities and a step on squared
# errors are not of one size. It holds where the user sets nothing else.
REGRESSION = {"generator.learning_rate": 1e-3}
TUNED: dict[tuple[str, str], dict[str, Any]] = {(preset, backbone): REGRESSION for preset in ("tiny", "smoke")
                                                for backbone in ("tiny-flow", "tiny-diffusion")}
# Bases about scenes answer in up to six words and an end, ask in up to ten, and learn from a pool of scenes. Their
# names begin with `scenes`.
SCENES = {"solver.max_new_tokens": 8, "proposer.max_new_tokens": 18, "pool.path": "data/scenes"}
PRESETS: dict[str, dict[str, Any]] = {"paper": PAPER, "tiny": TINY, "smoke": SMOKE}


def measured_name(backbone: str, base: str) -> str:
    """`<backbone>-<base>`, as results name a base; of a path only the file's name counts, of a module its class."""
    return f"{backbone.rpartition(':')[2]}-{Path(base).stem.removeprefix(f'{backbone}-')}"


def keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += keys(kind, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    if key not in keys():
        raise ConfigError(f"unknown key {key!r}; {_hint(key)}")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _hint(key: str) -> str:
    """What the user may have meant: a key of that group, of that last name, or of similar letters."""
    known = keys()
    inside = [k for k in known if k.startswith(f"{key}.")]
    same_name = [k for k in known if k.rpartition(".")[2] == key]
    near = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if inside:
        return f"it is a group: set one of its keys, {', '.join(inside)}"
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    groups = sorted({f"{k.partition('.')[0]}." if "." in k else k for k in known})
    return f"keys are, or begin with, {', '.join(groups)}"


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in tree.items()}


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML (`3`, `1e-4`, `true`, `null`, text)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {text!r} is not of the form key=value, for example seed=3")
    try:
        parsed = yaml.safe_load(value) if value.strip() else ""  # `control=` means the empty text, not null
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: its value opens a bracket or quote and does not close it, or is "
                          f"otherwise not YAML; plain text goes in quotes, {key}='\"a [b]\"'") from error
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-4 as text
        try:
            parsed = float(parsed)
        except ValueError:
            pass
    return key.strip(), parsed


def resolve(preset: str = "tiny", overrides: Iterable[str] | dict[str, Any] = ()) -> Config:
    """The configuration of a preset with overrides (`["seed=3"]` or `{"seed": 3}`).

    Raises ConfigError for an unknown preset, an unknown key (naming the nearest) or a value out of range.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)
        raise ConfigError(f"unknown preset {preset!r}; did you mean {near[0]!r}? Presets: {sorted(PRESETS)}")
    tree = _copy(PRESETS[preset])
    pairs = dict(overrides.items() if isinstance(overrides, dict) else map(parse_override, overrides))
    backbone, base = (str(pairs.get(key, Config.model_fields[key].default)) for key in ("backbone", "base"))
    tuned = TUNED.get((preset, backbone), {})
    if preset != "paper" and measured_name(backbone, base).startswith(f"{backbone}-scenes"):
        tuned = tuned | SCENES
    for key, value in (tuned | pairs).items():
        if key == "preset" and value != preset:  # it would rename the run and change nothing else
            raise ConfigError(f"preset={value} cannot be an override: choose it by --preset {value}")
        _set(tree, key, value)
    return from_dict(tree)


def from_dict(tree: dict[str, Any]) -> Config:
    """Validate a nested dictionary (for example a run's config.yaml); raises ConfigError naming each bad key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}{_given(e['input'])}" for e in error.errors()]
        raise ConfigError("; ".join(lines)) from error


def _given(value: Any) -> str:
    return "" if isinstance(value, dict | BaseModel) else f", not {value!r}"
