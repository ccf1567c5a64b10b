"""BLIP3o on a tiny random instance of its architecture: reading, drawing, files, released adapters."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from asgkit.backbones import ROLES, load_backbone
from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.blip3o import FILES, Blip3o, full_size
from asgkit.backbones.blip3o.backbone import AFTER, DRAW, HEADER, NEGATIVE
from asgkit.backbones.blip3o.eva import EvaEncoder, normalised
from asgkit.backbones.blip3o.files import EVA_FILE, EVA_INSIDE, rename
from asgkit.backbones.blip3o.network import image_positions, word_positions
from asgkit.backbones.blip3o.parts import EULER, random_parts, tiny_settings
from asgkit.backbones.conformance import assert_conforms, perturb
from asgkit.backbones.noise import row_normals
from asgkit.backbones.weights import UnmatchedTensors

CAPTIONS = [DRAW.format(caption=text) for text in ("a red circle", "two blue squares , and a tree")]
NOISE = NoiseSpec(torch.tensor([[0.3, 0.7], [0.5, 1.0]]), [4, 5])


@pytest.fixture(scope="module")
def blip3o():
    return Blip3o.load("random")


@pytest.fixture(scope="module")
def images(pictures):
    return pictures[:2]


def test_it_keeps_every_promise(images):
    backbone = load_backbone("blip3o", base="random", lora_dropout=0.3)
    assert_conforms(backbone, images)
    parts = (backbone.network, backbone.eva, backbone.decoder)
    assert sum(p.numel() for part in parts for p in part.parameters()) < 3e6
    assert backbone.spec.code_shape == (112, 2, 2) and backbone.spec.paradigm == "flow"


# -- adapters ----------------------------------------------------------------------------------------------------------
def adapted(backbone: Blip3o, role: str) -> set[str]:
    names = {n.split(".lora_")[0] for n, _ in backbone.network.named_parameters() if f".{role}." in n}
    return {re.sub(r"\.layers\.\d+\.|\.blocks\.\d+\.", ".#.", name) for name in names}


WORDS = {f"vlm.model.language_model.#.{m}" for m in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj")}
DRAWING = {f"dit.#.attn2.{m}" for m in ("to_q", "to_k", "to_v", "to_out.0")} | {
    "caption_projection.linear_1", "caption_projection.linear_2"}
TOWER = {f"vlm.model.visual.#.mlp.{m}" for m in ("gate_proj", "up_proj", "down_proj")}
MERGER = {"vlm.model.visual.merger.mlp.0", "vlm.model.visual.merger.mlp.2"}


def test_every_role_adapts_its_own_modules(blip3o):
    assert adapted(blip3o, "proposer") == adapted(blip3o, "solver") == WORDS
    assert adapted(blip3o, "generator") == WORDS | DRAWING
    layers = len(blip3o.network.vlm.model.language_model.layers)
    assert len(blip3o.role_parameters("solver")) == 2 * 7 * layers
    assert len(blip3o.role_parameters("generator")) == 2 * (7 * layers + 4 * len(blip3o.network.dit.layers) + 2)


def test_the_released_targets_reach_into_the_vision_tower():
    backbone = Blip3o.load("random", targets="released")
    assert adapted(backbone, "proposer") == WORDS | TOWER
    assert adapted(backbone, "solver") == WORDS | TOWER | MERGER
    assert adapted(backbone, "generator") == WORDS | TOWER | DRAWING


# -- reading -----------------------------------------------------------------------------------------------------------
def test_image_positions_by_hand():
    t, rows, columns = image_positions(2, 2, 3)[:, 0].tolist()
    assert t == [0, 1, 2, 2, 2, 2, 4, 5, 6]
    assert rows == [0, 1, 2, 2, 3, 3, 4, 5, 6]
    assert columns == [0, 1, 2, 3, 2, 3, 4, 5, 6]
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert word_positions(mask, torch.tensor([4, 0]))[1].tolist() == [[3, 4, 5], [0, 1, 2]]


@torch.no_grad()
def test_reading_equals_the_whole_model_of_transformers(blip3o, images):
    question = "What is in the middle?"
    vlm, tokens = blip3o.network.vlm, blip3o.tokenizer
    answers = blip3o.answer(blip3o.prefix(images, role=None), [question] * 2, max_new_tokens=4, temperature=1.0,
                            keep_logits=4)
    text = f"{HEADER}<|vision_start|>{'<|image_pad|>' * 16}<|vision_end|>{question}{AFTER}"
    side = blip3o.spec.image_side
    shown = blip3o.patches([image.resize((side, side), Image.Resampling.BICUBIC) for image in images],
                           return_tensors="pt")
    ids = torch.cat([torch.tensor([tokens.encode(text)] * 2), answers.ids[:, :-1]], 1)
    kinds = (ids == vlm.config.image_token_id).int()
    with blip3o.use_role(None):
        whole = vlm(input_ids=ids, mm_token_type_ids=kinds, **shown).logits[:, -answers.ids.shape[1] :]
    seen = answers.mask[:, : answers.logits.shape[1]]
    assert torch.allclose(whole[seen], answers.logits[seen], atol=1e-5)


def test_no_state_of_an_image_stays_on_the_model(blip3o, images):
    blip3o.network.vlm.model.rope_deltas = None
    before = blip3o.text_stats(None, ["Is there a tree?"], [" no"], role=None).logp
    blip3o.prefix(images, role="solver")
    assert blip3o.network.vlm.model.rope_deltas is None
    blip3o.network.vlm.model.rope_deltas = torch.tensor([[50]])  # of an earlier call by somebody else
    assert torch.equal(blip3o.text_stats(None, ["Is there a tree?"], [" no"], role=None).logp, before)


# -- drawing -----------------------------------------------------------------------------------------------------------
class Spy(nn.Module):
    """Stands in for the drawing transformer: keeps what it is given and predicts `value`."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, hidden_states, timestep, encoder_hidden_states, **_):
        self.calls.append((hidden_states, timestep, encoder_hidden_states))
        return type("Out", (), {"sample": torch.full_like(hidden_states, self.value)})


