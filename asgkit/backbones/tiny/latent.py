"""Latents of the regression models: each 8x8-pixel cell of a picture as 8 numbers that tolerate noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from asgkit.backbones.tiny.network import TEXT_POSITIONS, TinyReader
from asgkit.backbones.tiny.trunk import KeyValues, TrunkConfig

CELLS, CHANNELS = 9, 8  # 3x3 cells, numbers per cell
STEPS = 15  # of a sampler; 30 gain a point or two at twice the time


class CellAutoencoder(nn.Module):
    """Pictures (B, 3, 24, 24) in [0, 1] to latents (B, 9, 8) and back; no cell sees another.

    Latents are batch-normalised without affine, so each number has mean 0 and variance 1 over the training cells,
    and the decoder is trained under added noise: a sampler's small errors then leave the picture exact. A KL penalty
    instead packs the modes so tightly that noise of 0.2 halves the legible pictures. Source: spec: tiny_flow 2.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        down, up = [], []
        for i in range(3):
            down += [nn.Conv2d(width if i else 3, width, 2, 2), nn.GELU(), nn.Conv2d(width, width, 1), nn.GELU()]
            up += [nn.Conv2d(width, width, 1), nn.GELU(), nn.ConvTranspose2d(width, width if i < 2 else 3, 2, 2)]
            if i < 2:
                up.append(nn.GELU())
        self.encoder = nn.Sequential(*down, nn.Conv2d(width, CHANNELS, 1))
        self.normalise = nn.BatchNorm2d(CHANNELS, affine=False)
        self.decoder = nn.Sequential(nn.Conv2d(CHANNELS, width, 1), nn.GELU(), *up)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents (B, 9, 8) of pictures, row-major cells."""
        return self.normalise(self.encoder(pixels - 0.5)).flatten(2).transpose(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures in [0, 1], clipped, of latents (B, 9, 8)."""
        grid = latents.transpose(1, 2).reshape(len(latents), CHANNELS, 3, 3)
        return (self.decoder(grid) + 0.5).clamp(0.0, 1.0)

    def loss(self, cells: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """Mean squared error of cells (n, 3, 8, 8) decoded from their latents plus sigma * noise (n, 8, 1, 1)."""
        latents = self.normalise(self.encoder(cells - 0.5)) + sigma * noise
        return (self.decoder(latents) + 0.5 - cells).square().mean()


class LatentNetwork(TinyReader, ABC):
    """A reader with a head that removes noise from latents, given what the trunk made of a caption."""

    paradigm: ClassVar[Literal["flow", "diffusion"]]
    times: ClassVar[Literal["logit_normal", "uniform"]]  # how training draws the time of a drawing
    generator_targets: ClassVar[str]  # modules that carry the Generator's adapter
    head: ClassVar[tuple[str, ...]]  # what the drawing stage of pre-training learns

    def __init__(self, words: int, trunk: TrunkConfig, positions: int = TEXT_POSITIONS) -> None:
        super().__init__(words, trunk, positions)
        self.autoencoder = CellAutoencoder()

    def read_captions(self, ids: Tensor, mask: Tensor) -> Any:
        """The head's condition for left-padded captions (B, T): a tensor or a nest of tensors with B rows."""
        start = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
        return self.condition(self.read(ids, mask, None, None, start)[1], mask)

    def start_head(self) -> None:
        """Copy what the head takes over from the trained reader, before the drawing stage; nothing by default."""

    @abstractmethod
    def condition(self, past: KeyValues, mask: Tensor) -> Any:
        """What the head needs of captions whose keys and values the trunk left."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        """Prediction (B, 9, 8) for noisy latents x at times t (B,) in (0, 1], 1 being pure noise."""

    def estimate(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """What is compared by squared error in the Generator's loss, of a prediction or of its target; here itself."""
        return prediction

    @abstractmethod
    def noisy(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noised latents and the target of the prediction, both (B, 9, 8)."""

    @abstractmethod
    def scheduler(self) -> Any:
        """A diffusers scheduler with its steps set; `step(prediction, timestep, x).prev_sample` removes noise."""
