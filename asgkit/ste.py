"""Solver Token Entropy (STE): how unsure the Solver is while it writes one greedy answer.

Symbols of the paper: `H_t` is :func:`token_entropy`, `H^` is :func:`solver_token_entropy`, and `d_ste` is
what :class:`RollingPercentile` returns. Everything here is pure: tensors and floats in, tensors and floats
out.
"""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

Aggregation = Literal["max", "mean"]


def token_entropy(logits: Tensor) -> Tensor:
    """Shannon entropy of the next-token distribution at every position, from raw logits.

    `H_t = -sum_v p_{t,v} ln p_{t,v}`, `p_t = softmax(logits_t)` over the whole vocabulary.

    Shapes: logits (B, T, V), any float dtype -> (B, T) float32, in nats, between 0 and ln V.
    A logit of -inf means probability zero and adds nothing. Pass logits from before temperature, top-k and
    penalties: processed scores hide exactly the doubt that is measured here.
    Raises TypeError for integer input and ValueError where a position has no distribution.
    Source: paper; spec: understanding 3.
    """
    if not logits.is_floating_point():
        raise TypeError(f"token_entropy needs floating-point logits, got {logits.dtype}: pass scores")
    log_p = torch.log_softmax(logits.float(), dim=-1)
    # 0 * ln 0 = 0: replace the -inf before multiplying, so that neither value nor gradient becomes NaN.
    safe = torch.where(torch.isneginf(log_p), torch.zeros_like(log_p), log_p)
    entropy = -(log_p.exp() * safe).sum(dim=-1)
    if not torch.isfinite(entropy).all():
        raise ValueError(
            "token_entropy: NaN, +inf or all -inf logits at some position; check the forward pass"
        )
    return entropy.clamp(min=0.0)


def solver_token_entropy(
    entropy: Tensor, mask: Tensor, first: int = 5, aggregation: Aggregation = "max"
) -> Tensor:
    """One uncertainty per answer: the largest (or mean) entropy over its first answer tokens.

    `H^ = max_{t <= min(T, first)} H_t`, where t counts only positions that `mask` lets in.

    Shapes: entropy (B, T) in nats, mask (B, T) bool (True on answer tokens) -> (B,) nats.
    A row without any answer token gives 0. `mean` is the paper's control.
    Raises ValueError for other shapes, `first < 1`, an unknown aggregation, or NaN under the mask.
    Source: paper; spec: understanding 3.
    """
    if entropy.dim() != 2 or entropy.shape != mask.shape:
        raise ValueError(f"entropy and mask must be (B, T), got {tuple(entropy.shape)}, {tuple(mask.shape)}")
    if first < 1:
        raise ValueError(f"first must be at least 1, got {first}")
    if aggregation not in ("max", "mean"):
        raise ValueError(f"aggregation must be 'max' or 'mean', got {aggregation!r}")
    if entropy.shape[1] == 0:
        return entropy.new_zeros(entropy.shape[0])
    mask = mask.bool()
    keep = mask & (mask.cumsum(dim=1) <= first)
    kept = torch.where(keep, entropy, torch.zeros_like(entropy))
    if not torch.isfinite(kept).all():
        raise ValueError("solver_token_entropy: NaN or inf under the mask; take it from token_entropy")
    if aggregation == "max":
        return kept.amax(dim=1)  # entropies are never negative, so the zeros outside the mask cannot win
    return kept.sum(dim=1) / keep.sum(dim=1).clamp(min=1)


class RollingPercentile:
    """Turns STE in nats into a difficulty `d_ste` in [0, 1] by its rank among recent values.

    `d = (#{w < x} + 0.5 #{w = x}) / n` over the n values already in the window (x itself excluded; ties count
    half). With fewer than `cold` values, `d = sigmoid(1.5 (x - 2.0))`, x in nats.
    The released code ranks strictly and counts x itself, so that its minimum and all its ties are 0.
    Source: paper; spec: understanding 3.
    """

    def __init__(self, window: int = 128, cold: int = 8) -> None:
        if window < 1 or not 0 < cold <= window:
            raise ValueError(f"need window >= 1 and 0 < cold <= window, got window={window}, cold={cold}")
        self.window = window
        self.cold = cold
        self._values: deque[float] = deque(maxlen=window)

    def __len__(self) -> int:
        """Number of values in the window."""
        return len(self._values)

    def rank(self, x: float) -> float:
        """Difficulty of x (nats) in [0, 1] against the window as it is; raises ValueError on NaN or inf."""
        x = _finite(x)
        if len(self._values) < self.cold:
            # sigmoid(z) written with tanh: exp(-z) overflows for far outliers, tanh does not.
            return 0.5 * (1.0 + math.tanh(0.75 * (x - 2.0)))
        smaller = sum(value < x for value in self._values)
        equal = sum(value == x for value in self._values)
        return (smaller + 0.5 * equal) / len(self._values)

    def update(self, x: float) -> float:
        """Rank x (nats), then append it; the oldest value leaves a full window."""
        return self.update_many([x])[0]

    def update_many(self, xs: Iterable[float]) -> list[float]:
        """Rank all xs (nats) against the window as it was, then append them in order.

        The members of one batch or group are thereby on one scale: their order in the batch changes no rank.
        """
        values = [_finite(x) for x in xs]
        ranks = [self.rank(x) for x in values]
        self._values.extend(values)
        return ranks

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as JSON-able values."""
        return {"window": self.window, "cold": self.cold, "values": list(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; raises ValueError if it was made with other settings."""
        if set(state) != {"window", "cold", "values"}:
            raise ValueError(f"a RollingPercentile state has window, cold and values, got {sorted(state)}")
        if (state["window"], state["cold"]) != (self.window, self.cold):
            raise ValueError(
                f"state has window={state['window']}, cold={state['cold']}, this one window={self.window}, "
                f"cold={self.cold}: resume with the configuration of the run"
            )
        self._values = deque((_finite(value) for value in state["values"]), maxlen=self.window)


def _finite(x: float) -> float:
    value = float(x)
    if not math.isfinite(value):
        raise ValueError(f"RollingPercentile: {value} is not a finite entropy; skip the step that made it")
    return value
