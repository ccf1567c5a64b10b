"""BAGEL: positions and steps by hand, the protocol, files read tensor by tensor, adapters where they belong."""

import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from asgkit.backbones import ROLES, load_backbone
from asgkit.backbones.bagel import FILES, SOURCE, Bagel, Sampling, convert_released, full_size
from asgkit.backbones.bagel.config import FULL, guided
from asgkit.backbones.bagel.mot import causal, routed, turned, wheels
from asgkit.backbones.bagel.network import BagelNetwork, TimeEmbedder, waves_2d
from asgkit.backbones.bagel.vision import patchify, table_rows, unpatchify
from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.chat import PROMPTS
from asgkit.backbones.conformance import assert_conforms
from asgkit.backbones.conformance_checks import perturb
from asgkit.backbones.noise import row_normals
from asgkit.backbones.weights import UnmatchedTensors

NOISE = NoiseSpec(torch.tensor([[0.3, 0.7], [0.5, 0.9]]), [1, 2])


@pytest.fixture(scope="module")
def model():
    """One tiny instance; tests that change weights open their own."""
    return Bagel.load("random")


# -- numbers by hand -----------------------------------------------------------------------------------------------
def test_times_are_warped_towards_noise():
    # t' = 3 t / (1 + 2 t) at t = 1, 3/4, 1/2, 1/4, 0
    assert torch.allclose(Sampling(points=5).times(), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0]))
    assert Sampling(points=3, shift=1.0).times().tolist() == [1.0, 0.5, 0.0]


def test_guidance_acts_in_an_interval_open_below():
    assert [Sampling().guides(t) for t in (0.39, 0.4, 0.41, 1.0)] == [False, False, True, True]


def test_guided_velocities_are_never_longer_than_the_unguided():
    given = torch.tensor([[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]])
    free = torch.tensor([[0.0, 0.0], [6.0, 8.0], [3.0, 4.0]])
    # row 0: u + 2 (c - u) = (6, 8), length 10, shrunk to 5; row 1: (0, 0) stays; row 2: c itself
    want = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0]])
    assert torch.allclose(guided(given, free, 2.0, 0.0), want)
    assert torch.allclose(guided(given, free, 2.0, 1.0)[0], torch.tensor([6.0, 8.0]))


def test_fixed_positions_hold_the_column_before_the_row():
    table = waves_2d(3, 8)  # cell 5 = row 1, column 2; rates 1 and 1/100
    want = [math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02), math.sin(1), math.sin(0.01), math.cos(1),
            math.cos(0.01)]
    assert table.shape == (9, 8) and torch.allclose(table[5], torch.tensor(want))


def test_times_become_cosines_then_sines():
    embed = TimeEmbedder(4)
    with torch.no_grad():
        embed.mlp[0].weight.zero_()
        embed.mlp[0].weight[0, 0] = 1.0  # cos of the first rate, which is 1
        embed.mlp[0].weight[1, 128] = 1.0  # its sine
        embed.mlp[0].bias.zero_()
    inner = embed.mlp[0](torch.cat([torch.full((1, 128), math.cos(0.5)), torch.full((1, 128), math.sin(0.5))], 1))
    assert torch.allclose(embed(torch.tensor([0.5])), embed.mlp[1:](inner), atol=1e-6)


def test_patches_run_by_row_and_within_a_patch_by_row_column_channel():
    grid = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4).float()
    tokens = patchify(grid, 2)
    assert tokens[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]  # the patch on the right of the first row
    assert torch.equal(unpatchify(tokens, 2), grid)
    assert table_rows(2, 70, torch.device("cpu")).tolist() == [0, 1, 70, 71]


def test_rotary_positions_turn_pairs_half_a_head_apart():
    x = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    out = turned(x, wheels(torch.tensor([[2]]), 4, 100.0))  # rates 1 and 1/10
    assert torch.allclose(out.flatten(), torch.tensor([math.cos(2), 0.0, math.sin(2), 0.0]))


