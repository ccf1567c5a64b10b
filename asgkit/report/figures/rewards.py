"""What the drawing reward is worth: judges of rising accuracy, update rules side by side, reward against truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest

from asgkit.grids.load import shipped_grids
from asgkit.report.figures.categories import legend_handles, means_and_seeds
from asgkit.report.figures.panels import HALO, blank, column_title, foot, points
from asgkit.report.figures.series import (
    SHOWN,
    Made,
    arm_runs,
    before_checkpoints,
    curve_values,
    has_log,
    mean_half,
    missing,
)
from asgkit.report.figures.style import OKABE_ITO, TEXT_WIDTH, arm_style, styled
from asgkit.report.measured import MAIN, Measured, Measurement, Run
from asgkit.stats.effects import over_base
from asgkit.stats.intervals import Interval

METRIC = "drawings/overall"
JUDGED, UPDATED = "tiny-flow-clean", ("tiny-flow-clean", "tiny-diffusion-clean")
CONTROLS = {  # of the Generator's reward: colour, marker, name
    "": (OKABE_ITO["blue"], "o", "the method's reward"), "random": (OKABE_ITO["orange"], "s", "random rewards"),
    "constant": (OKABE_ITO["sky"], "v", "constant rewards"), "oracle": (OKABE_ITO["green"], "^", "truth"),
    "permuted": (OKABE_ITO["purple"], "X", "permuted rewards"),
}
REWARDS = {name: (colour, marker) for colour, marker, name in CONTROLS.values()}
TRUTH_ARMS = ("joint", "g-only", "g-long", "random", "oracle")  # whose drawing score is measured on checkpoints


def grid_arms(name: str) -> dict[str, list[str]]:
    """The backbones of every arm of a shipped grid, in the order of its file."""
    grid = yaml.safe_load(shipped_grids()[name].read_text(encoding="utf-8"))
    return {arm: content.get("backbones", grid["backbones"]) if isinstance(content, dict) else grid["backbones"]
            for arm, content in grid["arms"].items()}


def gain(held: Measurement, runs: Sequence[Run], metric: str = METRIC) -> tuple[Interval, np.ndarray]:
    """Gain of runs over their base with its 95% interval, and the gain of each run (S,), in score units of 0 to 1."""
    before, after = held.values(metric), np.stack([run.values(metric) for run in runs])
    return over_base(before, after), (after - before).mean(1)


def judge_of(run: Run, measured: Measured) -> Measurement | None:
    """The measurement of who scored a run's drawings: its base (live or frozen Solver) or the named checkpoint.

    None for the truth. Raises KeyError with the folder that is missing when a judge was not measured.
    """
    if run.config.get("control") == "oracle":
        return None
    scorer = run.config["generator"].get("scorer", "live")
    return measured.bases[run.base if scorer in ("live", "frozen") else Path(scorer).stem]


def judges(measured: Measured) -> Made:
    """Drawing gain against the worth of the judge, Generator, prompts and steps alike (tiny-flow, G alone).

    Left: accuracy of its majority vote on the test questions; right: rank correlation of its R_g with the truth within
    groups of candidates that the base draws. Gain in points with 95% over prompts and seeds; every seed a dot.
    """
    arms = [arm for arm in [*grid_arms("judges"), "g-only"] if arm_runs(measured, JUDGED, arm)]
    if JUDGED not in measured.bases or not arms:
        return missing("judge accuracy against drawing gain: no run of the grid judges", "asgkit batch judges")
    return _judges(measured, arms)


LABEL_BELOW = ("judge-150",)  # its neighbour's label stands above it


@styled
def _judges(measured: Measured, arms: Sequence[str]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 2.9), layout="constrained")
    left, right = fig.subplots(1, 2, sharey=True)
    held = measured.bases[JUDGED]
    rows, used = [], [held]
    unrun = [arm for arm in grid_arms("judges") if arm not in arms]
    lacking = [f"not run: {', '.join(unrun)} (asgkit batch judges)"] if unrun else []
    for arm in arms:
        runs = arm_runs(measured, JUDGED, arm)
        try:
            judge = judge_of(runs[0], measured)
        except KeyError as unknown:
            lacking.append(f"{arm}: no accuracy of its judge in measured/base/{unknown.args[0]}")
            continue
        used += [*runs, *([judge] if judge else [])]
        rows += _judge_rows(left, arm, held, runs, judge, _accuracy(judge)).assign(panel="accuracy").to_dict("records")
        rank = _rank(judge)
        if rank is None:
            lacking.append(f"{arm}: no judging.json beside its accuracy (asgkit premise generator.scorer=...)")
        else:
            rows += _judge_rows(right, arm, held, runs, judge, rank).assign(panel="rank").to_dict("records")
    heights = {0.0: ("0.6", "-")}
    if permuted := arm_runs(measured, JUDGED, "g-permuted"):
        found, _ = gain(held, permuted)
        heights[100 * found.delta] = (CONTROLS["permuted"][0], "--")
        rows.append({"arm": "g-permuted", "kind": "mean", "gain": 100 * found.delta, "panel": "reference"})
        used += permuted
    for ax in (left, right):
        for height, (colour, dash) in heights.items():
            ax.axhline(height, color=colour, lw=0.7, ls=dash)
    left.set(xlabel="accuracy on test questions (%)", ylabel="drawing gain (points)", xlim=(0, 108))
    right.set(xlabel="rank correlation of its R_g with the truth", xlim=(-0.3, 1.1))
    foot(fig, f"{JUDGED}, generation alone, by who judges the drawings; dots: seeds; bars: 95% over prompts and seeds, "
              "sideways over questions and over groups of candidates. "
              + ("dashed: permuted rewards. " if permuted else "") + "; ".join(lacking))
    return fig, pd.DataFrame(rows), used


def _accuracy(judge: Measurement | None) -> tuple[float, float, float]:
    """Percent of test questions that a judge's majority answers right, with 95% over questions (Wilson)."""
    if judge is None:
        return 100.0, 100.0, 100.0  # the truth has no sampling error
    right = judge.items["majority"]
    ci = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return 100 * right.mean(), 100 * ci.low, 100 * ci.high


