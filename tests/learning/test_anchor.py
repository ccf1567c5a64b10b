"""nft against the policy that samples, and a flow's regression in velocities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from loops import open_trainer, small_config
from torch import nn

from asgkit.backbones import load_backbone
from asgkit.config import resolve
from asgkit.errors import ConfigError
from asgkit.learning.anchor import SamplingPolicy
from asgkit.learning.objectives import drawing_batch
from asgkit.learning.policy import refuse_unfit
from asgkit.updates import weighted_regression_loss

POLICY = {"backbone": "tiny-flow", "generator.regression": "nft", "generator.nft_anchor": "policy"}


@pytest.fixture
def flow():
    """tiny-flow with a Generator that has left its base."""
    backbone = load_backbone("tiny-flow")
    with torch.no_grad():
        for i, p in enumerate(backbone.role_parameters("generator")):
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return backbone


def batch_of(backbone, anchor=None, **changes):
    settings = resolve("tiny", {"backbone": "tiny-flow", "generator.candidates": 3, **changes}).generator
    codes = torch.randn(6, *backbone.spec.code_shape, generator=torch.Generator().manual_seed(0))
    rewards = torch.tensor([[0.1, 0.9, 0.3], [0.8, 0.2, 0.1]])
    return drawing_batch(["red circle", "blue square"], codes, None, rewards, torch.tensor([True, True]),
                         times=backbone.spec.times, settings=settings, control="", rng=np.random.default_rng(0),
                         anchor=anchor)


def gradient(backbone, loss) -> torch.Tensor:
    parameters = backbone.role_parameters("generator")
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def plain(backbone, batch) -> torch.Tensor:
    """Gradient of the plain loss, each drawing weighted by 2 r - 1 = A / 5."""
    stats = backbone.generation_stats(batch.examples.prompts, batch.examples.codes, role="generator", noise=batch.noise,
                                      grad=True)
    return gradient(backbone, weighted_regression_loss(stats.loss, batch.examples.weights / 5))


def test_nft_at_its_sampling_policy_has_the_published_gradient(flow):
    anchor = SamplingPolicy(flow.role_parameters("generator"), 0.0)
    before = [p.detach().clone() for p in flow.role_parameters("generator")]
    anchored = batch_of(flow, anchor, **{"generator.regression": "nft"})
    found = gradient(flow, anchored.objective(flow, "generator").loss)
    wanted = plain(flow, anchored)
    assert torch.allclose(found, wanted, atol=1e-6 * wanted.abs().max().item() + 1e-9, rtol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.role_parameters("generator"), strict=True))
    at_base = gradient(flow, replace(anchored, anchor=None).objective(flow, "generator").loss)
    assert not torch.allclose(at_base, wanted, rtol=0.1)  # anchored at the base it pulls somewhere else


def test_the_sampling_policy_follows_by_hand():
    p = nn.Parameter(torch.zeros(2))
    policy = SamplingPolicy([p], 0.75)
    with torch.no_grad():
        p.fill_(1.0)
    policy.follow()
    policy.follow()
    assert policy.kept[0].tolist() == pytest.approx([0.4375, 0.4375])
    with policy.active():
        assert p.tolist() == pytest.approx([0.4375, 0.4375])
    assert p.tolist() == [1.0, 1.0]
    other = SamplingPolicy([p], 0.75)
    other.load_state_dict(policy.state_dict())
    assert torch.equal(other.kept[0], policy.kept[0])


def test_drawings_come_from_the_sampling_policy_and_a_resume_keeps_it(pool_folder, tmp_path):
    changes = POLICY | {"schedule.understanding": 0, "generator.nft_decay": 0.9, "schedule.steps": 2,
                        "generator.learning_rate": 0.05, "checkpoint.every": 2}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    trainer.train_step()
    kept = [k.clone() for k in trainer.recipe.sampler.kept]
    own = [p.detach().clone() for p in trainer.backbone.role_parameters("generator")]
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(kept, own, strict=True))
    works, sample = [], trainer.recipe.sample
    trainer.recipe.sample = lambda shard, phase: works.append(sample(shard, phase)) or works[-1]
    trainer.train_step()
    made = works[0].made
    draw = lambda: trainer.backbone.generate_images(made.prompts, seeds=made.seeds, role="generator").codes
    for weights, same in ((kept, True), (own, False)):
        with torch.no_grad():
            for p, value in zip(trainer.backbone.role_parameters("generator"), weights, strict=True):
                p.copy_(value)
        assert torch.allclose(draw(), made.drawn.codes, atol=1e-5) == same
    trainer.save()
    again = open_trainer(small_config(pool_folder, changes), tmp_path / "again")
    again.run = trainer.run
    assert again.resume()
    assert all(torch.equal(a, b) for a, b in zip(again.recipe.sampler.kept, trainer.recipe.sampler.kept, strict=True))


def test_a_flow_can_be_weighed_in_velocities(flow, monkeypatch):
    native, velocity = (batch_of(flow, **{"generator.regression_space": space}).objective(flow, "generator")
                        for space in ("native", "velocity"))
    monkeypatch.setattr(flow.network, "estimate", lambda x, t, prediction: prediction)  # what the network itself says
    said = batch_of(flow).objective(flow, "generator")
    assert velocity.loss.item() == pytest.approx(said.loss.item(), rel=1e-4)
    assert velocity.kl.item() == pytest.approx(said.kl.item(), rel=1e-4)
    assert native.loss.item() != pytest.approx(said.loss.item(), rel=0.1)


def test_what_does_not_fit_is_refused(tiny, pool_folder, tmp_path):
    for name in ("tiny-ar", "tiny-diffusion"):
        with pytest.raises(ConfigError, match="needs a model that draws along velocities"):
            refuse_unfit(resolve("tiny", {"backbone": name, "generator.regression_space": "velocity"}),
                         load_backbone(name).spec)
    with pytest.raises(ConfigError, match="prompts of tiny-ar have none"):
        refuse_unfit(resolve("tiny", {"solver.focus_hints": True}), tiny.spec)
    with pytest.raises(ConfigError, match="never samples"):
        resolve("tiny", POLICY | {"generator.adapter": "solver"})
    with pytest.raises(ConfigError, match=r"nft_anchor changes nothing under recipe=gvu"):
        resolve("tiny", {"recipe": "gvu", "generator.nft_anchor": "policy"})
