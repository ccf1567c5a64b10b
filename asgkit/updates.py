"""From scores to losses: advantages, policy gradients, divergence to the frozen base, weighted regression.

Every function takes log-probabilities (nats, fp32) of tokens that were sampled, under the conditioning they
were sampled with. Masks are True on completion tokens; a row whose mask is all False takes part in nothing.
"""

import math
from typing import Any

import torch
from torch import Tensor

# exp() of a larger log-ratio overflows, and the unused branch of the clipped minimum gives 0 * inf.
MAX_LOG_RATIO = 20.0


def group_advantages(
    rewards: Tensor, *, mask: Tensor | None = None, epsilon: float = 1e-6, scale: bool = True
) -> tuple[Tensor, Tensor]:
    """Group-relative advantages: how much better than its own group each member did.

    `A_i = (r_i - mean) / (std + epsilon)`, population std; `scale=False` leaves the division out.

    Shapes: rewards (G, L), mask (G, L) bool -> advantages (G, L) fp32, active (G,) bool. Masked-out members
    are not in the statistics and get 0. A group whose std is at most epsilon (rounding noise included), or
    that has one member, has nothing to say: zeros, and active is False. Raises ValueError for other shapes
    and for NaN or inf among the members. Source: paper (GRPO); spec: understanding 1.12 (core form),
    generation 3.3.
    """
    if rewards.dim() != 2 or (mask is not None and mask.shape != rewards.shape):
        raise ValueError("rewards and mask must both be (G, L): one row per group")
    member = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask.bool()
    r = torch.where(member, rewards.detach().float(), 0.0)
    if not torch.isfinite(r).all():
        raise ValueError("group_advantages: NaN or inf reward; mask that member out or skip the step")
    count = member.sum(dim=1, keepdim=True).clamp(min=1)
    centred = torch.where(member, r - r.sum(dim=1, keepdim=True) / count, 0.0)
    std = (centred.square().sum(dim=1, keepdim=True) / count).sqrt()
    active = std > epsilon
    advantages = centred / (std + epsilon) if scale else centred
    return torch.where(active, advantages, 0.0), active.squeeze(1)


