"""The head that draws: a next-scale transformer over bits (Infinity's), with the published state-dict names.

Layers are cosine attention with a rotary embedding of row and column, cross-attention to the prompt, and a
feed-forward net, all modulated by one shared adaptive layer norm. A position sees its own grid and all smaller ones.
Weights that the published model carries without using are here too, so that every tensor of its files has a place:
`text_proj_for_ca`, and the query and the key half of `text_proj_for_sos`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from asgkit.backbones.reader import KeyValues
from asgkit.backbones.vargpt.scales import Scales

EPS = 1e-6
LEVELS = 15  # rows of the embedding of grids
SHARPEST = math.log(100.0)  # bound of a head's learned log-temperature


@dataclass(frozen=True)
class HeadSize:
    """Sizes of the head; the defaults are the published ones (2.2 B parameters).

    chunks: the layers are named in this many groups. longest: prompt tokens that the null prompt has vectors for.
    grid: positions are rotated as if every grid spanned this side. sides: of the grids, 512 x 512 pixels.
    """

    bits: int = 32
    width: int = 2048
    inner: int = 8192
    layers: int = 32
    heads: int = 16
    chunks: int = 8
    longest: int = 512
    grid: int = 64
    sides: tuple[int, ...] = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32)


def rotary(sides: tuple[int, ...], grid: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, width / 2) fp32: half the pairs of a head turn with the row, half with the column."""
    half = width // 2
    rates = 1.0 / 10000.0 ** (torch.arange(0, half, 2, device=device) / half)
    angles = []
    for side in sides:
        lines = (torch.arange(side, device=device) * (grid / side)).round()[:, None] * rates
        angles.append(torch.cat([lines.repeat_interleave(side, 0), lines.repeat(side, 1)], -1))
    table = torch.cat(angles)
    return table.cos(), table.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, n, c): neighbouring numbers are a pair, turned by its angle."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights, times 1 + scale, plus shift."""
    return functional.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Attention among positions: queries and keys are unit vectors, each head has a learned temperature."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.mat_qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(size.width)), nn.Parameter(torch.zeros(size.width))
        self.register_buffer("zero_k_bias", torch.zeros(size.width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, size.heads, 1, 1), 4.0).log())
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, past: tuple[Tensor, Tensor] | None
                ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, n, C) after its past; returns the mixture and the keys and values so far, (B, heads, T, c) each."""
        # the projection is called, never read as a matrix: an adapter on it would have no effect
        qkv = self.mat_qkv(x) + torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        sharp = self.scale_mul_1H11.float().clamp(max=SHARPEST).exp()
        q = rotate(functional.normalize(q.float(), dim=-1) * sharp, *turn).to(v.dtype)
        k = rotate(functional.normalize(k.float(), dim=-1), *turn).to(v.dtype)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(mixed.transpose(1, 2).flatten(2)), (k, v)


class CrossAttention(nn.Module):
    """Attention of positions to the prompt's states."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.mat_q = nn.Linear(size.width, size.width)
        self.mat_kv = nn.Linear(size.width, 2 * size.width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(size.width))
        self.register_buffer("zero_k_bias", torch.zeros(size.width))
        self.proj = nn.Linear(size.width, size.width)

    def forward(self, x: Tensor, prompt: Tensor, shown: Tensor) -> Tensor:
        """x (B, n, C), prompt (B, P, C), shown (B, P) bool."""
        q = self.mat_q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.mat_kv(prompt) + torch.cat([self.zero_k_bias, self.v_bias])
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q.to(v.dtype), k, v, attn_mask=shown[:, None, None])
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size.width, size.inner), nn.Linear(size.inner, size.width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, n, C)."""
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    """Self-attention, cross-attention and feed-forward; gates, scales and shifts are the shared ones plus its own."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.sa, self.ca, self.ffn = SelfAttention(size), CrossAttention(size), FeedForward(size)
        self.ca_norm = nn.LayerNorm(size.width, eps=EPS)
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, size.width) / size.width**0.5)

    def forward(self, x: Tensor, shared: Tensor, prompt: Tensor, shown: Tensor, turn: tuple[Tensor, Tensor],
                mask: Tensor | None, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, n, C); shared (B, 1, 6, C)."""
        gate1, gate2, scale1, scale2, shift1, shift2 = (self.ada_gss + shared).unbind(2)
        mixed, kept = self.sa(modulated(x, scale1, shift1), turn, mask, past)
        x = x + mixed * gate1
        x = x + self.ca(self.ca_norm(x), prompt, shown)
        return x + self.ffn(modulated(x, scale2, shift2)) * gate2, kept


class _Chunk(nn.Module):
    """A group of layers; it exists for the published names alone."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.module = nn.ModuleList(Layer(size) for _ in range(size.layers // size.chunks))