def test_words_see_the_past_and_what_came_before_them():
    mask = torch.tensor([[False, True, True]])
    want = [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]  # two keys of the past; padding sees itself alone
    assert causal(mask, 2, None)[0, 0].int().tolist() == want
    assert not causal(mask, 2, torch.tensor([[True, False]]))[0, 0, :, 1].any()


def test_tokens_are_routed_by_kind():
    x = torch.ones(1, 3, 1)
    assert routed(x, 1, lambda h: h * 2, lambda h: h * 3).flatten().tolist() == [2, 3, 3]
    assert routed(x, 3, lambda h: h * 2, None).flatten().tolist() == [2, 2, 2]


@pytest.mark.parametrize(("side", "view"), [(512, 37 * 14), (1024, 70 * 14), (5, 14)])
def test_images_are_encoded_at_whole_patches_of_the_table(side, view):
    assert FULL.vision.view_side(side) == view


# -- the protocol --------------------------------------------------------------------------------------------------
def test_the_tiny_instance_keeps_every_promise(pictures):
    model = Bagel.load("random")
    assert sum(p.numel() for p in model.network.parameters()) < 3e6
    assert_conforms(model, pictures)


def test_it_opens_by_name_and_says_what_it_is():
    model = load_backbone("bagel", base="random", lora_rank=4)
    spec = model.spec
    assert (spec.name, spec.paradigm, spec.times) == ("bagel", "flow", "logit_normal")
    assert (spec.image_side, spec.code_shape, spec.prompts) == (32, (4, 4, 4), PROMPTS)
    with pytest.raises(ValueError, match="bagel ships no weights"):
        load_backbone("bagel")
    with pytest.raises(ValueError, match="precision 'fp16'"):
        load_backbone("bagel", base="random", precision="fp16")
    with pytest.raises(ValueError, match="image_side 40 must be a multiple of 16 up to 64"):
        Bagel.load("random", image_side=40)


def test_base_weights_do_not_follow_the_seed_of_the_adapters(model):
    other = Bagel.load("random", seed=7)
    state = other.network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, state[name]) or ".lora_A." in name, name


def test_prompts_are_turns_without_chat_roles(model):
    encode = model.tokenizer.encode
    ids, mask = model.tokenizer.batch(["a", "bc"], left=True)
    assert ids[1].tolist() == encode("<|im_start|>bc<|im_end|><|im_start|>") and mask[1].all()
    captions, shown = model.tokenizer.captions(["a", "bc"])
    assert captions[0, 1:].tolist() == encode("<|im_start|>a<|im_end|>") and shown.sum(1).tolist() == [3, 4]


