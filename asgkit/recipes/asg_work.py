"""What ASG samples in one shard: questions with votes and rewards (U), drawings with scores (G); and their records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asgkit.pool.base import PoolImage
from asgkit.recipes.base import Record, Sheet, Signals, rounded
from asgkit.scale.shards import Shard
from asgkit.solve import Vote
from asgkit.stages.answer import Question, Rollout, Solved
from asgkit.stages.generation import Round


class Count:
    """A number that only grows: sampled tokens so far."""

    def __init__(self) -> None:
        self.value = 0

    def add(self, amount: int) -> None:
        """Count `amount` more."""
        self.value += amount

    def state_dict(self) -> dict[str, Any]:
        """The number."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the number back."""
        self.value = state["value"]


def _identity(step: int, phase: str, item: PoolImage, questions: list[Question]) -> Record:
    return {
        "step": step, "phase": phase, "image": item.name, "image_index": item.index,
        "questions": [q.text for q in questions], "questions/valid": [q.valid for q in questions],
        "questions/problems": ["; ".join(q.problems) for q in questions],
    }


class UnderstandingRow:
    """Signals of one image in a U step: K questions, and per valid question its vote, STE and rewards."""

    def __init__(self, questions: list[Question]) -> None:
        self.questions = questions
        self.votes: list[Vote | None] = [None] * len(questions)
        self.raw: list[list[str]] = [[] for _ in questions]
        self.ste: list[float | None] = [None] * len(questions)
        self.ste_mean: list[float | None] = [None] * len(questions)
        self.greedy: list[str | None] = [None] * len(questions)
        self.difficulty: list[float | None] = [None] * len(questions)
        self.frontier: list[float | None] = [None] * len(questions)  # r_sc
        self.rewards: list[float] = [0.0] * len(questions)
        self.advantages: list[float] = [0.0] * len(questions)
        self.zero_variance = False
        self.solver_rewards: dict[int, list[float]] = {}
        self.solver_advantages: dict[int, list[float]] = {}
        self.skip: dict[int, str] = {}
        self.paid: list[float] = []  # what a control pays each question; empty in the method, which pays R_p
        self.taught: dict[int, str] = {}  # answer taught instead of the majority, under a control
        self.donor: dict[int, tuple[int, int]] = {}  # (row, candidate) whose answers a control teaches instead

    @property
    def best(self) -> int:
        """q* = argmax R_p, or of what a control pays; a question that can be asked before one that cannot, then the
        first of equals."""
        paid = self.paid or self.rewards
        return max(range(len(paid)), key=lambda k: (self.questions[k].valid, paid[k], -k))

    def under_control(self, names: Sequence[str], label: bool) -> dict[str, Any]:
        """The fields of runs under a control. names: of the shard's images; label: one answer is taught to all framings
        of a question."""
        taught = [k in self.solver_advantages for k in range(len(self.questions))]
        labels = [self.taught.get(k, vote.majority) if on and label else None
                  for k, (on, vote) in enumerate(zip(taught, self.votes, strict=True))]
        given = [names[self.donor[k][0]] if on and k in self.donor else None for k, on in enumerate(taught)]
        return {"control/rewards": self.paid, "control/trained": taught, "control/labels": labels,
                "control/donors": given}

    def record(self, step: int, item: PoolImage, shared: dict[str, Any], control: str) -> dict[str, Any]:
        """The image's log record; `shared` are the values of the whole step, and a control's own."""
        k = self.best
        vote = self.votes[k]
        row = _identity(step, "U", item, self.questions) | {
            "questions/duplicate": [q.duplicate for q in self.questions], "question": self.questions[k].text,
            "proposer/reward": self.rewards[k], "proposer/rewards": self.rewards,
            "proposer/advantages": self.advantages, "proposer/difficulty": self.difficulty,
            "proposer/self_consistency_reward": self.frontier, "proposer/zero_variance": self.zero_variance,
            "solver/answers": self.raw[k], "solver/normalised": list(vote.answers) if vote else [],
            "solver/majority": vote.majority if vote else None, "solver/majority_count": vote.count if vote else None,
            "solver/majority_fraction": vote.fraction if vote else None,
            "solver/self_consistency_entropy": vote.entropy if vote else None,
            "solver/margin": vote.margin if vote else None,
            "solver/entropies": [v.entropy if v else None for v in self.votes],
            "solver/greedy_answer": self.greedy[k], "solver/token_entropy": self.ste[k],
            "solver/token_entropies": self.ste, "solver/token_entropy_mean": self.ste_mean[k],
            "solver/difficulty": self.difficulty[k], "solver/rewards": self.solver_rewards.get(k, []),
            "solver/advantages": self.solver_advantages.get(k, []),
            "solver/trained": k in self.solver_advantages, "solver/skip_reason": self.skip.get(k, ""),
            "control": control,
        }
        return {name: rounded(value) for name, value in (row | shared).items()}


