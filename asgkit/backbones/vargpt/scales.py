"""Pictures as bits on growing grids: the multi-scale binary residual codes of VARGPT-v1.1 (after Infinity).

A picture's features (B, d, S, S) are told scale by scale: on a grid of side s, every position gives d bits, the signs
of what is still missing there. A bit stands for +-1 / sqrt(d), so that a position is a point of the unit sphere; the
bits of all scales so far, enlarged and added, are the canvas, and the canvas seen at the next scale is what the
network reads before it tells that scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Scales:
    """The grids of one picture. sides: of the square grids, smallest first; bits: d, per position."""

    sides: tuple[int, ...]
    bits: int

    @cached_property
    def positions(self) -> int:
        """Positions of all grids together, L."""
        return sum(side * side for side in self.sides)

    @cached_property
    def parts(self) -> tuple[slice, ...]:
        """Where each grid lies among the L positions."""
        ends = [sum(side * side for side in self.sides[: i + 1]) for i in range(len(self.sides))]
        return tuple(slice(end - side * side, end) for end, side in zip(ends, self.sides, strict=True))

    def levels(self, device: torch.device | str | None = None) -> Tensor:
        """Which grid each position belongs to, (L,) int64."""
        sizes = torch.tensor([side * side for side in self.sides], device=device)
        return torch.arange(len(self.sides), device=device).repeat_interleave(sizes, output_size=self.positions)

    def grow(self, canvas: Tensor | float, bits: Tensor, index: int) -> Tensor:
        """The canvas (B, d, S, S) with the bits (B, s * s, d) of grid `index` added; start with 0.0."""
        signs = (bits.float() * 2 - 1) / math.sqrt(self.bits)
        side = self.sides[index]
        grid = signs.transpose(1, 2).reshape(len(bits), self.bits, side, side)
        return canvas + _enlarge(grid, self.sides[-1])

    def view(self, canvas: Tensor, index: int) -> Tensor:
        """The canvas as grid `index` sees it, a sequence (B, s * s, d)."""
        return _enlarge(canvas, self.sides[index]).flatten(2).transpose(1, 2)

    def inputs(self, codes: Tensor) -> Tensor:
        """What is read before every grid but the first, (B, L - 1, d), given the codes (B, L, d) of all."""
        canvas, seen = 0.0, []
        for i, part in enumerate(self.parts[:-1]):
            canvas = self.grow(canvas, codes[:, part], i)
            seen.append(self.view(canvas, i + 1))
        return torch.cat(seen, 1)

    def canvas(self, codes: Tensor) -> Tensor:
        """Features (B, d, S, S) that the codes (B, L, d) stand for."""
        canvas = 0.0
        for i, part in enumerate(self.parts):
            canvas = self.grow(canvas, codes[:, part], i)
        return canvas

    def encode(self, features: Tensor) -> Tensor:
        """Codes (B, L, d) int64 in {0, 1} of features (B, d, S, S): signs of the residual's mean over each cell."""
        canvas, found = 0.0, []
        for i, side in enumerate(self.sides):
            residual = functional.adaptive_avg_pool2d(features - canvas, side)
            found.append((residual > 0).long().flatten(2).transpose(1, 2))
            canvas = self.grow(canvas, found[-1], i)
        return torch.cat(found, 1)


def _enlarge(grid: Tensor, side: int) -> Tensor:
    """A grid (B, d, s, s) at another side, bilinear."""
    if grid.shape[-1] == side:
        return grid
    return functional.interpolate(grid, size=(side, side), mode="bilinear")
