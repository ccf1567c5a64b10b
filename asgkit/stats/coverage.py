"""How often the intervals hold the truth, and how often sequential seeds err: simulated, kept in results/bench.

`python -m asgkit.stats.coverage results/bench/coverage.json` makes the file again (one process, some minutes). Scores
are right or wrong, the base is measured once, items are hard or easy alike for base and runs, and seeds differ by
`ratio` times the standard error that the items of one run leave.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from asgkit.stats.effects import Estimate, crossed, crossed_between, own_items
from asgkit.stats.intervals import Interval, difference_between_arms, paired_bootstrap
from asgkit.stats.sequential import Looks, decide

SEEDS, RATIOS = (2, 3, 5, 10), (0.0, 0.3, 1.0, 3.0)
LOOKS = (3, 10)  # first and last number of seeds of the sequential rule
TRIALS, BOOTSTRAP_TRIALS, SEQUENTIAL_TRIALS = 4000, 400, 2000
Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class World:
    """A benchmark of yes-or-no items: their number, the expected scores, and how much of an answer is the item's.

    Two measurements of one item have latent correlation `shared`; `other` is the score of a second arm.
    """

    items: int
    base: float
    evolved: float
    other: float
    shared: float

    @cached_property
    def item_error(self) -> float:
        """Standard error that the items alone give to the gain of one run."""
        ends = ndtri([self.base, self.evolved])
        both = multivariate_normal.cdf(ends, cov=[[1, self.shared], [self.shared, 1]])
        gain = self.evolved - self.base
        return math.sqrt((self.base + self.evolved - 2 * both - gain**2) / self.items)

    def difficulty(self, rng: np.random.Generator) -> np.ndarray:
        """Latent difficulty of the items (Q,)."""
        return rng.standard_normal(self.items, dtype=np.float32)

    def measure(self, rng: np.random.Generator, difficulty: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Right or wrong (S, Q) of runs whose expected scores are `scores` (S,)."""
        latent = rng.standard_normal((len(scores), self.items), dtype=np.float32)
        latent *= math.sqrt(1 - self.shared)
        latent += math.sqrt(self.shared) * difficulty
        return (latent < ndtri(scores)[:, None]).astype(np.float64)

    def runs(self, rng: np.random.Generator, difficulty: np.ndarray, score: float, seeds: int, ratio: float
             ) -> np.ndarray:
        """Runs (S, Q) of one arm: each seed shifts the expected score by `ratio` item errors of its own."""
        levels = score + ratio * self.item_error * rng.standard_normal(seeds)
        return self.measure(rng, difficulty, np.minimum(np.maximum(levels, 0.001), 0.999))


WORLDS = {"questions": World(400, 0.60, 0.65, 0.62, 0.9), "drawings": World(200, 0.50, 0.57, 0.52, 0.6)}


# -- one data set of each design: what was measured -------------------------------------------------------------------
def one_arm(world: World, rng: np.random.Generator, seeds: int, ratio: float) -> Pair:
    """One measurement of the base (Q,) and S runs (S, Q) on its items."""
    hard = world.difficulty(rng)
    return (world.measure(rng, hard, np.array([world.base]))[0], world.runs(rng, hard, world.evolved, seeds, ratio))


def two_arms(world: World, rng: np.random.Generator, seeds: int, ratio: float) -> Pair:
    """S runs (S, Q) of each of two arms, on the same items, seeds not matched."""
    hard = world.difficulty(rng)
    return (world.runs(rng, hard, world.evolved, seeds, ratio), world.runs(rng, hard, world.other, seeds, ratio))


def own(world: World, rng: np.random.Generator, seeds: int, ratio: float) -> Pair:
    """Base and run of each seed on items of its own, (S, Q) each."""
    made = [one_arm(world, rng, 1, ratio) for _ in range(seeds)]
    return np.stack([base for base, _ in made]), np.concatenate([runs for _, runs in made])


@dataclass(frozen=True)
class Design:
    """How data are drawn, the estimate and (where there is one) the bootstrap of them, and the true difference."""

    draw: Callable[[World, np.random.Generator, int, float], Pair]
    estimate: Callable[[np.ndarray, np.ndarray], Estimate]
    truth: Callable[[World], float]
    bootstrap: Callable[..., Interval] | None = None


DESIGNS = {
    "one arm": Design(one_arm, lambda base, runs: crossed(runs - base), lambda w: w.evolved - w.base, paired_bootstrap),
    "two arms": Design(two_arms, crossed_between, lambda w: w.evolved - w.other, difference_between_arms),
    "own items": Design(own, lambda base, runs: own_items(list(runs - base)), lambda w: w.evolved - w.base),
}


