"""Signals of run logs as series over steps: per-seed means, moving means, intervals over seeds, lagged correlation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import mannwhitneyu, rankdata, t

from asgkit.report.figures.style import empty_panel
from asgkit.report.measured import Measured, Measurement, Run
from asgkit.runs.files import sha256
from asgkit.runs.packed_log import read_packed_log

Made = tuple[Figure, pd.DataFrame, list[Measurement]]  # a figure, the frame of its plotted points, what it rests on
CLEAN = ("tiny-ar-clean", "tiny-flow-clean", "tiny-diffusion-clean")  # the three paradigms, side by side
SHOWN = (*CLEAN[:1], "tiny-ar-registers", *CLEAN[1:])  # those and the base with designed errors
COLUMNS = ["base", "arm", "seed", "step", "value"]
FIELDS = (  # what figures read of a log; all else stays unparsed
    "solver/majority_fraction", "solver/self_consistency_entropy", "solver/token_entropy", "proposer/reward",
    "proposer/zero_variance", "generator/rewards", "generator/fidelity", "generator/cycle", "generator/zero_variance",
    "judge_scores",
)
SIDES = {"answers": ("solver/majority_fraction", "majority fraction"), "drawings": ("generator/fidelity", "S_fid")}
WINDOW = 15  # points of a moving mean: five turns of three U steps


def missing(what: str, command: str) -> Made:
    """An empty figure that says what is missing and which command fills it."""
    return (*empty_panel(f"{what}\n{command}"), [])


@cache
def _step_means(path: Path, digest: str) -> pd.DataFrame:
    """Mean of each of `FIELDS` over the images of a step (lists count by their mean); rows are steps.

    The digest of the content is part of the key: a log that was edited is read anew.
    """
    records = read_packed_log(path)
    held = {name: [_number(record.get(name)) for record in records] for name in FIELDS}
    steps = [record["step"] for record in records]
    return pd.DataFrame(held, index=pd.Index(steps, name="step")).groupby(level="step").mean()


def _number(value: object) -> float:
    """A logged value as a number: true is 1, a list its mean, text and nothing NaN."""
    if isinstance(value, list):
        known = [v for v in value if isinstance(v, (int, float))]
        return float(np.mean(known)) if known else np.nan
    return float(value) if isinstance(value, (int, float)) else np.nan


def has_log(run: Run) -> bool:
    """Whether the run keeps its log."""
    return run.log_path is not None


def signal(run: Run, name: str) -> pd.DataFrame:
    """Rows (base, arm, seed, step, value) of one of `FIELDS`: the mean over the images of each step that has it.

    Empty when the run keeps no log or its phase never logs the field. Raises KeyError for a field not in `FIELDS`.
    """
    path = run.log_path
    if path is None:
        return pd.DataFrame(columns=COLUMNS)
    values = _step_means(path, sha256(path.read_bytes()))[name].dropna()
    return pd.DataFrame({"base": run.base, "arm": run.arm, "seed": run.seed, "step": values.index,
                         "value": values.to_numpy()})[COLUMNS]


def signals(runs: Iterable[Run], name: str) -> pd.DataFrame:
    """`signal` of several runs, one below the other."""
    return stack([signal(run, name) for run in runs])


def stack(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames one below the other, without the empty ones; an empty frame with `COLUMNS` when there are none."""
    filled = [part for part in parts if len(part)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)


def curve_values(run: Run, side: str, metric: str) -> pd.DataFrame:
    """Rows (base, arm, seed, step, value in percent) of one score on a run's checkpoints; empty without curve.csv."""
    curve = run.curve()
    own = curve[(curve["side"] == side) & (curve["metric"] == metric)]
    return own.assign(base=run.base)[COLUMNS].reset_index(drop=True)


def arm_runs(measured: Measured, base: str, arm: str) -> list[Run]:
    """Runs of one arm of a base, seeds in order; empty when there are none."""
    return measured.arms(base).get(arm, [])


