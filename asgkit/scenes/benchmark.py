"""Held-out benchmarks in three splits that share nothing: questions about scenes, prompts to draw, the detector.

A combination of objects belongs to one split alone (`world.split_of`), and so does everything that shows or names
it; `sealed` is for one last look: no run, figure or setting reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from asgkit.scenes.detector import agrees, detect
from asgkit.scenes.text import FAMILIES, NUMBERS, UNANSWERABLE, Wanted, ask_about, parse_caption
from asgkit.scenes.world import (
    HELD,
    PLACES,
    SHAPES,
    combination,
    kinds,
    render,
    sample_color,
    sample_scene,
    split_of,
)
from asgkit.shapes.benchmark import VQABenchmark, degrade
from asgkit.shapes.text import RELATIONS
from asgkit.shapes.world import PLURALS

TAGS = ("three", "four", "counting", "place", "relation", "number")
SEEDS = dict(zip(HELD, (11, 22, 33), strict=True))
PER_FAMILY = 260  # of 9 families with an answer; 2,664 questions in all, 324 of them unanswerable
UNANSWERABLE_SHARE = 0.625  # of PER_FAMILY, for each of the two families without: 12%, about as in pre-training
PER_TAG = 84  # x 6 tags = 504 prompts


@dataclass(frozen=True)
class Prompt:
    """One drawing prompt, its tag and what a correct picture shows."""

    text: str
    tag: str
    wanted: Wanted


def _rng(split: str, salt: int) -> np.random.Generator:
    if split not in SEEDS:
        raise ValueError(f"unknown benchmark split {split!r}; choose one of {sorted(SEEDS)}")
    return np.random.default_rng([SEEDS[split], 20261128, salt])


def drawing_seed(split: str, prompt: int, sample: int) -> int:
    """The seed of one drawing's noise: no two splits, prompts or samples (below 10) share one."""
    return SEEDS[split] * 1_000_000 + prompt * 10 + sample


def family_sizes(per_family: int) -> dict[str, int]:
    """Questions of each family in a benchmark of `per_family`."""
    fewer = max(1, int(per_family * UNANSWERABLE_SHARE))
    return {family: fewer if family in UNANSWERABLE else per_family for family in FAMILIES}


def vqa_benchmark(split: str = "test", per_family: int = PER_FAMILY) -> VQABenchmark:
    """Questions of every family about a scene of their own, `per_family` of each that has answers.

    No two ask the same of the same combination of objects and number.
    """
    rng = _rng(split, 1)
    images, items, seen = [], [], set()
    for family, wanted in family_sizes(per_family).items():
        kept = 0
        while kept < wanted:
            digits = 1 + int(rng.integers(3)) if family == "reading" else None
            scene = sample_scene(rng, split, digits=digits)
            qa = ask_about(rng, scene, family)
            if qa is None or (key := (combination(kinds(scene).elements()), scene.number, qa.question)) in seen:
                continue
            seen.add(key)
            images.append(render(scene))
            items.append(qa)
            kept += 1
    return VQABenchmark(np.stack(images), tuple(items), np.arange(len(items)))


# -- drawing prompts -----------------------------------------------------------------------------------------------
Kinds = list[tuple[str, str]]


def _different(rng: np.random.Generator, count: int) -> Kinds:
    """`count` different (colour, shape)."""
    found: Kinds = []
    while len(found) < count:
        kind = (sample_color(rng), SHAPES[int(rng.integers(len(SHAPES)))])
        if kind not in found:
            found.append(kind)
    return found


def _listed(rng: np.random.Generator, count: int) -> tuple[Kinds, str]:
    objects = _different(rng, count)
    return objects, " , ".join(f"{color} {shape}" for color, shape in objects)


def _counting(rng: np.random.Generator) -> tuple[Kinds, str]:
    """Three or four of one kind, two of one and two of another, or three of one and one of another."""
    groups = ((3,), (4,), (2, 2), (3, 1))[int(rng.integers(4))]
    objects = list(zip(groups, _different(rng, len(groups)), strict=True))
    texts = [f"{color} {shape}" if n == 1 else f"{NUMBERS[n]} {color} {PLURALS[shape]}"
             for n, (color, shape) in objects]
    return [kind for n, kind in objects for _ in range(n)], " , ".join(texts)


def _placed(rng: np.random.Generator) -> tuple[Kinds, str]:
    objects = _different(rng, 2 + int(rng.integers(2)))
    cells = sorted(rng.permutation(len(PLACES))[: len(objects)])
    return objects, " , ".join(f"{c} {s} {PLACES[cell]}" for (c, s), cell in zip(objects, cells, strict=True))


def _related(rng: np.random.Generator) -> tuple[Kinds, str]:
    a, b = _different(rng, 2)
    return [a, b], f"{a[0]} {a[1]} {RELATIONS[int(rng.integers(4))]} {b[0]} {b[1]}"


def _numbered(rng: np.random.Generator) -> tuple[Kinds, str]:
    objects, text = _listed(rng, 1 + int(rng.integers(2)))
    digits = " ".join(str(d) for d in rng.integers(10, size=2 + int(rng.integers(2))))
    return objects, f"{text} , number {digits}"


_MAKERS: dict[str, Callable[[np.random.Generator], tuple[Kinds, str]]] = {
    "three": lambda rng: _listed(rng, 3), "four": lambda rng: _listed(rng, 4), "counting": _counting,
    "place": _placed, "relation": _related, "number": _numbered,
}


def drawing_benchmark(split: str = "test", per_tag: int = PER_TAG) -> list[Prompt]:
    """Prompts of six tags, `per_tag` each, no text twice, of combinations of objects that are this split's own."""
    rng = _rng(split, 2)
    prompts, seen = [], set()
    for tag in TAGS:
        kept = 0
        while kept < per_tag:
            objects, text = _MAKERS[tag](rng)
            if split_of(objects) == split and text not in seen:
                seen.add(text)
                prompts.append(Prompt(text, tag, parse_caption(text)))
                kept += 1
    return prompts


def detector_accuracy(split: str = "test", count: int = 2000, noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3)
                      ) -> dict[str, float]:
    """Share of scenes that the detector reads exactly (every object, size, cell and the number), per noise level."""
    rng = _rng(split, 3)
    scenes = [sample_scene(rng, split) for _ in range(count)]
    images = np.stack([render(scene) for scene in scenes])
    result = {}
    for noise in noises:
        shown = images if noise == 0 else np.stack([degrade(image, rng, noise) for image in images])
        found = [scene for i in range(0, count, 250) for scene in detect(shown[i : i + 250])]
        result[f"{noise:g}"] = sum(agrees(a, b) for a, b in zip(found, scenes, strict=True)) / count
    return result
