"""What a role is trained on and its loss: sampled texts, and drawings by the model's own way of drawing.

A batch can be cut into parts of few rows (`split`); each part gives the means of its own rows, and its counts say how
much they weigh in the means of the step. For drawings there is one way from rewards of candidates to a loss:

    weights  = candidate_weights(rewards)          which candidates to move towards, and which away from
    loss     = mean_i weights_i * native_loss_i    -log p of tokens (clipped ratio), squared error of a regression
    kl       = drift from the frozen base          exact per token, |v - v_ref|^2 under the same noise

Source: paper (generation step 5); spec: related 0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asgkit.backbones.base import Answers, Backbone, GenStats, NoiseSpec, Role, TextStats
from asgkit.backbones.noise import draw_noise
from asgkit.config import GeneratorConfig
from asgkit.learning.anchor import SamplingPolicy
from asgkit.stages.answer import Rollout
from asgkit.updates import (
    candidate_weights,
    group_advantages,
    grpo_loss,
    masked_mean,
    nft_loss,
    prediction_drift,
    token_kl,
    weighted_regression_loss,
)


@dataclass(frozen=True)
class Objective:
    """Policy loss and drift, with what the log wants to know; entropy and clip_fraction exist for tokens alone."""

    loss: Tensor
    kl: Tensor
    entropy: float | None = None
    clip_fraction: float | None = None


class Counts(NamedTuple):
    """What means are taken over: rows of the policy loss, tokens of KL and entropy, tokens that a clip may touch."""

    rows: int
    tokens: int
    clipped: int


class Batch(Protocol):
    """What one role learns from in one shard."""

    @property
    def counts(self) -> Counts:
        """What the means of `objective` are taken over."""

    def split(self, size: int | None) -> list[Self]:
        """Parts of at most `size` rows; the batch itself for None."""

    def objective(self, backbone: Backbone, role: Role) -> Objective:
        """Loss and drift, means over the rows, with gradient in `role` alone."""


TextLoss = Callable[[TextStats, "TextBatch", Tensor], tuple[Tensor, float | None]]


@dataclass(frozen=True)
class TextBatch:
    """Sampled texts of a role with their advantages (R,); rows that are not `active` (R,) bool count for the KL alone.

    loss: from the policy's statistics, this batch and the mask (R, T) of active tokens to the policy loss and the clip
    fraction (None where nothing is clipped).
    """

    pictures: list[Image.Image]
    rollout: Rollout
    advantages: Tensor
    active: Tensor
    loss: TextLoss

    @property
    def counts(self) -> Counts:
        """Active rows with tokens, tokens of all rows, tokens of active rows."""
        mask = self.rollout.answers.mask.cpu()
        speaking = mask & self.active[:, None]
        return Counts(int(speaking.any(1).sum()), int(mask.sum()), int(speaking.sum()))

    def split(self, size: int | None) -> list[TextBatch]:
        """Parts of at most `size` texts, each with no other pictures than its own: they cost the most memory."""
        rows = len(self.rollout.prompts)
        if size is None or size >= rows:
            return [self]
        return [self._part(slice(i, i + size)) for i in range(0, rows, size)]

    def _part(self, part: slice) -> TextBatch:
        r, a = self.rollout, self.rollout.answers
        seen = sorted(set(r.rows[part]))
        answers = Answers(a.texts[part], a.ids[part], a.mask[part], a.logp[part])
        rollout = Rollout(r.prompts[part], [seen.index(row) for row in r.rows[part]], answers)
        return replace(self, pictures=[self.pictures[i] for i in seen], rollout=rollout,
                       advantages=self.advantages[part], active=self.active[part])

    def objective(self, backbone: Backbone, role: Role) -> Objective:
        """Teacher-forced policy loss, and the exact per-token KL to the frozen base."""
        arguments = (self.pictures, self.rollout.prompts, self.rollout.answers)
        reference = backbone.text_stats(*arguments, rows=self.rollout.rows, role=None, keep_logits=True)
        policy = backbone.text_stats(*arguments, rows=self.rollout.rows, role=role, grad=True, keep_logits=True)
        loss, clip_fraction = self.loss(policy, self, policy.mask & self.active[:, None].to(policy.mask.device))
        return Objective(loss, token_kl(policy.logits, reference.logits, policy.mask),
                         masked_mean(policy.entropy.detach(), policy.mask).item(), clip_fraction)


@dataclass(frozen=True)
class Examples:
    """What the Generator is trained on: prompts, codes (B, ...), weights (B,), and the tokens' log-probabilities
    when they were sampled (None for a regression, or for codes that nobody sampled)."""

    prompts: list[str]
    codes: Tensor
    weights: Tensor
    behaviour: Tensor | None


@dataclass(frozen=True)
class DrawingBatch:
    """Examples with their noise: every row is a drawing, and all drawings have equally many codes."""

    examples: Examples
    noise: NoiseSpec | None
    settings: GeneratorConfig
    anchor: SamplingPolicy | None = None  # what `nft` is measured against (None: the frozen base)

    @property
    def counts(self) -> Counts:
        """Drawings, for every mean: each has the same number of tokens or pixels."""
        rows = len(self.examples.prompts)
        return Counts(rows, rows, rows)

    def split(self, size: int | None) -> list[DrawingBatch]:
        """Parts of at most `size` drawings; each drawing keeps its own noise."""
        rows = len(self.examples.prompts)
        if size is None or size >= rows:
            return [self]
        return [self._part(slice(i, i + size)) for i in range(0, rows, size)]

    def _part(self, part: slice) -> DrawingBatch:
        e, n = self.examples, self.noise
        examples = Examples(e.prompts[part], e.codes[part], e.weights[part],
                            None if e.behaviour is None else e.behaviour[part])
        return replace(self, examples=examples, noise=n and NoiseSpec(n.t[part], n.seeds[part]))

    def objective(self, backbone: Backbone, role: Role) -> Objective:
        """Loss and drift of the weighted examples through the model's own way of drawing."""
        arguments = (self.examples.prompts, self.examples.codes)
        reference = backbone.generation_stats(*arguments, role=None, noise=self.noise, keep_logits=True)
        old = reference
        if self.anchor:
            with self.anchor.active():
                old = backbone.generation_stats(*arguments, role=role, noise=self.noise)
        policy = backbone.generation_stats(*arguments, role=role, noise=self.noise, grad=True, keep_logits=True)
        if policy.logp is not None:
            return _token_objective(policy, reference, self.examples, self.settings)
        if self.settings.regression_space == "velocity" and backbone.spec.predicts == "clean":
            policy, reference, old = (_as_velocity(stats, self.noise) for stats in (policy, reference, old))
        return _regression_objective(policy, reference, old, self.examples, self.settings)


