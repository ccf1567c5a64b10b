"""Answering and drawing scores on a backbone's world, item by item (drawings are averaged to 24x24)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from asgkit.backbones.base import Answers, Backbone, Prefix, Role
from asgkit.evals.worlds import WORLDS, answer_length, world_of
from asgkit.shapes.benchmark import Prompt, VQABenchmark
from asgkit.shapes.detector import world_pixels
from asgkit.shapes.text import QA
from asgkit.solve import normalise_answer, vote
from asgkit.ste import solver_token_entropy, token_entropy

BLOCK = 128  # pictures read at once


@dataclass(frozen=True)
class AnswerItems:
    """Per-question results over Q questions and N framings.

    framings, sampled: (N, Q) correct under each framing, greedy and at temperature 1; canonical, majority: (Q,)
    correct; entropy: (Q,) H_sc of the greedy votes in nats; sampled_entropy: (Q,) of the sampled votes;
    ste, logp: (Q,) STE and log-probability of the canonical greedy answer in nats; fraction: (Q,) share of the
    majority; family: (Q,); held_out: (H, Q) correct under the framings that no run trains on, greedy; entropies:
    (Q, T) of the tokens of the canonical answer and its end in nats, NaN after it; world: whose questions these are.
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
    held_out: np.ndarray | None = None
    entropies: np.ndarray | None = None
    world: str = "shapes"

    def summary(self) -> dict[str, float]:
        """Percentages: mean single framing, canonical, majority, sampled, held out, agreement, and every family.

        Where a world has questions without an answer, every score also comes for answerable and for unanswerable ones.
        """
        single = self.framings.mean(0)
        scores = {"single": single, "canonical": self.canonical, "majority": self.majority,
                  "sampled": self.sampled.mean(0)}
        if self.held_out is not None and len(self.held_out):
            scores["held_out"] = self.held_out.mean(0)
        out = {name: values.mean() for name, values in scores.items()} | {"agreement": self.fraction.mean()}
        for family in dict.fromkeys(self.family):
            rows = self.family == family
            out[f"single/{family}"] = single[rows].mean()
            out[f"majority/{family}"] = self.majority[rows].mean()
        answerable = WORLDS[self.world].answerable(self.family)
        if not answerable.all():
            out |= {f"{name}/answerable": values[answerable].mean() for name, values in scores.items()}
            out |= {f"{name}/unanswerable": values[~answerable].mean() for name, values in scores.items()}
        return {name: 100.0 * float(value) for name, value in out.items()}


def _blocks(images: list[Image.Image], size: int = BLOCK):
    for start in range(0, len(images), size):
        yield start, images[start : start + size]


def evaluate_answers(backbone: Backbone, role: Role | None = "solver", split: str = "test",
                     per_family: int | None = None, seed: int = 0, bench: VQABenchmark | None = None) -> AnswerItems:
    """Answer the question benchmark under every framing, greedily and sampled, and once under the canonical one.

    per_family: None for the full size of the backbone's world.
    """
    world, length = world_of(backbone), answer_length(backbone)
    bench = bench or world.vqa_benchmark(split, per_family or world.per_family)
    images = [Image.fromarray(array) for array in bench.images]
    prompts, count = backbone.spec.prompts, len(backbone.spec.prompts.framings)
    greedy, drawn, plain, logp, tokens, held = [], [], [], [], [], []
    for start, block in _blocks(images):
        prefix = backbone.prefix(block, role=role)
        items = bench.items[start : start + len(block)]
        asked = [prompts.solve(item.question, n) for item in items for n in range(count)]
        rows = [i for i in range(len(items)) for _ in range(count)]
        cold = backbone.answer(prefix, asked, rows=rows, max_new_tokens=length)
        warm = backbone.answer(prefix, asked, rows=rows, max_new_tokens=length, temperature=1.0, seed=seed + start)
        single = backbone.answer(prefix, [prompts.solve(item.question) for item in items], max_new_tokens=length,
                                 keep_logits=length)
        greedy += [cold.texts[i * count : (i + 1) * count] for i in range(len(items))]
        drawn += [warm.texts[i * count : (i + 1) * count] for i in range(len(items))]
        plain += single.texts
        logp += single.logp.sum(1).tolist()
        tokens.append(_token_entropies(single, length))
        held += _held_out(backbone, prefix, items, length)
    return _answer_items(bench, greedy, drawn, plain, logp, np.concatenate(tokens), held, world.name)


def _token_entropies(answers: Answers, length: int) -> np.ndarray:
    """Entropies (B, length) of greedy answers' tokens and end, NaN after it."""
    kept = answers.logits.shape[1]
    entropy = token_entropy(answers.logits).masked_fill(~answers.mask[:, :kept], float("nan"))
    return torch.nn.functional.pad(entropy, (0, length - kept), value=float("nan")).cpu().numpy()


