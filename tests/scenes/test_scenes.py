"""The second world: scenes, their text, the detector, and three splits that share nothing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import asgkit
from asgkit.scenes.benchmark import TAGS, detector_accuracy, drawing_benchmark, drawing_seed, vqa_benchmark
from asgkit.scenes.detector import agrees, detect, satisfies
from asgkit.scenes.text import (
    ANSWERABLE,
    FAMILIES,
    NONE,
    SEVERAL,
    STYLES,
    UNANSWERABLE,
    Wanted,
    answer_question,
    ask_about,
    caption,
    caption_styles,
    diagnose,
    parse_caption,
    read_question,
    sample_qa,
)
from asgkit.scenes.world import (
    COLORS,
    HELD,
    Scene,
    Thing,
    combination,
    glyphs_of,
    kinds,
    legible,
    pool_scenes,
    render,
    render_pool,
    sample_scene,
    split_of,
)
from asgkit.shapes.digits import read_digit
from asgkit.shapes.world import template

GLYPHS, LABELS = glyphs_of("dev")
SEVEN, FOUR = (int(np.flatnonzero(LABELS == label)[0]) for label in (7, 4))
# top left a dark red circle, top right a red square, centre a red circle; below them the number 7 4
SCENE = Scene((Thing("circle", "dark red", 7, 0, 0, 0), Thing("square", "red", 5, 2, 17, 1),
               Thing("circle", "red", 5, 4, 9, 9)), "7 4", (6, 7), GLYPHS[[SEVEN, FOUR]])


def many(number: int, split: str = "dev", seed: int = 0, **fixed) -> list[Scene]:
    rng = np.random.default_rng([seed, 78])
    return [sample_scene(rng, split, **fixed) for _ in range(number)]


# -- pictures ------------------------------------------------------------------------------------------------------
def test_a_scene_is_drawn_where_it_says():
    image = render(SCENE)
    assert tuple(image[3, 3]) == COLORS["dark red"] == (115, 15, 15)
    assert (image == COLORS["red"]).all(-1).sum() == 25 + template("circle", 5).sum()
    assert np.array_equal(image[16:24, 8:16, 0], GLYPHS[FOUR]) and not image[16:24, 16:].any()


def test_shades_are_far_apart():
    """Half the brightness: no dark colour lies nearer to another colour, to black or to grey than 60 levels."""
    points = np.array([(0, 0, 0), *COLORS.values(), *[(g,) * 3 for g in (65, 110, 180, 255)]], float)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    assert distance[:-4, :].min() > 60


def test_scenes_keep_to_their_cells_and_their_numbers_to_one_row():
    scenes = many(400)
    assert {len(s.things) for s in scenes} == {1, 2, 3, 4, 5}
    assert {len(s.number_cells) for s in scenes} == {0, 1, 2, 3}
    for scene in scenes:
        cells = [t.cell for t in scene.things] + list(scene.number_cells)
        assert len(set(cells)) == len(cells) and legible(list(scene.things))
        if scene.number:
            assert len({cell // 3 for cell in scene.number_cells}) == 1
            assert len(scene.number.split()) == len(scene.number_cells) == len(scene.glyphs)


def test_counts_and_digits_can_be_fixed():
    assert {len(s.things) for s in many(20, count=4)} == {4}
    assert {len(s.number_cells) for s in many(20, digits=2)} == {2}
    assert all(s.number is None for s in many(20, digits=0))
    with pytest.raises(ValueError, match="unknown split 'val'"):
        many(20, "val", digits=1)


def test_the_pool_is_drawn_in_its_order(tmp_path):
    from PIL import Image

    folder = render_pool(tmp_path / "pool", 3, seed=2)
    shown = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    assert all(np.array_equal(a, render(b)) for a, b in zip(shown, pool_scenes(3, 2), strict=True))


# -- the detector --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["train", "pool", *HELD])
def test_the_detector_is_exact_on_every_split(split):
    scenes = many(400, split, seed=4)
    assert all(map(agrees, detect(np.stack([render(s) for s in scenes])), scenes))


def test_detector_accuracy_falls_with_noise():
    found = detector_accuracy("dev", 100, (0.0, 0.3))
    assert found["0"] == 1.0 and found["0.3"] < 0.5


def test_every_glyph_of_the_world_is_read_rightly_and_no_two_splits_share_one():
    seen: set[bytes] = set()
    for split in ("train", "pool", *HELD):
        images, labels = glyphs_of(split)
        assert read_digit(images) == labels.tolist() and set(labels) == set(range(10))
        mine = {image.tobytes() for image in images}
        assert not mine & seen
        seen |= mine


def test_grey_marks_that_are_no_number_are_junk():
    apart = Scene((), "7 4", (0, 4), GLYPHS[[SEVEN, FOUR]])
    assert [t.shape for t in detect(render(apart)[None])[0].things] == ["junk"]
    assert detect(np.zeros((1, 24, 24, 3), np.uint8))[0] == Scene(())


@pytest.mark.parametrize("text, right", [
    ("dark red circle , red square , red circle , number 7 4", True),
    ("red circle , dark red circle , red square , number 7 4", True),  # whatever the order
    ("dark red circle , red square , red circle", False),  # the number was not asked for
    ("dark red circle , red square , red circle , number 4 7", False),
    ("dark red circle , red square , number 7 4", False),  # one object too many
    ("two red circles , red square , number 7 4", False),  # the shade is wrong
    ("dark red circle top left , red square top right , red circle center , number 7 4", True),
    ("dark red circle top left , red square center , red circle top right , number 7 4", False),
])
def test_drawings_are_checked_strictly(text, right):
    assert satisfies(SCENE, parse_caption(text)) is right


def test_relations_are_checked_by_the_dominant_axis():
    pair = Scene((Thing("circle", "red", 7, 3, 0, 8), Thing("square", "dark blue", 5, 2, 17, 1)))
    assert satisfies(pair, parse_caption("red circle left of dark blue square"))
    assert not satisfies(pair, parse_caption("red circle below dark blue square"))
    assert not satisfies(pair, parse_caption("dark blue square left of red circle"))


# -- questions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("question, answer", [
    ("is there a dark red circle ?", "yes"), ("is there a dark red square ?", "no"),
    ("what color is the square ?", "it is red"), ("what color is the circle ?", SEVERAL),
    ("what color is the cross ?", NONE), ("what shape is the dark red object ?", "it is a circle"),
    ("what shape is the red object ?", SEVERAL), ("which object is in the top left ?", "a dark red circle"),
    ("which object is in the top row ?", SEVERAL), ("which object is in the bottom left ?", NONE),
    ("which object is in the middle row ?", "a red circle"),
    ("how many objects are there ?", "there are three objects"),
    ("how many squares are there ?", "there is one square"),
    ("how many red objects are there ?", "there are two red objects"),
    ("how many dark red circles are there ?", "there is one dark red circle"),
    ("how many blue circles are there ?", "there are no blue circles"),
    ("where is the red circle ?", "in the center"), ("where is the red square ?", "in the top right"),
    ("where is the blue circle ?", NONE), ("are there more circles or squares ?", "more circles"),
    ("are there more red or dark red objects ?", "more red objects"),
    ("are there more crosses or triangles ?", "equal"), ("are there more circles or circles ?", "equal"),
    ("which shapes are in the top row ?", "circle and square"),
    ("which shapes are in the middle column ?", "circle"), ("which shapes are in the bottom row ?", NONE),
    ("what number is shown ?", "7 4"),
    ("what is the weather ?", None), ("where is the red circle", None),
])
def test_answers_by_hand(question, answer):
    assert answer_question(SCENE, question) == answer


def test_two_alike_are_several():
    twins = Scene((Thing("cross", "blue", 5, 0, 1, 1), Thing("cross", "blue", 5, 8, 17, 17)))
    assert answer_question(twins, "where is the blue cross ?") == SEVERAL
    assert answer_question(twins, "how many objects are there ?") == "there are two objects"
    assert answer_question(twins, "what number is shown ?") == NONE


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_every_question_has_exactly_one_answer(seed):
    """Whatever is asked, in every family: the answer is the world's own, has one to six words, and one form."""
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    for family in FAMILIES:
        qa = ask_about(rng, scene, family)
        if qa is None:
            continue
        assert qa.family == family and qa == read_question(scene, qa.question)
        assert 1 <= len(qa.answer.split()) <= 6 and qa.answer == " ".join(qa.answer.split())
        assert (qa.answer in (NONE, SEVERAL)) == (family in UNANSWERABLE)


