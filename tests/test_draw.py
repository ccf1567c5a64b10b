"""Matching, image distances and the generation reward: published vectors first, then properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgkit.draw import (
    contradiction,
    cycle_consistency,
    diversity,
    generator_reward,
    group_diversity,
    image_distance,
    qa_fidelity,
    question_fidelity,
    soft_match,
    spec_quality,
)

unit = st.floats(0, 1, width=32)
words = st.lists(st.sampled_from(["red", "blue", "2", "41", "no", "north", "circle", "3.5"]), max_size=4)


def flat(*colours: tuple[float, float, float], size: int = 24) -> torch.Tensor:
    return torch.stack([torch.tensor(c).view(3, 1, 1).expand(3, size, size) for c in colours])


RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("2", "two", 0.0),  # no word to digit
        ("red car", "car", 0.8),
        ("41", "40", 0.7),  # 2.5% off
        ("no", "north", 0.8),  # published quirk
        ("Red.", "<answer>red</answer>", 1.0),
        ("anything", "", 0.5),
        ("", "red", 0.0),
        ("101", "100", 1.0),
        ("100.5", "100", 0.8),  # contained, so the 0.5% never counts
        ("35", "40", 0.4),
        ("30", "40", 0.0),
        ("0.3", "0.5", 0.4),  # denominator is at least 1
        ("1.2", "1.0", 0.4),  # 20% on the dot
        ("2 cats", "2 dogs", 1.0),  # published quirk
        ("4", "41", 0.8),  # published quirk
        ("red big circle", "big blue circle", 0.5),  # two of four words
        ("red", "blue", 0.0),
    ],
)
def test_soft_match_by_hand(prediction, reference, score):
    assert soft_match(prediction, reference) == pytest.approx(score)


def test_word_boundaries_only_count_whole_words():
    assert soft_match("no", "north", word_boundaries=True) == 0.0
    assert soft_match("4", "41", word_boundaries=True) == 0.0
    assert soft_match("100.5", "100", word_boundaries=True) == 1.0
    assert soft_match("red car", "car", word_boundaries=True) == 0.8
    assert soft_match("a red car", "red  car.", word_boundaries=True) == 0.8
    assert soft_match("red or car", "red car", word_boundaries=True) == pytest.approx(2 / 3)


@given(words, words, st.booleans())
def test_soft_match_is_bounded_and_reflexive(a, b, whole):
    left, right = " ".join(a), " ".join(b)
    assert 0.0 <= soft_match(left, right, word_boundaries=whole) <= 1.0
    assert soft_match(right, right, word_boundaries=whole) == (1.0 if right else 0.5)


def test_fidelity_by_hand():
    assert question_fidelity(1.0, 1.0) == pytest.approx(1.0)
    assert question_fidelity(0.0, 1.0) == pytest.approx(0.3)  # confidently wrong still earns 0.3
    assert qa_fidelity([1.0, 0.8], [1.0, 0.5]) == pytest.approx((1.0 + 0.71) / 2)
    assert qa_fidelity(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])) == pytest.approx(0.65)
    assert qa_fidelity([1.0, 0.0], [0.2, 0.2], w_match=1.0) == pytest.approx(0.5)
    for bad in (([], []), ([1.0], [1.0, 1.0]), ([1.2], [1.0]), ([float("nan")], [1.0])):
        with pytest.raises(ValueError):
            qa_fidelity(*bad)


def test_contradiction_needs_opposite_whole_words():
    assert contradiction(["yes"], ["No."]) == 1.0
    assert contradiction(["Yes, it is", "no", "false"], ["no circle", "no", "present"]) == pytest.approx(
        2 / 3
    )
    assert contradiction(["north", "nose", "1", "red"], ["yes", "true", "0", "no"]) == 0.0
    assert contradiction(["unknown", ""], ["yes", "no"]) == 0.0
    for bad in (([], []), (["yes"], [])):
        with pytest.raises(ValueError, match="same length"):
            contradiction(*bad)


@pytest.mark.parametrize(
    ("arguments", "score"),
    [
        ((1, 3, 1, False), 0.55),
        ((0, 3, 0, False), 0.0),
        ((3, 3, 3, False), 1.0),
        ((2, 2, 2, True), 0.8),
        ((1, 1, 1, True), 1.0 - 0.25),  # one question: no yes/no penalty
        ((2, 4, 1, False), 0.5 + 0.15 + 0.1),
        ((5, 5, 5, False), 0.5 + 0.3 * 3 / 5 + 0.2),  # three of five are used
    ],
)
def test_spec_quality_by_hand(arguments, score):
    assert spec_quality(*arguments) == pytest.approx(score)


def test_spec_quality_refuses_impossible_counts():
    for bad in ((4, 3, 1, False), (2, 3, 3, False), (-1, 3, -1, False)):
        with pytest.raises(ValueError, match="distinct"):
            spec_quality(*bad)


def test_flat_colours_differ_in_colour_only():
    # Flat images have gray cosine 1; red and blue share one of three channel histograms: 1 - 1/3 > 0.25.
    assert torch.allclose(image_distance(flat(RED, BLUE)), torch.tensor([[0.0, 0.4], [0.4, 0.0]]), atol=1e-6)
    # Black has no direction: cosine 0 with anything else, 1 with itself; one channel differs from red.
    distance = image_distance(flat(BLACK, BLACK, RED))
    assert distance[0, 1] == 0.0
    assert distance[0, 2] == pytest.approx(1.0)


def test_layout_counts_when_colours_agree():
    left = torch.zeros(3, 24, 24)
    left[:, :, :12] = 1.0
    distance = image_distance(torch.stack([left, left.flip(2)]))  # same histogram, disjoint support
    assert distance[0, 1] == pytest.approx(0.6)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(0, 99), st.integers(5, 130), st.integers(5, 40))
def test_image_distance_is_a_bounded_symmetric_dissimilarity(count, seed, height, width):
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))
    distance = image_distance(images)
    assert distance.shape == (count, count) and distance.dtype == torch.float32
    assert torch.allclose(distance, distance.T) and (distance.diagonal() == 0).all()
    assert ((distance >= 0) & (distance <= 1)).all()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(image_distance(images[order]), distance[order][:, order], atol=1e-6)


def test_image_distance_refuses_other_ranges_and_shapes():
    for bad in (noise(2) * 255, noise(2) - 0.5, noise(2) * float("nan")):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            image_distance(bad)
    for shape in ((2, 1, 8, 8), (3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"\(L, 3, H, W\)"):
            image_distance(torch.zeros(shape))


def test_identical_images_have_no_diversity():
    for count in (1, 2, 3, 5):
        same = noise(1).expand(count, 3, 24, 24)
        assert diversity(same).tolist() == [0.0] * count
        assert group_diversity(same) == 0.0


def test_three_colours_are_a_diverse_group():
    assert group_diversity(flat(RED, GREEN, BLUE)) == pytest.approx(0.4)
    # ... in which nobody stands out: a leave-one-out difference of means cannot pay all three.
    assert diversity(flat(RED, GREEN, BLUE)).tolist() == [0.0, 0.0, 0.0]


def test_the_odd_one_out_earns_the_diversity():
    # D = (0 + 0.4 + 0.4) / 3 = 0.8 / 3; without blue 0, without either red 0.4.
    assert diversity(flat(RED, RED, BLUE)).tolist() == pytest.approx([0.0, 0.0, 0.8 / 3])
    assert diversity(flat(RED, RED, BLUE), normalise=True).tolist() == pytest.approx([0.0, 0.0, 1.0])


def test_diversity_by_hand_for_three():
    images = torch.cat([flat(BLACK, WHITE, RED)])
    # d(black, .) = 1, d(white, red) = 0.4: D = 0.8; without black 0.4, without either other 1.0.
    assert group_diversity(images) == pytest.approx(0.8, abs=1e-6)
    assert diversity(images).tolist() == pytest.approx([0.4, 0.0, 0.0], abs=1e-5)
    assert diversity(images, normalise=True).tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-5)


def test_pairs_share_their_distance_and_rounding_noise_earns_nothing():
    assert diversity(flat(RED, BLUE)).tolist() == pytest.approx([0.4, 0.4])
    twins = noise(1).repeat(3, 1, 1, 1)
    twins[0, 0, 0, 0] += 1e-4 if twins[0, 0, 0, 0] < 0.5 else -1e-4
    assert diversity(twins).tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-4)
    assert diversity(twins, normalise=True).tolist() == [0.0, 0.0, 0.0]


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 6), st.integers(0, 99))
def test_diversity_pays_only_outliers_whatever_the_order(count, seed):
    images = noise(count, seed)
    images[0, :, :12] = 0.0
    scores, scaled = diversity(images), diversity(images, normalise=True)
    assert 0.0 < scores.max() <= group_diversity(images) and scores.min() == 0.0
    assert scaled.max() == 1.0 and torch.allclose(scaled, scores / scores.max())
    assert torch.allclose(diversity(images.flip(0)), scores.flip(0), atol=1e-4)


def test_cycle_consistency_of_floats_and_tensors():
    assert cycle_consistency(0.8, 0.4) == pytest.approx(0.6)
    assert cycle_consistency(-1.0, 0.2) == 0.0
    pair = cycle_consistency(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0]))
    assert pair.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "raw", "released"),
    [
        ((1, 1, 1, 0, 1), 0.95, 1.0),
        ((0.5, 0.5, 0, 1, 1), 0.225, 0.247368),
        ((0, 0, 0, 1, 1), 0.0, 0.0),
        ((1, 1, 1, 0, 0.5), 0.475, 0.5),
        ((1, 1, 1, 0, 0.34), 0.0, 0.0),  # below the gate
        ((1, 1, 1, 0, 0.35), 0.3325, 0.35),  # on the gate
        ((1, 0, 0, 1, 1), 0.45, 0.684211 - 0.2),
    ],
)
def test_generator_reward_by_hand(scores, raw, released):
    reward = generator_reward(*scores)
    assert isinstance(reward, float) and reward == pytest.approx(raw, abs=1e-6)
    assert generator_reward(*scores, renormalise=True) == pytest.approx(released, abs=1e-6)


@given(st.lists(st.tuples(unit, unit, unit, unit, unit), min_size=1, max_size=5), st.booleans())
def test_generator_reward_of_tensors_equals_that_of_floats(rows, renormalise):
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    rewards = generator_reward(*columns, renormalise=renormalise)
    assert rewards.shape == (len(rows),)
    for row, reward in zip(rows, rewards.tolist(), strict=True):
        gate = 0.0 if abs(row[4] - 0.35) > 1e-6 else 1.0  # float32 and float64 may differ on the very edge
        assert reward == pytest.approx(generator_reward(*row, renormalise=renormalise), abs=1e-5 + gate)
        assert 0.0 <= reward <= 1.0


def test_generator_reward_mixes_and_gates_tensors():
    rewards = generator_reward(torch.tensor([1.0, 0.0]), torch.zeros(2), 0.0, 0.0, 1.0)
    assert rewards.tolist() == pytest.approx([0.65, 0.0])
    on_gate = generator_reward(*[torch.tensor([1.0])] * 3, torch.tensor([0.0]), torch.tensor([0.35]))
    assert on_gate.item() > 0, "0.35 in float32 is still on the gate"


@pytest.mark.parametrize("position", range(5))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_generator_reward_refuses_nan(position, bad):
    scores: list[float] = [1.0] * 5
    scores[position] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        generator_reward(*scores)
