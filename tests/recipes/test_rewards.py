"""R_p, R_s and their advantages by hand, on rows whose votes and entropies are given."""

import numpy as np
import pytest
import torch

from asgkit.ask import TargetEntropy, self_consistency_reward
from asgkit.config import resolve
from asgkit.errors import ConfigError, NonFiniteValue
from asgkit.recipes.asg_work import UnderstandingRow
from asgkit.recipes.rewards import reward_answers, reward_questions
from asgkit.solve import solver_rewards, vote
from asgkit.stages.answer import Question
from asgkit.ste import RollingPercentile
from asgkit.updates import EMABaseline

SPLIT, CLOSE, FLAT = vote(list("aaaaabb")), vote(list("aaaabbb")), vote(list("aaaaaaa"))
REINFORCE = ["solver.update=reinforce"]


def rows() -> list[UnderstandingRow]:
    """Two images: a split, a close and an invalid question; then a flat one, its repetition, and a split one."""
    asked = Question("what is it ?", (), False)
    table = [UnderstandingRow([asked, asked, Question("red", ("bad",), False)]),
             UnderstandingRow([asked, Question("what is it ?", (), True), asked])]
    for row, votes, ste in zip(table, ([SPLIT, CLOSE, None], [FLAT, FLAT, SPLIT]),
                               ([0.5, 1.5, None], [0.1, 0.1, 3.0]), strict=True):
        row.votes, row.ste, row.ste_mean = votes, ste, ste
        row.raw = [list(v.answers) if v else [] for v in votes]
    return table


def questions(*overrides: str) -> tuple[list[UnderstandingRow], RollingPercentile, TargetEntropy]:
    window, target = RollingPercentile(16), TargetEntropy(0.9, momentum=0.5)
    window.update_many([0.25 * i for i in range(8)])  # 0 ... 1.75
    table = rows()
    reward_questions(table, resolve("tiny", overrides), window, target, np.random.default_rng(0))
    return table, window, target


def test_every_candidate_is_ranked_against_the_window_before_the_step():
    table, window, _ = questions()
    assert table[0].difficulty == [pytest.approx(2.5 / 8), pytest.approx(6.5 / 8), None]
    assert table[1].difficulty == [pytest.approx(1 / 8), pytest.approx(1 / 8), 1.0]
    assert len(window) == 8 + 5


def test_rewards_of_questions_by_hand():
    table, _, target = questions()
    frontier = self_consistency_reward(SPLIT.entropy, SPLIT.margin, mu=0.9)  # mu as it was before the step
    assert table[0].rewards[0] == pytest.approx(0.7 * 2.5 / 8 + 0.3 * frontier)
    assert table[0].rewards[2] == -1.0 and table[0].frontier[2] is None
    assert table[1].rewards[0] - table[1].rewards[1] == pytest.approx(0.20)  # the repetition
    mean = np.mean([v.entropy for v in (SPLIT, CLOSE, FLAT, FLAT, SPLIT)])
    assert target.mu == pytest.approx(0.5 * 0.9 + 0.5 * mean)


def test_advantages_are_relative_to_the_image():
    table, _, _ = questions()
    for row in table:
        centred = np.array(row.rewards) - np.mean(row.rewards)
        assert row.advantages == pytest.approx(centred / (np.std(row.rewards) + 1e-6), abs=1e-4)
        assert not row.zero_variance


def test_without_ste_only_the_vote_pays():
    table, _, _ = questions("solver.ste=false")
    assert table[0].rewards[:2] == pytest.approx([0.3 * table[0].frontier[0], 0.3 * table[0].frontier[1]])
    assert table[0].difficulty[0] == pytest.approx(2.5 / 8)  # still measured


def test_an_entropy_that_is_no_number_is_refused_before_it_enters_the_window():
    table, window = rows(), RollingPercentile(16)
    table[0].ste[1] = float("nan")
    with pytest.raises(NonFiniteValue, match="solver/token_entropy"):
        reward_questions(table, resolve("tiny"), window, TargetEntropy(), np.random.default_rng(0))
    assert len(window) == 0


def answers(*overrides: str, truth: list[str | None] | None = None) -> list[UnderstandingRow]:
    """All five valid questions, rewarded by the tiny preset with overrides, against a baseline of .25."""
    table, _, _ = questions()
    baseline = EMABaseline()
    baseline.update(0.25)
    where = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    reward_answers(table, where, resolve("tiny", overrides), baseline, truth, np.random.default_rng(0))
    return table


def test_reinforce_trains_on_the_chosen_question_against_the_baseline():
    table = answers(*REINFORCE, "solver.train_on=best")
    assert [row.best for row in table] == [1, 2]
    assert [list(row.solver_advantages) for row in table] == [[1], [2]]
    expected = solver_rewards(CLOSE, low_info=0.0)
    assert table[0].solver_rewards[1] == pytest.approx(expected)
    assert table[0].solver_advantages[1] == pytest.approx([r - 0.25 for r in expected])


