"""One trainer and one preset for every backbone: the loop on tiny instances of the real architectures."""

import importlib.util
import inspect
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from loops import moved, same, weights
from PIL import ImageOps

from asgkit import ask, draw, solve, ste, trainer, updates
from asgkit import launch as launch_module
from asgkit.backbones import ROLES, Backbone, load_backbone
from asgkit.backbones.base import BACKBONES, REAL
from asgkit.config import Config, resolve
from asgkit.evals.shapes import evaluate_answers, evaluate_drawings
from asgkit.learning import objectives
from asgkit.learning import optimiser as optim
from asgkit.pool.folder import ImagePool
from asgkit.recipes import rewards
from asgkit.recipes.asg_fields import FIELDS
from asgkit.runs.directory import RunDirectory, load_checkpoint
from asgkit.runs.schema import validate_record
from asgkit.stages import answer as rollout
from asgkit.stages import generation as rounds
from asgkit.stages import judge as score
from asgkit.stages.answer import greedy_difficulty
from asgkit.stages.judge import Card, similarities

STEPS, HALF = 5, 3  # three U steps, two G steps; a run that stops after the U steps is resumed into the G steps
# Few and short texts: a random network says nothing worth more. Nothing here depends on the backbone.
SMALL = {"device": "cpu", "seed": 1, "schedule.images": 2, "checkpoint.every": HALF, "lora.dropout": 0.1,
         "proposer.candidates": 2, "proposer.max_new_tokens": 64, "solver.framings": 3, "solver.max_new_tokens": 3,
         "solver.update": "reinforce",  # random answers seldom agree, and a pseudo-label needs a majority
         "generator.candidates": 3, "generator.votes": 1, "generator.noise_draws": 1}
# The tiny-ar row shows that the settings suit the family that the preset was made for.
BASES = {"tiny-ar": "clean", **{name: "random" for name in REAL
                                if importlib.util.find_spec(f"asgkit.backbones.{name}")}}


def settings(name: str, pool: Path, steps: int) -> Config:
    return resolve("smoke", SMALL | {"backbone": name, "base": BASES[name], "pool.path": str(pool),
                                     "schedule.steps": steps})


def frozen(backbone: Backbone) -> list[torch.Tensor]:
    """Copies of all that is no adapter: weights and buffers."""
    named = [*backbone.network.named_parameters(), *backbone.network.named_buffers()]
    return [tensor.detach().clone() for name, tensor in named if "lora_" not in name]


@dataclass
class Story:
    """One run and the model it left; `steps` holds the roles that moved in each step."""

    config: Config
    run: RunDirectory | None = None
    backbone: Backbone | None = None
    base: list[torch.Tensor] = field(default_factory=list)
    before: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    steps: list[set[str]] = field(default_factory=list)

    def opened(self, *args) -> Backbone:
        """Stands in for `open_backbone`, to keep hold of what `train` trains."""
        self.backbone = open_backbone(*args)
        self.base, self.before = frozen(self.backbone), weights(self.backbone)
        return self.backbone

    def stepped(self, step: int, records: list[dict]) -> None:
        """Called by `train` after every step."""
        self.steps.append(moved(self.before, self.backbone))
        self.before = weights(self.backbone)

    def log(self, phase: str) -> list[dict]:
        """The records of one phase."""
        records = [json.loads(line) for line in self.run.log_path.read_text().splitlines()]
        return [record for record in records if record["phase"] == phase]


open_backbone = launch_module.open_backbone


def tell(config: Config, path: Path, **arguments) -> Story:
    story = Story(config)
    with patch.object(launch_module, "open_backbone", story.opened):
        story.run = launch_module.train(config, path, progress=story.stepped, **arguments)
    return story


@pytest.fixture(scope="module", params=BASES)
def story(request, pool_folder, tmp_path_factory):
    """Three U and two G steps through `train`."""
    return tell(settings(request.param, pool_folder, STEPS), tmp_path_factory.mktemp(request.param) / "run")


@pytest.fixture
def disturb(story):
    """A function that adds noise to some roles' adapters; the trained ones are put back afterwards."""
    kept = weights(story.backbone)

    def add_noise(*roles: str) -> None:
        generator = torch.Generator().manual_seed(9)
        for role in roles:
            for p in story.backbone.role_parameters(role):
                p.data.add_(0.3 * torch.randn(p.shape, generator=generator))

    yield add_noise
    for role, tensors in kept.items():
        for p, tensor in zip(story.backbone.role_parameters(role), tensors, strict=True):
            p.data.copy_(tensor)


def pool_of(story) -> ImagePool:
    return ImagePool(story.config.pool.path, size=story.backbone.spec.image_side, seed=story.config.seed)


# -- who moves -----------------------------------------------------------------------------------------------------
def test_a_role_moves_in_its_own_phase_and_the_base_never(story):
    asking, drawing = story.steps[:HALF], story.steps[HALF:]
    assert len(story.steps) == STEPS and set().union(*asking) == {"proposer", "solver"}
    assert set().union(*drawing) == {"generator"}
    assert same(story.base, frozen(story.backbone))