def _rank(judge: Measurement | None) -> tuple[float, float, float] | None:
    """Mean rank correlation of a judge's R_g with the truth within groups of the base's drawings, with 95% (normal).

    None where it was not measured: judging.json of another judge, premise.json of the base itself.
    """
    if judge is None:
        return 1.0, 1.0, 1.0
    path = judge.path / ("premise.json" if judge.name == JUDGED else "judging.json")
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))["reward"]["spearman"]["reward"]
    half = 1.96 * found["standard_error"]
    return found["mean"], found["mean"] - half, found["mean"] + half


def _judge_rows(ax: Axes, arm: str, held: Measurement, runs: Sequence[Run], judge: Measurement | None,
                place: tuple[float, float, float]) -> pd.DataFrame:
    """The gain under one judge, drawn at x = `place` (value, low, high)."""
    colour, marker, _ = CONTROLS["oracle" if judge is None else ""]
    found, seeds = gain(held, runs)
    x, low, high = place
    y, bottom, top = 100 * found.delta, 100 * found.low, 100 * found.high
    ax.errorbar([x], [y], xerr=[[x - low], [high - x]], yerr=[[y - bottom], [top - y]], fmt=marker, color=colour, ms=4,
                lw=0.9)
    ax.plot([x] * len(seeds), 100 * seeds, ".", color=colour, ms=3, alpha=0.6)
    name = {"g-only": "its own Solver", "judge-oracle": "truth"}.get(arm, arm)
    below = arm in LABEL_BELOW
    ax.annotate(name, (x, bottom if below else top), xytext=(0, -3 if below else 3), textcoords="offset points",
                ha="center", va="top" if below else "bottom", color=colour, fontsize=6)
    head = {"arm": arm, "x": x, "x_low": low, "x_high": high}
    return pd.DataFrame([{**head, "kind": "mean", "gain": y, "low": bottom, "high": top},
                         *({**head, "kind": "seed", "seed": run.seed, "gain": 100 * value}
                           for run, value in zip(runs, seeds, strict=True))])


