"""Image codes: a picture as 9 coarse and 36 fine patch indices, coarse first (next-scale prediction, after VAR)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PATCH = 4  # pixels
COARSE, FINE = 9, 36  # tokens of the 12x12 and the 24x24 picture
TOKENS = COARSE + FINE


def to_tensor(images: Sequence[Image.Image | np.ndarray]) -> Tensor:
    """PIL images or arrays (24, 24, 3) uint8 -> float (B, 3, 24, 24) in [0, 1]; ValueError for another size."""
    arrays = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    if arrays.ndim != 4 or arrays.shape[1:] != (24, 24, 3):
        raise ValueError(f"tiny models read 24x24 RGB pictures, got an array of shape {arrays.shape[1:]}")
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255.0


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Inverse of `to_tensor`: float (B, 3, S, S) in [0, 1], rounded to 256 levels."""
    arrays = (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]


def halve(pixels: Tensor) -> Tensor:
    """Mean of 2x2 pixels: (B, 3, 24, 24) -> (B, 3, 12, 12)."""
    return torch.nn.functional.avg_pool2d(pixels, 2)


def patches(pixels: Tensor) -> Tensor:
    """Cut (B, 3, S, S) into (B, (S/4)^2, 48) patches, row by row."""
    b, c, side, _ = pixels.shape
    n = side // PATCH
    cut = pixels.reshape(b, c, n, PATCH, n, PATCH).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(b, n * n, c * PATCH * PATCH)


def unpatch(rows: Tensor) -> Tensor:
    """Inverse of `patches`: (B, n^2, 48) -> (B, 3, 4n, 4n)."""
    b, count, width = rows.shape
    n, c = int(count**0.5), width // PATCH**2
    return rows.reshape(b, n, n, c, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(b, c, n * PATCH, n * PATCH)


def nearest(rows: Tensor, book: Tensor, chunk: int = 4096) -> Tensor:
    """Index of the nearest codebook entry: rows (..., 48), book (V, 48) -> (...,) int64."""
    flat = rows.reshape(-1, rows.shape[-1])
    norm = (book**2).sum(-1)
    found = [(norm - 2.0 * part @ book.T).argmin(-1) for part in flat.split(chunk)]
    return torch.cat(found).reshape(rows.shape[:-1])


def encode(pixels: Tensor, coarse_book: Tensor, fine_book: Tensor) -> Tensor:
    """Codes (B, 45) of pictures (B, 3, 24, 24): nearest patches of the halved picture, then of the whole one."""
    return torch.cat([nearest(patches(halve(pixels)), coarse_book), nearest(patches(pixels), fine_book)], 1)


def build_codebook(rows: np.ndarray, size: int, seed: int, frequent: float = 0.75) -> np.ndarray:
    """Codebook (size, 48): the most frequent patches verbatim, and k-means centres of all others.

    Objects are drawn on a small set of places, so their patches recur and are kept exactly; handwritten digits and
    overlaps do not recur and are quantised to the centres. rows: (n, 48) uint8. Entries are uint8.
    """
    from sklearn.cluster import MiniBatchKMeans

    unique, counts = np.unique(rows, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    keep = min(int(size * frequent), len(unique))
    exact, rest = unique[order[:keep]], order[keep:]
    centres = min(size - keep, len(rest))
    if centres <= 0:
        return exact
    means = MiniBatchKMeans(centres, random_state=seed, n_init=3, batch_size=2048)
    means.fit(unique[rest].astype(np.float32), sample_weight=counts[rest])
    return np.concatenate([exact, means.cluster_centers_.round().clip(0, 255).astype(np.uint8)])
