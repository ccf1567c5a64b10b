"""Real handwritten digits (scikit-learn's 8x8 set), in four disjoint splits, as the world's readable text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits

SPLIT_SIZES = {"train": 1000, "pool": 300, "dev": 200, "test": 297}  # sums to the set's 1,797 glyphs


@lru_cache(maxsize=1)
def _shuffled() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(1797).permutation(len(data.target))
    glyphs = (data.images[order] * (255.0 / 16.0)).round().astype(np.uint8)  # 17 grey levels, 0..255
    return glyphs, data.target[order].astype(np.int64)


@lru_cache(maxsize=8)
def digit_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the glyphs (n, 8, 8) uint8 and labels (n,) of one split; the four splits never share a glyph.

    Raises ValueError for an unknown split name.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"unknown digit split {split!r}; choose one of {sorted(SPLIT_SIZES)}")
    names = list(SPLIT_SIZES)
    start = sum(SPLIT_SIZES[name] for name in names[: names.index(split)])
    glyphs, labels = _shuffled()
    return glyphs[start : start + SPLIT_SIZES[split]], labels[start : start + SPLIT_SIZES[split]]


def read_digit(cells: np.ndarray, neighbours: int = 3) -> list[int | None]:
    """Read 8x8 grey cells by a vote of the nearest training glyphs; None where nothing resembles a digit.

    cells: (n, 8, 8) in 0..255. A cell whose nearest training glyph is farther than `REJECT` (root mean square,
    grey levels) is unreadable. Only the `train` split is used, so readings of other splits are held out.
    """
    glyphs, labels = digit_split("train")
    bank = glyphs.reshape(len(glyphs), 64).astype(np.float32)
    flat = np.asarray(cells, dtype=np.float32).reshape(len(cells), 64)
    squared = (flat**2).sum(1)[:, None] + (bank**2).sum(1)[None] - 2.0 * flat @ bank.T
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :neighbours]
    readings: list[int | None] = []
    for row, columns in enumerate(nearest):
        rms = float(np.sqrt(max(squared[row, columns[0]], 0.0) / 64))
        votes = np.bincount(labels[columns], minlength=10)
        tied = votes == votes.max()  # a tie goes to the nearest glyph
        winner = int(labels[columns[0]]) if tied[labels[columns[0]]] else int(votes.argmax())
        readings.append(winner if rms <= REJECT else None)
    return readings


REJECT = 80.0  # farther than 99.9% of held-out real glyphs from their nearest training glyph
