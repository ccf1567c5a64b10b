"""The procedural world: scenes, text about them, the detector, the benchmarks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asgkit.shapes.benchmark import (
    TAGS,
    degrade,
    detector_accuracy,
    drawing_benchmark,
    vqa_benchmark,
)
from asgkit.shapes.detector import JUNK, agrees, detect, satisfies, world_pixels
from asgkit.shapes.digits import SPLIT_SIZES, digit_split, read_digit
from asgkit.shapes.text import (
    FAMILIES,
    STYLES,
    Wanted,
    answer_question,
    ask_about,
    caption,
    caption_styles,
    diagnose,
    parse_caption,
    relation_between,
    sample_qa,
)
from asgkit.shapes.world import (
    COLORS,
    MIN_VISIBLE,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    _legible,
    render,
    render_pool,
    sample_scene,
    template,
)

# A red square in the upper left, a blue circle right of it, a blue cross in the lower left.
SCENE = Scene((Thing("square", "red", 5, 0, 1, 1), Thing("circle", "blue", 7, 1, 8, 0),
               Thing("cross", "blue", 5, 6, 1, 17)))


def many(count: int, split: str = "dev", seed: int = 0, **fixed) -> list[Scene]:
    rng = np.random.default_rng([seed, 77])
    return [sample_scene(rng, split, **fixed) for _ in range(count)]


# -- pictures ------------------------------------------------------------------------------------------------------
def test_a_scene_is_drawn_where_it_says():
    image = render(SCENE)
    assert image.shape == (24, 24, 3) and image.dtype == np.uint8
    assert (image[1:6, 1:6] == COLORS["red"]).all()
    assert (image == COLORS["red"]).all(-1).sum() == 25
    assert (image == COLORS["blue"]).all(-1).sum() == template("circle", 7).sum() + template("cross", 5).sum()
    assert not image[8:16, 8:].any()


def test_templates_are_different_shapes():
    assert [int(template(s, 5).sum()) for s in SHAPES] == [25, 21, 13, 9]
    with pytest.raises(ValueError, match="unknown shape 'star'"):
        template("star", 5)


def test_later_objects_cover_earlier_ones():
    below, above = Thing("square", "red", 7, 0, 0, 0), Thing("square", "green", 5, 0, 2, 2)
    assert tuple(render(Scene((below, above)))[3, 3]) == COLORS["green"]
    assert tuple(render(Scene((above, below)))[3, 3]) == COLORS["red"]


def visible_share(scene: Scene) -> list[float]:
    """Share of each object's pixels that no later object covers, counted on the objects' own masks."""
    masks = []
    for thing in scene.things:
        mask = np.zeros((24, 24), bool)
        mask[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size] = template(thing.shape, thing.size)
        masks.append(mask)
    return [1 - (mask & np.any([*masks[i + 1 :], np.zeros((24, 24), bool)], 0)).sum() / mask.sum()
            for i, mask in enumerate(masks)]


def test_overlap_keeps_the_visibility_rule():
    shares = [share for scene in many(1500, "test") for share in visible_share(scene)]
    assert min(shares) >= MIN_VISIBLE
    assert min(shares) < 1.0  # overlaps do occur, though rarely


@pytest.mark.parametrize("above, legible", [
    (Thing("square", "green", 5, 1, 5, 1), True),  # covers 2 x 5 of 49 pixels: 80% remain
    (Thing("square", "green", 5, 0, 2, 2), False),  # covers 25 of 49: 49% remain
    (Thing("square", "red", 5, 1, 8, 1), True),  # one colour, a black column between them
    (Thing("square", "red", 5, 1, 7, 1), False),  # one colour, touching: they would read as one object
    (Thing("square", "green", 5, 1, 7, 1), True),  # touching in two colours
])
def test_what_counts_as_legible(above, legible):
    assert _legible([Thing("square", "red", 7, 0, 0, 0), above]) is legible


def test_scenes_stay_on_the_picture_and_in_their_cells():
    scenes = many(300)
    assert {len(s.things) for s in scenes} == {1, 2, 3, 4, 5}
    for scene in scenes:
        cells = [t.cell for t in scene.things] + ([scene.digit_cell] if scene.digit is not None else [])
        assert len(set(cells)) == len(cells)
        assert all(0 <= t.x <= 24 - t.size and 0 <= t.y <= 24 - t.size and t.size in SIZES for t in scene.things)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5), st.booleans())
def test_the_same_seed_draws_the_same_scene(seed, count, digit):
    a, b = (sample_scene(np.random.default_rng(seed), "dev", count=count, digit=digit) for _ in range(2))
    assert np.array_equal(render(a), render(b))
    assert len(a.things) == count and (a.digit is not None) == digit


def test_a_pool_is_a_folder_of_unlabelled_pictures(tmp_path):
    files = sorted(render_pool(tmp_path / "a", 5, seed=3).iterdir())
    assert [f.name for f in files] == ["00000.png", "00001.png", "00002.png", "00003.png", "00004.png"]
    again = sorted(render_pool(tmp_path / "b", 5, seed=3).iterdir())
    other = sorted(render_pool(tmp_path / "c", 5, seed=4).iterdir())
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in again] != [f.read_bytes() for f in other]
    with Image.open(files[0]) as image:
        assert image.size == (24, 24) and image.mode == "RGB" and not image.info


# -- digits --------------------------------------------------------------------------------------------------------
def test_digit_splits_share_no_glyph():
    splits = {name: digit_split(name)[0] for name in SPLIT_SIZES}
    assert {name: len(glyphs) for name, glyphs in splits.items()} == SPLIT_SIZES and sum(SPLIT_SIZES.values()) == 1797
    rows = [glyph.tobytes() for glyphs in splits.values() for glyph in glyphs]
    assert len(set(rows)) == 1797  # every glyph of the set is unique, so the splits are disjoint
    assert all(set(digit_split(name)[1].tolist()) == set(range(10)) for name in SPLIT_SIZES)
    with pytest.raises(ValueError, match="unknown digit split 'val'"):
        digit_split("val")


def test_scenes_take_their_glyphs_from_their_split():
    test = {glyph.tobytes() for glyph in digit_split("test")[0]}
    assert all(scene.glyph.tobytes() in test for scene in many(50, "test", digit=True))
    assert not any(scene.glyph.tobytes() in test for scene in many(50, "pool", digit=True))


def test_held_out_digits_are_read_and_scribble_is_not():
    glyphs, labels = digit_split("test")
    assert np.mean([a == b for a, b in zip(read_digit(glyphs), labels, strict=True)]) > 0.95
    noise = np.random.default_rng(0).integers(0, 256, (20, 8, 8))
    assert read_digit(noise) == [None] * 20


# -- questions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("question, answer", [
    ("is there a red square ?", "yes"), ("is there a green square ?", "no"),
    ("what color is the circle ?", "blue"), ("what shape is the red object ?", "square"),
    ("what shape is the blue object ?", None),  # two of them
    ("how many objects are there ?", "3"), ("how many blue objects are there ?", "2"),
    ("how many triangles are there ?", "0"), ("in which row is the blue cross ?", "bottom"),
    ("in which column is the blue circle ?", "middle"), ("in which row is the red cross ?", None),
    ("where is the red square from the blue circle ?", "left"),
    ("where is the blue cross from the red square ?", "below"),
    ("where is the red square from the red square ?", None),
    ("are there more red or blue objects ?", "blue"), ("are there more squares or circles ?", "equal"),
    ("are there more red or red objects ?", None), ("what digit is shown ?", "none"), ("what is love ?", None),
])
def test_answers_worked_by_hand(question, answer):
    assert answer_question(SCENE, question) == answer


def test_answer_question_inverts_ask_about():
    rng = np.random.default_rng(9)
    seen = dict.fromkeys(FAMILIES, 0)
    for scene in many(1000):
        family = FAMILIES[int(rng.integers(len(FAMILIES)))]
        qa = ask_about(rng, scene, family) or sample_qa(rng, scene)
        assert answer_question(scene, qa.question) == qa.answer, qa
        seen[qa.family] += 1
    assert min(seen.values()) > 80


def test_relations_follow_the_dominant_axis():
    a, b, c = SCENE.things
    assert (relation_between(a, b), relation_between(b, a)) == ("left of", "right of")
    assert (relation_between(a, c), relation_between(c, a)) == ("above", "below")
    diagonal = Thing("square", "red", 5, 4, 9, 9)
    assert relation_between(a, diagonal) is None


# -- captions ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("text, wanted", [
    ("red circle", Wanted((("red", "circle"),))),
    ("circle , digit 4", Wanted(((None, "circle"),), None, 4)),
    ("square left of cross", Wanted(((None, "square"), (None, "cross")), "left of")),
    ("3 blue crosses , digit 0", Wanted((("blue", "cross"),) * 3, None, 0)),
    ("red circle , triangle", Wanted((("red", "circle"), (None, "triangle")))),
    ("", None), ("digit 4", None), ("1 circles", None), ("circle circle", None), ("red", None),
])
def test_captions_read_by_hand(text, wanted):
    assert parse_caption(text) == wanted


@pytest.fixture(scope="module")
def read_scenes():
    """Scenes without overlap, and what the detector reads on their pictures."""
    scenes = [scene for scene in many(400, "test", seed=2) if min(visible_share(scene)) == 1.0]
    return scenes, detect(np.stack([render(scene) for scene in scenes]))


@pytest.mark.parametrize("style", STYLES)
def test_captions_are_true_and_parse_back(read_scenes, style):
    scenes, seen = read_scenes
    wanted = [parse_caption(caption(scene, style)) for scene in scenes]
    assert all(satisfies(scene, w) for scene, w in zip(scenes, wanted, strict=True))
    assert np.mean([satisfies(scene, w) for scene, w in zip(seen, wanted, strict=True)]) >= 0.99
    wrong = wanted[1:] + wanted[:1]  # the captions of other scenes
    assert np.mean([satisfies(scene, w) for scene, w in zip(seen, wrong, strict=True)]) < 0.1


def test_every_applicable_style_says_something_of_its_own():
    styles = {style for scene in many(200) for style in caption_styles(scene)}
    assert styles == set(STYLES)
    with pytest.raises(ValueError, match="unknown caption style 'poem'"):
        caption(SCENE, "poem")


def test_diagnostic_questions_are_settled_by_the_caption():
    rng = np.random.default_rng(4)
    for scene in many(100, digit=False):
        qa = diagnose(rng, scene, caption(scene, "shapes"))
        if qa is not None and qa.family != "reading":
            assert not set(qa.question.split()) & {*COLORS, "color"}, qa


# -- the detector --------------------------------------------------------------------------------------------------
def test_the_detector_reads_at_least_99_percent_of_renders():
    assert detector_accuracy("test", 1000, (0.0,))["0"] >= 0.99


def test_the_detector_bends_under_noise_before_it_breaks():
    found = detector_accuracy("dev", 150, (0.1, 0.3))
    assert found["0.1"] > 0.9 > found["0.3"]


def test_the_detector_reads_a_scene_object_by_object():
    found = detect(render(SCENE)[None])[0]
    assert agrees(found, SCENE) and found.digit is None
    assert sorted((t.color, t.shape, t.cell) for t in found.things) == [
        ("blue", "circle", 1), ("blue", "cross", 6), ("red", "square", 0)]
    assert detect(np.zeros((1, 24, 24, 3), np.uint8))[0].things == ()


def test_a_blot_is_junk_and_satisfies_nothing():
    image = np.zeros((24, 24, 3), np.uint8)
    image[2:14, 3] = image[2, 3:14] = COLORS["red"]  # a thin corner: no shape of the world
    found = detect(image[None])[0]
    assert [t.shape for t in found.things] == [JUNK]
    assert not any(satisfies(found, Wanted((("red", shape),))) for shape in SHAPES)


def test_satisfies_is_strict():
    assert satisfies(SCENE, Wanted((("red", "square"), (None, "circle"), ("blue", "cross"))))
    assert not satisfies(SCENE, Wanted((("red", "square"), (None, "circle"))))  # one thing too many in the picture
    assert not satisfies(SCENE, Wanted((("red", "circle"), (None, "square"), ("blue", "cross"))))
    pair = Scene(SCENE.things[:2])
    assert satisfies(pair, Wanted(((None, "square"), (None, "circle")), "left of"))
    assert not satisfies(pair, Wanted(((None, "square"), (None, "circle")), "right of"))
    assert not satisfies(pair, Wanted(((None, "square"), (None, "circle")), None, 3))


def test_noise_has_the_size_it_says():
    grey = np.full((24, 24, 3), 128, np.uint8)
    noisy = degrade(grey, np.random.default_rng(0), 0.1).astype(float)
    assert noisy.std() == pytest.approx(25.5, rel=0.1) and abs(noisy.mean() - 128) < 3
    assert np.array_equal(degrade(grey, np.random.default_rng(0), 0.0), grey)


# -- benchmarks ----------------------------------------------------------------------------------------------------
def test_the_question_benchmark():
    bench, again = vqa_benchmark("test"), vqa_benchmark("test")
    assert len(bench.items) == 2100 and bench.images.shape == (2100, 24, 24, 3)
    assert {f: sum(q.family == f for q in bench.items) for f in FAMILIES} == dict.fromkeys(FAMILIES, 300)
    assert bench.images.tobytes() == again.images.tobytes() and bench.items == again.items
    assert vqa_benchmark("dev", 5).images.tobytes() != vqa_benchmark("test", 5).images.tobytes()
    answers = [q.answer for q in bench.items if q.family == "existence"]
    assert 0.4 < np.mean([a == "yes" for a in answers]) < 0.6
    with pytest.raises(ValueError, match="unknown benchmark split 'train'"):
        vqa_benchmark("train")


def test_the_drawing_benchmark():
    prompts = drawing_benchmark("test")
    assert len(prompts) == 252 and prompts == drawing_benchmark("test") != drawing_benchmark("dev")
    assert {tag: sum(p.tag == tag for p in prompts) for tag in TAGS} == dict.fromkeys(TAGS, 42)
    assert all(p.wanted == parse_caption(p.text) is not None for p in prompts)
    by_tag = {tag: next(p.wanted for p in prompts if p.tag == tag) for tag in TAGS}
    assert by_tag["position"].relation and len(by_tag["attribute"].objects) == 2
    assert len(set(by_tag["counting"].objects)) == 1 < len(by_tag["counting"].objects)


def test_larger_drawings_are_read_like_their_small_originals():
    scenes = [sample_scene(np.random.default_rng(seed), "dev") for seed in range(3)]
    small = [Image.fromarray(render(scene)) for scene in scenes]
    assert np.array_equal(world_pixels(small), np.stack([np.asarray(image) for image in small]))
    large = [image.resize((72, 72), Image.Resampling.NEAREST) for image in small]
    assert np.array_equal(world_pixels(large), world_pixels(small))
