"""tiny-flow and tiny-diffusion: the picture codec, noise and samplers by hand, and what the shipped bases keep."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from asgkit.backbones import ROLES, load_backbone
from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.noise import row_normals
from asgkit.backbones.tiny.diffusion import LARGEST_LATENT, _index, _schedule
from asgkit.backbones.tiny.flow import ExpertBlock, TinyFlowNetwork, wave
from asgkit.backbones.tiny.latent import CELLS, CHANNELS, STEPS, CellAutoencoder
from asgkit.backbones.tiny.latent_drawing import NETWORKS, TinyLatent, repeat_rows
from asgkit.backbones.tiny.pretraining.pretrain import PretrainConfig
from asgkit.backbones.tiny.pretraining.pretrain_latent import (
    LatentConfig,
    _rate,
    new_network,
    save,
    train_stages,
)
from asgkit.backbones.tiny.prompts import DRAW
from asgkit.backbones.tiny.trunk import Block
from asgkit.backbones.tiny.understand import CHECKPOINTS
from asgkit.shapes.detector import agrees, detect
from asgkit.shapes.world import render, sample_scene

LATENT = sorted(NETWORKS)
PROMPTS = ["red circle <draw>", "2 squares <draw>"]
each = pytest.mark.parametrize("name", LATENT)


@pytest.fixture(scope="module")
def shipped():
    return {name: load_backbone(name) for name in LATENT}


@pytest.fixture
def codec():
    torch.manual_seed(0)
    return CellAutoencoder(width=8).eval()


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- the codec ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_codec_shapes_and_range(codec):
    latents = codec.encode(torch.rand(2, 3, 24, 24))
    assert latents.shape == (2, CELLS, CHANNELS) == (2, 9, 8)
    pixels = codec.decode(10 * latents)
    assert pixels.shape == (2, 3, 24, 24) and pixels.min() >= 0 and pixels.max() <= 1


@torch.no_grad()
@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (2, 1)])
def test_a_cell_and_its_latent_know_of_no_other(codec, row, column):
    pixels = torch.rand(1, 3, 24, 24)
    changed = pixels.clone()
    changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0.5
    moved = (codec.encode(changed) != codec.encode(pixels)).any(-1)[0]
    assert moved.nonzero().flatten().tolist() == [3 * row + column]  # cells row by row
    latents = normals(1, CELLS, CHANNELS)
    other = latents.clone()
    other[0, 3 * row + column] += 1.0
    where = (codec.decode(other) != codec.decode(latents)).any(1)[0].nonzero()
    assert where.min(0).values.tolist() >= [8 * row, 8 * column]
    assert where.max(0).values.tolist() <= [8 * row + 7, 8 * column + 7]


@torch.no_grad()
def test_a_cell_alone_has_the_latent_that_it_has_in_a_picture(codec):
    pixels = torch.rand(1, 3, 24, 24)
    cell = codec.normalise(codec.encoder(pixels[..., 8:16, 16:24] - 0.5)).flatten()  # row 1, column 2
    assert torch.allclose(codec.encode(pixels)[0, 5], cell, atol=1e-6)
    shown, still = torch.rand(4, 3, 8, 8), torch.zeros(4, 1, 1, 1)
    error = (codec.decoder(codec.normalise(codec.encoder(shown - 0.5))) + 0.5 - shown).square().mean()
    assert torch.allclose(codec.loss(shown, normals(4, CHANNELS, 1, 1), still), error)


def test_each_row_of_noise_has_its_own_seed():
    both = row_normals([3, 5], (200, CHANNELS))
    assert torch.equal(both[1:], row_normals([5], (200, CHANNELS))) and not torch.equal(both[0], both[1])
    assert abs(both.mean().item()) < 0.1 and abs(both.std().item() - 1) < 0.1


# -- noise, by hand -------------------------------------------------------------------------------------------------
def test_flow_noise_by_hand(shipped):
    network = shipped["tiny-flow"].network
    ones = torch.ones(1, CELLS, CHANNELS)
    x, velocity = network.noisy(2 * ones, 6 * ones, torch.tensor([0.25]))
    assert torch.equal(x, 3 * ones) and torch.equal(velocity, 4 * ones)  # 3/4 * 2 + 1/4 * 6, and 6 - 2
    latents, noise, t = normals(3, 9, 8), normals(3, 9, 8, seed=1), torch.tensor([0.1, 0.5, 1.0])
    x, velocity = network.noisy(latents, noise, t)
    assert torch.allclose(x - t[:, None, None] * velocity, latents, atol=1e-6)
    assert torch.allclose(network.estimate(x, t, velocity), latents, atol=1e-6)
    assert torch.allclose(x + (1 - t[:, None, None]) * velocity, noise, atol=1e-6)
    assert torch.equal(x[2], noise[2])


def cosine(t: float) -> float:
    """Share of the picture's variance left at time t of the squared-cosine schedule."""
    f = lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    return f((_index(torch.tensor([t])).item() + 1) / 1000) / f(0)


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_diffusion_noise_by_hand(shipped, t):
    network, latents, noise = shipped["tiny-diffusion"].network, normals(1, 9, 8), normals(1, 9, 8, seed=1)
    x, target = network.noisy(latents, noise, torch.tensor([t]))
    left = cosine(t)
    assert torch.allclose(x, math.sqrt(left) * latents + math.sqrt(1 - left) * noise, atol=1e-4)
    assert torch.equal(target, noise) and torch.equal(network.estimate(x, torch.tensor([t]), target), noise)


