"""How the loop's own signals relate: to truth across checkpoints and within prompts, and U to G over lags."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asgkit.report.figures.categories import means_and_seeds
from asgkit.report.figures.panels import absent, blank, column_title, foot, note, points
from asgkit.report.figures.series import (
    CLEAN,
    SIDES,
    Made,
    arm_runs,
    before_checkpoints,
    cluster_interval,
    correlation,
    curve_values,
    cycle_of,
    group_correlations,
    has_log,
    lagged_correlation,
    missing,
    signal,
)
from asgkit.report.figures.style import OKABE_ITO, TEXT_WIDTH, THIRDS, styled
from asgkit.report.measured import MAIN, Measured, Run

WITHIN = {"generator/rewards": "R_g", "generator/fidelity": "S_fid", "generator/cycle": "S_cyc",
          "generator/text_similarity": "text sim.", "generator/image_text_similarity": "image-text sim.",
          "generator/diversity": "S_div"}
EARLY_LATE = {"early": (THIRDS["early"], "o"), "late": (THIRDS["late"], "s")}  # thirds of training that are compared
LAGS = tuple(range(-8, 9))
BLOCK = 4  # cycles that a block of the bootstrap holds
PAIRS = (("solver/majority_fraction", "majority fraction"), ("solver/token_entropy", "STE"))


def figure_s1(measured: Measured) -> Made:
    """Figure S1, across checkpoints: the loop's own score against the benchmark's, for the joint runs.

    A dot is a checkpoint of a seed: x the mean of the log since the checkpoint before, y the dev score in percent.
    r is Pearson's over all dots; `time removed` subtracts from both the mean over seeds at the same step, since all
    checkpoints share a trend. Intervals: seeds drawn with replacement. Source: paper, figure S1.
    """
    used = [run for base in CLEAN for run in arm_runs(measured, base, "joint") if has_log(run) and len(run.curve())]
    if not used:
        return missing("figure S1: no joint run with a curve and a log", "asgkit batch headline")
    return _figure_s1(measured, used)


@styled
def _figure_s1(measured: Measured, used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 4.0), layout="constrained")
    parts = []
    for column, base in zip(fig.subplots(2, len(CLEAN)).T, CLEAN, strict=True):
        for ax, side in zip(column, MAIN, strict=True):
            runs = [run for run in used if run.base == base]
            ax.set_xlabel(SIDES[side][1])
            if side == "answers":
                column_title(ax, base, runs)
            if not runs:
                parts.append(blank(ax, "no joint run\nasgkit batch headline"))
                continue
            parts.append(_checkpoints(ax, runs, side).assign(base=base, side=side))
            if base == CLEAN[0]:
                ax.set_ylabel(f"{side}: {MAIN[side]} (%)")
    foot(fig, "a dot is a checkpoint of a seed, darker is later, one line per seed; r with 95% over seeds where "
              "there are three or more")
    return fig, points(parts), used


def checkpoint_table(run: Run, side: str) -> pd.DataFrame:
    """Rows (seed, step, internal, score): the log's signal of a side before each checkpoint, and its dev score."""
    scores = curve_values(run, side, MAIN[side]).set_index("step")["value"].sort_index()
    internal = before_checkpoints(run, SIDES[side][0], list(scores.index))
    both = pd.DataFrame({"internal": internal, "score": scores}).dropna()
    return both.rename_axis("step").reset_index().assign(seed=run.seed)[["seed", "step", "internal", "score"]]


def _checkpoints(ax: Axes, runs: Sequence[Run], side: str) -> pd.DataFrame:
    table = pd.concat([checkpoint_table(run, side) for run in runs], ignore_index=True)
    shade = 0.25 + 0.75 * table["step"] / table["step"].max()
    for _, one in table.groupby("seed"):
        ax.plot(one["internal"], one["score"], color="0.6", lw=0.4, zorder=1)
    ax.scatter(table["internal"], table["score"], s=9, color=OKABE_ITO["blue"], alpha=shade, linewidths=0, zorder=2)
    low, high = table["score"].min(), table["score"].max()
    ax.set_ylim(low - 0.5 * max(high - low, 0.1), high + 0.1 * max(high - low, 0.1))  # room for the numbers
    texts = checkpoint_correlations(table)
    note(ax, "\n".join(f"{name} {text}" for name, text in texts.items()))
    return table.assign(**{name.replace(" ", "_"): text for name, text in texts.items()})


