"""Parts that several figures share: series with seeds behind them, labels at the ends of lines, notes, empty axes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from asgkit.report.figures.series import COLUMNS, WINDOW, moving, over_seeds
from asgkit.report.measured import Run

HALO = [withStroke(linewidth=1.5, foreground="white")]  # of words that may lie on lines


class End(NamedTuple):
    """A label beside the end of a line: the line's last y, the text and its colour."""

    y: float
    text: str
    colour: str


def blank(ax: Axes, message: str) -> pd.DataFrame:
    """Say inside an empty panel what is missing and which command fills it; returns the row that stands for it."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, message, ha="center", va="center", color="0.35", fontsize=6, transform=ax.transAxes, wrap=True)
    return pd.DataFrame({"missing": [message.replace("\n", " ")]})


def absent(ax: Axes, message: str) -> pd.DataFrame:
    """As `blank`, in a panel that shares its axes with others and so keeps its ticks."""
    ax.text(0.5, 0.5, message, ha="center", va="center", color="0.35", fontsize=6, transform=ax.transAxes)
    return pd.DataFrame({"missing": [message.replace("\n", " ")]})


def column_title(ax: Axes, base: str, runs: Sequence[Run]) -> None:
    """The base above its panel, with its number of runs, and whether its framings were made to err independently."""
    designed = ", errors designed" if base.endswith("-registers") else ""
    ax.set_title(f"{base} ({len(runs)} seed{'' if len(runs) == 1 else 's'}{designed})", fontsize=7)


def label_ends(ax: Axes, ends: Sequence[End], gap: float = 0.1) -> None:
    """Write labels right of the axes at the height of their lines, pushed apart to at least `gap` of its height."""
    low, high = ax.get_ylim()
    placed: list[float] = []
    for end in sorted(ends, key=lambda e: e.y):
        wanted = (end.y - low) / (high - low)
        placed.append(wanted if not placed else max(wanted, placed[-1] + gap))
    over = max([0.0, *(p - 1.0 for p in placed[-1:])])  # keep the topmost inside by moving all down
    for end, y in zip(sorted(ends, key=lambda e: e.y), placed, strict=True):
        ax.annotate(end.text, (1.0, y - over), xycoords="axes fraction", xytext=(3, 0), textcoords="offset points",
                    color=end.colour, fontsize=6, va="center", annotation_clip=False)


def smoothed(ax: Axes, frame: pd.DataFrame, colour: str, *, window: int = WINDOW, dash: str = "-",
             zorder: float = 2) -> tuple[pd.DataFrame, float]:
    """Raw values of every seed thin, their moving mean over seeds thick with its 95% band.

    frame: rows (base, arm, seed, step, value) of one arm. Returns the plotted points (kind seed or mean) and the
    height of the line's end.
    """
    for _, one in frame.groupby("seed"):
        ax.plot(one["step"], one["value"], color=colour, lw=0.3, alpha=0.3, zorder=zorder - 1)
    mean = over_seeds(moving(frame, window))
    seen = ax.dataLim.frozen()  # the band of two seeds is as wide as it must be: it may leave the panel
    ax.fill_between(mean["step"], mean["low"], mean["high"], color=colour, alpha=0.2, lw=0, zorder=zorder)
    ax.dataLim.set(seen)
    ax.plot(mean["step"], mean["mean"], color=colour, lw=1.3, ls=dash, zorder=zorder + 1)
    return _both(frame, mean), float(mean["mean"].iloc[-1])


def dotted(ax: Axes, frame: pd.DataFrame, colour: str, marker: str, dash: str = "-") -> tuple[pd.DataFrame, float]:
    """Scores on checkpoints: every seed a thin line of small dots, the mean thick with its 95% interval over seeds."""
    for _, one in frame.groupby("seed"):
        ax.plot(one["step"], one["value"], color=colour, marker=".", ms=2, lw=0.4, alpha=0.5)
    mean = over_seeds(frame)
    ax.plot(mean["step"], mean["mean"], color=colour, marker=marker, ms=3, lw=1.3, ls=dash, zorder=3)
    ax.errorbar(mean["step"], mean["mean"], yerr=[mean["mean"] - mean["low"], mean["high"] - mean["mean"]],
                fmt="none", color=colour, lw=0.8, zorder=3)
    return _both(frame, mean), float(mean["mean"].iloc[-1])


def _both(frame: pd.DataFrame, mean: pd.DataFrame) -> pd.DataFrame:
    head = {name: frame[name].iloc[0] for name in ("base", "arm")}
    means = mean.rename(columns={"mean": "value"}).assign(kind="mean", **head)
    return pd.concat([frame[COLUMNS].assign(kind="seed"), means], ignore_index=True)


def note(ax: Axes, text: str, where: str = "lower right") -> None:
    """A few words in a corner of a panel, on white so that points behind them do not hide them."""
    vertical, horizontal = where.split()
    x, y = (0.98 if horizontal == "right" else 0.02), (0.97 if vertical == "upper" else 0.03)
    ax.text(x, y, text, transform=ax.transAxes, ha=horizontal, va={"upper": "top", "lower": "bottom"}[vertical],
            fontsize=6, color="0.2", zorder=6, linespacing=1.15,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1})


def foot(fig: Figure, text: str) -> None:
    """What a reader must know of the whole figure, below it."""
    wide = int(fig.get_figwidth() * 20)  # characters of this size that fit
    fig.supxlabel(textwrap.fill(text, wide, break_on_hyphens=False), fontsize=6, color="0.25")


def points(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The plotted points of all panels as one frame, columns in the order in which they came up."""
    held = [part.dropna(axis=1, how="all") for part in parts if len(part)]
    names = list(dict.fromkeys(name for part in held for name in part.columns))
    return pd.concat(held, ignore_index=True).reindex(columns=names)
