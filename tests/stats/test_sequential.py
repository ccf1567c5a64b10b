"""Looks: levels that spend alpha, decisions by their definition, and that replaying gives the same answer."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from asgkit.stats.effects import Estimate, Shares
from asgkit.stats.sequential import Looks, decide, spent


def test_one_look_is_the_plain_level():
    assert spent(5, 5, 0.05) == pytest.approx((0.05,), abs=3e-4)


@pytest.mark.parametrize(("first", "last", "alpha"), [(3, 10, 0.05), (3, 10, 0.1), (2, 5, 0.05), (5, 8, 0.05)])
def test_all_looks_together_spend_alpha(first, last, alpha):
    """Sums of independent steps: the share that is beyond its level at any look, of 200,000."""
    levels = np.array(spent(first, last, alpha))
    assert levels[0] == pytest.approx(alpha * first / last, rel=0.01) and (levels < alpha).all()
    steps = np.random.default_rng(0).normal(size=(200_000, last))
    scores = steps.cumsum(1)[:, first - 1 :] / np.sqrt(np.arange(first, last + 1))
    assert (2 * norm.sf(np.abs(scores)) < levels).any(1).mean() == pytest.approx(alpha, abs=0.002)


def fixed(delta: float, error: float = 0.01) -> Estimate:
    return Estimate(delta, error, Shares(0.0, math.inf, 1e6), 100, 3)


LOOKS = Looks(3, 6, margin=0.01)


@pytest.mark.parametrize(("delta", "error", "verdict"), [
    (0.05, 0.01, "gain"), (-0.05, 0.01, "loss"), (0.001, 0.002, "no effect"), (0.01, 0.01, "open"),
    (0.005, 0.0005, "gain"), (0.0, 0.0, "no effect")])  # a clear gain below the margin is a gain
def test_a_decision_by_its_definition(delta, error, verdict):
    found = decide(lambda count: fixed(delta, error), 3, LOOKS)
    assert (found.verdict, found.seeds) == (verdict, 3)
    assert found.level == pytest.approx(1 - LOOKS.alphas()[0])


def test_the_first_decision_stands_whatever_follows():
    told = {3: fixed(0.0), 4: fixed(0.05), 5: fixed(-0.05), 6: fixed(0.0)}
    assert decide(told.__getitem__, 3, LOOKS).verdict == "open"
    for seeds in (4, 5, 6, 9):
        found = decide(told.__getitem__, seeds, LOOKS)
        assert (found.verdict, found.seeds) == ("gain", 4)


def test_an_early_look_asks_for_more_than_a_single_one():
    clear = fixed(2.2 * 0.01)  # p = .028: clear at 95%, not at the first look's 98.3%
    assert decide(lambda count: clear, 2, Looks(2, 6, 0.01)).verdict == "open"
    assert decide(lambda count: clear, 6, Looks(6, 6, 0.01)).verdict == "gain"


def test_looks_that_cannot_be_are_refused():
    for wrong in ((1, 5, 0.01), (5, 4, 0.01), (3, 5, 0.0)):
        with pytest.raises(ValueError, match=r"first <= last|margin"):
            Looks(*wrong)
    with pytest.raises(ValueError, match="needs 3 seeds"):
        decide(lambda count: fixed(0.0), 2, LOOKS)
