"""The image encoder (SigLIP at native resolution) for batches of equal squares; names of the published weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asgkit.backbones.bagel.config import VisionSizes


class Embeddings(nn.Module):
    """Flattened patches through one linear layer, plus a learned position each."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.patch_embedding = nn.Linear(3 * sizes.patch**2, sizes.width)
        self.position_embedding = nn.Embedding(sizes.side**2, sizes.width)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """patches: (B, P, 3 p p); places: (P,) rows of the position table."""
        return self.patch_embedding(patches) + self.position_embedding(places)


class Attention(nn.Module):
    """Full attention among the patches of one image."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            self.add_module(name, nn.Linear(sizes.width, sizes.width))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, P, D)."""
        heads = lambda h: h.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x)))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the tanh form of GELU between them; also the connector to the language model."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, P, width)."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class EncoderLayer(nn.Module):
    """One pre-norm layer."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.layer_norm1 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.mlp = MLP(sizes.width, sizes.mlp, sizes.width)
        self.layer_norm2 = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, P, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionModel(nn.Module):
    """Patches to features; the nested names (`vision_model.encoder.layers`) are those of the published file."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.vision_model = nn.Module()
        self.vision_model.embeddings = Embeddings(sizes)
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))
        self.vision_model.post_layernorm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, patches: Tensor, places: Tensor) -> Tensor:
        """Features (B, P, D) of patches (B, P, 3 p p)."""
        x = self.vision_model.embeddings(patches, places)
        for layer in self.vision_model.encoder.layers:
            x = layer(x)
        return self.vision_model.post_layernorm(x)


def patchify(grid: Tensor, patch: int) -> Tensor:
    """Tokens (B, h w, p p C) of pictures or latents (B, C, h p, w p): row by row, within a token row, column, channel.
    """
    b, c, height, width = grid.shape
    cut = grid.reshape(b, c, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for squares: (B, C, h p, h p) of tokens (B, h h, p p C)."""
    b, count, width = tokens.shape
    side = round(count**0.5)
    cut = tokens.reshape(b, side, side, patch, patch, width // patch**2)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, side * patch, side * patch)


def table_rows(side: int, table: int, device: torch.device) -> Tensor:
    """Rows (side^2,) of a `table` x `table` position table for the top left square of `side` tokens."""
    line = torch.arange(side, device=device)
    return (line[:, None] * table + line).flatten()
