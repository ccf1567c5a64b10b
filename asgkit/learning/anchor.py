"""The policy that samples, where it is not the one that learns: a running mean of a role's weights.

    old <- decay * old + (1 - decay) * new        after every step that drew

DiffusionNFT draws from `old` and measures winners and losers against it. Source: spec: related 0.4, 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from asgkit.backbones.base import Backbone
from asgkit.config import Config


class SamplingPolicy:
    """Running mean of the tensors of one role, which can stand in their place for a while."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.kept = [p.detach().clone() for p in self.parameters]

    def follow(self) -> None:
        """Move a share of the way to the weights as they are now."""
        for kept, p in zip(self.kept, self.parameters, strict=True):
            kept.mul_(self.decay).add_(p.detach(), alpha=1.0 - self.decay)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The running mean in place of the weights; a gradient taken inside would be of other weights."""
        own = [p.detach().clone() for p in self.parameters]
        try:
            self._set(self.kept)
            yield
        finally:
            self._set(own)

    def _set(self, values: Sequence[torch.Tensor]) -> None:
        with torch.no_grad():
            for p, value in zip(self.parameters, values, strict=True):
                p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The running mean, tensor by tensor."""
        return {str(i): kept.cpu() for i, kept in enumerate(self.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved mean back; raises KeyError for another number of tensors."""
        for i, kept in enumerate(self.kept):
            kept.copy_(state[str(i)])


def sampling_policy(backbone: Backbone, config: Config) -> SamplingPolicy | None:
    """The Generator's sampling policy where `nft` is anchored at it, else None."""
    g = config.generator
    asked = g.train and g.regression == "nft" and g.nft_anchor == "policy"
    if not asked or backbone.spec.draws_tokens:
        return None
    return SamplingPolicy(backbone.role_parameters("generator"), g.nft_decay)
