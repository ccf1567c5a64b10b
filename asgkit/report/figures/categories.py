"""Categories side by side, drawn by seaborn: means with the intervals computed for them, and every seed a dot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

ROW = 0.8  # share of a category's height that its groups take
MEAN, SEED = 4.0, 2.8  # sizes of markers, in points
Styles = Mapping[str, tuple[str, str]]  # colour and marker of each group, in order


def means_and_seeds(ax: Axes, points: pd.DataFrame, *, value: str, rows: tuple[str, Sequence[str]],
                    groups: tuple[str, Styles], apart: bool = True) -> None:
    """One line per category; in it each group's mean, the interval given for it, and its seeds on top.

    points: columns kind (mean or seed; others are left out), `value`, low and high of the means, and those named by
    `rows` (column, its categories from top to bottom) and `groups` (column, the look of each group). `apart`: groups
    stand beside each other in a category, else all on its middle. A mean without low and high has no interval. Raises
    ValueError for a group without a look or a category without a row.
    """
    (row, order), (group, styles) = rows, groups
    held = points[points["kind"].isin(["mean", "seed"])]
    for column, known in ((row, order), (group, styles)):
        if strange := set(held[column].dropna()) - set(known):
            raise ValueError(f"{column} {min(strange)!r} has no place among {', '.join(known)}")
    shared = {"x": value, "y": row, "order": order, "hue": group, "hue_order": list(styles), "orient": "y",
              "palette": {name: colour for name, (colour, _) in styles.items()}, "legend": False, "ax": ax}
    if len(held):
        _means(held[held["kind"] == "mean"], value, styles, apart and len(styles) > 1, shared)
        sns.stripplot(held[held["kind"] == "seed"], **shared, dodge=apart, jitter=False, size=SEED, edgecolor="white",
                      linewidth=0.4, zorder=4)
    ax.set_yticks(range(len(order)), order)
    ax.set_ylabel("")


def _means(means: pd.DataFrame, value: str, styles: Styles, apart: bool, shared: Mapping[str, object]) -> None:
    """Seaborn computes no interval here: it gets three values per mean, and takes the first between the others."""
    given = pd.concat([means, *(means.assign(**{value: means[end]}) for end in ("low", "high"))], ignore_index=True)
    sns.pointplot(given, **shared, estimator=lambda three: three.iloc[0], errorbar=lambda three: tuple(three.iloc[1:]),
                  dodge=ROW - ROW / len(styles) if apart else False, markers=[marker for _, marker in styles.values()],
                  linestyle="none", markersize=MEAN, err_kws={"linewidth": 1.0})


def legend_handles(styles: Styles) -> list[Line2D]:
    """One handle per group, for a legend of the whole figure."""
    return [Line2D([], [], color=colour, marker=marker, ls="none", ms=MEAN, label=name)
            for name, (colour, marker) in styles.items()]
