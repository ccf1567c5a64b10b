"""geneval_hf: the scoring rules on hand-made detections for all six tags, its eyes on tiny models, and a whole pass."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parity import checkout
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Mask2FormerConfig, SwinConfig
from transformers import Mask2FormerForUniversalSegmentation as Mask2FormerNetwork

from asgkit.evals import geneval_hf as bench
from asgkit.evals.geneval_models import (
    COLORS,
    GREY,
    ClipColors,
    Mask2Former,
    crop,
    detector_input,
    instances,
    nearest,
    weights_hash,
)
from asgkit.evals.geneval_scoring import (
    TAGS,
    Clause,
    Detection,
    Rules,
    judge,
    keep,
    overlap,
    parse_clause,
    relations,
    tag_scores,
)
from asgkit.evals.protocol import Protocol, ProtocolMismatch
from asgkit.evals.subject import Subject
from asgkit.shapes.detector import detect as read_shapes
from asgkit.shapes.world import SHAPES

RULES = Rules()
MODEL = {"backbone": "tiny-ar", "base": "tiny-ar-clean", "precision": "fp32", "device": "cpu", "asgkit": "x"}


def at(x: float, y: float, score: float = 0.95, side: float = 10) -> Detection:
    """A square box with this centre."""
    return Detection((x - side / 2, y - side / 2, x + side / 2, y + side / 2), score)


def verdict(include, found, *, exclude=(), tag="two_object", colors=None):
    """Judge by a table of colours: the colour of a detection by its left edge."""
    kept = {name: keep(things, tag, RULES) for name, things in found.items()}
    return judge(include, exclude, kept, lambda kind, things: [colors[d.box[0]] for d in things], RULES)


# -- the six tags ---------------------------------------------------------------------------------------------------
def test_single_object_needs_one_above_the_threshold() -> None:
    dog = [Clause("dog", 1)]
    assert verdict(dog, {"dog": [at(9, 9, 0.31)]}, tag="single_object").correct
    assert not verdict(dog, {"dog": [at(9, 9, 0.30)]}, tag="single_object").correct  # above, not at
    assert not verdict(dog, {"cat": [at(9, 9)]}, tag="single_object").correct
    assert verdict(dog, {"dog": [at(9, 9), at(50, 50)]}, tag="single_object").correct  # two dogs hold one


def test_two_object_needs_both() -> None:
    both = [Clause("dog", 1), Clause("cat", 1)]
    assert verdict(both, {"dog": [at(9, 9)], "cat": [at(40, 9)]}).correct
    found = verdict(both, {"dog": [at(9, 9)]})
    assert not found.correct and found.reasons == ("0 cat, 1 asked for",)


@pytest.mark.parametrize("scores, right", [((0.95, 0.92), True), ((0.95,), False), ((0.95, 0.92, 0.91), False),
                                           ((0.95, 0.89), False), ((0.95, 0.92, 0.89), True)])
def test_counting_is_exact_and_looks_at_sure_detections_alone(scores, right) -> None:
    dogs = [at(10 + 30 * i, 9, score) for i, score in enumerate(scores)]
    found = verdict([Clause("dog", 2)], {"dog": dogs}, exclude=[Clause("dog", 3)], tag="counting")
    assert found.correct is right


def test_colors_are_those_of_the_most_confident_object() -> None:
    red = [Clause("dog", 1, "red")]
    sure, other = at(9, 9, 0.9), at(50, 9, 0.5)
    seen = {sure.box[0]: "red", other.box[0]: "blue"}
    assert verdict(red, {"dog": [other, sure]}, colors=seen, tag="colors").correct
    seen = {sure.box[0]: "blue", other.box[0]: "red"}
    found = verdict(red, {"dog": [other, sure]}, colors=seen, tag="colors")
    assert not found.correct and found.reasons == ("dog is blue, red asked for",)


@pytest.mark.parametrize("x, y, right", [(80, 20, {"right of"}), (20, 80, {"below"}), (20, -40, {"above"}),
                                         (-40, 20, {"left of"}), (80, 80, {"right of", "below"}), (22, 20, set())])
def test_position_is_relative_to_the_earlier_clause(x, y, right) -> None:
    target, placed = at(20, 20), at(x, y)
    for relation in ("left of", "right of", "above", "below"):
        clauses = [Clause("cat", 1), Clause("dog", 1, position=(relation, 0))]
        found = verdict(clauses, {"cat": [target], "dog": [placed]}, tag="position")
        assert found.correct is (relation in right)


def test_position_without_its_target_is_wrong_twice() -> None:
    clauses = [Clause("cat", 1), Clause("dog", 1, position=("left of", 0))]
    found = verdict(clauses, {"dog": [at(9, 9)]}, tag="position")
    assert found.reasons == ("0 cat, 1 asked for", "nothing for dog to be left of")


def test_color_attr_binds_each_color_to_its_object() -> None:
    clauses = [Clause("dog", 1, "red"), Clause("cat", 1, "blue")]
    dog, cat = at(9, 9), at(50, 9)
    things = {"dog": [dog], "cat": [cat]}
    assert verdict(clauses, things, colors={dog.box[0]: "red", cat.box[0]: "blue"}, tag="color_attr").correct
    swapped = verdict(clauses, things, colors={dog.box[0]: "blue", cat.box[0]: "red"}, tag="color_attr")
    assert not swapped.correct and len(swapped.reasons) == 2


# -- the parts of the rules -----------------------------------------------------------------------------------------
def test_at_most_sixteen_of_a_class_count_the_surest_first() -> None:
    many = [at(i, 0, 0.4 + i / 100) for i in range(20)]
    kept = keep(many, "single_object", RULES)
    assert len(kept) == 16 and kept[0] is many[19] and kept[-1] is many[4]


def test_overlapping_boxes_are_suppressed_only_below_one() -> None:
    twins = [at(10, 10, 0.9), at(11, 10, 0.8), at(60, 10, 0.7)]
    assert len(keep(twins, "counting", Rules(counting_threshold=0.3))) == 3
    kept = keep(twins, "counting", Rules(counting_threshold=0.3, max_overlap=0.5))
    assert kept == [twins[0], twins[2]]


def test_overlap_counts_edges_as_pixels() -> None:
    a, b = Detection((0, 0, 9, 9), 1.0), Detection((5, 0, 14, 9), 1.0)  # 10 x 10 each, 5 x 10 shared
    assert overlap(a, b) == pytest.approx(50 / 150) and overlap(a, a) == 1.0
    assert overlap(a, Detection((10, 0, 19, 9), 1.0)) == 0.0


def test_a_relation_needs_more_than_the_margin() -> None:
    """Sides 10 and 10: the margin is 0.1 x 20 = 2 px per axis; at dx = 4 one half is left, which is not beyond it."""
    origin = at(0, 0)
    assert relations(at(2, 0), origin, 0.1) == set()
    assert relations(at(4, 0), origin, 0.1) == set()
    assert relations(at(4.1, 0), origin, 0.1) == {"right of"}
    assert relations(at(4, 0), origin, 0.0) == {"right of"}
    assert relations(origin, origin, 0.1) == set()


@given(*[st.floats(-50, 50, width=16) for _ in range(4)])
def test_left_and_right_above_and_below_mirror_each_other(x, y, u, v) -> None:
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    a, b = at(x, y), at(u, v, side=4)
    assert {mirror[name] for name in relations(a, b, 0.1)} == relations(b, a, 0.1)


def test_overall_is_the_mean_over_tags_not_over_drawings() -> None:
    correct = {tag: [True, False] for tag in TAGS} | {"colors": [True] * 8}
    assert tag_scores(correct)["overall"] == pytest.approx((5 * 50 + 100) / 6)
    with pytest.raises(ValueError, match="counting"):
        tag_scores({tag: [True] for tag in TAGS if tag != "counting"})


@pytest.mark.parametrize("content", [{"class": "dog"}, {"class": "dog", "count": 1, "colour": "red"},
                                     {"class": "dog", "count": 1, "position": ["near", 0]},
                                     {"class": "dog", "count": 1, "position": ["above", 1]}])
def test_a_clause_that_cannot_be_scored_raises(content) -> None:
    with pytest.raises(ValueError):
        parse_clause(content, 1)


# -- eyes -----------------------------------------------------------------------------------------------------------
def test_instances_have_the_mask_s_box_and_both_probabilities() -> None:
    """Two queries, two classes: p = softmax(2, 0, 0) = 0.786986; mask logits 1: mean probability 0.731059."""
    masks = torch.full((2, 6, 8), -1.0)
    masks[0, 1:3, 2:7] = 1.0
    found = instances(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), masks, ("dog", "cat"))
    (dog,) = found["dog"]
    assert dog.box == (2.0, 1.0, 7.0, 3.0) and dog.mask.sum() == 10
    assert dog.score == pytest.approx(0.786986 * 0.731059, abs=1e-5)
    assert set(found) <= {"dog", "cat"} and sum(map(len, found.values())) <= 2  # empty masks are left out


def test_the_detectors_input_keeps_the_aspect_and_fits_its_strides() -> None:
    pixels, size = detector_input(Image.new("RGB", (100, 50), "white"), short=60, long=1000)
    assert size == (60, 120) and pixels.shape == (1, 3, 64, 128)
    assert pixels[0, 0, 0, 0] == pytest.approx((1 - 0.485) / 0.229, abs=1e-4) and pixels[0, 0, 63, 127] == 0
    assert detector_input(Image.new("RGB", (400, 50)), short=60, long=160)[1] == (20, 160)


def test_a_crop_shows_the_object_on_grey() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:8] = True
    shown = crop(Image.new("RGB", (20, 20), "red"), Detection((5, 5, 10, 10), 1.0, mask))
    assert shown.size == (5, 5) and shown.getpixel((0, 0)) == (255, 0, 0) and shown.getpixel((4, 0)) == GREY
    assert crop(Image.new("RGB", (20, 20), "red"), Detection((5, 5, 9, 9), 1.0)).getpixel((3, 3)) == (255, 0, 0)


def test_the_nearest_prototype_is_that_of_the_largest_cosine() -> None:
    assert nearest(torch.tensor([[10.0, 1.0], [0.1, 0.2]]), torch.tensor([[1.0, 0.0], [0.0, 9.0]])) == [0, 1]


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory):
    """A tiny Mask2Former with random weights and two classes under the hub's other names."""
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
                      out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
                               encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
                               num_attention_heads=2, num_queries=5, id2label={0: "motorbike", 1: "remote"},
                               label2id={"motorbike": 0, "remote": 1})
    folder = tmp_path_factory.mktemp("mask2former")
    Mask2FormerNetwork(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights and letters as words."""
    torch.manual_seed(0)
    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config={**small, "vocab_size": len(words), "max_position_embeddings": 64,
                                     "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
                        vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    return folder


def test_mask2former_speaks_the_prompts_names_and_finds_boxes_inside_the_picture(detector_folder) -> None:
    eyes = Mask2Former(detector_folder, short=64)
    assert eyes.classes == ("motorcycle", "tv remote")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = [d for things in eyes.detect(noise).values() for d in things]
    assert found and all(d.mask.shape == (40, 60) and 0 < d.score < 1 for d in found)
    for d in found:
        left, top, right, bottom = map(int, d.box)
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        assert d.mask.sum() == d.mask[top:bottom, left:right].sum()


def test_clip_names_one_color_per_object(clip_folder) -> None:
    namer = ClipColors(clip_folder)
    prototypes = namer.prototypes("dog")
    assert prototypes.shape == (10, 8) and namer.prototypes("dog") is prototypes
    image = Image.new("RGB", (50, 40), "red")
    named = namer.name(image, "dog", [Detection((0, 0, 20, 9), 1.0), Detection((3, 3, 40, 40), 1.0)])
    assert len(named) == 2 and set(named) <= set(COLORS)
    tokens = namer.tokenizer(namer.sentences("red", "dog"), padding=True, return_tensors="pt")
    with torch.no_grad():
        each = torch.nn.functional.normalize(namer.model.get_text_features(**tokens).pooler_output, dim=-1)
    assert torch.allclose(prototypes[0], each.mean(0), atol=1e-6)


def test_weights_are_named_by_their_content(detector_folder, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="config.json and model.safetensors"):
        weights_hash(tmp_path)
    shutil.copytree(detector_folder, tmp_path / "copy")
    assert weights_hash(tmp_path / "copy") == weights_hash(detector_folder)
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert weights_hash(tmp_path / "copy") != weights_hash(detector_folder)


# -- prompts --------------------------------------------------------------------------------------------------------
LINES = [
    {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "prompt": "circle"},
    {"tag": "two_object", "include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1}],
     "prompt": "circle , square"},
    {"tag": "counting", "include": [{"class": "circle", "count": 2}], "exclude": [{"class": "circle", "count": 3}],
     "prompt": "2 circles"},
    {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}], "prompt": "red circle"},
    {"tag": "position", "include": [{"class": "square", "count": 1},
                                    {"class": "circle", "count": 1, "position": ["left of", 0]}],
     "prompt": "circle left of square"},
    {"tag": "color_attr", "include": [{"class": "circle", "count": 1, "color": "red"},
                                      {"class": "square", "count": 1, "color": "blue"}],
     "prompt": "red circle , blue square"},
    {"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": "square"},
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "metadata.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return bench.read_prompts(file)


def test_prompts_are_read_with_their_clauses(prompts, tmp_path) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n".join(p.line for p in prompts))
    assert [p.tag for p in prompts] == [line["tag"] for line in LINES] and prompts[2].exclude == (Clause("circle", 3),)
    assert prompts[4].include[1].position == ("left of", 0)
    first = bench.read_prompts(tmp_path / "metadata.jsonl", per_tag=1)
    assert [p.index for p in first] == [0, 1, 2, 3, 4, 5]


def test_lines_that_cannot_be_scored_are_named(tmp_path) -> None:
    file = tmp_path / "m.jsonl"
    with pytest.raises(FileNotFoundError, match="evaluation_metadata.jsonl"):
        bench.read_prompts(file)
    file.write_text(json.dumps(LINES[0]) + "\n" + json.dumps(LINES[0] | {"tag": "texture"}))
    with pytest.raises(ValueError, match="line 2: unknown tag 'texture'"):
        bench.read_prompts(file)
    file.write_text(json.dumps(LINES[0]))
    with pytest.raises(ValueError, match="all six tags"):
        bench.read_prompts(file)


# -- a whole pass on the tiny world ---------------------------------------------------------------------------------
class ShapesEyes:
    """The exact reader of tiny pictures as detector and as namer of colours."""

    classes, record = tuple(SHAPES), {"reader": "exact"}

    def detect(self, image):
        (scene,) = read_shapes(np.asarray(image)[None])
        self.colors = {(float(t.x), float(t.y)): t.color for t in scene.things}
        found = {}
        for t in scene.things:
            box = tuple(map(float, (t.x, t.y, t.x + t.size, t.y + t.size)))
            found.setdefault(t.shape, []).append(Detection(box, 0.99))
        return found

    def name(self, image, kind, objects):
        return [self.colors[d.box[:2]] for d in objects]


@pytest.fixture(scope="module")
def measured(tiny, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured") / "r"
    settings = bench.GenevalSettings(samples=2, seed=7, batch_size=3)
    eyes = ShapesEyes()
    result = bench.evaluate(Subject(tiny, None, MODEL), prompts, settings, folder, eyes, eyes)
    return result, folder, settings, eyes


def test_a_tiny_model_is_drawn_judged_and_recorded(tiny, prompts, measured) -> None:
    result, folder, _, _ = measured
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert len(items) == 14 and {item["correct"] for item in items} == {True, False}
    assert items[3]["seed"] == 7 + 1000 * 1 + 1 and items[3]["text"] == tiny.spec.prompts.draw.format(
        caption="circle , square")
    single = [item["correct"] for item in items if item["tag"] == "single_object"]
    assert result["scores"]["single_object"] == 100.0 * np.mean(single) and len(single) == 4
    assert result["scores"]["overall"] == pytest.approx(np.mean([result["scores"][tag] for tag in TAGS]))
    drawn = tiny.generate_images([items[3]["text"]], seeds=[1008], role=None).images[0]
    with Image.open(folder / "images/00001/samples/00001.png") as kept:
        assert kept.tobytes() == drawn.tobytes()
    numbers, tags, shares = bench.per_prompt(folder)
    assert list(numbers) == list(range(7)) and tags[2] == "counting" and shares[0] in (0.0, 0.5, 1.0)


def test_it_is_never_called_geneval(measured) -> None:
    result, folder, _, _ = measured
    assert result["benchmark"] == "geneval_hf" == Protocol.read(folder).benchmark
    assert tuple(result["known_differences"]) == bench.DIFFERENCES == Protocol.read(folder).differences
    assert result["whole"] is False and bench.WHOLE == (553, 4) and "not GenEval" in bench.__doc__


def test_the_drawings_lie_as_geneval_reads_them(prompts, measured) -> None:
    _, folder, _, _ = measured
    assert json.loads((folder / "images/00004/metadata.jsonl").read_text()) == LINES[4]
    assert sorted(p.name for p in (folder / "images/00004/samples").iterdir()) == ["00000.png", "00001.png"]


def test_an_interrupted_pass_goes_on_and_a_finished_one_is_left_alone(tiny, prompts, measured, tmp_path) -> None:
    result, finished, settings, eyes = measured
    subject, folder = Subject(tiny, None, MODEL), shutil.copytree(finished, tmp_path / "r")
    with pytest.raises(FileExistsError, match="holds a result already"):
        bench.evaluate(subject, prompts, settings, folder, eyes, eyes)
    (folder / "scores.json").unlink()
    (folder / "images/00003/samples/00001.png").unlink()
    with pytest.raises(ProtocolMismatch, match="drawing.seed: 7 against 8"):
        bench.evaluate(subject, prompts, settings.model_copy(update={"seed": 8}), folder, eyes, eyes)
    asked = []
    assert bench.evaluate(subject, prompts, settings, folder, eyes, eyes,
                          progress=lambda done, total: asked.append(total)) == result
    assert asked[0] == 1  # one drawing was missing


def test_a_detector_that_lacks_a_class_is_refused(tiny, prompts) -> None:
    eyes = ShapesEyes()
    eyes.classes = ("square",)
    with pytest.raises(ValueError, match="knows no circle"):
        bench.require_classes(prompts, eyes)


# -- the published rules as an oracle -------------------------------------------------------------------------------
def published(file: Path, wanted: set[str], **names):
    """Functions of GenEval's own scorer, without the rest of that file (it needs mmdet and a GPU to be read)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(tree, file.name, "exec"), names)  # noqa: S102 - a checkout that the user named
    return names


@pytest.mark.upstream
def test_verdicts_equal_those_of_the_published_scorer() -> None:
    """Every prompt of the published file, 5 random sets of detections each: the same verdict."""
    folder = checkout("geneval")

    def colored(image, things, kind):
        return [COLORS[int(box[0]) % 3] for box, _ in things]

    theirs = published(folder / "evaluation/evaluate_images.py", {"evaluate", "relative_position", "compute_iou"},
                       np=np, COLORS=COLORS, POSITION_THRESHOLD=0.1, color_classification=colored)
    rng, agreed, right = np.random.default_rng(0), 0, 0
    prompts = bench.read_prompts(folder / "prompts/evaluation_metadata.jsonl")
    assert (len(prompts), {p.tag for p in prompts}) == (553, set(TAGS))
    for prompt in prompts:
        for _ in range(5):
            corners = {c.name: rng.integers(0, 60, (rng.integers(0, 4), 2)).astype(float) for c in prompt.include}
            boxes = {name: [(*xy, *(xy + rng.integers(1, 40, 2))) for xy in xys] for name, xys in corners.items()}
            given = {name: [(np.array([*box, 0.95]), None) for box in some] for name, some in boxes.items() if some}
            wanted = json.loads(prompt.line)
            wanted["include"] = [dict(c, color=COLORS[i]) if "color" in c else c
                                 for i, c in enumerate(wanted["include"])]
            include = [replace(c, color=COLORS[i]) if c.color else c for i, c in enumerate(prompt.include)]
            mine = judge(include, prompt.exclude,
                         {name: [Detection(box, 0.95) for box in some] for name, some in boxes.items()},
                         lambda kind, things: colored(None, [(d.box, None) for d in things], kind), RULES)
            expected, _ = theirs["evaluate"](None, given, wanted)
            agreed, right = agreed + (mine.correct == bool(expected)), right + mine.correct
            for a, b in ((x, y) for x in boxes.values() for y in boxes.values() if x and y):
                first, second = Detection(a[0], 1.0), Detection(b[0], 1.0)
                assert relations(first, second, 0.1) == theirs["relative_position"]((a[0], None), (b[0], None))
                assert overlap(first, second) == pytest.approx(theirs["compute_iou"](a[0], b[0]))
    assert agreed == 553 * 5 and 300 < right < 2400
