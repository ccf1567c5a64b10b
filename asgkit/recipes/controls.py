"""Reward controls: the same loop with its reward replaced. Every gain is shown beside `random` and `oracle`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asgkit.solve import Vote


class Judge(Protocol):
    """Truth brought in from outside for the `oracle` control; the method itself never has one."""

    def drawings(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """Score of every candidate, 1 for a drawing that satisfies its prompt, else 0."""

    def answer(self, image: Image.Image, question: str) -> str | None:
        """The true answer, None where the question has none."""


def control_rewards(control: str, rewards: Tensor, oracle: Tensor | None, rng: np.random.Generator) -> Tensor:
    """Rewards (G, L) that a control trains on: the method's own for "".

    random: uniform numbers; permuted: the same values shuffled over the whole batch; constant: zeros; format: zeros
    too, since every drawing is a picture and every vote a word (questions have a form, see `reward_questions`);
    oracle: the judge's scores; random_vote and best_of: the method's own (one acts on the vote, the other on the
    weights). Raises ValueError for
    `oracle` without a judge or an unknown name.
    """
    if control in ("", "random_vote", "best_of"):
        return rewards
    if control == "random":
        return torch.from_numpy(rng.random(tuple(rewards.shape))).float()
    if control == "permuted":
        order = torch.from_numpy(rng.permutation(rewards.numel()))
        return rewards.flatten()[order].reshape(rewards.shape)
    if control in ("constant", "format"):
        return torch.zeros_like(rewards)
    if control == "oracle":
        if oracle is None:
            raise ValueError("control=oracle needs a judge; pass one to the Trainer (the CLI does so for shapes)")
        return oracle
    raise ValueError(f"unknown control {control!r}")


def control_vote(control: str, vote: Vote, truth: str | None, rng: np.random.Generator, *, label: bool = False
                 ) -> Vote:
    """The vote whose `majority` the Solver is taught under a control.

    random_vote: the answer of one framing drawn at random, so no vote is counted but framings still learn from each
    other; oracle: the truth (its own majority where there is none); every other control leaves the vote alone and
    acts on the rewards. `label`: the majority itself is what is taught (pseudo-labels), so there is no reward to
    permute and `permuted` acts as `random_vote`; `random` then teaches every framing its own sampled answer
    (see `own_answers`).
    """
    if control == "random_vote" or (control == "permuted" and label):
        pick = vote.answers[int(rng.integers(len(vote.answers)))]
    elif control == "oracle" and truth is not None:
        pick = truth
    else:
        return vote
    count = vote.answers.count(pick)
    return replace(vote, majority=pick, count=count, fraction=count / len(vote.answers))


def own_answers(control: str) -> bool:
    """Whether pseudo-labels are replaced by each framing's own sample: `random` and `format` with the `sft` update.

    A random reward must carry no information. One framing's answer taught to another does (it is the vote, one
    ballot at a time); a framing's own sample does not: E[grad log p(a)] = 0 for a ~ p.
    """
    return control in ("random", "format")
