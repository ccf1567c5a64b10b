"""An exact programmatic reader of scenes: colours, shapes, sizes, places and the number. Evaluation only."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
from scipy import ndimage

from asgkit.scenes.text import Wanted
from asgkit.scenes.world import (
    CELL,
    COLOR_NAMES,
    COLORS,
    PLACES,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    kinds,
    template,
)
from asgkit.shapes.detector import JUNK
from asgkit.shapes.digits import read_digit
from asgkit.shapes.text import relation_between

MIN_IOU = 0.60  # a component that fits no shape better than this is junk
MIN_AREA = 4  # smaller specks are ignored
DIGIT_AREA = 8  # grey pixels of a cell that holds a digit
_PALETTE = np.array([(0, 0, 0), *COLORS.values(), *[(level,) * 3 for level in (65, 110, 180, 255)]], np.float32)
_GREY = 1 + len(COLORS)  # palette entries from here on are pencil grey


@lru_cache(maxsize=1)
def _placements() -> tuple[np.ndarray, list[tuple[str, int, int, int]]]:
    """Every template at every place: masks (P, 576) float32 and their (shape, size, x, y)."""
    masks, keys = [], []
    for shape in SHAPES:
        for size in SIZES:
            for y in range(SIDE - size + 1):
                for x in range(SIDE - size + 1):
                    mask = np.zeros((SIDE, SIDE), np.float32)
                    mask[y : y + size, x : x + size] = template(shape, size)
                    masks.append(mask.reshape(-1))
                    keys.append((shape, size, x, y))
    return np.stack(masks), keys


def color_map(image: np.ndarray) -> np.ndarray:
    """Nearest palette entry of each pixel: 0 black, 1..12 the colours, 13.. grey levels; (24, 24)."""
    flat = image.reshape(-1, 3).astype(np.float32)
    distance = (_PALETTE**2).sum(1) - 2.0 * flat @ _PALETTE.T
    return distance.argmin(-1).reshape(image.shape[:2])


def _components(colors: np.ndarray) -> list[tuple[int, np.ndarray]]:
    found = []
    for color in range(1, _GREY):
        mask = colors == color
        if mask.any():
            labels, number = ndimage.label(mask)
            found += [(color, labels == i) for i in range(1, number + 1) if (labels == i).sum() >= MIN_AREA]
    return found


def _read_number(image: np.ndarray, colors: np.ndarray) -> tuple[str | None, tuple[int, ...], bool]:
    """The number and its cells, and whether grey marks that are no number were left over.

    A number is digits side by side in one row of cells; anything else that is grey is a scribble.
    """
    grey = (colors >= _GREY).reshape(3, CELL, 3, CELL).sum((1, 3)).reshape(-1)
    cells = np.flatnonzero(grey >= DIGIT_AREA)
    if len(cells) == 0:
        return None, (), False
    blocks = image.mean(-1).reshape(3, CELL, 3, CELL).transpose(0, 2, 1, 3).reshape(9, CELL, CELL)
    digits = read_digit(blocks[cells])
    side_by_side = len(set(cells // 3)) == 1 and (np.diff(cells) == 1).all()
    if not side_by_side or None in digits:
        return None, (), True
    return " ".join(map(str, digits)), tuple(map(int, cells)), False


def detect(images: np.ndarray) -> list[Scene]:
    """Read pictures (B, 24, 24, 3) uint8 into scenes; a component that fits no shape becomes a thing named `JUNK`.

    Each colour's 4-connected components are compared with every template at every place by intersection over
    union; pixels under another colour count neither for nor against (they may be covered).
    """
    masks, keys = _placements()
    maps = [color_map(image) for image in images]
    parts = [(b, color, mask) for b, colors in enumerate(maps) for color, mask in _components(colors)]
    things: list[list[Thing]] = [[] for _ in images]
    if parts:
        component = np.stack([mask.reshape(-1) for _, _, mask in parts]).astype(np.float32)
        visible = np.stack([((maps[b] == 0) | (maps[b] == color)).reshape(-1) for b, color, _ in parts])
        inside = component @ masks.T  # (C, P)
        union = component.sum(1, keepdims=True) + visible.astype(np.float32) @ masks.T - inside
        # an occluded component can fit several templates exactly: prefer the one with most seen pixels
        score = inside / np.maximum(union, 1.0) + 1e-6 * inside
        for (b, color, mask), place, value in zip(parts, score.argmax(1), score.max(1), strict=True):
            things[b].append(_thing(COLOR_NAMES[color - 1], mask, keys[place], value))
    return [_scene(*read) for read in zip(images, maps, things, strict=True)]


def _scene(image: np.ndarray, colors: np.ndarray, found: list[Thing]) -> Scene:
    number, cells, scribble = _read_number(image, colors)
    if scribble:
        found = [*found, Thing(JUNK, "grey", 0, -1, 0, 0)]
    return Scene(tuple(found), number, cells)


def _thing(color: str, mask: np.ndarray, key: tuple[str, int, int, int], score: float) -> Thing:
    shape, size, x, y = key
    if score < MIN_IOU:
        rows, columns = np.nonzero(mask)
        return Thing(JUNK, color, 0, _cell(columns.mean(), rows.mean()), int(columns.min()), int(rows.min()))
    return Thing(shape, color, size, _cell(x + (size - 1) / 2, y + (size - 1) / 2), x, y)


def _cell(x: float, y: float) -> int:
    return min(int(y // CELL), 2) * 3 + min(int(x // CELL), 2)


def satisfies(scene: Scene, wanted: Wanted) -> bool:
    """Strict check of a detected scene against a caption: exactly these objects, places, relation and number, no junk.

    A place that the caption leaves open may be any; nothing else may be in the picture.
    """
    if scene.number != wanted.number or kinds(scene) != Counter((c, s) for c, s, _ in wanted.objects):
        return False
    have = Counter((t.color, t.shape, PLACES[t.cell]) for t in scene.things)
    if Counter(thing for thing in wanted.objects if thing[2]) - have:
        return False
    return wanted.relation is None or _related(scene, wanted)


def _related(scene: Scene, wanted: Wanted) -> bool:
    first, second = (kind[:2] for kind in wanted.objects)
    return any(a is not b and (a.color, a.shape) == first and (b.color, b.shape) == second
               and relation_between(a, b) == wanted.relation for a in scene.things for b in scene.things)


def agrees(detected: Scene, truth: Scene) -> bool:
    """Whether a detection equals the true scene: colours, shapes, sizes and cells of all objects, and the number."""
    key = lambda scene: Counter((t.color, t.shape, t.size, t.cell) for t in scene.things)
    same_number = (detected.number, detected.number_cells) == (truth.number, truth.number_cells)
    return key(detected) == key(truth) and same_number
