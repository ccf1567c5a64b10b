"""Scoring drawings: which answers are the references, how a card passes, and R_g of candidates known beforehand."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from asgkit.backbones.base import Answers
from asgkit.backbones.prompts import Prompts
from asgkit.config import GeneratorConfig, SolverConfig
from asgkit.errors import NonFiniteValue
from asgkit.stages.answer import Question, answer_questions, greedy_difficulty, propose, read_questions
from asgkit.stages.judge import make_cards, pixels, score_candidates, similarities

RED, BLUE, GREEN = ((color, Image.new("RGB", (4, 4), color)) for color in ("red", "blue", "green"))
COLOR, EXISTS = "what color is it ?", "is it red ?"
PROMPTS = Prompts(ask="ask", diagnose="{caption} ask", canonical="c : {question}",
                  framings=("a : {question}", "b : {question}", "d : {question}"), captions=("say",),
                  draw="{caption} draw")


class ColorReader:
    """A stand-in that sees one thing, a picture's colour, and answers from it; counts its calls."""

    spec = SimpleNamespace(name="reader", prompts=PROMPTS, max_new_tokens=4)

    def __init__(self, stubborn: str = "") -> None:
        self.stubborn, self.calls = stubborn, []  # framing "d" always says `stubborn`

    def prefix(self, images, *, role):
        names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green"}
        return SimpleNamespace(size=len(images), role=role, cache=[names[image.getpixel((0, 0))] for image in images])

    def answer(self, prefix, prompts, *, rows=None, **settings):
        rows = range(prefix.size) if rows is None else rows
        self.calls.append((prefix.role, len(prompts), settings))
        texts = [self.say(prefix.cache[row], prompt) for row, prompt in zip(rows, prompts, strict=True)]
        return Answers(texts, torch.zeros(len(texts), 1, dtype=torch.int64), torch.ones(len(texts), 1).bool(),
                       torch.zeros(len(texts), 1))

    def say(self, color: str, prompt: str) -> str:
        if prompt == "say":
            return color
        if self.stubborn and prompt.startswith("d :"):
            return self.stubborn
        return color if COLOR in prompt else ("yes" if color == "red" else "no")

    def text_stats(self, images, prompts, completions, *, role, **settings):
        assert role is None, "similarities must come from the frozen base"
        sure = [0.0] * len(completions) if images is None else [
            0.0 if self.prefix([image], role=None).cache[0] == text else -2.0
            for image, text in zip(images, completions, strict=True)]
        axes = {"red": [1.0, 0.0, 0.0], "blue": [0.0, 1.0, 0.0], "green": [-1.0, 0.0, 1.0]}
        pooled = torch.tensor([axes.get(text, [0.0, 0.0, 1.0]) for text in completions])
        return SimpleNamespace(logp=torch.tensor(sure)[:, None], mask=torch.ones(len(sure), 1).bool(), pooled=pooled)


def question(text: str, *problems: str, duplicate: bool = False) -> Question:
    return Question(text, problems, duplicate)


def cards_for(asked, backbone=None, **settings):
    settings = GeneratorConfig(**{"questions": len(asked), "votes": 3} | settings)
    return make_cards(backbone or ColorReader(), [RED[1]], ["red"], ["say"], asked, settings, SolverConfig()), settings


# -- cards ---------------------------------------------------------------------------------------------------------
def test_references_are_the_solvers_answers_on_the_real_image():
    (card,), _ = cards_for([question(COLOR), question(EXISTS)], backbone := ColorReader(stubborn="blue"))
    assert [v.majority for v in card.references] == ["red", "yes"]
    assert [v.fraction for v in card.references] == pytest.approx([2 / 3, 2 / 3])
    assert [(role, count) for role, count, _ in backbone.calls] == [("solver", 2 * 3)]
    assert backbone.calls[0][2]["temperature"] == 0.0
    assert card.quality == pytest.approx(1.0) and card.passed


def test_invalid_and_repeated_questions_stay_out():
    (card,), _ = cards_for([question(COLOR), question(COLOR, duplicate=True), question("red", "no question")])
    assert card.questions == [COLOR] and len(card.asked) == 3
    # n = 2 valid of 3 written, 1 distinct: 0.5 + 0.3 * 2/3 + 0.2 * 1/2 = 0.8, but two questions are needed
    assert card.quality == pytest.approx(0.8) and not card.passed


