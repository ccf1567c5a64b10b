"""The EVA-CLIP image encoder whose features BLIP3o draws: a plain vision transformer with norms after each branch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

HEAD_WIDTH = 112  # of the published encoder
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, d // HEAD_WIDTH, HEAD_WIDTH).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = _Attention(width), _Mlp(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))


class EvaEncoder(nn.Module):
    """EVA02-CLIP-E/14-plus without its CLIP head; module names are those of the published weights.

    side, patch: pixels; width, depth, inner: sizes of the transformer (published: 448, 14, 1792, 64, 15360).
    grid: side of the pooled grid (published: 8, so 4x4 neighbouring patches are averaged: `early_pool2d_4`).
    """

    def __init__(self, *, side: int, patch: int, width: int, depth: int, inner: int, grid: int) -> None:
        super().__init__()
        patches = side // patch
        if patches % grid:
            raise ValueError(f"{patches}x{patches} patches cannot be averaged to {grid}x{grid}")
        self.side, self.grid = side, grid
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches**2 + 1, width))
        self.blocks = nn.ModuleList(_Block(width, inner) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features (B, width, grid, grid) of normalised pixels (B, 3, side, side), without the class token."""
        patches = self.patch_embed["proj"](pixels)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        features = x[:, 1:].transpose(1, 2).unflatten(2, patches.shape[2:])
        return nn.functional.avg_pool2d(features, patches.shape[-1] // self.grid)

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image], at_once: int = 8) -> Tensor:
        """Latents (B, width, grid, grid) float32 of pictures, resized to `side`."""
        weight = self.cls_token
        pixels = normalised(images, self.side).to(weight)
        return torch.cat([self(part).float() for part in pixels.split(at_once)])


def normalised(images: Sequence[Image.Image], side: int) -> Tensor:
    """Pixels (B, 3, side, side) float32 of square pictures, with CLIP's mean and deviation."""
    sized = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in sized])).float() / 255
    return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
