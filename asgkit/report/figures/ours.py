"""Beyond the paper's figures: agreement against truth, signals as detectors of errors, silent groups, long runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binomtest

from asgkit.report.figures.panels import (
    HALO,
    End,
    blank,
    column_title,
    dotted,
    foot,
    label_ends,
    points,
    smoothed,
)
from asgkit.report.figures.series import (
    SHOWN,
    SIDES,
    Made,
    arm_runs,
    auroc_half,
    curve_values,
    mean_half,
    missing,
    signals,
    stack,
)
from asgkit.report.figures.style import OKABE_ITO, TEXT_WIDTH, arm_order, arm_style, styled
from asgkit.report.measured import MAIN, Measured, Measurement, Run
from asgkit.stats.intervals import auroc

AGREEMENT, TRUTH = OKABE_ITO["vermillion"], OKABE_ITO["blue"]  # what the loop sees, and what it does not
ARMS = ("joint", "random", "oracle", "no-vote", "u-only")  # of the comparison on test questions
BESIDE = {"joint": (4, -9), "no-vote": (-4, -9), "u-only": (5, 3), "oracle": (-4, 4)}  # where an arm's name stands
DETECTORS = {"1 - majority\nfraction": ("fraction", -1.0, False), "H_sc": ("entropy", 1.0, False),
             "STE": ("ste", 1.0, False), "- log-\nprobability": ("logp", -1.0, False),
             "STE where\nunanimous": ("ste", 1.0, True), "- log-prob.\nunanimous": ("logp", -1.0, True)}
SILENT = {"proposer/zero_variance": ("Proposer", OKABE_ITO["purple"]),
          "generator/zero_variance": ("Generator", OKABE_ITO["green"])}
LONG = (("u-long", "u-only", "answers"), ("g-long", "g-only", "drawings"))
FILL = {"tiny-ar-registers": "asgkit batch registers"}


def by_base(measured: Measured, what: str, draw: Callable[[Axes, str], tuple[pd.DataFrame, list[Measurement]] | None],
            ylabel: str, xlabel: str, text: str) -> Made:
    """Two by two panels, one per base of `SHOWN`; a base without runs gets the command that makes them."""
    @styled
    def paint() -> Made:
        fig = Figure(figsize=(TEXT_WIDTH, 4.4), layout="constrained")
        axes, parts, used = fig.subplots(2, 2), [], []
        for ax, base in zip(axes.flat, SHOWN, strict=True):
            drawn = draw(ax, base)
            column_title(ax, base, arm_runs(measured, base, "joint"))
            if drawn is None:
                parts.append(blank(ax, f"{what}: nothing measured\n{FILL.get(base, 'asgkit batch headline')}"))
                continue
            parts.append(drawn[0].assign(panel=base))
            used += drawn[1]
        for ax in axes[:, 0]:
            ax.set_ylabel(ylabel)
        for ax in axes[-1]:
            ax.set_xlabel(xlabel)
        foot(fig, text)
        return fig, points(parts), used
    return paint()


def self_consistency(measured: Measured) -> Made:
    """Agreement that the loop sees against accuracy that it does not, over steps of the joint runs, in percent.

    Agreement: mean majority fraction of the chosen questions, from the log; accuracy: majority vote on the dev
    questions at each checkpoint. The questions differ: the Proposer chooses the logged ones, so compare the trends.
    """
    def draw(ax: Axes, base: str) -> tuple[pd.DataFrame, list[Measurement]] | None:
        runs = [run for run in arm_runs(measured, base, "joint") if len(run.curve())]
        seen = signals(runs, "solver/majority_fraction")
        if seen.empty:
            return None
        votes, height = smoothed(ax, seen.assign(value=100 * seen["value"]), AGREEMENT)
        scores, top = dotted(ax, stack([curve_values(run, "answers", "majority") for run in runs]), TRUTH, "o")
        label_ends(ax, [End(height, "agreement\n(log)", AGREEMENT), End(top, "accuracy\n(dev)", TRUTH)], gap=0.14)
        return pd.concat([votes.assign(series="agreement"), scores.assign(series="accuracy")]), list(runs)
    return by_base(measured, "joint runs with a curve and a log", draw, "percent", "step",
                   "agreement: majority fraction of q*, from the log; accuracy: majority vote on dev questions; thin: "
                   "seeds, thick: mean with 95% over seeds")


def agreement_accuracy(measured: Measured) -> Made:
    """Change of agreement and of accuracy on the same test questions, base to evolved, in points, every run a dot.

    Bars: 95% over seeds, for arms with two or more. Below the diagonal agreement grew more than accuracy.
    """
    def draw(ax: Axes, base: str) -> tuple[pd.DataFrame, list[Measurement]] | None:
        arms = [arm for arm in arm_order(ARMS) if arm_runs(measured, base, arm)]
        if base not in measured.bases or not arms:
            return None
        held = measured.bases[base]
        parts = [_arm_changes(ax, held, arm, arm_runs(measured, base, arm)) for arm in arms]
        ax.margins(0.12)
        ax.axhline(0, color="0.6", lw=0.6, zorder=0)
        ax.axvline(0, color="0.6", lw=0.6, zorder=0)
        ax.axline((0, 0), slope=1, color="0.6", lw=0.6, ls="--", zorder=0)
        return pd.concat(parts), [held, *(run for arm in arms for run in arm_runs(measured, base, arm))]
    return by_base(measured, "runs", draw, "accuracy of the majority, gain", "agreement of the votes, gain (points)",
                   "test questions, evolved minus base; dots: seeds, marker: mean with 95% over seeds; dashed: "
                   "as much accuracy as agreement")


def _arm_changes(ax: Axes, held: Measurement, arm: str, runs: Sequence[Run]) -> pd.DataFrame:
    colour, marker = arm_style(arm)
    names = ("answers/agreement", "answers/majority")
    gains = np.array([[100 * (run.values(m) - held.values(m)).mean() for m in names] for run in runs])  # (S, 2)
    mean, half = mean_half(gains)
    ax.plot(*gains.T, ".", color=colour, ms=3, alpha=0.6)
    ax.errorbar(mean[:1], mean[1:], xerr=half[:1], yerr=half[1:], fmt=marker, color=colour, ms=4, lw=0.7)
    right, up = BESIDE.get(arm, (4, 4))
    ax.annotate(arm, mean, xytext=(right, up), textcoords="offset points", color=colour, fontsize=6, path_effects=HALO,
                ha="left" if right > 0 else "right")
    seeds = pd.DataFrame({"arm": arm, "kind": "seed", "seed": [run.seed for run in runs], "x": gains[:, 0],
                          "y": gains[:, 1]})
    middle = {"arm": arm, "kind": "mean", "x": mean[0], "y": mean[1], "x_half": half[0], "y_half": half[1]}
    return pd.concat([seeds, pd.DataFrame([middle])], ignore_index=True)


def reliability(measured: Measured, base: str) -> Made:
    """Majority fraction, STE and log-probability as detectors of errors on test questions.

    Left: accuracy of the majority among questions with k of N votes; middle: by fifths of the base's STE; right: AUROC
    for a wrong majority. STE and log-probability are those of the canonical greedy answer. Black: the base with 95%
    over questions (Wilson; bootstrap); blue: joint runs, a dot each, with the mean and 95% over seeds.
    """
    runs = arm_runs(measured, base, "joint")
    if base not in measured.bases:
        return missing(f"reliability of {base}: the base is not measured", FILL.get(base, "asgkit batch headline"))
    return _reliability(base, measured.bases[base], runs)


@styled
def _reliability(base: str, held: Measurement, runs: Sequence[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 2.5), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    edges = np.unique(np.quantile(held.items["ste"], [0.2, 0.4, 0.6, 0.8]))
    fifth = lambda items: np.searchsorted(edges, items["ste"], side="right")
    share = lambda items: np.rint(items["fraction"] * _framings(items)).astype(int)
    votes = np.arange(1, _framings(held.items) + 1)
    parts = [_binned(left, held, runs, share, votes).assign(panel="votes"),
             _binned(middle, held, runs, fifth, np.arange(len(edges) + 1)).assign(panel="STE"),
             _detectors(right, held, runs).assign(panel="AUROC")]
    left.plot(votes, 100 * votes / votes[-1], color="0.7", lw=0.6, zorder=0)
    left.set(xlabel=f"votes for the majority, of {votes[-1]}", ylabel="majority correct (%)", ylim=(0, 103))
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    ticks = [f"<{edges[0]:.2f}", *(f"≥{edge:.2f}" for edge in edges)]
    middle.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right")
    middle.set(xlabel="STE (nats), in fifths", ylim=(0, 103))
    foot(fig, f"{base}: base (black, 95% over questions) and {len(runs)} joint runs (blue, dots: seeds, 95% over "
              "seeds); grey: as often right as the votes agree; fifths are the base's. Bins of fewer than 10 questions "
              "are left out")
    return fig, points(parts), [held, *runs]


def _framings(items: Mapping[str, np.ndarray]) -> int:
    return len(items["framings"])


def _binned(ax: Axes, held: Measurement, runs: Sequence[Run], place: Callable, bins: np.ndarray) -> pd.DataFrame:
    """Accuracy (percent) of the majority in each bin, for the base and the joint runs."""
    rows = []
    for k in bins:
        right = held.items["majority"][place(held.items) == k]
        if len(right) >= 10:
            found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
            rows.append({"arm": "base", "kind": "mean", "x": k, "y": 100 * right.mean(), "low": 100 * found.low,
                         "high": 100 * found.high, "n": len(right)})
        values = [(run.seed, 100 * own.mean()) for run in runs
                  if len(own := run.items["majority"][place(run.items) == k]) >= 10]
        if values:
            rows += [{"arm": "joint", "kind": "seed", "seed": seed, "x": k, "y": value} for seed, value in values]
            mean, half = mean_half(np.array([[value] for _, value in values]))
            rows.append({"arm": "joint", "kind": "mean", "x": k, "y": mean[0], "low": (mean - half)[0],
                         "high": (mean + half)[0]})
    if not rows:
        return blank(ax, "fewer than 10 questions\nin every bin")
    table = pd.DataFrame(rows)
    _draw_pair(ax, table, line=True)
    return table


def _draw_pair(ax: Axes, table: pd.DataFrame, *, line: bool) -> None:
    """The base in black and the joint runs in blue, a little apart; seeds as dots."""
    for arm, colour, shift in (("base", OKABE_ITO["black"], -0.08), ("joint", OKABE_ITO["blue"], 0.08)):
        own = table[table["arm"] == arm]
        mean, dots = own[own["kind"] == "mean"], own[own["kind"] == "seed"]
        ax.errorbar(mean["x"] + shift, mean["y"], yerr=[mean["y"] - mean["low"], mean["high"] - mean["y"]],
                    fmt="o-" if line else "o", ms=3, color=colour, lw=0.9)
        ax.plot(dots["x"] + shift + (0 if line else 0.15), dots["y"], ".", color=colour, ms=2.5, alpha=0.6)


def _detectors(ax: Axes, held: Measurement, runs: Sequence[Run]) -> pd.DataFrame:
    rows = []
    for x, (label, (name, sign, unanimous)) in enumerate(DETECTORS.items()):
        own = [(arm, m, *_scores(m.items, name, sign, unanimous))
               for arm, m in (("base", held), *(("joint", run) for run in runs)) if name in m.items]
        areas = [(arm, m, auroc(score, wrong), score, wrong) for arm, m, score, wrong in own
                 if wrong.any() and not wrong.all()]
        head = {"series": label.replace("\n", " "), "x": x}
        for _, _, area, score, wrong in (entry for entry in areas if entry[0] == "base"):
            half = auroc_half(score, wrong)
            rows.append({**head, "arm": "base", "kind": "mean", "y": area, "low": area - half, "high": area + half})
        seeds = [(m.seed, area) for arm, m, area, *_ in areas if arm == "joint"]
        if seeds:
            rows += [{**head, "arm": "joint", "kind": "seed", "seed": seed, "y": area} for seed, area in seeds]
            mean, half = mean_half(np.array([[area] for _, area in seeds]))
            rows.append({**head, "arm": "joint", "kind": "mean", "y": mean[0], "low": (mean - half)[0],
                         "high": (mean + half)[0]})
    if not rows:
        return blank(ax, "undefined: no answer\n(or every answer) is wrong")
    table = pd.DataFrame(rows)
    ax.axhline(0.5, color="0.7", lw=0.6)
    _draw_pair(ax, table, line=False)
    ax.set_xticks(range(len(DETECTORS)), list(DETECTORS), rotation=90, fontsize=6)
    ax.set(ylabel="AUROC, wrong majority", ylim=(0.4, 1.02))
    return table


def _scores(items: Mapping[str, np.ndarray], name: str, sign: float, unanimous: bool
            ) -> tuple[np.ndarray, np.ndarray]:
    rows = items["fraction"] > 1 - 1e-6 if unanimous else np.ones(len(items["fraction"]), bool)
    return sign * items[name][rows], ~items["majority"][rows]


def zero_variance(measured: Measured) -> Made:
    """Share of groups whose rewards were all equal, over steps of the joint runs (percent): they teach nothing.

    A Proposer group is the K questions of a picture, a Generator group the L drawings of a card; a card that fails
    its gate counts as one.
    """
    def draw(ax: Axes, base: str) -> tuple[pd.DataFrame, list[Measurement]] | None:
        runs, parts, ends = arm_runs(measured, base, "joint"), [], []
        for name, (label, colour) in SILENT.items():
            frame = signals(runs, name)
            if len(frame):
                plotted, end = smoothed(ax, frame.assign(value=100 * frame["value"]), colour)
                parts.append(plotted.assign(series=label))
                ends.append(End(end, label, colour))
        if not parts:
            return None
        ax.set_ylim(bottom=0)
        label_ends(ax, ends)
        return pd.concat(parts), list(runs)
    return by_base(measured, "joint runs with a log", draw, "groups of equal rewards (%)", "step",
                   "joint loop; thin: every seed, thick: moving mean over seeds, band: 95% over seeds")


def long_runs(measured: Measured) -> Made:
    """Five times the usual steps: the benchmark above, the loop's own signal below; the usual length beside it.

    Left: understanding alone on tiny-ar; right: generation alone on tiny-flow. Percent; dev split.
    """
    bases = ("tiny-ar-clean", "tiny-flow-clean")
    used = [run for base, (arm, _, _) in zip(bases, LONG, strict=True) for run in arm_runs(measured, base, arm)]
    if not used:
        return missing("long runs: no u-long or g-long run", "asgkit batch long")
    short = [run for base, (_, arm, _) in zip(bases, LONG, strict=True) for run in arm_runs(measured, base, arm)]
    return _long_runs(measured, bases, [*used, *short])


@styled
def _long_runs(measured: Measured, bases: Sequence[str], used: list[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 4.0), layout="constrained")
    parts = []
    for column, base, (long, short, side) in zip(fig.subplots(2, 2).T, bases, LONG, strict=True):
        field, label = SIDES[side]
        series = (lambda run, s=side: curve_values(run, s, MAIN[s]), lambda run, f=field: signals([run], f))
        for ax, read, name in zip(column, series, (f"{side}: {MAIN[side]} (%)", label), strict=True):
            ends = []
            for arm in (short, long):  # the long one on top
                frame = stack([read(run) for run in arm_runs(measured, base, arm)])
                if frame.empty:
                    continue
                colour, marker = arm_style(arm)
                colour = colour if arm == long else "0.45"
                plotted, end = dotted(ax, frame, colour, marker) if ax is column[0] else smoothed(ax, frame, colour)
                parts.append(plotted.assign(panel=name))
                ends.append(End(end, f"{arm} ({frame['seed'].nunique()})", colour))
            label_ends(ax, ends)
            if not ends:
                parts.append(blank(ax, f"no {long} run with this\nasgkit batch long"))
            ax.set_ylabel(name)
        column[0].set_title(f"{base}: {long}", loc="left")
        column[1].set_xlabel(f"step of the {'U' if side == 'answers' else 'G'} loop alone")
    foot(fig, "every seed thin, mean with 95% over seeds; grey: the run of usual length")
    return fig, points(parts), used


FIGURES: dict[str, Callable[[Measured], Made]] = {
    "ours_self_consistency": self_consistency, "ours_agreement_accuracy": agreement_accuracy,
    "ours_zero_variance": zero_variance, "ours_long_runs": long_runs,
}
BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {"ours_reliability": reliability}