def _held_out(backbone: Backbone, prefix: Prefix, items: Sequence[QA], length: int) -> list[list[str]]:
    """Greedy answers to each item under every held-out framing."""
    frames = backbone.spec.prompts.held_out
    if not frames:
        return [[] for _ in items]
    asked = [frame.format(question=item.question) for item in items for frame in frames]
    rows = [i for i in range(len(items)) for _ in frames]
    texts = backbone.answer(prefix, asked, rows=rows, max_new_tokens=length).texts
    return [texts[i : i + len(frames)] for i in range(0, len(texts), len(frames))]


def _answer_items(bench: VQABenchmark, greedy: list[list[str]], drawn: list[list[str]], plain: list[str],
                  logp: list[float], tokens: np.ndarray, held: list[list[str]], world: str) -> AnswerItems:
    truth = [normalise_answer(item.answer) for item in bench.items]
    votes, warm = [vote(row) for row in greedy], [vote(row) for row in drawn]
    right = lambda rows: np.array([[a == t for a in row] for row, t in zip(rows, truth, strict=True)], bool).T
    spoken = ~np.isnan(tokens)
    ste = solver_token_entropy(torch.from_numpy(np.nan_to_num(tokens)), torch.from_numpy(spoken))
    return AnswerItems(
        framings=right([v.answers for v in votes]), sampled=right([v.answers for v in warm]),
        canonical=np.array([normalise_answer(a) == t for a, t in zip(plain, truth, strict=True)]),
        majority=np.array([v.majority == t for v, t in zip(votes, truth, strict=True)]),
        entropy=np.array([v.entropy for v in votes]), sampled_entropy=np.array([v.entropy for v in warm]),
        ste=ste.double().numpy(), logp=np.array(logp), fraction=np.array([v.fraction for v in votes]),
        family=np.array([item.family for item in bench.items]), answers=[v.majority for v in votes],
        held_out=right([[normalise_answer(a) for a in row] for row in held]), entropies=tokens, world=world,
    )


@dataclass(frozen=True)
class DrawingItems:
    """Per-drawing results: correct (P, S) for P prompts and S seeds, tag (P,), and the pictures if kept."""

    correct: np.ndarray
    tag: np.ndarray
    images: list[list[Image.Image]]

    def summary(self) -> dict[str, float]:
        """Percentages: overall (mean of the tags, as GenEval) and every tag."""
        tags = {str(tag): float(self.correct[self.tag == tag].mean()) for tag in dict.fromkeys(self.tag)}
        return {"overall": 100.0 * float(np.mean(list(tags.values()))),
                **{f"tag/{tag}": 100.0 * value for tag, value in tags.items()}}


def evaluate_drawings(backbone: Backbone, role: Role | None = "generator", split: str = "test",
                      per_tag: int | None = None, samples: int = 4, guidance: float | None = None,
                      temperature: float | None = None, keep: bool = False,
                      prompts: list[Prompt] | None = None) -> DrawingItems:
    """Draw every benchmark prompt `samples` times with fixed seeds and check each drawing strictly.

    per_tag: None for the full size of the backbone's world.
    """
    world = world_of(backbone)
    prompts = prompts or world.drawing_benchmark(split, per_tag or world.per_tag)
    pairs = [(p, s) for p in range(len(prompts)) for s in range(samples)]
    template = backbone.spec.prompts.draw
    correct = np.zeros((len(prompts), samples), bool)
    kept: list[list[Image.Image]] = [[] for _ in prompts]
    for start in range(0, len(pairs), BLOCK):
        block = pairs[start : start + BLOCK]
        drawn = backbone.generate_images([template.format(caption=prompts[p].text) for p, _ in block],
                                         seeds=[world.drawing_seed(split, p, s) for p, s in block], role=role,
                                         guidance=guidance, temperature=temperature).images
        scenes = world.detect(world_pixels(drawn))
        for (p, s), scene, image in zip(block, scenes, drawn, strict=True):
            correct[p, s] = world.satisfies(scene, prompts[p].wanted)
            if keep:
                kept[p].append(image)
    return DrawingItems(correct, np.array([p.tag for p in prompts]), kept)


DECODINGS = tuple((t, g) for t in (1.0, 0.85, 0.7) for g in (1.0, 2.0, 3.0))  # temperature, guidance


def best_decoding(backbone: Backbone, role: Role | None, split: str, per_tag: int | None = None,
                  samples: int = 4) -> tuple[tuple[float, float], dict[str, float]]:
    """The (temperature, guidance) of `DECODINGS` with the highest overall score, and all scores (percent)."""
    scores = {}
    for temperature, guidance in DECODINGS:
        items = evaluate_drawings(backbone, role, split, per_tag, samples, guidance, temperature)
        scores[(temperature, guidance)] = items.summary()["overall"]
    best = max(scores, key=scores.get)
    return best, {f"T{t:g} g{g:g}": value for (t, g), value in scores.items()}