def test_training_times_of_the_diffusion_schedule():
    assert _index(torch.tensor([0.0, 0.0004, 0.5, 0.9994, 1.0])).tolist() == [0, 0, 500, 999, 999]


# -- samplers -------------------------------------------------------------------------------------------------------
def perfect(name: str, clean: torch.Tensor):
    """A predictor that knows the picture."""
    def velocity(x, t, condition):
        return (x - clean) / t[:, None, None]

    def noise(x, t, condition):
        left = _schedule().alphas_cumprod[_index(t)][:, None, None]
        return (x - left.sqrt() * clean) / (1 - left).sqrt()

    return {"tiny-flow": velocity, "tiny-diffusion": noise}[name]


@each
def test_a_perfect_prediction_makes_the_sampler_return_the_picture(shipped, pictures, monkeypatch, name):
    backbone = shipped[name]
    clean = backbone.encode_images(pictures[:2])
    assert clean.abs().max() < LARGEST_LATENT, "DDIM would cut it"
    monkeypatch.setattr(backbone.network, "predict", perfect(name, clean))
    drawn = backbone.generate_images(PROMPTS, seeds=[1, 2], role=None)
    assert torch.allclose(drawn.codes, clean, atol=1e-4) and drawn.logp is None
    assert [image.tobytes() for image in drawn.images] == [i.tobytes() for i in backbone.decode_images(clean)]


class Recorder:
    """Stands for `predict` and keeps what it was given; predicts the real network's output."""

    def __init__(self, network):
        self.real, self.calls = network.predict, []

    def __call__(self, x, t, condition):
        self.calls.append((x, t))
        return self.real(x, t, condition)


@each
def test_guidance_one_has_no_second_stream_and_temperature_scales_the_first_noise(shipped, monkeypatch, name):
    backbone = shipped[name]
    rows, first = [], []
    for settings in ({}, {"guidance": 1.0}, {"guidance": 3.0}, {"temperature": 0.7}):
        seen = Recorder(backbone.network)
        with monkeypatch.context() as patch:
            patch.setattr(backbone.network, "predict", seen)
            backbone.generate_images(PROMPTS, seeds=[1, 2], role=None, **settings)
        assert len(seen.calls) == STEPS and all(len(x) == len(t) for x, t in seen.calls)
        assert all(0 < t.min() and t.max() <= 1 for _, t in seen.calls)
        rows.append({len(x) for x, _ in seen.calls})
        first.append(seen.calls[0][0])
    assert rows == [{2}, {2}, {4}, {2}]
    noise = row_normals([1, 2], (CELLS, CHANNELS))
    assert torch.equal(first[0], noise) and torch.equal(first[2], torch.cat([noise, noise]))
    assert torch.allclose(first[3], 0.7 * noise)


