"""Scenes of 1 to 5 bright or dark objects and sometimes a number of 1 to 3 handwritten digits, on 24x24 pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from asgkit.shapes.digits import digit_split, read_digit
from asgkit.shapes.world import CELL, MIN_VISIBLE, SHAPES, SIDE, SIZES, Thing, template
from asgkit.shapes.world import COLORS as BRIGHT

COLORS = BRIGHT | {f"dark {name}": tuple(value // 2 for value in rgb) for name, rgb in BRIGHT.items()}
COLOR_NAMES = tuple(COLORS)
DARK_PROBABILITY = 0.40
PLACES = ("top left", "top middle", "top right", "middle left", "center", "middle right", "bottom left",
          "bottom middle", "bottom right")  # of the 3x3 cells, row by row
LINES = {"top row": (0, 1, 2), "middle row": (3, 4, 5), "bottom row": (6, 7, 8),
         "left column": (0, 3, 6), "middle column": (1, 4, 7), "right column": (2, 5, 8)}
COUNT_PROBABILITY = (0.20, 0.30, 0.25, 0.15, 0.10)  # of 1..5 objects
NUMBER_PROBABILITY = 0.35
LENGTH_PROBABILITY = (0.40, 0.35, 0.25)  # of 1..3 digits
UNIFORM_PROBABILITY = 0.35  # scenes of one shape, half of them of one colour: counting needs support
OVERLAP_PROBABILITY = 0.10  # scenes where one object leans over its neighbour's cell
HELD = ("dev", "test", "sealed")  # splits for evaluation: each combination of objects belongs to one of them


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order (later ones cover earlier ones) and an optional number, its digits left to right.

    number: the digits as words ("7 4"); number_cells: their cells, side by side in one row; glyphs: (k, 8, 8) uint8.
    """

    things: tuple[Thing, ...]
    number: str | None = None
    number_cells: tuple[int, ...] = ()
    glyphs: np.ndarray | None = None

    def ordered(self) -> list[Thing]:
        """Objects in reading order (row by row)."""
        return sorted(self.things, key=lambda thing: thing.cell)


# -- splits --------------------------------------------------------------------------------------------------------
def combination(objects: Iterable[tuple[str, str]]) -> str:
    """The key of a set of (colour, shape) objects, whatever their order: what two held-out splits never share."""
    return " + ".join(sorted(f"{color} {shape}" for color, shape in objects))


def split_of(objects: Iterable[tuple[str, str]]) -> str:
    """The one of `HELD` that may show or name these objects together; a third of all combinations each."""
    digest = hashlib.sha256(f"scenes|{combination(objects)}".encode()).digest()
    return HELD[int.from_bytes(digest[:4], "big") % len(HELD)]