def coverage_of(design: str, world: World, seeds: int, ratio: float, *, trials: int, level: float = 0.95,
                bootstrap: bool = False) -> dict[str, float]:
    """Share of simulated intervals that hold the true difference, and their mean half-width in points.

    The random numbers follow from the cell alone. Raises ValueError where the design has no bootstrap.
    """
    made, hits, widths = DESIGNS[design], 0, 0.0
    if bootstrap and made.bootstrap is None:
        raise ValueError(f"the design {design!r} has no bootstrap")
    rng = np.random.default_rng([list(DESIGNS).index(design), world.items, seeds, int(10 * ratio)])
    truth = made.truth(world)
    for _ in range(trials):
        data = made.draw(world, rng, seeds, ratio)
        found = (made.bootstrap(*data, resamples=500, level=level) if bootstrap and made.bootstrap
                 else made.estimate(*data).interval(level))
        hits += found.low <= truth <= found.high
        widths += found.high - found.low
    return {"coverage": round(hits / trials, 4), "half_width": round(50 * widths / trials, 2)}


def errors_of(world: World, ratio: float, shift: float, *, trials: int, looks: tuple[int, int] = LOOKS
              ) -> dict[str, float]:
    """Shares of each verdict of sequential seeds when the true gain is `shift` margins; margin: 3 item errors.

    `peeking`: share in which a 95% interval left 0 out at some look, which is what the rule is there to prevent.
    """
    margin = 3 * world.item_error
    world = replace(world, evolved=world.base + shift * margin)
    rule, rng = Looks(*looks, margin), np.random.default_rng([world.items, int(10 * ratio), int(10 * shift)])
    counts, seeds = dict.fromkeys(("gain", "loss", "no effect", "open", "peeking"), 0), 0
    for _ in range(trials):
        base, runs = one_arm(world, rng, rule.last, ratio)
        estimates = {n: crossed(runs[:n] - base) for n in range(rule.first, rule.last + 1)}
        found = decide(estimates.__getitem__, rule.last, rule)
        counts[found.verdict] += 1
        counts["peeking"] += any(not held.low <= 0 <= held.high for held in map(Estimate.interval, estimates.values()))
        seeds += found.seeds
    return {name: round(count / trials, 4) for name, count in counts.items()} | {"seeds": round(seeds / trials, 2)}


def measure(trials: int = TRIALS, bootstrap: int = BOOTSTRAP_TRIALS, sequential: int = SEQUENTIAL_TRIALS
            ) -> dict[str, Any]:
    """All cells as plain values: the content of results/bench/coverage.json."""
    questions = WORLDS["questions"]
    tested = [{"true_gain_in_margins": shift, "ratio": ratio, **errors_of(questions, ratio, shift, trials=sequential)}
              for shift, ratio in product((0.0, 0.5, 1.0, 2.0), RATIOS)]
    return {"made_by": "python -m asgkit.stats.coverage results/bench/coverage.json", "level": 0.95,
            "ratio": "standard deviation between seeds over the standard error of the items of one run",
            "worlds": {name: {"items": w.items, "item_error_in_points": round(100 * w.item_error, 2)}
                       for name, w in WORLDS.items()},
            "trials": trials, "cells": list(_cells(trials, False)),
            "bootstrap_trials": bootstrap, "bootstrap": list(_cells(bootstrap, True)),
            "sequential_trials": sequential, "sequential_looks": list(LOOKS), "sequential": tested}


def _cells(trials: int, bootstrap: bool) -> Iterator[dict[str, Any]]:
    for design, (name, world), seeds, ratio in product(DESIGNS, WORLDS.items(), SEEDS, RATIOS):
        if not bootstrap or (DESIGNS[design].bootstrap and name == "questions"):
            yield {"design": design, "world": name, "seeds": seeds, "ratio": ratio,
                   **coverage_of(design, world, seeds, ratio, trials=trials, bootstrap=bootstrap)}


def as_text(content: dict[str, Any]) -> str:
    """JSON with one cell a line."""
    parts = [f' {json.dumps(key)}: ' + (_rows(value) if isinstance(value, list) and isinstance(value[0], dict)
                                        else json.dumps(value)) for key, value in content.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rows(cells: list[dict[str, Any]]) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(cell)}" for cell in cells) + "\n ]"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(as_text(measure()), encoding="utf-8")