def generator_updates(measured: Measured) -> Made:
    """Drawing gain under each update rule of the regression Generators, with the method's reward and with none.

    Points with 95% over prompts and seeds, every seed a dot; g-only is the preset's rule (awm, L = 8). A rule that
    gains as much from random rewards gained it from the update, not from the reward.
    """
    arms = {"g-only": grid_arms("coupling")["g-only"], **grid_arms("generator_updates")}
    if not any(arm_runs(measured, base, arm) for base in UPDATED for arm in arms):
        return missing("update rules: no run of the grid generator_updates", "asgkit batch generator_updates")
    return _generator_updates(measured, arms)


@styled
def _generator_updates(measured: Measured, arms: Mapping[str, Sequence[str]]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 0.9 + 0.23 * len(arms)), layout="constrained")
    axes, (parts, used) = fig.subplots(1, 2, sharey=True), _gains_of(measured, arms)
    table = points(parts)
    shown = {name: style for name, style in REWARDS.items() if (table["reward"] == name).any()}
    for ax, base in zip(axes, UPDATED, strict=True):
        ax.axvline(0, color="0.6", lw=0.6)
        own = table[table["base"] == base]
        means_and_seeds(ax, own, value="gain", rows=("arm", list(arms)), groups=("reward", shown), apart=False)
        _say_missing(ax, own[~own["kind"].isin(["mean", "seed"])], list(arms))
        ax.set_xscale("symlog", linthresh=10)  # a rule that breaks the model must not hide the others
        ax.set_xticks([-50, -10, -5, 0, 5, 10, 20], ["-50", "-10", "-5", "0", "5", "10", "20"])
        ax.set(title=base, xlabel="drawing gain (points)", xlim=(-85, 30))
    axes[0].set_ylim(len(arms) - 0.5, -0.5)
    fig.legend(handles=legend_handles(shown), loc="outside upper center", ncols=3)
    foot(fig, "small dots: seeds; bars: 95% over prompts and seeds; linear to 10 points, then logarithmic; what is not "
              "run: asgkit batch generator_updates, g-only: asgkit batch coupling")
    return fig, table.drop(columns="reward"), used


def _gains_of(measured: Measured, arms: Mapping[str, Sequence[str]]) -> tuple[list[pd.DataFrame], list[Measurement]]:
    """A frame per base and arm, of its mean and seeds or of why it has none, and what they rest on."""
    parts: list[pd.DataFrame] = []
    used: list[Measurement] = []
    for base, (arm, backbones) in product(UPDATED, arms.items()):
        runs = arm_runs(measured, base, arm)
        if runs and base in measured.bases:
            reward = CONTROLS[runs[0].config.get("control", "")][2]
            parts.append(_gain_rows(measured.bases[base], runs).assign(base=base, arm=arm, reward=reward))
            used += [measured.bases[base], *runs]
        else:
            planned = base.startswith(tuple(f"{name}-" for name in backbones))
            why = "not run" if planned else "not in the grid"
            parts.append(pd.DataFrame([{"base": base, "arm": arm, "kind": why}]))
    return parts, used


def _gain_rows(held: Measurement, runs: Sequence[Run]) -> pd.DataFrame:
    found, seeds = gain(held, runs)
    x, low, high = (100 * v for v in (found.delta, found.low, found.high))
    return pd.DataFrame([{"kind": "mean", "gain": x, "low": low, "high": high},
                         *({"kind": "seed", "seed": run.seed, "gain": 100 * value}
                           for run, value in zip(runs, seeds, strict=True))])


def _say_missing(ax: Axes, missing: pd.DataFrame, rows: Sequence[str]) -> None:
    """In the row of an arm without runs: why it has none."""
    for arm, why in zip(missing["arm"], missing["kind"], strict=True):
        ax.annotate(why, (0.99, rows.index(arm)), xycoords=("axes fraction", "data"), ha="right", va="center",
                    fontsize=6, color="0.5", path_effects=HALO)