def weigh_candidates(rewards: Tensor, passed: Tensor, tokens: bool, g: GeneratorConfig, control: str) -> Tensor:
    """Weights (G, L) of the candidates; cards that failed the quality gate weigh nothing.

    Tokens follow the group-relative advantage; a regression follows `generator.regression`; the control `best_of`
    takes the best candidate for both.
    """
    if control == "best_of":
        weights = candidate_weights(rewards, "best")
    elif tokens or g.regression != "rwr":
        weights = candidate_weights(rewards, "advantage")
    else:
        weights = candidate_weights(rewards, "rwr", center=g.center, temperature=g.reward_temperature)
    return weights * passed[:, None].to(weights)


def choose_examples(prompts: Sequence[str], codes: Tensor, behaviour: Tensor | None, weights: Tensor) -> Examples:
    """The candidates of all groups that have a weight, of G x L in group order. weights: (G, L).

    A group without any weight is left out, so that it does not dilute the others. In a group that has one, every
    candidate counts in the means, those of weight 0 too: an advantage that happens to be exactly 0 is no other than one
    of 1e-9, and `best_of`, whose weights are L and zeros, is then the mean loss of the best candidates.
    """
    flat = weights.flatten()
    keep = (weights != 0).any(1).repeat_interleave(weights.shape[1]).nonzero()[:, 0]
    return Examples([prompts[int(i)] for i in keep], codes[keep.to(codes.device)], flat[keep],
                    None if behaviour is None else behaviour[keep.to(behaviour.device)])