@pytest.fixture
def spied():
    backbone = Blip3o.load("random")
    backbone.network.dit = Spy(2.0)
    return backbone, backbone.network.dit.calls


def test_noise_by_hand_and_times_from_0_to_1000(spied):
    backbone, calls = spied
    codes = torch.full((2, 112, 2, 2), 3.0)
    stats = backbone.generation_stats(CAPTIONS, codes, role=None, noise=NOISE)
    eps = row_normals([4, 5], (2, 112, 2, 2))
    x, times, _ = calls[0]
    assert torch.allclose(times, torch.tensor([300.0, 700.0, 500.0, 1000.0]))
    assert torch.allclose(x[0], 0.7 * codes[0] + 0.3 * eps[0, 0]) and torch.equal(x[3], eps[1, 1])  # t = 1 is noise
    assert torch.allclose(stats.target, eps - 3.0)
    assert torch.allclose(stats.loss, (2.0 - (eps - 3.0)).square().flatten(1).mean(1))


def test_the_sampler_walks_from_noise_to_features_by_hand(spied):
    backbone, calls = spied
    backbone.sampler = replace(backbone.sampler, steps=30)
    condition = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    drawn = backbone._sample(condition, [9], 3.0, 1.0)
    # a constant velocity v moves by -v over the whole way, whatever the steps
    assert torch.allclose(drawn, row_normals([9], (112, 2, 2)) - 2.0, atol=1e-5)
    times = [times.tolist() for _, times, _ in calls]
    assert times[0] == [1000.0, 1000.0] and times[1] == [966.0, 966.0] and times[-1] == [33.0, 33.0]
    project = backbone.network.caption_projection
    assert torch.equal(calls[0][2][:1], project(condition))
    assert torch.equal(calls[0][2][1:], project(torch.zeros_like(condition)))  # the null condition
    backbone._sample(condition, [9], 1.0, 1.0)
    assert len(calls[-1][0]) == 1  # no guidance, no second stream


@torch.no_grad()
def test_a_prompt_is_read_as_one_text_with_its_queries_behind_it(blip3o):
    network, tokens = blip3o.network, blip3o.tokenizer
    ids = torch.tensor([tokens.encode(f"{HEADER}{CAPTIONS[0]}{AFTER}[IMG]")])
    x = torch.cat([network.embed(ids), network.queries], 1)
    with blip3o.use_role("generator"):
        hidden = network.vlm.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state[:, -4:]
        mine = blip3o._condition(CAPTIONS)[:1]  # padded beside a longer prompt
    assert torch.allclose(hidden, mine, atol=1e-5)


def test_dropped_conditions_are_zeros_and_follow_the_seed(blip3o):
    codes = blip3o.encode_images([Image.new("RGB", (24, 24), "red")] * 8)
    prompts, noise = CAPTIONS * 4, NoiseSpec(torch.full((8, 1), 0.5), list(range(8)))
    stats = lambda p: blip3o.generation_stats(prompts, codes, role=None, noise=noise, condition_dropout=p).loss
    kept, none, half = stats(0.0), stats(1.0), stats(0.5)
    dropped = half == none
    assert 0 < dropped.sum() < 8 and torch.equal(half[~dropped], kept[~dropped]) and torch.equal(half, stats(0.5))
    assert not torch.equal(kept, none)


