"""Answering and drawing scores on the shapes world, item by item, for any backbone (drawings are averaged to 24x24)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from asgkit.backbones.base import Backbone, Role
from asgkit.shapes.benchmark import TAGS, Prompt, VQABenchmark, drawing_benchmark, vqa_benchmark
from asgkit.shapes.detector import detect, satisfies, world_pixels
from asgkit.shapes.text import FAMILIES
from asgkit.solve import normalise_answer, vote
from asgkit.ste import solver_token_entropy, token_entropy

BLOCK = 128  # pictures read at once


@dataclass(frozen=True)
class AnswerItems:
    """Per-question results over Q questions and N framings.

    framings, sampled: (N, Q) correct under each framing, greedy and at temperature 1; canonical, majority: (Q,)
    correct; entropy: (Q,) H_sc of the greedy votes in nats; sampled_entropy: (Q,) of the sampled votes;
    ste, logp: (Q,) STE and log-probability of the canonical greedy answer in nats; fraction: (Q,) share of the
    majority; family: (Q,).
    """

    framings: np.ndarray
    sampled: np.ndarray
    canonical: np.ndarray
    majority: np.ndarray
    entropy: np.ndarray
    sampled_entropy: np.ndarray
    ste: np.ndarray
    logp: np.ndarray
    fraction: np.ndarray
    family: np.ndarray
    answers: list[str]

    def summary(self) -> dict[str, float]:
        """Percentages: mean single framing, canonical, majority, sampled, agreement, and every family."""
        single = self.framings.mean(0)
        out = {"single": single.mean(), "canonical": self.canonical.mean(), "majority": self.majority.mean(),
               "sampled": self.sampled.mean(), "agreement": self.fraction.mean()}
        for family in FAMILIES:
            rows = self.family == family
            out[f"single/{family}"] = single[rows].mean()
            out[f"majority/{family}"] = self.majority[rows].mean()
        return {name: 100.0 * float(value) for name, value in out.items()}


def _blocks(images: list[Image.Image], size: int = BLOCK):
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def evaluate_answers(backbone: Backbone, role: Role | None = "solver", split: str = "test", per_family: int = 300,
                     seed: int = 0, bench: VQABenchmark | None = None) -> AnswerItems:
    """Answer the question benchmark under every framing, greedily and sampled, and once under the canonical one."""
    bench = bench or vqa_benchmark(split, per_family)
    images = [Image.fromarray(array) for array in bench.images]
    prompts, count = backbone.spec.prompts, len(backbone.spec.prompts.framings)
    greedy, drawn, plain, ste, logp = [], [], [], [], []
    for start, block in _blocks(images):
        prefix = backbone.prefix(block, role=role)
        items = bench.items[start : start + len(block)]
        asked = [prompts.solve(item.question, n) for item in items for n in range(count)]
        rows = [i for i in range(len(items)) for _ in range(count)]
        length = 2 if backbone.spec.max_new_tokens > 1 else 1
        cold = backbone.answer(prefix, asked, rows=rows, max_new_tokens=length)
        warm = backbone.answer(prefix, asked, rows=rows, max_new_tokens=length, temperature=1.0, seed=seed + start)
        single = backbone.answer(prefix, [prompts.solve(item.question) for item in items], max_new_tokens=length,
                                 keep_logits=length)
        greedy += [cold.texts[i * count : (i + 1) * count] for i in range(len(items))]
        drawn += [warm.texts[i * count : (i + 1) * count] for i in range(len(items))]
        plain += single.texts
        logp += single.logp.sum(1).tolist()
        kept = single.logits.shape[1]
        ste += solver_token_entropy(token_entropy(single.logits), single.mask[:, :kept]).tolist()
    return _answer_items(bench, greedy, drawn, plain, ste, logp)


def _answer_items(bench: VQABenchmark, greedy: list[list[str]], drawn: list[list[str]], plain: list[str],
                  ste: list[float], logp: list[float]) -> AnswerItems:
    truth = [normalise_answer(item.answer) for item in bench.items]
    votes, warm = [vote(row) for row in greedy], [vote(row) for row in drawn]
    right = lambda rows: np.array([[a == t for a in row] for row, t in zip(rows, truth, strict=True)]).T
    return AnswerItems(
        framings=right([v.answers for v in votes]), sampled=right([v.answers for v in warm]),
        canonical=np.array([normalise_answer(a) == t for a, t in zip(plain, truth, strict=True)]),
        majority=np.array([v.majority == t for v, t in zip(votes, truth, strict=True)]),
        entropy=np.array([v.entropy for v in votes]), sampled_entropy=np.array([v.entropy for v in warm]),
        ste=np.array(ste), logp=np.array(logp), fraction=np.array([v.fraction for v in votes]),
        family=np.array([item.family for item in bench.items]), answers=[v.majority for v in votes],
    )


@dataclass(frozen=True)
class DrawingItems:
    """Per-drawing results: correct (P, S) for P prompts and S seeds, tag (P,), and the pictures if kept."""

    correct: np.ndarray
    tag: np.ndarray
    images: list[list[Image.Image]]

    def summary(self) -> dict[str, float]:
        """Percentages: overall (mean of the six tags, as GenEval) and every tag."""
        tags = {tag: float(self.correct[self.tag == tag].mean()) for tag in TAGS}
        return {"overall": 100.0 * float(np.mean(list(tags.values()))),
                **{f"tag/{tag}": 100.0 * value for tag, value in tags.items()}}


def evaluate_drawings(backbone: Backbone, role: Role | None = "generator", split: str = "test", per_tag: int = 42,
                      samples: int = 4, guidance: float | None = None, temperature: float | None = None,
                      keep: bool = False, prompts: list[Prompt] | None = None) -> DrawingItems:
    """Draw every benchmark prompt `samples` times with fixed seeds and check each drawing strictly."""
    prompts = prompts or drawing_benchmark(split, per_tag)
    pairs = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    template = backbone.spec.prompts.draw
    correct = np.zeros((len(prompts), samples), bool)
    kept: list[list[Image.Image]] = [[] for _ in prompts]
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        drawn = backbone.generate_images([template.format(caption=prompts[p].text) for p, _ in block],
                                         seeds=[100_000 + p * 10 + s for p, s in block], role=role,
                                         guidance=guidance, temperature=temperature).images
        scenes = detect(world_pixels(drawn))
        for (p, s), scene, image in zip(block, scenes, drawn, strict=True):
            correct[p, s] = satisfies(scene, prompts[p].wanted)
            if keep:
                kept[p].append(image)
    return DrawingItems(correct, np.array([p.tag for p in prompts]), kept)


DECODINGS = tuple((t, g) for t in (1.0, 0.85, 0.7) for g in (1.0, 2.0, 3.0))  # temperature, guidance


def best_decoding(backbone: Backbone, role: Role | None, split: str, per_tag: int = 42, samples: int = 4
                  ) -> tuple[tuple[float, float], dict[str, float]]:
    """The (temperature, guidance) of `DECODINGS` with the highest overall score, and all scores (percent)."""
    scores = {}
    for temperature, guidance in DECODINGS:
        items = evaluate_drawings(backbone, role, split, per_tag, samples, guidance, temperature)
        scores[(temperature, guidance)] = items.summary()["overall"]
    best = max(scores, key=scores.get)
    return best, {f"T{t:g} g{g:g}": value for (t, g), value in scores.items()}
