"""The convolutional autoencoder beneath the bits, with the state-dict names of the published weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class AutoencoderSize:
    """Sizes of the autoencoder; the defaults are the published ones (d = 32, factor 16).

    multipliers: of `channels`, one per resolution; each resolution but the last is halved. blocks: per resolution, one
    more on the way up.
    """

    bits: int = 32
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    blocks: int = 2

    @property
    def factor(self) -> int:
        """Pixels per position, along one side."""
        return 2 ** (len(self.multipliers) - 1)


class Conv(nn.Module):
    """A convolution one level down: the published names end in `.conv.weight`."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W)."""
        return self.conv(x)


class Normalize(nn.Module):
    """Group norm one level down; 24 groups where 32 do not divide the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32 if channels % 32 == 0 else 24, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W)."""
        return self.norm(x)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside an identity, or a 1x1 convolution where the width changes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Normalize(inside), Conv(inside, outside)
        self.norm2, self.conv2 = Normalize(outside), Conv(outside, outside)
        self.nin_shortcut = Conv(inside, outside, 1, padding=0) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Resample(nn.Module):
    """A convolution that halves a map (padded below and right alone), or follows its doubling."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = Conv(channels, channels) if up else Conv(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) to (B, C, 2 H, 2 W) or (B, C, H / 2, W / 2)."""
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else functional.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Level(nn.Module):
    """The blocks of one resolution and the way to the next, if there is one."""

    def __init__(self, inside: int, outside: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(inside if i == 0 else outside, outside) for i in range(blocks))
        self.downsample: Resample | None = None
        self.upsample: Resample | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W)."""
        for block in self.block:
            x = block(x)
        for way in (self.downsample, self.upsample):
            x = x if way is None else way(x)
        return x


class Middle(nn.Module):
    """Two blocks at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = ResnetBlock(channels, channels), ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps (B, C, H, W)."""
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to features (B, d, H / factor, W / factor)."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        widths = [size.channels * m for m in size.multipliers]
        self.conv_in = Conv(3, size.channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[i - 1] if i else size.channels, width, size.blocks)
            if i < len(widths) - 1:
                level.downsample = Resample(width, up=False)
            self.down.append(level)
        self.mid = Middle(widths[-1])
        self.norm_out, self.conv_out = Normalize(widths[-1]), Conv(widths[-1], size.bits)

    def forward(self, x: Tensor) -> Tensor:
        """Features of pixels."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features (B, d, h, w) to pixels (B, 3, factor h, factor w); `up` is listed from the highest resolution down."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        widths = [size.channels * m for m in size.multipliers]
        self.conv_in, self.mid = Conv(size.bits, widths[-1]), Middle(widths[-1])
        levels = []
        for i, width in enumerate(widths):
            level = Level(widths[min(i + 1, len(widths) - 1)], width, size.blocks + 1)
            if i:
                level.upsample = Resample(width, up=True)
            levels.append(level)
        self.up = nn.ModuleList(levels)
        self.norm_out, self.conv_out = Normalize(widths[0]), Conv(widths[0], 3)

    def forward(self, z: Tensor) -> Tensor:
        """Pixels of features, not clipped."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(x)))


class BitAutoencoder(nn.Module):
    """Encoder and decoder; the quantiser between them has no weights but a table that the files hold."""

    def __init__(self, size: AutoencoderSize) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(size), Decoder(size)
        self.quantizer = nn.Module()
        self.quantizer.lfq = nn.Module()
        self.quantizer.lfq.register_buffer("mask", 2 ** torch.arange(size.bits - 1, -1, -1))

    def encode(self, pixels: Tensor) -> Tensor:
        """Features (B, d, S, S) of pixels in [-1, 1]."""
        return self.encoder(pixels)

    def decode(self, features: Tensor) -> Tensor:
        """Pixels in [-1, 1], clipped."""
        return self.decoder(features).clamp(-1.0, 1.0)


def to_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """PIL images resized to side x side, as float (B, 3, side, side) in [-1, 1]."""
    shown = [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)) for image in images]
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_images(pixels: Tensor) -> list[Image.Image]:
    """PIL images of pixels (B, 3, S, S) in [-1, 1]; cut off to 256 levels, as the published sampler does."""
    arrays = ((pixels + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
