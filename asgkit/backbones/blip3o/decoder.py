"""Features to pixels: the diffusion decoder published with BLIP3o, an SDXL-type U-Net and its autoencoder."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn

from asgkit.backbones.noise import row_normals

STREAM = 2**40  # keeps the decoder's noise apart from the latent's, which has the same seeds


class PixelDecoder(nn.Module):
    """Draws pictures from features (B, n, 1792), guided away from `negative` features (1, n, 1792).

    The features stand where SDXL has its text embeddings, and their mean where it has the pooled one. schedule: the
    published scheduler's settings. Source: the public Emu2-Gen pipeline, from which the decoder is derived; the
    pipeline file of the published folder was not at hand.
    """

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, schedule: dict) -> None:
        super().__init__()
        self.unet, self.vae, self.schedule = unet, vae, schedule
        self.scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.side = unet.config.sample_size * self.scale

    def _conditions(self, features: Tensor) -> dict[str, Tensor]:
        size = [self.side, self.side]  # original size, crop corner, target size
        ids = torch.tensor([[*size, 0, 0, *size]], device=features.device, dtype=features.dtype)
        return {"time_ids": ids.expand(len(features), -1), "text_embeds": features.mean(1)}

    def _scheduler(self, steps: int) -> EulerDiscreteScheduler:
        """One per call, since its steps are state."""
        scheduler = EulerDiscreteScheduler.from_config(self.schedule)
        with warnings.catch_warnings():
            # diffusers 0.42 makes its sigmas with np.array(tensor), which numpy 2 warns of for any torch tensor
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            scheduler.set_timesteps(steps)
        return scheduler

    @torch.no_grad()
    def decode(self, features: Tensor, negative: Tensor, seeds: list[int], *, steps: int, guidance: float
               ) -> list[Image.Image]:
        """Pictures of side `side`; each row's noise comes from its own seed. guidance g: u + g (c - u)."""
        weight = next(self.unet.parameters())
        given = torch.cat([features, negative.expand(len(features), -1, -1)]).to(weight)
        conditions = self._conditions(given)
        scheduler = self._scheduler(steps)
        size = self.unet.config.sample_size
        noise = row_normals([seed + STREAM for seed in seeds], (self.unet.config.in_channels, size, size))
        x = noise.to(weight.device) * scheduler.init_noise_sigma.item()
        for step in scheduler.timesteps:
            scaled = scheduler.scale_model_input(torch.cat([x, x]), step).to(weight)
            both = self.unet(scaled, step.to(weight.device), encoder_hidden_states=given, added_cond_kwargs=conditions)
            caption, free = both.sample.float().chunk(2)
            x = scheduler.step(free + guidance * (caption - free), step, x).prev_sample
        return self._pictures(x.to(weight))

    def _pictures(self, latents: Tensor) -> list[Image.Image]:
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()
        values = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
        return [Image.fromarray(array) for array in values.cpu().numpy().astype(np.uint8)]
