"""What the signals say: STE over training, H_sc against STE, the two drawing scores, and both by correctness."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asgkit.report.figures.panels import End, foot, label_ends, note, points, smoothed
from asgkit.report.figures.series import Made, arm_runs, auroc_half, has_log, mean_half, missing, signals
from asgkit.report.figures.style import OKABE_ITO, TEXT_WIDTH, THIRDS, styled
from asgkit.report.measured import Measured, Measurement, Run
from asgkit.stats.intervals import auroc

LEVELS = np.linspace(0.0, 1.0, 101)  # of the distribution of STE
CONSISTENT = 5 / 7  # share of votes from which the tiny presets teach the majority
GROUPS = ("consistent,\ncorrect", "consistent,\nwrong", "inconsistent")
SIGNALS = {"ste": "STE (nats)", "entropy": "H_sc (nats)"}


def _joint(measured: Measured, base: str) -> list[Run]:
    return [run for run in arm_runs(measured, base, "joint") if has_log(run)]


def _command(base: str) -> str:
    return "asgkit batch registers" if base.endswith("-registers") else "asgkit batch headline"


def figure3(measured: Measured, base: str) -> Made:
    """Figure 3: (a) STE early, middle and late, (b) H_sc against STE with four regions, (c) S_fid and S_cyc over steps.

    From the logs of the joint runs of a base. (a) takes the chosen question of every picture, cumulative, by thirds of
    the steps; (b) splits at the medians of H_sc and STE, with the share of questions in each region. Nats, steps.
    Source: paper, figure 3.
    """
    runs = _joint(measured, base)
    return _figure3(base, runs) if runs else missing(f"figure 3 of {base}: no joint run with a log", _command(base))


@styled
def _figure3(base: str, runs: Sequence[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 2.35), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    questions = pd.concat([chosen_questions(run) for run in runs], ignore_index=True)
    parts = [_thirds(left, questions), _regions(middle, questions), _drawing_scores(right, runs)]
    foot(fig, f"{base}, {len(runs)} seeds of the joint loop; thin lines: one seed, bands: 95% over seeds")
    return fig, points(parts), list(runs)


def chosen_questions(run: Run) -> pd.DataFrame:
    """Rows (seed, step, third, entropy, ste) of the answered q* of a run's log; H_sc and STE in nats.

    Thirds are thirds of the understanding steps, so that each holds as many pictures.
    """
    log = run.log(["phase", "step", "solver/self_consistency_entropy", "solver/token_entropy"])
    own = log[(log["phase"] == "U") & log["solver/token_entropy"].notna()]
    steps = np.sort(log.loc[log["phase"] == "U", "step"].unique())
    third = np.minimum(np.searchsorted(steps, own["step"]) * 3 // len(steps), 2)
    return pd.DataFrame({"seed": run.seed, "step": own["step"].to_numpy(), "third": np.array(list(THIRDS))[third],
                         "entropy": own["solver/self_consistency_entropy"].to_numpy(),
                         "ste": own["solver/token_entropy"].to_numpy()})


def _thirds(ax: Axes, questions: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for i, (third, colour) in enumerate(THIRDS.items()):
        own = questions[questions["third"] == third]
        if own.empty:  # a run of one or two understanding steps has fewer thirds
            continue
        curves = np.stack([np.quantile(one, LEVELS) for _, one in own.groupby("seed")["ste"]])  # (S, levels)
        for seed, curve in zip(sorted(own["seed"].unique()), curves, strict=True):
            ax.plot(curve, LEVELS, color=colour, lw=0.4, alpha=0.5)
            parts.append(pd.DataFrame({"panel": "a", "series": third, "kind": "seed", "seed": seed, "x": curve,
                                       "y": LEVELS}))
        mean, half = mean_half(curves)
        ax.fill_betweenx(LEVELS, mean - half, mean + half, color=colour, alpha=0.25, lw=0)
        ax.plot(mean, LEVELS, color=colour, lw=1.5)
        middle, error = mean_half(own.groupby("seed")["ste"].mean().to_numpy()[:, None])
        ax.text(0.98, 0.28 - 0.11 * i, f"{third} {middle[0]:.2f}" + _plus_minus(error[0]), transform=ax.transAxes,
                color=colour, fontsize=6, ha="right")
        parts.append(pd.DataFrame({"panel": "a", "series": third, "kind": "mean", "x": mean, "y": LEVELS,
                                   "low": mean - half, "high": mean + half}))
    ax.text(0.98, 0.39, "mean STE", transform=ax.transAxes, fontsize=6, ha="right")
    ax.set(xlabel="STE of q* (nats)", ylabel="share of questions below", title="a  STE by third", ylim=(0, 1))
    ax.set_xlim(left=0)
    return pd.concat(parts, ignore_index=True)


def _plus_minus(half: float) -> str:
    return "" if np.isnan(half) else f" ± {half:.2f}"


def _regions(ax: Axes, questions: pd.DataFrame) -> pd.DataFrame:
    x, y = questions["entropy"].to_numpy().round(4), questions["ste"].to_numpy().round(4)
    ax.scatter(x, y, s=2, c=OKABE_ITO["blue"], alpha=0.12, linewidths=0, rasterized=True)
    cut_x, cut_y = float(np.median(x)), float(np.median(y))
    ax.axvline(cut_x, color="0.3", lw=0.6, ls="--")
    ax.axhline(cut_y, color="0.3", lw=0.6, ls="--")
    ax.set(xlabel="H_sc (nats)", ylabel="STE (nats)", title="b  four regions", xlim=(-0.08, 2.05),
           ylim=(-0.05 * y.max(), 1.12 * y.max()))
    for right in (False, True):
        for top in (False, True):
            rows = ((x > cut_x) == right) & ((y > cut_y) == top)
            where = f"{'upper' if top else 'lower'} {'right' if right else 'left'}"
            shares, half = mean_half(_share_by_seed(questions["seed"], rows)[:, None])
            note(ax, f"{100 * shares[0]:.0f}%" + ("" if np.isnan(half[0]) else f" ± {100 * half[0]:.0f}"), where)
    return pd.DataFrame({"panel": "b", "series": "q*", "seed": questions["seed"], "x": x, "y": y})


def _share_by_seed(seeds: pd.Series, rows: np.ndarray) -> np.ndarray:
    return pd.Series(rows).groupby(seeds.to_numpy()).mean().to_numpy()


def _drawing_scores(ax: Axes, runs: Sequence[Run]) -> pd.DataFrame:
    parts, ends = [], []
    for name, label, colour in (("generator/fidelity", "S_fid", OKABE_ITO["blue"]),
                                ("generator/cycle", "S_cyc", OKABE_ITO["vermillion"])):
        plotted, end = smoothed(ax, signals(runs, name), colour)
        parts.append(plotted.rename(columns={"step": "x", "value": "y"}).assign(panel="c", series=label))
        ends.append(End(end, label, colour))
    ax.set(xlabel="step", ylabel="mean over candidates", title="c  drawing scores")
    label_ends(ax, ends)
    return pd.concat(parts, ignore_index=True)[["panel", "series", "kind", "seed", "x", "y", "low", "high"]]


def figure_s2(measured: Measured, base: str) -> Made:
    """Figure S2: STE and H_sc of test questions by outcome of the vote, for the base and the joint runs.

    consistent: the majority has at least 5 of 7 votes; correct: it is the truth. Boxes: median, quartiles, 5% and 95%
    of the questions (all seeds pooled). Dots: the mean of each run, with its 95% interval over seeds, or over questions
    where there is one run. The number is the AUROC of the signal for wrong against correct among the consistent. Nats.
    Source: paper, figure S2.
    """
    runs = arm_runs(measured, base, "joint")
    if base not in measured.bases or not runs:
        return missing(f"figure S2 of {base}: needs the base and its joint runs measured", _command(base))
    return _figure_s2(base, measured.bases[base], runs)


@styled
def _figure_s2(base: str, held: Measurement, runs: Sequence[Run]) -> Made:
    fig = Figure(figsize=(TEXT_WIDTH, 2.6), layout="constrained")
    parts = []
    for ax, (name, label) in zip(fig.subplots(1, 2), SIGNALS.items(), strict=True):
        texts = []
        for arm, group, colour, shift in (("base", [held], OKABE_ITO["black"], -0.2),
                                          ("joint", runs, OKABE_ITO["blue"], 0.2)):
            parts.append(_outcomes(ax, name, arm, group, colour, shift))
            texts.append(f"{arm}: AUROC {_areas(name, group)}")
        ax.set_xticks(range(3), GROUPS)
        ax.set(ylabel=label, xlim=(-0.6, 2.6))
        ax.set_title("\n".join(texts), fontsize=6)
    foot(fig, f"{base}: base (black) and {len(runs)} joint seeds (blue), {len(held.items['majority'])} test questions; "
              "consistent: at least 5 of 7 votes agree. AUROC: wrong against correct among the consistent; "
              "dots: runs; ± and bars: 95% over seeds, of one run over questions")
    return fig, points(parts), [held, *runs]


def outcome(items: Mapping[str, np.ndarray]) -> np.ndarray:
    """Index into `GROUPS` of each question (Q,): consistent and correct, consistent and wrong, inconsistent."""
    agreed = items["fraction"] >= CONSISTENT - 1e-6
    return np.where(agreed, np.where(items["majority"], 0, 1), 2)


def _outcomes(ax: Axes, name: str, arm: str, group: Sequence[Measurement], colour: str, shift: float) -> pd.DataFrame:
    parts = []
    for i, label in enumerate(GROUPS):
        values = [m.items[name][outcome(m.items) == i].astype(np.float64) for m in group]
        values = [v for v in values if len(v)]
        if not values:
            continue
        pooled, dots = np.concatenate(values), np.array([v.mean() for v in values])
        five, low, middle, high, most = np.quantile(pooled, [0.05, 0.25, 0.5, 0.75, 0.95])
        ax.bxp([{"whislo": five, "q1": low, "med": middle, "q3": high, "whishi": most, "fliers": []}],
               positions=[i + shift], widths=0.22, showfliers=False, manage_ticks=False,
               **{f"{part}props": {"color": colour, "lw": 0.6, "alpha": 0.6}
                  for part in ("box", "whisker", "cap", "median")})
        mean, half = mean_half(dots[:, None])
        if len(dots) == 1:  # one run: the interval is that over its questions
            half = np.array([1.96 * pooled.std(ddof=1) / np.sqrt(len(pooled))]) if len(pooled) > 1 else half
        x = i + shift + (0.17 if shift > 0 else -0.17)
        ax.plot([x] * len(dots), dots, ".", color=colour, ms=3, alpha=0.6)
        ax.errorbar([x], mean, yerr=half, fmt="_", color=colour, ms=5, lw=0.9)
        flat = label.replace("\n", " ")
        head = {"panel": name, "arm": arm, "group": flat}
        parts.append(pd.DataFrame([{**head, "kind": "questions", "q05": five, "q25": low, "q50": middle, "q75": high,
                                    "q95": most, "n": len(pooled)},
                                   {**head, "kind": "mean", "value": mean[0], "low": (mean - half)[0],
                                    "high": (mean + half)[0]}]
                                  + [{**head, "kind": "seed", "value": dot} for dot in dots]))
    return pd.concat(parts, ignore_index=True)


def _areas(name: str, group: Sequence[Measurement]) -> str:
    """Mean over runs of the AUROC of a signal for wrong among consistent votes, with its interval."""
    areas = []
    for m in group:
        kind = outcome(m.items)
        if (kind == 0).any() and (kind == 1).any():
            areas.append(auroc(m.items[name][kind < 2], kind[kind < 2] == 1))
    if not areas:
        return "undefined"
    mean, half = mean_half(np.array(areas)[:, None])
    if len(areas) == 1:
        kind = outcome(group[0].items)
        half = np.array([auroc_half(group[0].items[name][kind < 2], kind[kind < 2] == 1)])
    return f"{mean[0]:.2f}{_plus_minus(half[0])}"



BASE_FIGURES: dict[str, Callable[[Measured, str], Made]] = {"figure3_signals": figure3, "figureS2_outcomes": figure_s2}
FIGURES: dict[str, Callable[[Measured], Made]] = {}
