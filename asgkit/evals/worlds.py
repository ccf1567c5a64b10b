"""The procedural worlds behind one interface: evaluation asks the backbone which one its benchmarks come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from asgkit.backbones.base import Backbone
from asgkit.scenes import benchmark as scene_benchmark
from asgkit.scenes import detector as scene_detector
from asgkit.scenes import text as scene_text
from asgkit.scenes import world as scene_world
from asgkit.shapes import benchmark as shape_benchmark
from asgkit.shapes import detector as shape_detector
from asgkit.shapes import text as shape_text
from asgkit.shapes import world as shape_world
from asgkit.shapes.benchmark import VQABenchmark


@dataclass(frozen=True)
class World:
    """What evaluation may know of a world: its truth.

    families: of questions, in the order of the benchmark; unanswerable: those of them whose truth is that there is no
    answer, and no_answer: how it is said; tags: of drawing prompts; splits: of its benchmarks; answer_tokens: of the
    longest true answer with its end; per_family, per_tag: full sizes of the benchmarks; family_sizes: questions of each
    family at a size.
    """

    name: str
    families: tuple[str, ...]
    unanswerable: tuple[str, ...]
    no_answer: tuple[str, ...]
    tags: tuple[str, ...]
    splits: tuple[str, ...]
    answer_tokens: int
    per_family: int
    per_tag: int
    family_sizes: Callable[[int], dict[str, int]]
    sample_scene: Callable[[np.random.Generator, str], Any]
    render: Callable[[Any], np.ndarray]
    render_pool: Callable[..., Any]
    sample_qa: Callable[[np.random.Generator, Any], Any]
    answer_question: Callable[[Any, str], str | None]
    parse_caption: Callable[[str], Any]
    detect: Callable[[np.ndarray], list[Any]]
    satisfies: Callable[[Any, Any], bool]
    vqa_benchmark: Callable[[str, int], VQABenchmark]
    drawing_benchmark: Callable[[str, int], list[Any]]
    drawing_seed: Callable[[str, int, int], int]
    detector_accuracy: Callable[..., dict[str, float]]

    def answerable(self, families: np.ndarray) -> np.ndarray:
        """Which questions have an answer, by their families (Q,): (Q,) bool."""
        return ~np.isin(families, self.unanswerable)


def _world(name: str, world: ModuleType, text: ModuleType, detector: ModuleType, benchmark: ModuleType,
           **settings: Any) -> World:
    return World(
        name, text.FAMILIES, tags=benchmark.TAGS, splits=tuple(benchmark.SEEDS), sample_scene=world.sample_scene,
        render=world.render, render_pool=world.render_pool, sample_qa=text.sample_qa,
        answer_question=text.answer_question, parse_caption=text.parse_caption, detect=detector.detect,
        satisfies=detector.satisfies, vqa_benchmark=benchmark.vqa_benchmark,
        drawing_benchmark=benchmark.drawing_benchmark, detector_accuracy=benchmark.detector_accuracy, **settings)


WORLDS = {
    "shapes": _world("shapes", shape_world, shape_text, shape_detector, shape_benchmark, unanswerable=(), no_answer=(),
                     answer_tokens=2, per_family=300, per_tag=42,
                     family_sizes=lambda size: dict.fromkeys(shape_text.FAMILIES, size),
                     drawing_seed=lambda split, prompt, sample: 100_000 + prompt * 10 + sample),
    "scenes": _world("scenes", scene_world, scene_text, scene_detector, scene_benchmark,
                     unanswerable=scene_text.UNANSWERABLE, no_answer=(scene_text.NONE, scene_text.SEVERAL),
                     answer_tokens=8, per_family=scene_benchmark.PER_FAMILY,
                     per_tag=scene_benchmark.PER_TAG, family_sizes=scene_benchmark.family_sizes,
                     drawing_seed=scene_benchmark.drawing_seed),
}


def world_of(backbone: Backbone) -> World:
    """The world that a backbone names; raises ValueError for one that this version does not know."""
    if backbone.spec.world not in WORLDS:
        raise ValueError(f"{backbone.spec.name} names the world {backbone.spec.world!r}; known are {sorted(WORLDS)}")
    return WORLDS[backbone.spec.world]


def answer_length(backbone: Backbone) -> int:
    """Tokens to let a backbone write when it answers a question of its world."""
    return min(world_of(backbone).answer_tokens, backbone.spec.max_new_tokens)
