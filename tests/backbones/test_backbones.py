"""The conformance kit: the shipped models pass, and each one broken on purpose is caught by the check that should."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from asgkit.backbones import ROLES, Backbone, load_backbone
from asgkit.backbones.base import BACKBONES, NoiseSpec
from asgkit.backbones.conformance import Check, assert_conforms, check_backbone
from asgkit.backbones.tiny.ar import TinyAR
from asgkit.backbones.tiny.latent_drawing import TinyLatent
from asgkit.backbones.tiny.understand import CHECKPOINTS


def failures(backbone, pictures, **inputs) -> dict[str, str]:
    return {c.name: c.detail for c in check_backbone(backbone, pictures, **inputs) if not c.passed}


@pytest.mark.parametrize(("name", "dropout"), [*((name, 0.0) for name in BACKBONES), ("tiny-ar", 0.5)])
def test_shipped_models_keep_every_promise(pictures, name, dropout):
    backbone = load_backbone(name, lora_dropout=dropout)
    assert_conforms(backbone, pictures)
    assert isinstance(backbone, Backbone) and backbone.spec.name == name


def test_every_check_says_what_it_measured(tiny, pictures):
    checks = check_backbone(tiny, pictures, captions=["red circle", "blue square , digit 4"],
                            questions=["what digit is shown ?", "is there a red circle ?"])
    assert len(checks) >= 14 and all(isinstance(c, Check) and c.passed and c.detail for c in checks)


def test_the_kit_leaves_the_backbone_as_it_found_it(pictures):
    backbone = load_backbone("tiny-ar")
    parameters = [p for role in ROLES for p in backbone.role_parameters(role)]
    for p in parameters:
        p.data.add_(0.01)
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in parameters]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    check_backbone(backbone, pictures)
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in parameters)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.roles.active is None


def test_inputs_that_cannot_tell_right_from_wrong_are_refused(tiny, pictures):
    with pytest.raises(ValueError, match="two different images"):
        check_backbone(tiny, [pictures[0], pictures[0]])
    with pytest.raises(ValueError, match="no checks named"):
        check_backbone(tiny, pictures, only=["gradient"])
    with pytest.raises(ValueError, match="two different captions"):
        check_backbone(tiny, pictures, captions=["red circle", "red circle"])


# -- models broken on purpose --------------------------------------------------------------------------------------
class Blind(TinyAR):
    """Answers about a grey picture whatever it is shown."""

    def prefix(self, images, *, role):
        return super().prefix([Image.new("RGB", (24, 24))] * len(images), role=role)


class BlindEverywhere(Blind):
    """Ignores images when scoring as well, so that sampling and scoring agree."""

    def text_stats(self, images, *args, **settings):
        return super().text_stats(images and [Image.new("RGB", (24, 24))] * len(images), *args, **settings)


class FirstImage(TinyAR):
    """Mixes up the images of a batch: every row is about the first one."""

    def answer(self, prefix, prompts, *, rows=None, **settings):
        return super().answer(prefix, prompts, rows=[0] * len(prompts), **settings)


class GlobalRandom(TinyAR):
    """Draws from torch's global stream instead of the seeds."""

    def generate_images(self, prompts, *, seeds, **settings):
        seeds = torch.randint(2**31, (len(seeds),)).tolist()
        return super().generate_images(prompts, seeds=seeds, **settings)


class Seedless(TinyAR):
    """One drawing for all seeds."""

    def generate_images(self, prompts, *, seeds, **settings):
        return super().generate_images(prompts, seeds=[0] * len(seeds), **settings)


class BatchSeed(TinyAR):
    """The seed of a row depends on its place in the batch."""

    def generate_images(self, prompts, *, seeds, **settings):
        return super().generate_images(prompts, seeds=[s + i for i, s in enumerate(seeds)], **settings)


