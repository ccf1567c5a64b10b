"""A grid's seeds one at a time, until each of its comparisons is decided or a stated number of seeds is reached.

Every arm is compared with the arm that the grid names as its reference (seeds matched), the others with their base, in
answers and in drawings. The rule is `asgkit.stats.sequential`: one may look after every seed, and each comparison errs
in 5% of cases at most. Decisions depend on the measurements and on the stated maximum alone, so a batch that was
stopped goes on to the same end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from asgkit.config import measured_name
from asgkit.errors import Refused
from asgkit.grids.load import Grid, GridRun
from asgkit.report.measured import MAIN, Measurement, same_items
from asgkit.stats.effects import crossed
from asgkit.stats.sequential import Decision, Looks, decide

BASE = "base"
METRICS = tuple(f"{side}/{metric}" for side, metric in MAIN.items())
Arm = tuple[str, str]  # measured base, arm


@dataclass(frozen=True)
class Contrast:
    """An arm on one base against its reference arm or the base itself, by one metric, and when one may look."""

    base: str
    arm: str
    against: str
    metric: str
    looks: Looks


@dataclass(frozen=True)
class State:
    """A contrast with the seeds that both sides have, its decision (None before the first look), and what it lacks."""

    contrast: Contrast
    seeds: tuple[int, ...]
    decision: Decision | None
    lacks: str = ""

    @property
    def verdict(self) -> str:
        """gain, loss, no effect, or open."""
        return self.decision.verdict if self.decision else "open"


@dataclass
class Plan:
    """The runs of a grid so far, arm by arm, and its contrasts."""

    runs: dict[Arm, list[GridRun]]
    contrasts: list[Contrast]
    measured: Path

    @classmethod
    def of(cls, grid: Grid, measured: Path, most: int, margin: float) -> Plan:
        """The grid's own runs and contrasts; margin in points.

        Raises Refused where an arm has more seeds than `most`, and for a maximum or margin that no rule can use.
        """
        runs: dict[Arm, list[GridRun]] = {}
        for run in grid.runs():
            runs.setdefault((measured_name(run.backbone, run.base), run.arm), []).append(run)
        plan = cls(runs, [], measured)
        for base, arm in runs:
            against = grid.reference_of(arm) or BASE
            first = max(2, len(plan.common(base, arm, against, planned=True)))
            try:
                looks = Looks(first, most, margin / 100)
            except ValueError as error:
                raise Refused(f"arm {arm!r} on {base}: {error}; raise --max-seeds, or --margin") from error
            plan.contrasts += [Contrast(base, arm, against, metric, looks) for metric in METRICS]
        return plan

    def seeds(self, base: str, arm: str) -> set[int]:
        """Seeds of an arm of the grid, or of another grid's arm as they are measured."""
        if (base, arm) in self.runs:
            return {run.seed for run in self.runs[base, arm]}
        start = f"{base}-{arm}-s"
        done = (self.measured / "runs").glob(f"{start}*/metrics.json")
        found = (path.parent.name.removeprefix(start) for path in done)
        return {int(seed) for seed in found if seed.isdecimal()}

    def common(self, base: str, arm: str, against: str, planned: bool = False) -> list[int]:
        """Seeds that both sides have, in order; `planned`: a reference of another grid counts as having them all."""
        own = self.seeds(base, arm)
        if against == BASE or (planned and (base, against) not in self.runs):
            return sorted(own)
        return sorted(own & self.seeds(base, against))

    def state(self, contrast: Contrast) -> State:
        """The decision that the measured runs of both sides allow. Raises Untraceable as `Measurement.values`."""
        base, arm, against = contrast.base, contrast.arm, contrast.against
        seeds = self.common(base, arm, against)
        decision = None
        if len(seeds) >= contrast.looks.first:
            gains = self._gains(base, arm, seeds, contrast.metric)
            if against != BASE:
                gains = gains - self._gains(base, against, seeds, contrast.metric)
            decision = decide(lambda count: crossed(gains[:count]), len(seeds), contrast.looks)
        return State(contrast, tuple(seeds), decision, self._lacking(contrast, seeds))

    def _lacking(self, contrast: Contrast, seeds: Sequence[int]) -> str:
        """The seed that a reference of another grid would need next; empty where nothing is in the way."""
        base, against = contrast.base, contrast.against
        if against == BASE or (base, against) in self.runs or self._next(contrast, seeds) in self.seeds(base, against):
            return ""
        return f"{base}-{against} has no seed {self._next(contrast, seeds)}, and this grid does not train it"

    def _next(self, contrast: Contrast, seeds: Sequence[int]) -> int:
        """The next seed of a contrast: after those of both sides; where they share none, after the arm's own."""
        return max(seeds or self.seeds(contrast.base, contrast.arm)) + 1

    def _gains(self, base: str, arm: str, seeds: Sequence[int], metric: str) -> np.ndarray:
        """Gains over the base (S, Q) of an arm's runs, seeds in order."""
        before, rows = Measurement(base, self.measured / "base" / base), []
        for seed in seeds:
            name = f"{base}-{arm}-s{seed}"
            run = Measurement(name, self.measured / "runs" / name)
            same_items(before, run)
            rows.append(run.values(metric) - before.values(metric))
        return np.stack(rows)

    def more(self, states: Sequence[State]) -> list[GridRun]:
        """The runs that the open contrasts need for their next look; they are part of the plan from now on."""
        added: list[GridRun] = []
        for state in states:
            held = state.contrast
            if state.verdict != "open" or state.lacks or len(state.seeds) >= held.looks.last:
                continue
            seed = self._next(held, state.seeds)
            for key in ((held.base, held.arm), (held.base, held.against)):
                if key in self.runs and seed not in self.seeds(*key):
                    added.append(replace(self.runs[key][0], seed=seed))
                    self.runs[key].append(added[-1])
        return added


def until_decided(plan: Plan, go: Callable[[list[GridRun]], bool], say: Callable[[str], None] = print
                  ) -> list[State] | None:
    """Run the grid's own runs, then a seed at a time for what is open; the last states, or None where a run failed.

    `go` makes and measures runs (those that are done already cost nothing) and says whether all are there. Raises
    Untraceable where a score does not follow from its items.
    """
    todo = [run for runs in plan.runs.values() for run in runs]
    todo.sort(key=lambda run: run.seed)  # whole seeds of all arms first, as `Grid.runs`
    while todo:
        if not go(todo):
            return None
        states = [plan.state(contrast) for contrast in plan.contrasts]
        todo = plan.more(states)
        still = sum(state.verdict == "open" for state in states)
        more = f"; {len(todo)} more runs" if todo else ""
        say(f"{len(states) - still} of {len(states)} comparisons decided{more}")
    return states


def as_json(states: Sequence[State], most: int, margin: float) -> dict[str, Any]:
    """Decisions as plain values, in points; each interval is that of its last look and may be reported as it is."""
    return {"max_seeds": most, "margin": margin, "contrasts": [_row(state) for state in states]}


def _row(state: State) -> dict[str, Any]:
    held, made = state.contrast, state.decision
    points = lambda value: round(100 * value, 4) + 0.0
    numbers = {"seeds": made.seeds, "delta": points(made.estimate.delta), "low": points(made.low),
               "high": points(made.high), "level": round(made.level, 6)} if made else {}
    return {"base": held.base, "arm": held.arm, "against": held.against, "metric": held.metric,
            "verdict": state.verdict, "measured_seeds": len(state.seeds), "first_look": held.looks.first, **numbers,
            "lacks": state.lacks}
