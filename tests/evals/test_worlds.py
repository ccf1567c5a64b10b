"""One interface to both worlds, and the evaluation that asks a backbone for its own."""

from dataclasses import replace

import numpy as np
import pytest

from asgkit.backbones import load_backbone
from asgkit.config import resolve
from asgkit.evals import shapes as evals
from asgkit.evals.blind import answerable_part, blind_scores
from asgkit.evals.oracle import ShapesJudge
from asgkit.evals.shapes import AnswerItems, evaluate_answers, evaluate_drawings
from asgkit.evals.worlds import WORLDS, answer_length, world_of
from asgkit.experiments.reproduce import ensure_pool
from asgkit.scenes.text import NONE, SEVERAL
from asgkit.scenes.world import pool_scenes, render


class Fake:
    """A backbone that says one thing whatever it is asked."""

    def __init__(self, world: str, longest: int = 28) -> None:
        self.spec = replace(load_backbone("tiny-ar").spec, world=world, max_new_tokens=longest)


@pytest.fixture(scope="module")
def scenes_base():
    return load_backbone("tiny-ar", base="scenes")


@pytest.mark.parametrize("world", WORLDS.values(), ids=list(WORLDS))
def test_a_world_agrees_with_itself(world):
    rng = np.random.default_rng(0)
    scenes = [world.sample_scene(rng, "dev") for _ in range(30)]
    read = world.detect(np.stack([world.render(scene) for scene in scenes]))
    for scene, found in zip(scenes, read, strict=True):
        qa = world.sample_qa(rng, scene)
        assert world.answer_question(found, qa.question) == qa.answer
        assert len(qa.answer.split()) < world.answer_tokens
    for prompt in world.drawing_benchmark("dev", 2):
        assert prompt.tag in world.tags and world.parse_caption(prompt.text) == prompt.wanted
    families = [item.family for item in world.vqa_benchmark("dev", 2).items]
    assert {family: families.count(family) for family in families} == world.family_sizes(2)
    assert set(world.unanswerable) < set(world.families)


def test_the_backbone_names_its_world():
    assert world_of(load_backbone("tiny-flow")) is WORLDS["shapes"]
    assert world_of(Fake("scenes")) is WORLDS["scenes"]
    with pytest.raises(ValueError, match="the world 'photos'"):
        world_of(Fake("photos"))


def test_answers_are_as_long_as_the_world_needs():
    assert answer_length(load_backbone("tiny-ar")) == 2
    assert (answer_length(Fake("scenes")), answer_length(Fake("scenes", 3))) == (8, 3)


def test_the_first_edition_keeps_its_seeds_and_the_second_has_its_own_in_each_split():
    assert WORLDS["shapes"].drawing_seed("dev", 3, 2) == WORLDS["shapes"].drawing_seed("test", 3, 2) == 100_032
    assert len({WORLDS["scenes"].drawing_seed(split, 3, 2) for split in WORLDS["scenes"].splits}) == 3


def items(world: str, families: list[str], canonical: list[bool]) -> AnswerItems:
    right = np.array(canonical)
    return AnswerItems(np.stack([right, ~right]), np.stack([right] * 2), right, right, *np.zeros((4, len(right))),
                       np.ones(len(right)), np.array(families), [""] * len(right), np.stack([right]), None, world)


def test_answerable_and_unanswerable_are_scored_apart():
    found = items("scenes", ["count", "count", "none", "several"], [True, False, True, True]).summary()
    assert (found["canonical"], found["canonical/answerable"], found["canonical/unanswerable"]) == (75.0, 50.0, 100.0)
    assert (found["single/answerable"], found["held_out/unanswerable"], found["majority/none"]) == (50.0, 100.0, 100.0)
    shapes = items("shapes", ["count", "count"], [True, False]).summary()
    assert not any("answerable" in name for name in shapes)


def test_blindness_is_scored_on_questions_with_an_answer(scenes_base):
    world = WORLDS["scenes"]
    part = answerable_part(world.vqa_benchmark("dev", 2), world)
    assert len(part.items) == 18 and not {item.answer for item in part.items} & {NONE, SEVERAL}
    assert {row["family"] for row in blind_scores(scenes_base, None, "dev", 2)} == {*world.families[:9], "all"}


