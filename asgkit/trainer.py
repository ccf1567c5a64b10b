"""One loop for every recipe: shards, one optimiser step per learner, log, checkpoint, resume. It knows no method.

    1 draw the step's shards from the pool        4 move every learner's weights once
    2 recipe.sample each shard (no gradient)      5 recipe.remember what every process saw
    3 recipe.batches: gradients, all finite       6 recipe.records -> the log
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from asgkit.backbones.base import Backbone
from asgkit.config import Config
from asgkit.errors import NonFiniteValue, StopSignal
from asgkit.learning.optimiser import RoleOptimiser, UpdateStats, learn
from asgkit.learning.policy import refuse_unfit
from asgkit.pool.base import Pool
from asgkit.recipes import make_recipe
from asgkit.recipes.base import Record, Scorer, Tools, Work
from asgkit.recipes.controls import Judge
from asgkit.runs.bad_steps import BadStepGuard
from asgkit.runs.checkpoint import Parts, load_parts, save_parts
from asgkit.runs.clock import Clock
from asgkit.runs.directory import RunDirectory
from asgkit.runs.samples import write_samples
from asgkit.scale.shards import Shard, cut_shards
from asgkit.scale.team import Team

Progress = Callable[[int, list[dict[str, Any]]], None]


class Trainer:
    """A recipe on a backbone, unlabelled data and a run directory.

    It has no branch on the model or the method and no access to labels. `judge` exists for the oracle control alone
    and is None in the method. Each process of `team` works on its own shards of a step; memories and weights are the
    same on all. Raises PoolError when the pool yields what the recipe cannot start from.
    """

    def __init__(self, config: Config, backbone: Backbone, pool: Pool, run: RunDirectory, *,
                 judge: Judge | None = None, scorer: Backbone | None = None,
                 measure: Backbone | None = None, stop: StopSignal | None = None,
                 team: Team | None = None) -> None:
        self.config, self.backbone, self.pool, self.run = config, backbone, pool, run
        self.stop, self.team = stop or StopSignal(), team or Team()
        self.clock = Clock(self.stop)
        refuse_unfit(config, backbone.spec)
        self.recipe = make_recipe(Tools(config, backbone, _scorer(config, backbone, scorer), self.clock, self.stop,
                                        judge, measure=measure))
        pool.expect(self.recipe.needs, self.recipe.name)
        self.optimisers = {name: RoleOptimiser(backbone, learner.adapter, learner.learning_rate, config)
                           for name, learner in self.recipe.learners.items()}
        self.guard = BadStepGuard(config.max_bad_steps)
        self.step = 0

    @property
    def times(self) -> dict[str, float]:
        """Seconds of each stage of the last step."""
        return self.clock.seconds

    # -- one step ------------------------------------------------------------------------------------------------
    def train_step(self) -> list[Record]:
        """Take step `self.step + 1`; returns its log records, of all ranks. A non-finite value skips the step: no
        weight and no memory moves."""
        self.step += 1
        self.clock.restart()
        shards, phase = self.draw_shards(), self.recipe.phase(self.step)
        try:
            works = self.team.agree(lambda: [self.recipe.sample(shard, phase) for shard in shards])
            with self.clock.time("update"):
                stats = self.learn(works)
        except NonFiniteValue as error:
            names = [item.name for shard in shards for item in shard.items]
            own = "" if self.team.first else f"rank_{self.team.rank}"  # two ranks must not write one file
            self.guard.skipped(self.step, str(error), {"images": names}, self.run.path / own)
            return []
        self.guard.ok()
        self.recipe.remember(self.team.gather([work.signals() for work in works]))
        self.show(works[0])
        return self.team.gather([record | {"rank": self.team.rank} for work in works
                                 for record in self.recipe.records(self.step, work, stats)])

    def draw_shards(self) -> list[Shard]:
        """This rank's shards of the step."""
        s = self.config.schedule
        return cut_shards(self.pool.next_batch(s.images * s.accumulate), s.images, seed=self.config.seed,
                          step=self.step, first=self.team.rank * s.accumulate)

    def learn(self, works: list[Work]) -> dict[str, UpdateStats]:
        """One update of every learner; all gradients are finite before the first optimiser moves a weight."""
        stats = learn(self.backbone, self.optimisers, [(work.shard, self.recipe.batches(work)) for work in works],
                      team=self.team, stop=self.stop, micro_batch=self.config.schedule.micro_batch)
        for name, s in stats.items():
            self.optimisers[name].apply(s)
        return stats

    def show(self, work: Work) -> None:
        """Drawings of the first drawing step after each checkpoint go to `samples/`, for the eye alone."""
        sheet, every = work.sheet(), self.config.checkpoint.every
        before = range((self.step - 1) // every * every + 1, self.step)
        if sheet and self.team.first and not any(self.recipe.phase(s) in self.recipe.drawing for s in before):
            write_samples(self.run.path / "samples", self.step, *sheet)

    # -- a run ---------------------------------------------------------------------------------------------------
    def fit(self, progress: Progress | None = None) -> None:
        """Run to `schedule.steps`, logging every step and saving every `checkpoint.every` steps and at the end."""
        total = self.config.schedule.steps
        began, first = time.perf_counter(), self.step
        while self.step < total:
            records = self.train_step()
            if self.team.first:
                for record in records:
                    self.run.append(record, self.recipe.fields)
                self.run.append_timing(self.step, self.times)
            if self.step % self.config.checkpoint.every == 0 or self.step == total:
                self.save()
            eta = (time.perf_counter() - began) / (self.step - first) * (total - self.step)
            if self.team.first:
                self.run.write_status("running" if self.step < total else "finished", self.step, total, eta_s=eta)
            if progress and self.team.first:
                progress(self.step, records)

    def parts(self) -> Parts:
        """Everything that decides the next step."""
        memories = {**self.recipe.memories, "guard": self.guard, "pool": self.pool}
        lost = ("proposer", "generator") if self.config.checkpoint.adapters == "lost" else ()
        return Parts(self.backbone, self.optimisers, memories, self.team.size * self.config.schedule.accumulate, lost)

    def save(self) -> None:
        """Write a checkpoint; rank 0 writes, the others wait."""
        if self.team.first:
            save_parts(self.run, self.step, self.parts())
        self.team.meet()

    def resume(self) -> bool:
        """Continue from the newest valid checkpoint of the run; False when there is none.

        Every rank loads it, rank 0 rewinds the log to it. Raises ConfigChanged when the step had another number of
        shards.
        """
        found = self.run.newest_valid_checkpoint()
        if found:
            load_parts(self.run, found, self.parts())
            self.step = found.step
        self.team.meet()  # nobody may still be reading what the first rank now drops
        if self.team.first:
            self.run.rewind(self.step)
        self.team.meet()
        return found is not None


def _scorer(config: Config, backbone: Backbone, other: Backbone | None) -> Scorer:
    """Who answers and captions for the Generator's reward: the live Solver, the frozen base, or another model."""
    kind = config.generator.scorer
    if (kind in ("live", "frozen")) != (other is None):
        raise ValueError(f"generator.scorer={kind} and the scorer given do not go together: live and frozen need none")
    return (backbone, "solver") if kind == "live" else (other or backbone, None)