def test_answers_come_late():
    """Most answers have three words or more, and the first word of those says little of the rest."""
    rng = np.random.default_rng(3)
    answers = [sample_qa(rng, scene).answer.split() for scene in many(3000, "train", seed=3)]
    assert np.mean([len(words) > 1 for words in answers]) > 0.70
    assert np.mean([len(words) >= 3 for words in answers]) > 0.60
    longer = Counter(words[0] for words in answers if len(words) >= 3)
    carriers = sum(longer[word] for word in ("it", "a", "in", "there", "more"))
    assert carriers / sum(longer.values()) > 0.85


def test_families_a_scene_does_not_support_give_nothing():
    alone = Scene((Thing("cross", "blue", 5, 0, 1, 1),))
    rng = np.random.default_rng(0)
    assert ask_about(rng, alone, "several") is None and ask_about(rng, alone, "reading") is None
    assert {sample_qa(rng, alone).family for _ in range(300)} >= {"existence", "count", "comparison", "none"}


# -- captions ------------------------------------------------------------------------------------------------------
def test_captions_by_hand():
    assert caption(SCENE, "objects") == "dark red circle , red square , red circle , number 7 4"
    assert caption(SCENE, "places") == ("dark red circle top left , red square top right , red circle center , "
                                        "number 7 4")
    assert caption_styles(SCENE) == ["objects", "places"]
    twins = Scene((Thing("cross", "blue", 5, 0, 1, 1), Thing("square", "red", 5, 4, 9, 9),
                   Thing("cross", "blue", 5, 8, 17, 17)))
    assert caption(twins, "count") == "two blue crosses , red square"
    with pytest.raises(ValueError, match="unknown caption style 'poem'"):
        caption(SCENE, "poem")


