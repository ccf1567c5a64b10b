"""One optimiser per role: AdamW on that role's tensors, its adaptive KL coefficient, its warm-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asgkit.backbones.base import Backbone, Role
from asgkit.config import Config
from asgkit.faults import BadStepGuard
from asgkit.state import Tensors, optimizer_state, restore_optimizer
from asgkit.updates import AdaptiveKL


@dataclass(frozen=True)
class UpdateStats:
    """What one role's optimiser step did; None where there was nothing to do."""

    loss: float | None = None
    policy_loss: float | None = None
    kl: float | None = None
    kl_coefficient: float = 0.0
    grad_norm: float | None = None
    entropy: float | None = None
    clip_fraction: float | None = None
    applied: bool = False

    def record(self, role: Role) -> dict[str, Any]:
        """The same values under the log's names."""
        return {f"{role}/{name}": value for name, value in vars(self).items()}


class RoleOptimiser:
    """`backward` computes a role's gradient and checks it, `apply` takes the one step; nothing else moves weights."""

    def __init__(self, backbone: Backbone, role: Role, learning_rate: float, config: Config) -> None:
        self.role, self.learning_rate, self.config = role, learning_rate, config
        self.parameters = backbone.role_parameters(role)
        self.adam = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=(0.9, config.optimiser.beta2),
                                      weight_decay=config.optimiser.weight_decay)
        kl = config.kl
        self.kl = AdaptiveKL(kl.coefficient, kl.target, kl.rate, kl.low, kl.high)
        self.steps = 0

    def backward(self, policy_loss: Tensor, kl: Tensor, *, entropy: float | None, clip_fraction: float | None = None
                 ) -> UpdateStats:
        """Gradient of policy_loss + coefficient * kl, clipped; raises NonFiniteValue before anything moved."""
        coefficient = self.kl.coefficient
        loss = policy_loss + coefficient * kl
        BadStepGuard.check_finite(f"{self.role}/loss", loss.detach())
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimiser.clip)
        BadStepGuard.check_finite(f"{self.role}/grad_norm", norm)
        return UpdateStats(loss.item(), policy_loss.item(), kl.item(), coefficient, norm.item(), entropy,
                           clip_fraction, True)

    def apply(self, stats: UpdateStats) -> None:
        """Take the step whose gradient `backward` left, then adapt the KL coefficient; does nothing if skipped."""
        if not stats.applied:
            return
        warmup = self.config.optimiser.warmup
        scale = min(1.0, (self.steps + 1) / warmup) if warmup else 1.0
        for group in self.adam.param_groups:
            group["lr"] = self.learning_rate * scale
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.kl.update(stats.kl)
        self.steps += 1

    def skipped(self) -> UpdateStats:
        """Statistics of a step that had nothing to learn from."""
        return UpdateStats(kl_coefficient=self.kl.coefficient)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Everything that a resume needs, without pickle."""
        tensors, values = optimizer_state(self.adam)
        return tensors, {"adam": values, "kl": self.kl.state_dict(), "steps": self.steps}

    def restore(self, tensors: Tensors, values: dict[str, Any]) -> None:
        """Put a saved state back."""
        restore_optimizer(self.adam, tensors, values["adam"])
        self.kl.load_state_dict(values["kl"])
        self.steps = values["steps"]