@each
def test_guidance_zero_draws_without_the_caption_and_temperature_zero_without_chance(shipped, name):
    backbone = shipped[name]
    draw = lambda prompts, **settings: backbone.generate_images(prompts, seeds=[1, 2], role=None, **settings).codes
    assert torch.allclose(draw(PROMPTS, guidance=0.0), draw([DRAW] * 2), atol=1e-3)
    assert not torch.allclose(draw(PROMPTS), draw([DRAW] * 2), atol=1e-1)
    cold = draw([PROMPTS[0]] * 2, temperature=0.0)
    assert torch.allclose(cold[0], cold[1], atol=1e-5)


# -- the loss -------------------------------------------------------------------------------------------------------
@each
def test_the_loss_is_the_mean_squared_error_of_the_estimate(shipped, pictures, monkeypatch, name):
    """A head that predicts 0: a flow's picture is then x_t, at distance t (noise - x0); noise 0 errs by the noise."""
    backbone = shipped[name]
    codes, times = backbone.encode_images(pictures[:2]), torch.tensor([[0.25, 0.5], [0.75, 1.0]])
    monkeypatch.setattr(backbone.network, "predict", lambda x, t, condition: torch.zeros_like(x))
    stats = backbone.generation_stats(PROMPTS, codes, role=None, noise=NoiseSpec(times, [7, 8]))
    noise = row_normals([7, 8], (2, CELLS, CHANNELS))
    error = times[..., None, None] * (noise - codes[:, None]) if name == "tiny-flow" else noise
    assert stats.loss.shape == (2,) and stats.pred.shape == stats.target.shape == (2, 2, CELLS, CHANNELS)
    assert torch.allclose(stats.loss, error.square().mean((1, 2, 3)), rtol=1e-4)
    assert torch.allclose((stats.pred - stats.target).abs(), error.abs(), atol=1e-4)
    assert stats.logp is None and stats.logits is None


@each
def test_a_regression_needs_one_row_of_noise_for_every_drawing(shipped, pictures, name):
    codes = shipped[name].encode_images(pictures[:2])
    for noise in (None, NoiseSpec(torch.rand(1, 2), [1]), NoiseSpec(torch.rand(2, 2), [1])):
        with pytest.raises(ValueError, match="one row per drawing"):
            shipped[name].generation_stats(PROMPTS, codes, role=None, noise=noise)
    with pytest.raises(ValueError, match="2 prompts need as many seeds, got 1"):
        shipped[name].generate_images(PROMPTS, seeds=[1], role=None)


def test_conditions_are_repeated_row_by_row():
    a, b = torch.tensor([[1], [2]]), torch.tensor([[3], [4]])
    nest = repeat_rows(([(a, b)], b), 2)
    assert nest[0][0][0].flatten().tolist() == [1, 1, 2, 2] and nest[1].flatten().tolist() == [3, 3, 4, 4]


# -- the networks ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def test_an_expert_block_without_modulation_is_a_trunk_block():
    torch.manual_seed(0)
    expert, plain = ExpertBlock(16, 2), Block(16, 2)
    plain.load_state_dict(expert.state_dict(), strict=False)
    x, past = normals(2, 9, 16), (normals(2, 2, 4, 8), normals(2, 2, 4, 8, seed=1))
    bias = torch.zeros(2, 1, 1, 13)
    bias[..., 0] = float("-inf")
    assert torch.allclose(expert.draw(x, bias, past, normals(2, 16)), plain(x, bias, past)[0], atol=1e-6)


