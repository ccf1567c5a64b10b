"""The settings of the three roles: how each samples, what it is paid for, how it learns."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """A section: frozen, and no key but its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProposerConfig(Strict):
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


class SolverConfig(Strict):
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


class GeneratorConfig(Strict):
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
