"""Rules over the untrained base: what its votes and its STE know of wrong answers, with a bootstrap over questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression

from asgkit.report.claims.rules import POINTS, Found, Rule, lacks, metric_values
from asgkit.report.measured import Measured, Untraceable
from asgkit.stats.intervals import paired_bootstrap

FEWEST = 10  # wrong and right items that an area under the curve needs to say anything
RESAMPLES = 2_000
FOLDS = 5
AREA = "AUROC"


class Within(Rule):
    """Two scores of one base on the same questions, `first` minus `second` in percentage points."""

    computed_by: ClassVar[str] = "asgkit.report.claims.signals.difference_within"
    kind: Literal["within"]
    first: str
    second: str

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One difference per base."""
        return (difference_within(measured, base, self.first, self.second, level) for base in self.bases)


def difference_within(measured: Measured, base: str, first: str, second: str, level: float = 0.95) -> Found:
    """`100 mean(first - second)` over the items of the untrained base, bootstrap over items. Raises Untraceable."""
    label = f"{base}: {first} - {second}"
    if gap := lacks(measured, base):
        return Found(label, POINTS, note=gap)
    held = measured.bases[base]
    found = paired_bootstrap(metric_values(held, second), metric_values(held, first), level=level)
    return Found(label, POINTS, 100 * found.delta, 100 * found.low, 100 * found.high, found.n_items, 0, (base,))


class Detector(Rule):
    """Area under the ROC curve of a signal as a detector of wrong majorities, among votes of at least `share`."""

    computed_by: ClassVar[str] = "asgkit.report.claims.signals.detection"
    kind: Literal["detector"]
    signal: Literal["ste", "entropy"]
    share: float = Field(0.0, ge=0, le=1)
    bar: float = 0.5

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One area per base."""
        score = lambda ste, h_sc, wrong, weights: area(ste if self.signal == "ste" else h_sc, wrong, weights)
        return (detection(measured, base, f"{self.signal} finds wrong majorities", AREA, score, self.share, level)
                for base in self.bases)


class Gap(Rule):
    """Mean STE (nats) of wrong minus right majorities among votes whose share is at least `share`."""

    computed_by: ClassVar[str] = "asgkit.report.claims.signals.mean_gap"
    kind: Literal["gap"]
    share: float = Field(ge=0, le=1)

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One difference per base."""
        score = lambda ste, h_sc, wrong, weights: mean_gap(ste, wrong, weights)
        return (detection(measured, base, "STE, wrong - right", "nats", score, self.share, level)
                for base in self.bases)


class Together(Rule):
    """What H_sc and STE tell together beyond either alone: two areas' differences, both of which must be above 0."""

    computed_by: ClassVar[str] = "asgkit.report.claims.signals.together"
    kind: Literal["together"]

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """Two differences per base: beyond H_sc alone, beyond STE alone."""
        for base in self.bases:
            for name, alone in (("H_sc", "h_sc"), ("STE", "ste")):
                yield detection(measured, base, f"H_sc and STE together - {name} alone", AREA,
                                partial(_beyond, alone=alone), 0.0, level)


def _beyond(ste: np.ndarray, h_sc: np.ndarray, wrong: np.ndarray, weights: np.ndarray, alone: str) -> np.ndarray:
    return area(together(h_sc, ste, wrong), wrong, weights) - area(ste if alone == "ste" else h_sc, wrong, weights)