def checkpoint_correlations(table: pd.DataFrame) -> dict[str, str]:
    """`r` over all checkpoints and r with the `time removed`, as text with intervals over seeds where there are three.

    Only checkpoints that every seed has. Time is removed by taking off the mean over seeds at each step.
    """
    x, y = (table.pivot(index="seed", columns="step", values=name).dropna(axis=1).to_numpy()
            for name in ("internal", "score"))  # (S, C)
    def of(picked: Sequence[int], timeless: bool) -> float:
        a, b = x[list(picked)], y[list(picked)]
        a, b = (a - a.mean(0), b - b.mean(0)) if timeless else (a, b)
        return float(correlation(a.ravel(), b.ravel()))
    texts = {}
    for name, timeless in (("r", False), ("time removed", True)):
        if timeless and len(x) == 1:
            texts[name] = "needs 2 seeds"
            continue
        low, high = cluster_interval(lambda picked, t=timeless: of(picked, t), len(x))
        texts[name] = f"{of(range(len(x)), timeless):.2f}" + ("" if np.isnan(low) else f" [{low:.2f}, {high:.2f}]")
    return texts


def figure_s1_within(measured: Measured) -> Made:
    """Figure S1, within prompts: each drawing signal against truth among the L drawings of one prompt.

    Spearman's correlation within a group, averaged over the groups in which both vary: only this part can teach a
    group-relative update. From the logs of the oracle control, which keep both the method's own scores and the truth
    of every drawing. Open: first third of the steps, filled: last third. Bars: 95% over groups. Source: paper, figure
    S1; the split within prompts is ours.
    """
    used = [run for base in CLEAN for run in arm_runs(measured, base, "oracle") if has_log(run)]
    if not used:
        return missing("figure S1 within prompts: no oracle run with a log", "asgkit batch headline")
    return _figure_s1_within(used)


@styled
def _figure_s1_within(used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 2.9), layout="constrained")
    parts, axes = [], fig.subplots(1, len(CLEAN), sharex=True, sharey=True)
    for ax, base in zip(axes, CLEAN, strict=True):
        runs = [run for run in used if run.base == base]
        column_title(ax, base, runs)
        ax.axvline(0, color="0.6", lw=0.6)
        if not runs:
            parts.append(absent(ax, "no oracle run\nasgkit batch headline"))
            continue
        parts.append(_within(runs).assign(base=base))
        means_and_seeds(ax, parts[-1], value="value", rows=("signal", list(WITHIN.values())),
                        groups=("third", EARLY_LATE))
        ax.set_xlabel("")
    axes[0].set_ylim(len(WITHIN) - 0.5, -0.5)
    axes[1].set_xlabel("Spearman's correlation with truth, within a prompt")
    foot(fig, "circles: first third of the steps, squares: last third; small dots: seeds; bars: 95% over groups of "
              "drawings")
    return fig, points(parts), used


def _within(runs: Sequence[Run]) -> pd.DataFrame:
    groups, rows = [candidate_groups(run) for run in runs], []
    for name, label in WITHIN.items():
        for third in EARLY_LATE:
            held = [one[one["third"] == third] for one in groups]
            found = [group_correlations(np.stack(one[name]), np.stack(one["truth"])) for one in held]
            every = np.concatenate(found)
            if len(every) < 2:
                continue
            mean, half = every.mean(), 1.96 * every.std(ddof=1) / np.sqrt(len(every))
            head = {"signal": label, "third": third}
            rows.append({**head, "kind": "mean", "value": mean, "low": mean - half, "high": mean + half,
                         "groups": len(every)})
            own = [(run.seed, one.mean()) for run, one in zip(runs, found, strict=True) if len(one)]
            rows += [{**head, "kind": "seed", "seed": seed, "value": r} for seed, r in own]
    return pd.DataFrame(rows)


