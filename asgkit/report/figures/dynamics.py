"""How the two loops move over steps: alone and together, and on three backbones."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from asgkit.report.figures.panels import (
    End,
    absent,
    blank,
    column_title,
    dotted,
    foot,
    label_ends,
    note,
    points,
    smoothed,
)
from asgkit.report.figures.series import (
    CLEAN,
    SIDES,
    Made,
    arm_runs,
    curve_values,
    cycle_of,
    has_log,
    missing,
    signal,
    signals,
    stack,
)
from asgkit.report.figures.style import TEXT_WIDTH, arm_style, backbone_style, styled
from asgkit.report.measured import MAIN, Measured, Run

LOOPS = {"joint": "asgkit batch headline", "u-only": "asgkit batch coupling", "g-only": "asgkit batch coupling"}
SILENT = {"answers": "g-only", "drawings": "u-only"}  # the arm that logs nothing of a side
ROWS5 = (("solver/self_consistency_entropy", "H_sc (nats)"), ("solver/token_entropy", "STE (nats)"),
         ("generator/fidelity", "S_fid"), ("generator/rewards", "R_g, mean of L"))


def joint_step(run: Run, cycle: tuple[int, int] = (3, 2)) -> float:
    """Steps of the joint schedule that hold as many steps of a loop as one step of this run: 1 for joint itself.

    A run of one loop alone spends every step on it: `(u + g) / u` for U alone, `(u + g) / g` for G alone, (u, g) the
    joint cycle.
    """
    u, g = cycle
    turns = run.config.get("schedule", {})
    if turns.get("generation") == 0:
        return (u + g) / u
    return (u + g) / g if turns.get("understanding") == 0 else 1.0


def _stretched(frame: pd.DataFrame, run: Run, cycle: tuple[int, int]) -> pd.DataFrame:
    return frame.assign(step=(frame["step"].astype(float) * joint_step(run, cycle)).round(6))


def figure4_scores(measured: Measured) -> Made:
    """Figure 4, truth: answers and drawings (percent, dev split) over steps for joint, U-only and G-only.

    A step of a loop alone is drawn where the joint run has spent as many steps on that loop. Arms that have no
    curve.csv are named in their panel. Source: paper, figure 4.
    """
    def series(run: Run, side: str) -> pd.DataFrame:
        return curve_values(run, side, MAIN[side])
    labels = {side: f"{side}: {metric} (% correct)" for side, metric in MAIN.items()}
    return _loops(measured, series, labels, dotted, "asgkit eval RUN --curve", "scores on checkpoints")


def figure4_signals(measured: Measured) -> Made:
    """Figure 4, from the logs: majority fraction and S_fid over steps for joint, U-only and G-only.

    These are the loop's own signals, not truth; G-only logs no U signal and the reverse. Source: paper, figure 4.
    """
    def series(run: Run, side: str) -> pd.DataFrame:
        return signal(run, SIDES[side][0])
    labels = {side: f"{side}: {label}" for side, (_, label) in SIDES.items()}
    return _loops(measured, series, labels, _plain, "", "logged signals, moving mean over the raw lines")


def _plain(ax: Axes, frame: pd.DataFrame, colour: str, marker: str) -> tuple[pd.DataFrame, float]:
    return smoothed(ax, frame, colour)


def _loops(measured: Measured, series: Callable[[Run, str], pd.DataFrame], labels: dict[str, str], draw: Callable,
           fill: str, what: str) -> Made:
    used = [run for base in CLEAN for arm in LOOPS for run in arm_runs(measured, base, arm)]
    if not used:
        return missing("figure 4: no joint, u-only or g-only run", "asgkit batch headline; asgkit batch coupling")
    return _draw_loops(measured, series, labels, draw, fill, what, used)


@styled
def _draw_loops(measured: Measured, series: Callable, labels: dict[str, str], draw: Callable, fill: str, what: str,
                used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 5.6), layout="constrained")
    axes, parts = fig.subplots(len(CLEAN), 2), []
    for row, base in zip(axes, CLEAN, strict=True):
        for ax, side in zip(row, labels, strict=True):
            parts.append(_loop_panel(ax, measured, base, side, series, draw, fill).assign(side=side))
            ax.set_title(base if side == "answers" else "", loc="left")
            ax.set_ylabel(labels[side], fontsize=7)  # as tall as a panel otherwise
        row[0].sharex(row[1])
    for ax in axes[-1]:
        ax.set_xlabel("joint step")
    foot(fig, f"{what}; every seed thin, mean with 95% over seeds; a step of u-only or g-only stands where the joint "
              "run has spent as many steps on that loop")
    return fig, points(parts), used


def _loop_panel(ax: Axes, measured: Measured, base: str, side: str, series: Callable, draw: Callable, fill: str
                ) -> pd.DataFrame:
    cycle, parts, ends, lacking = cycle_of(arm_runs(measured, base, "joint")), [], [], []
    for arm, command in LOOPS.items():
        runs = arm_runs(measured, base, arm)
        frame = stack([_stretched(series(run, side), run, cycle) for run in runs])
        if frame.empty:
            logs = fill or arm != SILENT[side]  # a loop alone has no signal of the other side, whatever is run
            lacking += [f"no {arm}: {fill if runs else command}"] if logs else []
            continue
        colour, marker = arm_style(arm)
        plotted, end = draw(ax, frame, colour, marker)
        parts.append(plotted)
        ends.append(End(end, f"{arm} ({frame['seed'].nunique()})", colour))
    if not parts:
        return blank(ax, "\n".join(lacking))
    if lacking:  # room for the words below the lines
        low, high = ax.get_ylim()
        ax.set_ylim(low - 0.25 * (high - low), high)
        note(ax, "\n".join(lacking), "lower right")
    label_ends(ax, ends)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return points(parts)


def figure5(measured: Measured) -> Made:
    """Figure 5: H_sc, STE, S_fid and R_g of the joint loop over steps, one column per backbone.

    Nats where said; every seed's raw line behind the moving mean and its 95% band. Source: paper, figure 5.
    """
    if not any(arm_runs(measured, base, "joint") for base in CLEAN):
        return missing("figure 5: no joint run", "asgkit batch headline")
    return _figure5(measured)


@styled
def _figure5(measured: Measured) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 5.4), layout="constrained")
    axes, parts, used = fig.subplots(len(ROWS5), len(CLEAN), sharex="col", sharey="row"), [], []
    for base, column in zip(CLEAN, axes.T, strict=True):
        runs = [run for run in arm_runs(measured, base, "joint") if has_log(run)]
        used += runs
        for ax, (name, label) in zip(column, ROWS5, strict=True):
            frame = signals(runs, name)
            if frame.empty:
                parts.append(absent(ax, "no joint run\nasgkit batch headline"))
                continue
            parts.append(smoothed(ax, frame, backbone_style(base)[0])[0].assign(signal=label))
        column_title(column[0], base, runs)
        column[-1].set_xlabel("step")
    for ax, (_, label) in zip(axes[:, 0], ROWS5, strict=True):
        ax.set_ylabel(label)
    foot(fig, "joint loop; thin: every seed, thick: moving mean over seeds, band: 95% over seeds, cut at the axes")
    return fig, points(parts), used


FIGURES: dict[str, Callable[[Measured], Made]] = {
    "figure4_scores": figure4_scores, "figure4_signals": figure4_signals, "figure5_dynamics": figure5,
}
BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {}
