"""Recipes that only draw: L candidates of each prompt, a score for each, and a step towards the better ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from asgkit.backbones.base import Drawings
from asgkit.config.reads import reads
from asgkit.errors import ConfigError
from asgkit.learning.objectives import DrawingBatch, drawing_batch, logged_advantages
from asgkit.learning.optimiser import UpdateStats
from asgkit.recipes.base import (
    CAPTION,
    CONTROL,
    DRAW,
    NOISE,
    STYLE,
    Learner,
    Memory,
    Record,
    Sheet,
    Signals,
    Tools,
    rounded,
    update_fields,
)
from asgkit.recipes.controls import control_rewards
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.runs.schema import FieldTable, Row, field_table, update_rows
from asgkit.scale.shards import Shard
from asgkit.stages.generation import draw_candidates, write_captions

# the others act on votes and questions
CONTROLS = ("", "random", "permuted", "other_picture", "constant", "oracle", "best_of")
STREAMS = {"style": STYLE, "caption": CAPTION, "draw": DRAW}
_ROWS: list[Row] = [
    ("prompt", "str", "text", "Drawing prompt T: a caption of the pool's picture, or the pool's own prompt."),
    ("prompt/request", "str", "text", "The caption request that T answers; the reader is asked it again."),
    ("generator/rewards", "list[float]", "reward", "The recipe's score per candidate image (L), under a control too."),
    ("generator/best", "int", "-", "Index of the candidate of highest score."),
    ("generator/best_reward", "float", "reward", "Its score."),
    ("generator/advantages", "list[float]", "-", "Group-relative advantage per candidate of what trained."),
    ("generator/zero_variance", "bool", "-", "Nothing in the group to prefer: no gradient from it."),
    ("generator/seeds", "list[int]", "-", "Seed that draws each candidate again."),
    ("judge_scores", "list[float]", "fraction", "Scores of an injected control judge; else empty."),
]


def group_fields(own: Sequence[Row]) -> FieldTable:
    """The table of a group recipe: what all of them log, then what one measures besides."""
    return field_table({"G": [*_ROWS, *own, *update_rows("generator")]})


@dataclass(frozen=True)
class Group:
    """G prompts with their caption requests, as the Generator is asked them (`asked`), and the G x L drawings of them,
    as groups of L; `seeds` (G * L,)."""

    shard: Shard
    prompts: list[str]
    requests: list[str]
    asked: list[str]
    seeds: list[int]
    drawn: Drawings
    images: list[list[Image.Image]]

    @property
    def speaks(self) -> Tensor:
        """Which groups (G,) may teach: an empty prompt says nothing of a drawing."""
        return torch.tensor([bool(prompt.strip()) for prompt in self.prompts])


@dataclass(frozen=True)
class GroupWork:
    """A group with its scores (G, L), the judge's (control=oracle), the rewards that train, and further fields."""

    group: Group
    scores: Tensor
    judged: list[list[float]]
    rewards: Tensor
    own: list[Record]

    @property
    def shard(self) -> Shard:
        """The shard it was drawn for."""
        return self.group.shard

    def signals(self) -> Signals:
        """Nothing is remembered."""
        return {}

    def sheet(self) -> Sheet:
        """The shard's pictures, if it has any, and the candidates."""
        sources = self.shard.pictures if self.shard.kind == "pictures" else [None] * len(self.shard.items)
        return Sheet(sources, self.group.images, self.scores.tolist())