def test_generation_needs_one_row_of_noise_per_drawing(blip3o):
    codes = torch.zeros(2, 112, 2, 2)
    for noise in (None, NoiseSpec(torch.rand(1, 1), [1]), NoiseSpec(torch.rand(2, 1), [1])):
        with pytest.raises(ValueError, match="NoiseSpec"):
            blip3o.generation_stats(CAPTIONS, codes, role=None, noise=noise)
    with pytest.raises(ValueError, match="as many seeds"):
        blip3o.generate_images(CAPTIONS, seeds=[1], role=None)


# -- pixels and features -----------------------------------------------------------------------------------------------
def test_pixels_follow_codes_and_seed_and_no_adapter(blip3o):
    backbone, codes = Blip3o.load("random"), torch.randn(2, 112, 2, 2, generator=torch.Generator().manual_seed(1))
    before = [np.asarray(image) for image in backbone.decode_images(codes, [1, 2])]
    perturb(backbone, ROLES, seed=1)
    backbone._away = None
    again = backbone.decode_images(codes, [1, 2])
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(before, again, strict=True))
    assert not np.array_equal(before[0], np.asarray(backbone.decode_images(codes[1:], [1])[0]))
    assert not np.array_equal(before[0], np.asarray(backbone.decode_images(codes[:1], [2])[0]))
    assert again[0].size == (32, 32) and backbone.decode_images(codes[:1], [1], side=20)[0].size == (20, 20)
    assert NEGATIVE == " " and backbone._negative().shape == (1, 4, 112)


@torch.no_grad()
def test_encoder_by_hand():
    encoder = EvaEncoder(side=32, patch=4, width=112, depth=1, inner=8, grid=2)
    for block in encoder.blocks:
        nn.init.zeros_(block.norm1.weight)
        nn.init.zeros_(block.norm2.weight)  # both branches end in their norm: the block adds nothing
    nn.init.normal_(encoder.pos_embed)
    pixels = torch.randn(1, 3, 32, 32)
    patches = encoder.patch_embed["proj"](pixels) + encoder.pos_embed[0, 1:].T.reshape(112, 8, 8)
    assert torch.allclose(encoder(pixels)[0, :, 0, 1], patches[0, :, :4, 4:].mean((1, 2)), atol=1e-5)
    white = normalised([Image.new("RGB", (8, 8), "white")], 4)[0, :, 0, 0]
    assert torch.allclose(white, (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073]))
                          / torch.tensor([0.26862954, 0.26130258, 0.27577711]))
    with pytest.raises(ValueError, match="cannot be averaged"):
        EvaEncoder(side=32, patch=4, width=112, depth=1, inner=8, grid=3)


# -- files -------------------------------------------------------------------------------------------------------------
def published(name: str) -> str:
    """The released name of one of our tensors: the inverse of `rename`, by hand."""
    for start, theirs in (("vlm.model.visual.", "visual."), ("vlm.model.language_model.", "model."), ("vlm.", ""),
                          ("caption_projection.", "model.dit.model.caption_projection."),
                          ("dit.", "model.dit.model."), ("queries", "model.latent_queries")):
        if name.startswith(start):
            return theirs + name.removeprefix(start)
    raise AssertionError(name)


