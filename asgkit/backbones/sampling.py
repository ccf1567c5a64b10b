"""Sampling by inverse distribution function: one uniform number per token, so a row never depends on its batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_tokens(logits: Tensor, uniforms: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """Pick ids (R,) from raw logits (R, V) with uniforms (R,) in [0, 1); temperature 0 is greedy.

    top_p keeps the smallest set of most probable tokens whose probability reaches it. Raises ValueError for a
    negative temperature or a top_p outside (0, 1].
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be >= 0 and top_p {top_p} in (0, 1]")
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = p.sort(-1, descending=True)
        outside = running_sum(ranked) - ranked >= top_p
        p = torch.zeros_like(p).scatter(-1, order, ranked.masked_fill(outside, 0.0))
        p = p / p.sum(-1, keepdim=True)
    edges = running_sum(p)
    picked = torch.searchsorted(edges, (uniforms * edges[:, -1])[:, None], right=True)[:, 0]
    return picked.clamp(max=logits.shape[-1] - 1)


def guide(logits: Tensor, count: int, guidance: float) -> Tensor:
    """Classifier-free guidance `u + g (c - u)`: conditional rows come first, `count` of them, then the free ones.

    Shapes: (2 count, ..., V) -> (count, ..., V); guidance 1 needs no free rows and changes nothing.
    """
    if guidance == 1.0:
        return logits
    conditional, free = logits[:count], logits[count:]
    return free + guidance * (conditional - free)


def running_sum(p: Tensor) -> Tensor:
    """Cumulative probabilities (R, V) of p (R, V), in an order of addition that never varies.

    On CUDA torch has no deterministic sum of floats, and refuses one under `use_deterministic_algorithms`. Integers
    add up alike in any order: there the probabilities are counted in units of 2^-40, finer than float32 itself.
    """
    return p.cumsum(-1) if p.device.type == "cpu" else count_up(p)


def count_up(p: Tensor) -> Tensor:
    """The running sum of p (R, V) through integers, float32; within 2^-22 of the sum of the floats."""
    return ((p.double() * 2**40).round().long().cumsum(-1).double() / 2**40).float()


def uniforms(seed: int, rows: int, columns: int) -> Tensor:
    """Uniform numbers (rows, columns) of one seed."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def row_uniforms(seeds: list[int], columns: int) -> Tensor:
    """Uniform numbers (len(seeds), columns), each row from its own seed."""
    return torch.cat([uniforms(seed, 1, columns) for seed in seeds])


def log_softmax_stats(logits: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability of `ids` and entropy, both (...,) float32 nats, of raw logits (..., V)."""
    logp = logits.float().log_softmax(-1)
    picked = logp.gather(-1, ids[..., None])[..., 0]
    entropy = -(logp.exp() * logp.masked_fill(logp == float("-inf"), 0.0)).sum(-1)
    return picked, entropy
