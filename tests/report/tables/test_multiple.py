"""Many comparisons: p-values that agree with intervals, Holm within grids and over all, verdicts in words."""

import numpy as np
import pandas as pd
import pytest
import report_data as data
import yaml

from asgkit.config import resolve
from asgkit.grids.load import Grid
from asgkit.report.measured import Untraceable, load_measured
from asgkit.report.tables.arms import grid_arms, grid_page
from asgkit.report.tables.gains import Gains
from asgkit.report.tables.multiple import (
    ALONE,
    APART,
    COLUMNS,
    ONE_SEED,
    SAME,
    _corrected,
    comparisons,
    comparisons_shown,
)
from asgkit.stats.intervals import draw_items, holm, interval_of, p_value

GRID = Grid(title="T", question="why?", seeds=[0, 1, 2], reference={"u-": "u-only"}, arms={
    "u-only": ["schedule.generation=0"], "u-better": ["schedule.generation=0", "solver.framings=3"],
    "u-alike": ["schedule.generation=0", "solver.framings=5"],
    "u-once": ["schedule.generation=0", "solver.ste=false"]})


def add_run(results, arm, seed, gain):
    """A run of the grid whose drawings are the base's own."""
    base, items = data.make_items(1), data.make_items(5, gain)  # the same luck for every seed: seeds do not differ
    items |= {key: base[key] for key in ("drawings", "drawings_best")}
    path = results / "measured" / "runs" / f"{data.BASE}-{arm}-s{seed}"
    data.write_measurement(path, items, 5)
    config = resolve("tiny", [*GRID.arms[arm].overrides, f"seed={seed}"]).model_dump(mode="json")
    (path / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def measured(tmp_path):
    results = data.make_results(tmp_path / "results")
    for arm, gain, seeds in (("u-only", 0.0, 3), ("u-better", 0.4, 3), ("u-alike", 0.0, 3), ("u-once", 0.4, 1)):
        for seed in range(seeds):
            add_run(results, arm, seed, gain)
    return load_measured(results)


# -- the p-value ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.35, 0.6])
@pytest.mark.parametrize("runs", [1, 3])
def test_p_below_a_level_is_an_interval_clear_of_0(shift, runs):
    values = np.random.default_rng(3).normal(shift, 1.0, (runs, 60))
    drawn = draw_items(values, resamples=1000)
    p = p_value(lambda level: interval_of(drawn, level=level), smallest=2 / 1000)
    for level in (0.8, 0.9, 0.95, 0.99):
        found = interval_of(drawn, level=level)
        if abs(p - (1 - level)) > 1e-3:
            assert (p < 1 - level) == (found.low > 0 or found.high < 0)


def test_p_of_one_seed_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(0.0, 1.0, (1, 400)) + 0.1
    drawn = draw_items(values, resamples=4000)
    p = p_value(lambda level: interval_of(drawn, level=level), smallest=2 / 4000)
    from scipy.stats import norm

    z = values.mean() / (values.std(ddof=1) / 20)
    assert p == pytest.approx(2 * norm.sf(abs(z)), abs=0.02)


def test_p_at_both_ends():
    certain, none = draw_items(np.full((1, 5), 0.3), resamples=100), draw_items(np.zeros((1, 5)), resamples=100)
    assert p_value(lambda level: interval_of(certain, level=level), smallest=0.02) == 0.02
    assert p_value(lambda level: interval_of(none, level=level), smallest=0.02) == 1.0
    with pytest.raises(ValueError, match="smallest"):
        p_value(lambda level: interval_of(none, level=level), smallest=0.0)


def test_p_of_gains_agrees_with_their_intervals_over_base_and_over_arms(measured):
    gains, arms, base = Gains(measured, 1000), measured.arms(data.BASE), measured.bases[data.BASE]
    for metric in ("answers/single", "answers/majority"):
        for arm in ("u-better", "u-alike", "joint"):
            clear = gains.over_base(base, arms[arm], metric).clear
            assert (gains.p_value(base, arms[arm], metric) < 0.05) == clear
            for other in ("u-only", "joint"):  # matched seeds, and seeds apart
                if other != arm:
                    clear = gains.over_arm(base, arms[arm], arms[other], metric).clear
                    assert (gains.p_value(base, arms[arm], metric, arms[other]) < 0.05) == clear


# -- many of them ---------------------------------------------------------------------------------------------------
def test_every_arm_against_its_reference_and_nothing_that_cannot_differ(measured):
    table = comparisons({"t": grid_arms(measured, GRID)}, measured, Gains(measured, 1000))
    assert list(table["arm"]) == ["u-better", "u-once"]  # u-alike is equal in every answer: no comparison
    assert set(table["metric"]) == {"answers/single"}  # understanding alone leaves drawings as they are
    assert dict(zip(table["arm"], table["verdict"], strict=True)) == {"u-better": APART, "u-once": ONE_SEED}
    assert table["holm_grid"].tolist() == holm(table["p"]) == table["holm_all"].tolist()


def test_holm_within_a_grid_and_over_all_by_hand():
    rows = [("a", 0.01, 3), ("a", 0.04, 3), ("b", 0.03, 3), ("b", 0.2, 3), ("b", 0.02, 1)]
    table = pd.DataFrame([{**dict.fromkeys(COLUMNS, ""), "grid": grid, "p": p, "seeds": seeds, "holm_grid": 0.0}
                          for grid, p, seeds in rows])
    found = _corrected(table)
    assert found["holm_grid"].tolist() == pytest.approx([0.02, 0.04, 0.06, 0.2, 0.06])
    assert found["holm_all"].tolist() == pytest.approx([0.05, 0.09, 0.09, 0.2, 0.08])
    assert found["verdict"].tolist() == [APART, APART, ALONE, SAME, ONE_SEED]


def test_the_printed_table_has_the_smallest_p_first(measured):
    table = comparisons({"t": grid_arms(measured, GRID)}, measured, Gains(measured, 1000))
    shown = comparisons_shown(table)
    assert len(shown) == len(table) and shown.iloc[0]["p"] <= shown.iloc[-1]["p"] and set(shown["seeds"]) == {"3", "1"}
    assert comparisons_shown(comparisons({}, measured, Gains(measured, 100))).empty
    with pytest.raises(Untraceable):
        comparisons_shown(table.assign(source="reported"))


def test_the_page_of_a_grid_is_its_table_its_print_and_its_caption(measured):
    table, shown, caption = grid_page("components", measured, Gains(measured, 200))
    assert table.empty and caption.startswith("Components (Table 4): ")
    assert "not measured" in shown.iloc[0]["answers/single"]
    with pytest.raises(KeyError):
        grid_page("nothing", measured, Gains(measured, 200))