def source_examples(prompts: Sequence[str], codes: Tensor, rewards: Tensor, passed: Tensor) -> Examples:
    """The released target: the real image itself, weighted `1 + best reward / 2`, one example per card that passed.

    Shapes: prompts (G,), codes (G, ...), rewards (G, L), passed (G,). Source: spec: generation 3.1.
    """
    keep = passed.nonzero()[:, 0]
    weights = 1.0 + 0.5 * rewards.max(1).values.clamp(0.0, 1.0)
    return Examples([prompts[int(i)] for i in keep], codes[keep.to(codes.device)], weights[keep], None)


def drawing_batch(prompts: Sequence[str], codes: Tensor, behaviour: Tensor | None, rewards: Tensor, passed: Tensor, *,
                  times: str, settings: GeneratorConfig, control: str, rng: np.random.Generator,
                  anchor: SamplingPolicy | None = None) -> DrawingBatch | None:
    """What the Generator learns from the candidates of G cards; None if nothing weighs.

    codes: of the G x L candidates, with their tokens' log-probabilities `behaviour` (None for a regression). prompts
    (G,), rewards (G, L), passed (G,). times: see `draw_times`. anchor: see `DrawingBatch`.
    """
    weights = weigh_candidates(rewards, passed, behaviour is not None, settings, control)
    repeated = [prompt for prompt in prompts for _ in range(settings.candidates)]
    found = _with_noise(choose_examples(repeated, codes, behaviour, weights), times, settings, rng)
    return found and replace(found, anchor=anchor)


def source_batch(prompts: Sequence[str], codes: Tensor, rewards: Tensor, passed: Tensor, *, times: str,
                 settings: GeneratorConfig, rng: np.random.Generator) -> DrawingBatch | None:
    """What the Generator learns from the G real images, as released: see `source_examples`; None if no card passed."""
    return _with_noise(source_examples(prompts, codes, rewards, passed), times, settings, rng)


def _with_noise(examples: Examples, times: str, settings: GeneratorConfig, rng: np.random.Generator
                ) -> DrawingBatch | None:
    """Examples with the noise that policy and reference share."""
    if not examples.prompts:
        return None
    return DrawingBatch(examples, draw_noise(times, len(examples.prompts), settings.noise_draws, rng), settings)


def _token_objective(policy: GenStats, reference: GenStats, examples: Examples, g: GeneratorConfig) -> Objective:
    mask = torch.ones_like(policy.logp, dtype=torch.bool)
    behaviour = policy.logp.detach() if examples.behaviour is None else examples.behaviour
    weights = examples.weights.to(policy.logp.device)
    loss, stats = grpo_loss(policy.logp, behaviour, weights, mask, clip=g.clip)
    kl = token_kl(policy.logits, reference.logits, mask)
    return Objective(loss, kl, policy.entropy.detach().mean().item(), stats["clip_fraction"])


def _as_velocity(stats: GenStats, noise: NoiseSpec) -> GenStats:
    """Clean latents `x_t - t v` of a flow as velocities, up to one shift of prediction and target: divided by t."""
    t = noise.t.to(stats.pred).reshape(*noise.t.shape, *[1] * (stats.pred.dim() - noise.t.dim()))
    pred, target = stats.pred / t, stats.target / t
    return replace(stats, loss=(pred - target).square().flatten(1).mean(1), pred=pred, target=target)


def _regression_objective(policy: GenStats, reference: GenStats, old: GenStats, examples: Examples, g: GeneratorConfig
                          ) -> Objective:
    """old: what `nft` is measured against."""
    weights = examples.weights.to(policy.loss.device)
    if g.regression == "nft":
        loss = nft_loss(policy.pred, old.pred, policy.target, weights, beta=g.nft_beta)
    else:
        loss = weighted_regression_loss(policy.loss, weights)
    return Objective(loss, prediction_drift(policy.pred, reference.pred))


def logged_advantages(rewards: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Group-relative advantages (G, L) for the log, and which groups (G,) have a contrast and passed the gate."""
    advantages, active = group_advantages(rewards)
    active = active & passed
    return advantages * active[:, None], active
