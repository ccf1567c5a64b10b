"""Frozen weights in 4 bits: what NF4 keeps, that it still differentiates, and that every backbone keeps its promises.

bitsandbytes is optional (the extra qlora), so most of these run only where it is installed.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from asgkit.backbones import load_backbone, quantise
from asgkit.backbones.base import BACKBONES
from asgkit.backbones.conformance import assert_conforms
from asgkit.backbones.quantise import quantise_linears
from asgkit.config import ConfigError, resolve
from asgkit.experiments import reproduce
from asgkit.launch import open_backbone

needs_bitsandbytes = pytest.mark.skipif(not quantise.can_quantise(), reason="needs the extra qlora")


class Net(nn.Module):
    """Two layers alike, of which the pattern of the tests means one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)


@pytest.fixture
def absent(monkeypatch):
    """A machine without bitsandbytes."""
    for module in (quantise, reproduce):
        monkeypatch.setattr(module, "can_quantise", lambda: False)


@pytest.mark.usefixtures("absent")
def test_without_the_library_the_error_names_the_fix():
    with pytest.raises(ValueError, match="pip install 'bitsandbytes>=0.50,<0.51'"):
        load_backbone("tiny-ar", quantise="nf4")
    assert reproduce.missing_inputs(resolve("tiny", ["lora.quantise=nf4"])) == ["bitsandbytes"]
    assert reproduce.missing_inputs(resolve("tiny")) == []


def test_an_unknown_kind_and_an_impossible_pair_are_refused():
    with pytest.raises(ValueError, match="unknown quantisation 'int3'"):
        load_backbone("tiny-ar", quantise="int3")
    with pytest.raises(ConfigError, match="shard_weights and lora.quantise do not go together"):
        resolve("tiny", ["lora.quantise=nf4", "shard_weights=true"])


@needs_bitsandbytes
def test_only_what_matches_is_replaced_and_nothing_matching_is_an_error():
    net = Net()
    kept = net.second.weight.clone()
    assert quantise_linears(net, [r"first"]) == ["first"]
    assert type(net.first).__name__ == "Linear4bit" and net.first.weight.dtype == torch.uint8
    assert net.first.weight.numel() == 64 * 64 // 2  # two weights a byte
    assert type(net.second) is nn.Linear and torch.equal(net.second.weight, kept)
    with pytest.raises(ValueError, match="none can be quantised"):
        quantise_linears(Net(), [r"third"])


@needs_bitsandbytes
def test_a_block_keeps_zero_its_ends_and_sixteen_levels():
    net = Net()
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    weight[:, 0], weight[:, 1] = 0.0, 4.0  # a row of 64 is a block: 0 and its largest value are levels of NF4
    net.first.weight.data.copy_(weight)
    net.first.bias.data.zero_()
    quantise_linears(net, [r"first"])
    found = net.first(torch.eye(64)).T  # (64, 64): row by row what the layer computes with
    assert found[:, 0].abs().max() < 1e-6
    assert torch.allclose(found[:, 1], torch.full((64,), 4.0), rtol=0.01)  # the scale itself has 8 bits
    assert all(len(row.unique()) <= 16 for row in found)
    # the widest gap between two levels is 0.304 of the largest value, so no weight moves by more than half of that
    assert (found - weight).abs().max() <= 0.5 * 0.304 * 4.0 * 1.01


@needs_bitsandbytes
def test_a_pass_without_gradient_leaves_later_gradients_as_they_are(pictures):
    """On some processors bitsandbytes repacks weights in evaluation, after which they cannot be differentiated."""

    def gradient(look_first: bool) -> torch.Tensor:
        backbone = load_backbone("tiny-ar", quantise="nf4", precision="bf16")
        weights = backbone.role_parameters("solver")
        for p in weights:
            nn.init.normal_(p, std=0.05, generator=torch.Generator().manual_seed(1))
        prompts = [backbone.spec.prompts.solve("what digit is shown ?")]
        if look_first:
            backbone.answer(backbone.prefix(pictures[:1], role="solver"), prompts, max_new_tokens=1)
        answers = backbone.answer(backbone.prefix(pictures[:1], role="solver"), prompts, max_new_tokens=1, seed=1)
        backbone.text_stats(pictures[:1], prompts, answers, role="solver", grad=True).logp.sum().backward()
        return torch.cat([p.grad.flatten() for p in weights])

    fresh, later = gradient(False), gradient(True)
    assert fresh.abs().max() > 0 and torch.equal(fresh, later)


@needs_bitsandbytes
@pytest.mark.parametrize("name", BACKBONES)
def test_tiny_models_keep_every_promise_in_four_bits(pictures, name):
    assert_conforms(load_backbone(name, quantise="nf4"), pictures)


@needs_bitsandbytes
@pytest.mark.slow
@pytest.mark.parametrize("name", ["janus", "blip3o", "bagel", "vargpt"])
def test_real_models_keep_every_promise_in_four_bits(name):
    backbone = load_backbone(name, base="random", quantise="nf4")
    pixels = np.random.default_rng(0).integers(0, 256, (2, *2 * (backbone.spec.image_side,), 3), np.uint8)
    assert_conforms(backbone, [Image.fromarray(picture) for picture in pixels])


@needs_bitsandbytes
def test_the_base_of_a_quantised_run_is_near_the_base_but_not_it(pictures):
    question = "what digit is shown ?"
    logits = []
    for config in (resolve("tiny", ["precision=fp32"]), resolve("tiny", ["precision=fp32", "lora.quantise=nf4"])):
        backbone = open_backbone(config)
        prompts = [backbone.spec.prompts.solve(question)]
        answers = backbone.answer(backbone.prefix(pictures[:1], role=None), prompts, max_new_tokens=1)
        logits.append(answers.logp)
    assert not torch.equal(*logits) and torch.allclose(*logits, atol=1.0)
