"""Scenes of 1 to 5 coloured objects and sometimes one handwritten digit, and their exact 24x24 rendering."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from asgkit.shapes.digits import digit_split

SIDE = 24  # pixels
CELL = 8  # a 3x3 grid of cells; the image codes use 4x4-pixel patches, so a digit is exactly 2x2 patches
SHAPES = ("square", "circle", "triangle", "cross")
PLURALS = {"square": "squares", "circle": "circles", "triangle": "triangles", "cross": "crosses"}
COLORS = {
    "red": (230, 30, 30),
    "green": (30, 200, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 40, 220),
    "cyan": (40, 220, 230),
}
COLOR_NAMES = tuple(COLORS)
SIZES = (5, 7)  # pixels
COUNT_PROBABILITY = (0.20, 0.30, 0.25, 0.15, 0.10)  # of 1..5 objects
DIGIT_PROBABILITY = 0.30
UNIFORM_PROBABILITY = 0.35  # scenes of one shape, half of them of one colour: counting needs support
OVERLAP_PROBABILITY = 0.10  # scenes where one object leans over its neighbour's cell
MIN_VISIBLE = 0.70  # an occluded object keeps at least this share of its pixels


@dataclass(frozen=True)
class Thing:
    """One object: `x`, `y` are the pixel of its upper left corner; `cell` is row-major in the 3x3 grid."""

    shape: str
    color: str
    size: int
    cell: int
    x: int
    y: int

    @property
    def row(self) -> int:
        """Row of its cell, 0 at the top."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """Column of its cell, 0 on the left."""
        return self.cell % 3


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order (later ones cover earlier ones) and an optional digit (label, glyph index, cell)."""

    things: tuple[Thing, ...]
    digit: int | None = None
    digit_cell: int | None = None
    glyph: np.ndarray | None = None  # (8, 8) uint8

    def ordered(self) -> list[Thing]:
        """Objects in reading order (row by row)."""
        return sorted(self.things, key=lambda thing: thing.cell)


@lru_cache(maxsize=16)
def template(shape: str, size: int) -> np.ndarray:
    """Boolean mask (size, size) of one shape."""
    grid = np.arange(size) - (size - 1) / 2
    yy, xx = np.meshgrid(grid, grid, indexing="ij")
    half = size / 2
    if shape == "square":
        return np.ones((size, size), bool)
    if shape == "circle":
        return xx**2 + yy**2 <= half**2
    if shape == "triangle":
        return np.abs(xx) <= (yy + half) / 2 + 0.01
    if shape == "cross":
        arm = 0.5 if size == 5 else 1.0
        return (np.abs(xx) <= arm) | (np.abs(yy) <= arm)
    raise ValueError(f"unknown shape {shape!r}; choose one of {SHAPES}")


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: (24, 24, 3) uint8 on black; the digit is written in grey levels and fills its cell."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    if scene.digit is not None:
        row, column = divmod(scene.digit_cell, 3)
        image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = scene.glyph[..., None]
    for thing in scene.things:
        window = image[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        window[template(thing.shape, thing.size)] = COLORS[thing.color]
    return image


def _owner(things: list[Thing]) -> np.ndarray:
    """Index + 1 of the topmost object at each pixel, 0 for none; (24, 24)."""
    owner = np.zeros((SIDE, SIDE), np.int64)
    for index, thing in enumerate(things, start=1):
        window = owner[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size]
        window[template(thing.shape, thing.size)] = index
    return owner


def _legible(things: list[Thing]) -> bool:
    """No two objects of one colour touch, and every object keeps `MIN_VISIBLE` of its pixels."""
    owner = _owner(things)
    for index, thing in enumerate(things, start=1):
        if (owner == index).sum() < MIN_VISIBLE * template(thing.shape, thing.size).sum():
            return False
    color = np.array([-1] + [COLOR_NAMES.index(thing.color) for thing in things])[owner]
    for a, b, ca, cb in ((owner[1:], owner[:-1], color[1:], color[:-1]),
                         (owner[:, 1:], owner[:, :-1], color[:, 1:], color[:, :-1])):
        if ((a != b) & (ca == cb) & (ca >= 0)).any():
            return False
    return True


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


def _draw_attributes(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    shapes = [SHAPES[i] for i in rng.integers(len(SHAPES), size=count)]
    colors = [COLOR_NAMES[i] for i in rng.integers(len(COLOR_NAMES), size=count)]
    if rng.random() < UNIFORM_PROBABILITY:
        shapes = shapes[:1] * count
        if rng.random() < 0.5:
            colors = colors[:1] * count
    return shapes, colors


def sample_scene(rng: np.random.Generator, split: str, *, count: int | None = None,
                 digit: bool | None = None) -> Scene:
    """Sample one scene; glyphs come from the digit `split`, `count` and `digit` fix what is otherwise random."""
    while True:
        number = count or 1 + int(rng.choice(5, p=COUNT_PROBABILITY))
        with_digit = rng.random() < DIGIT_PROBABILITY if digit is None else digit
        cells = rng.permutation(9)[: number + 1]
        shapes, colors = _draw_attributes(rng, number)
        things = [_place(rng, s, c, int(cell)) for s, c, cell in zip(shapes, colors, cells, strict=False)]
        if number > 1 and rng.random() < OVERLAP_PROBABILITY and not with_digit:
            things = _lean(rng, things)
        if not _legible(things):
            continue
        if not with_digit:
            return Scene(tuple(things))
        glyphs, labels = digit_split(split)
        pick = int(rng.integers(len(labels)))
        return Scene(tuple(things), int(labels[pick]), int(cells[number]), glyphs[pick])


def pool_scenes(count: int, seed: int = 0) -> list[Scene]:
    """The scenes that `render_pool` draws, in its order: for evaluation, which may know what a picture shows."""
    rng = np.random.default_rng([seed, 20260627])
    return [sample_scene(rng, "pool") for _ in range(count)]


def render_pool(folder: str | Path, count: int, seed: int = 0) -> Path:
    """Write `count` unlabelled PNG scenes (digit split `pool`) to a folder, as any user's folder of images."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index, scene in enumerate(pool_scenes(count, seed)):
        Image.fromarray(render(scene)).save(folder / f"{index:05d}.png")
    return folder
