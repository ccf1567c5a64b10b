"""Which words, prompts and limits a tiny base has: those of the world that its checkpoint names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asgkit.backbones.prompts import Prompts
from asgkit.backbones.tiny import prompts, scene_prompts
from asgkit.backbones.tiny.network import TEXT_POSITIONS


@dataclass(frozen=True)
class Language:
    """The words (a function, since some are read from the world), the prompts of each kind of base (`clean`,
    `registers`), the number of word positions, and the longest text in words, of the bases of one world."""

    world: str
    vocabulary: Callable[[], list[str]]
    prompts: dict[str, Prompts]
    positions: int
    longest: int


LANGUAGES = {
    "shapes": Language("shapes", prompts.vocabulary, prompts.PROMPTS, TEXT_POSITIONS, 20),
    "scenes": Language("scenes", scene_prompts.vocabulary, scene_prompts.PROMPTS, scene_prompts.POSITIONS,
                       scene_prompts.LONGEST),
}
SHIPPED = ("clean", "registers", "scenes", "scenes-registers")  # bases that may lie beside this file


def language_of(meta: dict[str, str]) -> Language:
    """The language of a checkpoint by its metadata; without the key `world` it is that of the shapes.

    Raises ValueError for a world that this version does not know.
    """
    world = meta.get("world", "shapes")
    if world not in LANGUAGES:
        raise ValueError(f"the checkpoint speaks about the world {world!r}; this version knows {sorted(LANGUAGES)}")
    return LANGUAGES[world]
