"""A pool without any real image: pictures that the frozen base draws from no prompt (table 5, self-generated only)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asgkit.backbones.base import Backbone

BLOCK = 128  # drawings at once


def draw_pool(backbone: Backbone, folder: str | Path, count: int, seed: int = 0) -> Path:
    """Write `count` PNG pictures drawn by the base without a caption; the same seed gives the same bytes.

    Raises FileExistsError when the folder holds files already: two pools would mix. Source: paper (table 5, S5); the
    released code instead lets the Proposer invent prompts from a list of topics.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; name another folder, or delete it first")
    folder.mkdir(parents=True, exist_ok=True)
    seeds = np.random.default_rng([seed, 51]).integers(2**31, size=count).tolist()
    prompt = backbone.spec.prompts.draw.format(caption="").strip()
    for start in range(0, count, BLOCK):
        block = seeds[start : start + BLOCK]
        drawn = backbone.generate_images([prompt] * len(block), seeds=block, role=None)
        for i, image in enumerate(drawn.images, start):
            image.save(folder / f"{i:05d}.png")
    return folder
