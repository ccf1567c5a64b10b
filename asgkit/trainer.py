"""The loop of Ask, Solve, Generate: understanding and generation steps in the order of the paper's Algorithm 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgkit.ask import TargetEntropy
from asgkit.backbones.base import ROLES, Backbone, Role, TextStats
from asgkit.config import Config
from asgkit.errors import NonFiniteValue, StopSignal
from asgkit.learning.objectives import Batch, DrawingBatch, TextBatch, drawing_batch, logged_advantages
from asgkit.learning.optimiser import RoleOptimiser, UpdateStats, learn
from asgkit.learning.replay import ReplayBuffer
from asgkit.pool.folder import ImagePool
from asgkit.recipes.asg_records import UnderstandingRow, generation_record, update_fields
from asgkit.recipes.controls import Judge, control_rewards, own_answers
from asgkit.recipes.rewards import reward_answers, reward_questions
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.runs.checkpoint import resume_trainer, save_trainer
from asgkit.runs.directory import RunDirectory
from asgkit.runs.samples import write_samples
from asgkit.scale.team import Asked, Drawn, Shard, Team, cut_shards, every, mix_replay
from asgkit.stages.answer import (
    Rollout,
    Solved,
    answer_questions,
    greedy_difficulty,
    propose,
    taught_rollout,
)
from asgkit.stages.generation import generation_round
from asgkit.ste import RollingPercentile
from asgkit.updates import EMABaseline, grpo_loss, reinforce_loss, sft_loss

ASK, SOLVE, CAPTION, DIAGNOSE, DRAW, CONTROL, STYLE, REPLAY, NOISE = range(9)  # streams of derived seeds
STREAMS = {"style": STYLE, "caption": CAPTION, "diagnose": DIAGNOSE, "draw": DRAW}  # as `generation_round` names them


class Trainer:
    """Three roles, one frozen base, two loops that meet only in the Solver.

    The trainer sees a `Backbone`, unlabelled images and a run directory; it has no branch on the model and no
    access to labels. `judge` exists for the oracle control alone and is None in the method. Each process of `team`
    works on its own shards of a step; memories and weights are the same on all.
    """

    def __init__(self, config: Config, backbone: Backbone, pool: ImagePool, run: RunDirectory, *,
                 judge: Judge | None = None, scorer: Backbone | None = None, stop: StopSignal | None = None,
                 team: Team | None = None) -> None:
        self.config, self.backbone, self.pool, self.run, self.judge = config, backbone, pool, run, judge
        self.stop, self.team = stop or StopSignal(), team or Team()
        self.scorer = _scorer(config, backbone, scorer)
        rates = {role: getattr(config, role).learning_rate for role in ROLES}
        self.optimisers = {role: RoleOptimiser(backbone, role, rates[role], config) for role in ROLES}
        if config.generator.adapter != "generator":  # as released: the drawing loss moves the Solver's adapter
            self.optimisers["generator"] = RoleOptimiser(backbone, config.generator.adapter, rates["generator"], config)
        self.window = RollingPercentile(config.solver.ste_window)
        self.baseline = EMABaseline(config.solver.baseline_momentum)
        p = config.proposer
        self.target = TargetEntropy(p.target_entropy, momentum=p.target_momentum, adaptive=p.adaptive_target)
        self.replay = ReplayBuffer(config.replay.capacity, backbone.spec.image_side)
        self.guard = BadStepGuard(config.max_bad_steps)
        self.step = 0
        self.tokens = 0
        self.times: dict[str, float] = {}

    # -- one step ------------------------------------------------------------------------------------------------
    def phase(self, step: int) -> str:
        """U or G: `understanding` U steps, then `generation` G steps, counted from step 1 (two_stage: once)."""
        s = self.config.schedule
        cycle = s.understanding + s.generation
        if s.order == "two_stage":
            return "U" if step * cycle <= s.steps * s.understanding else "G"
        return "U" if (step - 1) % cycle < s.understanding else "G"

    def train_step(self) -> list[dict[str, Any]]:
        """Take step `self.step + 1`; returns its log records, of all ranks. A non-finite value skips its updates."""
        self.step += 1
        self.times = {}
        shards = self._draw_shards()
        take = self.understanding_step if self.phase(self.step) == "U" else self.generation_step
        try:
            records = take(shards)
        except NonFiniteValue as error:
            names = [item.name for shard in shards for item in shard.images]
            own = "" if self.team.first else f"rank_{self.team.rank}"  # two ranks must not write one file
            self.guard.skipped(self.step, str(error), {"images": names}, self.run.path / own)
            return []
        self.guard.ok()
        return records

    def understanding_step(self, shards: list[Shard]) -> list[dict[str, Any]]:
        """Ask and solve. Stages as in the paper: 2 ask, 3 solve and measure, 4 Proposer update, 5 Solver update."""
        asked = self.team.agree(lambda: [self._ask_and_solve(shard) for shard in shards])
        # memories move by the numbers of every rank's shards, so they stay the same on all
        seen = self.team.gather([a.signals(self.config.solver.ste_aggregation) for a in asked])
        window, baseline = len(self.window), self.baseline.value
        self.window.update_many(every(seen, "difficulties"))
        if entropies := every(seen, "entropies"):
            self.target.update(float(np.mean(entropies)))
        with self._clock("update"):
            stats = self._learn([(a.shard, {"proposer": self._proposer_batch(a), "solver": self._solver_batch(a)})
                                 for a in asked])
        if rewards := every(seen, "rewards"):
            self.baseline.update(float(np.mean(rewards)))
        self.tokens += sum(every(seen, "tokens"))
        shared = update_fields(stats) | {
            "solver/update": self.config.solver.update, "solver/window_size": window, "solver/baseline": baseline,
            "proposer/target_entropy": self.target.mu, "frac_reward_zero_std": float(np.mean(every(seen, "silent"))),
            "completions/mean_length": float(torch.tensor(every(seen, "lengths")).float().mean()),
            "num_tokens": self.tokens}
        return self._gather(row.record(self.step, item, shared, self.config.control)
                             for a in asked for row, item in zip(a.table, a.shard.images, strict=True))

    def generation_step(self, shards: list[Shard]) -> list[dict[str, Any]]:
        """Draw. Stages as in the paper: 1 caption, 2 diagnose, 3 draw, 4 score (all in `generation_round`, which the
        premise check takes too), 5 Generator update, 6 replay."""
        drawn = self.team.agree(lambda: [self._draw_and_score(shard) for shard in shards])
        with self._clock("update"):
            stats = self._learn([(d.shard, {"generator": self._generator_batch(d)}) for d in drawn])
        self.tokens += sum(self.team.gather([int(d.made.asked.mask.sum()) for d in drawn]))
        self._push(drawn)
        self._show(drawn[0])
        return self._gather(record for d in drawn for record in self._generation_records(d, update_fields(stats)))

    # -- understanding ---------------------------------------------------------------------------------------------
    def _ask_and_solve(self, shard: Shard) -> Asked:
        """Stages 2 and 3 for one shard, with the rewards of its questions and answers."""
        c, pictures = self.config, shard.pictures
        with self._stage("ask"):
            prefix = self.backbone.prefix(pictures, role="proposer")
            requests = [self.backbone.spec.prompts.ask] * len(pictures)
            prompts, rows, sampled, questions = propose(
                self.backbone, prefix, requests, c.proposer.candidates, temperature=c.proposer.temperature,
                top_p=c.proposer.top_p, max_new_tokens=c.proposer.max_new_tokens, seed=shard.number(ASK))
            k = c.proposer.candidates
            table = [UnderstandingRow(questions[i : i + k]) for i in range(0, len(questions), k)]
        with self._stage("solve"):
            solved, where = self._solve(shard, table)
        with self._stage("reward"):
            # copies: every shard is ranked against the memories as they were before the step
            reward_questions(table, c, deepcopy(self.window), deepcopy(self.target), shard.rng(CONTROL))
            judge = self.judge
            truth = [judge.answer(pictures[i], table[i].questions[k].text) for i, k in where] if judge else None
            reward_answers(table, where, c, self.baseline, truth, shard.rng(CONTROL, 1))
        return Asked(shard, table, Rollout(prompts, rows, sampled), solved, where)

    def _solve(self, shard: Shard, table: list[UnderstandingRow]) -> tuple[Solved | None, list[tuple[int, int]]]:
        """Votes under N framings and the greedy STE call, for every valid candidate of every image at once."""
        s = self.config.solver
        where = [(i, k) for i, row in enumerate(table) for k, q in enumerate(row.questions) if q.valid]
        if not where:
            return None, where
        texts, rows = [table[i].questions[k].text for i, k in where], [i for i, _ in where]
        prefix = self.backbone.prefix(shard.pictures, role="solver")
        solved = answer_questions(self.backbone, prefix, texts, rows, framings=s.framings, temperature=s.temperature,
                                  top_p=s.top_p, max_new_tokens=s.max_new_tokens, seed=shard.number(SOLVE),
                                  perturb=s.votes == "framings")
        self.stop.check()
        top, mean, greedy = greedy_difficulty(self.backbone, prefix, texts, rows, tokens=s.ste_tokens,
                                              max_new_tokens=s.max_new_tokens)
        for j, (i, k) in enumerate(where):
            table[i].votes[k] = solved.votes[j]
            table[i].raw[k] = solved.answers.texts[j * s.framings : (j + 1) * s.framings]
            table[i].ste[k], table[i].ste_mean[k], table[i].greedy[k] = top[j], mean[j], greedy[j]
        return solved, where

    def _proposer_batch(self, asked: Asked) -> TextBatch | None:
        """GRPO over the K candidates of each image: the reward of a question trains the text that asked it."""
        if not self.config.proposer.train:
            return None
        advantages = torch.tensor([a for row in asked.table for a in row.advantages])
        active = torch.tensor([not row.zero_variance for row in asked.table for _ in row.questions])

        def loss(policy: TextStats, batch: TextBatch, mask: Tensor) -> tuple[Tensor, float]:
            value, stats = grpo_loss(policy.logp, batch.rollout.answers.logp, batch.advantages.to(mask.device), mask,
                                     clip=self.config.proposer.clip)
            return value, stats["clip_fraction"]

        return TextBatch(asked.shard.pictures, asked.rollout, advantages, active, loss)

    def _solver_batch(self, asked: Asked) -> TextBatch | None:
        """REINFORCE (paper), group-relative or pseudo-label update on q* (or every valid candidate)."""
        s, table, where = self.config.solver, asked.table, asked.where
        taught = [j for j, (i, k) in enumerate(where) if k in table[i].solver_advantages]
        if not s.train or not taught:
            return None
        labels = None
        if s.update == "sft" and not own_answers(self.config.control):
            labels = [table[i].taught.get(k, table[i].votes[k].majority) for i, k in where]
        rollout = taught_rollout(asked.solved, taught, s.framings, labels)
        advantages = torch.tensor([a for j in taught for a in table[where[j][0]].solver_advantages[where[j][1]]])
        active = torch.ones_like(advantages, dtype=torch.bool)

        def loss(policy: TextStats, batch: TextBatch, mask: Tensor) -> tuple[Tensor, None]:
            if s.update == "sft":
                return sft_loss(policy.logp, mask, batch.active.to(mask.device)), None
            return reinforce_loss(policy.logp, batch.advantages.to(mask.device), mask), None

        return TextBatch(asked.shard.pictures, rollout, advantages, active, loss)

    # -- generation ------------------------------------------------------------------------------------------------
    def _draw_and_score(self, shard: Shard) -> Drawn:
        """Stages 1 to 4 for one shard, with the rewards of its drawings."""
        made = generation_round(self.backbone, shard.pictures, self.config, lambda use: shard.rng(STREAMS[use]),
                                scorer=self.scorer, stage=self._stage)
        judged = self.judge.drawings([card.prompt for card in made.cards], made.groups) if self.judge else []
        self.guard.check_finite("generator/rewards", made.scores.reward)
        oracle = torch.tensor(judged) if judged else None
        rewards = control_rewards(self.config.control, made.scores.reward, oracle, shard.rng(CONTROL))
        return Drawn(shard, made, judged, rewards)

    def _generator_batch(self, drawn: Drawn) -> DrawingBatch | None:
        """The native objective on the drawings that were scored, or (as released) on the real images."""
        g, made = self.config.generator, drawn.made
        if not g.train:
            return None
        source = g.target == "source_image"
        codes = self.backbone.encode_images(drawn.shard.pictures) if source else made.drawn.codes
        prompts = made.prompts[:: g.candidates]  # one per card
        return drawing_batch(prompts, codes, made.drawn.logp, drawn.rewards, drawn.passed, settings=g,
                             times=self.backbone.spec.times, control=self.config.control, rng=drawn.shard.rng(NOISE))

    def _push(self, drawn: list[Drawn]) -> None:
        """Stage 6: the best candidate of every card that passed the gate enters the replay buffer, on every rank."""
        if self.replay.capacity:
            for image in self.team.gather_images([image for d in drawn for image in d.best_drawings()]):
                self.replay.push(image)

    def _show(self, drawn: Drawn) -> None:
        """Drawings of the first generation step after each checkpoint go to `samples/`, for the eye alone."""
        every = self.config.checkpoint.every
        before = range((self.step - 1) // every * every + 1, self.step)
        if self.team.first and all(self.phase(step) == "U" for step in before):
            write_samples(self.run.path / "samples", self.step, drawn.shard.pictures, drawn.made.groups,
                          drawn.made.scores.reward.tolist())

    def _generation_records(self, drawn: Drawn, shared: dict[str, Any]) -> Iterator[dict[str, Any]]:
        advantages, active = logged_advantages(drawn.rewards, drawn.passed)
        width, made = self.config.generator.candidates, drawn.made
        for i, item in enumerate(drawn.shard.images):
            yield generation_record(
                self.step, item, made.cards[i], made.scores, i, advantages=advantages[i].tolist(),
                active=bool(active[i]), seeds=made.seeds[i * width : (i + 1) * width],
                pushed=made.cards[i].passed and self.replay.capacity > 0, control=self.config.control,
                judged=drawn.judged[i] if drawn.judged else [], shared=shared)

    # -- plumbing --------------------------------------------------------------------------------------------------
    def _learn(self, work: list[tuple[Shard, dict[Role, Batch | None]]]) -> dict[Role, UpdateStats]:
        """One update of every role in `work`; all gradients are finite before the first optimiser moves a weight."""
        stats = learn(self.backbone, self.optimisers, work, team=self.team, stop=self.stop,
                      micro_batch=self.config.schedule.micro_batch)
        for role, s in stats.items():
            self.optimisers[role].apply(s)
        return stats

    def _draw_shards(self) -> list[Shard]:
        """This rank's shards of the step; in U steps a share `replay.mix` of images are earlier best drawings."""
        s, mix = self.config.schedule, self.config.replay.mix
        shards = cut_shards(self.pool.next_batch(s.images * s.accumulate), s.images, seed=self.config.seed,
                            step=self.step, first=self.team.rank * s.accumulate)
        return [mix_replay(shard, self.replay, mix if self.phase(self.step) == "U" else 0.0, REPLAY)
                for shard in shards]

    def _gather(self, own: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records of all ranks, in shard order."""
        return self.team.gather([record | {"rank": self.team.rank} for record in own])

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """A clocked stage of one shard; a stop is noticed here, and agreed on before the next message."""
        self.stop.check()
        with self._clock(name):
            yield

    # -- state -----------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write a checkpoint of everything that decides the next step; rank 0 writes, the others wait."""
        if self.team.first:
            save_trainer(self)
        self.team.meet()

    def resume(self) -> bool:
        """Continue from the newest valid checkpoint of the run; False when there is none."""
        return resume_trainer(self)

    def fit(self, progress: Callable[[int, list[dict[str, Any]]], None] | None = None) -> None:
        """Run to `schedule.steps`, logging every step and saving every `checkpoint.every` steps and at the end."""
        total = self.config.schedule.steps
        began, first = time.perf_counter(), self.step
        while self.step < total:
            records = self.train_step()
            if self.team.first:
                for record in records:
                    self.run.append(record)
                self.run.append_timing(self.step, self.times)
            if self.step % self.config.checkpoint.every == 0 or self.step == total:
                self.save()
            eta = (time.perf_counter() - began) / (self.step - first) * (total - self.step)
            if self.team.first:
                self.run.write_status("running" if self.step < total else "finished", self.step, total, eta_s=eta)
            if progress and self.team.first:
                progress(self.step, records)


def _scorer(config: Config, backbone: Backbone, other: Backbone | None) -> tuple[Backbone, Role | None]:
    """Who answers and captions for the Generator's reward: the live Solver, the frozen base, or another model."""
    kind = config.generator.scorer
    if (kind in ("live", "frozen")) != (other is None):
        raise ValueError(f"generator.scorer={kind} and the scorer given do not go together: live and frozen need none")
    return (backbone, "solver") if kind == "live" else (other or backbone, None)
