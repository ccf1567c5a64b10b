"""Figures as pure functions: data in, `Figure` and the frame of plotted points out. Every seed is visible."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator

from asgkit.report.figures.categories import legend_handles, means_and_seeds
from asgkit.report.figures.style import OKABE_ITO, TEXT_WIDTH, arm_order, arm_style, styled
from asgkit.report.measured import MAIN
from asgkit.stats.intervals import roc_curve

Drawn = tuple[Figure, pd.DataFrame]
SIGNALS = (  # (log field, phase, panel title): the diagnostics that a run must be read with
    ("solver/majority_fraction", "U", "majority fraction"), ("solver/self_consistency_entropy", "U", "H_sc (nats)"),
    ("solver/token_entropy", "U", "STE (nats)"), ("proposer/reward", "U", "R_p of q*"),
    ("generator/rewards", "G", "R_g, mean of L"), ("generator/zero_variance", "G", "zero-variance groups"),
    ("solver/kl", "U", "KL Solver (nats)"), ("generator/kl", "G", "KL Generator (nats)"),
)


@styled
def learning_curve(curves: pd.DataFrame, base_scores: Mapping[str, float]) -> Drawn:
    """Answering and drawing over steps: each seed a thin line with dots, the mean of an arm thick.

    curves: rows (arm, seed, step, side, metric, value) in percent. base_scores: `answers`, `drawings` and
    `drawings_best` of the base, measured on the split of the curves; a missing one draws no line.
    """
    fig = Figure(figsize=(TEXT_WIDTH, 2.6), layout="constrained")
    parts = []
    for ax, (side, metric) in zip(fig.subplots(1, 2), MAIN.items(), strict=True):
        rows = curves[(curves["side"] == side) & (curves["metric"] == metric)]
        _lines(ax, rows)
        marks = {side: ("base", "--"), f"{side}_best": ("base, best decoding", ":")}
        for key, (label, dash) in marks.items():
            if key in base_scores:
                ax.axhline(base_scores[key], color="0.4", ls=dash, lw=0.8, label=label)
                parts.append(pd.DataFrame([{"arm": label, "side": side, "metric": metric, "value": base_scores[key]}]))
        ax.set(xlabel="step", ylabel=f"{side}: {metric} (% correct)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        parts.append(rows)
    _legend_above(fig)
    return fig, pd.concat(parts, ignore_index=True)[["arm", "seed", "step", "side", "metric", "value"]]


def _legend_above(fig: Figure) -> None:
    """One legend above all panels, where it can hide no point; equal labels are named once."""
    found = {label: handle for ax in fig.axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(found.values()), list(found), loc="outside upper center", ncols=5, handlelength=1.6,
               columnspacing=1.2)


def _lines(ax: Axes, rows: pd.DataFrame) -> None:
    for arm in arm_order(rows["arm"]):
        colour, marker = arm_style(arm)
        own = rows[rows["arm"] == arm]
        for _, one in own.groupby("seed"):
            ax.plot(one["step"], one["value"], color=colour, marker=marker, ms=2, lw=0.5, alpha=0.5)
        mean = own.groupby("step")["value"].mean()
        ax.plot(mean.index, mean, color=colour, lw=1.8, label=f"{arm} ({own['seed'].nunique()} seeds)")


@styled
def forest(table: pd.DataFrame, points: pd.DataFrame) -> Drawn:
    """Gains over the base with 95% intervals, one row per metric, arms side by side, every seed a small dot.

    table: rows of one base (arm, metric, delta, low, high, seeds, n); points: rows (arm, seed, metric, delta).
    """
    counts, arms = table.groupby("metric", sort=False)["n"].first(), arm_order(table["arm"])
    both = pd.concat([table.assign(kind="mean"), points.assign(kind="seed")], ignore_index=True)
    both = both[["kind", "arm", "seed", "metric", "delta", "low", "high", "seeds", "n"]]
    fig = Figure(figsize=(TEXT_WIDTH, 1.0 + 0.11 * len(counts) * max(2, len(arms))), layout="constrained")
    ax = fig.subplots()
    ax.axvline(0, color="0.4", lw=0.7)
    label = {arm: f"{arm} ({table.loc[table['arm'] == arm, 'seeds'].max()} seeds)" for arm in arms}
    means_and_seeds(ax, both, value="delta", rows=("metric", list(counts.index)),
                    groups=("arm", {arm: arm_style(arm) for arm in arms}))
    ax.set_yticks(range(len(counts)), [f"{metric} (n={count})" for metric, count in counts.items()])
    ax.set_xlabel("evolved - base (points), 95% interval")
    fig.legend(handles=legend_handles({label[arm]: arm_style(arm) for arm in arms}), loc="outside upper center",
               ncols=3, columnspacing=1.2)
    return fig, both


@styled
def premise(items: Mapping[str, np.ndarray]) -> Drawn:
    """What the base knows of its own errors: accuracies, ROC of H_sc and STE, and both against each other.

    items: arrays of items.npz (framings, canonical, majority, sampled, entropy, ste, fraction) of one base.
    The ROC curves detect a wrong majority; the dashed one uses STE among unanimous votes only, where H_sc is 0.
    """
    fig = Figure(figsize=(TEXT_WIDTH, 2.5), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    parts = [_bars(left, items), _rocs(middle, items), _scatter(right, items)]
    return fig, pd.concat(parts, ignore_index=True)[["panel", "series", "x", "y", "error"]]


def _bars(ax: Axes, items: Mapping[str, np.ndarray]) -> pd.DataFrame:
    values = {"one\nframing": items["framings"].mean(0), "canonical": items["canonical"],
              "majority": items["majority"], "sampled": items["sampled"].mean(0)}
    means = [100 * v.mean() for v in values.values()]
    errors = [100 * 1.96 * v.std(ddof=1) / np.sqrt(len(v)) for v in values.values()]
    ax.bar(range(len(values)), means, yerr=errors, color=OKABE_ITO["sky"], error_kw={"lw": 0.8}, width=0.7)
    ax.set_xticks(range(len(values)), list(values), rotation=40, ha="right")
    ax.set(ylabel="% correct", ylim=(0, 100), title=f"answers, n = {len(items['majority'])}")
    names = [name.replace("\n", " ") for name in values]
    return pd.DataFrame({"panel": "accuracy", "series": names, "y": means, "error": errors})


def _rocs(ax: Axes, items: Mapping[str, np.ndarray]) -> pd.DataFrame:
    wrong, flat = ~items["majority"], items["fraction"] == 1.0
    every = np.ones_like(flat)
    parts = [pd.DataFrame(columns=["panel", "series", "x", "y"])]
    for label, score, rows, style in (("H_sc", items["entropy"], every, {"color": OKABE_ITO["vermillion"], "ls": "-"}),
                                      ("STE", items["ste"], every, {"color": OKABE_ITO["blue"], "ls": "-"}),
                                      ("STE, unanimous", items["ste"], flat, {"color": OKABE_ITO["blue"], "ls": "--"})):
        if wrong[rows].any() and not wrong[rows].all():
            x, y = roc_curve(score[rows], wrong[rows])
            ax.plot(x, y, **style, label=f"{label} {np.trapezoid(y, x):.2f}")
            parts.append(pd.DataFrame({"panel": "roc", "series": label, "x": x, "y": y}))
    if len(parts) == 1:
        ax.text(0.5, 0.5, "undefined: no answer\n(or every answer) is wrong", ha="center", va="center", color="0.35")
        return parts[0]
    ax.plot([0, 1], [0, 1], color="0.7", lw=0.6)
    ax.set(xlabel="false alarms", ylabel="errors found", title="AUROC, wrong majority")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), handlelength=1.4)
    return pd.concat(parts[1:], ignore_index=True)


def _scatter(ax: Axes, items: Mapping[str, np.ndarray]) -> pd.DataFrame:
    parts = []
    for label, rows, colour, marker in (("right", items["majority"], OKABE_ITO["sky"], "o"),
                                        ("wrong", ~items["majority"], OKABE_ITO["vermillion"], "x")):
        x, y = items["entropy"][rows], items["ste"][rows]
        ax.scatter(x, y, s=5, c=colour, marker=marker, linewidths=0.5, alpha=0.6, label=label)
        parts.append(pd.DataFrame({"panel": "scatter", "series": label, "x": x, "y": y}))
    ax.set(xlabel="H_sc (nats)", ylabel="STE (nats)", title="majority right or wrong")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.32), handletextpad=0.1, ncols=2)
    return pd.concat(parts, ignore_index=True)


@styled
def signals(logs: Sequence[tuple[str, int, pd.DataFrame]]) -> Drawn:
    """Signals of each run over steps, from its log: (arm, seed, log) -> thin raw lines, thick mean over seeds."""
    points = pd.concat([_signal_points(arm, seed, log) for arm, seed, log in logs], ignore_index=True)
    fig = Figure(figsize=(TEXT_WIDTH, 6.4), layout="constrained")
    for ax, (name, _, title) in zip(fig.subplots(4, 2).flat, SIGNALS, strict=True):
        rows = points[points["signal"] == name]
        for arm in arm_order(rows["arm"]):
            own, colour = rows[rows["arm"] == arm], arm_style(arm)[0]
            for _, one in own.groupby("seed"):
                ax.plot(one["step"], one["value"], color=colour, lw=0.4, alpha=0.35)
            mean = own.groupby("step")["value"].mean()
            ax.plot(mean.index, mean, color=colour, lw=1.2, label=f"{arm} ({own['seed'].nunique()} seeds)")
        ax.set(title=title, xlabel="step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend_above(fig)
    return fig, points


def _signal_points(arm: str, seed: int, log: pd.DataFrame) -> pd.DataFrame:
    """Mean of each signal over the images of a step; lists (candidates) count by their mean."""
    parts = []
    for name, phase, _ in SIGNALS:
        rows = log[log["phase"] == phase]
        if rows.empty:  # a run of one phase only has no such signal
            continue
        values = pd.to_numeric(rows[name].map(lambda v: np.mean(v) if isinstance(v, list) else v))
        mean = values.groupby(rows["step"]).mean().dropna()
        parts.append(pd.DataFrame({"arm": arm, "seed": seed, "step": mean.index, "signal": name,
                                   "value": mean.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


@styled
def learning_rates(points: pd.DataFrame, means: pd.DataFrame) -> Drawn:
    """Gain against learning rate (log axis) on both sides: every seed a dot, the arm's mean with its interval.

    points: rows (side, arm, seed, rate, delta); means: rows (side, arm, rate, delta, low, high). The rate is that of
    the role that acts on the side: Solver for answers, Generator for drawings.
    """
    fig = Figure(figsize=(TEXT_WIDTH, 2.3), layout="constrained")
    for ax, (side, metric) in zip(fig.subplots(1, 2), MAIN.items(), strict=True):
        dots, own = points[points["side"] == side], means[means["side"] == side].sort_values(["rate", "arm"])
        ax.plot(dots["rate"], dots["delta"], ".", color=OKABE_ITO["sky"], ms=4, label="one seed")
        ax.errorbar(own["rate"], own["delta"], yerr=[own["delta"] - own["low"], own["high"] - own["delta"]], fmt="o-",
                    color=OKABE_ITO["blue"], lw=0.9, label="mean, 95% interval")
        ax.axhline(0, color="0.4", lw=0.7)
        ax.set(xscale="log", xlabel=f"learning rate, {'Solver' if side == 'answers' else 'Generator'}",
               ylabel=f"{side}: gain in {metric} (points)")
        rates = sorted(set(own["rate"]))
        ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    _legend_above(fig)
    return fig, pd.concat([means.assign(kind="mean"), points.assign(kind="seed")], ignore_index=True)


@styled
def before_after_drawings(examples: Mapping[str, np.ndarray]) -> Drawn:
    """Pairs of drawings of one prompt, base left and evolved right, each with the detector's verdict.

    examples: drawing_base, drawing_evolved (E, H, W, 3) uint8, drawing_prompt (E,), drawing_base_ok and
    drawing_evolved_ok (E,) bool, drawing_rule (): how they were chosen, printed under the figure.
    """
    count = len(examples["drawing_prompt"])
    fig = Figure(figsize=(TEXT_WIDTH, 1.25 * -(-count // 3) + 0.35), layout="constrained")
    axes = fig.subplots(-(-count // 3), 6, squeeze=False)
    for i in range(count):
        pair = axes[i // 3, 2 * (i % 3) : 2 * (i % 3) + 2]
        for ax, side in zip(pair, ("base", "evolved"), strict=True):
            _picture(ax, examples[f"drawing_{side}"][i])
            good = bool(examples[f"drawing_{side}_ok"][i])
            ax.set_xlabel(f"{side} {'✓' if good else '✗'}", color=OKABE_ITO["blue" if good else "vermillion"])
        pair[0].set_title(str(examples["drawing_prompt"][i]), loc="left", fontsize=7)
    _hide_rest(axes.reshape(-1)[2 * count :])
    fig.supxlabel(textwrap.fill(str(examples["drawing_rule"]), 110), fontsize=6)
    return fig, _example_frame(examples, "drawing_", ("prompt", "base_ok", "evolved_ok"))


@styled
def before_after_answers(examples: Mapping[str, np.ndarray]) -> Drawn:
    """Questions with their picture: the base's answer, the evolved answer and the truth.

    examples: answer_image (E, H, W, 3) uint8, answer_question, answer_base, answer_evolved, answer_truth (E,),
    answer_rule (): how they were chosen, printed under the figure.
    """
    count = len(examples["answer_question"])
    fig = Figure(figsize=(TEXT_WIDTH, 1.5 * -(-count // 4) + 0.35), layout="constrained")
    axes = fig.subplots(-(-count // 4), 4, squeeze=False)
    for i in range(count):
        ax = axes[i // 4, i % 4]
        _picture(ax, examples["answer_image"][i])
        truth = str(examples["answer_truth"][i])
        before, after = str(examples["answer_base"][i]), str(examples["answer_evolved"][i])
        ax.set_title(textwrap.fill(str(examples["answer_question"][i]), 24), fontsize=6)
        mark = lambda text: f"{text} {'✓' if text == truth else '✗'}"  # noqa: B023 - used in this turn only
        ax.set_xlabel(f"{mark(before)}  >  {mark(after)}\ntruth: {truth}", fontsize=6)
    _hide_rest(axes.reshape(-1)[count:])
    fig.supxlabel(textwrap.fill(str(examples["answer_rule"]), 110), fontsize=6)
    return fig, _example_frame(examples, "answer_", ("question", "base", "evolved", "truth"))


def _picture(ax: Axes, pixels: np.ndarray) -> None:
    ax.imshow(pixels, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _hide_rest(axes: Sequence[Axes]) -> None:
    for ax in axes:
        ax.set_axis_off()


def _example_frame(examples: Mapping[str, np.ndarray], prefix: str, names: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({name: examples[prefix + name] for name in names}).assign(rule=str(examples[f"{prefix}rule"]))
