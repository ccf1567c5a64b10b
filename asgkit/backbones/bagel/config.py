"""Sizes of BAGEL-7B-MoT and of a tiny instance, and how it removes noise from a latent."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextSizes:
    """The language model; its generation weights have the same sizes."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    eps: float = 1e-6
    theta: float = 1e6  # base of the rotary wavelengths


@dataclass(frozen=True)
class VisionSizes:
    """The image encoder. patch: side of a patch in pixels; side: patches along a side of its position table."""

    width: int
    layers: int
    heads: int
    mlp: int
    patch: int = 14
    side: int = 70
    eps: float = 1e-6

    def view_side(self, image_side: int) -> int:
        """Pixels at which an image is encoded: the nearest whole number of patches that the table holds."""
        return self.patch * min(max(round(image_side / self.patch), 1), self.side)


@dataclass(frozen=True)
class DrawingSizes:
    """Latents and their autoencoder, as the published inference code states them; no file holds these numbers.

    channels: of a latent; patch: latent cells along a side of one token; side: tokens along a side of the position
    table; blocks, residual: widths of the autoencoder's levels and residual blocks per level.
    """

    channels: int = 16
    patch: int = 2
    side: int = 64
    blocks: tuple[int, ...] = (128, 256, 512, 512)
    residual: int = 2
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def shrink(self) -> int:
        """Pixels along a side of one latent cell: every level but the last halves the picture."""
        return 2 ** (len(self.blocks) - 1)


@dataclass(frozen=True)
class Sizes:
    """All sizes of one network."""

    text: TextSizes
    vision: VisionSizes
    drawing: DrawingSizes = field(default_factory=DrawingSizes)


FULL = Sizes(TextSizes(3584, 28, 28, 4, 18944, 152064), VisionSizes(1152, 26, 16, 4304))


def tiny_sizes(vocabulary: int) -> Sizes:
    """The same architecture with about half a million parameters, for tests and rehearsals."""
    return Sizes(TextSizes(64, 2, 4, 2, 128, vocabulary), VisionSizes(32, 2, 2, 64, side=4),
                 DrawingSizes(channels=4, side=4, blocks=(32, 32, 32, 32), residual=1))


def read_sizes(folder: Path, drawing: DrawingSizes) -> Sizes:
    """Sizes from `llm_config.json` and `vit_config.json`; raises ValueError naming a key that is missing.

    The encoder's last layer is left out, as published. A norm's epsilon may be left out of a file: it is then the
    default of the class that the file configures.
    """
    text = _entries(folder / "llm_config.json", "hidden_size", "num_hidden_layers", "num_attention_heads",
                    "num_key_value_heads", "intermediate_size", "vocab_size", "rope_theta")
    vision = _entries(folder / "vit_config.json", "hidden_size", "num_hidden_layers", "num_attention_heads",
                      "intermediate_size", "patch_size", "image_size")
    return Sizes(
        TextSizes(text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"],
                  text["num_key_value_heads"], text["intermediate_size"], text["vocab_size"],
                  text.get("rms_norm_eps", 1e-6), float(text["rope_theta"])),
        VisionSizes(vision["hidden_size"], vision["num_hidden_layers"] - 1, vision["num_attention_heads"],
                    vision["intermediate_size"], vision["patch_size"], vision["image_size"] // vision["patch_size"],
                    vision.get("layer_norm_eps", 1e-6)),
        drawing)


def _entries(path: Path, *keys: str) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if missing := [key for key in keys if key not in found]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: copy the file again from the published model")
    return found


@dataclass(frozen=True)
class Sampling:
    """How noise is removed: defaults of the published text-to-image code.

    points: times from 1 (noise) to 0 (picture), hence `points - 1` Euler steps; shift s warps them,
    `t' = s t / (1 + (s - 1) t)`; guidance g > 1 acts at times in `interval` (open below, closed above);
    renorm_min: least factor by which a guided velocity is shrunk to the length of the unguided one (1: never).
    """

    points: int = 50
    shift: float = 3.0
    guidance: float = 4.0
    interval: tuple[float, float] = (0.4, 1.0)
    renorm_min: float = 0.0

    def times(self) -> Tensor:
        """Warped times (points,), decreasing from 1 to 0."""
        even = torch.linspace(1.0, 0.0, self.points)
        return self.shift * even / (1 + (self.shift - 1) * even)

    def guides(self, t: float) -> bool:
        """Whether guidance acts at time t."""
        return self.interval[0] < t <= self.interval[1]


def guided(given: Tensor, free: Tensor, guidance: float, renorm_min: float) -> Tensor:
    """Velocities `u + g (c - u)`, each row scaled by `clip(|c| / |guided|, renorm_min, 1)`; all (B, ...).

    c: `given` the caption, u: `free` of it. The norm runs over a whole drawing ("global"), so guidance turns the
    velocity but never makes it longer.
    """
    both = free + guidance * (given - free)
    length = lambda v: v.flatten(1).norm(dim=1)
    factor = (length(given) / (length(both) + 1e-8)).clamp(min=renorm_min, max=1.0)
    return both * factor.reshape(-1, *[1] * (both.ndim - 1))
