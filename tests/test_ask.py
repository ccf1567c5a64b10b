"""Questions are read and checked without inventing any; rewards follow the published table."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgkit.ask import (
    TargetEntropy,
    parse_question,
    parse_questions,
    proposer_reward,
    question_problems,
    self_consistency_reward,
)
from asgkit.solve import vote

# pattern of seven votes -> r_sc at mu = 0.90, sigma = 0.25
BASE = {
    (7,): -0.506,
    (6, 1): 0.093,
    (5, 2): 0.510,
    (5, 1, 1): 0.397,
    (4, 3): 0.826,
    (4, 2, 1): 0.592,
    (4, 1, 1, 1): 0.225,
    (3, 3, 1): 0.831,
    (3, 2, 2): 0.604,
    (3, 2, 1, 1): 0.356,
    (2, 2, 2, 1): 0.412,
    (1, 1, 1, 1, 1, 1, 1): 0.048,
}
unit = st.floats(0, 1)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<question> What  color is\nthe car? </question> <answer>red</answer>", "What color is the car?"),
        ("what color is circle ? red", "what color is circle ?"),
        ("A busy street. How many red signs are visible? I think 3.", "How many red signs are visible?"),
        ("1. Which side is the dog on?\n2. What is it?", "Which side is the dog on?"),
        ("Question: Where is the cup?", "Where is the cup?"),
        ("<question>What is cut off? and so", "What is cut off?"),
        ("a cat on a mat .", None),
        ("??", None),
        ("", None),
    ],
)
def test_parse_question(text, question):
    assert parse_question(text) == question


def test_parse_questions_prefers_blocks_and_keeps_order():
    blocks = "<question>is it red ?</question> why? <QUESTION>is it blue ?</QUESTION><question></question>"
    assert parse_questions(blocks) == ["is it red ?", "is it blue ?"]
    assert parse_questions("- Who is it?\n- Where is it?\n- Who is it?") == [
        "Who is it?",
        "Where is it?",
        "Who is it?",
    ]
    assert parse_questions("nothing to ask") == []


@given(st.text())
def test_parsing_never_invents_words(text):
    for question in parse_questions(text):
        assert set(question.split()) <= set(" ".join(question.split()).split())
        assert question.replace(" ", "") in "".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "what color is circle ?",
        "how many red objects ?",
        "is there a red circle ?",
        "where is red circle from blue square ?",
        "which is more circle or square ?",
        "what digit is shown ?",
        "What is written on the sign to the left of the door?",
        "In which hand does the man hold the cup?",
        "Is the red circle left of the red square?",
    ],
)
def test_sound_questions_have_no_problem(text):
    assert question_problems(text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("what color ?", "fewer than"),
        ("what color is the circle", "question mark"),
        ("the circle has what color ?", "interrogative"),
        ("what is <b> the color ?", "markup"),
        ("what might the man say ?", "subjective: might"),
        ("why is the circle red ?", "subjective: why"),
        ("what red red red red circle ?", "repeats: red"),
    ],
)
def test_each_problem_is_named_alone(text, problem):
    (found,) = question_problems(text)
    assert problem in found


def test_an_empty_question_has_problems():
    assert len(question_problems("")) >= 3


@pytest.mark.parametrize("pattern", BASE)
def test_self_consistency_matches_the_table(pattern):
    v = vote([name for name, count in zip("abcdefg", pattern, strict=False) for _ in range(count)])
    assert self_consistency_reward(v.entropy, v.margin) == pytest.approx(BASE[pattern], abs=6e-4)


def test_self_consistency_gaussian_alone_and_target():
    peak = self_consistency_reward(0.6, 0.5, mu=0.6, band_weight=0.0)
    assert peak == pytest.approx(1.0)
    one_sigma = self_consistency_reward(0.85, 0.5, mu=0.6, sigma=0.25, band_weight=0.0)
    assert one_sigma == pytest.approx(math.exp(-0.5))
    with pytest.raises(ValueError, match="sigma"):
        self_consistency_reward(0.5, 0.5, sigma=0.0)


@given(st.floats(0, 3), unit, st.floats(0.4, 1.5))
def test_self_consistency_is_bounded(entropy, margin, mu):
    assert -1.0 <= self_consistency_reward(entropy, margin, mu=mu) <= 1.0


def test_target_entropy_by_hand():
    target = TargetEntropy()
    assert target.update(0.4) == pytest.approx(0.85)
    assert target.update(1.85) == pytest.approx(0.95)
    for _ in range(200):
        target.update(0.0)
    assert target.mu == 0.40
    for _ in range(200):
        target.update(9.0)
    assert target.mu == 1.5
    assert TargetEntropy(adaptive=False).update(0.0) == 0.9


def test_target_entropy_state():
    target, copy = TargetEntropy(), TargetEntropy()
    target.update(0.1)
    copy.load_state_dict(json.loads(json.dumps(target.state_dict())))
    assert copy.mu == target.mu and copy.update(0.7) == target.update(0.7)
    for bad in ({"mu": 7.0}, {}, {"mu": 0.9, "extra": 1}):
        with pytest.raises(ValueError, match="state"):
            copy.load_state_dict(bad)
    with pytest.raises(ValueError, match="finite"):
        target.update(float("nan"))
    with pytest.raises(ValueError, match="TargetEntropy"):
        TargetEntropy(mu=0.1)


def test_proposer_reward_by_hand():
    assert proposer_reward(0.5, 0.2) == pytest.approx(0.41)
    assert proposer_reward(1.0, 1.0) == pytest.approx(1.0)
    assert proposer_reward(0.0, -1.0) == pytest.approx(-0.30)
    assert proposer_reward(0.5, 0.2, duplicate=True) == pytest.approx(0.21)
    assert proposer_reward(0.5, 0.2, valid=False) == -1.0
    assert proposer_reward(float("nan"), 0.0, valid=False, invalid=-0.5) == -0.5
    assert proposer_reward(0.5, 0.2, w_ste=0.0, w_sc=1.0) == pytest.approx(0.2)


@pytest.mark.parametrize(
    "bad", [(1.7, 0.0), (-0.1, 0.0), (0.5, -1.2), (float("nan"), 0.0), (0.5, float("nan"))]
)
def test_proposer_reward_refuses_other_scales(bad):
    with pytest.raises(ValueError, match="RollingPercentile"):
        proposer_reward(*bad)


@given(unit, st.floats(-1, 1), unit)
def test_proposer_reward_rises_with_difficulty_and_beats_invalid(d, r_sc, other):
    low, high = sorted((d, other))
    assert -1.0 <= proposer_reward(low, r_sc) <= proposer_reward(high, r_sc) <= 1.0
    assert proposer_reward(low, r_sc, duplicate=True) > proposer_reward(low, r_sc, valid=False)
