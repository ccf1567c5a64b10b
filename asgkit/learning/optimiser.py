"""One optimiser per role: AdamW on that role's tensors, its adaptive KL coefficient, its warm-up.

A step's loss is the mean over all rows of all shards of all ranks. Each part that fits into memory adds its share:

    L = sum_parts [ rows_part / rows * L_part  +  beta * tokens_part / tokens * KL_part ]

so the gradient does not depend on how the batch was cut. A mean of means would weigh a short part's rows more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from asgkit.backbones.base import Backbone, Role
from asgkit.config import Config
from asgkit.errors import StopSignal
from asgkit.learning.objectives import Batch, Counts, Objective
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.runs.state import Tensors, optimizer_state, restore_optimizer
from asgkit.scale.shards import Shard
from asgkit.scale.team import Team
from asgkit.updates import AdaptiveKL

DROPOUT = 103  # stream of LoRA dropout, the only use of the global generator


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
    """`accumulate` adds a part's gradient, `finish` sums and checks it, `apply` takes the one step; nothing else moves
    weights."""

    def __init__(self, backbone: Backbone, role: Role, learning_rate: float, config: Config) -> None:
        self.role, self.learning_rate, self.config = role, learning_rate, config
        self.parameters = backbone.role_parameters(role)
        self.adam = torch.optim.AdamW(self.parameters, lr=learning_rate, betas=(0.9, config.optimiser.beta2),
                                      weight_decay=config.optimiser.weight_decay)
        kl = config.kl
        self.kl = AdaptiveKL(kl.coefficient, kl.target, kl.rate, kl.low, kl.high)
        self.steps = 0

    def accumulate(self, part: Objective, mine: Counts, total: Counts) -> dict[str, float | None]:
        """Add the gradient of one part's share of the loss; returns the part's share of each statistic.

        mine, total: what the part's and the whole step's means are taken over. Raises NonFiniteValue for the loss.
        """
        tokens, clipped = mine.tokens / total.tokens, mine.clipped / total.clipped
        policy, kl = part.loss * (mine.rows / total.rows), part.kl * tokens
        loss = policy + self.kl.coefficient * kl
        BadStepGuard.check_finite(f"{self.role}/loss", loss.detach())
        loss.backward()
        return {"loss": loss.item(), "policy_loss": policy.item(), "kl": kl.item(),
                "entropy": None if part.entropy is None else part.entropy * tokens,
                "clip_fraction": None if part.clip_fraction is None else part.clip_fraction * clipped}

    def finish(self, shares: Sequence[Mapping[str, float | None]], team: Team) -> UpdateStats:
        """Sum gradients over the ranks, then clip; raises NonFiniteValue, on every rank, before anything moved.

        shares: what `accumulate` returned here; the other ranks' are fetched.
        """
        everyone = team.gather(shares)
        team.sum_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimiser.clip)
        BadStepGuard.check_finite(f"{self.role}/grad_norm", norm)
        start, rest = everyone[0], everyone[1:]
        sums = {name: None if value is None else sum((share[name] for share in rest), start=value)
                for name, value in start.items()}
        return UpdateStats(**sums, kl_coefficient=self.kl.coefficient, grad_norm=norm.item(), applied=True)

    def apply(self, stats: UpdateStats) -> None:
        """Take the step whose gradient `finish` left, then adapt the KL coefficient; does nothing if skipped."""
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


def learn(backbone: Backbone, optimisers: Mapping[Role, RoleOptimiser],
          work: Sequence[tuple[Shard, Mapping[Role, Batch | None]]], *, team: Team, micro_batch: int | None,
          stop: StopSignal) -> dict[Role, UpdateStats]:
    """Gradients of one step for every role of `work`, ready to apply: all are finite, or NonFiniteValue is raised.

    work: this rank's shards, each with one batch per role (None: nothing to learn from). A role that no rank has rows
    for is skipped; one that some rank has rows for is reduced on all. micro_batch: rows per pass, None for all.
    """
    roles = list(work[0][1])
    totals = {role: count_all(team, [batches[role] for _, batches in work]) for role in roles}
    live = [role for role in roles if totals[role].rows]
    shares: dict[Role, list[dict[str, float | None]]] = {role: [] for role in live}

    def accumulate() -> None:
        for shard, batches in work:
            torch.manual_seed(shard.number(DROPOUT))
            for role in live:
                for part in batches[role].split(micro_batch) if batches[role] else ():
                    stop.check()
                    found = part.objective(backbone, optimisers[role].role)
                    shares[role].append(optimisers[role].accumulate(found, part.counts, totals[role]))
        stop.check()

    for role in live:
        optimisers[role].adam.zero_grad(set_to_none=True)
    team.agree(accumulate)
    return {role: optimisers[role].finish(shares[role], team) if role in live else optimisers[role].skipped()
            for role in roles}


def count_all(team: Team, batches: Sequence[Batch | None]) -> Counts:
    """What a step's means are taken over: the counts of the batches of all ranks."""
    counts = team.gather([list(batch.counts) for batch in batches if batch])
    return Counts(*(sum(column) for column in zip(*counts, strict=True))) if counts else Counts(0, 0, 0)
