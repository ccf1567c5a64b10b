"""The premise: can the method work on this base at all? Measured before any run, with the world's labels.

The Solver is taught by its own majority, so a majority must beat one framing; the Proposer is paid for H_sc and
STE, so these must tell wrong answers from right ones; the Generator is taught by R_g, so within a group of
candidates R_g must rank the correct drawing first. Evaluation only: no training code imports this module.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from asgkit.backbones.base import Backbone
from asgkit.config import Config, measured_name, resolve
from asgkit.evals.shapes import AnswerItems, evaluate_answers, evaluate_drawings
from asgkit.evals.worlds import WORLDS, world_of
from asgkit.report.measured import MAIN, load_measured, same_items
from asgkit.report.tables.premise import premise_rows
from asgkit.runs.files import write_atomic
from asgkit.shapes.benchmark import VQABenchmark
from asgkit.shapes.detector import JUNK, world_pixels
from asgkit.stages.generation import generation_round
from asgkit.stats.effects import over_base
from asgkit.stats.intervals import auroc, spearman_within

COMPONENTS = ("reward", "fidelity", "cycle", "text_similarity", "image_text_similarity", "diversity",
              "contradiction")
BATCH = 20  # cards scored at once: 160 candidates of L = 8
FULL = {"per_family": 150, "per_tag": 20, "samples": 2, "groups": 60}
QUICK = {"per_family": 40, "per_tag": 10, "samples": 2, "groups": 30}  # seconds; says little of rare errors


def measure_premise(backbone: Backbone, *, split: str = "dev", per_family: int = 150, per_tag: int = 20,
                    samples: int = 2, groups: int = 60, seed: int = 0, config: Config | None = None,
                    items: AnswerItems | None = None, scorer: Backbone | None = None) -> dict[str, Any]:
    """Every condition under which self-evolution can work, as a JSON-able dictionary (scores in percent).

    Pass a freshly opened backbone: its adapters then equal the frozen base. `config` is what it was opened with; it
    names the base and gives L, M, votes, framings and sampling of the prompt cards (without it: preset tiny, and
    base None). `scorer`: the model that `config.generator.scorer` names; it reads and judges the drawings in the
    Solver's place. `items`: the answers, where the caller has evaluated them with the same split, sizes and seed. A
    quantity that the data leave undefined (an AUROC without wrong answers, say) is None. Raises ValueError when
    `items` has another number of questions. Source: paper (the signals); the premise check is ours.
    """
    base = base_name(config) if config else None
    config, world = config or resolve("tiny"), world_of(backbone)
    answers = items or evaluate_answers(backbone, None, split, per_family, seed)
    if len(answers.family) != sum(world.family_sizes(per_family).values()):
        raise ValueError(f"items holds {len(answers.family)} questions, not {per_family} of each of "
                         f"{len(world.families)} families: evaluate them with the same per_family")
    return {
        "backbone": backbone.spec.name, "base": base, "split": split, "seed": seed,
        "scorer": Path(config.generator.scorer).name,
        "sizes": {"per_family": per_family, "per_tag": per_tag, "samples": samples, "groups": groups},
        "answers": answer_premise(answers), "detectors": detector_premise(answers),
        **drawing_premise(backbone, split, per_tag, samples, seed, scorer),
        "reward": reward_premise(backbone, config, split, groups, seed, scorer),
        "reader": {f"noise {k}": 100.0 * v for k, v in world.detector_accuracy(split, 500).items()},
    }


def answer_premise(items: AnswerItems) -> dict[str, Any]:
    """Percent correct: mean single framing, each framing, canonical, majority, sampled; the majority's gain.

    `majority_minus_single`: mean over Q questions of (majority - mean framing) with its paired standard error;
    `majority_minus_canonical` likewise. A majority can beat the mean framing and yet lose to the canonical one.
    """
    single = items.framings.mean(0)
    return {
        "n": len(single), "single": _percent(single), "canonical": _percent(items.canonical),
        "majority": _percent(items.majority), "sampled": _percent(items.sampled),
        "agreement": _percent(items.fraction), "framings": [_percent(row) for row in items.framings],
        "majority_minus_single": _paired(items.majority - single),
        "majority_minus_canonical": _paired(items.majority.astype(float) - items.canonical),
        "families": {f: {"n": int((items.family == f).sum()), "single": _percent(single[items.family == f]),
                         "canonical": _percent(items.canonical[items.family == f]),
                         "majority": _percent(items.majority[items.family == f])}
                     for f in WORLDS[items.world].families if (items.family == f).any()},
    }


def detector_premise(items: AnswerItems) -> dict[str, Any]:
    """AUROC of H_sc (greedy and sampled votes) and STE as detectors of wrong answers, all and unanimous votes only.

    Among unanimous votes H_sc is 0 by definition: what STE still tells there is what it adds to voting.
    """
    unanimous = items.fraction == 1.0
    signals = {"h_sc": items.entropy, "h_sc_sampled": items.sampled_entropy, "ste": items.ste}
    result: dict[str, Any] = {"unanimous": {"n": int(unanimous.sum()), "share": _percent(unanimous)}}
    for name, right in (("canonical", items.canonical), ("majority", items.majority)):
        result[name] = {"wrong": int((~right).sum())} | {k: _auroc(v, ~right) for k, v in signals.items()}
        wrong = ~right[unanimous]
        result["unanimous"] |= {f"{name}_wrong": int(wrong.sum()), f"{name}_wrong_share": _percent(wrong),
                                f"{name}_ste": _auroc(items.ste[unanimous], wrong),
                                f"{name}_h_sc_sampled": _auroc(items.sampled_entropy[unanimous], wrong)}
    return result


def drawing_premise(backbone: Backbone, split: str, per_tag: int, samples: int, seed: int,
                    scorer: Backbone | None = None) -> dict[str, Any]:
    """How well the base draws the benchmark prompts, and how well the Solver (or `scorer`) reads what was drawn.

    Two questions per drawing, with answers from the detected scene; a drawing with junk or nothing in it has no
    exact truth and is left out and counted. The Solver judges drawings, so this bounds the value of R_g.
    """
    drawn, world = evaluate_drawings(backbone, None, split, per_tag, samples, keep=True), world_of(backbone)
    pictures = world_pixels([image for group in drawn.images for image in group])
    scenes = [scene for i in range(0, len(pictures), 250) for scene in world.detect(pictures[i : i + 250])]
    clean = [i for i, s in enumerate(scenes) if s.things and all(t.shape != JUNK for t in s.things)]
    rng = np.random.default_rng([seed, 1])
    scores = drawn.summary()
    result: dict[str, Any] = {"drawings": {"n": len(pictures), "overall": scores["overall"],
                                           "tags": {tag: scores[f"tag/{tag}"] for tag in world.tags}}}
    legible = 100.0 * len(clean) / len(pictures)
    if not clean:
        return result | {"drawn_images": {"n": 0, "legible": legible, "canonical": None, "majority": None}}
    rows = [i for i in clean for _ in range(2)]
    asked = tuple(world.sample_qa(rng, scenes[i]) for i in rows)
    bench = VQABenchmark(pictures[rows], asked, np.arange(len(rows)))
    items = evaluate_answers(scorer or backbone, None, split, bench=bench)
    return result | {"drawn_images": {"n": len(rows), "legible": legible, "canonical": _percent(items.canonical),
                                      "majority": _percent(items.majority)}}


def reward_premise(backbone: Backbone, config: Config, split: str, groups: int, seed: int,
                   scorer: Backbone | None = None) -> dict[str, Any]:
    """Within-group rank correlation of R_g and its parts with the exact truth, and what an oracle reward would gain.

    `groups` cards x L candidates are made as in a generation step, and judged by this backbone itself or by `scorer`.
    Only cards that pass the quality gate and whose caption can be checked count; `best_of` compares the mean candidate
    (percent correct), the one R_g prefers and the best (oracle): the room that group-relative learning has, and the
    share of it that R_g can see.
    """
    rng, world = np.random.default_rng([seed, 2]), world_of(backbone)
    images = [Image.fromarray(world.render(world.sample_scene(rng, split))) for _ in range(groups)]
    signals: dict[str, list[np.ndarray]] = {name: [] for name in COMPONENTS}
    truths, passed, readable = [], 0, 0
    for start in range(0, groups, BATCH):
        made = generation_round(backbone, images[start : start + BATCH], config, lambda _: rng,
                                scorer=(scorer, None) if scorer else None)
        for i, card in enumerate(made.cards):
            wanted = world.parse_caption(card.prompt)
            passed, readable = passed + card.passed, readable + (wanted is not None)
            if not card.passed or wanted is None:
                continue
            found = world.detect(world_pixels(made.groups[i]))
            truths.append([float(world.satisfies(scene, wanted)) for scene in found])
            for name in COMPONENTS:
                signals[name].append(getattr(made.scores, name)[i].numpy())
    result = {"groups": groups, "used": len(truths), "pass_rate": 100.0 * passed / groups,
              "well_formed_captions": 100.0 * readable / groups}
    return result | _rank_premise(signals, np.array(truths)) if truths else result | {"spearman": {}, "best_of": None}


def _rank_premise(signals: dict[str, list[np.ndarray]], truth: np.ndarray) -> dict[str, Any]:
    stacked = {name: np.stack(values) for name, values in signals.items()}
    # a penalty must fall where the truth rises: its sign is turned so that positive always means useful
    stacked["contradiction"] = -stacked["contradiction"]
    pick = stacked["reward"].argmax(1)
    return {
        "spearman": {name: vars(spearman_within(values, truth)) for name, values in stacked.items()},
        "zero_variance_share": _percent(np.ptp(stacked["reward"], axis=1) == 0),
        "best_of": {"candidates": int(truth.shape[1]), "mean": _percent(truth),
                    "by_reward": _percent(truth[np.arange(len(truth)), pick]), "oracle": _percent(truth.max(1)),
                    "mixed_groups": _percent(np.ptp(truth, axis=1) > 0)},
    }


def base_name(config: Config) -> str:
    """The base as results name it: `clean`, `registers`, or the stem of a checkpoint's file."""
    return measured_name(config.backbone, config.base).removeprefix(f"{config.backbone}-")