@lru_cache(maxsize=8)
def glyphs_of(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Glyphs (n, 8, 8) uint8 and labels (n,) of a split; no two splits share one, and the detector reads each rightly.

    Leaving out the one or two in a hundred that its nearest neighbours misread makes the detector exact.
    Raises ValueError for an unknown split.
    """
    if split in ("test", "sealed"):
        images, labels = digit_split("test")
        rows = slice(None, None, 2) if split == "test" else slice(1, None, 2)
        images, labels = images[rows], labels[rows]
    elif split in ("train", "pool", "dev"):
        images, labels = digit_split(split)
    else:
        raise ValueError(f"unknown split {split!r} of the scenes; choose one of {['train', 'pool', *HELD]}")
    legible = np.array([reading == label for reading, label in zip(read_digit(images), labels, strict=True)])
    return images[legible], labels[legible]


# -- drawing -------------------------------------------------------------------------------------------------------
def render(scene: Scene) -> np.ndarray:
    """Draw a scene: (24, 24, 3) uint8 on black; each digit is written in grey levels and fills its cell."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for place, cell in enumerate(scene.number_cells):
        row, column = divmod(cell, 3)
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = scene.glyphs[place, ..., None]
    for thing in scene.things:
        window = image[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        window[template(thing.shape, thing.size)] = COLORS[thing.color]
    return image


def legible(things: list[Thing]) -> bool:
    """No two objects of one colour touch, and every object keeps `MIN_VISIBLE` of its pixels."""
    owner, color = np.zeros((SIDE, SIDE), np.int64), np.zeros((SIDE, SIDE), np.int64)
    for index, thing in enumerate(things, start=1):
        spot = np.s_[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        mask = template(thing.shape, thing.size)
        owner[spot][mask], color[spot][mask] = index, 1 + COLOR_NAMES.index(thing.color)
    seen = np.bincount(owner.ravel(), minlength=len(things) + 1)[1:]
    if any(n < MIN_VISIBLE * template(t.shape, t.size).sum() for n, t in zip(seen, things, strict=True)):
        return False
    touching = [((a[0] != a[1]) & (c[0] == c[1]) & (c[0] > 0)).any()
                for a, c in (((owner[1:], owner[:-1]), (color[1:], color[:-1])),
                             ((owner[:, 1:], owner[:, :-1]), (color[:, 1:], color[:, :-1])))]
    return not any(touching)


# -- sampling ------------------------------------------------------------------------------------------------------
def _place(rng: np.random.Generator, shape: str, color: str, cell: int) -> Thing:
    size = SIZES[rng.integers(2)]
    row, column = divmod(cell, 3)
    low = 0 if size == 7 else 1  # small objects stay off the cell's edge: fewer distinct image patches
    dx, dy = (int(v) for v in rng.integers(low, low + 2, 2))
    return Thing(shape, color, size, cell, column * CELL + dx, row * CELL + dy)


def _lean(rng: np.random.Generator, things: list[Thing]) -> list[Thing]:
    """Shift one object by two pixels towards a neighbour's cell and draw it last, so that they may overlap."""
    index = int(rng.integers(len(things)))
    thing = things[index]
    dx, dy = ((2, 0), (-2, 0), (0, 2), (0, -2))[rng.integers(4)]
    x, y = thing.x + dx, thing.y + dy
    if not (0 <= x <= SIDE - thing.size and 0 <= y <= SIDE - thing.size):
        return things
    moved = Thing(thing.shape, thing.color, thing.size, thing.cell, x, y)
    return things[:index] + things[index + 1 :] + [moved]


def sample_color(rng: np.random.Generator) -> str:
    """A colour name, dark with probability `DARK_PROBABILITY`."""
    return COLOR_NAMES[int(rng.integers(len(BRIGHT))) + len(BRIGHT) * bool(rng.random() < DARK_PROBABILITY)]


def _attributes(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    colors = [sample_color(rng) for _ in range(count)]
    if rng.random() < UNIFORM_PROBABILITY:
        shapes = shapes[:1] * count
        if rng.random() < 0.5:
            colors = colors[:1] * count
    return shapes, colors


def _number(rng: np.random.Generator, split: str, length: int) -> tuple[str | None, tuple[int, ...], np.ndarray | None]:
    if length == 0:
        return None, (), None
    first = 3 * int(rng.integers(3)) + int(rng.integers(4 - length))
    glyphs, labels = glyphs_of(split)
    picks = rng.integers(len(labels), size=length)
    return " ".join(str(labels[i]) for i in picks), tuple(range(first, first + length)), glyphs[picks]


def sample_scene(rng: np.random.Generator, split: str, *, count: int | None = None,
                 digits: int | None = None) -> Scene:
    """Sample one scene of a split; `count` fixes the number of objects, `digits` (0 to 3) that of digits.

    The splits `HELD` get only combinations of objects of their own, and glyphs that no other split has.
    Raises ValueError for an unknown split.
    """
    while True:
        length = digits
        if digits is None:
            length = 1 + int(rng.choice(3, p=LENGTH_PROBABILITY)) if rng.random() < NUMBER_PROBABILITY else 0
        number, taken, glyphs = _number(rng, split, length)
        amount = count or 1 + int(rng.choice(5, p=COUNT_PROBABILITY))
        shapes, colors = _attributes(rng, amount)
        if split in HELD and split_of(zip(colors, shapes, strict=True)) != split:
            continue
        cells = [int(cell) for cell in rng.permutation(9) if cell not in taken][:amount]
        things = [_place(rng, *kind) for kind in zip(shapes, colors, cells, strict=True)]
        if amount > 1 and rng.random() < OVERLAP_PROBABILITY and number is None:
            things = _lean(rng, things)
        if legible(things):
            return Scene(tuple(things), number, taken, glyphs)


def kinds(scene: Scene) -> Counter[tuple[str, str]]:
    """How many objects of each (colour, shape) a scene has."""
    return Counter((thing.color, thing.shape) for thing in scene.things)


def pool_scenes(count: int, seed: int = 0) -> list[Scene]:
    """The scenes that `render_pool` draws, in its order: for evaluation, which may know what a picture shows."""
    rng = np.random.default_rng([seed, 20261128])
    return [sample_scene(rng, "pool") for _ in range(count)]


def render_pool(folder: str | Path, count: int, seed: int = 0) -> Path:
    """Write `count` unlabelled PNG scenes (split `pool`) to a folder, as any user's folder of images."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(pool_scenes(count, seed)):
        Image.fromarray(render(scene)).save(folder / f"{index:05d}.png")
    return folder
