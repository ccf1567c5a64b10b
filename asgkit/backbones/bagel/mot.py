"""The mixture of transformers: Qwen2 layers with a second set of weights for latent tokens and one attention.

Module names are those of the published weights. Tokens of a pass stand in two groups: first `words` tokens that the
understanding weights process, then latent tokens that the `*_moe_gen` weights process. Attention sees keys and values
of both. Within an image block all tokens see each other and share one rotary position, so their order is free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asgkit.backbones.bagel.config import TextSizes
from asgkit.backbones.reader import KeyValues


class RootMeanSquareNorm(nn.Module):
    """`w x / sqrt(mean(x^2) + eps)`, computed in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width), same dtype out."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def routed(x: Tensor, words: int, understand: Callable[[Tensor], Tensor], draw: Callable[[Tensor], Tensor]) -> Tensor:
    """The first `words` tokens of x (B, T, ...) through one function and the others through the other."""
    if words == x.shape[1]:
        return understand(x)
    return torch.cat([understand(x[:, :words]), draw(x[:, words:])], 1)


def wheels(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, T, 1, width) fp32 of rotary positions (B, T).

    Made on every pass: as a buffer the rates would be rounded with the weights, and logits then move by 1e-4.
    """
    rates = theta ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width)
    angles = (positions[..., None].float() * rates).repeat(1, 1, 2)[:, :, None]
    return angles.cos(), angles.sin()


def turned(x: Tensor, wheel: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, T, heads, d) turned by their positions, in fp32."""
    wide = x.float()
    low, high = wide.chunk(2, -1)
    return (wide * wheel[0] + torch.cat([-high, low], -1) * wheel[1]).to(x.dtype)


class SharedAttention(nn.Module):
    """Grouped-query attention over words and latents; each kind has its own projections and query-key norms."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.head = sizes.width // sizes.heads
        self.groups = sizes.heads // sizes.kv_heads
        for kind in ("", "_moe_gen"):
            for name, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
                self.add_module(f"{name}_proj{kind}", nn.Linear(sizes.width, heads * self.head))
            self.add_module(f"o_proj{kind}", nn.Linear(sizes.heads * self.head, sizes.width, bias=False))
            self.add_module(f"q_norm{kind}", RootMeanSquareNorm(self.head, sizes.eps))
            self.add_module(f"k_norm{kind}", RootMeanSquareNorm(self.head, sizes.eps))

    def _heads(self, x: Tensor, words: int, name: str) -> Tensor:
        projected = routed(x, words, self.get_submodule(f"{name}_proj"), self.get_submodule(f"{name}_proj_moe_gen"))
        return projected.unflatten(-1, (-1, self.head))

    def forward(self, x: Tensor, wheel: tuple[Tensor, Tensor], allowed: Tensor | None,
                past: tuple[Tensor, Tensor] | None, words: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x: (B, T, D); allowed: (B, 1, T or 1, P + T) bool or None for all; past: keys, values (B, kv, P, d)."""
        q = routed(self._heads(x, words, "q"), words, self.q_norm, self.q_norm_moe_gen)
        k = routed(self._heads(x, words, "k"), words, self.k_norm, self.k_norm_moe_gen)
        q, k = turned(q, wheel).transpose(1, 2), turned(k, wheel).transpose(1, 2)
        v = self._heads(x, words, "v").transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0].to(k.dtype), k], 2), torch.cat([past[1].to(v.dtype), v], 2)
        # heads are repeated by hand: with `enable_gqa` and a mask, CUDA falls back to the kernel that stores T x T
        seen = F.scaled_dot_product_attention(q, k.repeat_interleave(self.groups, 1),
                                              v.repeat_interleave(self.groups, 1), attn_mask=allowed)
        out = routed(seen.transpose(1, 2).flatten(2), words, self.o_proj, self.o_proj_moe_gen)
        return out, (k, v)


class Layer(nn.Module):
    """One pre-norm layer with both sets of weights."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.self_attn = SharedAttention(sizes)
        for kind in ("", "_moe_gen"):
            self.add_module(f"mlp{kind}", GatedMLP(sizes.width, sizes.mlp))
            self.add_module(f"input_layernorm{kind}", RootMeanSquareNorm(sizes.width, sizes.eps))
            self.add_module(f"post_attention_layernorm{kind}", RootMeanSquareNorm(sizes.width, sizes.eps))

    def forward(self, x: Tensor, wheel: tuple[Tensor, Tensor], allowed: Tensor | None,
                past: tuple[Tensor, Tensor] | None, words: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Arguments as `SharedAttention.forward`."""
        h = routed(x, words, self.input_layernorm, self.input_layernorm_moe_gen)
        change, pair = self.self_attn(h, wheel, allowed, past, words)
        x = x + change
        h = routed(x, words, self.post_attention_layernorm, self.post_attention_layernorm_moe_gen)
        return x + routed(h, words, self.mlp, self.mlp_moe_gen), pair


class Body(nn.Module):
    """Word embeddings, layers and the two final norms."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RootMeanSquareNorm(sizes.width, sizes.eps)
        self.norm_moe_gen = RootMeanSquareNorm(sizes.width, sizes.eps)


class LanguageModel(nn.Module):
    """The mixture with its word head."""

    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = Body(sizes)
        self.lm_head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, x: Tensor, positions: Tensor, allowed: Tensor | None, past: KeyValues | None, *,
                words: int | None = None, keep: bool = True) -> tuple[Tensor, KeyValues]:
        """Hidden states (B, T, D) of embeddings x at rotary positions (B, T), and the longer past (`keep`)."""
        words = x.shape[1] if words is None else words
        wheel = wheels(positions, self.sizes.width // self.sizes.heads, self.sizes.theta)
        kept: KeyValues = []
        for i, layer in enumerate(self.model.layers):
            x, pair = layer(x, wheel, allowed, None if past is None else past[i], words)
            if keep:
                kept.append(pair)
        return routed(x, words, self.model.norm, self.model.norm_moe_gen), kept


def causal(mask: Tensor, before: int, past_mask: Tensor | None) -> Tensor:
    """Which keys each word may see (R, 1, T, before + T) bool, for words with mask (R, T) after `before` keys.

    A word always sees itself, padding too: a row without any key would give NaN.
    """
    rows, width = mask.shape
    earlier = torch.ones(width, width, dtype=torch.bool, device=mask.device).tril()
    own = (mask[:, None] & earlier) | torch.eye(width, dtype=torch.bool, device=mask.device)
    if past_mask is None:
        past_mask = torch.ones(rows, before, dtype=torch.bool, device=mask.device)
    return torch.cat([past_mask[:, None].expand(-1, width, -1), own], -1)[:, None]
