"""What the Generator draws while it learns: one sheet of pictures per checkpoint, in the run's `samples/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

ROWS = 4  # pictures of the step that are shown
TILE = 96  # side of a tile in pixels; small pictures are enlarged without smoothing
FRAME = 4  # pixels around a tile; the best candidate's is green
BEST, OTHER = (0, 158, 115), (255, 255, 255)


def write_samples(folder: Path, step: int, sources: Sequence[Image.Image | None],
                  groups: Sequence[Sequence[Image.Image]], rewards: Sequence[Sequence[float]]) -> Path:
    """Write `step_000040.png`: a row per item of the step, its real picture first (blank where there is none), then its
    L candidates as drawn.

    The rows are the first `ROWS` of the step's log records, which hold prompts, questions and every score; `rewards`
    (B x L) frames the best candidate of a row.
    """
    rows = [[_tile(source, OTHER), *(_tile(image, BEST if i == _best(scores) else OTHER)
                                     for i, image in enumerate(group))]
            for source, group, scores in list(zip(sources, groups, rewards, strict=True))[:ROWS]]
    side = TILE + 2 * FRAME
    sheet = Image.new("RGB", (side * max(map(len, rows)), side * len(rows)), OTHER)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (x * side, y * side))
    folder.mkdir(exist_ok=True)
    path = folder / f"step_{step:06d}.png"
    sheet.save(path)
    return path


def _best(rewards: Sequence[float]) -> int:
    return max(range(len(rewards)), key=rewards.__getitem__)


def _tile(image: Image.Image | None, colour: tuple[int, int, int]) -> Image.Image:
    image = image or Image.new("RGB", (TILE, TILE), OTHER)
    how = Image.Resampling.NEAREST if max(image.size) < TILE else Image.Resampling.BICUBIC
    return ImageOps.expand(ImageOps.pad(image.convert("RGB"), (TILE, TILE), how, color=OTHER), FRAME, colour)
