"""tiny-ar's parts: tokenizer, sampling, image codes, reading and drawing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.prompts import Prompts
from asgkit.backbones.sampling import (
    count_up,
    log_softmax_stats,
    row_uniforms,
    running_sum,
    sample_tokens,
    uniforms,
)
from asgkit.backbones.tiny.codes import (
    COARSE,
    TOKENS,
    build_codebook,
    halve,
    nearest,
    patches,
    to_tensor,
    unpatch,
)
from asgkit.backbones.tiny.prompts import PROMPTS, vocabulary
from asgkit.backbones.tiny.tokenizer import EOS, PAD, WordTokenizer
from asgkit.backbones.tiny.trunk import attention_bias
from asgkit.shapes.detector import agrees, detect
from asgkit.shapes.text import FAMILIES, STYLES, ask_about, caption
from asgkit.shapes.world import render, sample_scene

INF = float("inf")


# -- tokenizer -----------------------------------------------------------------------------------------------------
def test_words_become_ids_and_come_back():
    tokenizer = WordTokenizer(["red", "circle", "?"])
    assert len(tokenizer) == 5
    assert tokenizer.encode("red  circle ?") == [2, 3, 4]
    assert tokenizer.decode([2, 3, EOS, 4]) == "red circle" and tokenizer.decode([PAD, 2]) == ""


def test_padding_goes_to_the_side_that_was_asked_for():
    tokenizer = WordTokenizer(["a", "b"])
    ids, mask = tokenizer.batch(["a b", "b"], left=True)
    assert ids.tolist() == [[2, 3], [PAD, 3]] and mask.tolist() == [[True, True], [False, True]]
    ids, mask = tokenizer.batch(["a b", "b"])
    assert ids.tolist() == [[2, 3], [3, PAD]] and mask.tolist() == [[True, True], [True, False]]


def test_nothing_is_silently_replaced():
    tokenizer = WordTokenizer(["red", "circle"])
    with pytest.raises(ValueError, match=r"\['Red', 'zebra'\]"):
        tokenizer.encode("Red circle zebra")
    with pytest.raises(ValueError, match="a word twice"):
        WordTokenizer(["red", "red"])
    with pytest.raises(ValueError, match="a word twice"):
        WordTokenizer(["red", "<pad>"])


def test_the_vocabulary_covers_the_world_and_the_prompts():
    tokenizer, rng = WordTokenizer(vocabulary()), np.random.default_rng(0)
    for _ in range(200):
        scene = sample_scene(rng, "dev")
        texts = [caption(scene, style) for style in STYLES]
        texts += [t for f in FAMILIES if (qa := ask_about(rng, scene, f)) for t in (qa.question, qa.answer)]
        assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    for prompts in PROMPTS.values():
        texts = [prompts.ask, *prompts.captions, prompts.diagnose.format(caption="red circle"),
                 prompts.draw.format(caption="red circle"), prompts.solve("what digit is shown ?")]
        texts += [prompts.solve("what digit is shown ?", n) for n in range(7)]
        assert all(tokenizer.encode(text) for text in texts)
        assert len(prompts.framings) == 7


def test_prompt_templates_are_checked():
    good = {"ask": "ask", "diagnose": "{caption} ?", "canonical": "{question}", "framings": ("a {question}",),
            "captions": ("say",), "draw": "{caption}"}
    assert Prompts(**good).solve("why ?", 0) == "a why ?"
    for name, value, problem in [("canonical", "no place", "canonical"), ("draw", "x", "draw"), ("captions", (), "one"),
                                 ("framings", ("{question}", "{question}"), "same text"),
                                 ("framings", ("{question} {question}",), "exactly once")]:
        with pytest.raises(ValueError, match=problem):
            Prompts(**good | {name: value})


# -- sampling ------------------------------------------------------------------------------------------------------
def test_sampling_inverts_the_distribution_function():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().repeat(5, 1)
    u = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81])
    assert sample_tokens(logits, u, 1.0).tolist() == [0, 0, 1, 1, 2]
    assert sample_tokens(logits, u, 0.0).tolist() == [0] * 5
    # top_p 0.7 keeps the first two, 5/8 and 3/8; top_p 0.5 is reached by the first alone
    assert sample_tokens(logits, torch.tensor([0.62, 0.63, 0.99, 0.0, 0.1]), 1.0, 0.7).tolist() == [0, 1, 1, 0, 0]
    assert sample_tokens(logits, u, 1.0, 0.5).tolist() == [0] * 5


def test_the_sum_that_never_varies_is_that_of_the_floats():
    p = torch.rand(50, 400, generator=torch.Generator().manual_seed(0)).pow(4)
    p = p / p.sum(-1, keepdim=True)
    assert torch.equal(running_sum(p), p.cumsum(-1))  # on the CPU nothing changes
    counted = count_up(p)
    assert counted.dtype == p.dtype and (counted - p.double().cumsum(-1)).abs().max() < 2**-22
    assert (counted.diff(dim=-1) >= 0).all() and counted[:, -1].tolist() == pytest.approx([1.0] * 50, abs=1e-6)
    assert count_up(torch.tensor([[0.0, 1.0, 0.0]])).tolist() == [[0.0, 1.0, 1.0]]  # impossible tokens stay so


def test_temperature_sharpens():
    # at temperature 1/2 the probabilities 0.8, 0.2 become 0.64, 0.04 -> 16/17, 1/17
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(2, 1)
    assert sample_tokens(logits, torch.tensor([0.93, 0.95]), 0.5).tolist() == [0, 1]


def test_impossible_tokens_are_never_picked():
    logits = torch.tensor([[-INF, 0.0, -INF]]).repeat(3, 1)
    assert sample_tokens(logits, torch.tensor([0.0, 0.5, 1.0 - 1e-7]), 1.0).tolist() == [1, 1, 1]


@pytest.mark.parametrize("temperature, top_p", [(-0.1, 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_bad_sampling_settings_are_refused(temperature, top_p):
    with pytest.raises(ValueError, match="temperature"):
        sample_tokens(torch.zeros(1, 2), torch.zeros(1), temperature, top_p)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=5))
def test_a_rows_noise_depends_on_its_seed_only(seeds):
    together = row_uniforms(seeds, 4)
    assert torch.equal(together, torch.cat([uniforms(s, 1, 4) for s in seeds]))
    assert together.min() >= 0 and together.max() < 1


def test_log_probabilities_and_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0, -INF], [math.log(3.0), 0.0, -INF]])
    logp, entropy = log_softmax_stats(logits, torch.tensor([0, 1]))
    assert logp.tolist() == pytest.approx([-math.log(2), -math.log(4)])
    assert entropy.tolist() == pytest.approx([math.log(2), math.log(4) - 0.75 * math.log(3)])


def test_attention_sees_what_it_may():
    bias = attention_bias(torch.tensor([[False, True]]), torch.tensor([[True, False, True]]),
                          torch.tensor([[True, True, False], [True, True, True]]))
    assert bias.shape == (1, 1, 2, 3)
    assert bias[0, 0].tolist() == [[0.0, 0.0, 0.0], [0.0, -INF, 0.0]]  # a padded query looks everywhere


# -- image codes ---------------------------------------------------------------------------------------------------
def test_patches_are_cut_row_by_row_and_put_back():
    pixels = torch.arange(3 * 8 * 8, dtype=torch.float32).reshape(1, 3, 8, 8)
    cut = patches(pixels)
    assert cut.shape == (1, 4, 48)
    assert cut[0, 1, :4].tolist() == [4.0, 5.0, 6.0, 7.0]  # upper right patch, first channel, first row
    assert torch.equal(unpatch(cut), pixels)
    assert halve(torch.tensor([[[[0.0, 1.0], [1.0, 2.0]]]])).item() == 1.0


def test_nearest_codes_do_not_depend_on_the_chunk():
    book = torch.rand(20, 48, generator=torch.Generator().manual_seed(0))
    rows = book[torch.tensor([[3, 7], [19, 0]])] + 1e-3
    assert nearest(rows, book).tolist() == nearest(rows, book, chunk=1).tolist() == [[3, 7], [19, 0]]


def test_a_codebook_keeps_frequent_patches_exactly():
    rng = np.random.default_rng(0)
    often = rng.integers(0, 256, (3, 48), dtype=np.uint8)
    rare = rng.integers(0, 256, (40, 48), dtype=np.uint8)
    book = build_codebook(np.concatenate([np.repeat(often, 10, 0), rare]), 8, seed=0, frequent=0.5)
    assert book.shape == (8, 48) and book.dtype == np.uint8
    assert {row.tobytes() for row in often} <= {row.tobytes() for row in book}
    assert len(build_codebook(often, 8, seed=0)) == 3


@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 24)])
def test_pictures_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match="24x24 RGB"):
        to_tensor([np.zeros(shape, np.uint8)])


def scenes_of(kind: str, count: int = 300):
    rng, found = np.random.default_rng(8), []
    while len(found) < count:
        scene = sample_scene(rng, "test", digit=kind == "digit")
        leaning = any(not (0 <= t.x - 8 * t.column <= 2 and 0 <= t.y - 8 * t.row <= 2) for t in scene.things)
        if not leaning:
            found.append(scene)
    return found


@pytest.mark.parametrize("kind, exact, readable", [("plain", 0.97, 0.99), ("digit", 0.0, 0.93)])
def test_codes_keep_what_a_picture_shows(tiny, kind, exact, readable):
    """Objects keep their pixels (rare patches apart); handwriting is quantised but stays legible."""
    scenes = scenes_of(kind)
    images = [Image.fromarray(render(scene)) for scene in scenes]
    codes = tiny.encode_images(images)
    back = tiny.decode_images(codes)
    assert codes.shape == (300, TOKENS) and codes.dtype == torch.int64
    same = [np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, back, strict=True)]
    read = detect(np.stack([np.asarray(image) for image in back]))
    assert np.mean(same) >= exact
    assert np.mean([agrees(a, b) for a, b in zip(read, scenes, strict=True)]) >= readable
    assert torch.equal(tiny.encode_images(back)[:, COARSE:], codes[:, COARSE:])  # decoding loses nothing more


# -- reading -------------------------------------------------------------------------------------------------------
QUESTION = "what digit is shown ?"


def test_rows_and_prompts_must_match(tiny, pictures):
    prefix = tiny.prefix(pictures[:2], role=None)
    with pytest.raises(ValueError, match="3 prompts need as many rows, got 2"):
        tiny.answer(prefix, ["<ask>"] * 3, max_new_tokens=2)
    with pytest.raises(ValueError, match="2 prompts need as many seeds, got 1"):
        tiny.generate_images(["circle <draw>"] * 2, seeds=[1], role=None)


def test_chunks_do_not_change_answers(tiny, pictures, monkeypatch):
    prompts, rows = ["<ask>"] * 5, [0, 1, 2, 1, 0]
    ask = lambda: tiny.answer(tiny.prefix(pictures, role=None), prompts, rows=rows, max_new_tokens=12,
                              temperature=1.0, seed=4, keep_logits=3)
    whole = ask()
    monkeypatch.setattr(tiny, "rows_at_once", 2)
    parts = ask()
    assert parts.texts == whole.texts and torch.equal(parts.mask, whole.mask)
    assert torch.allclose(parts.logp, whole.logp, atol=1e-5)
    assert parts.logits.shape == whole.logits.shape == (5, 3, tiny.spec.vocabulary)


def test_answers_end_where_their_mask_ends(tiny, pictures):
    found = tiny.answer(tiny.prefix(pictures, role=None), ["<ask>"] * 6, max_new_tokens=20, temperature=1.0, seed=1)
    for ids, mask, logp in zip(found.ids, found.mask, found.logp, strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and not mask[length:].any()
        assert (ids[length:] == PAD).all() and (logp[length:] == 0).all() and (logp[:length] <= 0).all()
        assert EOS not in ids[: length - 1].tolist()


def test_text_completions_get_their_end_token(tiny, pictures):
    prompt = tiny.spec.prompts.solve(QUESTION)
    stats = tiny.text_stats(pictures[:2], [prompt] * 2, ["3", "red circle"], role=None, keep_logits=True)
    assert stats.mask.sum(1).tolist() == [2, 3] and stats.logp.shape == (2, 3)
    assert stats.logits.shape == (2, 3, tiny.spec.vocabulary) and stats.pooled.shape[0] == 2
    assert (stats.logp[0, 2], stats.entropy[0, 2]) == (0.0, 0.0)


def test_probabilities_of_all_answers_sum_to_one(tiny, pictures):
    prompt = tiny.spec.prompts.solve(QUESTION)
    words = list(tiny.tokenizer.words[2:])
    stats = tiny.text_stats(pictures[:1], [prompt] * len(words), words, rows=[0] * len(words), role=None,
                            keep_logits=True)
    specials = stats.logits[0, 0].softmax(-1)[:2].sum()
    assert (stats.logp[:, 0].exp().sum() + specials).item() == pytest.approx(1.0, abs=1e-5)


def test_reading_without_an_image_is_another_pass(tiny, pictures):
    request = tiny.spec.prompts.captions[0]
    blind = tiny.text_stats(None, [request] * 2, ["red circle", "cross"], role=None)
    seen = tiny.text_stats(pictures[:2], [request] * 2, ["red circle", "cross"], role=None)
    assert not torch.allclose(blind.logp, seen.logp, atol=1e-3)
    assert torch.allclose(blind.pooled, tiny.text_stats(None, [request] * 2, ["red circle", "cross"],
                                                        role="solver").pooled, atol=1e-6)


# -- drawing -------------------------------------------------------------------------------------------------------
def test_drawings_come_with_their_codes_and_probabilities(tiny):
    drawn = tiny.generate_images(["red circle <draw>"] * 3, seeds=[1, 2, 3], role=None)
    assert drawn.codes.shape == drawn.logp.shape == (3, TOKENS)
    assert [image.size for image in drawn.images] == [(24, 24)] * 3
    stats = tiny.generation_stats(["red circle <draw>"] * 3, drawn.codes, role=None, keep_logits=True)
    assert torch.allclose(stats.loss, -drawn.logp.mean(1), atol=1e-4)
    assert torch.isneginf(stats.logits).any() and torch.isfinite(stats.entropy).all()


def test_guidance_and_temperature_act_on_sampling_alone(tiny):
    prompts, seeds = ["red circle <draw>"] * 4, [1, 2, 3, 4]
    plain, guided, cold = (tiny.generate_images(prompts, seeds=seeds, role=None, **s)
                           for s in ({}, {"guidance": 3.0}, {"temperature": 0.1}))
    assert not torch.equal(plain.codes, guided.codes) and not torch.equal(plain.codes, cold.codes)
    for drawn in (guided, cold):
        stats = tiny.generation_stats(prompts, drawn.codes, role=None)
        assert torch.allclose(drawn.logp, stats.logp, atol=1e-3)  # of the policy, at temperature 1, without guidance
    greedy = tiny.generate_images(prompts, seeds=seeds, role=None, temperature=0.0).codes
    assert all(torch.equal(codes, greedy[0]) for codes in greedy)


def test_token_models_take_no_noise(tiny, pictures):
    codes = tiny.encode_images(pictures[:1])
    with pytest.raises(ValueError, match="takes no noise"):
        tiny.generation_stats(["circle <draw>"], codes, role=None, noise=NoiseSpec(torch.rand(1, 2), 0))
