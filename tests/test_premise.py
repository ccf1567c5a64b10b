"""The premise report: hand-made answers with known accuracies, and one small measurement end to end."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from asgkit.backbones.base import load_backbone
from asgkit.evals.shapes import AnswerItems
from asgkit.premise import (
    COMPONENTS,
    _rank_premise,
    answer_premise,
    detector_premise,
    measure_premise,
    premise_rows,
    print_premise,
)


@pytest.fixture
def items():
    """Four questions, three framings; the last question is unanimous and wrong, with a high STE."""
    return AnswerItems(
        framings=np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool),
        sampled=np.array([[1, 0, 0, 0]] * 3, bool), canonical=np.array([1, 1, 1, 0], bool),
        majority=np.array([1, 1, 0, 0], bool), entropy=np.array([0.0, 0.64, 0.64, 0.0]),
        sampled_entropy=np.array([0.0, 0.64, 0.64, 1.1]), ste=np.array([0.1, 0.2, 0.3, 0.9]),
        fraction=np.array([1, 2 / 3, 2 / 3, 1]), family=np.array(["count", "count", "color", "color"]),
        answers=["1", "2", "red", "blue"],
    )


def test_answer_premise_by_hand(items):
    found = answer_premise(items)
    assert (found["n"], found["canonical"], found["majority"], found["sampled"]) == (4, 75.0, 50.0, 25.0)
    assert found["single"] == pytest.approx(100 * 6 / 12)
    assert found["framings"] == [50.0, 50.0, 50.0]
    gap = np.array([0, 1 / 3, -1 / 3, 0])
    assert found["majority_minus_single"]["delta"] == pytest.approx(0.0)
    assert found["majority_minus_single"]["se"] == pytest.approx(100 * gap.std(ddof=1) / 2)
    assert list(found["families"]) == ["color", "count"]
    assert found["families"]["count"]["single"] == pytest.approx(100 * 5 / 6)


def test_detector_premise_by_hand(items):
    found = detector_premise(items)
    assert found["canonical"]["wrong"] == 1
    assert found["canonical"]["ste"] == 1.0  # the wrong answer has the highest STE
    assert found["canonical"]["h_sc"] == pytest.approx(1 / 6)  # 0 against 0, 0.64, 0.64: one tie
    assert found["majority"]["h_sc"] == pytest.approx(0.5)  # {0.64, 0} against {0, 0.64}
    assert found["unanimous"]["n"] == 2 and found["unanimous"]["majority_wrong_share"] == 50.0
    assert found["unanimous"]["majority_ste"] == 1.0


def test_detectors_are_undefined_without_wrong_answers(items):
    right = np.ones(4, bool)
    found = detector_premise(AnswerItems(**{**vars(items), "canonical": right, "majority": right}))
    assert found["canonical"]["ste"] is None and found["unanimous"]["majority_ste"] is None


def test_best_of_compares_mean_reward_choice_and_oracle():
    truth = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    signals = {name: list(np.array([[0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.3, 0.4]])) for name in COMPONENTS}
    found = _rank_premise(signals, truth)
    assert found["best_of"] == {"candidates": 2, "mean": 50.0, "by_reward": 50.0, "oracle": 75.0,
                                "mixed_groups": 50.0}
    assert found["zero_variance_share"] == 25.0
    assert found["spearman"]["reward"]["mean"] == pytest.approx(0.0)  # +1 and -1
    assert found["spearman"]["reward"]["groups"] == 2


def test_a_penalty_that_falls_with_the_truth_counts_as_useful():
    truth, penalty = np.array([[0.0, 0.0, 1.0]]), np.array([0.5, 0.4, 0.0])
    found = _rank_premise({name: [penalty] for name in COMPONENTS}, truth)["spearman"]
    assert found["contradiction"]["mean"] > 0.8 > -0.8 > found["fidelity"]["mean"]


@pytest.fixture(scope="module")
def measured():
    return measure_premise(load_backbone("tiny-ar"), per_family=4, per_tag=2, samples=2, groups=4)


def test_measured_premise_is_complete_and_json(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["answers"]["n"] == 28 and len(measured["answers"]["framings"]) == 7
    assert measured["drawings"]["n"] == 24
    assert measured["drawn_images"]["n"] <= 48 and measured["drawn_images"]["n"] % 2 == 0
    assert measured["reward"]["used"] <= 4 and set(measured["reward"]["spearman"]) == set(COMPONENTS)
    best = measured["reward"]["best_of"]
    assert best["oracle"] >= max(best["mean"], best["by_reward"])
    assert measured["reader"]["noise 0"] >= 99.0


def test_premise_prints_every_row(measured):
    console = Console(record=True, width=160, file=io.StringIO())
    print_premise(measured, console)
    text = console.export_text()
    assert all(name in text for name, _, _ in premise_rows(measured))


def test_premise_repeats_exactly(measured):
    again = measure_premise(load_backbone("tiny-ar"), per_family=4, per_tag=2, samples=2, groups=4)
    assert again == measured
