"""On policy or not, by the true ratio: the sampler's own distribution is caught where it picks, and compared with the
log-probabilities that are stored. What is refused really is off policy, what is accepted really is not."""

from importlib import import_module

import pytest
import torch
from loops import open_trainer, small_config

from asgkit.backbones import load_backbone
from asgkit.backbones.sampling import sample_tokens
from asgkit.config import resolve
from asgkit.errors import ConfigError
from asgkit.learning.policy import drawing_sampler, refuse_off_policy

MODULES = {"tiny-ar": "asgkit.backbones.tiny.ar", "janus": "asgkit.backbones.janus.model",
           "vargpt": "asgkit.backbones.vargpt.model"}


def true_log_ratio(monkeypatch, backbone, sampler) -> torch.Tensor:
    """ln(stored / true) of every token of two drawings: the true probability is that of a softmax with temperature and
    top-p, written out here, over the logits from which the sampler picked."""
    caught = []

    def spy(logits, uniforms, temperature, top_p=1.0):
        picked = sample_tokens(logits, uniforms, temperature, top_p)
        p = (logits.double() / temperature).softmax(-1)
        order = p.argsort(-1, descending=True)
        ranked = p.gather(-1, order)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, ranked.cumsum(-1) - ranked < top_p)
        p = p * kept / (p * kept).sum(-1, keepdim=True)
        caught.append(p.gather(-1, picked[:, None])[:, 0].log())
        return picked

    monkeypatch.setattr(import_module(MODULES[backbone.spec.name]), "sample_tokens", spy)
    native = sampler == backbone.spec.native
    prompts = [backbone.spec.prompts.draw.format(caption=text) for text in ("a red circle", "a blue square")]
    drawn = backbone.generate_images(prompts, seeds=[1, 2], role="generator", guidance=sampler.guidance,
                                     temperature=None if native else sampler.temperature)
    true = torch.cat([part.reshape(2, -1) for part in caught], 1)
    assert true.shape == drawn.logp.shape  # every token was caught, drawing by drawing
    return drawn.logp.double() - true


@pytest.fixture(scope="module")
def models():
    return {"tiny-ar": load_backbone("tiny-ar"), "janus": load_backbone("janus", base="random"),
            "vargpt": load_backbone("vargpt", base="random")}


def config_of(name: str, changes: dict):
    return resolve("paper", {"backbone": name, **changes})


@pytest.mark.parametrize("name", MODULES)
def test_the_paper_preset_starts_and_is_on_policy(name, models, monkeypatch):
    config, backbone = config_of(name, {}), models[name]
    refuse_off_policy(config, backbone.spec)
    gap = true_log_ratio(monkeypatch, backbone, drawing_sampler(config, backbone.spec))
    assert gap.abs().max() < 1e-4


@pytest.mark.parametrize(("name", "changes", "named"), [
    ("tiny-ar", {"generator.guidance": 3.0}, r"generator\.guidance is 3, .* set generator\.guidance=1"),
    ("tiny-ar", {"generator.guidance": 5.0}, r"set generator\.guidance=1"),
    ("tiny-ar", {"generator.temperature": 0.7}, r"set generator\.temperature=1"),
    ("janus", {"generator.guidance": None}, r"generator\.guidance is 5, .* set generator\.guidance=1"),
    ("vargpt", {"generator.guidance": None}, r"generator\.guidance is 3"),
    ("vargpt", {"generator.temperature": None}, r"generator\.temperature is 0\.5, .* set generator\.temperature=1"),
])
def test_what_is_refused_is_off_policy(name, changes, named, models, monkeypatch):
    config, backbone = config_of(name, changes), models[name]
    with pytest.raises(ConfigError, match=named):
        refuse_off_policy(config, backbone.spec)
    gap = true_log_ratio(monkeypatch, backbone, drawing_sampler(config, backbone.spec))
    assert (gap.exp() - 1).abs().max() > 0.2  # beyond the clip: a ratio that the update takes to be 1
    assert gap.sum(1).abs().min() > 0.5  # nats per drawing


def test_guidance_three_and_five_are_nats_away(models, monkeypatch):
    gaps = [true_log_ratio(monkeypatch, models["tiny-ar"], models["tiny-ar"].spec.native._replace(guidance=g))
            .sum(1).mean().item() for g in (1.0, 3.0, 5.0)]
    assert gaps[0] == pytest.approx(0.0, abs=1e-4) and -1.0 > gaps[1] > gaps[2]


@pytest.mark.parametrize(("changes", "named"), [
    ({"proposer.temperature": 1.3}, r"set proposer\.temperature=1"),
    ({"proposer.top_p": 0.9}, r"set proposer\.top_p=1"),
    ({"solver.temperature": 0.7, "solver.update": "reinforce"}, r"set solver\.temperature=1"),
    ({"solver.top_p": 0.9, "solver.update": "group"}, r"set solver\.top_p=1"),
    ({"solver.temperature": 0.7, "control": "random"}, r"set solver\.temperature=1"),
])
def test_texts_of_another_policy_are_refused(changes, named, models):
    with pytest.raises(ConfigError, match=named):
        refuse_off_policy(resolve("smoke", changes), models["tiny-ar"].spec)


@pytest.mark.parametrize("changes", [
    {"solver.temperature": 0.7},  # labels of sft are chosen, not sampled
    {"solver.temperature": 0.7, "solver.update": "reinforce", "solver.train": False},
    {"proposer.temperature": 1.3, "proposer.train": False}, {"proposer.temperature": 1.3, "schedule.understanding": 0},
    {"generator.guidance": 3.0, "schedule.generation": 0}, {"generator.guidance": 3.0, "generator.train": False},
    {"generator.guidance": 3.0, "generator.target": "source_image"},  # real pictures: nobody sampled them
])
def test_what_no_update_scores_is_free(changes, models):
    refuse_off_policy(resolve("smoke", changes), models["tiny-ar"].spec)


def test_a_regression_has_no_ratio():
    refuse_off_policy(resolve("tiny", {"backbone": "tiny-flow", "generator.guidance": 3.0}),
                      load_backbone("tiny-flow").spec)


def test_a_recipe_that_only_draws_is_asked_about_its_drawings_alone(models):
    refuse_off_policy(resolve("smoke", {"recipe": "gvu"}), models["tiny-ar"].spec)
    with pytest.raises(ConfigError, match=r"set generator\.guidance=1"):
        refuse_off_policy(resolve("smoke", {"recipe": "gvu", "generator.guidance": 2.0}), models["tiny-ar"].spec)


def test_a_trainer_does_not_start(pool_folder, tmp_path):
    with pytest.raises(ConfigError, match=r"set generator\.guidance=1"):
        open_trainer(small_config(pool_folder, {"generator.guidance": 3.0}), tmp_path / "run")
