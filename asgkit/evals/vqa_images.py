"""Pictures of understanding benchmarks: fitted to the backbone, blanked, or exchanged with another item's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from asgkit.runs.files import sha256

Mode = Literal["real", "blank", "shuffled"]
MODES: tuple[Mode, ...] = ("real", "blank", "shuffled")
Fit = Literal["square", "native"]
GREY = (128, 128, 128)


def digest(image: Image.Image) -> str:
    """sha256 of an RGB picture's size and pixels."""
    return sha256(repr(image.size).encode() + image.tobytes())


def montage(images: Sequence[Image.Image]) -> Image.Image:
    """Several pictures of one item as one, row by row in a near-square grid of equal black cells.

    The protocol answers about one picture per prompt; one picture passes unchanged.
    """
    if len(images) == 1:
        return images[0].convert("RGB")
    columns = int(np.ceil(np.sqrt(len(images))))
    width, height = max(i.width for i in images), max(i.height for i in images)
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for n, image in enumerate(images):
        cell = ImageOps.pad(image.convert("RGB"), (width, height))
        sheet.paste(cell, (n % columns * width, n // columns * height))
    return sheet


def fit_image(image: Image.Image, fit: Fit, side: int) -> Image.Image:
    """`square`: the whole picture on a black square of `side` px, aspect kept; `native`: as it is."""
    if fit == "native" or image.size == (side, side):
        return image
    return ImageOps.pad(image, (side, side), method=Image.Resampling.BICUBIC)


def blank(image: Image.Image) -> Image.Image:
    """Mid grey of the same size: what a model answers from the question alone."""
    return Image.new("RGB", image.size, GREY)


class Shuffle:
    """Partners of a task's items: one cycle through all of them, fixed by seed and task name.

    A cycle has no fixed point, so no item meets itself; where two items share a picture (MME asks twice about each),
    the next item along the cycle with another picture is taken. It depends neither on a limit nor on the number of
    processes.
    """

    def __init__(self, task: str, count: int, seed: int) -> None:
        self.order = np.random.default_rng([seed, zlib.crc32(task.encode())]).permutation(count)
        self.place = np.argsort(self.order)
        self.task = task

    def partner(self, item: int, own: Image.Image, load: Callable[[int], Image.Image]) -> tuple[int, Image.Image]:
        """Index and picture of the partner; raises ValueError when every item shows the same picture."""
        mine = digest(own)
        for step in range(1, len(self.order)):
            other = int(self.order[(self.place[item] + step) % len(self.order)])
            image = load(other)
            if digest(image) != mine:
                return other, image
        raise ValueError(f"task {self.task}: no other item has another picture than item {item}, so none can be "
                         "exchanged; use image mode blank")
