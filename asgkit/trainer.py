"""The loop of Ask, Solve, Generate: understanding and generation steps in the order of the paper's Algorithm 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgkit.ask import TargetEntropy
from asgkit.backbones.base import ROLES, Answers, Backbone, Drawings, Role
from asgkit.checkpoint import resume_trainer, save_trainer
from asgkit.config import Config
from asgkit.faults import BadStepGuard, NonFiniteValue, StopSignal
from asgkit.objectives import (
    choose_examples,
    logged_advantages,
    native_objective,
    source_examples,
    weigh_candidates,
)
from asgkit.optim import RoleOptimiser, UpdateStats
from asgkit.pool import ImagePool, PoolImage
from asgkit.recipes.controls import Judge, control_rewards, own_answers
from asgkit.records import UnderstandingRow, generation_record, update_fields
from asgkit.replay import ReplayBuffer
from asgkit.rewards import reward_answers, reward_questions
from asgkit.rollout import (
    Rollout,
    Solved,
    answer_questions,
    caption,
    greedy_difficulty,
    propose,
    taught_rollout,
)
from asgkit.runs import RunDirectory
from asgkit.score import Card, Scores, make_cards, score_candidates
from asgkit.ste import RollingPercentile
from asgkit.updates import (
    EMABaseline,
    grpo_loss,
    masked_mean,
    reinforce_loss,
    sft_loss,
    token_kl,
)

ASK, SOLVE, CAPTION, DIAGNOSE, DRAW, CONTROL, STYLE, REPLAY, NOISE = range(9)  # streams of derived seeds


class Trainer:
    """Three roles, one frozen base, two loops that meet only in the Solver.

    The trainer sees a `Backbone`, unlabelled images and a run directory; it has no branch on the model and no
    access to labels. `judge` exists for the oracle control alone and is None in the method.
    """

    def __init__(self, config: Config, backbone: Backbone, pool: ImagePool, run: RunDirectory, *,
                 judge: Judge | None = None, scorer: Backbone | None = None, stop: StopSignal | None = None) -> None:
        self.config, self.backbone, self.pool, self.run, self.judge = config, backbone, pool, run, judge
        self.stop = stop or StopSignal()
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
        """Take step `self.step + 1`; returns its log records. A non-finite value skips the step's updates."""
        self.step += 1
        self.times = {}
        torch.manual_seed(self._seed(len(ROLES) + 100))  # LoRA dropout, the only use of the global stream
        images = self._draw_images()
        try:
            records = self.understanding_step(images) if self.phase(self.step) == "U" else self.generation_step(images)
        except NonFiniteValue as error:
            names = [item.name for item in images]
            self.guard.skipped(self.step, str(error), {"images": names}, self.run.path)
            return []
        self.guard.ok()
        return records

    def understanding_step(self, images: list[PoolImage]) -> list[dict[str, Any]]:
        """Ask and solve. Stages as in the paper: 2 ask, 3 solve and measure, 4 Proposer update, 5 Solver update."""
        c = self.config
        pictures = [item.image for item in images]
        with self._stage("ask"):
            prefix = self.backbone.prefix(pictures, role="proposer")
            requests = [self.backbone.spec.prompts.ask] * len(images)
            prompts, rows, sampled, questions = propose(
                self.backbone, prefix, requests, c.proposer.candidates, temperature=c.proposer.temperature,
                top_p=c.proposer.top_p, max_new_tokens=c.proposer.max_new_tokens, seed=self._seed(ASK))
            k = c.proposer.candidates
            table = [UnderstandingRow(questions[i : i + k]) for i in range(0, len(questions), k)]
        with self._stage("solve"):
            solved, where = self._solve(pictures, table)
        with self._stage("reward"):
            window = len(self.window)
            reward_questions(table, c, self.window, self.target, self._rng(CONTROL))
        with self._stage("update"):
            stats = {"proposer": self._proposer_gradient(pictures, Rollout(prompts, rows, sampled), table),
                     "solver": self._solver_gradient(pictures, table, solved, where)}
            baseline = self.baseline.value
            self._apply(stats)
            self._update_baseline(table)
        self.tokens += int(sampled.mask.sum()) + (int(solved.answers.mask.sum()) if solved else 0)
        return self._understanding_records(images, table, stats, window, baseline, sampled)

    def generation_step(self, images: list[PoolImage]) -> list[dict[str, Any]]:
        """Draw. Stages as in the paper: 1 caption, 2 diagnose, 3 draw, 4 score, 5 Generator update, 6 replay."""
        c, prompts = self.config, self.backbone.spec.prompts
        pictures = [item.image for item in images]
        with self._stage("caption"):
            rng = self._rng(STYLE)
            requests = [prompts.captions[i] for i in rng.integers(len(prompts.captions), size=len(images))]
            seen = self.backbone.prefix(pictures, role=c.generator.prompt)
            captions = caption(self.backbone, seen, requests,
                               temperature=c.generator.caption_temperature,
                               max_new_tokens=self.backbone.spec.max_new_tokens, seed=self._seed(CAPTION))
        with self._stage("diagnose"):
            asks = [prompts.diagnose.format(caption=t) for t in captions]
            prefix = self.backbone.prefix(pictures, role="proposer")
            _, _, asked, questions = propose(
                self.backbone, prefix, asks, c.generator.questions, temperature=c.proposer.temperature,
                top_p=c.proposer.top_p, max_new_tokens=c.proposer.max_new_tokens, seed=self._seed(DIAGNOSE))
            scorer, role = self.scorer
            answering = role if c.generator.references == "solver" else "proposer"
            known = {"proposer": prefix, c.generator.prompt: seen} if scorer is self.backbone else {}
            cards = make_cards(scorer, pictures, captions, requests, questions, c.generator, c.solver, role=answering,
                               prefix=known.get(answering))
        with self._stage("draw"):
            drawn, seeds = self._draw_candidates(cards)
        with self._stage("score"):
            width = c.generator.candidates
            groups = [drawn.images[i : i + width] for i in range(0, len(drawn.images), width)]
            scores = score_candidates(scorer, cards, groups, c.generator, c.solver, role=role)
            judged = self.judge.drawings([card.prompt for card in cards], groups) if self.judge else []
        with self._stage("update"):
            rewards, passed = self._generator_rewards(cards, scores, judged)
            stats = {"generator": self._generator_gradient(pictures, cards, drawn, rewards, passed)}
            self._apply(stats)
        self.tokens += int(asked.mask.sum())
        pushed = self._push(cards, scores, groups)
        advantages, active = logged_advantages(rewards, passed)
        shared = update_fields(stats)
        return [generation_record(self.step, item, cards[i], scores, i, advantages=advantages[i].tolist(),
                                  active=bool(active[i]), seeds=seeds[i * width : (i + 1) * width],
                                  pushed=pushed[i], control=c.control, judged=judged[i] if judged else [],
                                  shared=shared) for i, item in enumerate(images)]

    # -- understanding ---------------------------------------------------------------------------------------------
    def _solve(self, pictures: list, table: list[UnderstandingRow]) -> tuple[Solved | None, list[tuple[int, int]]]:
        """Votes under N framings and the greedy STE call, for every valid candidate of every image at once."""
        s = self.config.solver
        where = [(i, k) for i, row in enumerate(table) for k, q in enumerate(row.questions) if q.valid]
        if not where:
            return None, where
        texts, rows = [table[i].questions[k].text for i, k in where], [i for i, _ in where]
        prefix = self.backbone.prefix(pictures, role="solver")
        solved = answer_questions(self.backbone, prefix, texts, rows, framings=s.framings, temperature=s.temperature,
                                  top_p=s.top_p, max_new_tokens=s.max_new_tokens, seed=self._seed(SOLVE),
                                  perturb=s.votes == "framings")
        self.stop.check()
        top, mean, greedy = greedy_difficulty(self.backbone, prefix, texts, rows, tokens=s.ste_tokens,
                                              max_new_tokens=s.max_new_tokens)
        for j, (i, k) in enumerate(where):
            table[i].votes[k] = solved.votes[j]
            table[i].raw[k] = solved.answers.texts[j * s.framings : (j + 1) * s.framings]
            table[i].ste[k], table[i].ste_mean[k], table[i].greedy[k] = top[j], mean[j], greedy[j]
        return solved, where

    def _proposer_gradient(self, pictures: list, asked: Rollout, table: list[UnderstandingRow]) -> UpdateStats:
        """GRPO over the K candidates of each image: the reward of a question trains the text that asked it."""
        optimiser, p = self.optimisers["proposer"], self.config.proposer
        advantages = torch.tensor([a for row in table for a in row.advantages])
        active = torch.tensor([not row.zero_variance for row in table for _ in row.questions])
        if not p.train or not active.any():
            return optimiser.skipped()
        policy, kl = self._policy(pictures, asked, "proposer")
        mask = policy.mask & active[:, None].to(policy.mask.device)
        loss, stats = grpo_loss(policy.logp, asked.answers.logp, advantages.to(mask.device), mask, clip=p.clip)
        entropy = masked_mean(policy.entropy.detach(), policy.mask).item()
        return optimiser.backward(loss, kl, entropy=entropy, clip_fraction=stats["clip_fraction"])

    def _solver_gradient(self, pictures: list, table: list[UnderstandingRow], solved: Solved | None,
                         where: list[tuple[int, int]]) -> UpdateStats:
        """REINFORCE (paper), group-relative or pseudo-label update on q* (or every valid candidate)."""
        optimiser, s = self.optimisers["solver"], self.config.solver
        truth = [self.judge.answer(pictures[i], table[i].questions[k].text) for i, k in where] if self.judge else None
        reward_answers(table, where, self.config, self.baseline, truth, self._rng(CONTROL, 1))
        taught = [j for j, (i, k) in enumerate(where) if k in table[i].solver_advantages]
        if not s.train or not taught:
            return optimiser.skipped()
        labels = None
        if s.update == "sft" and not own_answers(self.config.control):
            labels = [table[i].taught.get(k, table[i].votes[k].majority) for i, k in where]
        rollout = taught_rollout(solved, taught, s.framings, labels)
        advantages = torch.tensor([a for j in taught for a in table[where[j][0]].solver_advantages[where[j][1]]])
        policy, kl = self._policy(pictures, rollout, "solver")
        advantages = advantages.to(policy.logp.device)
        if s.update == "sft":
            loss = sft_loss(policy.logp, policy.mask, torch.ones_like(advantages, dtype=torch.bool))
        else:
            loss = reinforce_loss(policy.logp, advantages, policy.mask)
        return optimiser.backward(loss, kl, entropy=masked_mean(policy.entropy.detach(), policy.mask).item())

    def _policy(self, pictures: list, rollout: Rollout, role: str):
        """Teacher-forced statistics under the role, with gradient, and the exact per-token KL to the frozen base."""
        self.stop.check()
        arguments = (pictures, rollout.prompts, rollout.answers)
        reference = self.backbone.text_stats(*arguments, rows=rollout.rows, role=None, keep_logits=True)
        policy = self.backbone.text_stats(*arguments, rows=rollout.rows, role=role, grad=True, keep_logits=True)
        return policy, token_kl(policy.logits, reference.logits, policy.mask)

    def _update_baseline(self, table: list[UnderstandingRow]) -> None:
        used = [r for row in table for k in row.solver_advantages for r in row.solver_rewards[k]]
        if used:
            self.baseline.update(float(np.mean(used)))

    def _understanding_records(self, images: list[PoolImage], table: list[UnderstandingRow],
                               stats: dict[str, UpdateStats], window: int, baseline: float | None,
                               sampled: Answers) -> list[dict[str, Any]]:
        silent = [row.zero_variance for row in table]
        shared = update_fields(stats) | {
            "solver/update": self.config.solver.update, "solver/window_size": window, "solver/baseline": baseline,
            "proposer/target_entropy": self.target.mu, "frac_reward_zero_std": float(np.mean(silent)),
            "completions/mean_length": float(sampled.mask.sum(1).float().mean()), "num_tokens": self.tokens,
        }
        return [row.record(self.step, item, shared, self.config.control)
                for row, item in zip(table, images, strict=True)]

    # -- generation ------------------------------------------------------------------------------------------------
    def _draw_candidates(self, cards: list[Card]) -> tuple[Drawings, list[int]]:
        """L candidates of every prompt, each from its own logged seed."""
        g = self.config.generator
        rng = self._rng(DRAW)
        seeds = rng.integers(2**31, size=len(cards) * g.candidates).tolist()
        prompts = [self._draw_prompt(card) for card in cards for _ in range(g.candidates)]
        drawn = self.backbone.generate_images(prompts, seeds=seeds, role="generator", guidance=g.guidance,
                                              temperature=g.temperature)
        return drawn, seeds

    def _draw_prompt(self, card: Card) -> str:
        return self.backbone.spec.prompts.draw.format(caption=card.prompt)

    def _generator_rewards(self, cards: list[Card], scores: Scores, judged: list[list[float]]
                           ) -> tuple[Tensor, Tensor]:
        """What the Generator is trained on: R_g (B, L), or a control in its place, and which cards (B,) may speak."""
        self.guard.check_finite("generator/rewards", scores.reward)
        oracle = torch.tensor(judged) if judged else None
        rewards = control_rewards(self.config.control, scores.reward, oracle, self._rng(CONTROL))
        return rewards, torch.tensor([card.passed for card in cards])

    def _generator_gradient(self, pictures: list, cards: list[Card], drawn: Drawings, rewards: Tensor,
                            passed: Tensor) -> UpdateStats:
        """The native objective on the drawings that were scored, or (as released) on the real images."""
        optimiser, g = self.optimisers["generator"], self.config.generator
        prompts = [self._draw_prompt(card) for card in cards]
        if g.target == "source_image":
            examples = source_examples(prompts, self.backbone.encode_images(pictures), rewards, passed)
        else:
            weights = weigh_candidates(rewards, passed, drawn.logp is not None, g, self.config.control)
            repeated = [prompt for prompt in prompts for _ in range(g.candidates)]
            examples = choose_examples(repeated, drawn.codes, drawn.logp, weights)
        if not g.train or not examples.prompts:
            return optimiser.skipped()
        self.stop.check()
        objective = native_objective(self.backbone, examples, g, g.adapter, self._rng(NOISE))
        return optimiser.backward(objective.loss, objective.kl, entropy=objective.entropy,
                                  clip_fraction=objective.clip_fraction)

    def _push(self, cards: list[Card], scores: Scores, groups: list[list]) -> list[bool]:
        """Stage 6: the best candidate of every card that passed the gate enters the replay buffer."""
        best = scores.reward.argmax(1).tolist()
        return [card.passed and self.replay.push(groups[i][best[i]]) for i, card in enumerate(cards)]

    # -- plumbing --------------------------------------------------------------------------------------------------
    def _apply(self, stats: dict[str, UpdateStats]) -> None:
        """All gradients of a step are finite before the first optimiser moves a weight."""
        for role, s in stats.items():
            self.optimisers[role].apply(s)

    def _draw_images(self) -> list[PoolImage]:
        """Real images, and in U steps a share `replay.mix` of them replaced by earlier best drawings."""
        images = self.pool.next_batch(self.config.schedule.images)
        if self.phase(self.step) == "G" or self.config.replay.mix == 0 or len(self.replay) == 0:
            return images
        rng = self._rng(REPLAY)
        swap = rng.random(len(images)) < self.config.replay.mix
        return [PoolImage(f"replay/{item.name}", item.index, self.replay.draw(rng)) if s else item
                for item, s in zip(images, swap, strict=True)]

    def _rng(self, *stream: int) -> np.random.Generator:
        """A generator of its own for each step and use: no stream to save, none to replay after a resume."""
        return np.random.default_rng([self.config.seed, self.step, *stream])

    def _seed(self, stream: int) -> int:
        """One seed of a stream, for what takes a seed and no generator."""
        return int(self._rng(stream).integers(2**31))

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.stop.check()
        began = time.perf_counter()
        yield
        self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - began

    # -- state -----------------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write a checkpoint of everything that decides the next step."""
        save_trainer(self)

    def resume(self) -> bool:
        """Continue from the newest valid checkpoint of the run; False when there is none."""
        return resume_trainer(self)

    def fit(self, progress: Callable[[int, list[dict[str, Any]]], None] | None = None) -> None:
        """Run to `schedule.steps`, logging every step and saving every `checkpoint.every` steps and at the end."""
        total = self.config.schedule.steps
        began, first = time.perf_counter(), self.step
        while self.step < total:
            records = self.train_step()
            for record in records:
                self.run.append(record)
            self.run.append_timing(self.step, self.times)
            if self.step % self.config.checkpoint.every == 0 or self.step == total:
                self.save()
            eta = (time.perf_counter() - began) / (self.step - first) * (total - self.step)
            self.run.write_status("running" if self.step < total else "finished", self.step, total, eta_s=eta)
            if progress:
                progress(self.step, records)


def _scorer(config: Config, backbone: Backbone, other: Backbone | None) -> tuple[Backbone, Role | None]:
    """Who answers and captions for the Generator's reward: the live Solver, the frozen base, or another model."""
    kind = config.generator.scorer
    if (kind in ("live", "frozen")) != (other is None):
        raise ValueError(f"generator.scorer={kind} and the scorer given do not go together: live and frozen need none")
    return (backbone, "solver") if kind == "live" else (other or backbone, None)
