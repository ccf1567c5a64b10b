"""Shards: the items of one step, cut into parts of one size with random streams of their own.

The batch of a step is cut into `ranks x schedule.accumulate` shards of `schedule.images` items each. What a shard
samples does not depend on which process works on it: two processes with one shard each and one process with two
shards are the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from asgkit.pool.base import PoolImage, PoolPrompt


@dataclass(frozen=True)
class Shard:
    """`schedule.images` items of one step, with random streams of their own; `index` counts over all ranks."""

    seed: int
    step: int
    index: int
    items: list[PoolImage] | list[PoolPrompt]

    @property
    def pictures(self) -> list[Image.Image]:
        """The images without their names; for a pool of pictures."""
        return [item.image for item in self.items]

    @property
    def texts(self) -> list[str]:
        """The prompts without their names; for a pool of prompts."""
        return [item.text for item in self.items]

    @property
    def kind(self) -> str:
        """`pictures` or `prompts`."""
        return "prompts" if isinstance(self.items[0], PoolPrompt) else "pictures"

    def rng(self, *stream: int) -> np.random.Generator:
        """A generator for each step, use and shard: no stream to save, none to replay after a resume.

        Shard 0 has the stream of `[seed, step, *stream]`; the others are spawned from it by their index.
        """
        spawned = (self.index,) if self.index else ()
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.step, *stream], spawn_key=spawned))

    def number(self, stream: int) -> int:
        """One seed of a stream, for what takes a seed and no generator."""
        return int(self.rng(stream).integers(2**31))


def cut_shards(items: Sequence[PoolImage] | Sequence[PoolPrompt], size: int, *, seed: int, step: int, first: int = 0
               ) -> list[Shard]:
    """The shards `first`, `first + 1`, ... of a step, `size` consecutive items each."""
    return [Shard(seed, step, first + i, list(items[i * size : (i + 1) * size]))
            for i in range(len(items) // size)]