def test_words_before_the_answer_cost():
    table = rows()
    wordy = "because the thing in the middle of the picture is so <answer>a</answer>"  # 11 words: pen = 5/6
    table[0].raw[0] = [wordy, *"aaaabb"]
    reward_answers(table, [(0, 0)], resolve("tiny", [*REINFORCE, "solver.train_on=all"]), EMABaseline(), None,
                   np.random.default_rng(0))
    paid = table[0].solver_rewards[0]
    assert paid[0] == pytest.approx(paid[1] * (1 - 0.10 * 5 / 6))


def test_who_does_not_teach_and_why():
    table = answers(*REINFORCE, "solver.train_on=all", "solver.min_share=0.6")
    assert table[0].skip == {1: "vote share below 0.600"} and list(table[0].solver_advantages) == [0]
    assert table[1].skip == {0: "zero variance", 1: "zero variance"}


def test_unanimous_votes_are_skipped_and_teach_backwards_where_they_are_not():
    skipped = answers(*REINFORCE, "solver.train_on=all")
    assert skipped[1].skip == {0: "zero variance", 1: "zero variance"}
    table = answers(*REINFORCE, "solver.train_on=all", "solver.unanimous=teach")
    assert not table[1].skip and set(table[1].solver_advantages) == {0, 1, 2}
    reward = solver_rewards(FLAT, low_info=0.0)[0]
    assert table[1].solver_advantages[0] == pytest.approx([reward - 0.25] * 7)
    assert reward < 0.25  # below the baseline: what all framings said is made less likely


def test_the_switch_of_unanimous_votes_acts_on_pseudo_labels_too():
    assert 0 in answers()[1].solver_advantages
    assert answers("solver.unanimous=skip")[1].skip == {0: "unanimous vote", 1: "unanimous vote"}
    with pytest.raises(ConfigError, match="changes nothing under update=group"):
        resolve("tiny", ["solver.update=group", "solver.unanimous=teach"])


def test_a_unanimous_vote_of_answers_of_unequal_length_is_skipped_as_such():
    table = rows()
    wordy = "because the thing in the middle of the picture is so <answer>a</answer>"
    table[1].raw[0] = [wordy, *"aaaaaa"]
    for unanimous, found in (("skip", {0: "unanimous vote"}), ("teach", {})):
        table[1].skip.clear()
        reward_answers(table, [(1, 0)], resolve("tiny", [*REINFORCE, "solver.train_on=all",
                                                         f"solver.unanimous={unanimous}"]),
                       EMABaseline(), None, np.random.default_rng(0))
        assert table[1].skip == found


@pytest.mark.parametrize("update", ["reinforce", "group"])
def test_votes_that_all_differ_teach_the_first_answer_unless_they_are_skipped(update):
    for switch, taught in (("teach", True), ("skip", False)):
        table = rows()
        table[0].votes[0] = vote(list("abcdefg"))
        table[0].raw[0] = list("abcdefg")
        reward_answers(table, [(0, 0)], resolve("tiny", [f"solver.update={update}", "solver.train_on=all",
                                                         f"solver.all_different={switch}"]),
                       EMABaseline(), None, np.random.default_rng(0))
        assert (0 in table[0].solver_advantages) == taught
        assert table[0].skip == ({} if taught else {0: "all answers differ"})
        paid = table[0].solver_rewards[0]
        assert paid[0] > 0 > max(paid[1:])


def test_pseudo_labels_need_five_of_seven():
    table = answers()
    assert table[0].skip == {1: "vote share below 0.714"}
    assert table[0].solver_advantages == {0: [1.0] * 7} and set(table[1].solver_advantages) == {0, 1, 2}
    assert table[0].taught == table[1].taught == {}


def test_the_oracle_teaches_the_truth_where_it_was_said():
    table = answers("control=oracle", truth=["b", "c", "a", None, "b"])
    assert table[0].taught == {0: "b", 1: "c"} and table[0].skip == {1: "no framing gave the taught answer"}
    assert set(table[1].solver_advantages) == {0, 2} and table[1].taught == {0: "a", 2: "b"}
    assert table[1].skip == {1: "no true answer"}


def test_the_gated_oracle_asks_the_methods_own_votes():
    table = answers("control=oracle_gated", truth=["b", "a", "a", None, "b"])
    assert table[0].skip == {1: "vote share below 0.714"} and table[0].taught == {0: "b", 1: "a"}
    assert list(table[0].solver_advantages) == [0] and table[1].skip == {1: "no true answer"}


def test_group_relative_advantages_sum_to_zero():
    table = answers("solver.update=group")
    assert torch.tensor(table[0].solver_advantages[0]).sum().item() == pytest.approx(0.0, abs=1e-5)
