"""Seven gates that a base must pass before any grid is started on it, measured on the split dev. Evaluation only.

The method can only be tested where its parts can matter: framings that err, votes that mend, answers whose doubt
does not sit in the first token, unanimous mistakes, questions without an answer, drawings with room on both sides.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from asgkit.ask import TargetEntropy
from asgkit.backbones.base import Backbone
from asgkit.config import Config
from asgkit.evals.shapes import AnswerItems, best_decoding, evaluate_answers, evaluate_drawings
from asgkit.evals.worlds import WORLDS, World, world_of
from asgkit.recipes.asg_work import UnderstandingRow
from asgkit.recipes.rewards import reward_questions
from asgkit.runs.wording import table
from asgkit.stages.answer import answer_questions, greedy_difficulty, propose
from asgkit.stats.intervals import auroc
from asgkit.ste import RollingPercentile

FULL = {"per_family": 260, "pictures": 512, "per_tag": 84, "samples": 2, "choose": 30}
QUICK = {"per_family": 40, "pictures": 64, "per_tag": 12, "samples": 2, "choose": 4}
FIRST = 5  # tokens of STE
APART = 0.05  # nats: below, two aggregations of one answer are the same for every purpose
BATCH = 32


@dataclass(frozen=True)
class Part:
    """One condition of a gate: its value, what it must reach (None: no bound on that side), and whether it does."""

    gate: int
    name: str
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Undefined values (no wrong answer, say) do not pass."""
        if self.value is None:
            return False
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)


# -- answers (gates 1 to 5) ----------------------------------------------------------------------------------------
def vote_parts(items: AnswerItems) -> list[Part]:
    """Gate 1, percent, on answerable questions: framings 60 to 75, the vote at least 2 above, canonical below 90."""
    rows = WORLDS[items.world].answerable(items.family)
    single, majority = items.framings.mean(0)[rows], items.majority[rows]
    gap = majority - single
    spread = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
    return [Part(1, "mean framing", _percent(single), 60.0, 75.0),
            Part(1, "vote - framing", 100.0 * float(gap.mean()), 2.0),
            Part(1, "lower end of its interval", 100.0 * float(gap.mean() - spread), 0.0),
            Part(1, "canonical", _percent(items.canonical[rows]), None, 90.0)]


def aggregates(entropies: np.ndarray) -> dict[str, np.ndarray]:
    """STE of answers (Q, T) by the maximum and the mean over the first five tokens, and the first token's; nats.

    The end of an answer counts as a token, as it does in training. NaN: no token.
    """
    first = entropies[:, :FIRST]
    return {"max": np.nanmax(first, 1), "mean": np.nanmean(first, 1), "first": first[:, 0]}


def token_parts(items: AnswerItems) -> list[Part]:
    """Gate 2, percent of answers: maximum and first token differ in 25%, maximum and mean in 50%."""
    ste = aggregates(items.entropies)
    apart = lambda name: _percent(np.abs(ste["max"] - ste[name]) > APART)
    return [Part(2, "max differs from first token", apart("first"), 25.0),
            Part(2, "max differs from mean", apart("mean"), 50.0)]


def doubt_parts(items: AnswerItems) -> list[Part]:
    """Gates 3 to 5: STE as a detector of wrong majorities among unanimous votes and of unanswerable questions."""
    ste, wrong, unanimous = aggregates(items.entropies), ~items.majority, items.fraction == 1.0
    without = ~WORLDS[items.world].answerable(items.family)
    top, first = (_auroc(ste[name][unanimous], wrong[unanimous]) for name in ("max", "first"))
    return [Part(3, "AUC of STE, unanimous votes", top, 0.80),
            Part(3, "above that of the first token", None if top is None else top - first, 0.05),
            Part(4, "unanimous votes", _percent(unanimous), 35.0),
            Part(4, "wrong among them", _percent(wrong[unanimous]) if unanimous.any() else None, 10.0),
            Part(5, "AUC of STE, unanswerable questions", _auroc(ste["max"][without], wrong[without]), 0.5)]


# -- the choice of q* (gate 6) -------------------------------------------------------------------------------------
def ask_and_solve(backbone: Backbone, images: list[Image.Image], config: Config, seed: int) -> list[UnderstandingRow]:
    """The Proposer's K questions about each image with votes and STE, as in a U step, on the untrained base."""
    p, s = config.proposer, config.solver
    prefix = backbone.prefix(images, role=None)
    requests = [backbone.spec.prompts.ask] * len(images)
    questions = propose(backbone, prefix, requests, p.candidates, temperature=p.temperature, top_p=p.top_p,
                        max_new_tokens=p.max_new_tokens, seed=seed)[3]
    rows = [UnderstandingRow(questions[i : i + p.candidates]) for i in range(0, len(questions), p.candidates)]
    where = [(i, k) for i, row in enumerate(rows) for k, q in enumerate(row.questions) if q.valid]
    texts, about = [rows[i].questions[k].text for i, k in where], [i for i, _ in where]
    solved = answer_questions(backbone, prefix, texts, about, framings=s.framings, temperature=s.temperature,
                              top_p=s.top_p, max_new_tokens=s.max_new_tokens, seed=seed + 1)
    top, mean, _ = greedy_difficulty(backbone, prefix, texts, about, tokens=s.ste_tokens,
                                     max_new_tokens=s.max_new_tokens)
    for j, (i, k) in enumerate(where):
        rows[i].votes[k], rows[i].ste[k], rows[i].ste_mean[k] = solved.votes[j], top[j], mean[j]
    return rows