@pytest.mark.parametrize("caption, least, passed", [("red", 2, True), ("red", 3, False), (" ", 2, False)])
def test_a_card_needs_enough_questions_and_a_prompt(caption, least, passed):
    settings = GeneratorConfig(questions=2, votes=1, min_questions=least)
    asked = [question(COLOR), question(EXISTS)]
    (card,) = make_cards(ColorReader(), [RED[1]], [caption], ["say"], asked, settings, SolverConfig())
    assert card.passed is passed


def test_a_card_of_yes_and_no_alone_is_worth_less():
    (card,), _ = cards_for([question(EXISTS), question("is it red now ?")])
    assert card.quality == pytest.approx(0.8)


def test_without_questions_nothing_is_asked():
    (card,), settings = cards_for([question("red", "no question")], backbone := ColorReader())
    assert backbone.calls == [] and card.references == [] and card.quality == 0.0 and not card.passed
    scores = score_candidates(ColorReader(), [card], [[RED[1], BLUE[1]]], settings, SolverConfig())
    assert scores.fidelity.tolist() == [[0.0, 0.0]] and scores.reward.tolist() == [[0.0, 0.0]]


def test_images_keep_their_questions_apart():
    settings = GeneratorConfig(questions=2, votes=3)
    asked = [question(COLOR), question(EXISTS), question(EXISTS), question("red", "bad")]
    cards = make_cards(ColorReader(), [RED[1], BLUE[1]], ["red", "blue"], ["say"] * 2, asked, settings,
                       SolverConfig())
    assert [[v.majority for v in card.references] for card in cards] == [["red", "yes"], ["no"]]


# -- candidates ----------------------------------------------------------------------------------------------------
def test_rewards_worked_by_hand():
    (card,), settings = cards_for([question(COLOR), question(EXISTS)])
    scores = score_candidates(ColorReader(), [card], [[RED[1], BLUE[1]]], settings, SolverConfig())
    # red: every answer matches. blue: no match, unanimous, so 0.3 a question; one of two answers flips yes to no
    assert scores.fidelity.tolist() == [pytest.approx([1.0, 0.3])]
    assert scores.contradiction.tolist() == [[0.0, 0.5]]
    assert scores.text_similarity.tolist() == [[1.0, 0.0]]
    assert scores.image_text_similarity[0].tolist() == pytest.approx([1.0, 0.135335], abs=1e-5)  # exp(-2)
    assert scores.cycle[0].tolist() == pytest.approx([1.0, 0.067668], abs=1e-5)
    assert scores.captions == [["red", "blue"]] and scores.answers == [[["red", "yes"], ["blue", "no"]]]
    spread = scores.diversity[0]
    assert spread[0] == spread[1] > 0  # two candidates share their one distance
    expected = [0.65 + 0.20 + 0.10 * spread[0], 0.65 * 0.3 + 0.2 * 0.067668 + 0.10 * spread[1] - 0.2 * 0.5]
    assert scores.reward[0].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)


def test_a_split_vote_lowers_fidelity():
    (card,), settings = cards_for([question(COLOR), question(EXISTS)])
    scores = score_candidates(ColorReader(stubborn="green"), [card], [[RED[1], BLUE[1]]], settings, SolverConfig())
    # two of three framings say what the reference says: 0.7 x 1 + 0.3 x 2/3; and where they do not, 0.3 x 2/3
    assert scores.fidelity[0].tolist() == pytest.approx([0.9, 0.2])


def test_candidates_of_many_cards_in_one_batch_score_as_alone():
    (card,), settings = cards_for([question(COLOR), question(EXISTS)])
    groups = [[RED[1], BLUE[1], GREEN[1]], [BLUE[1], BLUE[1], RED[1]]]
    both = score_candidates(reader := ColorReader(), [card, card], groups, settings, SolverConfig())
    for i, group in enumerate(groups):
        alone = score_candidates(ColorReader(), [card], [group], settings, SolverConfig())
        for name in ("reward", "fidelity", "cycle", "diversity", "contradiction"):
            assert torch.equal(getattr(both, name)[i], getattr(alone, name)[0]), name
    assert [count for _, count, _ in reader.calls] == [6 * 2 * 3, 6]  # all votes in one call, all captions in one


