"""tiny-diffusion: learned queries read the caption, and a small diffusers denoiser draws from their hidden states."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel
from torch import Tensor, nn

from asgkit.backbones.tiny.latent import CHANNELS, STEPS, LatentNetwork
from asgkit.backbones.tiny.network import TEXT_POSITIONS
from asgkit.backbones.tiny.trunk import KeyValues, TrunkConfig

QUERIES = 9
TRAIN_TIMES = 1000
LARGEST_LATENT = 6.0  # latents have variance 1 and stay below 5; a clean estimate beyond this is an error


class TinyDiffusionNetwork(LatentNetwork):
    """A reader, learned queries appended to the caption, and a denoiser that attends to what they saw."""

    paradigm, times, head = "diffusion", "uniform", ("queries", "denoiser")
    generator_targets = (r".*denoiser\.transformer_blocks\.\d+\."
                         r"(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))")

    def __init__(self, words: int, trunk: TrunkConfig, positions: int = TEXT_POSITIONS) -> None:
        super().__init__(words, trunk, positions)
        self.queries = nn.Parameter(torch.randn(QUERIES, trunk.width) * 0.02)
        self.denoiser = PixArtTransformer2DModel(
            num_attention_heads=trunk.heads, attention_head_dim=trunk.width // trunk.heads, in_channels=CHANNELS,
            out_channels=CHANNELS, num_layers=trunk.layers, cross_attention_dim=trunk.width, sample_size=3,
            patch_size=1, caption_channels=trunk.width, norm_num_groups=CHANNELS)

    def condition(self, past: KeyValues, mask: Tensor) -> Tensor:
        """Hidden states (B, 9, D) of the queries after the captions."""
        own = torch.ones(len(mask), QUERIES, dtype=torch.bool, device=mask.device)
        keys = torch.cat([mask, own], 1)[:, None, None]
        bias = torch.zeros(keys.shape, device=mask.device).masked_fill(~keys, float("-inf"))
        return self.trunk(self.queries.expand(len(mask), -1, -1), bias, past)[0]

    def predict(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Predicted noise (B, 9, 8)."""
        grid = x.transpose(1, 2).reshape(len(x), CHANNELS, 3, 3)
        unused = {"resolution": None, "aspect_ratio": None}  # PixArt's conditions on the picture's size
        out = self.denoiser(grid, encoder_hidden_states=condition, timestep=_index(t), added_cond_kwargs=unused)
        return out.sample.flatten(2).transpose(1, 2)

    def noisy(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise`; the target is the noise. Source: paper (diffusion)."""
        return _schedule().add_noise(latents, noise, _index(t)), noise

    def scheduler(self) -> DDIMScheduler:
        """Deterministic DDIM steps; the first one starts below pure noise, where a clean estimate would divide by 0."""
        scheduler = _schedule()
        scheduler.set_timesteps(STEPS)
        return scheduler


def _schedule() -> DDIMScheduler:
    """A scheduler of its own for each drawing: its steps are state."""
    return DDIMScheduler(TRAIN_TIMES, beta_schedule="squaredcos_cap_v2", clip_sample=True,
                         clip_sample_range=LARGEST_LATENT, timestep_spacing="leading", steps_offset=1)


def _index(t: Tensor) -> Tensor:
    """Training time steps 0..999 of times t (B,) in (0, 1]."""
    return (t * TRAIN_TIMES).round().long().clamp(0, TRAIN_TIMES - 1)
