"""The Generator's native objective: one way from rewards of candidates to a loss, for tokens and for regression.

    weights  = candidate_weights(rewards)          which candidates to move towards, and which away from
    loss     = mean_i weights_i * native_loss_i    -log p of tokens (clipped ratio), squared error of a regression
    kl       = drift from the frozen base          exact per token, |v - v_ref|^2 under the same noise

Source: paper (generation step 5); spec: related 0.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asgkit.backbones.base import Backbone, GenStats, NoiseSpec, Role
from asgkit.config import GeneratorConfig
from asgkit.updates import (
    candidate_weights,
    group_advantages,
    grpo_loss,
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


@dataclass(frozen=True)
class Examples:
    """What the Generator is trained on: prompts, codes (B, ...), weights (B,), and the tokens' log-probabilities
    when they were sampled (None for a regression, or for codes that nobody sampled)."""

    prompts: list[str]
    codes: Tensor
    weights: Tensor
    behaviour: Tensor | None


def draw_times(shape: tuple[int, ...], how: str, rng: np.random.Generator) -> Tensor:
    """Times in (0, 1] of a regression loss: `logit_normal` sigmoid(N(0, 1)), or `uniform`."""
    if how == "logit_normal":
        return torch.from_numpy(1.0 / (1.0 + np.exp(-rng.standard_normal(shape)))).float()
    if how == "uniform":
        return torch.from_numpy(1.0 - rng.random(shape)).float()
    raise ValueError(f"times are 'logit_normal' or 'uniform', not {how!r}")


def draw_noise(how: str, rows: int, draws: int, rng: np.random.Generator) -> NoiseSpec | None:
    """Times and noise seeds for `rows` drawings, the same for policy and reference; None for tokens (`none`)."""
    if how == "none":
        return None
    return NoiseSpec(draw_times((rows, draws), how, rng), rng.integers(2**31, size=rows).tolist())


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
    """The candidates with a weight, of G x L in group order. weights: (G, L)."""
    flat = weights.flatten()
    keep = flat.nonzero()[:, 0]
    return Examples([prompts[int(i)] for i in keep], codes[keep.to(codes.device)], flat[keep],
                    None if behaviour is None else behaviour[keep.to(behaviour.device)])


def source_examples(prompts: Sequence[str], codes: Tensor, rewards: Tensor, passed: Tensor) -> Examples:
    """The released target: the real image itself, weighted `1 + best reward / 2`, one example per card that passed.

    Shapes: prompts (G,), codes (G, ...), rewards (G, L), passed (G,). Source: spec: generation 3.1.
    """
    keep = passed.nonzero()[:, 0]
    weights = 1.0 + 0.5 * rewards.max(1).values.clamp(0.0, 1.0)
    return Examples([prompts[int(i)] for i in keep], codes[keep.to(codes.device)], weights[keep], None)


def native_objective(backbone: Backbone, examples: Examples, g: GeneratorConfig, role: Role,
                     rng: np.random.Generator) -> Objective:
    """Loss and drift of weighted examples through the model's own way of drawing, with gradient in `role`."""
    noise = draw_noise(backbone.spec.times, len(examples.prompts), g.noise_draws, rng)
    arguments = (examples.prompts, examples.codes)
    reference = backbone.generation_stats(*arguments, role=None, noise=noise, keep_logits=True)
    policy = backbone.generation_stats(*arguments, role=role, noise=noise, grad=True, keep_logits=True)
    if policy.logp is not None:
        return _token_objective(policy, reference, examples, g)
    return _regression_objective(policy, reference, examples, g)


def _token_objective(policy: GenStats, reference: GenStats, examples: Examples, g: GeneratorConfig) -> Objective:
    mask = torch.ones_like(policy.logp, dtype=torch.bool)
    behaviour = policy.logp.detach() if examples.behaviour is None else examples.behaviour
    weights = examples.weights.to(policy.logp.device)
    loss, stats = grpo_loss(policy.logp, behaviour, weights, mask, clip=g.clip)
    kl = token_kl(policy.logits, reference.logits, mask)
    return Objective(loss, kl, policy.entropy.detach().mean().item(), stats["clip_fraction"])


def _regression_objective(policy: GenStats, reference: GenStats, examples: Examples, g: GeneratorConfig) -> Objective:
    weights = examples.weights.to(policy.loss.device)
    if g.regression == "nft":
        loss = nft_loss(policy.pred, reference.pred, policy.target, weights, beta=g.nft_beta)
    else:
        loss = weighted_regression_loss(policy.loss, weights)
    return Objective(loss, prediction_drift(policy.pred, reference.pred))


def logged_advantages(rewards: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Group-relative advantages (G, L) for the log, and which groups (G,) have a contrast and passed the gate."""
    advantages, active = group_advantages(rewards)
    active = active & passed
    return advantages * active[:, None], active
