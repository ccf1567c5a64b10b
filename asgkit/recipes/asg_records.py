"""One flat log record per image and step; names and meanings in `schema` and docs/log_glossary.md."""

from __future__ import annotations

from typing import Any

from asgkit.backbones.base import ROLES
from asgkit.learning.optimiser import UpdateStats
from asgkit.pool.folder import PoolImage
from asgkit.solve import Vote
from asgkit.stages.answer import Question
from asgkit.stages.judge import Card, Scores


def _identity(step: int, phase: str, item: PoolImage, questions: list[Question]) -> dict[str, Any]:
    return {
        "step": step, "phase": phase, "rank": 0, "image": item.name, "image_index": item.index,
        "questions": [q.text for q in questions], "questions/valid": [q.valid for q in questions],
        "questions/problems": ["; ".join(q.problems) for q in questions],
    }


def _round(values: Any) -> Any:
    """Six decimals: below any effect, and short enough to keep whole logs."""
    if isinstance(values, list):
        return [_round(v) for v in values]
    return round(values, 6) if isinstance(values, float) else values


def update_fields(stats: dict[str, UpdateStats]) -> dict[str, Any]:
    """Optimiser values of the roles that this step concerns."""
    merged: dict[str, Any] = {}
    for role in ROLES:
        if role in stats:
            merged |= stats[role].record(role)
    return merged


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
        self.taught: dict[int, str] = {}  # answer taught instead of the majority, under a control

    @property
    def best(self) -> int:
        """q* = argmax R_p; the first of equals."""
        return max(range(len(self.rewards)), key=lambda k: (self.rewards[k], -k))

    def record(self, step: int, item: PoolImage, shared: dict[str, Any], control: str) -> dict[str, Any]:
        """The image's log record; `shared` are the values of the whole step."""
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
        return {name: _round(value) for name, value in (row | shared).items()}


def generation_record(step: int, item: PoolImage, card: Card, scores: Scores, row: int, *, advantages: list[float],
                      active: bool, seeds: list[int], pushed: bool, control: str, judged: list[float],
                      shared: dict[str, Any]) -> dict[str, Any]:
    """The log record of one image in a G step: its card and the scores of its L candidates."""
    rewards = scores.reward[row].tolist()
    best = max(range(len(rewards)), key=lambda i: (rewards[i], -i)) if card.passed else None
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
        "generator/zero_variance": not active, "generator/seeds": seeds, "replay/pushed": pushed,
        "control": control, "judge_scores": judged,
    }
    return {name: _round(value) for name, value in (values | shared).items()}