def test_the_judge_knows_that_a_question_has_no_answer():
    from PIL import Image

    scene = next(s for s in pool_scenes(50, 1) if s.number is None)
    judge, picture = ShapesJudge(WORLDS["scenes"]), Image.fromarray(render(scene))
    assert judge.answer(picture, "what number is shown ?") == NONE
    assert judge.answer(picture, "what is the weather ?") is None
    text = " , ".join(f"{t.color} {t.shape}" for t in scene.things)
    assert judge.drawings([text, "no caption", f"{text} , number 3"], [[picture]] * 3) == [[1.0], [0.0], [0.0]]


def test_the_base_answers_and_draws_its_own_world(scenes_base):
    found = evaluate_answers(scenes_base, None, "dev", per_family=10)
    assert found.world == "scenes" and found.entropies.shape == (102, 8) and found.held_out.shape == (4, 102)
    assert found.summary()["canonical/answerable"] > 50
    spoken = ~np.isnan(found.entropies)
    assert (spoken.sum(1) >= 2).all() and np.allclose(np.nanmax(found.entropies[:, :5], 1), found.ste, atol=1e-6)
    drawn = evaluate_drawings(scenes_base, None, "dev", per_tag=3, samples=1, keep=True)
    assert list(dict.fromkeys(drawn.tag)) == list(WORLDS["scenes"].tags) and drawn.summary()["overall"] > 10


def test_sizes_come_from_the_world(monkeypatch, scenes_base):
    asked = []
    fake = replace(WORLDS["scenes"], drawing_benchmark=lambda split, per_tag: asked.append((split, per_tag)) or [])
    monkeypatch.setattr(evals, "world_of", lambda backbone: fake)
    evaluate_drawings(scenes_base, split="sealed", prompts=None)
    assert asked == [("sealed", 84)]


def test_the_configuration_follows_the_base():
    plain, longer = resolve("tiny"), resolve("tiny", {"base": "scenes"})
    assert (plain.solver.max_new_tokens, plain.proposer.max_new_tokens, plain.pool.path) == (1, 16, "data/pool")
    assert (longer.solver.max_new_tokens, longer.proposer.max_new_tokens, longer.pool.path) == (8, 18, "data/scenes")
    assert resolve("tiny", {"base": "scenes", "solver.max_new_tokens": 9}).solver.max_new_tokens == 9
    assert resolve("tiny", {"base": "scenes-registers", "backbone": "tiny-ar"}).solver.max_new_tokens == 8
    assert resolve("tiny", {"backbone": "tiny-flow", "base": "scenes"}).generator.learning_rate == 1e-3


def test_the_default_pool_is_the_worlds(tmp_path):
    assert ensure_pool(tmp_path / "scenes", 2, "scenes") and not ensure_pool(tmp_path / "scenes", 2, "scenes")
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(tmp_path / "scenes" / "00001.png")), render(pool_scenes(2)[1]))


@pytest.mark.parametrize("arguments, problem", [
    (["pretrain", "tiny-ar", "--world", "photos"], "unknown world"),
    (["shapes", "render", "new", "--world", "photos"], "unknown world"),
    (["premise", "base=scenes", "solver.max_new_tokens=3"], "cuts the answers"),
])
def test_the_command_line_knows_the_worlds(arguments, problem, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from asgkit.cli import app

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and problem in result.output


@pytest.mark.parametrize("base, framings", [("scenes", "UNSEEN"), ("scenes-registers", "TRAINED")])
def test_the_shipped_bases_are_of_the_recipe_in_the_code(base, framings):
    import json
    from dataclasses import asdict

    from asgkit.backbones.tiny import scene_prompts
    from asgkit.backbones.tiny.pretraining import pretrain
    from asgkit.backbones.tiny.understand import CHECKPOINTS, read_checkpoint

    meta = read_checkpoint(CHECKPOINTS / f"tiny-ar-{base}.safetensors", "tiny-ar")[1]
    recipe = pretrain.SCENES if base == "scenes" else pretrain.SCENES_REGISTERS
    assert json.loads(meta["pretrain"]) == asdict(pretrain.PretrainConfig(**recipe)) and meta["world"] == "scenes"
    prompts = load_backbone("tiny-ar", base=base).spec.prompts
    assert prompts.framings == tuple(f"{text} {{question}} <answer>" for text in getattr(scene_prompts, framings))
