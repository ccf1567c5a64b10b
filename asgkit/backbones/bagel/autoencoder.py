"""Pictures to latents and back: the FLUX autoencoder as diffusers' AutoencoderKL, and the names of its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor

from asgkit.backbones.bagel.config import DrawingSizes
from asgkit.backbones.weights import UnmatchedTensors, stream


def make_autoencoder(sizes: DrawingSizes) -> AutoencoderKL:
    """The autoencoder without weights; its latents have `sizes.channels` channels at 1/8 of the side."""
    levels = len(sizes.blocks)
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=sizes.channels, block_out_channels=sizes.blocks,
        layers_per_block=sizes.residual, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels, scaling_factor=sizes.scale, shift_factor=sizes.shift,
        use_quant_conv=False, use_post_quant_conv=False)


def encode(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Latents `scale (mean - shift)` (B, C, H/8, W/8) of pixels (B, 3, H, W) in [-1, 1].

    The mean of the posterior, where the published training code draws from it: the codes of a picture are then the
    same on every call.
    """
    config = autoencoder.config
    return config.scaling_factor * (autoencoder.encode(pixels).latent_dist.mean - config.shift_factor)


def decode(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W), about [-1, 1], of latents (B, C, H/8, W/8)."""
    config = autoencoder.config
    return autoencoder.decode(latents / config.scaling_factor + config.shift_factor).sample


def read_autoencoder(path: Path, sizes: DrawingSizes) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the published file by diffusers' names.

    Raises UnmatchedTensors for tensors that the conversion has no place for: it would drop them silently.
    """
    stored = dict(stream([path]))
    with torch.device("meta"):
        config = make_autoencoder(sizes).config
    try:
        converted = {name: t for name, t in convert_ldm_vae_checkpoint(stored, config).items() if t is not None}
    except KeyError as missing:
        raise UnmatchedTensors(f"{path} lacks {missing}: copy the file again") from missing
    used = {t.data_ptr() for t in converted.values()}
    if lost := sorted(name for name, t in stored.items() if t.data_ptr() not in used):
        raise UnmatchedTensors(f"{path} holds {len(lost)} tensors that no autoencoder has: {', '.join(lost[:8])}")
    yield from converted.items()