class EMABaseline:
    """Running mean reward, subtracted to lower the variance of REINFORCE.

    `b <- momentum * b + (1 - momentum) * r`; the first update sets b. Source: paper; spec: understanding 2.8.
    """

    def __init__(self, momentum: float = 0.6) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        self.momentum = momentum
        self.value: float | None = None

    def update(self, mean_reward: float) -> float:
        """Fold in the mean reward of one step and return the new value; raises ValueError on NaN or inf."""
        r = _finite(mean_reward, "EMABaseline")
        self.value = r if self.value is None else self.momentum * self.value + (1.0 - self.momentum) * r
        return self.value

    def advantage(self, r: float | Tensor) -> float | Tensor:
        """`r - b`, float or tensor; before the first update b is 0, which leaves REINFORCE unbiased."""
        return r - (0.0 if self.value is None else self.value)

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run, as JSON-able values."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; raises ValueError for other keys."""
        _check_keys(state, {"value"}, "EMABaseline")
        self.value = None if state["value"] is None else _finite(state["value"], "EMABaseline")


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the True entries of mask, a scalar; 0 (with a gradient of 0) when there is none.

    Shapes: x and mask alike, any. Values outside the mask are never read, so NaN there is harmless.
    """
    _same_shape(x, mask)
    mask = mask.bool()
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def sequence_logp(logp: Tensor, mask: Tensor) -> Tensor:
    """Mean log-probability per token of each sequence: `l_i = sum_t m_it logp_it / sum_t m_it`.

    Shapes: logp (B, T) nats, mask (B, T) bool -> (B,). A row without tokens gives 0. The mean, not the sum,
    is the released code's choice: long completions do not outweigh short ones. Source: spec: understanding
    1.12.
    """
    _same_shape(logp, mask)
    mask = mask.bool()
    return torch.where(mask, logp.float(), 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def reinforce_loss(logp: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """REINFORCE: `L = -mean_i A_i l_i`, `l_i` the mean token log-probability, over rows that have tokens.

    Shapes: logp (B, T) nats, advantages (B,), mask (B, T) bool -> scalar. Advantages carry no gradient. To
    leave a row out of the mean (a skipped group), clear its mask: an advantage of 0 still counts in the
    denominator. Source: paper (Solver update); spec: understanding 2.8.
    """
    _row_shape(advantages, logp)
    weighted = advantages.detach().float() * sequence_logp(logp, mask)
    return -masked_mean(weighted, mask.bool().any(dim=1))


def grpo_loss(
    logp: Tensor, behaviour_logp: Tensor, advantages: Tensor, mask: Tensor, *, clip: float = 0.2
) -> tuple[Tensor, dict[str, float]]:
    """Clipped policy gradient with one ratio per token against the policy that sampled.

    `rho_it = exp(logp_it - behaviour_it)`,
    `L = -mean_i mean_t min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i)`: tokens first, then sequences.

    Shapes: logp and behaviour_logp (B, T) nats, advantages (B,), mask (B, T) bool -> scalar and statistics:
    `ratio_mean`, and `clip_fraction`, the share of tokens on which the clip removes the gradient. On policy
    every ratio is 1 and the gradient is that of :func:`reinforce_loss`. Source: paper (Proposer update);
    the released code clips one ratio per sequence against the frozen base, B11.
    """
    _row_shape(advantages, logp)
    _same_shape(logp, behaviour_logp)
    mask = mask.bool()
    log_ratio = torch.where(mask, logp.float() - behaviour_logp.detach().float(), 0.0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantage = advantages.detach().float().unsqueeze(1)  # (B, 1)
    free, clipped = ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage
    loss = -masked_mean(sequence_logp(torch.minimum(free, clipped), mask), mask.any(dim=1))
    stats = {
        "ratio_mean": masked_mean(ratio.detach(), mask).item(),
        "clip_fraction": masked_mean((clipped < free).float(), mask).item(),
    }
    return loss, stats


def sft_loss(logp: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """Supervised loss on chosen answers: `L = -mean_{i in rows} l_i`, mean token NLL per row, then over rows.

    Shapes: logp (B, T) nats, mask (B, T) bool, rows (B,) bool -> scalar nats; no row gives 0 with a
    gradient of 0. Source: ours, the pseudo-label form of the Solver update (rows: vote share of at least
    5/7).
    """
    _row_shape(rows, logp)
    return -masked_mean(sequence_logp(logp, mask), rows.bool() & mask.bool().any(dim=1))


def token_kl(logits: Tensor, reference_logits: Tensor, mask: Tensor) -> Tensor:
    """Exact divergence from the frozen base: `KL = mean_t sum_v p_tv (ln p_tv - ln q_tv)` over masked tokens.

    Shapes: logits (B, T, V) of the policy p, reference_logits (B, T, V) of the base q, mask (B, T) bool ->
    scalar nats >= 0, fp32; the gradient reaches `logits` only. Tokens that p excludes (-inf) add nothing.
    Source: paper (drift bound C3); spec: understanding 2.8.
    """
    _same_shape(logits, reference_logits)
    _same_shape(logits[..., 0], mask)
    mask = mask.bool()
    # Select before the softmax: masked-out positions cost no memory and cannot send NaN backwards.
    log_p = torch.log_softmax(logits[mask].float(), dim=-1)  # (tokens, V)
    log_q = torch.log_softmax(reference_logits.detach()[mask].float(), dim=-1)
    excluded = torch.isneginf(log_p)
    difference = torch.where(excluded, 0.0, log_p) - torch.where(excluded, 0.0, log_q)
    kl = (log_p.exp() * difference).sum(dim=-1).clamp(min=0.0)
    return kl.sum() / max(1, kl.numel())


def k3_kl(logp: Tensor, reference_logp: Tensor, mask: Tensor) -> Tensor:
    """Sampled estimate of the same divergence: `mean_t (exp(d) - d - 1)`, `d = reference_logp - logp`.

    Shapes: logp, reference_logp (B, T) nats, mask (B, T) bool -> scalar nats >= 0; gradient to `logp` only.
    For vocabularies too large to keep both logits. Unbiased for tokens sampled from the policy.
    """
    _same_shape(logp, reference_logp)
    d = torch.where(mask.bool(), reference_logp.detach().float() - logp.float(), 0.0)
    return masked_mean(torch.expm1(d) - d, mask)


class AdaptiveKL:
    """Coefficient of the KL penalty, steered so that the measured KL stays near a target.

    `b <- clip(b * exp(rate * clip((KL - target) / target, -50, 50)), low, high)`.
    Source: paper (0.01, target 0.02, rate 0.10, bounds 1e-3..1e2); spec: understanding 2.9.
    """

    def __init__(
        self,
        coefficient: float = 0.01,
        target: float = 0.02,
        rate: float = 0.10,
        low: float = 1e-3,
        high: float = 1e2,
    ) -> None:
        if not (target > 0.0 and rate >= 0.0 and 0.0 < low <= coefficient <= high):
            raise ValueError("AdaptiveKL needs target > 0, rate >= 0 and 0 < low <= coefficient <= high")
        self.coefficient = coefficient
        self.target = target
        self.rate = rate
        self.low = low
        self.high = high

    def update(self, kl: float) -> float:
        """Adapt to one measured mean token KL (nats), return the coefficient; ValueError on NaN or inf."""
        error = (_finite(kl, "AdaptiveKL") - self.target) / self.target
        grown = self.coefficient * math.exp(self.rate * min(50.0, max(-50.0, error)))
        self.coefficient = min(self.high, max(self.low, grown))
        return self.coefficient

    def state_dict(self) -> dict[str, Any]:
        """What changes during a run, as JSON-able values."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; raises ValueError for other keys or a value out of bounds."""
        _check_keys(state, {"coefficient"}, "AdaptiveKL")
        if not self.low <= state["coefficient"] <= self.high:
            raise ValueError(f"coefficient {state['coefficient']} is outside {self.low}..{self.high}")
        self.coefficient = float(state["coefficient"])


