"""How much of a score needs the picture: the same questions with it, without one, with a grey one, with another's."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from asgkit.backbones.base import Backbone, Role
from asgkit.evals.shapes import BLOCK
from asgkit.evals.worlds import World, answer_length, world_of
from asgkit.runs.files import write_atomic
from asgkit.shapes.benchmark import VQABenchmark
from asgkit.solve import normalise_answer

MODES = ("real", "shuffled", "blank", "none")  # what stands in the picture's place
GREY = 128


def shown_images(images: np.ndarray, mode: str, seed: int = 0) -> list[Image.Image] | None:
    """The pictures (S, H, W, 3) uint8 that a mode shows: their own, another item's, plain grey, or none at all.

    Shuffled: one cycle through all items in a random order, so that no question keeps its own picture.
    Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown image mode {mode!r}; choose one of {MODES}")
    if mode == "none":
        return None
    if mode == "blank":
        images = np.full_like(images, GREY)
    if mode == "shuffled":
        order = np.random.default_rng(seed).permutation(len(images))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        images = images[other]
    return [Image.fromarray(image) for image in images]


def blind_accuracy(backbone: Backbone, role: Role | None, mode: str, bench: VQABenchmark) -> np.ndarray:
    """Whether each question's greedy canonical answer is right under an image mode: (Q,) bool."""
    images, prompts = shown_images(bench.images, mode), backbone.spec.prompts
    length = answer_length(backbone)
    right = []
    for start in range(0, len(bench.items), BLOCK):
        items = bench.items[start : start + BLOCK]
        shown = None if images is None else [images[r] for r in bench.rows[start : start + BLOCK]]
        prefix = backbone.prefix(shown, role=role)
        answers = backbone.answer(prefix, [prompts.solve(item.question) for item in items], max_new_tokens=length)
        right += [normalise_answer(text) == normalise_answer(item.answer)
                  for text, item in zip(answers.texts, items, strict=True)]
    return np.array(right)


def commonest_answer(bench: VQABenchmark) -> np.ndarray:
    """Whether the commonest true answer of its family is each question's: (Q,) bool; what a guess without a look earns.

    Counted on the questions themselves, so it flatters the guess a little.
    """
    best = {family: Counter(item.answer for item in bench.items if item.family == family).most_common(1)
            for family in dict.fromkeys(item.family for item in bench.items)}
    return np.array([item.answer == best[item.family][0][0] for item in bench.items])


def blind_scores(backbone: Backbone, role: Role | None, split: str, per_family: int) -> list[dict[str, str | float]]:
    """Rows (mode, family, value in percent) of the canonical answer; family `all` is the mean over questions.

    Besides `MODES` there is the mode `commonest`, which asks no model. Only answerable questions count: a blank
    picture makes "there is none" true.
    """
    world = world_of(backbone)
    bench = answerable_part(world.vqa_benchmark(split, per_family), world)
    family = np.array([item.family for item in bench.items])
    rows: list[dict[str, str | float]] = []
    for mode in (*MODES, "commonest"):
        right = commonest_answer(bench) if mode == "commonest" else blind_accuracy(backbone, role, mode, bench)
        rows += [{"mode": mode, "family": name, "value": 100 * float(right[family == name].mean())}
                 for name in dict.fromkeys(family)]
        rows.append({"mode": mode, "family": "all", "value": 100 * float(right.mean())})
    return rows


def answerable_part(bench: VQABenchmark, world: World) -> VQABenchmark:
    """The questions of a benchmark that have an answer."""
    keep = np.flatnonzero(world.answerable(np.array([item.family for item in bench.items])))
    return VQABenchmark(bench.images, tuple(bench.items[i] for i in keep), bench.rows[keep])


def write_blind(path: Path, steps: list[tuple[int, list[dict[str, str | float]]]]) -> Path:
    """Write rows of several steps as blind.csv (step, mode, family, value)."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(["step", "mode", "family", "value"])
    writer.writerows([step, row["mode"], row["family"], f"{row['value']:g}"] for step, rows in steps for row in rows)
    write_atomic(path, held.getvalue())
    return path
