"""The Solver judges drawings: the prompt card of a real image, and the scores of candidates drawn from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asgkit.backbones.base import Backbone, Prefix, Role
from asgkit.config import GeneratorConfig, SolverConfig
from asgkit.draw import (
    contradiction,
    cycle_consistency,
    diversity,
    generator_reward,
    qa_fidelity,
    soft_match,
    spec_quality,
)
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.solve import Vote
from asgkit.stages.answer import Question, answer_questions, caption


@dataclass(frozen=True)
class Card:
    """What a drawing must match: prompt t (the Solver's caption of the real image), its caption request, the
    Proposer's valid diagnostic questions, and the Solver's votes on the real image as references."""

    prompt: str
    request: str
    asked: list[Question]
    questions: list[str]
    references: list[Vote]
    quality: float
    passed: bool


@dataclass(frozen=True)
class Scores:
    """Signals of the B x L candidates, all (B, L) float32; captions and answers as texts, image by image."""

    reward: Tensor
    fidelity: Tensor
    cycle: Tensor
    text_similarity: Tensor
    image_text_similarity: Tensor
    diversity: Tensor
    contradiction: Tensor
    captions: list[list[str]]
    answers: list[list[list[str]]]


def make_cards(backbone: Backbone, images: Sequence[Image.Image], captions: Sequence[str], requests: Sequence[str],
               asked: Sequence[Question], settings: GeneratorConfig, solver: SolverConfig, *,
               role: Role | None = "solver", prefix: Prefix | None = None, votes: list[list[Vote]] | None = None
               ) -> list[Card]:
    """Prompt cards of B images: the Solver's answers on the real image are the references, never the Proposer's.

    asked: B * M questions, image by image; duplicates and invalid ones do not enter the card. A card passes with
    `quality >= min_quality`, at least `min_questions` questions and a caption that is not empty. `role`: who answers
    (None: the frozen base); `prefix`: that role's prefix of the images, where the caller has one; `votes`: references
    to the questions of the card, where they come from elsewhere.
    Source: paper (generation step 2).
    """
    per_image = [list(asked[i : i + settings.questions]) for i in range(0, len(asked), settings.questions)]
    kept = card_questions(asked, settings.questions)
    if votes is None:
        votes = _vote_all(backbone, prefix or backbone.prefix(images, role=role), kept, settings, solver)
    cards = []
    for i, (group, questions, references) in enumerate(zip(per_image, kept, votes, strict=True)):
        valid = sum(q.valid for q in group)
        polar = bool(references) and all(v.majority in ("yes", "no") for v in references)
        quality = spec_quality(valid, len(group), len(questions), polar)
        enough = len(questions) >= settings.min_questions and bool(captions[i].strip())
        passed = quality >= settings.min_quality and enough
        cards.append(Card(captions[i], requests[i], group, questions, references, quality, passed))
    return cards


def card_questions(asked: Sequence[Question], count: int) -> list[list[str]]:
    """The questions of each image's card, of `count` written per image: the valid ones, each once."""
    return [[q.text for q in asked[i : i + count] if q.valid and not q.duplicate] for i in range(0, len(asked), count)]


def _vote_all(backbone: Backbone, prefix: Prefix, questions: Sequence[Sequence[str]], settings: GeneratorConfig,
              solver: SolverConfig) -> list[list[Vote]]:
    """Greedy votes of the Solver on every question of every image of its prefix, in one batch."""
    flat = [(row, q) for row, group in enumerate(questions) for q in group]
    if not flat:
        return [[] for _ in questions]
    solved = answer_questions(backbone, prefix, [q for _, q in flat], [row for row, _ in flat],
                              framings=settings.votes, temperature=0.0, max_new_tokens=solver.max_new_tokens)
    grouped: list[list[Vote]] = [[] for _ in questions]
    for (row, _), v in zip(flat, solved.votes, strict=True):
        grouped[row].append(v)
    return grouped


def score_candidates(backbone: Backbone, cards: Sequence[Card], drawings: Sequence[Sequence[Image.Image]],
                     settings: GeneratorConfig, solver: SolverConfig, *, role: Role | None = "solver",
                     measure: Backbone | None = None) -> Scores:
    """Score L candidates of each card: S_fid, S_cyc, S_div, S_ctr and R_g, every stage one batch over all B x L.

    The votes and captions come from the live Solver (role None: the frozen base), the similarities of the cycle from
    the frozen base, or from that of another model (`measure`). Raises NonFiniteValue for NaN similarities.
    Source: paper (generation step 4).
    """
    flat = [image for group in drawings for image in group]
    width = len(drawings[0])
    owner = [card for card in cards for _ in range(width)]
    prefix = backbone.prefix(flat, role=role)
    votes = _vote_all(backbone, prefix, [card.questions for card in owner], settings, solver)
    captions = caption(backbone, prefix, [card.request for card in owner],
                       max_new_tokens=backbone.spec.max_new_tokens)
    text, image_text = _measured(measure or backbone, flat if settings.cycle == "image" else None, owner, captions,
                                 own=measure is None)
    BadStepGuard.check_finite("generator/similarities", torch.stack([text, image_text]))
    fidelity = torch.tensor([_fidelity(card, v, settings.word_boundaries)
                             for card, v in zip(owner, votes, strict=True)])
    conflict = torch.tensor([_conflict(card, v) for card, v in zip(owner, votes, strict=True)])
    spread = torch.stack([diversity(pixels(group), normalise=settings.normalise_diversity) for group in drawings])
    shape = (len(cards), width)
    fidelity, conflict = fidelity.reshape(shape), conflict.reshape(shape)
    text, image_text = text.reshape(shape), image_text.reshape(shape)
    cycle = cycle_consistency(text, image_text)
    quality = torch.tensor([card.quality if card.passed else 0.0 for card in cards])[:, None]
    reward = generator_reward(fidelity, cycle, spread, conflict, quality, w_fidelity=settings.w_fidelity,
                              w_cycle=settings.w_cycle, w_diversity=settings.w_diversity,
                              w_contradiction=settings.w_contradiction, min_quality=settings.min_quality,
                              renormalise=settings.renormalise)
    answers = [[v.majority for v in group] for group in votes]
    rows = range(0, len(flat), width)
    return Scores(reward, fidelity, cycle, text, image_text, spread, conflict,
                  [captions[i : i + width] for i in rows], [answers[i : i + width] for i in rows])


def _measured(backbone: Backbone, images: Sequence[Image.Image] | None, cards: Sequence[Card], captions: Sequence[str],
              *, own: bool) -> tuple[Tensor, Tensor]:
    """Similarities by a backbone; one that did not write the captions (not `own`) is asked in its own words."""
    if not own:
        cards = [replace(card, request=backbone.spec.prompts.request_for(card.prompt)) for card in cards]
    return similarities(backbone, images, cards, captions)


def _fidelity(card: Card, votes: Sequence[Vote], whole: bool) -> float:
    if not card.questions:
        return 0.0
    matches = [soft_match(v.majority, r.majority, word_boundaries=whole)
               for v, r in zip(votes, card.references, strict=True)]
    return qa_fidelity(matches, [v.fraction for v in votes])


def _conflict(card: Card, votes: Sequence[Vote]) -> float:
    if not card.questions:
        return 0.0
    return contradiction([v.majority for v in votes], [r.majority for r in card.references])


def similarities(backbone: Backbone, images: Sequence[Image.Image] | None, cards: Sequence[Card],
                 captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Frozen, model-native similarities of B candidates: sim(f(t), f(t^)) and sim_vl(I', t), both (B,) in [0, 1].

    f is the mean last hidden state of the frozen base over a caption's tokens, sim its cosine (below 0 counts
    as 0). sim_vl = exp(mean_t ln p(t | I')) is the frozen base's per-token probability of the prompt given the
    candidate, so it depends on both image and text; without images it is p(t), the same for every candidate, as in
    one released backbone (spec: generation, D3). An empty caption t^ has similarity 0.
    """
    prompts, requests = [card.prompt for card in cards], [card.request for card in cards]
    wanted = backbone.text_stats(None, requests, prompts, role=None)
    given = backbone.text_stats(None, requests, captions, role=None)
    text = torch.cosine_similarity(wanted.pooled, given.pooled).clamp(min=0.0).cpu()
    empty = torch.tensor([not c.strip() for c in captions])
    seen = prompt_likelihood(backbone, images, requests, prompts, role=None)
    return text.masked_fill(empty, 0.0), seen.exp().cpu()


def prompt_likelihood(backbone: Backbone, images: Sequence[Image.Image] | None, requests: Sequence[str],
                      prompts: Sequence[str], *, role: Role | None) -> Tensor:
    """Mean log-probability per token (B,), nats, that a reader of each image gives its prompt as the answer to its
    caption request: 1/|T| sum_t ln p(T_t | I, request, T_<t).

    The request matters: read under the request for another form of caption, a prompt ranks drawings far worse.
    """
    seen = backbone.text_stats(images, requests, prompts, role=role)
    return seen.logp.sum(1) / seen.mask.sum(1).clamp(min=1)


def pixels(images: Sequence[Image.Image]) -> Tensor:
    """PIL images as (L, 3, H, W) float in [0, 1]."""
    arrays = np.stack([np.asarray(image, dtype=np.uint8) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255.0
