"""Answers, votes and Solver rewards: the published table for seven votes, then properties."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asgkit.solve import (
    informativeness,
    is_canonical,
    is_low_information,
    normalise_answer,
    pseudo_label_mask,
    solver_rewards,
    vote,
    words_said,
)

# pattern of seven votes: H_sc, majority share, margin, info, soft reward of a majority answer (None: not defined)
TABLE = {
    (7,): (0.0, 1.0, 1.0, 0.219, None),
    (6, 1): (0.410, 0.857, 0.714, 0.543, 0.488),
    (5, 2): (0.598, 0.714, 0.429, 0.757, 0.598),
    (5, 1, 1): (0.796, 0.714, 0.571, 0.669, 0.529),
    (4, 3): (0.683, 0.571, 0.143, 0.921, 0.622),
    (4, 2, 1): (0.956, 0.571, 0.286, 0.775, 0.524),
    (4, 1, 1, 1): (1.154, 0.571, 0.429, 0.592, 0.400),
    (3, 3, 1): (1.004, 0.429, 0.0, 0.911, 0.503),
    (3, 2, 2): (1.079, 0.429, 0.143, 0.793, 0.438),
    (3, 2, 1, 1): (1.277, 0.429, 0.143, 0.680, 0.376),
    (2, 2, 2, 1): (1.352, 0.286, 0.0, 0.718, 0.299),
    (1, 1, 1, 1, 1, 1, 1): (1.946, 0.143, 0.0, 0.527, None),
}
NAMES = ("red", "blue", "green", "white", "cyan", "pink", "teal")
answers = st.lists(st.sampled_from(NAMES[:4]), min_size=1, max_size=9)


def cast(pattern: tuple[int, ...]) -> list[str]:
    return [name for name, count in zip(NAMES, pattern, strict=False) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "core"),
    [
        ("Red", "red"),
        ('  "A red,  large\tcircle." ', "a red large circle"),
        ("I see it. <answer> Blue! </answer> done", "blue"),
        ("<ANSWER>four</ANSWER>", "four"),
        ("so <answer>green", "green"),  # cut off before the tag was closed
        ("one two three four five six seven eight nine", "one two three four five six seven eight"),
        ("a b c d e f g h. i", "a b c d e f g h"),
        ("3.5", "3.5"),
        ("", "unknown"),
        (" ?! ", "unknown"),
        ("<answer></answer>", "unknown"),
        ("Нет.", "нет"),
    ],
)
def test_normalise_answer_by_hand(text, core):
    assert normalise_answer(text) == core


@given(
    st.one_of(
        st.text(), st.text(alphabet='<>/answer ,.!"A3'), st.from_regex(r"(<answer>)?[ -~]*(</answer>)?")
    )
)
@example("<ans</answer>wer>red")  # taking the inner tag out must not make a new one
def test_normalise_answer_is_idempotent(text):
    once = normalise_answer(text)
    assert normalise_answer(once) == once
    assert 1 <= len(once.split()) <= 8


@pytest.mark.parametrize("pattern", TABLE)
def test_vote_matches_the_table(pattern):
    entropy, fraction, margin, _, _ = TABLE[pattern]
    v = vote(cast(pattern))
    assert (v.majority, v.count, len(v.answers)) == ("red", pattern[0], 7)
    assert (v.entropy, v.fraction, v.margin) == pytest.approx((entropy, fraction, margin), abs=6e-4)


@pytest.mark.parametrize("pattern", TABLE)
def test_informativeness_and_rewards_match_the_table(pattern):
    *_, info, soft = TABLE[pattern]
    v = vote(cast(pattern))
    assert informativeness(v.entropy, v.margin) == pytest.approx(info, abs=6e-4)
    if soft is not None:
        rewards = solver_rewards(v)
        assert rewards[0] == pytest.approx(soft, abs=6e-4)
        assert rewards[: v.count] == [rewards[0]] * v.count
        assert all(reward < 0 for reward in rewards[v.count :])


def test_minority_reward_by_hand():
    rewards = solver_rewards(vote(cast((5, 2))))
    v = vote(cast((5, 2)))
    expected = (2 / 7) ** 0.7 * -0.25 * informativeness(v.entropy, v.margin)
    assert rewards[5:] == pytest.approx([expected, expected])


def test_vote_normalises_and_breaks_ties_by_first_seen():
    v = vote(["Blue.", "red", "<answer>RED</answer>", " blue "])
    assert v.majority == "blue" and v.count == 2 and v.margin == 0.0
    assert v.answers == ("blue", "red", "red", "blue")
    assert v.entropy == pytest.approx(math.log(2))


def test_vote_refuses_nonsense():
    with pytest.raises(ValueError, match="at least one"):
        vote([])
    with pytest.raises(TypeError, match="list"):
        vote("yes")


@given(answers)
def test_vote_bounds(texts):
    v = vote(texts)
    assert 0.0 <= v.entropy <= math.log(len(texts)) + 1e-9
    assert v.count == max(texts.count(text) for text in texts) == round(v.fraction * len(texts))
    assert (v.entropy == 0.0) == (len(set(texts)) == 1) == (v.margin == 1.0)


@given(answers, st.permutations(range(9)))
def test_rewards_follow_the_answers_not_their_places(texts, order):
    texts = ["red", "red", *texts, "red"] + ["red"] * len(texts)  # a strict majority, so no tie to break
    paid = dict(zip(texts, solver_rewards(vote(texts)), strict=True))
    shuffled = [texts[i] for i in order if i < len(texts)] + [text for i, text in enumerate(texts) if i >= 9]
    assert solver_rewards(vote(shuffled)) == pytest.approx([paid[text] for text in shuffled])
    assert max(paid.values()) == paid["red"] > 0


def test_penalties_by_hand():
    v = vote(["red", "red", "red", "red", "red", "something", "red or blue"])
    info = informativeness(v.entropy, v.margin)
    rewards = solver_rewards(v)
    share = (1 / 7) ** 0.7
    assert rewards[5] == pytest.approx(share * (-0.25 * info - 0.08))  # low information
    assert rewards[6] == pytest.approx(share * (-0.25 * info - 0.10))  # not one committed answer
    plain = solver_rewards(v, noncanonical=0.0, low_info=0.0)
    assert plain[5] == plain[6] == pytest.approx(share * -0.25 * info)


@pytest.mark.parametrize(("written", "factor"), [(0, 1.0), (6, 1.0), (9, 0.95), (12, 0.9), (50, 0.9)])
def test_length_penalty(written, factor):
    v = vote(cast((5, 2)))
    assert solver_rewards(v, words=[written] * 7)[0] == pytest.approx(factor * solver_rewards(v)[0])
    with pytest.raises(ValueError, match="one per answer"):
        solver_rewards(v, words=[1])


@pytest.mark.parametrize("text", ["unknown", "", "an object", "a lot", "Many things", "yes", "No."])
def test_low_information(text):
    assert is_low_information(text)


@pytest.mark.parametrize("text", ["red", "3", "a red object", "left of the square", "north"])
def test_informative_answers(text):
    assert not is_low_information(text)


def test_yes_and_no_may_pass():
    assert not is_low_information("yes", yes_no=False) and is_low_information("none", yes_no=False)


def test_is_canonical():
    assert all(
        is_canonical(text) for text in ("red", "yes", "2", "<answer>the left one</answer>", "a b c d e")
    )
    assert not any(
        is_canonical(text) for text in ("", "a b c d e f", "red or blue", "maybe red", "<b>red</b>")
    )
    assert is_canonical("a b c d e f", max_words=6)


@given(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_informativeness_falls_with_the_margin(entropy, a, b):
    low, high = sorted((a, b))
    assert 0.0 <= informativeness(entropy, high) <= informativeness(entropy, low) <= 1.0


@pytest.mark.parametrize("bad", [(float("nan"), 0.5), (-0.1, 0.5), (0.5, 1.5), (0.5, float("nan"))])
def test_informativeness_refuses(bad):
    with pytest.raises(ValueError):
        informativeness(*bad)


def test_pseudo_label_mask():
    assert pseudo_label_mask(vote(cast((5, 2))))
    assert pseudo_label_mask(vote(cast((5, 2))), minimum=0.7142857143)
    assert not pseudo_label_mask(vote(cast((4, 3))))


@pytest.mark.parametrize("text, words", [("red", 1), ("<answer>red</answer>", 0), ("it is <answer>red</answer>", 2),
                                         ("I see <ANSWER> red and <answer> blue", 2), ("", 0),
                                         ("there are two blue squares", 5)])
def test_words_before_the_first_answer_tag_or_all_of_them(text, words):
    assert words_said(text) == words


def test_a_long_answer_costs_where_no_tag_is_asked_for():
    short, long = "red", "it looks to me as if this one here were red"  # 1 and 11 words
    votes = vote([short] * 4 + ["blue"] * 3)
    paid = solver_rewards(votes, words=[words_said(t) for t in [long, *[short] * 3, *["blue"] * 3]])
    assert paid[0] == pytest.approx(paid[1] * (1 - 0.10 * 5 / 6)) and paid[1] > 0 > paid[4]
    assert paid == pytest.approx(solver_rewards(votes, words=[11, 6, 1, 0, 6, 1, 0]))  # up to six words cost nothing
    charged = solver_rewards(votes, words=[0] * 6 + [12])
    assert charged[4] < charged[6] < 0  # the release's form: the penalty shrinks a charge too
