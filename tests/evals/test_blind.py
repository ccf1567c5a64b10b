"""The same questions with another's picture, a grey one or none."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from asgkit.backbones import load_backbone
from asgkit.evals import blind
from asgkit.shapes.benchmark import vqa_benchmark
from asgkit.shapes.text import FAMILIES


@pytest.fixture(scope="module")
def bench():
    return vqa_benchmark("dev", 6)


@pytest.fixture(scope="module")
def tiny():
    return load_backbone("tiny-ar")


def test_every_item_gets_another_picture_and_every_picture_is_used(bench):
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    shown = [int(np.asarray(image)[0, 0, 0]) for image in blind.shown_images(pictures, "shuffled", seed=3)]
    assert sorted(shown) == list(range(5)) and all(i != j for i, j in enumerate(shown))
    again = [int(np.asarray(image)[0, 0, 0]) for image in blind.shown_images(pictures, "shuffled", seed=3)]
    assert again == shown


def test_modes_show_what_they_say(bench):
    own = blind.shown_images(bench.images, "real")
    assert np.array_equal(np.stack([np.asarray(image) for image in own]), bench.images)
    assert np.unique(np.stack([np.asarray(i) for i in blind.shown_images(bench.images, "blank")])).tolist() == [128]
    assert blind.shown_images(bench.images, "none") is None
    with pytest.raises(ValueError, match="unknown image mode 'grey'"):
        blind.shown_images(bench.images, "grey")


def test_the_picture_matters_and_without_it_answers_are_guesses(tiny, bench):
    right = {mode: blind.blind_accuracy(tiny, None, mode, bench).mean() for mode in blind.MODES}
    assert right["real"] > 0.6
    assert max(right["shuffled"], right["blank"], right["none"]) < 0.45


def test_a_prefix_without_images_equals_text_alone(tiny):
    prompts = ["question : how many circles are there ? <answer>", "question : is there a digit ? <answer>"]
    answers = tiny.answer(tiny.prefix(None, role=None), prompts, max_new_tokens=2, keep_logits=2)
    scored = tiny.text_stats(None, prompts, answers, role=None, keep_logits=True)
    assert torch.allclose(answers.logits[:, 0], scored.logits[:, 0], atol=1e-5)
    picture = [Image.new("RGB", (24, 24), "white")] * 2
    seen = tiny.answer(tiny.prefix(picture, role=None), prompts, max_new_tokens=2, keep_logits=2)
    assert not torch.allclose(seen.logits[:, 0], answers.logits[:, 0], atol=1e-2)


def test_the_commonest_answer_counts_by_family(bench):
    right = blind.commonest_answer(bench)
    for family in FAMILIES:
        own = [item.answer for item in bench.items if item.family == family]
        hits = [right[i] for i, item in enumerate(bench.items) if item.family == family]
        assert sum(hits) == max(own.count(answer) for answer in own)


def test_rows_hold_every_mode_and_family_and_survive_the_file(tiny, bench, tmp_path):
    rows = blind.blind_scores(tiny, None, "dev", 3)
    assert len(rows) == 5 * (len(FAMILIES) + 1)
    path = blind.write_blind(tmp_path / "blind.csv", [(0, rows), (30, rows)])
    found = pd.read_csv(path, keep_default_na=False)
    assert found["step"].unique().tolist() == [0, 30] and set(found["mode"]) == {*blind.MODES, "commonest"}
    every = found[(found["step"] == 0) & (found["mode"] == "real")].set_index("family")["value"]
    assert every["all"] == pytest.approx(every[list(FAMILIES)].mean(), abs=1e-3)  # families are equally many
