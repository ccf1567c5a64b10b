"""tiny-flow: latent tokens with expert weights of their own that attend to the caption inside one trunk."""

from __future__ import annotations

import math

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from asgkit.backbones.tiny.latent import CELLS, CHANNELS, STEPS, LatentNetwork
from asgkit.backbones.tiny.network import TEXT_POSITIONS
from asgkit.backbones.tiny.trunk import Block, KeyValues, TrunkConfig

FREQUENCIES = 32
LEAST_TIME = 0.05  # the velocity of a clean-picture prediction divides by t


class ExpertBlock(Block):
    """A trunk block whose norms and residual branches are modulated by the time: scale, shift and gate for each."""

    entries = ("draw",)  # besides `forward`: what calls for its weights when they are cut over processes

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def draw(self, x: Tensor, bias: Tensor, past: tuple[Tensor, Tensor], time: Tensor) -> Tensor:
        """x: (B, 9, D); bias: (B, 1, 1, P + 9); past: the caption's keys and values; time: (B, D)."""
        b, n, d = x.shape
        s1, m1, g1, s2, m2, g2 = self.modulation(time)[:, None].chunk(6, -1)
        h = self.ln1(x) * (1 + s1) + m1
        q, k, v = self.qkv(h).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        k, v = torch.cat([past[0].to(k.dtype), k], 2), torch.cat([past[1].to(v.dtype), v], 2)
        scores = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5 + bias  # (B, h, 9, P + 9)
        mixed = scores.float().softmax(-1).to(v.dtype) @ v
        x = x + (1 + g1) * self.o(mixed.transpose(1, 2).reshape(b, n, d))
        h = self.ln2(x) * (1 + s2) + m2
        return x + (1 + g2) * self.f2(nn.functional.gelu(self.f1(h)))


class Expert(nn.Module):
    """Generation weights: blocks that run beside the trunk's, an input, an output and a time embedding."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        width = config.width
        self.blocks = nn.ModuleList(ExpertBlock(width, config.heads) for _ in range(config.layers))
        self.position = nn.Parameter(torch.randn(CELLS, width) * 0.02)
        self.enter, self.leave = nn.Linear(CHANNELS, width), nn.Linear(width, CHANNELS)
        self.norm = nn.LayerNorm(width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, t: Tensor, past: KeyValues, mask: Tensor) -> Tensor:
        """Predicted clean latents (B, 9, 8) of noisy ones at times t (B,), given captions (mask (B, P))."""
        time = self.time(wave(t))
        own = torch.ones(len(x), CELLS, dtype=torch.bool, device=x.device)
        keys = torch.cat([mask, own], 1)[:, None, None]
        bias = torch.zeros(keys.shape, device=x.device).masked_fill(~keys, float("-inf"))
        h = self.enter(x) + self.position
        for block, pair in zip(self.blocks, past, strict=True):
            h = block.draw(h, bias, pair, time)
        return self.leave(self.norm(h))


def wave(t: Tensor) -> Tensor:
    """Sines and cosines (B, 64) of times (B,) in [0, 1], wavelengths from 2 pi / 1000 to 2 pi."""
    rates = torch.exp(torch.linspace(0.0, math.log(1000.0), FREQUENCIES, device=t.device))
    angles = t[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class TinyFlowNetwork(LatentNetwork):
    """A reader and generation experts copied from its trunk, whose latent tokens attend to the caption's."""

    paradigm, times, head = "flow", "logit_normal", ("expert",)
    generator_targets = r".*expert\.blocks\.\d+\.(qkv|o|f1|f2)"

    def __init__(self, words: int, trunk: TrunkConfig, positions: int = TEXT_POSITIONS) -> None:
        super().__init__(words, trunk, positions)
        self.expert = Expert(trunk)

    def start_head(self) -> None:
        """Start the experts as copies of the understanding blocks, as BAGEL does."""
        for expert, block in zip(self.expert.blocks, self.trunk.blocks, strict=True):
            expert.load_state_dict(block.state_dict(), strict=False)  # the modulation has no counterpart

    def condition(self, past: KeyValues, mask: Tensor) -> tuple[KeyValues, Tensor]:
        """Keys, values and mask of the captions, layer by layer."""
        return past, mask

    def predict(self, x: Tensor, t: Tensor, condition: tuple[KeyValues, Tensor]) -> Tensor:
        """Velocity `(x_t - x0_hat) / max(t, 0.05)` of the predicted clean latents."""
        clean = self.expert(x, t, *condition)
        return (x - clean.float()) / t.clamp(min=LEAST_TIME)[:, None, None]

    def estimate(self, x: Tensor, t: Tensor, prediction: Tensor) -> Tensor:
        """The clean latents `x_t - t v` that a velocity stands for: its error is t^2 times the velocity's.

        In velocities the smallest times, where nothing is decided any more, dominate the gradient: 60 G steps then
        gained 2 points instead of 6 at the same learning rate (results/measured/tried.md).
        """
        return x - t[:, None, None] * prediction

    def noisy(self, latents: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`x_t = (1 - t) x0 + t noise`, velocity `noise - x0`. Source: paper (rectified flow)."""
        share = t[:, None, None]
        return (1 - share) * latents + share * noise, noise - latents

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler steps along the velocity, from noise (t = 1) to picture (t = 0)."""
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(STEPS)
        return scheduler