@pytest.mark.parametrize("text", ["", "red", "circle", "red circle ,", "red circle , number", "two red circle",
                                  "six red circles", "number 7", "red circle , number 1 2 3 4", "red circle top"])
def test_what_is_no_caption(text):
    assert parse_caption(text) is None


def test_a_parsed_caption_by_hand():
    assert parse_caption("two red crosses , dark blue circle top left , number 7") == Wanted(
        (("red", "cross", None), ("red", "cross", None), ("dark blue", "circle", "top left")), None, "7")
    assert parse_caption("red circle above blue cross").relation == "above"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_every_caption_is_read_back_and_fits_its_scene(seed):
    scene = sample_scene(np.random.default_rng(seed), "train")
    for style in STYLES:
        wanted = parse_caption(caption(scene, style))
        assert Counter((c, s) for c, s, _ in wanted.objects) == kinds(scene) and wanted.number == scene.number
        assert satisfies(scene, wanted)


def test_a_caption_settles_what_is_asked_of_it():
    """Scenes that satisfy the same caption answer a diagnostic question alike, wherever their objects lie."""
    rng = np.random.default_rng(5)
    for scene in many(150, "train", seed=5):
        moved = sample_scene(rng, "train", count=len(scene.things), digits=0)
        cells = [t.cell for t in moved.things]
        other = Scene(tuple(Thing(t.shape, t.color, t.size, cell, 0, 0) for t, cell in
                            zip(scene.things, cells, strict=True)), scene.number, scene.number_cells, scene.glyphs)
        qa = diagnose(rng, scene, caption(scene, "objects"))
        assert qa is None or answer_question(other, qa.question) == qa.answer


