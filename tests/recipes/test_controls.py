"""Reward controls by hand: what is taught instead of the method's own reward."""

import numpy as np
import pytest
import torch

from asgkit.recipes.controls import control_rewards, control_vote, donors, own_answers
from asgkit.solve import vote

REWARDS = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
VOTE = vote(["red", "red", "blue", "green", "red"])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_method_keeps_its_own_rewards():
    assert control_rewards("", REWARDS, None, rng()) is REWARDS
    assert control_vote("", VOTE, "green", rng()) is VOTE  # the truth never reaches the method


def test_random_rewards_know_nothing_of_the_real_ones():
    a, b = control_rewards("random", REWARDS, None, rng()), control_rewards("random", 9 * REWARDS, None, rng())
    assert torch.equal(a, b) and a.shape == REWARDS.shape and 0 <= a.min() and a.max() < 1
    assert not torch.equal(a, control_rewards("random", REWARDS, None, rng(1)))


def test_permuted_rewards_are_the_same_values_elsewhere():
    found = [control_rewards("permuted", REWARDS, None, rng(seed)) for seed in range(20)]
    assert all(sorted(f.flatten().tolist()) == sorted(REWARDS.flatten().tolist()) for f in found)
    assert any(set(f[0].tolist()) != set(REWARDS[0].tolist()) for f in found)  # across groups, not within one
    assert len({tuple(f.flatten().tolist()) for f in found}) > 15


def test_constant_and_oracle():
    assert torch.equal(control_rewards("constant", REWARDS, None, rng()), torch.zeros(2, 3))
    oracle = torch.ones(2, 3)
    assert control_rewards("oracle", REWARDS, oracle, rng()) is oracle
    with pytest.raises(ValueError, match="needs a judge"):
        control_rewards("oracle", REWARDS, None, rng())
    with pytest.raises(ValueError, match="unknown control 'noise'"):
        control_rewards("noise", REWARDS, None, rng())


def test_the_oracle_teaches_the_truth():
    taught = control_vote("oracle", VOTE, "green", rng())
    assert (taught.majority, taught.count, taught.fraction) == ("green", 1, 0.2)
    assert taught.answers == VOTE.answers
    missed = control_vote("oracle", VOTE, "purple", rng())
    assert (missed.majority, missed.count, missed.fraction) == ("purple", 0, 0.0)
    assert control_vote("oracle", VOTE, None, rng()) is None  # it abstains: its own majority is no truth


def test_random_labels_come_in_the_votes_own_proportions():
    taught = [control_vote("random_vote", VOTE, None, rng(seed)).majority for seed in range(1000)]
    assert np.mean([t == "red" for t in taught]) == pytest.approx(0.6, abs=0.05)
    assert set(taught) == {"red", "blue", "green"}


def test_permuting_and_another_picture_act_on_whole_questions():
    assert control_vote("permuted", VOTE, None, rng()) is VOTE
    pictures = [0, 0, 0, 1, 2, 2]
    orders = [donors("permuted", pictures, rng(seed)) for seed in range(50)]
    assert all(sorted(order) == [0, 1, 2, 3, 4, 5] for order in orders) and len(set(map(tuple, orders))) > 40
    given = [donors("other_picture", pictures, rng(seed)) for seed in range(50)]
    assert all(pictures[i] != pictures[j] for one in given for i, j in enumerate(one))
    assert {one[3] for one in given} == {0, 1, 2, 4, 5}
    assert donors("other_picture", [4, 4], rng()) == [None, None]


def test_groups_are_paid_what_another_passed_group_earned():
    rewards = torch.arange(8.0).reshape(4, 2)
    passed = torch.tensor([True, False, True, True])
    for seed in range(20):
        paid = control_rewards("other_picture", rewards, None, rng(seed), passed)
        assert paid[1].tolist() == [2.0, 3.0] and not (paid == rewards)[passed].any()
        assert sorted(map(tuple, paid.tolist())) == sorted(map(tuple, rewards.tolist()))
        mixed = control_rewards("permuted", rewards, None, rng(seed), passed)
        assert mixed[1].tolist() == [2.0, 3.0] and sorted(mixed.flatten().tolist()) == rewards.flatten().tolist()
    alone = control_rewards("other_picture", rewards, None, rng(), torch.tensor([True, False, False, False]))
    assert alone.tolist() == [[0.0, 0.0], *rewards[1:].tolist()]


def test_random_rewards_leave_every_framing_its_own_answer():
    assert [own_answers(c) for c in ("random", "", "random_vote", "oracle", "constant")] == [True] + [False] * 4
    assert control_vote("random", VOTE, None, rng()) is VOTE
    assert control_rewards("random_vote", REWARDS, None, rng()) is REWARDS