Score = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def detection(measured: Measured, base: str, what: str, unit: str, score: Score, share: float = 0.0,
              level: float = 0.95) -> Found:
    """A statistic of (STE, H_sc, majority wrong) over the base's questions with a Poisson bootstrap over them.

    Each of RESAMPLES resamples counts every question Poisson(1) times. `score` takes ste (Q,), h_sc (Q,), wrong (Q,)
    and weights (R, Q), and gives (R,). Fewer than FEWEST right or wrong answers give no estimate.
    """
    label = f"{base}: {what}" + (f", votes of share {share:g} or more" if share else "")
    if gap := lacks(measured, base):
        return Found(label, unit, note=gap)
    items = measured.bases[base].items
    kept = items["fraction"] >= share - 1e-6  # shares are stored as float32
    ste, h_sc, wrong = items["ste"][kept], items["entropy"][kept], ~items["majority"][kept]
    if min(wrong.sum(), (~wrong).sum()) < FEWEST:
        return Found(label, unit, items=len(wrong), note=f"{wrong.sum()} wrong of {len(wrong)}: at least {FEWEST} of "
                                                         "each are needed")
    weights = np.random.default_rng([0, len(wrong)]).poisson(1.0, (RESAMPLES, len(wrong))).astype(np.float64)
    low, high = np.quantile(score(ste, h_sc, wrong, weights), [0.5 - level / 2, 0.5 + level / 2])
    effect = score(ste, h_sc, wrong, np.ones((1, len(wrong))))[0]
    return Found(label, unit, float(effect), float(low), float(high), len(wrong), 0, (base,),
                 f"{wrong.sum()} wrong majorities")


def area(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted area under the ROC curve: sum over pairs of w_i w_j ([s_i > s_j] + [s_i = s_j] / 2), normalised.

    i runs over the positive, j over the other items. Shapes: (Q,), (Q,) bool, (R, Q) -> (R,).
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # one group per distinct score
    yes = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    no = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(no, axis=1) - no / 2
    return (yes * below).sum(1) / (yes.sum(1) * no.sum(1))


def mean_gap(values: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean of the positive items minus that of the others; shapes (Q,), (Q,) bool, (R, Q) -> (R,)."""
    yes, no = weights * positive, weights * ~positive
    return yes @ values.astype(np.float64) / yes.sum(1) - no @ values.astype(np.float64) / no.sum(1)


def together(h_sc: np.ndarray, ste: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """Cross-fitted log-odds (Q,) of a wrong answer from H_sc and the rank of STE: no item is scored by its own fit.

    Logistic regression in FOLDS folds, drawn with a fixed seed; STE enters as its rank, since its scale is skewed.
    """
    features = np.column_stack([h_sc, rankdata(ste) / len(ste)]).astype(np.float64)
    features = (features - features.mean(0)) / features.std(0).clip(1e-12)
    fold, odds = np.random.default_rng([1, len(ste)]).permutation(len(ste)) % FOLDS, np.empty(len(ste))
    for k in range(FOLDS):
        fit = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(features[fold != k], wrong[fold != k])
        odds[fold == k] = fit.decision_function(features[fold == k])
    return odds


class Premise(Rule):
    """A rank correlation of the reward (or a part of it) with the truth within groups, from a base's premise.json."""

    computed_by: ClassVar[str] = "asgkit.report.claims.signals.premise_correlation"
    kind: Literal["premise"]
    signal: str

    def find(self, measured: Measured, level: float) -> Iterator[Found]:
        """One correlation per base."""
        return (premise_correlation(measured, base, self.signal, level) for base in self.bases)


def premise_correlation(measured: Measured, base: str, signal: str, level: float = 0.95) -> Found:
    """`mean -+ z SE` of the within-group Spearman correlations in premise.json; items are groups.

    Raises Untraceable for a signal that the premise does not have.
    """
    label = f"{base}: {signal} against the truth within prompts"
    path = measured.bases[base].path / "premise.json" if base in measured.bases else None
    if path is None or not path.is_file():
        return Found(label, "rank correlation", note=f"no premise.json of the base {base}")
    held = json.loads(path.read_text(encoding="utf-8"))["reward"]["spearman"]
    if signal not in held:
        raise Untraceable(f"{base}: premise.json has no correlation of {signal}; it has {', '.join(sorted(held))}")
    mean, error, groups = (held[signal][key] for key in ("mean", "standard_error", "groups"))
    if mean is None or error is None:
        return Found(label, "rank correlation", note=f"{groups} groups: too few for an interval")
    reach = float(norm.ppf(0.5 + level / 2)) * error
    return Found(label, "rank correlation", mean, mean - reach, mean + reach, groups, 0, (base,))
