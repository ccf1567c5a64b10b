"""Before and after, as pictures: which examples are shown follows from a fixed rule, never from their looks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from asgkit.backbones.base import Backbone, Role
from asgkit.report.measured import Measurement, same_items
from asgkit.shapes.benchmark import drawing_benchmark, vqa_benchmark
from asgkit.solve import normalise_answer

CHANGED = 6  # examples whose verdict changed, in either direction, and as many that stayed wrong
RULE = ("first {changed} whose verdict changed (either way), then first {wrong} that stayed wrong, "
        "in the benchmark's order taken in turn over its {kind}")


def pick(groups: np.ndarray, before: np.ndarray, after: np.ndarray, changed: int = CHANGED) -> list[int]:
    """Indices of the first `changed` items whose verdict changed and the first `changed` that stayed wrong.

    Order: the first item of every group, then the second of every group, and so on (groups (Q,) such as families
    come in blocks); before, after (Q,) bool. Fewer are returned where there are fewer.
    """
    seen: dict[str, int] = {}
    rank = np.empty(len(groups), int)
    for i, group in enumerate(groups):
        rank[i] = seen.get(group, 0)
        seen[group] = rank[i] + 1
    order = np.lexsort((np.arange(len(groups)), rank))
    moved = [int(i) for i in order if before[i] != after[i]][:changed]
    stuck = [int(i) for i in order if not before[i] and not after[i]][:changed]
    return moved + stuck


def collect_examples(backbone: Backbone, base: Measurement, run: Measurement, *, per_family: int = 300,
                     per_tag: int = 42) -> dict[str, np.ndarray]:
    """Redraw and re-answer the chosen items with the base and the run's adapters (loaded into `backbone`).

    Verdicts come from both items.npz; drawings are the first of each prompt, from the benchmark's own seeds, answers
    the canonical greedy ones. Raises Untraceable when base and run were not measured on the same items, ValueError
    when `per_family` or `per_tag` is not what they were measured with.
    """
    same_items(base, run)
    split = run.metrics["split"]
    if (7 * per_family, 6 * per_tag) != (len(run.items["family"]), len(run.items["tag"])):
        raise ValueError(f"{run.name} was measured on {len(run.items['family'])} questions and {len(run.items['tag'])} "
                         "prompts: pass the per_family and per_tag of that evaluation")
    return _drawings(backbone, base, run, split, per_tag) | _answers(backbone, base, run, split, per_family)


def _drawings(backbone: Backbone, base: Measurement, run: Measurement, split: str, per_tag: int
              ) -> dict[str, np.ndarray]:
    before, after = base.items["drawings"][:, 0], run.items["drawings"][:, 0]
    picked = pick(run.items["tag"], before, after)
    prompts = drawing_benchmark(split, per_tag)
    draw = lambda role: _draw(backbone, role, [prompts[p].text for p in picked], picked)
    return {"drawing_base": draw(None), "drawing_evolved": draw("generator"),
            "drawing_prompt": np.array([prompts[p].text for p in picked]), "drawing_base_ok": before[picked],
            "drawing_evolved_ok": after[picked], "drawing_rule": np.array(_rule(before, after, picked, "tags"))}


def _draw(backbone: Backbone, role: Role | None, texts: list[str], picked: list[int]) -> np.ndarray:
    template = backbone.spec.prompts.draw
    seeds = [100_000 + 10 * p for p in picked]  # the seeds of the evaluation's first drawing
    images = backbone.generate_images([template.format(caption=t) for t in texts], seeds=seeds, role=role).images
    return np.stack([np.asarray(image) for image in images])


def _answers(backbone: Backbone, base: Measurement, run: Measurement, split: str, per_family: int
             ) -> dict[str, np.ndarray]:
    before, after = base.items["canonical"], run.items["canonical"]
    picked = pick(run.items["family"], before, after)
    bench = vqa_benchmark(split, per_family)
    images, items = bench.images[bench.rows[picked]], [bench.items[i] for i in picked]
    ask = lambda role: _answer(backbone, role, images, [item.question for item in items])
    return {"answer_image": images, "answer_question": np.array([item.question for item in items]),
            "answer_base": ask(None), "answer_evolved": ask("solver"),
            "answer_truth": np.array([normalise_answer(item.answer) for item in items]),
            "answer_rule": np.array(_rule(before, after, picked, "families"))}


def _answer(backbone: Backbone, role: Role | None, images: np.ndarray, questions: list[str]) -> np.ndarray:
    prefix = backbone.prefix([Image.fromarray(image) for image in images], role=role)
    length = 2 if backbone.spec.max_new_tokens > 1 else 1
    texts = backbone.answer(prefix, [backbone.spec.prompts.solve(q) for q in questions], max_new_tokens=length).texts
    return np.array([normalise_answer(text) for text in texts])


def _rule(before: np.ndarray, after: np.ndarray, picked: list[int], kind: str) -> str:
    changed = int((before[picked] != after[picked]).sum())
    return RULE.format(changed=changed, wrong=len(picked) - changed, kind=kind)


def write_examples(backbone: Backbone, base: Measurement, run: Measurement, *, per_family: int = 300,
                   per_tag: int = 42) -> Path:
    """`collect_examples` written as examples.npz into the run's folder."""
    path = run.path / "examples.npz"
    np.savez_compressed(path, **collect_examples(backbone, base, run, per_family=per_family, per_tag=per_tag))
    return path