class DropsATensor(TinyAR):
    """Saves all but one tensor."""

    def save_role(self, role, path):
        super().save_role(role, path)
        tensors = load_file(path / "adapter.safetensors")
        tensors.pop(min(tensors))
        save_file(tensors, path / "adapter.safetensors")


class LoadsLoosely(TinyAR):
    """Takes what fits and says nothing of the rest (strict=False)."""

    def load_role(self, role, path):
        stored = load_file(path / "adapter.safetensors")
        for name, p in self.roles._named[role].items():
            if name in stored:
                p.data.copy_(stored[name])


class ProcessedLogits(TinyAR):
    """Hands out logits after temperature."""

    def answer(self, prefix, prompts, *, temperature=0.0, **settings):
        found = super().answer(prefix, prompts, temperature=temperature, **settings)
        return found if found.logits is None or not temperature else replace(found, logits=found.logits / temperature)


class TemperedLogp(TinyAR):
    """Reports the behaviour of the sampler at its temperature, not that of the policy."""

    def answer(self, prefix, prompts, *, temperature=0.0, **settings):
        found = super().answer(prefix, prompts, temperature=temperature, **settings)
        return replace(found, logp=found.logp * 1.1 if temperature not in (0.0, 1.0) else found.logp)


class OtherPolicy(TinyAR):
    """Scores drawings under other weights than it draws them with."""

    def generate_images(self, prompts, *, role, **settings):
        return super().generate_images(prompts, role=None, **settings)


class WrongRole(TinyAR):
    """Answers for the Solver with the Proposer's adapter."""

    def text_stats(self, *args, role, **settings):
        return super().text_stats(*args, role="proposer" if role == "solver" else role, **settings)


class NoLogp(TinyAR):
    """Draws tokens and does not say how probable they were."""

    def generate_images(self, prompts, **settings):
        return replace(super().generate_images(prompts, **settings), logp=None)


class OwnNoise(TinyLatent):
    """Draws new noise on every call, whatever seeds it is given."""

    def generation_stats(self, prompts, codes, *, noise=None, **settings):
        noise = NoiseSpec(noise.t, torch.randint(2**31, (len(prompts),)).tolist())
        return super().generation_stats(prompts, codes, noise=noise, **settings)


class OneNoise(TinyLatent):
    """Uses the first draw's noise and time for every draw of a picture."""

    def generation_stats(self, prompts, codes, *, noise=None, **settings):
        one = super().generation_stats(prompts, codes, noise=NoiseSpec(noise.t[:, :1], noise.seeds), **settings)
        again = lambda x: x.expand(-1, noise.t.shape[1], -1, -1)
        return replace(one, pred=again(one.pred), target=again(one.target))


class SummedLoss(TinyLatent):
    """Sums the squared error over the numbers of a cell: the size of a step then follows that of the latent."""

    def generation_stats(self, *args, **settings):
        found = super().generation_stats(*args, **settings)
        return replace(found, loss=found.loss * found.pred.shape[-1])


class NoTarget(TinyLatent):
    """Keeps the target to itself."""

    def generation_stats(self, *args, **settings):
        return replace(super().generation_stats(*args, **settings), target=None)


class NoPrediction(TinyLatent):
    """Gives a loss alone, as if it drew tokens."""

    def generation_stats(self, *args, **settings):
        return replace(super().generation_stats(*args, **settings), pred=None, target=None)


class OthersNoise(TinyLatent):
    """The noise of a picture depends on its place in the batch."""

    def generation_stats(self, prompts, codes, *, noise=None, **settings):
        noise = NoiseSpec(noise.t, [seed + i for i, seed in enumerate(noise.seeds)])
        return super().generation_stats(prompts, codes, noise=noise, **settings)


def broken(kind: type[TinyAR] | type[TinyLatent]) -> TinyAR | TinyLatent:
    return kind.load("clean") if issubclass(kind, TinyAR) else kind.load("tiny-flow", "clean")


