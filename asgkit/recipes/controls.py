"""Controls: the same loop with its reward replaced. Each says in one sentence what is as in the method and what is
destroyed; docs/controls.md is this table in words, and a test per control proves its sentence on a run's records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asgkit.solve import Vote


@dataclass(frozen=True)
class Control:
    """What a control keeps and what it destroys.

    gate: the Solver learns from the questions that pass the method's own gate (vote share, unanimous and all-different
    votes), by the method's own votes; without it every valid question may teach. judge: it needs the truth. exchange:
    it swaps between pictures, so it needs two of them.
    """

    matched: str
    destroyed: str
    gate: bool = False
    judge: bool = False
    exchange: bool = False

    @property
    def sentence(self) -> str:
        """Both halves as one sentence."""
        return f"{self.matched}; {self.destroyed}."


CONTROLS = {
    "random": Control(
        "As many questions, answers and drawings train as were sampled, without a gate",
        "each is paid a random number, which also chooses q* and what is replayed, and under `sft` every framing is "
        "taught its own sampled answer, whose expected gradient is 0"),
    "random_vote": Control(
        "Questions and drawings are paid as in the method, and every valid question teaches, without a gate",
        "the answer of one framing, drawn at random, takes the majority's place, so no vote is counted"),
    "permuted": Control(
        "As many questions pass the method's gate, and rewards and labels are the same values",
        "they are shuffled over all pictures of a shard: the rewards of questions, of taught answers and of drawings, "
        "and under `sft` the labels of the taught questions", gate=True, exchange=True),
    "other_picture": Control(
        "The same questions teach as in the method, through its gate, with as many updates, and the Proposer is paid "
        "as in the method",
        "what is taught was answered about another picture (under `sft` its majority, else its sampled answers with "
        "their rewards), and drawings are paid what another picture's earned", gate=True, exchange=True),
    "constant": Control(
        "Questions, answers and drawings are sampled as in the method",
        "every reward is 0, so nothing differs within a group and no weight moves (but under plain `rwr`, which keeps "
        "the plain loss)"),
    "format": Control(
        "Questions, answers and drawings are sampled as in the method",
        "form alone is paid: a valid question 1, an invalid one 0, answers and drawings nothing, and under `sft` every "
        "framing is taught its own sampled answer"),
    "oracle": Control(
        "The Proposer is paid as in the method",
        "the truth takes the majority's place and pays the drawings: every question teaches that has a true answer "
        "which some framing gave, whatever the vote, and no other", judge=True),
    "oracle_gated": Control(
        "The Proposer is paid as in the method, and questions pass its gate, by its own votes",
        "the truth takes the majority's place and pays the drawings: of the method's questions those teach that have "
        "a true answer which some framing gave", gate=True, judge=True),
    "best_of": Control(
        "Questions and answers train as in the method, and the same cards pass the quality gate",
        "the Generator is fine-tuned on the best of the L drawings alone, without any contrast to the others",
        gate=True),
}


class Judge(Protocol):
    """Truth brought in from outside for the `oracle` controls; the method itself never has one."""

    def drawings(self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """Score of every candidate, 1 for a drawing that satisfies its prompt, else 0."""

    def answer(self, image: Image.Image, question: str) -> str | None:
        """The true answer, None where the question has none."""


def needs_judge(control: str) -> bool:
    """Whether a control is paid by the truth; the method ("") never is."""
    return control in CONTROLS and CONTROLS[control].judge


def keeps_gate(control: str) -> bool:
    """Whether the Solver learns from the questions that the method would teach; true of the method ("") itself."""
    return control not in CONTROLS or CONTROLS[control].gate


def control_rewards(control: str, rewards: Tensor, oracle: Tensor | None, rng: np.random.Generator,
                    passed: Tensor | None = None) -> Tensor:
    """Rewards (G, L) that a control trains on: the method's own for "".

    random: uniform numbers; permuted: the same values shuffled over the whole batch; other_picture: each group is paid
    what another group earned; constant: zeros; format: zeros too, since every drawing is a picture and every vote a
    word (questions have a form, see `reward_questions`); oracle, oracle_gated: the judge's scores; random_vote and
    best_of: the method's own (one acts on the vote, the other on the weights). passed (G,): between which groups
    values may be exchanged, None for all. Raises ValueError for a truth without a judge, or an unknown name.
    """
    if control in ("", "random_vote", "best_of"):
        return rewards
    if control == "random":
        return torch.from_numpy(rng.random(tuple(rewards.shape))).float()
    if control in ("permuted", "other_picture"):
        return _exchanged(control, rewards, rng, passed)
    if control in ("constant", "format"):
        return torch.zeros_like(rewards)
    if needs_judge(control):
        if oracle is None:
            raise ValueError(f"control={control} needs a judge; pass one to the Trainer (the CLI does so for shapes)")
        return oracle
    raise ValueError(f"unknown control {control!r}")


def _exchanged(control: str, rewards: Tensor, rng: np.random.Generator, passed: Tensor | None) -> Tensor:
    """Values shuffled over the passed groups, or whole groups moved to another one; a group alone is paid nothing."""
    rows = torch.arange(len(rewards)) if passed is None else passed.nonzero()[:, 0]
    paid, kept = rewards.clone(), rewards[rows]
    if control == "permuted":
        order = torch.from_numpy(rng.permutation(kept.numel()))
        paid[rows] = kept.flatten()[order].reshape(kept.shape)
    elif len(rows) < 2:
        paid[rows] = 0.0
    else:
        circle = torch.from_numpy(rng.permutation(len(rows)))  # each is paid what the next of a random circle earned
        paid[rows[circle]] = kept[circle.roll(-1)]
    return paid


def control_vote(control: str, vote: Vote, truth: str | None, rng: np.random.Generator) -> Vote | None:
    """The vote whose `majority` the Solver is taught under a control; None where an oracle has no truth to tell.

    random_vote: the answer of one framing drawn at random, so no vote is counted but framings still learn from each
    other; oracle, oracle_gated: the truth; every other control leaves the vote alone (what exchanges labels between
    questions is in `reward_answers`).
    """
    if control == "random_vote":
        pick = vote.answers[int(rng.integers(len(vote.answers)))]
    elif needs_judge(control):
        if truth is None:
            return None
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


def donors(control: str, pictures: Sequence[int], rng: np.random.Generator) -> list[int | None]:
    """Whose answers each of Q taught questions is given, as an index among the Q; None where nobody's can be.

    pictures (Q,): the picture that each question is about. permuted: a random order of the Q; other_picture: any
    question about another picture.
    """
    if control == "permuted":
        return rng.permutation(len(pictures)).tolist()
    found: list[int | None] = []
    for own in pictures:
        others = [i for i, picture in enumerate(pictures) if picture != own]
        found.append(others[int(rng.integers(len(others)))] if others else None)
    return found
