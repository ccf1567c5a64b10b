"""Means and seeds by category: seaborn draws the values that it is given, to the last digit, and leaves nothing out."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from asgkit.report.figures.categories import legend_handles, means_and_seeds
from asgkit.report.figures.style import styled

LOOK = {"a": ("#0072B2", "o"), "b": ("#E69F00", "s")}
POINTS = pd.DataFrame([
    {"kind": "mean", "row": "up", "group": "a", "value": 0.1, "low": -3.7, "high": 0.3},
    {"kind": "mean", "row": "up", "group": "b", "value": 5.0, "low": 5.5, "high": 6.0},  # outside of its own interval
    {"kind": "mean", "row": "down", "group": "a", "value": 2.0},  # one seed: no interval
    *({"kind": "seed", "row": "up", "group": "a", "value": v} for v in (0.7, -0.5)),
    {"kind": "seed", "row": "down", "group": "b", "value": 9.0},
    {"kind": "not run", "row": "down", "group": None},
])


@styled
def draw(points=POINTS, **settings):
    fig = Figure()
    ax = fig.subplots()
    means_and_seeds(ax, points, value="value", rows=("row", ["up", "down"]), groups=("group", LOOK), **settings)
    return ax


def marked(ax):
    """(x, y) of every mean by colour."""
    lines = [line for line in ax.lines if line.get_marker() in ("o", "s")]
    return {to_hex(line.get_color()).upper(): [(x, y) for x, y in zip(*line.get_data(), strict=True) if np.isfinite(x)]
            for line in lines}


def bars(ax):
    return sorted(tuple(line.get_xdata()) for line in ax.lines
                  if line.get_marker() not in ("o", "s") and np.isfinite(line.get_xdata()).all())


def dots(ax):
    return sorted(tuple(place) for held in ax.collections for place in held.get_offsets().tolist())


def test_every_mean_interval_and_seed_is_where_it_was_put():
    ax = draw()
    assert marked(ax) == {"#0072B2": [(0.1, pytest.approx(-0.2)), (2.0, pytest.approx(0.8))],
                          "#E69F00": [(5.0, pytest.approx(0.2))]}
    assert bars(ax) == [(-3.7, 0.3), (5.5, 6.0)]
    assert dots(ax) == [(-0.5, pytest.approx(-0.2)), (0.7, pytest.approx(-0.2)), (9.0, pytest.approx(1.2))]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "down"] and ax.yaxis_inverted()
    assert ax.get_legend() is None and ax.get_ylabel() == ""


def test_groups_may_share_the_middle_of_their_category():
    ax = draw(apart=False)
    assert {y for places in marked(ax).values() for _, y in places} | {y for _, y in dots(ax)} == {0.0, 1.0}


def test_an_empty_panel_keeps_its_categories():
    ax = draw(POINTS[POINTS["kind"] == "not run"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "down"] and not ax.lines


@pytest.mark.parametrize(("column", "message"), [("group", "group 'new' has no place among a, b"),
                                                 ("row", "row 'new' has no place among up, down")])
def test_a_point_that_would_not_be_drawn_is_an_error(column, message):
    with pytest.raises(ValueError, match=message):
        draw(pd.concat([POINTS, POINTS.iloc[:1].assign(**{column: "new"})]))


def test_the_legend_has_the_look_of_each_group():
    assert [(h.get_label(), h.get_color(), h.get_marker()) for h in legend_handles(LOOK)] == [
        ("a", "#0072B2", "o"), ("b", "#E69F00", "s")]
