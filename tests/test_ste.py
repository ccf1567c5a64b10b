"""Entropy vectors worked out by hand, then properties of the entropy and of the rolling percentile."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgkit.ste import RollingPercentile, solver_token_entropy, token_entropy

INF = float("inf")
finite = st.floats(0.0, 12.0, allow_nan=False)


def probabilities(*p: float) -> torch.Tensor:
    return torch.tensor(p).log().view(1, 1, -1)


@pytest.mark.parametrize(
    ("p", "nats"),
    [
        ((0.25, 0.25, 0.25, 0.25), math.log(4)),
        ((0.5, 0.25, 0.25), 1.5 * math.log(2)),
        ((0.5, 0.5, 0.0, 0.0), math.log(2)),  # ln 0 = -inf logits
        ((1.0, 0.0), 0.0),
    ],
)
def test_token_entropy_by_hand(p, nats):
    entropy = token_entropy(probabilities(*p))
    assert entropy.shape == (1, 1) and entropy.dtype == torch.float32
    assert entropy.item() == pytest.approx(nats, abs=1e-6)


def test_token_entropy_upcasts_half_precision():
    logits = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(token_entropy(logits), token_entropy(logits.float()))


def test_token_entropy_has_finite_gradients_with_excluded_tokens():
    logits = torch.tensor([[[0.3, -INF, 1.2]]], requires_grad=True)
    token_entropy(logits).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_token_entropy_refuses_broken_logits(bad):
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 2] = bad
    with pytest.raises(ValueError, match="forward pass"):
        token_entropy(logits)
    with pytest.raises(ValueError, match="all -inf"):
        token_entropy(torch.full((1, 1, 3), -INF))
    with pytest.raises(TypeError, match="floating"):
        token_entropy(torch.zeros(1, 1, 3, dtype=torch.long))


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12), st.floats(-20, 20))
def test_token_entropy_is_bounded_and_shift_invariant(row, shift):
    logits = torch.tensor([[row]])
    h = token_entropy(logits).item()
    assert 0.0 <= h <= math.log(len(row)) + 1e-5
    assert token_entropy(logits + shift).item() == pytest.approx(h, abs=1e-4)


def test_solver_token_entropy_counts_only_answer_tokens():
    entropy = torch.tensor([[9.0, 0.1, 0.4, 0.2, 0.3, 0.1, 8.0], [9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    # The first five answer tokens of row 0 are positions 1..5: the 9.0 before and the 8.0 after stay out.
    assert solver_token_entropy(entropy, mask).tolist() == pytest.approx([0.4, 0.0])
    assert solver_token_entropy(entropy, mask, aggregation="mean").tolist() == pytest.approx([0.22, 0.0])
    assert solver_token_entropy(entropy, mask, first=1).tolist() == pytest.approx([0.1, 0.0])
    assert solver_token_entropy(entropy, mask, first=6).tolist() == pytest.approx([8.0, 0.0])


def test_solver_token_entropy_skips_gaps_in_the_mask():
    mask = torch.tensor([[1, 0, 1, 0, 1]]).bool()
    entropy = torch.tensor([[0.1, 5.0, 0.2, 5.0, 0.9]])
    assert solver_token_entropy(entropy, mask, first=2).item() == pytest.approx(0.2)


def test_solver_token_entropy_edges():
    assert solver_token_entropy(torch.zeros(2, 0), torch.zeros(2, 0).bool()).tolist() == [0.0, 0.0]
    nan = torch.tensor([[float("nan"), 0.5]])
    assert solver_token_entropy(nan, torch.tensor([[False, True]])).item() == 0.5
    with pytest.raises(ValueError, match="under the mask"):
        solver_token_entropy(nan, torch.tensor([[True, True]]))
    ones = torch.ones(1, 2)
    for arguments in ({"first": 0}, {"aggregation": "median"}):
        with pytest.raises(ValueError):
            solver_token_entropy(ones, ones.bool(), **arguments)
    with pytest.raises(ValueError, match=r"\(B, T\)"):
        solver_token_entropy(ones, torch.ones(2, 2).bool())


@pytest.mark.parametrize(("x", "d"), [(0.69, 0.123), (1.0, 0.182), (2.0, 0.5), (3.0, 0.818)])
def test_cold_window_uses_the_sigmoid(x, d):
    assert RollingPercentile().rank(x) == pytest.approx(d, abs=5e-4)


def test_warm_window_uses_mid_ranks_without_self():
    window = RollingPercentile()
    for x in (1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 4.0):
        window.update(x)
    assert len(window) == 7 and window.rank(2.0) == pytest.approx(0.5)  # still cold
    window.update(5.0)
    # 1 1 2 2 2 3 4 5: below 2.0 are two, equal three -> (2 + 1.5) / 8
    assert window.rank(2.0) == pytest.approx(3.5 / 8)
    assert (window.rank(0.0), window.rank(9.0)) == (0.0, 1.0)
    assert window.update(2.5) == pytest.approx(5 / 8)
    assert len(window) == 9


def test_full_window_forgets_the_oldest():
    window = RollingPercentile(window=3, cold=1)
    window.update_many([10.0, 1.0, 2.0])
    assert window.rank(5.0) == pytest.approx(2 / 3)
    window.update(3.0)  # 10.0 leaves
    assert window.rank(5.0) == 1.0 and len(window) == 3


@given(st.lists(finite, min_size=8, max_size=20), st.lists(finite, min_size=2, max_size=6))
def test_a_batch_is_ranked_on_one_scale(history, batch):
    window, other = RollingPercentile(), RollingPercentile()
    window.update_many(history)
    other.update_many(history)
    before = [window.rank(x) for x in batch]
    assert window.update_many(batch) == before
    assert sorted(other.update_many(batch[::-1])) == sorted(before)
    assert len(window) == len(history) + len(batch)


@given(st.lists(finite, max_size=30), finite, finite)
def test_rank_is_monotone_and_bounded(history, a, b):
    window = RollingPercentile()
    window.update_many(history)
    low, high = sorted((a, b))
    assert 0.0 <= window.rank(low) <= window.rank(high) <= 1.0


@given(st.lists(finite, min_size=1, max_size=40))
def test_state_survives_json(history):
    window, copy = RollingPercentile(window=16), RollingPercentile(window=16)
    window.update_many(history)
    copy.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert [window.update(x) for x in history] == [copy.update(x) for x in history]


def test_percentile_refuses_what_it_cannot_rank():
    window = RollingPercentile()
    for bad in (float("nan"), INF):
        with pytest.raises(ValueError, match="finite"):
            window.update_many([1.0, bad])
    assert len(window) == 0, "a refused batch must leave no trace"
    with pytest.raises(ValueError, match="configuration"):
        window.load_state_dict(RollingPercentile(window=64).state_dict())
    with pytest.raises(ValueError, match="state has"):
        window.load_state_dict({"values": []})
    with pytest.raises(ValueError):
        RollingPercentile(window=4, cold=8)