def cycle_of(joint: Sequence[Run]) -> tuple[int, int]:
    """U and G steps of one cycle of the joint runs' schedule; the paper's 3 and 2 without a run."""
    turns = joint[0].config["schedule"] if joint else {"understanding": 3, "generation": 2}
    return turns["understanding"], turns["generation"]


def moving(frame: pd.DataFrame, window: int = WINDOW) -> pd.DataFrame:
    """The frame with `value` replaced by its centred moving mean over `window` points of one seed; shorter at ends."""
    frame = frame.sort_values(["base", "arm", "seed", "step"], ignore_index=True)
    means = frame.groupby(["base", "arm", "seed"])["value"].transform(
        lambda v: v.rolling(window, center=True, min_periods=1).mean())
    return frame.assign(value=means)


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows (step, mean, low, high, seeds): mean over seeds and its 95% Student interval.

    `mean +- t_{S-1}(0.975) sd / sqrt(S)`; low and high are NaN with one seed, of which no interval can be had.
    Only steps that every seed has, so that the line never changes its seeds.
    """
    grouped = frame.groupby("step")["value"]
    found = pd.DataFrame({"mean": grouped.mean(), "sd": grouped.std(ddof=1), "seeds": grouped.count()})
    found = found[found["seeds"] == frame["seed"].nunique()]
    half = t.ppf(0.975, np.maximum(found["seeds"] - 1, 1)) * found["sd"] / np.sqrt(found["seeds"])
    return found.assign(low=found["mean"] - half, high=found["mean"] + half).drop(columns="sd").reset_index()


def before_checkpoints(run: Run, name: str, steps: Sequence[int]) -> pd.Series:
    """Mean of a log field between one checkpoint and the next, by the later one's step; steps must ascend from 0."""
    own, edges = signal(run, name), np.asarray(steps)
    place = np.searchsorted(edges, own["step"].to_numpy(float), side="left")  # edges[p - 1] < step <= edges[p]
    held = own[place < len(edges)]
    return held.groupby(edges[place[place < len(edges)]])["value"].mean().rename_axis("step")


def detrend(values: np.ndarray) -> np.ndarray:
    """Values (S, C) minus the straight line of each row, scaled to unit spread; a constant row becomes 0."""
    values = np.atleast_2d(np.asarray(values, np.float64))
    time = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    centred = values - values.mean(1, keepdims=True)
    rest = centred - (centred @ time / (time @ time))[:, None] * time
    spread = rest.std(1, keepdims=True)
    return np.divide(rest, spread, out=np.zeros_like(rest), where=spread > 1e-9)


