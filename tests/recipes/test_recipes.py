"""Recipes by name and of one's own, and what every recipe must hold to: trained, resumed, logged, on every paradigm."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loops import SMALL, moved, open_trainer, same, small_config, weights
from PIL import Image

from asgkit.config import ConfigError, resolve
from asgkit.config.reads import reads
from asgkit.errors import NonFiniteValue
from asgkit.launch import open_backbone, train
from asgkit.pool.base import PoolError
from asgkit.pool.folder import ImagePool
from asgkit.pool.open import open_pool
from asgkit.recipes import RECIPES, load_recipe
from asgkit.recipes.base import Recipe
from asgkit.runs.directory import RunDirectory, load_checkpoint
from asgkit.runs.schema import validate_record
from asgkit.shapes.text import STYLES, caption, caption_styles
from asgkit.shapes.world import render, sample_scene
from asgkit.stages.judge import prompt_likelihood
from asgkit.trainer import Trainer

TINY = ("tiny-ar", "tiny-flow", "tiny-diffusion")
OWN = '''
import torch
from pydantic import BaseModel

from asgkit.recipes.groups import GroupRecipe
from asgkit.stages.judge import pixels


class Bright(GroupRecipe):
    """Pays for light."""

    name = "bright"

    class Settings(BaseModel, extra="forbid"):
        """Its one setting."""

        power: float = 1.0

    def score(self, group):
        return torch.stack([pixels(images).mean((1, 2, 3)) for images in group.images]) ** self.tools.own.power


class Plain(GroupRecipe):
    """Has no settings."""

    name = "plain"

    def score(self, group):
        return torch.full((len(group.prompts), len(group.images[0])), float("nan"))


class Half:
    """No recipe."""

    Settings = None

    def __init__(self, tools):
        pass
'''


def gvu_config(pool: Path, changes: dict | None = None):
    small = {key: value for key, value in SMALL.items() if key != "generator.questions"}  # it asks none
    return resolve("smoke", small | {"recipe": "gvu", "pool.path": str(pool), "checkpoint.every": 2, **(changes or {})})


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_recipes.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_recipes", None)


# -- by name -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_has_what_the_protocol_asks(name, pool_folder, tmp_path):
    changes = {"recipe": name} if name != "asg" else {}
    config = resolve("smoke", {"pool.path": str(pool_folder), "device": "cpu", **changes})
    recipe = open_trainer(config, tmp_path / "run").recipe
    assert isinstance(recipe, Recipe) and type(recipe) is load_recipe(name) and recipe.name == name
    assert recipe.needs and recipe.needs <= {"pictures", "prompts"}
    assert {recipe.phase(step) for step in range(1, 6)} >= recipe.drawing


def test_an_unknown_recipe_is_refused_by_the_configuration_and_by_the_loader():
    with pytest.raises(ConfigError, match="unknown recipe 'gvuu'; did you mean 'gvu'"):
        resolve("smoke", ["recipe=gvuu"])
    with pytest.raises(ConfigError, match="this version knows asg, gvu"):
        load_recipe("gvuu")


@pytest.mark.parametrize(("overrides", "message"), [
    (["recipe=gvu", "solver.framings=5"], "solver.framings changes nothing under recipe=gvu: it is read by recipe=asg"),
    (["gvu.reward=log_probability"], "gvu.reward changes nothing under recipe=asg: it is read by recipe=gvu"),
    (["own.beta=1"], "own.beta changes nothing under recipe=asg: it is read by a recipe of your own"),
    (["recipe=gvu", "gvu.rewad=log_probability"], "did you mean 'gvu.reward'"),
    (["recipe=gvu", "gvu.reward=log"], "gvu.reward: .*'probability' or 'log_probability'"),
])
def test_a_setting_that_would_change_nothing_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        resolve("smoke", overrides)


def test_a_recipes_section_is_in_its_own_configuration_alone():
    assert "gvu" not in resolve("smoke").model_dump() and "own" not in resolve("smoke").model_dump()
    assert resolve("smoke", ["recipe=gvu"]).model_dump()["gvu"] == {"reward": "probability"}


# -- GvU -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("backbone", TINY)
def test_gvu_trains_logs_and_resumes_on_every_paradigm(backbone, pool_folder, tmp_path):
    whole = gvu_config(pool_folder, {"backbone": backbone, "schedule.steps": 3})
    first = gvu_config(pool_folder, {"backbone": backbone, "schedule.steps": 2})
    train(whole, tmp_path / "whole")
    train(first, tmp_path / "parts")
    train(whole, tmp_path / "parts", resume=True)
    assert (tmp_path / "whole/log.jsonl").read_bytes() == (tmp_path / "parts/log.jsonl").read_bytes()
    found, wanted = (load_checkpoint(tmp_path / run / "checkpoints/step_000003") for run in ("parts", "whole"))
    assert all(torch.equal(found.tensors[name], value) for name, value in wanted.tensors.items())
    records = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert len(records) == 9 and {r["phase"] for r in records} == {"G"}
    for record in records:
        validate_record(record, load_recipe("gvu").fields)
        assert all(0 < r <= 1 for r in record["generator/rewards"]) and record["picture/log_likelihood"] <= 0
    sheets = sorted(path.name for path in (tmp_path / "whole/samples").iterdir())
    assert sheets == ["step_000001.png", "step_000003.png"]  # the first drawing step after each checkpoint


def test_gvu_moves_the_generator_alone_and_a_constant_reward_moves_nothing(pool_folder, tmp_path):
    trainer = open_trainer(gvu_config(pool_folder), tmp_path / "run")
    before = weights(trainer.backbone)
    trainer.train_step()
    assert moved(before, trainer.backbone) == {"generator"}
    still = open_trainer(gvu_config(pool_folder, {"control": "constant"}), tmp_path / "still")
    before = weights(still.backbone)
    (record, *_) = still.train_step()
    assert moved(before, still.backbone) == set() and not record["generator/applied"]
    assert len(set(record["generator/rewards"])) > 1  # the log keeps the method's own rewards under a control


def test_the_reward_is_the_likelihood_of_the_prompt_given_the_drawing(pool_folder, tmp_path):
    trainer = open_trainer(gvu_config(pool_folder), tmp_path / "run")
    (record, *_) = trainer.train_step()
    fresh = open_trainer(gvu_config(pool_folder), tmp_path / "again").backbone
    prompt, request = record["prompt"], record["prompt/request"]
    asked = [fresh.spec.prompts.draw.format(caption=prompt)] * 3
    drawn = fresh.generate_images(asked, seeds=record["generator/seeds"], role=None)
    found = fresh.text_stats(drawn.images, [request] * 3, [prompt] * 3, role=None)
    by_hand = [float(found.logp[i][found.mask[i]].double().mean().exp()) for i in range(3)]
    assert record["generator/rewards"] == pytest.approx(by_hand, abs=2e-6)


def test_the_logarithm_orders_a_group_alike_and_scaling_changes_nothing(pool_folder, tmp_path):
    plain = open_trainer(gvu_config(pool_folder), tmp_path / "p").train_step()
    logs = open_trainer(gvu_config(pool_folder, {"gvu.reward": "log_probability"}), tmp_path / "l").train_step()
    for a, b in zip(plain, logs, strict=True):
        assert torch.tensor(b["generator/rewards"]).exp().tolist() == pytest.approx(a["generator/rewards"], abs=3e-6)
        assert a["generator/best"] == b["generator/best"]


def test_a_prompt_less_a_word_is_worth_less_on_right_drawings(tiny):
    """The picture of two objects brings both to mind: the likelihood falls when its prompt asks for another one."""
    rng = np.random.default_rng(3)
    scenes = [scene for scene in (sample_scene(rng, "dev") for _ in range(60)) if len(scene.things) == 2][:12]
    right = [caption(scene, "objects") for scene in scenes]
    wrong = right[1:] + right[:1]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    request = [tiny.spec.prompts.request_for(text) for text in right]
    gap = (prompt_likelihood(tiny, images, request, right, role=None)
           - prompt_likelihood(tiny, images, request, wrong, role=None))
    assert gap.mean() > 1.0 and (gap > 0).float().mean() > 0.9


def with_prompts(config, folder: Path, texts: list[str]):
    (folder.parent / "prompts.txt").write_text("".join(f"{text}\n" for text in texts))
    pool = open_pool(folder.parent / "prompts.txt", seed=config.seed)
    return Trainer(config, open_backbone(config), pool, RunDirectory.create(folder, config.model_dump()))


def test_gvu_starts_from_prompts_alone_under_the_request_that_each_answers(pool_folder, tmp_path):
    texts = {"red circle , blue square": "objects", "3 circles": "count", "square left of cross": "relation"}
    trainer = with_prompts(gvu_config(pool_folder), tmp_path / "run", list(texts))
    before = weights(trainer.backbone)
    records = trainer.train_step()
    assert {r["prompt"]: r["prompt/request"].split()[-1] for r in records} == texts
    assert {r["image"] for r in records} == {"prompts.txt:1", "prompts.txt:2", "prompts.txt:3"}
    assert {r["picture/log_likelihood"] for r in records} == {None}
    assert moved(before, trainer.backbone) == {"generator"}


def test_an_empty_prompt_teaches_nothing(pool_folder, tmp_path, monkeypatch):
    trainer = open_trainer(gvu_config(pool_folder), tmp_path / "run")
    own = trainer.recipe.write_prompts
    monkeypatch.setattr(trainer.recipe, "write_prompts", lambda shard: (["", *own(shard)[0][1:]], own(shard)[1]))
    first, *others = trainer.train_step()
    assert first["generator/zero_variance"] and set(first["generator/advantages"]) == {0.0}
    assert not all(r["generator/zero_variance"] for r in others)


@pytest.mark.parametrize("style", STYLES)
def test_a_caption_is_read_under_the_request_of_its_own_form(tiny, style):
    rng = np.random.default_rng(7)
    found = [scene for scene in (sample_scene(rng, "dev") for _ in range(200)) if style in caption_styles(scene)]
    requests = {tiny.spec.prompts.request_for(caption(scene, style)) for scene in found}
    assert len(found) > 20 and requests == {f"<caption> {style}"}


def test_a_recipe_that_needs_pictures_refuses_prompts(pool_folder, tmp_path):
    with pytest.raises(PoolError, match="yields prompts, and recipe=asg needs pictures: give a folder of images"):
        with_prompts(small_config(pool_folder), tmp_path / "run", ["red circle"])


def test_a_control_that_acts_on_votes_is_refused(pool_folder, tmp_path):
    with pytest.raises(ConfigError, match="control=random_vote acts on questions and votes"):
        open_trainer(gvu_config(pool_folder, {"control": "random_vote"}), tmp_path / "run")


# -- which settings a recipe reads ---------------------------------------------------------------------------------
class Watched:
    """A configuration that notes the settings that were looked at."""

    def __init__(self, config, seen: set[str], prefix: str = "") -> None:
        self._config, self._seen, self._prefix = config, seen, prefix

    def __getattr__(self, name: str):
        value = getattr(self._config, name)
        if isinstance(value, type(self._config).__mro__[-3]):  # a section: pydantic's BaseModel
            return Watched(value, self._seen, f"{self._prefix}{name}.")
        self._seen.add(self._prefix + name)
        return value


def test_gvu_looks_at_no_setting_that_it_would_refuse(pool_folder, tmp_path):
    config, seen = gvu_config(pool_folder), set()
    pool = ImagePool(config.pool.path, size=24, seed=0)
    run = RunDirectory.create(tmp_path / "run", config.model_dump())
    trainer = Trainer(Watched(config, seen), open_backbone(config), pool, run)
    trainer.train_step()
    assert {"generator.candidates", "generator.learning_rate", "kl.coefficient", "gvu.reward"} <= seen
    assert [key for key in sorted(seen) if not reads("gvu", key)] == []


# -- a class of one's own ------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("own")
def test_a_recipe_of_ones_own_trains_with_its_own_settings(pool_folder, tmp_path):
    config = small_config(pool_folder, {"recipe": "own_recipes:Bright", "own.power": 2.0})
    trainer = open_trainer(config, tmp_path / "run")
    before = weights(trainer.backbone)
    (record, *_) = trainer.train_step()
    assert moved(before, trainer.backbone) == {"generator"} and trainer.recipe.tools.own.power == 2.0
    assert all(0 <= r < 1 for r in record["generator/rewards"])
    assert json.loads(json.dumps(config.model_dump()))["own"] == {"power": 2.0}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"recipe": "own_recipes:Bright", "own.powr": 1}, ConfigError, "own.powr: Extra inputs"),
    ({"recipe": "own_recipes:Plain", "own.x": 1}, ConfigError, "own.x is set, and the recipe has no settings"),
    ({"recipe": "own_recipes:Half"}, ValueError, "since it has no name, needs, drawing, fields"),
    ({"recipe": "own_recipes:Absent"}, ValueError, "module own_recipes has no Absent"),
    ({"recipe": "no_such_module:Mine"}, ValueError, "recipe no_such_module:Mine: Python finds no module"),
    ({"recipe": "own recipes:Mine"}, ValueError, "must be of the form my_package.my_module:MyRecipe"),
])
def test_what_is_wrong_with_a_class_of_ones_own_is_said(pool_folder, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        open_trainer(small_config(pool_folder, changes), tmp_path / "run")


@pytest.mark.usefixtures("own")
def test_a_score_that_is_not_finite_skips_the_step(pool_folder, tmp_path):
    trainer = open_trainer(small_config(pool_folder, {"recipe": "own_recipes:Plain"}), tmp_path / "run")
    before = weights(trainer.backbone)
    assert trainer.train_step() == [] and trainer.guard.total == 1 and moved(before, trainer.backbone) == set()
    with pytest.raises(NonFiniteValue, match="generator/rewards"):
        trainer.recipe.sample(trainer.draw_shards()[0], "G")


def test_what_a_shard_samples_does_not_depend_on_which_comes_first(pool_folder, tmp_path):
    trainer = open_trainer(gvu_config(pool_folder, {"schedule.accumulate": 2}), tmp_path / "run")
    trainer.step = 1
    shards = trainer.draw_shards()
    first = [trainer.recipe.sample(shard, "G").scores for shard in shards]
    again = [trainer.recipe.sample(shard, "G").scores for shard in reversed(shards)]
    assert same(first, again[::-1])
