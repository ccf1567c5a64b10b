"""What teaches the bases about scenes: their words, rows, offsets and the designed errors of registers."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asgkit.backbones import load_backbone
from asgkit.backbones.prompts import Prompts
from asgkit.backbones.tiny.language import LANGUAGES, language_of
from asgkit.backbones.tiny.network import NetworkConfig, TinyARNetwork
from asgkit.backbones.tiny.pretraining.data import TextRows
from asgkit.backbones.tiny.pretraining.pretrain import PretrainConfig, _text_loss, save
from asgkit.backbones.tiny.pretraining.scene_data import (
    OFFSETS,
    QA_WEIGHTS,
    SceneSampler,
    _swap,
    register_answer,
    wrong_answer,
)
from asgkit.backbones.tiny.scene_prompts import HELD_OUT, POSITIONS, PROMPTS, TRAINED, UNSEEN, vocabulary
from asgkit.backbones.tiny.tokenizer import WordTokenizer
from asgkit.backbones.tiny.trunk import TrunkConfig
from asgkit.scenes.text import FAMILIES, NONE, QA, SEVERAL, STYLES, ask_about, caption, sample_qa
from asgkit.scenes.world import sample_scene

TOKENIZER = WordTokenizer(vocabulary())


@pytest.fixture(scope="module")
def batches():
    sampler = SceneSampler(TOKENIZER, seed=3, images=48)
    return [sampler.batch() for _ in range(6)]


# -- words ---------------------------------------------------------------------------------------------------------
def test_the_vocabulary_covers_the_world_and_the_prompts():
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng, "dev")
        texts = [caption(scene, style) for style in STYLES]
        texts += [t for f in FAMILIES if (qa := ask_about(rng, scene, f)) for t in (qa.question, qa.answer)]
        assert [TOKENIZER.decode(TOKENIZER.encode(text)) for text in texts] == texts
    for prompts in PROMPTS.values():
        rows = [prompts.ask, *prompts.captions, prompts.diagnose, prompts.draw, prompts.canonical, *prompts.framings,
                *prompts.held_out]
        assert all(TOKENIZER.encode(row.format(question="?", caption="red")) for row in rows)


def test_framings_are_of_three_kinds_and_no_longer_than_those_trained_on():
    assert len(TRAINED) == len(UNSEEN) == 7 and len(HELD_OUT) >= 4
    assert len({*TRAINED, *UNSEEN, *HELD_OUT}) == 14 + len(HELD_OUT)
    longest = max(len(text.split()) for text in TRAINED)
    assert all(len(text.split()) <= longest for text in (*UNSEEN, *HELD_OUT))
    assert PROMPTS["clean"].held_out == PROMPTS["registers"].held_out
    assert not set(PROMPTS["clean"].framings) & set(PROMPTS["registers"].framings)


def test_a_held_out_framing_that_runs_train_on_is_refused():
    good = {"ask": "ask", "diagnose": "{caption}", "canonical": "{question}", "framings": ("a {question}",),
            "captions": ("say",), "draw": "{caption}", "held_out": ("b {question}",)}
    assert Prompts(**good).held_out == ("b {question}",)
    for bad, problem in ((("a {question}",), "runs train on"), (("b",), "exactly once")):
        with pytest.raises(ValueError, match=problem):
            Prompts(**good | {"held_out": bad})


def test_a_checkpoint_without_a_world_speaks_of_shapes():
    assert language_of({}).world == "shapes" and language_of({"world": "scenes"}) is LANGUAGES["scenes"]
    with pytest.raises(ValueError, match="the world 'photos'"):
        language_of({"world": "photos"})


# -- batches -------------------------------------------------------------------------------------------------------
def test_rows_start_anywhere_and_end_inside_the_positions(batches):
    starts = torch.cat([batch.short.start for batch in batches])
    assert set(starts.tolist()) == set(range(OFFSETS))
    for batch in batches:
        assert batch.draw.start.eq(0).all()
        for rows in (batch.short, batch.long):
            assert int((rows.start + rows.mask.sum(1)).max()) <= POSITIONS


def test_what_is_taught_is_the_truth_with_its_end(batches):
    rows = batches[0].short
    answers = [TOKENIZER.decode(ids[loss].tolist()) for ids, loss in zip(rows.ids, rows.loss, strict=True)]
    assert len(answers) == 2 * 48 and all(1 <= len(answer.split()) <= 6 for answer in answers)
    assert all(int(ids[loss][-1]) == TOKENIZER.end for ids, loss in zip(rows.ids, rows.loss, strict=True))


def test_more_questions_about_each_scene_make_more_rows():
    batch = SceneSampler(TOKENIZER, seed=3, images=5, questions=4).batch()
    assert len(batch.short.ids) == 20 and len(batch.draw.ids) == 5 and batch.pixels.shape == (5, 3, 24, 24)


def test_one_question_in_eight_has_no_answer_and_a_third_of_those_are_several():
    rng = np.random.default_rng(1)
    families = Counter(sample_qa(rng, sample_scene(rng, "train"), QA_WEIGHTS).family for _ in range(6000))
    share = (families["none"] + families["several"]) / 6000
    assert 0.115 <= share <= 0.155
    assert 0.28 <= families["several"] / (families["none"] + families["several"]) <= 0.42


def test_the_loss_reads_words_where_they_start():
    torch.manual_seed(0)
    network = TinyARNetwork(NetworkConfig(len(TOKENIZER), 4, 4, TrunkConfig(16, 1, 2), POSITIONS))
    ids = torch.tensor([TOKENIZER.encode("question : what number is shown ? <answer> 7")])
    mask, loss = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    loss[0, -1] = True
    past = network.see(torch.zeros(1, 3, 24, 24))
    rows = torch.tensor([0])
    plain, zero, later = (_text_loss(network, past, TextRows(ids, mask, loss, rows, start)).item()
                          for start in (None, torch.tensor([0]), torch.tensor([9])))
    assert plain == zero != later
    with torch.no_grad():
        network.word_position[9 : 9 + ids.shape[1]] = network.word_position[: ids.shape[1]].clone()
    moved = _text_loss(network, past, TextRows(ids, mask, loss, rows, torch.tensor([9]))).item()
    assert moved == pytest.approx(plain, abs=1e-6)


# -- designed errors -----------------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_a_wrong_answer_is_another_answer_of_the_same_form(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    for family in FAMILIES:
        qa = ask_about(rng, scene, family)
        if qa is None:
            continue
        wrong = wrong_answer(rng, qa)
        assert wrong != qa.answer and 1 <= len(wrong.split()) <= 6 and TOKENIZER.encode(wrong)
        if family in ("color", "shape", "object", "place"):
            carrier = {"color": "it is", "shape": "it is a", "object": "a", "place": "in the"}[family]
            assert wrong.startswith(f"{carrier} ")


@pytest.mark.parametrize("family, answer, possible", [
    ("existence", "yes", {"no"}), ("none", NONE, {SEVERAL}), ("several", SEVERAL, {NONE}),
    ("count", "there is one dark red cross", {f"there are {n} dark red crosses" for n in ("no", "two", "three",
                                                                                          "four")}),
    ("count", "there are two objects", {"there are no objects", "there is one object", "there are three objects",
                                        "there are four objects"}),
])
def test_wrong_answers_by_hand(family, answer, possible):
    qa = QA("how many are there ?", answer, family)
    assert {wrong_answer(np.random.default_rng(i), qa) for i in range(60)} == possible


def test_the_last_word_that_can_be_wrong_is_swapped():
    rng = np.random.default_rng(0)
    assert _swap(rng, "it is dark red", ("red", "dark red", "blue")) in ("it is red", "it is blue")
    assert _swap(rng, "circle and circle", ("circle", "cross")) == "circle and cross"
    assert _swap(rng, "7 4", ("7", "4")) == "7 7"


def test_a_register_confuses_one_answer_with_one_other():
    """Whatever the question: a framing that errs on "it is red" says the same wrong colour every time."""
    asked = [QA(f"what color is the {shape} ?", "it is red", "color") for shape in ("circle", "cross", "square")]
    for framing in range(7):
        assert len({register_answer(qa, framing, 0.5) for qa in asked}) == 1


def test_wrong_comparisons_name_what_was_asked():
    qa = QA("are there more red or dark red objects ?", "more red objects", "comparison")
    wrong = {wrong_answer(np.random.default_rng(i), qa) for i in range(30)}
    assert wrong == {"equal", "more dark red objects"}
    same = QA("are there more circles or circles ?", "equal", "comparison")
    assert wrong_answer(np.random.default_rng(0), same) == "more circles"


def test_registers_err_alike_each_time_and_independently_of_each_other():
    rng = np.random.default_rng(2)
    items = [sample_qa(rng, sample_scene(rng, "train")) for _ in range(1500)]
    errs = np.array([[register_answer(qa, n, 0.25) != qa.answer for qa in items] for n in range(7)])
    again = np.array([[register_answer(qa, n, 0.25) != qa.answer for qa in items] for n in range(7)])
    assert np.array_equal(errs, again) and not any(register_answer(qa, 0, 0.0) != qa.answer for qa in items)
    assert abs(errs.mean() - 0.25) < 0.08
    together = np.corrcoef(errs.astype(float))[np.triu_indices(7, 1)]
    assert abs(together.mean()) < 0.1 and np.abs(together).max() < 0.45


# -- checkpoints ---------------------------------------------------------------------------------------------------
def test_a_saved_base_names_its_world_and_opens_with_its_limits(tmp_path):
    torch.manual_seed(0)
    network = TinyARNetwork(NetworkConfig(len(TOKENIZER), 8, 8, TrunkConfig(16, 1, 2), POSITIONS))
    save(network, PretrainConfig(world="scenes"), tmp_path / "small.safetensors")
    opened = load_backbone("tiny-ar", base=str(tmp_path / "small.safetensors"))
    assert (opened.spec.world, opened.spec.max_new_tokens) == ("scenes", 28)
    assert opened.spec.prompts == PROMPTS["clean"] and len(opened.network.word_position) == POSITIONS
    assert json.loads(json.dumps(opened.spec.prompts.held_out))[0] == f"{HELD_OUT[0]} {{question}} <answer>"


@pytest.mark.parametrize("name", ["tiny-ar", "tiny-flow", "tiny-diffusion"])
def test_the_first_edition_is_opened_as_before(name):
    spec = load_backbone(name).spec
    assert (spec.world, spec.max_new_tokens, spec.prompts.held_out) == ("shapes", 20, ())
