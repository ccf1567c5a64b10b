"""An exact programmatic reader of 24x24 pictures: colours, shapes, sizes, places and the digit. Evaluation only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

from asgkit.shapes.digits import read_digit
from asgkit.shapes.text import Wanted, relation_between
from asgkit.shapes.world import CELL, COLOR_NAMES, COLORS, SHAPES, SIDE, SIZES, Scene, Thing, template

MIN_IOU = 0.60  # a component that fits no shape better than this is junk
MIN_AREA = 4  # smaller specks are ignored
_PALETTE = np.array([(0, 0, 0), *COLORS.values(), (110, 110, 110), (180, 180, 180), (255, 255, 255)], np.float32)
_GREY = 1 + len(COLORS)  # palette entries from here on are pencil grey
JUNK = "junk"


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
    """Nearest palette entry of each pixel: 0 black, 1..6 the colours, 7.. grey levels; (24, 24)."""
    distance = ((image.astype(np.float32)[:, :, None] - _PALETTE) ** 2).sum(-1)
    return distance.argmin(-1)


def _components(colors: np.ndarray) -> list[tuple[int, np.ndarray]]:
    found = []
    for color in range(1, _GREY):
        mask = colors == color
        if mask.any():
            labels, number = ndimage.label(mask)
            found += [(color, labels == i) for i in range(1, number + 1) if (labels == i).sum() >= MIN_AREA]
    return found


def _digit(image: np.ndarray, colors: np.ndarray) -> tuple[int | None, int | None, bool]:
    """Label and cell of the digit, and whether grey marks that are no digit were left over."""
    grey = (colors >= _GREY).reshape(3, CELL, 3, CELL).sum((1, 3)).reshape(-1)
    cells = np.flatnonzero(grey >= 8)
    if len(cells) == 0:
        return None, None, False
    blocks = image.mean(-1).reshape(3, CELL, 3, CELL).transpose(0, 2, 1, 3).reshape(9, CELL, CELL)
    readings = read_digit(blocks[cells])
    clear = [(label, int(cell)) for label, cell in zip(readings, cells, strict=True) if label is not None]
    if len(clear) != 1 or len(cells) != 1:
        return None, None, True
    return clear[0][0], clear[0][1], False


def world_pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """Pictures as (B, 24, 24, 3) uint8; larger ones are averaged down, so that any model's drawings can be read."""
    small = [image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), Image.Resampling.BOX)
             for image in images]
    return np.stack([np.asarray(image.convert("RGB")) for image in small])


def detect(images: np.ndarray) -> list[Scene]:
    """Read pictures (B, 24, 24, 3) uint8 into scenes; a component that fits no shape becomes a thing named `junk`.

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
    scenes = []
    for image, colors, found in zip(images, maps, things, strict=True):
        digit, cell, scribble = _digit(image, colors)
        if scribble:
            found.append(Thing(JUNK, "grey", 0, -1, 0, 0))
        scenes.append(Scene(tuple(found), digit, cell))
    return scenes


def _thing(color: str, mask: np.ndarray, key: tuple[str, int, int, int], score: float) -> Thing:
    shape, size, x, y = key
    if score < MIN_IOU:
        rows, columns = np.nonzero(mask)
        return Thing(JUNK, color, 0, _cell(columns.mean(), rows.mean()), int(columns.min()), int(rows.min()))
    return Thing(shape, color, size, _cell(x + (size - 1) / 2, y + (size - 1) / 2), x, y)


def _cell(x: float, y: float) -> int:
    return min(int(y // CELL), 2) * 3 + min(int(x // CELL), 2)


def satisfies(scene: Scene, wanted: Wanted) -> bool:
    """Strict check of a detected scene against a caption: exactly these objects, this relation, this digit, no junk.

    An object whose colour the caption leaves open may have any colour; nothing else may be in the picture.
    """
    if len(scene.things) != len(wanted.objects) or scene.digit != wanted.digit:
        return False
    if Counter(t.shape for t in scene.things) != Counter(shape for _, shape in wanted.objects):
        return False
    asked = Counter((color, shape) for color, shape in wanted.objects if color)
    have = Counter((t.color, t.shape) for t in scene.things)
    if any(have[key] < number for key, number in asked.items()):
        return False
    return wanted.relation is None or _related(scene, wanted)


def _related(scene: Scene, wanted: Wanted) -> bool:
    (_, first), (_, second) = wanted.objects
    return any(
        a is not b and a.shape == first and b.shape == second and relation_between(a, b) == wanted.relation
        for a in scene.things
        for b in scene.things
    )


def agrees(detected: Scene, truth: Scene) -> bool:
    """Whether a detection equals the true scene: colours, shapes, sizes and cells of all objects, and the digit."""
    key = lambda scene: Counter((t.color, t.shape, t.size, t.cell) for t in scene.things)
    return key(detected) == key(truth) and (detected.digit, detected.digit_cell) == (truth.digit, truth.digit_cell)