def test_waves_by_hand():
    found = wave(torch.tensor([0.0, 0.5]))
    assert found.shape == (2, 64)
    assert found[0].tolist() == [0.0] * 32 + [1.0] * 32
    assert found[1, [0, 32]].tolist() == pytest.approx([math.sin(0.5), math.cos(0.5)])  # the slowest
    assert found[1, [31, 63]].tolist() == pytest.approx([math.sin(500), math.cos(500)], abs=1e-3)


@each
def test_the_generator_adapts_the_head_and_readers_the_trunk(shipped, name):
    names = [n for n, _ in shipped[name].network.named_parameters()]
    places = {role: {n.partition(".")[0] for n in names if f".{role}." in n} for role in ROLES}
    head = {"tiny-flow": "expert", "tiny-diffusion": "denoiser"}[name]
    assert places == {"proposer": {"trunk"}, "solver": {"trunk"}, "generator": {head}}
    layers = {n.partition(".lora_")[0] for n in names if ".generator." in n}
    assert len(layers) == 4 * {"tiny-flow": 4, "tiny-diffusion": 10}[name]  # of 4 blocks


@each
def test_shipped_checkpoints_are_half_precision_and_small(name):
    path = CHECKPOINTS / f"{name}-clean.safetensors"
    assert path.stat().st_size <= 10e6
    assert {str(t.dtype) for t in load_file(path).values()} <= {"torch.float16", "torch.int64"}


@each
def test_the_codec_keeps_what_a_picture_shows(shipped, name):
    rng = np.random.default_rng(9)
    scenes = [sample_scene(rng, "dev", digit=False) for _ in range(300)]
    images = [Image.fromarray(render(scene)) for scene in scenes]
    codes = shipped[name].encode_images(images)
    read = detect(np.stack([np.asarray(image) for image in shipped[name].decode_images(codes)]))
    assert np.mean([agrees(a, b) for a, b in zip(read, scenes, strict=True)]) >= 0.95
    assert codes.dtype == torch.float32 and 0.5 < codes.std() < 2.0


# -- pre-training ---------------------------------------------------------------------------------------------------
SMALL = LatentConfig(PretrainConfig(steps=1, images=2, precision="fp32"), codec_steps=2, codec_scenes=20,
                     codec_cells=10, steps=2, batch=4, scenes=8, precision="fp32")


@each
def test_three_stages_make_a_base_that_opens(tmp_path: Path, name):
    network, done = new_network(name, 0), []
    train_stages(network, SMALL, tmp_path / "log.jsonl", progress=False, after=done.append)
    assert done == [1] and (tmp_path / "log.jsonl").read_text().count('"draw"') == 2
    learns = {n.partition(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert learns == set(network.head), "the drawing stage leaves the reader and the codec alone"
    save(network, SMALL, tmp_path / "own.safetensors")
    opened = TinyLatent.load(name, str(tmp_path / "own.safetensors"))
    drawn = opened.generate_images(PROMPTS, seeds=[1, 2], role="generator")
    assert [image.size for image in drawn.images] == [(24, 24)] * 2 and torch.isfinite(drawn.codes).all()


def test_experts_start_as_the_trunk():
    network = new_network("tiny-flow", 0)
    assert isinstance(network, TinyFlowNetwork)
    network.start_head()
    for expert, block in zip(network.expert.blocks, network.trunk.blocks, strict=True):
        assert torch.equal(expert.qkv.weight, block.qkv.weight) and not expert.modulation.weight.any()


def test_the_rate_warms_up_stays_and_descends():
    config = LatentConfig(PretrainConfig(), steps=1000, warmup=100)
    assert [_rate(config, step) for step in (0, 99, 600, 800)] == pytest.approx([0.01, 1.0, 1.0, 0.5])
    assert _rate(config, 999) == pytest.approx(0.02)