def candidate_weights(rewards: Tensor, mode: str, *, center: bool = False, temperature: float = 0.1) -> Tensor:
    """How much each of L candidates weighs in the Generator's loss `mean_i w_i loss_i`.

    `advantage`: w = :func:`group_advantages` (GRPO on tokens, AWM on a regression loss); zero where all are alike.
    `rwr`: `w = L softmax(r / temperature)` within the group, minus 1 with `center=True`; a constant reward gives the
    plain loss (centred: zero). `best`: L for the best candidate, 0 for the others (supervised fine-tuning on the
    best of L). Weights carry no gradient.

    Shapes: rewards (G, L) -> (G, L) fp32. Raises ValueError for an unknown mode, NaN rewards or temperature <= 0.
    Source: paper (reward-weighted denoising); spec: generation 3.1, related 0.4.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    advantages, _ = group_advantages(rewards)  # also refuses other shapes and NaN, for every mode
    if mode == "advantage":
        return advantages
    count = rewards.shape[1]
    if mode == "rwr":
        return count * torch.softmax(rewards.detach().float() / temperature, dim=1) - float(center)
    if mode == "best":
        return count * torch.nn.functional.one_hot(rewards.argmax(1), count).float()
    raise ValueError(f"mode must be 'advantage', 'rwr' or 'best', got {mode!r}")


def weighted_regression_loss(error: Tensor, weights: Tensor) -> Tensor:
    """Flow or denoising loss in which better candidates weigh more: `mean_i w_i error_i`.

    Shapes: error (B,) mean squared error per candidate, weights (B,) -> scalar. Raises ValueError for other shapes.
    Source: paper (reward-weighted denoising); spec: generation 3.1.
    """
    _same_shape(error, weights)
    return (weights.detach() * error.float()).mean()


def nft_loss(prediction: Tensor, reference: Tensor, target: Tensor, advantages: Tensor, *, beta: float = 0.2,
             largest: float = 5.0) -> Tensor:
    """Bounded contrast of winners and losers around a reference (negative-aware fine-tuning): the policy that sampled
    (as published) or the frozen base.

    `r = clip(1/2 + A / (2 largest), 0, 1)`; `v+ = (1 - beta) v_ref + beta v`, `v- = (1 + beta) v_ref - beta v`;
    `L = mean_i [r |v+ - target|^2 + (1 - r) |v- - target|^2] / beta`, mean over all other dimensions.
    At v = v_ref its gradient is `(2 r - 1)` times that of the plain loss, so a loser (r < 1/2) is pushed away from,
    by a loss that is bounded from below.

    Shapes: prediction, reference, target (B, ...), advantages (B,) -> scalar; gradient to `prediction` only. Raises
    ValueError for other shapes or beta outside (0, 1]. Source: spec: related 0.4, 2 (DiffusionNFT).
    """
    _same_shape(prediction, reference)
    _same_shape(prediction, target)
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta must lie in (0, 1], got {beta}")
    r = (0.5 + advantages.detach().float() / (2.0 * largest)).clamp(0.0, 1.0)
    base, goal, v = reference.detach().float(), target.detach().float(), prediction.float()
    toward = ((1.0 - beta) * base + beta * v - goal).square().flatten(1).mean(1)
    away = ((1.0 + beta) * base - beta * v - goal).square().flatten(1).mean(1)
    return ((r * toward + (1.0 - r) * away) / beta).mean()


def prediction_drift(prediction: Tensor, reference: Tensor) -> Tensor:
    """Distance to the frozen base of a regression policy: `mean |v - v_ref|^2`, the KL up to the noise's variance.

    Shapes: both alike -> scalar >= 0; gradient to `prediction` only. Source: paper (drift bound C3).
    """
    _same_shape(prediction, reference)
    return (prediction.float() - reference.detach().float()).square().mean()


def _same_shape(x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape:
        raise ValueError(f"shapes must agree, got {tuple(x.shape)} and {tuple(other.shape)}")


def _row_shape(per_row: Tensor, logp: Tensor) -> None:
    if logp.dim() != 2 or per_row.shape != logp.shape[:1]:
        raise ValueError(f"need (B,) values, (B, T) tokens, got {tuple(per_row.shape)}, {tuple(logp.shape)}")


def _finite(x: float, who: str) -> float:
    value = float(x)
    if not math.isfinite(value):
        raise ValueError(f"{who}: {value} is not finite; skip the step that made it")
    return value


def _check_keys(state: dict[str, Any], keys: set[str], who: str) -> None:
    if set(state) != keys:
        raise ValueError(f"a {who} state has the keys {sorted(keys)}, got {sorted(state)}")
