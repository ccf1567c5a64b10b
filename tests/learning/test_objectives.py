"""From rewards of candidates to what the Generator learns: who counts in the means, and how much."""

import numpy as np
import pytest
import torch

from asgkit.config import resolve
from asgkit.learning.objectives import choose_examples, drawing_batch, weigh_candidates

G = resolve("tiny", {"generator.candidates": 3}).generator
PASSED = torch.tensor([True, True, False])


def batch(rewards, control=""):
    codes = torch.arange(9.0)
    return drawing_batch(["a", "b", "c"], codes, None, torch.tensor(rewards), PASSED, times="uniform", settings=G,
                         control=control, rng=np.random.default_rng(0))


def mean_loss(found, errors: torch.Tensor) -> float:
    """The weighted mean that the objective takes, for candidates whose plain losses are `errors`."""
    return (found.examples.weights * errors[found.examples.codes.long()]).mean().item()


def test_a_candidate_of_weight_zero_counts_and_a_group_without_any_does_not():
    nearly, exactly = (weigh_candidates(torch.tensor([[0.0, middle, 1.0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.9]]), PASSED,
                                        True, G, "") for middle in (0.4999, 0.5))
    errors = torch.arange(9.0)
    losses = [(e.weights * errors[e.codes.long()]).mean().item()
              for e in (choose_examples(list("aaabbbccc"), errors, None, w) for w in (nearly, exactly))]
    assert losses[1] == pytest.approx(2 * 1.2247 / 3, abs=1e-3)  # three candidates, and the silent group is no row
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_best_of_is_the_mean_loss_of_the_best_drawings():
    errors = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
    found = batch([[0.1, 0.9, 0.3], [0.7, 0.2, 0.1], [0.0, 0.0, 0.9]], "best_of")
    assert mean_loss(found, errors) == pytest.approx((2.0 + 8.0) / 2)  # not L times as much
    assert found.counts.rows == 6 and found.examples.prompts == list("aaabbb")


def test_nothing_to_prefer_is_nothing_to_learn_from():
    assert batch([[0.5, 0.5, 0.5]] * 3) is None