CASES = {
    Blind: {"answer_logp", "image_matters"}, BlindEverywhere: {"image_matters"}, FirstImage: {"answer_logp"},
    GlobalRandom: {"drawing_seeds"}, Seedless: {"drawing_seeds"}, BatchSeed: {"drawing_seeds"},
    DropsATensor: {"round_trip"}, LoadsLoosely: {"strict_load"}, ProcessedLogits: {"raw_logits"},
    TemperedLogp: {"answer_logp"}, OtherPolicy: {"drawing_logp"}, WrongRole: {"gradients", "isolation"},
    NoLogp: {"drawing_logp"}, OwnNoise: {"drawing_noise"}, OneNoise: {"drawing_noise"}, SummedLoss: {"drawing_noise"},
    NoTarget: {"drawing_noise"}, NoPrediction: {"drawing_noise"}, OthersNoise: {"batches"},
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_broken_model_is_caught(kind, pictures):
    found = failures(broken(kind), pictures, only=CASES[kind])
    assert CASES[kind] <= found.keys(), found


def test_a_role_switch_that_does_nothing_is_caught(pictures):
    backbone = load_backbone("tiny-ar")
    switch = backbone.roles._switch
    backbone.roles._switch = lambda role: switch(None)
    assert len(failures(backbone, pictures, only={"role_none", "gradients", "isolation"})) == 3


def test_a_base_that_is_the_solver_is_caught(pictures):
    backbone = load_backbone("tiny-ar")
    switch = backbone.roles._switch
    backbone.roles._switch = lambda role: switch(role or "solver")
    assert len(failures(backbone, pictures, only={"role_none", "isolation"})) == 2


def test_a_trainable_base_is_caught(pictures):
    backbone = load_backbone("tiny-ar")
    backbone.network.word_head.weight.requires_grad_(True)
    assert "outside the role" in failures(backbone, pictures, only={"gradients"})["gradients"]


def test_half_precision_adapters_are_caught(pictures):
    backbone = load_backbone("tiny-ar")
    backbone.role_parameters("generator")[0].data = backbone.role_parameters("generator")[0].data.bfloat16()
    assert "adapters" in failures(backbone, pictures, only={"adapters"})


def test_assert_conforms_lists_every_failure(pictures):
    with pytest.raises(AssertionError, match=r"tiny-ar breaks the protocol:\n(.*\n)*FAIL drawing_seeds"):
        assert_conforms(broken(GlobalRandom), pictures)


# -- opening a model -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "other"), [("tiny-ar", "tiny-flow"), ("tiny-flow", "tiny-diffusion"),
                                             ("tiny-diffusion", "tiny-ar")])
def test_a_checkpoint_of_another_model_is_named(name, other):
    path = CHECKPOINTS / f"{other}-clean.safetensors"
    with pytest.raises(ValueError, match=f"{path.name} is no checkpoint of {name}: set backbone={other}"):
        load_backbone(name, base=str(path))


def test_unknown_models_and_bases_name_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="unknown backbone 'tiny-xl'.*tiny-ar"):
        load_backbone("tiny-xl")
    with pytest.raises(FileNotFoundError, match="asgkit pretrain tiny-ar"):
        load_backbone("tiny-ar", base=str(tmp_path / "none.safetensors"))
    with pytest.raises(ValueError, match="precision 'fp16'"):
        load_backbone("tiny-ar", precision="fp16")


def test_an_adapter_of_another_rank_is_refused(tiny, tmp_path):
    tiny.save_role("solver", tmp_path)
    with pytest.raises(ValueError, match="another LoRA rank"):
        load_backbone("tiny-ar", lora_rank=4).load_role("solver", tmp_path)
    with pytest.raises(ValueError, match="unknown role 'critic'"), tiny.use_role("critic"):
        pass


def test_the_adapters_follow_the_seed():
    first, again, other = (load_backbone("tiny-ar", seed=s).role_parameters("solver") for s in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))