def write_published(folder) -> None:
    """The tiny instance, laid out as the released model."""
    parts = random_parts()
    folder.mkdir(exist_ok=True)
    parts.tokenizer.save_pretrained(folder)
    settings = tiny_settings(len(parts.tokenizer))
    (folder / "config.json").write_text(json.dumps(
        {**settings, "model_type": "blip3o_qwen", "n_query": 4, "gen_pooling": "early_pool2d_4"}))
    tensors = {published(name): t.contiguous() for name, t in parts.network.state_dict().items()}
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"model-0000{i + 1}-of-00002.safetensors")
    home = folder / "diffusion-decoder"
    parts.decoder.unet.save_pretrained(home / "unet", variant="bf16")
    parts.decoder.vae.save_pretrained(home / "vae", variant="bf16")
    (home / "scheduler").mkdir()
    (home / "scheduler" / "scheduler_config.json").write_text(json.dumps(EULER))
    (folder / EVA_FILE).parent.mkdir()
    torch.save(parts.eva.state_dict() | {"norm.weight": torch.ones(112), "head.bias": torch.ones(3)}, folder / EVA_FILE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip3o") / "BLIP3o-Model-8B"
    write_published(path)
    return path


def outputs(backbone: Blip3o, images) -> list[torch.Tensor]:
    codes = backbone.encode_images(images)
    read = backbone.text_stats(images, ["Is there a tree?"] * 2, [" no", " two"], role="solver").logp
    drawn = backbone.generate_images(CAPTIONS, seeds=[1, 2], role="generator")
    pixels = [torch.from_numpy(np.array(image)) for image in drawn.images]
    return [read, codes, drawn.codes, *pixels]


def test_the_published_layout_loads_to_the_same_model(blip3o, folder, images):
    assert all(any(folder.glob(name)) for name in FILES)
    backbone = Blip3o.load(str(folder))
    backbone.sampler = blip3o.sampler
    assert backbone.spec == replace(blip3o.spec, max_new_tokens=128)
    for mine, theirs in zip(outputs(backbone, images), outputs(blip3o, images), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("old", "new"), [
    ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.over_proj.weight"),
    ("model.dit.model.layers.1.attn2.to_q.weight", "model.dit.model.layers.1.attn2.to_w.weight"),
    ("model.latent_queries", "model.latent_answers"), ("visual.merger.ln_q.weight", "visual.merger.ln_p.weight"),
])
def test_a_renamed_tensor_raises_with_both_names(folder, tmp_path, old, new):
    for item in folder.iterdir():
        (tmp_path / item.name).symlink_to(item)
    shard = next(path for path in sorted(tmp_path.glob("model*.safetensors")) if old in load_file(path))
    tensors = load_file(shard)
    tensors[new] = tensors.pop(old)
    shard.unlink()
    save_file(tensors, shard)
    with pytest.raises(UnmatchedTensors) as raised:
        Blip3o.load(str(tmp_path))
    assert f"1 missing: {rename(old)}" in str(raised.value) and f"1 unexpected: {new}" in str(raised.value)


def test_without_its_file_each_half_says_what_it_lacks_and_the_rest_works(folder, tmp_path, images):
    for item in folder.iterdir():
        if item.name not in ("diffusion-decoder", "eva_clip_vision_tower"):
            (tmp_path / item.name).symlink_to(item)
    backbone = Blip3o.load(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pytorch_model.bin is missing.*generator.target=source_image"):
        backbone.encode_images(images)
    with pytest.raises(FileNotFoundError, match=r"lacks diffusion-decoder/unet/config.json, .*judges"):
        backbone.generate_images(CAPTIONS, seeds=[1, 2], role="generator")
    assert backbone.generation_stats(CAPTIONS, torch.zeros(2, 112, 2, 2), role=None, noise=NOISE).loss.shape == (2,)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks tokenizer.json"):
        Blip3o.load(str(tmp_path))


def test_the_encoder_may_lie_in_the_checkpoint(folder, tmp_path, blip3o, images):
    for item in folder.iterdir():
        if item.name != "eva_clip_vision_tower":
            (tmp_path / item.name).symlink_to(item)
    save_file({EVA_INSIDE + name: t for name, t in random_parts().eva.state_dict().items()},
              tmp_path / "model-extra.safetensors")
    assert torch.equal(Blip3o.load(str(tmp_path)).encode_images(images), blip3o.encode_images(images))


def test_half_precision_keeps_rotary_frequencies_and_adapters(folder, images):
    for base in ("random", str(folder)):
        backbone = Blip3o.load(base, precision="bf16")
        network = backbone.network
        frozen = {p.dtype for n, p in network.named_parameters() if "lora_" not in n}
        assert frozen == {torch.bfloat16} and {p.dtype for p in network.buffers()} == {torch.float32, torch.complex64}
        assert {p.dtype for role in ROLES for p in backbone.role_parameters(role)} == {torch.float32}
        codes = backbone.encode_images(images)
        loss = backbone.generation_stats(CAPTIONS, codes, role="generator", noise=NOISE, grad=True).loss
        loss.sum().backward()
        assert codes.dtype == torch.float32 and loss.isfinite().all()
    backbone.sampler = replace(backbone.sampler, steps=2, decoder_steps=2)
    assert len(backbone.generate_images(CAPTIONS, seeds=[1, 2], role="generator").images) == 2
    texts = backbone.answer(backbone.prefix(images, role="solver"), ["Is the door open?"] * 2, max_new_tokens=2).texts
    assert len(texts) == 2


def test_published_sizes():
    model = full_size()
    count = lambda module: sum(p.numel() for p in module.parameters())
    network = model["network"]
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert round(count(network.vlm) / 1e9, 3) == 8.292
    assert round((count(network.dit) + count(network.caption_projection)) / 1e9, 3) == 1.365
    assert 4.3e9 < count(model["eva"]) < 4.5e9 and 2.5e9 < count(model["decoder"]) < 2.8e9


# -- released adapters -------------------------------------------------------------------------------------------------
def peft_name(name: str) -> str:
    """The released name of an adapter tensor."""
    if name.startswith(("dit.", "caption_projection.")):
        return "base_model.model.model." + name.removeprefix("dit.")
    return "base_model.model." + published(name)


def write_adapter(folder, tensors: dict[str, torch.Tensor], **settings) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(
        {"r": 8, "lora_alpha": 16, "bias": "none", "use_dora": False, "rank_pattern": {}, **settings}))
    save_file({peft_name(name): t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors")


def named(backbone: Blip3o, role: str) -> dict[str, torch.Tensor]:
    return {n.replace(f".{role}.", "."): p.detach().clone() for n, p in backbone.network.named_parameters()
            if f".{role}." in n}


@pytest.fixture(scope="module")
def trained():
    """Released targets with noise in every adapter, and merger adapters of rank 4 in the Solver."""
    backbone = Blip3o.load("random", targets="released")
    perturb(backbone, ROLES, seed=5)
    for name, p in backbone.network.named_parameters():
        if "merger" in name and ".solver." in name:
            p.data[(slice(4, None), slice(None)) if "lora_A" in name else (slice(None), slice(4, None))] = 0.0
    return backbone


@pytest.fixture(scope="module")
def step(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "step_00050"
    for role in ROLES:
        tensors = named(trained, role)
        text = {n: t for n, t in tensors.items() if n.startswith("vlm.")}
        if role == "solver":
            small = {n: (t[:4] if "lora_A" in n else t[:, :4]) if "merger" in n else t for n, t in text.items()}
            keys = ["visual.merger.mlp.0", "visual.merger.mlp.2"]
            write_adapter(path / "solver", small, rank_pattern=dict.fromkeys(keys, 4),
                          alpha_pattern=dict.fromkeys(keys, 8))
        else:
            write_adapter(path / role / role, text)
        if role == "generator":
            write_adapter(path / "dit_lora", {n: t for n, t in tensors.items() if n not in text})
    return path


def test_released_roles_load_exactly(trained, step):
    backbone = Blip3o.load("random", targets="released")
    for role in ROLES:
        read = backbone.load_released(role, step)
        want, have = named(trained, role), named(backbone, role)
        assert read == {"tensors": len(want), "zero": 0}
        assert all(torch.equal(have[name], want[name]) for name in want), role


def test_what_the_checkpoint_does_not_adapt_is_the_base(step, tmp_path):
    (tmp_path / "generator").symlink_to(step / "generator")  # a run that did not update its drawing transformer
    backbone = Blip3o.load("random", targets="released")
    perturb(backbone, ROLES, seed=6)
    backbone.load_released("generator", tmp_path)
    left = {n: t for n, t in named(backbone, "generator").items() if not n.startswith("vlm.") and "lora_B" in n}
    assert left and not any(t.any() for t in left.values())


def test_released_adapters_that_do_not_fit_raise_and_change_nothing(blip3o, step, tmp_path):
    before = [p.clone() for role in ROLES for p in blip3o.role_parameters(role)]
    with pytest.raises(UnmatchedTensors, match='unexpected.*targets="released"'):
        blip3o.load_released("solver", step)
    with pytest.raises(FileNotFoundError, match="no adapter in solver/default or solver"):
        blip3o.load_released("solver", tmp_path)
    tensors = named(blip3o, "proposer")
    first = min(tensors)
    tensors[first.replace("mlp", "other")] = tensors.pop(first)
    write_adapter(tmp_path / "proposer", tensors)
    with pytest.raises(UnmatchedTensors, match="1 unexpected .*1 missing"):
        blip3o.load_released("proposer", tmp_path)
    for place, settings, message in (
        ("solver", {"use_dora": True}, "not plain LoRA"),
        ("generator", {"r": 16}, "rank 16 and alpha 16 do not fit.* 8 and 16.*lora_rank=16, lora_alpha=16"),
        ("solver/default", {"alpha_pattern": {"visual.merger.mlp.0": 32}}, "rank 8 and alpha 32 do not fit"),
    ):
        write_adapter(tmp_path / place, {}, **settings)
        with pytest.raises(ValueError, match=message):
            blip3o.load_released("generator" if "gen" in place else "solver", tmp_path)
    after = [p for role in ROLES for p in blip3o.role_parameters(role)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
