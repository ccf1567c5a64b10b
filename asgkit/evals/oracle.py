"""The truth as a control judge: reads real and drawn pictures of a world exactly. Never part of the method."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from asgkit.evals.worlds import WORLDS, World
from asgkit.shapes.detector import world_pixels


class ShapesJudge:
    """Implements `asgkit.recipes.controls.Judge` with the exact detector of a world."""

    def __init__(self, world: World = WORLDS["shapes"]) -> None:
        self.world = world

    def drawings(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """1.0 where a drawing satisfies its prompt strictly, 0.0 otherwise and for malformed prompts."""
        wanted = [self.world.parse_caption(prompt) for prompt in prompts]
        scenes = iter(self.world.detect(world_pixels([image for group in images for image in group])))
        return [[float(w is not None and self.world.satisfies(next(scenes), w)) if w is not None else _skip(scenes)
                 for _ in group] for w, group in zip(wanted, images, strict=True)]

    def answer(self, image: Image.Image, question: str) -> str | None:
        """The true answer to a question of the world, None for any other text."""
        return self.world.answer_question(self.world.detect(world_pixels([image]))[0], question)


def _skip(scenes) -> float:
    next(scenes)
    return 0.0