class _RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class _Pool(nn.Module):
    """Attentive pooling of text states; the model pools one state, whose share is 1 whatever query and key are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = max(1, width // 128)
        self.ca = nn.Module()
        self.ca.mat_q = nn.Parameter(torch.randn(1, heads, width // heads) * width**-0.5)
        self.ca.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.ca.v_bias = nn.Parameter(torch.zeros(width))
        self.ca.register_buffer("zero_k_bias", torch.zeros(width))
        self.ca.proj = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        """state (B, C) to (B, C): the projected value."""
        value = self.ca.mat_kv(state)[..., state.shape[-1] :] + self.ca.v_bias
        return self.ca.proj(value)


class _Final(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        scale, shift = self.ada_lin(pooled).unflatten(-1, (1, 2, -1)).unbind(-2)
        return modulated(x, scale, shift)


class BitHead(nn.Module):
    """Logits of the bits of every position, given what the language model made of them."""

    def __init__(self, size: HeadSize) -> None:
        super().__init__()
        self.size, self.scales, width = size, Scales(size.sides, size.bits), size.width
        self.cfg_uncond = nn.Parameter(torch.randn(size.longest, width) * 1.2 / width**0.5)
        self.text_norm = _RootMeanSquare(width)
        self.text_proj_for_sos = _Pool(width)
        self.text_proj_for_ca = nn.Sequential(nn.Linear(width, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * (1 / width / 3) ** 0.5)
        self.lvl_embed = nn.Embedding(LEVELS, width)
        self.word_embed = nn.Linear(size.bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.block_chunks = nn.ModuleList(_Chunk(size) for _ in range(size.chunks))
        self.head_nm = _Final(width)
        self.head = nn.Linear(width, 2 * size.bits)

    def pool(self, state: Tensor) -> Tensor:
        """The condition (B, C) of a start state (B, C): its root-mean-square norm, pooled."""
        rms = state * torch.rsqrt(state.square().mean(-1, keepdim=True) + EPS) * self.text_norm.weight
        return self.text_proj_for_sos(rms)

    def first(self, pooled: Tensor) -> Tensor:
        """What stands at the first position, (B, 1, C)."""
        return pooled[:, None] + self.pos_start

    def null_prompt(self, shown: Tensor) -> Tensor:
        """Learned states (B, P, C) in the places of a prompt, shown (B, P) bool; ValueError for one too long."""
        order = shown.long().cumsum(1) - 1
        if order.shape[1] and int(order[:, -1].max()) >= self.size.longest:
            raise ValueError(f"a prompt of {int(order[:, -1].max()) + 1} tokens: guidance knows {self.size.longest} "
                             "at most; shorten the caption or set guidance=1")
        return self.cfg_uncond[order.clamp(min=0)]

    def forward(self, x: Tensor, pooled: Tensor, prompt: Tensor, shown: Tensor, part: slice,
                past: KeyValues | None = None) -> tuple[Tensor, KeyValues]:
        """Logits (B, n, bits, 2) of the positions `part`, and the keys and values so far.

        x (B, n, C) of these positions; pooled (B, C); prompt (B, P, C), shown (B, P) bool. Without a past `part`
        starts at 0 and may hold several grids; with one it is the grid that comes next.
        """
        levels = self.scales.levels(x.device)
        cos, sin = rotary(self.size.sides, self.size.grid, self.size.width // self.size.heads, x.device)
        turn = cos[part], sin[part]
        mask = None if past is not None else levels[part][:, None] >= levels[part][None]
        x, shared = x + self.lvl_embed(levels[part]), self.shared_ada_lin(pooled).unflatten(-1, (1, 6, -1))
        layers, kept = [layer for chunk in self.block_chunks for layer in chunk.module], []
        for i, layer in enumerate(layers):
            x, pair = layer(x, shared, prompt, shown, turn, mask, None if past is None else past[i])
            kept.append(pair)
        return self.head(self.head_nm(x, pooled)).unflatten(-1, (-1, 2)), kept