class _Chooser:
    """Picks q* of each image by R_p, with the memories that a run would have."""

    def __init__(self, config: Config) -> None:
        p, s = config.proposer, config.solver
        self.config, self.window = config, RollingPercentile(s.ste_window)
        self.target = TargetEntropy(p.target_entropy, p.target_momentum, adaptive=p.adaptive_target)

    def choose(self, table: list[UnderstandingRow]) -> list[int]:
        """The index of q* in every row, by R_p under this configuration; the rows are left as they are."""
        rows = deepcopy(table)
        reward_questions(rows, self.config, self.window, self.target, np.random.default_rng(0))
        return [int(np.argmax(row.rewards)) for row in rows]


def choice(backbone: Backbone, config: Config, count: int, split: str, seed: int) -> dict[str, float]:
    """How often STE changes q* among `count` pictures, and which questions have no answer; percent.

    unanswerable/all, /with_ste, /without_ste: of all valid questions, of q* by R_p with STE, of q* without it.
    """
    world, rng = world_of(backbone), np.random.default_rng([seed, 31])
    with_ste = _Chooser(config)
    without = _Chooser(config.model_copy(update={"solver": config.solver.model_copy(update={"ste": False})}))
    changed, kinds = [], {"all": [], "with_ste": [], "without_ste": []}
    for start in range(0, count, BATCH):
        scenes = [world.sample_scene(rng, split) for _ in range(BATCH)]
        images = [Image.fromarray(world.render(scene)) for scene in scenes]
        rows = ask_and_solve(backbone, images, config, seed * 1_000_003 + start)
        picks, others = with_ste.choose(rows), without.choose(rows)
        changed += [a != b for a, b in zip(picks, others, strict=True)]
        for scene, row, a, b in zip(scenes, rows, picks, others, strict=True):
            said = [_without_answer(world, scene, q.text) if q.valid else None for q in row.questions]
            kinds["all"] += [x for x in said if x is not None]
            kinds["with_ste"].append(said[a])
            kinds["without_ste"].append(said[b])
    shares = {f"unanswerable/{name}": _percent([x for x in said if x is not None]) for name, said in kinds.items()}
    return {"changed": _percent(changed), **shares}


def _without_answer(world: World, scene: Any, question: str) -> bool:
    """Whether a question has no answer: outside the grammar, or about nothing or several things."""
    rows = [answer for answer in [world.answer_question(scene, question)] if answer is not None]
    return not rows or rows[0] in world.no_answer


# -- all of it -----------------------------------------------------------------------------------------------------
def drawing_parts(backbone: Backbone, split: str, per_tag: int, samples: int, choose: int
                  ) -> tuple[list[Part], dict[str, Any]]:
    """Gate 7, percent at the best of nine decodings (chosen on `choose` prompts a tag): 50 to 80, no tag below 25."""
    (temperature, guidance), tried = best_decoding(backbone, None, split, choose, samples)
    scores = evaluate_drawings(backbone, None, split, per_tag, samples, guidance, temperature).summary()
    tags = {name.removeprefix("tag/"): value for name, value in scores.items() if name.startswith("tag/")}
    worst = min(tags, key=tags.get)
    parts = [Part(7, "drawings at best decoding", scores["overall"], 50.0, 80.0),
             Part(7, f"its worst tag, {worst}", tags[worst], 25.0)]
    return parts, {"temperature": temperature, "guidance": guidance, "tags": tags, "tried": tried}


def measure_gates(backbone: Backbone, config: Config, *, split: str = "dev", per_family: int = 260,
                  pictures: int = 512, per_tag: int = 84, samples: int = 2, choose: int = 30, seed: int = 0,
                  items: AnswerItems | None = None) -> dict[str, Any]:
    """Measure the seven gates of a freshly opened base; a JSON-able dictionary.

    `gates`: one row per condition with value, bounds and `passed`; `scores`: the answers' summary; `choice`,
    `drawings`: what gates 6 and 7 rest on. Raises ValueError for a world without unanswerable questions.
    """
    world = world_of(backbone)
    if not world.unanswerable:
        raise ValueError(f"the gates need questions without an answer; the world {world.name!r} of this base has none")
    items = items or evaluate_answers(backbone, None, split, per_family, seed)
    picked = choice(backbone, config, pictures, split, seed)
    last, drawings = drawing_parts(backbone, split, per_tag, samples, choose)
    parts = [*vote_parts(items), *token_parts(items), *doubt_parts(items),
             Part(6, "q* that STE changes", picked["changed"], 25.0), *last]
    return {"backbone": backbone.spec.name, "split": split, "seed": seed, "questions": len(items.family),
            "gates": [asdict(part) | {"passed": part.passed} for part in parts],
            "passed": all(part.passed for part in parts), "scores": items.summary(), "choice": picked,
            "drawings": drawings}


def print_gates(result: dict[str, Any], console: Console) -> None:
    """Print the gates as one table: value, what it must reach, passed or missed."""
    rows = [(row["gate"], row["name"], "undefined" if row["value"] is None else f"{row['value']:.3g}", _bounds(row),
             "passed" if row["passed"] else "MISSED") for row in result["gates"]]
    console.print(table(f"Gates of {result['backbone']} on {result['split']}, {result['questions']} questions",
                        ("gate", "condition", "value", "must be", "result"), rows))


def _bounds(row: dict[str, Any]) -> str:
    low, high = row["low"], row["high"]
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _percent(values: Any) -> float:
    return 100.0 * float(np.mean(values))


def _auroc(scores: np.ndarray, wrong: np.ndarray) -> float | None:
    """None where every answer, or none, is wrong."""
    return auroc(scores, wrong) if wrong.any() and not wrong.all() else None