def _overlap(first: np.ndarray, second: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """U(t) and G(t + lag) where both exist."""
    count = first.shape[-1]
    early, late = slice(0, count - abs(lag)), slice(abs(lag), count)
    return (first[..., early], second[..., late]) if lag >= 0 else (first[..., late], second[..., early])


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis; 0 where one side is constant."""
    a, b = first - first.mean(-1, keepdims=True), second - second.mean(-1, keepdims=True)
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.zeros_like(scale), where=scale > 1e-12)


def group_correlations(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman's correlation within each of the groups in which both sides vary; shapes (G, L) each -> (G',).

    Raises ValueError when the shapes differ.
    """
    if scores.shape != truth.shape or scores.ndim != 2:
        raise ValueError(f"group_correlations needs two (G, L) arrays, got {scores.shape} and {truth.shape}")
    rows = (np.ptp(scores, axis=1) > 0) & (np.ptp(truth, axis=1) > 0)
    return correlation(rankdata(scores[rows], axis=1), rankdata(truth[rows], axis=1))


@dataclass(frozen=True)
class Lagged:
    """r (S, D) per seed and lag, with its 95% band (D,) and that of no relation (D,); lags (D,) in cycles."""

    lags: np.ndarray
    r: np.ndarray
    low: np.ndarray
    high: np.ndarray
    null_low: np.ndarray
    null_high: np.ndarray


def lagged_correlation(first: np.ndarray, second: np.ndarray, lags: Sequence[int], *, block: int = 4,
                       resamples: int = 2000, seed: int = 0) -> Lagged:
    """Correlation of U(t) with G(t + d) on detrended series, with circular block-bootstrap bands.

    Band: seeds, and within them blocks of paired (U(t), G(t + d)), are drawn with replacement. Band of no relation:
    blocks of U and of G are drawn apart, which keeps each one's own memory and breaks the pairing.
    Shapes: first, second (S, C). Raises ValueError when they differ or a lag leaves fewer than 2 blocks.
    Source: paper, figure S3.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"lagged_correlation needs two (S, C) arrays, got {first.shape} and {second.shape}")
    if first.shape[1] - max(map(abs, lags)) < 2 * block:
        raise ValueError(f"{first.shape[1]} cycles are too few for lags up to {max(map(abs, lags))} with blocks of "
                         f"{block}: use smaller lags")
    a, b = detrend(first), detrend(second)
    found, bands = [], []
    for lag in lags:
        u, g = _overlap(a, b, lag)
        rng = np.random.default_rng([seed, 1000 + lag])
        found.append(correlation(u, g))
        bands.append([*_quantiles(_draws(u, g, rng, block, resamples, paired=True)),
                      *_quantiles(_draws(u, g, rng, block, resamples, paired=False))])
    return Lagged(np.array(lags), np.stack(found, 1), *np.array(bands).T)


def _draws(u: np.ndarray, g: np.ndarray, rng: np.random.Generator, block: int, resamples: int, *, paired: bool
           ) -> np.ndarray:
    """Mean correlation over seeds in each resample (R,)."""
    runs, count = u.shape
    who = rng.integers(runs, size=(resamples, runs, 1)) if paired else np.arange(runs)[None, :, None]
    first = _blocks(rng, (resamples, runs), count, block)
    second = first if paired else _blocks(rng, (resamples, runs), count, block)
    return correlation(u[who, first], g[who, second]).mean(1)


def _blocks(rng: np.random.Generator, shape: tuple[int, int], count: int, block: int) -> np.ndarray:
    """Indices (*shape, count) of circular blocks laid end to end."""
    starts = rng.integers(count, size=(*shape, -(-count // block), 1))
    return ((starts + np.arange(block)) % count).reshape(*shape, -1)[..., :count]


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return round(float(low), 6), round(float(high), 6)


def mean_half(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds (S, C) -> (C,) and half of its 95% Student interval; NaN with one seed."""
    runs = len(values)
    if runs < 2:
        return values[0], np.full(values.shape[1], np.nan)
    return values.mean(0), t.ppf(0.975, runs - 1) * values.std(0, ddof=1) / np.sqrt(runs)


def auroc_half(scores: np.ndarray, wrong: np.ndarray, *, resamples: int = 400, seed: int = 0) -> float:
    """Half of the 95% interval of an AUROC over questions, by a bootstrap within each class; scores, wrong (Q,)."""
    rng = np.random.default_rng(seed)
    yes, no = scores[wrong], scores[~wrong]
    draws = [(rng.choice(yes, len(yes)), rng.choice(no, len(no))) for _ in range(resamples)]
    first, second = (np.array(drawn) for drawn in zip(*draws, strict=True))
    # all resamples at once: the U statistic counts the pairs that the area is a share of
    low, high = _quantiles(mannwhitneyu(first, second, axis=1, method="asymptotic").statistic / (len(yes) * len(no)))
    return (high - low) / 2


def cluster_interval(statistic: Callable[[Sequence[int]], float], clusters: int, *, resamples: int = 1000,
                     seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of `statistic(picked clusters)` over clusters drawn with replacement.

    NaN for fewer than three: two clusters have but three different draws.
    """
    if clusters < 3:
        return float("nan"), float("nan")
    rng = np.random.default_rng([seed, clusters])
    draws = [statistic(picked) for picked in rng.integers(clusters, size=(resamples, clusters))]
    return _quantiles(np.array(draws)[np.isfinite(draws)])