def candidate_groups(run: Run) -> pd.DataFrame:
    """Rows (step, third, truth, one column per signal of `WITHIN`) of an oracle run; each cell holds L values."""
    log = run.log(["phase", "step", "judge_scores", *WITHIN])
    own = log[(log["phase"] == "G") & log["judge_scores"].map(lambda v: isinstance(v, list) and len(v) > 0)]
    cuts = own["step"].quantile([1 / 3, 2 / 3]).to_numpy()
    third = np.array(["early", "middle", "late"])[np.searchsorted(cuts, own["step"])]
    return own[["step", *WITHIN]].assign(truth=own["judge_scores"], third=third).reset_index(drop=True)


def figure_s3(measured: Measured) -> Made:
    """Figure S3: correlation of U(t) with G(t + d) over lags d in cycles, for the joint runs; d > 0: U comes first.

    U: majority fraction or STE; G: R_g, means over the steps of a cycle, each seed detrended. Blue band: 95% by a block
    bootstrap of pairs and seeds; grey: 95% where U and G have nothing to do with each other. Source: paper, figure S3.
    """
    used = [run for base in CLEAN for run in arm_runs(measured, base, "joint") if has_log(run)]
    if not used:
        return missing("figure S3: no joint run with a log", "asgkit batch headline")
    return _figure_s3(used)


@styled
def _figure_s3(used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 3.4), layout="constrained")
    axes, parts = fig.subplots(len(PAIRS), len(CLEAN), sharex=True, sharey=True), []
    for column, base in zip(axes.T, CLEAN, strict=True):
        runs = [run for run in used if run.base == base]
        column_title(column[0], base, runs)
        for ax, (name, label) in zip(column, PAIRS, strict=True):
            if not runs:
                parts.append(absent(ax, "no joint run\nasgkit batch headline"))
                continue
            parts.append(_lags(ax, runs, name).assign(base=base, u=label))
    for ax, (_, label) in zip(axes[:, 0], PAIRS, strict=True):
        ax.set_ylabel(f"r, {label} and R_g", fontsize=7)
    axes[-1, 1].set_xlabel("lag d (cycles of 3 U and 2 G steps); d > 0: U first, G later")
    foot(fig, "each seed detrended; dots: seeds; blue band: 95% by a bootstrap of seeds and of blocks of 4 cycles; "
              "grey band: 95% of series that have nothing to do with each other")
    return fig, points(parts), used


def cycle_means(run: Run, name: str) -> np.ndarray:
    """Mean of a log field in each cycle of the joint schedule (C,); cycles without a value are left out."""
    length = sum(cycle_of([run]))
    own = signal(run, name)
    return own.groupby((own["step"].astype(int) - 1) // length)["value"].mean().to_numpy()


def _lags(ax: Axes, runs: Sequence[Run], name: str) -> pd.DataFrame:
    u, g = ([cycle_means(run, field) for run in runs] for field in (name, "generator/rewards"))
    count = min(map(len, [*u, *g]))
    if count < (shortest := max(map(abs, LAGS)) + 2 * BLOCK):
        return absent(ax, f"{count} cycles: lags need {shortest}")
    found = lagged_correlation(np.stack([v[:count] for v in u]), np.stack([v[:count] for v in g]), LAGS,
                               block=BLOCK)
    ax.axhline(0, color="0.6", lw=0.6)
    ax.axvline(0, color="0.6", lw=0.6, ls=":")
    ax.fill_between(found.lags, found.null_low, found.null_high, color="0.85", lw=0, zorder=0)
    ax.fill_between(found.lags, found.low, found.high, color=OKABE_ITO["sky"], alpha=0.45, lw=0, zorder=1)
    for r in found.r:
        ax.plot(found.lags, r, ".", color=OKABE_ITO["blue"], ms=2, alpha=0.6)
    ax.plot(found.lags, found.r.mean(0), color=OKABE_ITO["blue"], lw=1.3)
    seeds = pd.concat([pd.DataFrame({"kind": "seed", "seed": run.seed, "lag": found.lags, "value": r})
                       for run, r in zip(runs, found.r, strict=True)])
    means = pd.DataFrame({"kind": "mean", "lag": found.lags, "value": found.r.mean(0), "low": found.low,
                          "high": found.high, "null_low": found.null_low, "null_high": found.null_high})
    return pd.concat([seeds, means], ignore_index=True)


FIGURES: dict[str, Callable[[Measured], Made]] = {
    "figureS1_checkpoints": figure_s1, "figureS1_within_prompts": figure_s1_within, "figureS3_lags": figure_s3,
}
BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {}