@dataclass(frozen=True)
class Asked:
    """What a shard of a U step sampled: rows with scores and rewards, the Proposer's texts, the Solver's answers, the
    (row, candidate) of each question that was answered, and which STE (`max` or `mean`) the run goes by."""

    shard: Shard
    table: list[UnderstandingRow]
    rollout: Rollout
    solved: Solved | None
    where: list[tuple[int, int]]
    aggregation: str

    def signals(self) -> Signals:
        """The numbers that all ranks must know: what memories and step means are made of.

        difficulties: STE (nats); entropies: H_sc (nats) of every vote; rewards: R_s of what taught the Solver; silent:
        groups without a spread; lengths and tokens: sampled tokens, per question and in all.
        """
        cells = [(row, k) for row in self.table for k, vote in enumerate(row.votes) if vote is not None]
        lengths = self.rollout.answers.mask.sum(1).tolist()
        answered = int(self.solved.answers.mask.sum()) if self.solved else 0
        return {"difficulties": [(row.ste if self.aggregation == "max" else row.ste_mean)[k] for row, k in cells],
                "entropies": [row.votes[k].entropy for row, k in cells],
                "rewards": [r for row in self.table for k in row.solver_advantages for r in row.solver_rewards[k]],
                "silent": [row.zero_variance for row in self.table],
                "lengths": lengths, "tokens": [sum(lengths), answered]}

    def sheet(self) -> None:
        """Nothing was drawn."""


@dataclass(frozen=True)
class Drawn:
    """What a shard of a G step drew, the judge's scores (under control=oracle), the rewards (G, L) that train, and
    whether its best drawings are kept for replay."""

    shard: Shard
    made: Round
    judged: list[list[float]]
    rewards: Tensor
    kept: bool

    @property
    def passed(self) -> Tensor:
        """Which cards (G,) passed the quality gate and may speak."""
        return torch.tensor([card.passed for card in self.made.cards])

    def best_drawings(self) -> list[Image.Image]:
        """The best paid candidate of every card that passed the gate: that of highest R_g, but under a control."""
        best = self.rewards.argmax(1).tolist()
        return [self.made.groups[i][best[i]] for i, card in enumerate(self.made.cards) if card.passed]

    def signals(self) -> Signals:
        """Sampled tokens, and the drawings that enter the replay buffer on every rank."""
        return {"tokens": [int(self.made.asked.mask.sum())], "best": self.best_drawings() if self.kept else []}

    def sheet(self) -> Sheet:
        """The shard's pictures and the candidates drawn from each."""
        return Sheet(self.shard.pictures, self.made.groups, self.made.scores.reward.tolist())


def generation_record(step: int, item: PoolImage, drawn: Drawn, row: int, *, advantages: list[float], active: bool,
                      control: str, shared: Record) -> Record:
    """The log record of one image in a G step: its card and the scores of its L candidates."""
    card, scores = drawn.made.cards[row], drawn.made.scores
    rewards = scores.reward[row].tolist()
    width = len(rewards)
    best = max(range(width), key=lambda i: (rewards[i], -i)) if card.passed else None
    values = _identity(step, "G", item, card.asked) | {
        "prompt": card.prompt, "references": [v.majority for v in card.references],
        "references/fraction": [v.fraction for v in card.references], "spec/quality": card.quality,
        "spec/passed": card.passed, "generator/rewards": rewards,
        "generator/fidelity": scores.fidelity[row].tolist(), "generator/cycle": scores.cycle[row].tolist(),
        "generator/text_similarity": scores.text_similarity[row].tolist(),
        "generator/image_text_similarity": scores.image_text_similarity[row].tolist(),
        "generator/diversity": scores.diversity[row].tolist(),
        "generator/contradiction": scores.contradiction[row].tolist(), "generator/captions": scores.captions[row],
        "generator/answers": scores.answers[row], "generator/best": best,
        "generator/best_reward": None if best is None else rewards[best], "generator/advantages": advantages,
        "generator/zero_variance": not active, "generator/seeds": drawn.made.seeds[row * width : (row + 1) * width],
        "replay/pushed": card.passed and drawn.kept, "control": control,
        "judge_scores": drawn.judged[row] if drawn.judged else [],
    } | ({"control/rewards": drawn.rewards[row].tolist()} if control else {})
    return {name: rounded(value) for name, value in (values | shared).items()}
