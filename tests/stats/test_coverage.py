"""Coverage and error rates: the committed simulation keeps its promises, and single cells of it come out again."""

import json

import numpy as np
import pytest
from paths import RESULTS

from asgkit.stats.coverage import (
    DESIGNS,
    RATIOS,
    SEEDS,
    WORLDS,
    World,
    as_text,
    coverage_of,
    errors_of,
    measure,
)

FILE = RESULTS / "bench" / "coverage.json"


@pytest.fixture(scope="module")
def held():
    return json.loads(FILE.read_text(encoding="utf-8"))


def noise(share: float, trials: int) -> float:
    """Two standard errors of a simulated share."""
    return 2 * (share * (1 - share) / trials) ** 0.5


def test_the_committed_file_holds_every_cell(held):
    cells = {(c["design"], c["world"], c["seeds"], c["ratio"]) for c in held["cells"]}
    assert cells == {(d, w, s, r) for d in DESIGNS for w in WORLDS for s in SEEDS for r in RATIOS}
    assert len(held["cells"]) == len(cells) and as_text(held) == FILE.read_text(encoding="utf-8")
    assert held["trials"] >= 4000 and held["sequential_trials"] >= 2000


def test_intervals_cover_94_to_96_percent_from_three_seeds_on(held):
    for cell in held["cells"]:
        slack = 1.5 * noise(0.95, held["trials"])  # of about 70 cells the worst is that far off by chance
        if cell["seeds"] >= 3:
            assert 0.94 - slack <= cell["coverage"] <= 0.96 + slack, cell
        else:
            assert cell["coverage"] >= 0.95 - slack, cell  # two seeds: the side of too wide
    found = [cell["coverage"] for cell in held["cells"] if cell["seeds"] >= 3]
    assert 0.947 < np.mean(found) < 0.958


def test_the_bootstrap_covers_more_and_is_wider(held):
    ours = {(c["design"], c["seeds"], c["ratio"]): c for c in held["cells"] if c["world"] == "questions"}
    some = [(cell, ours[cell["design"], cell["seeds"], cell["ratio"]]) for cell in held["bootstrap"]
            if cell["seeds"] in (3, 5)]
    assert np.mean([cell["coverage"] for cell, _ in some]) > 0.97
    assert np.mean([cell["half_width"] / mine["half_width"] for cell, mine in some]) > 1.1


def test_sequential_seeds_err_as_often_as_they_say(held):
    for cell in held["sequential"]:
        shift, slack = cell["true_gain_in_margins"], noise(0.05, held["sequential_trials"])
        if shift == 0:
            assert cell["gain"] + cell["loss"] <= 0.05 + slack, cell
        if shift >= 1:
            assert cell["no effect"] <= 0.05 + slack and cell["loss"] <= 0.025 + slack, cell
        assert cell["gain"] + cell["loss"] + cell["no effect"] + cell["open"] == pytest.approx(1, abs=2e-4)
    null = {cell["ratio"]: cell for cell in held["sequential"] if cell["true_gain_in_margins"] == 0}
    assert null[3.0]["peeking"] > 0.1, "what the rule prevents where seeds are all that varies"
    assert max(cell["gain"] + cell["loss"] for cell in null.values()) > 0.03, "it does not waste what it may spend"


def test_the_item_error_is_that_of_simulated_runs():
    world, rng = World(20_000, 0.6, 0.65, 0.62, 0.9), np.random.default_rng(0)
    hard = world.difficulty(rng)
    base, run = (world.measure(rng, hard, np.array([p]))[0] for p in (0.6, 0.65))
    assert world.item_error == pytest.approx((run - base).std() / 20_000**0.5, rel=0.05)
    many = world.runs(rng, hard, 0.65, 200, 3.0).mean(1)
    assert many.std() == pytest.approx(3 * world.item_error, rel=0.2)


@pytest.mark.parametrize(("design", "seeds", "ratio"), [("one arm", 3, 1.0), ("two arms", 5, 0.3),
                                                        ("own items", 3, 3.0)])
def test_a_cell_comes_out_again(held, design, seeds, ratio):
    found = coverage_of(design, WORLDS["drawings"], seeds, ratio, trials=600)
    kept = next(c for c in held["cells"] if (c["design"], c["world"], c["seeds"], c["ratio"])
                == (design, "drawings", seeds, ratio))
    assert found["coverage"] == pytest.approx(kept["coverage"], abs=noise(0.95, 600) + noise(0.95, 4000))
    assert found["half_width"] == pytest.approx(kept["half_width"], rel=0.08)
    assert found == coverage_of(design, WORLDS["drawings"], seeds, ratio, trials=600)


def test_an_error_rate_comes_out_again(held):
    found = errors_of(WORLDS["questions"], 3.0, 0.0, trials=250)
    kept = next(c for c in held["sequential"] if (c["true_gain_in_margins"], c["ratio"]) == (0.0, 3.0))
    assert found["gain"] + found["loss"] == pytest.approx(kept["gain"] + kept["loss"], abs=0.035)
    with pytest.raises(ValueError, match="no bootstrap"):
        coverage_of("own items", WORLDS["questions"], 3, 1.0, trials=1, bootstrap=True)


@pytest.mark.slow
def test_the_committed_file_is_what_the_simulation_gives(held):
    assert as_text(measure()) == FILE.read_text(encoding="utf-8")
