"""The shared trunk: a small pre-norm transformer over an optional key-value past, with plain matmul attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asgkit.backbones.reader import KeyValues


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of a tiny model."""

    width: int = 128
    layers: int = 4
    heads: int = 4


class Block(nn.Module):
    """Attention and MLP with pre-norm; linear layers `qkv`, `o`, `f1`, `f2` carry the role adapters."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.o = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.f1, self.f2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor | None, past: tuple[Tensor, Tensor] | None
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: (B, T, D); bias: additive, broadcast to (B, heads, T, P + T); past: keys and values of P positions."""
        b, t, d = x.shape
        q, k, v = self.qkv(self.ln1(x)).reshape(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0].to(k.dtype), k], 2), torch.cat([past[1].to(v.dtype), v], 2)
        scores = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5  # (B, h, T, P + T)
        if bias is not None:
            scores = scores + bias
        mixed = scores.float().softmax(-1).to(v.dtype) @ v
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, d))
        return x + self.f2(nn.functional.gelu(self.f1(self.ln2(x)))), (k, v)


class Trunk(nn.Module):
    """Stack of blocks and a final norm."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, bias: Tensor | None = None, past: KeyValues | None = None
                ) -> tuple[Tensor, KeyValues]:
        """Hidden states (B, T, D) and the keys and values of past and present positions."""
        kept: KeyValues = []
        for i, block in enumerate(self.blocks):
            x, pair = block(x, bias, None if past is None else past[i])
            kept.append(pair)
        return self.norm(x), kept


def attention_bias(query_mask: Tensor | None, key_mask: Tensor, causal: Tensor | None) -> Tensor:
    """Additive bias (B, 1, T, K): 0 where a query may look, -inf where not.

    key_mask: (B, K) bool, which keys exist; causal: (T, K) bool or None. A query row that is padding
    (query_mask (B, T) False) may look everywhere, since a row without any key would give NaN.
    """
    allowed = key_mask[:, None, :]
    if causal is not None:
        allowed = allowed & causal[None]
    if query_mask is not None:
        allowed = allowed | ~query_mask[:, :, None]
    return torch.zeros(allowed.shape, device=key_mask.device).masked_fill(~allowed, float("-inf"))[:, None]