def test_every_step_is_logged_with_valid_records(story):
    records = story.log("U") + story.log("G")
    assert [record["step"] for record in records] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    for record in records:
        validate_record(record, FIELDS)


def test_the_drawing_loss_reaches_the_weights_that_draw(story):
    updated = [record for record in story.log("G") if record["generator/applied"]]
    assert updated and all(0 < record["generator/grad_norm"] < math.inf for record in updated)
    generator = story.backbone.roles._named["generator"]
    # LoRA's B starts at zero: one that still is zero has had no gradient
    silent = [name for name, p in generator.items() if ".lora_B." in name and not p.any()]
    assert not silent, f"{len(silent)} of {len(generator) // 2} adapted modules had no gradient: {silent[:6]}"


def test_drawings_follow_the_generators_adapter_alone(story, disturb):
    def drawn() -> tuple[torch.Tensor, list[bytes]]:
        prompts = [story.backbone.spec.prompts.draw.format(caption=text) for text in ("red circle", "blue square")]
        found = story.backbone.generate_images(prompts, seeds=[3, 4], role="generator")
        return found.codes, [image.tobytes() for image in found.images]

    codes, images = drawn()
    disturb("proposer", "solver")
    again, images_again = drawn()
    assert torch.equal(codes, again) and images == images_again
    disturb("generator")
    other, other_images = drawn()
    assert not torch.equal(codes, other) and images != other_images


# -- what is measured ----------------------------------------------------------------------------------------------
def test_ste_is_the_entropy_of_a_token(story):
    found = [x for record in story.log("U") for x in record["solver/token_entropies"] if x is not None]
    assert found and all(0 <= x <= math.log(story.backbone.spec.vocabulary) for x in found)
    # before its first update the Solver is the base, so that the log can be checked against the model
    s, first = story.config.solver, next(r for r in story.log("U") if r["step"] == 1 and any(r["questions/valid"]))
    asked = [(q, x) for q, x in zip(first["questions"], first["solver/token_entropies"], strict=True) if x is not None]
    prefix = story.backbone.prefix([pool_of(story).load(first["image_index"])], role=None)
    again, *_ = greedy_difficulty(story.backbone, prefix, [q for q, _ in asked], [0] * len(asked),
                                  tokens=s.ste_tokens, max_new_tokens=s.max_new_tokens)
    assert again == pytest.approx([x for _, x in asked], abs=1e-3)


def test_cycle_similarity_changes_with_the_picture(story):
    request = story.backbone.spec.prompts.captions[0]
    cards = [Card("red circle", request, [], [], [], 1.0, True)] * 3
    image = pool_of(story).load(0)
    text, image_text = similarities(story.backbone, [image, ImageOps.invert(image), image], cards,
                                    ["blue square"] * 3)
    assert text.min() == text.max() and 0 < image_text.min() and image_text.max() <= 1
    inverted, same_image = (abs(image_text[i] / image_text[0] - 1) for i in (1, 2))
    assert inverted > 1e-4 and same_image < 1e-6
    for record in story.log("G"):
        assert all(0 <= x <= 1 for x in record["generator/cycle"])


# -- resuming ------------------------------------------------------------------------------------------------------
def test_a_resumed_run_is_the_uninterrupted_one(story, pool_folder, tmp_path):
    name, path = story.config.backbone, tmp_path / "run"
    half = tell(settings(name, pool_folder, HALF), path)
    assert half.steps == story.steps[:HALF]
    resumed = tell(story.config, path, resume=True)
    assert resumed.run.log_path.read_bytes() == story.run.log_path.read_bytes()
    found, wanted = (load_checkpoint(run.path / f"checkpoints/step_{STEPS:06d}") for run in (resumed.run, story.run))
    assert found.tensors.keys() == wanted.tensors.keys()
    assert [k for k, v in wanted.tensors.items() if not torch.equal(v, found.tensors[k])] == []
    for role in ROLES:
        assert same(resumed.backbone.role_parameters(role), story.backbone.role_parameters(role))
        stored = [c.path / role / "adapter.safetensors" for c in (found, wanted)]
        assert stored[0].read_bytes() == stored[1].read_bytes()


# -- no branch -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("part", [ask, solve, ste, draw, rollout, rounds, rewards, score, objectives, optim, updates,
                                  trainer, launch_module], ids=lambda part: part.__name__)
def test_the_loop_names_no_backbone(part):
    source = inspect.getsource(part).lower()
    assert [name for name in (*BACKBONES, *REAL) if name in source] == []


@pytest.mark.parametrize("name", [name for name in BASES if name in REAL])
def test_the_shapes_benchmarks_read_what_a_real_model_writes_and_draws(name):
    backbone = load_backbone(name, base="random")
    answers = evaluate_answers(backbone, None, "dev", per_family=1)
    drawn = evaluate_drawings(backbone, None, "dev", per_tag=1, samples=1, keep=True)
    assert answers.framings.shape == (7, 7) and not answers.majority.all()
    assert drawn.correct.shape == (6, 1) and drawn.images[0][0].size[0] == backbone.spec.image_side