def reward_truth(measured: Measured) -> Made:
    """Reward against truth (Goodhart): mean R_g before each checkpoint against the drawing score on it, by arm.

    A line is the path of an arm's mean over seeds, from the first checkpoint (open) to the last (filled); dots are the
    checkpoints of the seeds, bars 95% over seeds at the last. A path that goes right and down earns reward and loses
    truth. Under a control R_g is what the method's reward would have been. Percent, dev split.
    """
    used = [run for base in SHOWN for arm in TRUTH_ARMS for run in arm_runs(measured, base, arm) if _tracked(run)]
    if not used:
        return missing("reward against truth: no run with a curve and a log", "asgkit batch headline")
    return _reward_truth(measured, used)


def _tracked(run: Run) -> bool:
    """Whether a run has both a log with drawings and a curve."""
    return has_log(run) and len(run.curve()) > 0 and run.config["schedule"].get("generation") != 0


@styled
def _reward_truth(measured: Measured, used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 4.4), layout="constrained")
    axes, parts = fig.subplots(2, 2), []
    for ax, base in zip(axes.flat, SHOWN, strict=True):
        own = [run for run in used if run.base == base]
        column_title(ax, base, [run for run in own if run.arm == "joint"])
        if not own:
            parts.append(blank(ax, "no run with a curve and a log\nasgkit batch headline"))
            continue
        for arm in TRUTH_ARMS:
            runs = [run for run in own if run.arm == arm]
            if runs:
                parts.append(_path(ax, arm, runs).assign(base=base, arm=arm))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"drawings: {MAIN['drawings']} (% correct)")
    for ax in axes[-1]:
        ax.set_xlabel("mean R_g since the checkpoint before")
    foot(fig, "small dots: checkpoints of seeds; lines: mean over seeds, from the open marker to the filled one; bars: "
              "95% over seeds at the last checkpoint, cut at the axes")
    return fig, points(parts), used


def _path(ax: Axes, arm: str, runs: Sequence[Run]) -> pd.DataFrame:
    colour, marker = arm_style(arm)
    tables = []
    for run in runs:
        scores = curve_values(run, "drawings", MAIN["drawings"]).set_index("step")["value"].sort_index()
        rewards = before_checkpoints(run, "generator/rewards", list(scores.index))
        tables.append(pd.DataFrame({"x": rewards, "y": scores}).dropna().rename_axis("step").reset_index()
                      .assign(seed=run.seed, kind="seed"))
    dots = pd.concat(tables, ignore_index=True)
    mean = dots.groupby("step")[["x", "y"]].mean()
    ax.plot(dots["x"], dots["y"], ".", color=colour, ms=2, alpha=0.5)
    ax.plot(mean["x"], mean["y"], "-", color=colour, lw=1.1)
    ax.plot(mean["x"].iloc[:1], mean["y"].iloc[:1], marker, color=colour, mfc="white", ms=4)
    last = dots[dots["step"] == mean.index[-1]]
    (x, y), half = mean_half(last[["x", "y"]].to_numpy())
    seen = ax.dataLim.frozen()  # one seed that fell apart makes a bar that must not flatten the paths
    ax.errorbar([x], [y], xerr=[half[0]], yerr=[half[1]], fmt=marker, color=colour, ms=4, lw=0.7)
    ax.dataLim.set(seen)
    ax.annotate(f"{arm} ({len(runs)})", (x, y), xytext=(4, 3), textcoords="offset points", color=colour, fontsize=6,
                path_effects=HALO)
    means = mean.reset_index().assign(kind="mean")
    means.loc[means.index[-1], ["x_half", "y_half"]] = half
    return pd.concat([dots, means], ignore_index=True)


FIGURES: dict[str, Callable[[Measured], Made]] = {
    "ours_judges": judges, "ours_generator_updates": generator_updates, "ours_reward_truth": reward_truth,
}
BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {}