class GroupRecipe(ABC):
    """A recipe that is a score: `score(group) -> (G, L)`. Everything else is here.

    Prompts come from the pool: captions that the Solver writes of its pictures, or the pool's own prompts.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"pictures", "prompts"})
    drawing: ClassVar[frozenset[str]] = frozenset({"G"})
    fields: ClassVar[FieldTable] = group_fields([])
    Settings: ClassVar[type[BaseModel] | None] = None

    def __init__(self, tools: Tools) -> None:
        self.tools, self.config, self.backbone, self.clock = tools, tools.config, tools.backbone, tools.clock
        if self.config.control not in CONTROLS:
            raise ConfigError(f"control={self.config.control} acts on questions and votes, which recipe={self.name} "
                              f"does not have; it knows {', '.join(filter(None, CONTROLS))}")
        if reads(self.config.recipe, "generator.nft_anchor") and self.config.generator.nft_anchor == "policy":
            raise ConfigError(f"generator.nft_anchor=policy needs a memory of weights, which recipe={self.name} does "
                              "not keep: leave it at base")
        self.learners = {"generator": Learner("generator", self.config.generator.learning_rate)}
        self.memories: dict[str, Memory] = {}

    @abstractmethod
    def score(self, group: Group) -> Tensor:
        """The reward (G, L) of every candidate, before any control; each recipe has its own."""

    def measure(self, group: Group) -> list[Record]:
        """Further log fields of each prompt, those that the recipe declares; none unless it says so."""
        return [{} for _ in group.prompts]

    def phase(self, step: int) -> str:
        """Every step draws."""
        return "G"

    def sample(self, shard: Shard, phase: str) -> GroupWork:
        """Write the prompts, draw, score."""
        with self.clock.stage("caption"):
            prompts, requests = self.write_prompts(shard)
        with self.clock.stage("draw"):
            width = self.config.generator.candidates
            asked, seeds, drawn = draw_candidates(self.backbone, prompts, self.config.generator, shard.rng(DRAW))
            images = [drawn.images[i : i + width] for i in range(0, len(seeds), width)]
            group = Group(shard, prompts, requests, asked[::width], seeds, drawn, images)
        with self.clock.stage("score"):
            scores = self.score(group).cpu()
            BadStepGuard.check_finite("generator/rewards", scores)
            own = self.measure(group)
        judge = self.tools.judge
        judged = judge.drawings(prompts, images) if judge else []
        rewards = control_rewards(self.config.control, scores, torch.tensor(judged) if judged else None,
                                  shard.rng(CONTROL), group.speaks)
        return GroupWork(group, scores, judged, rewards, own)

    def write_prompts(self, shard: Shard) -> tuple[list[str], list[str]]:
        """A prompt per item, and the caption request that it answers."""
        if shard.kind == "prompts":
            return shard.texts, [self.backbone.spec.prompts.request_for(text) for text in shard.texts]
        _, requests, captions = write_captions(self.backbone, shard.pictures, self.config,
                                               lambda use: shard.rng(STREAMS[use]))
        return captions, requests

    def batches(self, work: GroupWork) -> dict[str, DrawingBatch | None]:
        """The Generator moves towards the candidates with the higher rewards."""
        if not self.config.generator.train:
            return {"generator": None}
        return {"generator": drawing_batch(
            work.group.asked, work.group.drawn.codes, work.group.drawn.logp, work.rewards, work.group.speaks,
            settings=self.config.generator, times=self.backbone.spec.times, control=self.config.control,
            rng=work.shard.rng(NOISE))}

    def remember(self, seen: Sequence[Signals]) -> None:  # noqa: B027  # not abstract: most have no memory
        """Nothing, unless the recipe has memories."""

    def records(self, step: int, work: GroupWork, stats: Mapping[str, UpdateStats]) -> Iterator[Record]:
        """One record per prompt."""
        advantages, active = logged_advantages(work.rewards, work.group.speaks)
        group, shared = work.group, update_fields(stats)
        for i, item in enumerate(work.shard.items):
            rewards = work.scores[i].tolist()
            best = max(range(len(rewards)), key=lambda k, values=rewards: (values[k], -k))
            yield {name: rounded(value) for name, value in {
                "step": step, "phase": "G", "image": item.name, "image_index": item.index,
                "control": self.config.control, "prompt": group.prompts[i], "prompt/request": group.requests[i],
                "generator/rewards": rewards, "generator/best": best, "generator/best_reward": rewards[best],
                "generator/advantages": advantages[i].tolist(), "generator/zero_variance": not bool(active[i]),
                "generator/seeds": group.seeds[i * len(rewards) : (i + 1) * len(rewards)],
                "judge_scores": work.judged[i] if work.judged else [], **work.own[i], **shared}.items()}
