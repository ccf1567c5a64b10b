"""Ask, Solve, Generate: the paper's Algorithm 1 as a recipe, stage by stage.

    U step   1 image   2 ask K questions   3 solve each under N framings, STE, R_p, R_s
             4 Proposer update (GRPO)      5 Solver update on q* (REINFORCE)
    G step   1 caption 2 diagnose          3 draw L candidates             4 score them, R_g
             5 Generator update            6 replay buffer

Three U steps alternate with two G steps, and the two loops touch only through the Solver. Source: paper, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from asgkit.ask import TargetEntropy
from asgkit.backbones.base import TextStats
from asgkit.learning.anchor import sampling_policy
from asgkit.learning.objectives import (
    Batch,
    DrawingBatch,
    TextBatch,
    drawing_batch,
    logged_advantages,
    source_batch,
)
from asgkit.learning.optimiser import UpdateStats
from asgkit.learning.replay import ReplayBuffer
from asgkit.pool.base import PoolImage
from asgkit.recipes import asg_fields
from asgkit.recipes.asg_work import Asked, Count, Drawn, UnderstandingRow, generation_record
from asgkit.recipes.base import (
    ASK,
    CAPTION,
    CONTROL,
    DIAGNOSE,
    DRAW,
    EXPECT,
    NOISE,
    REPLAY,
    SOLVE,
    STYLE,
    Learner,
    Record,
    Signals,
    Tools,
    every,
    update_fields,
)
from asgkit.recipes.controls import control_rewards, own_answers
from asgkit.recipes.rewards import reward_answers, reward_questions
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.runs.schema import FieldTable
from asgkit.scale.shards import Shard
from asgkit.stages.answer import Rollout, Solved, answer_questions, greedy_difficulty, propose, taught_rollout
from asgkit.stages.generation import generation_round
from asgkit.ste import RollingPercentile
from asgkit.updates import EMABaseline, grpo_loss, reinforce_loss, sft_loss

# as `generation_round` names them
STREAMS = {"style": STYLE, "caption": CAPTION, "diagnose": DIAGNOSE, "expect": EXPECT, "draw": DRAW}


class ASG:
    """Three roles, one frozen base, two loops that meet only in the Solver."""

    name: ClassVar[str] = "asg"
    Settings: ClassVar[None] = None
    needs: ClassVar[frozenset[str]] = frozenset({"pictures"})
    drawing: ClassVar[frozenset[str]] = frozenset({"G"})
    fields: ClassVar[FieldTable] = asg_fields.FIELDS

    def __init__(self, tools: Tools) -> None:
        c = tools.config
        self.tools, self.config, self.backbone, self.clock = tools, c, tools.backbone, tools.clock
        # as released (generator.adapter=solver) the drawing loss moves the Solver's adapter
        self.learners = {"proposer": Learner("proposer", c.proposer.learning_rate),
                         "solver": Learner("solver", c.solver.learning_rate),
                         "generator": Learner(c.generator.adapter, c.generator.learning_rate)}
        self.window = RollingPercentile(c.solver.ste_window)
        self.baseline = EMABaseline(c.solver.baseline_momentum)
        self.target = TargetEntropy(c.proposer.target_entropy, momentum=c.proposer.target_momentum,
                                    adaptive=c.proposer.adaptive_target)
        self.replay = ReplayBuffer(c.replay.capacity, self.backbone.spec.image_side)
        self.tokens = Count()
        self.memories = {"window": self.window, "baseline": self.baseline, "target": self.target,
                         "replay": self.replay, "tokens": self.tokens}
        self.sampler = sampling_policy(self.backbone, c)  # None: the Generator itself
        if self.sampler:
            self.memories["sampler"] = self.sampler
        self.step_fields: Record = {}  # of the U step that was remembered last

    def phase(self, step: int) -> str:
        """U or G: `understanding` U steps, then `generation` G steps, counted from step 1 (two_stage: once)."""
        s = self.config.schedule
        cycle = s.understanding + s.generation
        if s.order == "two_stage":
            return "U" if step * cycle <= s.steps * s.understanding else "G"
        return "U" if (step - 1) % cycle < s.understanding else "G"

    def sample(self, shard: Shard, phase: str) -> Asked | Drawn:
        """Everything up to the rewards of one shard."""
        return self.ask_and_solve(shard) if phase == "U" else self.draw_and_score(shard)

    def batches(self, work: Asked | Drawn) -> dict[str, Batch | None]:
        """U: the Proposer (stage 4) and the Solver (stage 5); G: the Generator (stage 5)."""
        if isinstance(work, Asked):
            return {"proposer": self.proposer_batch(work), "solver": self.solver_batch(work)}
        return {"generator": self.generator_batch(work)}

    # -- understanding -----------------------------------------------------------------------------------------------
    def ask_and_solve(self, shard: Shard) -> Asked:
        """Stages 1 to 3 of a U step for one shard, with the rewards of its questions and answers."""
        c, judge = self.config, self.tools.judge
        shard = mix_replay(shard, self.replay, c.replay.mix)
        pictures = shard.pictures
        with self.clock.stage("ask"):
            prefix = self.backbone.prefix(pictures, role="proposer")
            requests = [self.backbone.spec.prompts.ask] * len(pictures)
            prompts, rows, sampled, questions = propose(
                self.backbone, prefix, requests, c.proposer.candidates, temperature=c.proposer.temperature,
                top_p=c.proposer.top_p, max_new_tokens=c.proposer.max_new_tokens, seed=shard.number(ASK))
            k = c.proposer.candidates
            table = [UnderstandingRow(questions[i : i + k]) for i in range(0, len(questions), k)]
        with self.clock.stage("solve"):
            solved, where = self.solve(shard, table)
        with self.clock.stage("reward"):
            # copies: every shard is ranked against the memories as they were before the step
            reward_questions(table, c, deepcopy(self.window), deepcopy(self.target), shard.rng(CONTROL))
            truth = [judge.answer(pictures[i], table[i].questions[k].text) for i, k in where] if judge else None
            reward_answers(table, where, c, self.baseline, truth, shard.rng(CONTROL, 1))
        return Asked(shard, table, Rollout(prompts, rows, sampled), solved, where, c.solver.ste_aggregation)

    def solve(self, shard: Shard, table: list[UnderstandingRow]) -> tuple[Solved | None, list[tuple[int, int]]]:
        """Stage 3: votes under N framings and the greedy STE call, for every valid candidate of every image at once."""
        s = self.config.solver
        where = [(i, k) for i, row in enumerate(table) for k, q in enumerate(row.questions) if q.valid]
        if not where:
            return None, where
        texts, rows = [table[i].questions[k].text for i, k in where], [i for i, _ in where]
        prefix = self.backbone.prefix(shard.pictures, role="solver")
        solved = answer_questions(self.backbone, prefix, texts, rows, framings=s.framings, temperature=s.temperature,
                                  top_p=s.top_p, max_new_tokens=s.max_new_tokens, seed=shard.number(SOLVE),
                                  perturb=s.votes == "framings", hints=s.focus_hints)
        self.tools.stop.check()
        top, mean, greedy = greedy_difficulty(self.backbone, prefix, texts, rows, tokens=s.ste_tokens,
                                              max_new_tokens=s.max_new_tokens, start=s.ste_from)
        for j, (i, k) in enumerate(where):
            table[i].votes[k] = solved.votes[j]
            table[i].raw[k] = solved.answers.texts[j * s.framings : (j + 1) * s.framings]
            table[i].ste[k], table[i].ste_mean[k], table[i].greedy[k] = top[j], mean[j], greedy[j]
        return solved, where

    def proposer_batch(self, asked: Asked) -> TextBatch | None:
        """Stage 4, GRPO over the K candidates of each image: a question's reward trains the text that asked it."""
        if not self.config.proposer.train:
            return None
        advantages = torch.tensor([a for row in asked.table for a in row.advantages])
        active = torch.tensor([not row.zero_variance for row in asked.table for _ in row.questions])

        def loss(policy: TextStats, batch: TextBatch, mask: Tensor) -> tuple[Tensor, float]:
            value, stats = grpo_loss(policy.logp, batch.rollout.answers.logp, batch.advantages.to(mask.device), mask,
                                     clip=self.config.proposer.clip)
            return value, stats["clip_fraction"]

        return TextBatch(asked.shard.pictures, asked.rollout, advantages, active, loss)

    def solver_batch(self, asked: Asked) -> TextBatch | None:
        """Stage 5, REINFORCE (paper), group-relative or pseudo-label update on q* (or every valid candidate)."""
        s, table, where = self.config.solver, asked.table, asked.where
        taught = [j for j, (i, k) in enumerate(where) if k in table[i].solver_advantages]
        if not s.train or not taught:
            return None
        labels = None
        if s.update == "sft" and not own_answers(self.config.control):
            labels = [table[i].taught.get(k, table[i].votes[k].majority) for i, k in where]
        given = [where.index(table[i].donor.get(k, (i, k))) for i, k in where]
        rollout = taught_rollout(asked.solved, taught, s.framings, labels, given)
        advantages = torch.tensor([a for j in taught for a in table[where[j][0]].solver_advantages[where[j][1]]])
        active = torch.ones_like(advantages, dtype=torch.bool)

        def loss(policy: TextStats, batch: TextBatch, mask: Tensor) -> tuple[Tensor, None]:
            if s.update == "sft":
                return sft_loss(policy.logp, mask, batch.active.to(mask.device)), None
            return reinforce_loss(policy.logp, batch.advantages.to(mask.device), mask), None

        return TextBatch(asked.shard.pictures, rollout, advantages, active, loss)

    # -- generation --------------------------------------------------------------------------------------------------
    def draw_and_score(self, shard: Shard) -> Drawn:
        """Stages 1 to 4 of a G step for one shard: caption, diagnose, draw, score (all in `generation_round`, which
        the premise check takes too), with the rewards that train."""
        judge = self.tools.judge
        with self.sampler.active() if self.sampler else nullcontext():
            made = generation_round(self.backbone, shard.pictures, self.config, lambda use: shard.rng(STREAMS[use]),
                                    scorer=self.tools.scorer, measure=self.tools.measure, stage=self.clock.stage)
        judged = judge.drawings([card.prompt for card in made.cards], made.groups) if judge else []
        BadStepGuard.check_finite("generator/rewards", made.scores.reward)
        oracle = torch.tensor(judged) if judged else None
        passed = torch.tensor([card.passed for card in made.cards])
        rewards = control_rewards(self.config.control, made.scores.reward, oracle, shard.rng(CONTROL), passed)
        return Drawn(shard, made, judged, rewards, self.replay.capacity > 0)

    def generator_batch(self, drawn: Drawn) -> DrawingBatch | None:
        """Stage 5: the native objective on the drawings that were scored, or (as released) on the real images."""
        g, made = self.config.generator, drawn.made
        if not g.train:
            return None
        prompts = made.prompts[:: g.candidates]  # one per card
        common = {"times": self.backbone.spec.times, "settings": g, "rng": drawn.shard.rng(NOISE)}
        if g.target == "source_image":
            codes = self.backbone.encode_images(drawn.shard.pictures)
            return source_batch(prompts, codes, drawn.rewards, drawn.passed, **common)
        return drawing_batch(prompts, made.drawn.codes, made.drawn.logp, drawn.rewards, drawn.passed,
                             control=self.config.control, anchor=self.sampler, **common)

    # -- after the step ----------------------------------------------------------------------------------------------
    def remember(self, seen: Sequence[Signals]) -> None:
        """Stage 6 and the memories of a U step; the fields of the whole step are taken on the way."""
        self.tokens.add(sum(every(seen, "tokens")))
        if "best" in seen[0]:
            for image in every(seen, "best"):
                self.replay.push(image)
            if self.sampler:
                self.sampler.follow()
            return
        window, baseline = len(self.window), self.baseline.value  # as the step found them
        self.window.update_many(every(seen, "difficulties"))
        if entropies := every(seen, "entropies"):
            self.target.update(float(np.mean(entropies)))
        if rewards := every(seen, "rewards"):
            self.baseline.update(float(np.mean(rewards)))
        self.step_fields = {
            "solver/update": self.config.solver.update, "solver/window_size": window, "solver/baseline": baseline,
            "proposer/target_entropy": self.target.mu, "frac_reward_zero_std": float(np.mean(every(seen, "silent"))),
            "completions/mean_length": float(torch.tensor(every(seen, "lengths")).float().mean()),
            "num_tokens": self.tokens.value}

    def records(self, step: int, work: Asked | Drawn, stats: Mapping[str, UpdateStats]) -> Iterator[Record]:
        """One record per image of the shard."""
        if isinstance(work, Asked):
            shared = update_fields(stats) | self.step_fields
            control, s = self.config.control, self.config.solver
            names, label = [item.name for item in work.shard.items], s.update == "sft" and not own_answers(control)
            for row, item in zip(work.table, work.shard.items, strict=True):
                own = row.under_control(names, label) if control else {}
                yield row.record(step, item, shared | own, control)
            return
        advantages, active = logged_advantages(work.rewards, work.passed)
        for i, item in enumerate(work.shard.items):
            yield generation_record(step, item, work, i, advantages=advantages[i].tolist(), active=bool(active[i]),
                                    control=self.config.control, shared=update_fields(stats))


def mix_replay(shard: Shard, replay: ReplayBuffer, share: float) -> Shard:
    """The shard with about `share` of its images replaced by earlier best drawings, once there are any."""
    if share == 0 or len(replay) == 0:
        return shard
    rng = shard.rng(REPLAY)
    swap = rng.random(len(shard.items)) < share
    items = [PoolImage(f"replay/{item.name}", item.index, replay.draw(rng)) if s else item
             for item, s in zip(shard.items, swap, strict=True)]
    return replace(shard, items=items)