def test_a_failed_card_pays_nothing():
    (card,), settings = cards_for([question(COLOR)])
    scores = score_candidates(ColorReader(), [card], [[RED[1], BLUE[1]]], settings, SolverConfig())
    assert not card.passed and scores.reward.tolist() == [[0.0, 0.0]]
    assert scores.fidelity[0, 0] == 1.0  # still measured


def test_opposite_and_empty_captions_are_not_similar():
    (card,), _ = cards_for([question(COLOR), question(EXISTS)])
    text, seen = similarities(ColorReader(), [RED[1], GREEN[1], RED[1]], [card] * 3, ["red", "green", " "])
    assert text.tolist() == [1.0, 0.0, 0.0]  # the cosine of red and green is negative: no similarity, not less
    assert seen.tolist() == pytest.approx([1.0, 0.135335, 1.0], abs=1e-5)


def test_nan_similarities_are_reported_as_such(monkeypatch):
    (card,), settings = cards_for([question(COLOR), question(EXISTS)])
    nan = torch.full((2,), float("nan"))
    monkeypatch.setattr("asgkit.stages.judge.similarities", lambda *_: (nan, nan))
    with pytest.raises(NonFiniteValue, match="generator/similarities"):
        score_candidates(ColorReader(), [card], [[RED[1], BLUE[1]]], settings, SolverConfig())


def test_pixels_are_channels_first_in_unit_range():
    found = pixels([RED[1], BLUE[1]])
    assert found.shape == (2, 3, 4, 4) and found[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


# -- asking and answering ------------------------------------------------------------------------------------------
def test_duplicates_count_within_a_group_only():
    lines = ["is it red ?", "is it red ?", "is it red ?", "what is it ?", "red", "red"]
    found = read_questions(lines, 3)
    assert [q.duplicate for q in found] == [False, True, True, False, False, False]
    assert [q.valid for q in found] == [True, True, True, True, False, False]
    assert found[4].problems == ("no question found",) and found[4].text == ""


def test_each_question_gets_every_framing_once():
    backbone = ColorReader()
    solved = answer_questions(backbone, backbone.prefix([RED[1], BLUE[1]], role="solver"), [COLOR, EXISTS], [1, 0],
                              framings=3, temperature=1.0, max_new_tokens=2)
    assert solved.prompts == [f"{p} : {q}" for q in (COLOR, EXISTS) for p in "abd"]
    assert solved.rows == [1, 1, 1, 0, 0, 0]
    assert [v.majority for v in solved.votes] == ["blue", "yes"]
    with pytest.raises(ValueError, match="4 framings asked for, reader has 3"):
        answer_questions(backbone, backbone.prefix([RED[1]], role="solver"), [COLOR], [0], framings=4,
                         temperature=1.0, max_new_tokens=2)


@pytest.mark.parametrize("field", ["logp", "logits"])
def test_nan_from_the_model_is_noticed_where_it_appears(field):
    bad = {"logp": torch.zeros(1, 1), "logits": torch.zeros(1, 1, 3)} | {field: torch.full((1, 1, 3), float("nan"))}
    bad["logp"] = bad["logp"].reshape(1, -1)
    said = Answers(["is it red ?"], torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1).bool(), **bad)
    model = SimpleNamespace(answer=lambda *_, **__: said, spec=ColorReader.spec)
    prefix = SimpleNamespace(size=1, role="solver")
    if field == "logits":
        with pytest.raises(NonFiniteValue, match="solver/logits"):
            greedy_difficulty(model, prefix, [COLOR], [0], tokens=5, max_new_tokens=1)
        return
    with pytest.raises(NonFiniteValue, match="proposer/logp"):
        propose(model, prefix, ["ask"], 1, temperature=1.0, top_p=1.0, max_new_tokens=1, seed=0)
    with pytest.raises(NonFiniteValue, match="solver/logp"):
        answer_questions(model, prefix, [COLOR], [0], framings=1, temperature=1.0, max_new_tokens=1)