def oracle_gain(results: str | Path, backbone: str, base: str) -> dict[str, Any]:
    """Gain of runs rewarded by the truth over their base, from measured items; percent points with 95% interval.

    `results/measured` is read first, then `results/small/measured` (made by `asgkit reproduce --profile small`).
    Returns {"runs": ids, "folder": which of the two, "gains": {"answers/single": {delta, low, high}, ...}}; without
    such runs "runs" is empty, "folder" None and "command" says what makes them. It is a ceiling: the same loop,
    steps and questions, with only the reward replaced. Raises Untraceable for numbers that do not follow from items.
    """
    name = f"{backbone}-{base}"
    for folder in ("measured", "small/measured"):
        measured = load_measured((Path(results) / folder).parent)
        runs = measured.arms(name).get("oracle", [])
        if not runs or name not in measured.bases:
            continue
        before, gains = measured.bases[name], {}
        for run in runs:
            same_items(before, run)
        for side, metric in MAIN.items():
            key = f"{side}/{metric}"
            found = over_base(before.values(key), np.stack([run.values(key) for run in runs]))
            gains[key] = {part: 100.0 * getattr(found, part) for part in ("delta", "low", "high")}
        return {"runs": [run.name for run in runs], "folder": folder, "gains": gains}
    return {"runs": [], "folder": None, "gains": {}, "command": "asgkit reproduce --profile small"}


def write_premise(path: str | Path, result: dict[str, Any]) -> None:
    """Write a premise as strict JSON with sorted keys, atomically; equal premises give equal bytes.

    Raises ValueError on NaN and Inf.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(result, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def _paired(gap: np.ndarray) -> dict[str, float]:
    return {"delta": 100.0 * float(gap.mean()), "se": 100.0 * float(gap.std(ddof=1) / np.sqrt(len(gap)))}


def _percent(values: np.ndarray) -> float | None:
    return 100.0 * float(np.mean(values)) if len(values) else None


def _auroc(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """None where every answer, or none, is wrong."""
    return auroc(scores, wrong) if wrong.any() and not wrong.all() else None


def print_premise(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the measured premise as one table: condition, value, what it means for the method."""
    base = f", base {result['base']}," if result["base"] else ""
    table = Table(title=f"Premise of {result['backbone']}{base} on split {result['split']}", title_justify="left")
    for column in ("condition", "value", "why it matters"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for row in premise_rows(result):
        table.add_row(*row)
    (console or Console()).print(table)


