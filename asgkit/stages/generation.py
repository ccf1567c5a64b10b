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
from asgkit.stages.answer import Question, caption, propose
from asgkit.stages.judge import Card, Scores, make_cards, score_candidates

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
                     scorer: tuple[Backbone, Role | None] | None = None, stage: Stage = _untimed) -> Round:
    """Caption G pictures, ask about them, draw L candidates of each and score these; nothing is updated.

    streams: the random generator of a use, called once each in the order `style`, `caption`, `diagnose`, `draw`; the
    same generator for all of them gives one sequence. scorer: who answers and captions for the reward (None: the
    live Solver). stage: a context around each of `STAGES`, to time it. Raises NonFiniteValue for NaN in sampled
    questions or similarities. Source: paper (generation steps 1 to 4).
    """
    g, judge = config.generator, scorer or (backbone, "solver")
    with stage("caption"):
        seen, requests, captions = write_captions(backbone, pictures, g, streams)
    with stage("diagnose"):
        prefix = backbone.prefix(pictures, role="proposer")
        asked, questions = _diagnose(backbone, prefix, captions, config, streams)
        # a prefix holds for the model and the role that made it
        known = {"proposer": prefix, g.prompt: seen} if judge[0] is backbone else {}
        answering: Role | None = judge[1] if g.references == "solver" else "proposer"
        cards = make_cards(judge[0], pictures, captions, requests, questions, g, config.solver, role=answering,
                           prefix=known.get(answering))
    with stage("draw"):
        prompts, seeds, drawn = draw_candidates(backbone, [card.prompt for card in cards], g, streams("draw"))
    with stage("score"):
        groups = [drawn.images[i : i + g.candidates] for i in range(0, len(prompts), g.candidates)]
        scores = score_candidates(judge[0], cards, groups, g, config.solver, role=judge[1])
    return Round(cards, prompts, seeds, drawn, groups, scores, asked)


def write_captions(backbone: Backbone, pictures: Sequence[Image.Image], g: GeneratorConfig, streams: Streams
                   ) -> tuple[Prefix, list[str], list[str]]:
    """The pictures' prefix under the role that writes the prompts, a random request each, and the captions.

    streams: as in `generation_round`, called for `style` and `caption`. Source: paper (generation step 1).
    """
    styles = backbone.spec.prompts.captions
    requests = [styles[i] for i in streams("style").integers(len(styles), size=len(pictures))]
    seen = backbone.prefix(pictures, role=g.prompt)
    captions = caption(backbone, seen, requests, temperature=g.caption_temperature,
                       max_new_tokens=backbone.spec.max_new_tokens, seed=_seed(streams("caption")))
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


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
