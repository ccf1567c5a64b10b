"""Advantages and losses: small numbers by hand, gradients against closed forms, then invariants."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgkit.updates import (
    AdaptiveKL,
    EMABaseline,
    candidate_weights,
    group_advantages,
    grpo_loss,
    k3_kl,
    masked_mean,
    nft_loss,
    prediction_drift,
    reinforce_loss,
    sequence_logp,
    sft_loss,
    token_kl,
    weighted_regression_loss,
)

NAN = float("nan")
seeds = st.integers(0, 2**16)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """logp (3, 4) that wants a gradient, advantages (3,), mask (3, 4) with rows of 4, 2 and 1 tokens."""
    logp = -torch.rand(3, 4, generator=generator(seed)).add(0.1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    return logp.requires_grad_(), torch.tensor([1.0, -2.0, 0.5]), mask


def test_group_advantages_by_hand():
    advantages, active = group_advantages(torch.tensor([[1.0, 2.0, 3.0], [0.3, 0.3, 0.3]]))
    third = math.sqrt(1.5)  # 1 / population std of 1, 2, 3
    assert advantages[0].tolist() == pytest.approx([-third, 0.0, third], abs=1e-5)
    assert advantages[1].tolist() == [0.0, 0.0, 0.0]
    assert active.tolist() == [True, False]
    plain, _ = group_advantages(torch.tensor([[1.0, 2.0, 3.0]]), scale=False)
    assert plain.tolist() == [[-1.0, 0.0, 1.0]]


def test_masked_members_stay_out_of_the_statistics():
    rewards = torch.tensor([[1.0, 3.0, NAN], [5.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    advantages, active = group_advantages(rewards, mask=mask)
    assert advantages[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-5)
    assert advantages[1].tolist() == [0.0, 0.0, 0.0] and active.tolist() == [True, False]


def test_group_advantages_refuse_nan_and_bad_shapes():
    with pytest.raises(ValueError, match="NaN"):
        group_advantages(torch.tensor([[1.0, NAN]]))
    with pytest.raises(ValueError, match=r"\(G, L\)"):
        group_advantages(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(G, L\)"):
        group_advantages(torch.ones(2, 3), mask=torch.ones(3, 2).bool())


@settings(deadline=None)
@given(seeds, st.floats(-3, 3), st.floats(0.5, 4))
def test_group_advantages_ignore_shift_and_scale(seed, shift, factor):
    rewards = torch.rand(2, 5, generator=generator(seed))
    advantages, active = group_advantages(rewards)
    moved, _ = group_advantages(rewards * factor + shift)
    assert active.all() and torch.allclose(advantages, moved, atol=1e-3)
    assert torch.allclose(advantages.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(advantages.std(1, unbiased=False), torch.ones(2), atol=1e-3)


@given(st.floats(-2, 2, width=32), st.integers(1, 9))
def test_constant_groups_are_never_active(value, size):
    advantages, active = group_advantages(torch.full((1, size), value))
    assert not active.item() and (advantages == 0).all()


def test_ema_baseline_by_hand():
    baseline = EMABaseline()
    assert baseline.value is None and baseline.advantage(0.5) == 0.5
    assert baseline.update(1.0) == 1.0
    assert baseline.update(0.0) == pytest.approx(0.6)
    assert baseline.advantage(1.0) == pytest.approx(0.4)
    assert baseline.advantage(torch.tensor([0.6, 1.6])).tolist() == pytest.approx([0.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        baseline.update(NAN)
    assert baseline.value == pytest.approx(0.6), "a refused reward must leave no trace"


def test_ema_baseline_state():
    for history in ([], [0.25, 0.5]):
        baseline, copy = EMABaseline(), EMABaseline()
        for reward in history:
            baseline.update(reward)
        copy.load_state_dict(json.loads(json.dumps(baseline.state_dict())))
        assert copy.value == baseline.value and copy.update(0.1) == baseline.update(0.1)
    with pytest.raises(ValueError, match="keys"):
        copy.load_state_dict({"mean": 1.0})


def test_means_skip_what_is_masked():
    x = torch.tensor([[1.0, 2.0, NAN], [NAN, 6.0, NAN], [NAN, NAN, NAN]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    assert masked_mean(x, mask).item() == 3.0
    assert sequence_logp(x, mask).tolist() == [1.5, 6.0, 0.0]
    with pytest.raises(ValueError, match="shapes"):
        masked_mean(x, mask[:2])


def test_reinforce_by_hand():
    logp = torch.tensor([[-1.0, -3.0], [-0.5, -9.0], [-7.0, -7.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]]).bool()
    loss = reinforce_loss(logp, torch.tensor([1.0, -2.0, 5.0]), mask)
    assert loss.item() == pytest.approx(-(1.0 * -2.0 + -2.0 * -0.5) / 2)
    loss.backward()
    assert logp.grad.tolist() == [[-0.25, -0.25], [1.0, 0.0], [0.0, 0.0]]


def test_a_step_down_the_reinforce_loss_raises_what_was_rewarded():
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    logp = torch.log_softmax(logits, -1)[:, :, 2]
    reinforce_loss(logp, torch.tensor([1.0]), torch.ones(1, 1).bool()).backward()
    assert logits.grad[0, 0, 2] < 0 and (logits.grad[0, 0, [0, 1, 3]] > 0).all()


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_grpo_on_policy_is_reinforce(seed):
    logp, advantages, mask = batch(seed)
    loss, stats = grpo_loss(logp, logp.detach(), advantages, mask)
    (clipped,) = torch.autograd.grad(loss, logp)
    (plain,) = torch.autograd.grad(reinforce_loss(logp, advantages, mask), logp)
    assert torch.allclose(clipped, plain, atol=1e-6) and plain.abs().sum() > 0
    assert stats == {"ratio_mean": 1.0, "clip_fraction": 0.0}


def test_grpo_clips_only_the_harmful_side():
    # ratios 2, 2, .5, .5 with advantages +, -, +, -: the clip binds for (2, +) and (.5, -).
    behaviour = torch.full((4, 1), -1.0, requires_grad=True)
    logp = (behaviour.detach() + torch.tensor([2.0, 2.0, 0.5, 0.5]).log().unsqueeze(1)).requires_grad_()
    advantages, mask = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.ones(4, 1).bool()
    loss, stats = grpo_loss(logp, behaviour, advantages, mask)
    assert loss.item() == pytest.approx(-(1.2 - 2.0 + 0.5 - 0.8) / 4)
    loss.backward()
    assert logp.grad.flatten().tolist() == pytest.approx([0.0, 0.5, -0.125, 0.0])
    assert behaviour.grad is None, "the policy that sampled is a constant"
    assert stats["ratio_mean"] == pytest.approx(1.25) and stats["clip_fraction"] == 0.5


def test_grpo_survives_extreme_ratios_and_masked_nan():
    logp = torch.tensor([[-0.1, NAN], [-300.0, -1.0]], requires_grad=True)
    behaviour = torch.tensor([[-500.0, -1.0], [-0.1, NAN]])
    mask = torch.tensor([[1, 0], [1, 0]]).bool()
    loss, _ = grpo_loss(logp, behaviour, torch.tensor([1.0, -1.0]), mask)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all()


def test_sft_by_hand():
    logp, _, mask = batch()
    loss = sft_loss(logp, mask, torch.tensor([False, True, False]))
    assert loss.item() == pytest.approx(-logp[1, 1:3].mean().item())
    loss.backward()
    assert logp.grad[1, 1:3].tolist() == [-0.5, -0.5] and logp.grad.abs().sum() == 1.0
    empty = mask & torch.tensor([[True], [True], [False]])  # a chosen row without tokens counts for nothing
    assert sft_loss(logp, empty, torch.tensor([False, True, True])).item() == pytest.approx(loss.item())


def test_sft_without_rows_is_zero_and_still_differentiable():
    logp, _, mask = batch()
    loss = sft_loss(logp, mask, torch.zeros(3).bool())
    loss.backward()
    assert loss.item() == 0.0 and (logp.grad == 0).all()


def test_losses_refuse_wrong_shapes():
    logp, advantages, mask = batch()
    with pytest.raises(ValueError, match=r"\(B,\)"):
        reinforce_loss(logp, advantages[:2], mask)
    with pytest.raises(ValueError, match=r"\(B,\)"):
        grpo_loss(logp, logp.detach(), torch.ones(3, 4), mask)
    with pytest.raises(ValueError, match="shapes"):
        grpo_loss(logp, logp.detach()[:, :2], advantages, mask)


def test_token_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    kl = token_kl(p.log().view(1, 1, 2), q.log().view(1, 1, 2), torch.ones(1, 1).bool())
    assert kl.item() == pytest.approx(expected, abs=1e-6)


def test_token_kl_reads_only_masked_tokens_and_trains_only_the_policy():
    logits = torch.randn(2, 3, 5, generator=generator(1))
    logits[0, 2] = NAN
    logits[1, 0, 4] = -math.inf
    logits.requires_grad_()
    reference = torch.randn(2, 3, 5, generator=generator(2), requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    kl = token_kl(logits, reference, mask)
    kl.backward()
    assert torch.isfinite(kl) and kl > 0 and reference.grad is None
    assert torch.isfinite(logits.grad).all() and (logits.grad[~mask] == 0).all()
    assert (logits.grad[mask].abs().sum(-1) > 0).all()


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_token_kl_is_zero_only_for_equal_policies(seed):
    logits = torch.randn(2, 3, 6, generator=generator(seed), requires_grad=True)
    mask = torch.ones(2, 3).bool()
    same = token_kl(logits, logits.detach().clone() + 3.0, mask)  # a constant shift is the same policy
    (gradient,) = torch.autograd.grad(same, logits)
    assert 0.0 <= same.item() < 1e-6 and gradient.abs().max() < 1e-6
    assert token_kl(logits, logits.detach().roll(1, -1), mask) > 1e-4


def test_token_kl_of_nothing_is_zero():
    logits = torch.randn(1, 2, 3, generator=generator(), requires_grad=True)
    kl = token_kl(logits, logits.detach(), torch.zeros(1, 2).bool())
    kl.backward()
    assert kl.item() == 0.0 and (logits.grad == 0).all()


def test_k3_estimates_the_exact_divergence():
    policy = torch.tensor([0.2, 0.5, 0.3]).log()
    base = torch.tensor([0.4, 0.4, 0.2]).log()
    ids = torch.multinomial(policy.exp(), 40_000, replacement=True, generator=generator(3)).view(1, -1)
    mask = torch.ones(ids.shape).bool()
    exact = token_kl(policy.view(1, 1, 3), base.view(1, 1, 3), torch.ones(1, 1).bool())
    assert k3_kl(policy[ids], base[ids], mask).item() == pytest.approx(exact.item(), rel=0.05)
    one = torch.tensor([[-1.0]])
    assert k3_kl(one, one + math.log(2), torch.ones(1, 1).bool()).item() == pytest.approx(1 - math.log(2))
    assert k3_kl(one, one, torch.ones(1, 1).bool()).item() == 0.0


def test_adaptive_kl_reaches_the_floor_in_24_steps():
    controller = AdaptiveKL()
    assert controller.update(0.0) == pytest.approx(0.01 * math.exp(-0.1))
    for _ in range(22):
        controller.update(0.0)
    assert controller.coefficient > 1e-3
    assert controller.update(0.0) == 1e-3


def test_adaptive_kl_holds_at_the_target_and_is_bounded():
    controller = AdaptiveKL()
    assert controller.update(0.02) == 0.01
    assert controller.update(0.04) == pytest.approx(0.01 * math.exp(0.1))
    assert AdaptiveKL().update(1e9) == pytest.approx(0.01 * math.exp(5.0))  # error is cut at 50
    for _ in range(9):
        controller.update(1e9)
    assert controller.coefficient == 1e2
    with pytest.raises(ValueError, match="finite"):
        controller.update(NAN)
    with pytest.raises(ValueError, match="AdaptiveKL"):
        AdaptiveKL(coefficient=0.0)


def test_adaptive_kl_state():
    controller, copy = AdaptiveKL(), AdaptiveKL()
    controller.update(0.07)
    copy.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert copy.coefficient == controller.coefficient
    for bad in ({"coefficient": 1e9}, {"beta": 0.01}):
        with pytest.raises(ValueError):
            copy.load_state_dict(bad)


def regression(error, rewards, mode, **settings):
    return weighted_regression_loss(error, candidate_weights(rewards, mode, **settings).flatten())


@pytest.mark.parametrize(
    ("mode", "center", "factor"), [("rwr", False, 1.0), ("rwr", True, 0.0), ("advantage", False, 0.0)]
)
def test_constant_reward_gives_the_plain_loss_or_nothing(mode, center, factor):
    error = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], requires_grad=True)
    loss = regression(error, torch.full((2, 3), 0.7), mode, center=center)
    loss.backward()
    assert loss.item() == pytest.approx(factor * 3.5, abs=1e-5)
    assert torch.allclose(error.grad, torch.full((6,), factor / 6), atol=1e-6)


def test_weighted_regression_by_hand():
    error, rewards = torch.tensor([1.0, 10.0]), torch.tensor([[0.1 * math.log(3), 0.0]])
    # softmax at temperature .1: 3/4 and 1/4, times L = 2
    assert regression(error, rewards, "rwr").item() == pytest.approx((1.5 + 5.0) / 2)
    assert regression(error, rewards, "rwr", center=True).item() == pytest.approx((0.5 - 5.0) / 2)
    assert regression(error, torch.tensor([[1.0, 0.0]]), "advantage").item() == pytest.approx(-4.5, abs=1e-4)
    assert regression(error, torch.tensor([[0.2, 0.9]]), "best").item() == pytest.approx(10.0)


def test_centred_weights_of_a_group_sum_to_zero():
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    for mode, center in (("rwr", True), ("advantage", False)):
        assert candidate_weights(rewards, mode, center=center).sum(1).abs().max() < 1e-4
    assert torch.allclose(candidate_weights(rewards, "rwr").sum(1), torch.full((5,), 8.0), atol=1e-4)


def test_candidate_weights_refuse():
    rewards = torch.ones(2, 2)
    for mode, chosen in (("nft", {}), ("rwr", {"temperature": 0.0})):
        with pytest.raises(ValueError):
            candidate_weights(rewards, mode, **chosen)
    with pytest.raises(ValueError, match=r"G, L"):
        candidate_weights(torch.ones(3), "rwr")
    with pytest.raises(ValueError, match="NaN"):
        candidate_weights(rewards * NAN, "rwr")
    with pytest.raises(ValueError, match="agree"):
        weighted_regression_loss(torch.ones(4), torch.ones(3))


def test_nft_gradient_at_the_reference_is_a_share_of_the_plain_gradient():
    g = torch.Generator().manual_seed(1)
    reference, target = torch.randn(4, 3, generator=g), torch.randn(4, 3, generator=g)
    advantages = torch.tensor([2.0, -1.0, 0.0, 9.0])  # 9 is clipped: r = 1
    v, w = reference.clone().requires_grad_(), reference.clone().requires_grad_()
    nft_loss(v, reference, target, advantages, beta=0.3).backward()
    share = (advantages / 5.0).clamp(-1.0, 1.0)  # 2 r - 1
    weighted_regression_loss((w - target).square().mean(1), share).backward()
    assert torch.allclose(v.grad, w.grad, atol=1e-6)
    assert v.grad[2].abs().max() < 1e-7


def test_nft_is_bounded_where_a_negative_weight_is_not():
    reference, target = torch.zeros(1, 1), torch.ones(1, 1)
    loser = torch.tensor([-5.0])  # r = 0
    values = [nft_loss(torch.full((1, 1), x), reference, target, loser, beta=0.2).item() for x in (-50.0, -5.0, 5.0)]
    # (1.2 * 0 - 0.2 x - 1)^2 / 0.2: smallest, 0, at x = -5, and large again beyond it
    assert values == pytest.approx([405.0, 0.0, 20.0])


def test_nft_by_hand_and_refusals():
    one = torch.ones(1, 2)
    # r = 1/2, v = 2, v_ref = 1, target 0, beta 1/2: v+ = 1.5, v- = 0.5
    assert nft_loss(2 * one, one, 0 * one, torch.zeros(1), beta=0.5).item() == pytest.approx((2.25 + 0.25) / 2 / 0.5)
    for arguments in ((one, one[:, :1], one), (one, one, one[:, :1])):
        with pytest.raises(ValueError, match="agree"):
            nft_loss(*arguments, torch.zeros(1))
    with pytest.raises(ValueError, match="beta"):
        nft_loss(one, one, one, torch.zeros(1), beta=0.0)


def test_prediction_drift():
    v = torch.tensor([[1.0, 3.0]], requires_grad=True)
    drift = prediction_drift(v, torch.tensor([[0.0, 1.0]]))
    drift.backward()
    assert drift.item() == pytest.approx(2.5) and v.grad.tolist() == [[1.0, 2.0]]