# -- splits --------------------------------------------------------------------------------------------------------
def test_a_combination_belongs_to_one_split_whatever_its_order():
    pair = [("red", "circle"), ("dark blue", "cross")]
    assert combination(pair) == combination(pair[::-1]) == "dark blue cross + red circle"
    assert split_of(pair) == split_of(pair[::-1]) in HELD
    shares = Counter(split_of([(a, "cross"), (b, "square"), (c, "circle")]) for a in COLORS for b in COLORS
                     for c in COLORS)
    assert all(abs(shares[split] / 12**3 - 1 / 3) < 0.04 for split in HELD)


@pytest.fixture(scope="module")
def questions():
    return {split: vqa_benchmark(split) for split in HELD}


@pytest.fixture(scope="module")
def prompts():
    return {split: drawing_benchmark(split) for split in HELD}


def test_benchmarks_are_large_and_items_distinct(questions, prompts):
    for split in HELD:
        families = Counter(item.family for item in questions[split].items)
        assert sum(families.values()) == 2664 and {families[family] for family in ANSWERABLE} == {260}
        assert families["none"] == families["several"] == 162
        items = {(image.tobytes(), item.question) for image, item in
                 zip(questions[split].images, questions[split].items, strict=True)}
        assert len(items) == 2664
        assert len({prompt.text for prompt in prompts[split]}) == len(prompts[split]) == 504
        assert set(Counter(prompt.tag for prompt in prompts[split]).values()) == {84}
        assert {prompt.tag for prompt in prompts[split]} == set(TAGS)


def test_no_two_splits_share_a_text_a_combination_or_a_seed(questions, prompts):
    shown, asked, texts, wanted, seeds = ([] for _ in range(5))
    for split in HELD:
        scenes = detect(questions[split].images)
        shown.append({combination(kinds(scene).elements()) for scene in scenes})
        asked.append({(combination(kinds(scene).elements()), scene.number, item.question)
                      for scene, item in zip(scenes, questions[split].items, strict=True)})
        texts.append({prompt.text for prompt in prompts[split]})
        wanted.append({combination((c, s) for c, s, _ in prompt.wanted.objects) for prompt in prompts[split]})
        seeds.append({drawing_seed(split, p, s) for p in range(504) for s in range(4)})
        assert len(asked[-1]) == 2664 and len(seeds[-1]) == 2016
    for parts in (shown, asked, texts, wanted, seeds):
        assert sum(map(len, parts)) == len(set().union(*parts))
    assert not any(a & b for i, a in enumerate(shown) for j, b in enumerate(wanted) if i != j)


def test_answers_of_the_benchmark_are_the_pictures_own(questions):
    scenes = detect(questions["sealed"].images)
    for scene, item in zip(scenes, questions["sealed"].items, strict=True):
        assert answer_question(scene, item.question) == item.answer


def test_smaller_benchmarks_and_unknown_splits():
    assert len(vqa_benchmark("dev", 2).items) == 2 * 9 + 2 and len(vqa_benchmark("dev", 8).items) == 8 * 9 + 2 * 5
    assert len(drawing_benchmark("dev", 3)) == 18
    for make in (vqa_benchmark, drawing_benchmark):
        with pytest.raises(ValueError, match="unknown benchmark split 'train'"):
            make("train", 1)


def test_nothing_in_the_kit_reads_the_sealed_split():
    """No module names it but those that define it: it is opened by whoever passes it to the evaluation."""
    root = Path(asgkit.__file__).parent
    named = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "sealed" in path.read_text("utf-8")}
    assert named == {"scenes/world.py", "scenes/benchmark.py"}
