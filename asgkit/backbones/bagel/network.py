"""The whole network by the names of its published weights: words, image features and noisy latents in one model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from asgkit.backbones.bagel.autoencoder import make_autoencoder
from asgkit.backbones.bagel.config import Sizes
from asgkit.backbones.bagel.mot import LanguageModel
from asgkit.backbones.bagel.vision import MLP, VisionModel, patchify, table_rows, unpatchify
from asgkit.backbones.reader import KeyValues

WAVES = 256  # numbers that stand for a time


class FixedPositions(nn.Module):
    """Sines and cosines of column and row for every cell of a square; a tensor of the file, though it never learns."""

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.pos_embed = nn.Parameter(waves_2d(side, width), requires_grad=False)

    def forward(self, which: Tensor) -> Tensor:
        """Vectors (P, D) of the cells `which` (P,)."""
        return self.pos_embed[which]


def waves_2d(side: int, width: int) -> Tensor:
    """Table (side^2, width), row-major cells: sin and cos of the column, then of the row, `width / 4` rates each."""
    quarter = width // 4
    rates = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos()], 1)
    columns, rows = line.repeat(side, 1), line.repeat_interleave(side, 0)
    return torch.cat([columns, rows], 1).float()


class TimeEmbedder(nn.Module):
    """Times in [0, 1] (not multiplied by 1000) as vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B, D) of times (B,)."""
        half = WAVES // 2
        rates = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = t.float()[:, None] * rates
        return self.mlp(torch.cat([angles.cos(), angles.sin()], -1).to(self.mlp[0].weight.dtype))


class BagelNetwork(nn.Module):
    """BAGEL with its autoencoder; every other name is that of the published `ema.safetensors`."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        text, vision, drawing = sizes.text, sizes.vision, sizes.drawing
        self.sizes = sizes
        self.language_model = LanguageModel(text)
        self.vit_model = VisionModel(vision)
        self.connector = MLP(vision.width, text.width, text.width)
        self.vit_pos_embed = FixedPositions(vision.side, text.width)
        latent = drawing.channels * drawing.patch**2
        self.time_embedder = TimeEmbedder(text.width)
        self.vae2llm, self.llm2vae = nn.Linear(latent, text.width), nn.Linear(text.width, latent)
        self.latent_pos_embed = FixedPositions(drawing.side, text.width)
        self.autoencoder = make_autoencoder(drawing)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Cast all weights but the autoencoder's, which stays fp32: in bf16 it leaves blotches in pictures."""
        for name, child in self.named_children():
            if name != "autoencoder":
                child.to(dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (..., D)."""
        return self.language_model.model.embed_tokens(ids)

    def features(self, pixels: Tensor) -> Tensor:
        """Image tokens (B, P, D) for the language model of pixels (B, 3, s, s) in [-1, 1]."""
        sizes = self.sizes.vision
        where = table_rows(pixels.shape[-1] // sizes.patch, sizes.side, pixels.device)
        patches = patchify(pixels, sizes.patch).to(self.connector.fc1.weight.dtype)
        return self.connector(self.vit_model(patches, where)) + self.vit_pos_embed(where)

    def see(self, pixels: Tensor, edges: Tensor) -> KeyValues:
        """Keys and values of image blocks: features between the two words `edges` (2,), all at position 0."""
        tokens = self.features(pixels)
        x = torch.cat([self.embed(edges).expand(len(tokens), -1, -1), tokens], 1)
        position = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        return self.language_model(x, position, None, None)[1]

    def velocity(self, x: Tensor, t: Tensor, edges: Tensor, past: KeyValues | None, past_mask: Tensor | None,
                 position: Tensor) -> Tensor:
        """Velocity (B, C, h, w) fp32 of latents x (B, C, h, w) at times t (B,) after captions.

        The block is the two words `edges` (2,), processed by the understanding weights, and the latent tokens; all
        see each other and the caption's keys (past_mask (B, P) bool) from one rotary position (B,).
        """
        sizes = self.sizes.drawing
        tokens = patchify(x, sizes.patch)
        where = table_rows(x.shape[-1] // sizes.patch, sizes.side, x.device)
        tokens = self.vae2llm(tokens.to(self.vae2llm.weight.dtype))
        tokens = tokens + self.time_embedder(t)[:, None] + self.latent_pos_embed(where)
        block = torch.cat([self.embed(edges).expand(len(x), -1, -1), tokens], 1)
        allowed = None
        if past_mask is not None and not past_mask.all():
            own = past_mask.new_ones(len(x), block.shape[1])
            allowed = torch.cat([past_mask, own], 1)[:, None, None]
        positions = position[:, None].expand(-1, block.shape[1])
        hidden, _ = self.language_model(block, positions, allowed, past, words=len(edges), keep=False)
        return unpatchify(self.llm2vae(hidden[:, len(edges) :]).float(), sizes.patch)
