"""Stages 1 to 4 of a generation step: caption, diagnose, draw and score. One way through them, for training and for
the premise check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from PIL import Image

from asgkit.backbones.base import Answers, Backbone, Drawings, Prefix, Role
from asgkit.config import Config, GeneratorConfig
from asgkit.solve import Vote, vote
from asgkit.stages.answer import Question, caption, propose
from asgkit.stages.judge import Card, Scores, card_questions, make_cards, score_candidates

STAGES = ("caption", "diagnose", "draw", "score")
Streams = Callable[[str], np.random.Generator]
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Round:
    """What a generation step made of G pictures: their cards, the G * L drawings with prompts and seeds, the same
    drawings as G groups of L, and their scores; `asked` are the sampled diagnostic questions."""

    cards: list[Card]
    prompts: list[str]
    seeds: list[int]
    drawn: Drawings
    groups: list[list[Image.Image]]
    scores: Scores
    asked: Answers


def _untimed(_: str) -> AbstractContextManager[None]:
    return nullcontext()


def generation_round(backbone: Backbone, pictures: Sequence[Image.Image], config: Config, streams: Streams, *,
                     scorer: tuple[Backbone, Role | None] | None = None, measure: Backbone | None = None,
                     stage: Stage = _untimed) -> Round:
    """Caption G pictures, ask about them, draw L candidates of each and score these; nothing is updated.

    streams: the random generator of a use, called once each in the order `style`, `caption`, `diagnose`, `expect` (with
    references=expected alone), `draw`; the same generator for all of them gives one sequence. scorer: who answers and
    captions for the reward (None: the live Solver). measure: see `score_candidates`. stage: a context around each of
    `STAGES`, to time it. Raises NonFiniteValue for NaN in sampled questions or similarities, ValueError for a measure
    that the settings do not name. Source: paper (generation steps 1 to 4).
    """
    g, judge = config.generator, scorer or (backbone, "solver")
    if (g.similarity == "native") != (measure is None):
        raise ValueError(f"generator.similarity={g.similarity} and the measure given do not go together: native needs "
                         "none, and another one its model")
    with stage("caption"):
        seen, requests, captions = write_captions(backbone, pictures, config, streams)
    with stage("diagnose"):
        prefix = backbone.prefix(pictures, role="proposer")
        asked, questions = _diagnose(backbone, prefix, captions, config, streams)
        # a prefix holds for the model and the role that made it
        known = {"proposer": prefix, _writer(g): seen} if judge[0] is backbone else {}
        answering: Role | None = judge[1] if g.references == "solver" else "proposer"
        votes = None
        if g.references == "expected":
            votes = _expected(backbone, prefix, card_questions(questions, g.questions), config, streams("expect"))
        cards = make_cards(judge[0], pictures, captions, requests, questions, g, config.solver, role=answering,
                           prefix=known.get(answering), votes=votes)
    with stage("draw"):
        prompts, seeds, drawn = draw_candidates(backbone, [card.prompt for card in cards], g, streams("draw"))
    with stage("score"):
        groups = [drawn.images[i : i + g.candidates] for i in range(0, len(prompts), g.candidates)]
        scores = score_candidates(judge[0], cards, groups, g, config.solver, role=judge[1], measure=measure)
    return Round(cards, prompts, seeds, drawn, groups, scores, asked)


def _writer(g: GeneratorConfig) -> Role:
    """Who writes the drawing prompt."""
    return "solver" if g.prompt == "solver" else "proposer"


def write_captions(backbone: Backbone, pictures: Sequence[Image.Image], config: Config, streams: Streams
                   ) -> tuple[Prefix, list[str], list[str]]:
    """The pictures' prefix under the role that writes the prompts, a random request each, and the captions.

    streams: as in `generation_round`, called for `style` and `caption`. Source: paper (generation step 1). With
    prompt=spec, as released, the Proposer writes a prompt of its own on its own request, sampled at its temperature.
    """
    prompts, g = backbone.spec.prompts, config.generator
    requests = [prompts.captions[i] for i in streams("style").integers(len(prompts.captions), size=len(pictures))]
    seen = backbone.prefix(pictures, role=_writer(g))
    spec = g.prompt == "spec"
    asked = [prompts.spec] * len(pictures) if spec and prompts.spec else requests
    captions = caption(backbone, seen, asked, max_new_tokens=backbone.spec.max_new_tokens,
                       temperature=config.proposer.temperature if spec else g.caption_temperature,
                       seed=_seed(streams("caption")))
    return seen, requests, captions


def draw_candidates(backbone: Backbone, texts: Sequence[str], g: GeneratorConfig, rng: np.random.Generator
                    ) -> tuple[list[str], list[int], Drawings]:
    """L candidates of each of G texts by the Generator: the G * L prompts, their seeds, the drawings, group by group.

    Source: paper (generation step 3).
    """
    wanted = [backbone.spec.prompts.draw.format(caption=text) for text in texts]
    prompts = [prompt for prompt in wanted for _ in range(g.candidates)]
    seeds = rng.integers(2**31, size=len(prompts)).tolist()
    drawn = backbone.generate_images(prompts, seeds=seeds, role="generator", guidance=g.guidance,
                                     temperature=g.temperature)
    return prompts, seeds, drawn


def _diagnose(backbone: Backbone, prefix: Prefix, captions: Sequence[str], config: Config, streams: Streams
              ) -> tuple[Answers, list[Question]]:
    """M questions of the Proposer about each picture and its caption."""
    p = config.proposer
    asks = [backbone.spec.prompts.diagnose.format(caption=text) for text in captions]
    *_, asked, questions = propose(backbone, prefix, asks, config.generator.questions, temperature=p.temperature,
                                   top_p=p.top_p, max_new_tokens=p.max_new_tokens, seed=_seed(streams("diagnose")))
    return asked, questions


def _expected(backbone: Backbone, prefix: Prefix, questions: Sequence[Sequence[str]], config: Config,
              rng: np.random.Generator) -> list[list[Vote]]:
    """What the Proposer expects as the answer to each question that it wrote, one sampled text each, as released: there
    prompt, questions and answers are one text; here its parts are written one after another, each given the picture."""
    p, prompts = config.proposer, backbone.spec.prompts
    flat = [(row, q) for row, group in enumerate(questions) for q in group]
    votes: list[list[Vote]] = [[] for _ in questions]
    if flat:
        asked = [prompts.expect.format(question=q) if prompts.expect else prompts.solve(q) for _, q in flat]
        said = backbone.answer(prefix, asked, rows=[row for row, _ in flat], temperature=p.temperature, top_p=p.top_p,
                               max_new_tokens=config.solver.max_new_tokens, seed=_seed(rng))
        for (row, _), text in zip(flat, said.texts, strict=True):
            votes[row].append(vote([text]))
    return votes


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
