"""The seven gates: hand-made answers whose gates are known, and what the gates refuse."""

import io

import numpy as np
import pytest
from rich.console import Console

from asgkit.backbones import load_backbone
from asgkit.config import resolve
from asgkit.evals.shapes import AnswerItems
from asgkit.experiments.gates import (
    Part,
    aggregates,
    doubt_parts,
    measure_gates,
    print_gates,
    token_parts,
    vote_parts,
)
from asgkit.scenes.text import NONE
from asgkit.stages.answer import Question

NAN = float("nan")


def items(families, framings, entropies, fraction=None, majority=None) -> AnswerItems:
    framings = np.array(framings, bool)
    count = framings.shape[1]
    majority = framings.mean(0) > 0.5 if majority is None else np.array(majority, bool)
    fraction = np.ones(count) if fraction is None else np.array(fraction)
    zero = np.zeros(count)
    return AnswerItems(framings, framings, framings[0], majority, zero, zero, zero, zero, fraction,
                       np.array(families), [""] * count, None, np.array(entropies, float), "scenes")


def values(parts: list[Part]) -> dict[str, float | None]:
    return {part.name: part.value for part in parts}


def test_bounds_decide_and_the_undefined_does_not_pass():
    assert Part(1, "a", 60.0, 60.0, 75.0).passed and not Part(1, "a", 76.0, 60.0, 75.0).passed
    assert Part(1, "a", 5.0, None, 90.0).passed and not Part(1, "a", 59.9, 60.0).passed
    assert not Part(3, "a", None, 0.8).passed


def test_votes_count_answerable_questions_alone():
    found = items(["count", "count", "color", "none"], [[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]], [[0.0]] * 4)
    parts = values(vote_parts(found))
    # framings 1, 2/3, 2/3 right; the majority is right on all three
    assert parts["mean framing"] == pytest.approx(100 * 7 / 9) and parts["canonical"] == pytest.approx(100 * 2 / 3)
    gap = np.array([0, 1 / 3, 1 / 3])
    assert parts["vote - framing"] == pytest.approx(100 * gap.mean())
    assert parts["lower end of its interval"] == pytest.approx(100 * (gap.mean() - 1.96 * gap.std(ddof=1) / 3**0.5))


def test_aggregates_take_five_tokens_and_the_end():
    ste = aggregates(np.array([[0.1, 0.5, 0.0, 0.0, 0.0, 9.0], [0.2, 0.0, NAN, NAN, NAN, NAN]]))
    assert ste["max"].tolist() == [0.5, 0.2] and ste["first"].tolist() == [0.1, 0.2]
    assert ste["mean"].tolist() == pytest.approx([0.12, 0.1])


def test_tokens_differ_by_more_than_a_twentieth():
    rows = [[0.10, 0.14], [0.10, 0.16], [0.0, 1.0], [1.0, 1.0]]
    parts = values(token_parts(items(["count"] * 4, [[1] * 4], rows)))
    assert parts["max differs from first token"] == 50.0  # 0.06 and 1.0
    assert parts["max differs from mean"] == 25.0  # 0.5 alone: 0.02, 0.03, 0.5, 0


def test_doubt_is_judged_where_votes_agree():
    rows = [[0.9, 0.1], [0.1, 0.8], [0.8, 0.2], [0.1, 0.1], [0.2, 0.1]]
    parts = values(doubt_parts(items(["count"] * 3 + ["none", "several"], [[0] * 5], rows, [1, 1, 1, 1, 0.5],
                                     [0, 1, 1, 1, 0])))
    # unanimous: wrong has max .9 against .8, .8, .1; first .9 against .1, .8, .1
    assert (parts["AUC of STE, unanimous votes"], parts["above that of the first token"]) == (1.0, 0.0)
    assert (parts["unanimous votes"], parts["wrong among them"]) == (80.0, 25.0)
    assert parts["AUC of STE, unanswerable questions"] == 1.0  # .2 wrong against .1 right


def test_without_a_wrong_answer_the_area_is_undefined():
    parts = values(doubt_parts(items(["count", "none"], [[1, 1]], [[0.1], [0.2]])))
    assert parts["AUC of STE, unanimous votes"] is None and parts["above that of the first token"] is None


def test_a_world_in_which_all_questions_have_answers_has_no_gates():
    with pytest.raises(ValueError, match="the world 'shapes' of this base has none"):
        measure_gates(load_backbone("tiny-ar"), resolve("tiny"))


def test_questions_without_an_answer_are_known():
    from asgkit.evals.worlds import WORLDS
    from asgkit.experiments.gates import _without_answer

    world = WORLDS["scenes"]
    scene = world.sample_scene(np.random.default_rng(0), "dev", digits=0)
    assert world.answer_question(scene, "what number is shown ?") == NONE
    assert _without_answer(world, scene, "what number is shown ?") and _without_answer(world, scene, "why ?")
    assert not _without_answer(world, scene, "how many objects are there ?")
    assert Question("why ?", (), False).valid


def test_the_shipped_base_is_measured_and_printed():
    sizes = {"per_family": 6, "pictures": 32, "per_tag": 2, "samples": 1, "choose": 1}
    config = resolve("tiny", {"base": "scenes"})
    found = measure_gates(load_backbone("tiny-ar", base="scenes"), config, **sizes)
    assert {row["gate"] for row in found["gates"]} == set(range(1, 8)) and len(found["gates"]) == 14
    assert found["questions"] == 60 and set(found["choice"]) == {"changed", "unanswerable/all", "unanswerable/with_ste",
                                                               "unanswerable/without_ste"}
    assert found["passed"] == all(row["passed"] for row in found["gates"])
    console = Console(record=True, width=140, file=io.StringIO())
    print_gates(found, console)
    text = console.export_text()
    assert "60 to 75" in text and "at most 90" in text and text.count("passed") + text.count("MISSED") == 14