def test_adapters_sit_where_a_role_may_learn(model):
    names = {role: {name.rsplit(".lora_", 1)[0] for name in model.roles._named[role]} for role in ROLES}
    parts = {role: {re.sub(r".*layers\.\d+\.", "", name) for name in found} for role, found in names.items()}
    read = {f"self_attn.{x}_proj" for x in "qkvo"} | {f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    draw = {f"self_attn.{x}_proj_moe_gen" for x in "qkvo"} | {f"mlp_moe_gen.{x}_proj" for x in ("gate", "up", "down")}
    assert parts == {"proposer": read, "solver": read, "generator": draw}
    assert all(name.startswith("language_model.model.layers.") for found in names.values() for name in found)
    assert [len(found) for found in names.values()] == [14, 14, 14]  # two layers


def test_a_caption_is_read_once_per_call(model, monkeypatch):
    passes = []
    monkeypatch.setattr(model, "read", lambda *args: passes.append(args) or type(model).read(model, *args))
    model.generate_images(["a cat", "a dog and a tree"], seeds=[1, 2], role="generator")
    assert len(passes) == 1


def test_a_chunk_changes_no_drawing(model, monkeypatch):
    prompts, seeds = ["a cat", "a dog and a tree", "two balls"], [1, 2, 3]
    codes = model.generate_images(prompts, seeds=seeds, role=None).codes
    loss = model.generation_stats(prompts[:2], codes[:2], role=None, noise=NOISE).loss
    monkeypatch.setattr(model, "drawn_at_once", 1)
    assert torch.allclose(model.generate_images(prompts, seeds=seeds, role=None).codes, codes, atol=1e-5)
    assert torch.allclose(model.generation_stats(prompts[:2], codes[:2], role=None, noise=NOISE).loss, loss, atol=1e-5)


def test_guidance_temperature_and_captions_change_drawings(model):
    draw = lambda prompt, **settings: model.generate_images([prompt], seeds=[1], role=None, **settings).codes
    plain = draw("a cat", guidance=1.0)
    others = draw("a cat"), draw("a dog", guidance=1.0), draw("a cat", guidance=1.0, temperature=0.5)
    assert all((other - plain).abs().max() > 1e-3 for other in others)
    with pytest.raises(ValueError, match="guidance 0.5"):
        draw("a cat", guidance=0.5)
    with pytest.raises(ValueError, match="1 prompts need as many seeds"):
        model.generate_images(["a cat"], seeds=[1, 2], role=None)
    with pytest.raises(ValueError, match="NoiseSpec"):
        model.generation_stats(["a cat"], plain, role=None)


def test_one_euler_step_is_noise_minus_velocity():
    one = Bagel.load("random", sampling=Sampling(points=2, guidance=1.0))
    noise = row_normals([4], one.spec.code_shape)
    codes = one.generate_images(["a cat"], seeds=[4], role=None).codes
    # at t = 1 the noised latent is the noise itself, whatever the picture
    stats = one.generation_stats(["a cat"], torch.zeros_like(noise), role=None,
                                 noise=NoiseSpec(torch.ones(1, 1), [4]))
    assert torch.allclose(codes, noise - stats.pred[:, 0], atol=1e-5)


def test_the_target_is_noise_minus_picture(model, pictures):
    codes = model.encode_images(pictures[:2])
    stats = model.generation_stats(["a", "b"], codes, role=None, noise=NOISE)
    assert stats.target.shape == (2, 2, *model.spec.code_shape)
    again = model.generation_stats(["a", "b"], codes + 1, role=None, noise=NOISE)
    assert torch.allclose(again.target, stats.target - 1, atol=1e-5)


def test_half_precision_is_close_and_leaves_adapters_and_autoencoder_alone(model, pictures):
    half = Bagel.load("random", precision="bf16")
    kinds = {name.split(".")[0]: p.dtype for name, p in half.network.named_parameters() if ".lora_" not in name}
    assert kinds.pop("autoencoder") == torch.float32 and set(kinds.values()) == {torch.bfloat16}
    assert {p.dtype for role in ROLES for p in half.role_parameters(role)} == {torch.float32}
    codes = half.encode_images(pictures[:2])
    assert torch.equal(codes, model.encode_images(pictures[:2]))
    perturb(half, ROLES, 0)
    loss = half.generation_stats(["a", "b"], codes, role="generator", noise=NOISE, grad=True).loss
    loss.sum().backward()
    assert all(p.grad is not None for p in half.role_parameters("generator"))
    base = [m.generation_stats(["a", "b"], codes, role=None, noise=NOISE).loss for m in (half, model)]
    assert torch.allclose(base[0], base[1], rtol=0.02)
    words = [m.text_stats(pictures[:2], ["a?", "b?"], [" yes", " no"], role=None).logp for m in (half, model)]
    assert torch.allclose(words[0], words[1], atol=0.2)


# -- files ---------------------------------------------------------------------------------------------------------
def published_name(name: str, levels: int) -> str:
    """The name that the autoencoder's file has for a tensor of diffusers' module."""
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    for ours, theirs in (("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("conv_norm_out", "norm_out"),
                         ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), ("conv_shortcut", "nin_shortcut"),
                         ("mid_block.attentions.0.to_", "mid.attn_1.")):
        name = name.replace(ours, theirs)
    return name


def publish(model: Bagel, folder) -> None:
    """Write a model's base in the published layout: the same files, keys and shapes."""
    sizes, weights, pictures = model.network.sizes, {}, {}
    for name, tensor in model.network.state_dict().items():
        if name.startswith("autoencoder."):
            name = published_name(name.removeprefix("autoencoder."), len(sizes.drawing.blocks))
            kernel = "attn_1" in name and name.endswith("weight") and "norm" not in name
            pictures[name] = tensor[:, :, None, None].contiguous() if kernel else tensor
        elif ".lora_" not in name:
            weights[name.replace(".base_layer.", ".")] = tensor
    save_file(weights, folder / "ema.safetensors")
    save_file(pictures, folder / "ae.safetensors")
    model.tokenizer.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    text, vision = sizes.text, sizes.vision
    (folder / "llm_config.json").write_text(json.dumps(
        {"hidden_size": text.width, "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
         "num_key_value_heads": text.kv_heads, "intermediate_size": text.mlp, "vocab_size": text.vocabulary,
         "rope_theta": text.theta, "rms_norm_eps": text.eps}))
    (folder / "vit_config.json").write_text(json.dumps(
        {"hidden_size": vision.width, "num_hidden_layers": vision.layers + 1, "num_attention_heads": vision.heads,
         "intermediate_size": vision.mlp, "patch_size": vision.patch, "image_size": vision.patch * vision.side}))


@pytest.fixture
def folder(model, tmp_path):
    publish(model, tmp_path)
    return tmp_path


def open_published(model, folder):
    return Bagel.load(str(folder), drawing=model.network.sizes.drawing, image_side=32, sampling=model.sampling)


def test_a_folder_in_the_published_layout_gives_the_same_model(model, folder, pictures):
    assert {path.name for path in folder.iterdir()} == FILES.keys()
    loaded = open_published(model, folder)
    assert asdict(loaded.network.sizes) == asdict(model.network.sizes)
    state = loaded.network.state_dict()
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    both = [m.text_stats(pictures[:2], ["a?", "b?"], [" yes", " no"], role=None).logp for m in (model, loaded)]
    drawn = [m.generate_images(["a cat"], seeds=[3], role="generator") for m in (model, loaded)]
    assert torch.equal(*both) and torch.equal(drawn[0].codes, drawn[1].codes)
    assert drawn[0].images[0].tobytes() == drawn[1].images[0].tobytes()


RENAMED = [("ema.safetensors", "language_model.model.layers.1.mlp_moe_gen.up_proj.weight"),
           ("ae.safetensors", "decoder.up.2.block.1.conv1.weight"), ("ae.safetensors", "encoder.mid.attn_1.q.bias"),
           ("ae.safetensors", "decoder.up.1.upsample.conv.bias"), ("ae.safetensors", "encoder.conv_in.weight")]


@pytest.mark.parametrize(("file", "name"), RENAMED)
def test_a_renamed_tensor_is_listed(model, folder, file, name):
    tensors = load_file(folder / file)
    tensors["renamed.weight"] = tensors.pop(name)
    save_file(tensors, folder / file)
    with pytest.raises(UnmatchedTensors, match=re.escape(name) if file[0] == "e" else r"renamed\.weight|upsample"):
        open_published(model, folder)


def test_missing_files_and_entries_are_named(model, folder):
    (folder / "vit_config.json").write_text('{"hidden_size": 32}')
    with pytest.raises(ValueError, match="vit_config.json lacks num_hidden_layers, num_attention_heads"):
        open_published(model, folder)
    (folder / "ae.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks ae.safetensors: copy them from ByteDance-Seed"):
        open_published(model, folder)
    assert "not verified" in SOURCE


def test_a_tokenizer_of_another_model_is_refused(model, folder):
    text = (folder / "tokenizer.json").read_text().replace("<|vision_start|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=r"tokenizer.json lacks <\|vision_start\|>: "):
        open_published(model, folder)


def test_the_full_network_has_the_published_size():
    network = full_size()
    count = lambda keep: sum(p.numel() for name, p in network.named_parameters() if keep(name))
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert round(count(lambda name: "moe_gen" in name) / 1e9, 2) == 6.53
    assert round(count(lambda name: "vit_model" in name) / 1e9, 2) == 0.40
    assert round(count(lambda name: not name.startswith(("vit_model", "autoencoder"))) / 1e9, 3) == 14.205


def test_layers_of_full_size_fit_together():
    one = replace(FULL, text=replace(FULL.text, layers=1), vision=replace(FULL.vision, layers=1))
    with torch.device("meta"):
        network, edges = BagelNetwork(one), torch.zeros(2, dtype=torch.int64)
    past = network.see(torch.zeros(2, 3, 518, 518, device="meta"), edges)
    assert past[0][0].shape == (2, 4, 2 + 37 * 37, 128)
    latents, start = torch.zeros(2, 16, 64, 64, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    assert network.velocity(latents, start.float(), edges, None, None, start).shape == latents.shape
    assert network.velocity(latents, start.float(), edges, past, None, start).shape == latents.shape


# -- released adapters ---------------------------------------------------------------------------------------------
def release(model: Bagel, folder, change=lambda payload: payload) -> None:
    """Write a model's adapters as the released code does: peft's names, one pickled dictionary of tensors per role."""
    for role in ROLES:
        state = {}
        for name, tensor in model.roles._named[role].items():
            head, tail = name.removeprefix("language_model.").rsplit(".", 1)
            state[f"base_model.model.{head}.{role}.{tail}"] = tensor.detach().bfloat16()
        payload = {"role": role, "adapter_name": role, "state_dict": state}
        torch.save(change(payload), folder / f"role_{role}.pt")


@pytest.fixture(scope="module")
def trained():
    model = Bagel.load("random", targets="released", rank=4, alpha=8)
    perturb(model, ROLES, 0)
    return model


def test_released_adapters_load_exactly(trained, tmp_path):
    release(trained, tmp_path)
    names = torch.load(tmp_path / "role_solver.pt", weights_only=True)["state_dict"]
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.solver.weight" in names
    assert "base_model.model.model.layers.1.mlp_moe_gen.up_proj.lora_B.solver.weight" in names
    assert len(names) == 2 * 2 * 10  # layers, A and B, modules
    fresh = Bagel.load("random", targets="released", rank=4, alpha=8)
    fresh.load_released(tmp_path)
    for role in ROLES:
        for a, b in zip(fresh.role_parameters(role), trained.role_parameters(role), strict=True):
            assert torch.equal(a, b.bfloat16().float())


def test_released_adapters_need_the_modules_and_the_rank_they_were_made_for(trained, tmp_path):
    release(trained, tmp_path)
    with pytest.raises(ValueError, match="targets='released'"):
        Bagel.load("random", rank=4).load_released(tmp_path)
    with pytest.raises(ValueError, match="another LoRA rank"):
        Bagel.load("random", targets="released", rank=8).load_released(tmp_path)
    (tmp_path / "role_solver.pt").unlink()
    with pytest.raises(FileNotFoundError, match="role_solver.pt"):
        trained.load_released(tmp_path)


def _without_one(payload):
    payload["state_dict"].popitem()
    return payload


def _foreign(payload):
    payload["state_dict"]["visual.weight"] = torch.zeros(1)
    return payload


class Code:
    """Stands for any object that a pickle would build by running code."""


@pytest.mark.parametrize(("change", "error", "message"), [
    (_without_one, KeyError, "missing tensors"), (_foreign, UnmatchedTensors, "visual.weight"),
    (lambda payload: payload | {"role": "critic"}, ValueError, "holds the role 'critic'"),
    (lambda payload: payload["state_dict"], ValueError, "no released role file"),
    (lambda payload: payload | {"hook": Code()}, ValueError, "holds more than tensors"),
])
def test_released_files_of_another_form_are_refused(trained, tmp_path, change, error, message):
    release(trained, tmp_path, change)
    with pytest.raises(error, match=message):
        trained.load_released(tmp_path)


def test_released_adapters_become_folders_of_this_kit(trained, tmp_path):
    release(trained, tmp_path)
    convert_released(tmp_path, tmp_path / "kit")
    stored = load_file(tmp_path / "kit" / "generator" / "adapter.safetensors")
    assert stored.keys() == trained.roles._named["generator"].keys()
