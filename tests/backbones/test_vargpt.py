"""VARGPT-v1.1: the protocol on a tiny random instance, positions, bits, the loader and the released adapters."""

import json
import re

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from asgkit.backbones import ROLES, Backbone, load_backbone
from asgkit.backbones.conformance import assert_conforms
from asgkit.backbones.conformance_checks import perturb
from asgkit.backbones.vargpt import FILES, Vargpt, full_size, load_released
from asgkit.backbones.vargpt.head import rotary, rotate
from asgkit.backbones.vargpt.network import publish, rename
from asgkit.backbones.vargpt.reading import TURN
from asgkit.backbones.vargpt.scales import Scales
from asgkit.backbones.weights import UnmatchedTensors

PROMPTS = ["Please draw a red ball", "a tree"]


@pytest.fixture(scope="module")
def vargpt():
    """A tiny instance with fresh adapters; tests that change weights open their own."""
    return load_backbone("vargpt", base="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vargpt):
    """The tiny instance as a folder in the published layout: the same file and tensor names, two shards."""
    folder = tmp_path_factory.mktemp("published")
    plain = re.compile(r"\.(base_layer)\b")
    tensors = {publish(plain.sub("", name)): t.contiguous() for name, t in vargpt.network.state_dict().items()
               if "lora_" not in name}
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name].clone() for name in part}, folder / f"model-0000{i + 1}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(vargpt.network.sizes.to_json()))
    vargpt.tokenizer.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


# -- the protocol ----------------------------------------------------------------------------------------------------
def test_it_keeps_every_promise(vargpt, pictures):
    assert_conforms(vargpt, pictures)
    assert isinstance(vargpt, Backbone) and isinstance(vargpt, Vargpt)
    assert vargpt.spec.code_shape == (14, 8) and vargpt.spec.image_side == 24
    assert sum(p.numel() for p in vargpt.network.parameters()) < 3e6


def test_adapters_sit_where_they_are_meant_to(vargpt):
    layers = {name: m for name, m in vargpt.network.named_modules() if isinstance(m, LoraLayer)}
    adapted = {role: {name for name, m in layers.items() if role in m.lora_A} for role in ROLES}
    words = {f"qwen.model.language_model.layers.{i}.{part}" for i in range(2) for part in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
        "mlp.down_proj")}
    head = {f"vargpt_gen.block_chunks.{i}.module.0.{part}" for i in range(2) for part in (
        "sa.mat_qkv", "sa.proj", "ca.mat_q", "ca.mat_kv", "ca.proj", "ffn.fc1", "ffn.fc2")}
    between = {f"image_gen_projector{end}.mlp.{i}" for end in ("", "_out") for i in (0, 2)}
    assert adapted == {"proposer": words, "solver": words, "generator": words | head | between}


def test_the_loss_of_a_drawing_reaches_every_adapter_of_the_generator(pictures):
    backbone = Vargpt.load()
    perturb(backbone, ["generator"], seed=1)
    codes = backbone.encode_images(pictures[:2])
    backbone.generation_stats(PROMPTS, codes, role="generator", grad=True).loss.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.role_parameters("generator"))


def test_a_greedy_drawing_is_the_likelier_bit_everywhere(vargpt):
    drawn = vargpt.generate_images(PROMPTS, seeds=[1, 2], role=None, guidance=1.0, temperature=0.0)
    stats = vargpt.generation_stats(PROMPTS, drawn.codes, role=None, keep_logits=True)
    assert torch.equal(stats.logits.argmax(-1), drawn.codes.flatten(1))
    assert stats.logits.shape == (2, 14 * 8, 2) and drawn.logp.min() >= -torch.tensor(2.0).log()
    assert [image.size for image in drawn.images] == [(24, 24)] * 2


def test_guidance_leads_away_from_the_null_prompt(vargpt):
    draw = lambda **how: vargpt.generate_images(PROMPTS * 4, seeds=range(8), role=None, **how)
    plain, guided, native = draw(guidance=1.0, temperature=1.0), draw(guidance=9.0, temperature=1.0), draw()
    assert not torch.equal(plain.codes, guided.codes)
    assert native.logp.mean() > plain.logp.mean()  # temperature 0.5: likelier bits
    with pytest.raises(ValueError, match="guidance knows 512 at most"):
        vargpt.generate_images(["x" * 600], seeds=[1], role=None)


def test_chunks_of_drawings_change_nothing(vargpt, monkeypatch):
    whole = vargpt.generate_images(PROMPTS + ["a"], seeds=[1, 2, 3], role=None)
    monkeypatch.setattr(vargpt, "drawings_at_once", 2)
    parts = vargpt.generate_images(PROMPTS + ["a"], seeds=[1, 2, 3], role=None)
    assert torch.equal(whole.codes, parts.codes) and torch.allclose(whole.logp, parts.logp, atol=1e-5)


def test_wrong_inputs_are_refused(vargpt):
    codes = torch.zeros(1, 14, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"codes \(1, 112\) must be bits \(1, 14, 8\)"):
        vargpt.generation_stats(["a"], codes.flatten(1), role=None)
    with pytest.raises(ValueError, match="takes no noise"):
        vargpt.generation_stats(["a"], codes, role=None, noise=object())
    with pytest.raises(ValueError, match="need as many seeds"):
        vargpt.generate_images(["a"], seeds=[], role=None)


# -- reading ---------------------------------------------------------------------------------------------------------
def test_text_logits_are_those_of_transformers(vargpt, pictures):
    """Positions, image tokens and layout agree with transformers' own forward pass over the whole chat."""
    qwen, prompt, text = vargpt.network.qwen, "What is in the middle?", " a cat two"
    ours = vargpt.text_stats(pictures[:1], [prompt], [text], role=None, keep_logits=True).logits[0]
    tail = vargpt.tokenizer.encode(prompt + TURN) + vargpt.tokenizer.encode(text)
    ids = torch.tensor([[*vargpt._head, vargpt._before, *[vargpt._within] * 9, vargpt._behind, *tail]])
    qwen.config.image_token_id = qwen.model.config.image_token_id = vargpt._within
    qwen.model.config.vision_start_token_id = vargpt._before
    made = vargpt._eye(images=pictures[:1], return_tensors="pt")
    with torch.no_grad(), vargpt.use_role(None):
        theirs = qwen(input_ids=ids, attention_mask=torch.ones_like(ids), **made,
                      mm_token_type_ids=(ids == vargpt._within).int()).logits[0]
        again = vargpt.text_stats(pictures[:1], [prompt], [text], role=None, keep_logits=True).logits[0]
    length = len(vargpt.tokenizer.encode(text)) + 1
    assert torch.allclose(theirs[-length:], ours[:length], atol=1e-5)
    assert torch.equal(ours, again)  # what another pass left on the module has no effect


# -- bits ------------------------------------------------------------------------------------------------------------
def test_bits_of_two_grids_by_hand():
    scales = Scales((1, 2), bits=1)
    assert scales.positions == 5 and scales.parts == (slice(0, 1), slice(1, 5))
    assert scales.levels().tolist() == [0, 1, 1, 1, 1]
    features = torch.tensor([[[[3.0, 0.5], [-1.0, 0.5]]]])  # mean 0.75: bit 1, what is missing 2, -0.5, -2, -0.5
    codes = scales.encode(features)
    assert codes[0, :, 0].tolist() == [1, 1, 0, 0, 0]
    assert scales.inputs(codes)[0, :, 0].tolist() == [1.0] * 4  # the second grid sees the first alone
    assert scales.canvas(codes)[0, 0].tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_the_sampler_reads_the_canvas_that_teacher_forcing_reads():
    scales = Scales((1, 2, 3), bits=4)
    codes = torch.randint(0, 2, (2, 14, 4), generator=torch.Generator().manual_seed(0))
    canvas, seen = 0.0, []
    for i, part in enumerate(scales.parts[:-1]):
        canvas = scales.grow(canvas, codes[:, part], i)
        seen.append(scales.view(canvas, i + 1))
    assert torch.equal(torch.cat(seen, 1), scales.inputs(codes))
    flipped = codes.clone()
    flipped[:, scales.parts[-1]] ^= 1
    assert torch.equal(scales.inputs(flipped), scales.inputs(codes))  # the last grid is read by nobody
    assert scales.canvas(codes).norm(dim=1).max() <= 3.0 + 1e-5  # a sum of three points of the unit sphere


def test_rotary_positions_span_one_square():
    cos, sin = rotary((1, 2), grid=64, width=8, device=torch.device("cpu"))
    turns = torch.atan2(sin, cos)  # two pairs of the row, two of the column; rates 1 and 0.01
    assert torch.allclose(turns[0], torch.zeros(4))
    angle = torch.tensor([torch.remainder(torch.tensor(32.0), 2 * torch.pi), 0.32])
    angle[0] -= 2 * torch.pi * (angle[0] > torch.pi)
    assert torch.allclose(turns[2], torch.tensor([0.0, 0.0, *angle]), atol=1e-5)  # row 0, column 1 of two: 32 of 64
    assert torch.allclose(turns[3], torch.tensor([*angle, 0.0, 0.0]), atol=1e-5)
    x = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(rotate(x, cos, sin).norm(dim=-1), x.norm(dim=-1), atol=1e-5)


def test_the_autoencoder_learns_nothing_of_the_batch(vargpt, pictures):
    both, one = vargpt.encode_images(pictures[:2]), vargpt.encode_images(pictures[1:2])
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])
    assert set(both.unique().tolist()) == {0, 1}


# -- files -----------------------------------------------------------------------------------------------------------
def test_a_folder_in_the_published_layout_gives_the_same_model(vargpt, folder, pictures):
    loaded = load_backbone("vargpt", base=str(folder))
    ask = {"role": None, "keep_logits": True}
    here, there = (b.text_stats(pictures[:1], ["Is the door open?"], [" yes"], **ask).logits for b in (vargpt, loaded))
    assert torch.equal(here, there)
    codes = vargpt.encode_images(pictures[:1])
    assert torch.equal(codes, loaded.encode_images(pictures[:1]))
    assert torch.equal(*(b.generation_stats(["a"], codes, **ask).logits for b in (vargpt, loaded)))
    names = {name for shard in folder.glob("*.safetensors") for name in load_file(shard)}
    assert {"visual.patch_embed.proj.weight", "model.layers.0.self_attn.q_proj.bias", "lm_head.weight",
            "vargpt_gen.block_chunks.0.module.0.sa.scale_mul_1H11", "vargpt_gen.text_proj_for_sos.ca.mat_q",
            "vae_local.encoder.down.0.downsample.conv.conv.weight", "vae_local.decoder.up.1.upsample.conv.conv.weight",
            "vae_local.quantizer.lfq.mask", "image_gen_projector.ln_q.weight", "sos_embedding.weight"} <= names
    assert all(publish(rename(name)) == name for name in names)


def test_a_renamed_tensor_is_listed(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = min(tmp_path.glob("*.safetensors"))
    tensors = load_file(shard)
    name = next(name for name in sorted(tensors) if ".sa.proj.weight" in name)
    tensors["vargpt_gen.renamed"] = tensors.pop(name)
    save_file(tensors, shard)
    with pytest.raises(UnmatchedTensors, match=f"1 missing: {name}; 1 unexpected: vargpt_gen.renamed"):
        Vargpt.load(str(tmp_path))


def test_missing_files_and_a_foreign_tokenizer_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json, .*tokenizer.json: copy them from VARGPT-family"):
        Vargpt.load(str(tmp_path))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    raw = json.loads((folder / "config.json").read_text())
    raw["special_tokens"]["image_gen_start_token_id"] += 1
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="the two files are not of one model"):
        Vargpt.load(str(tmp_path))
    del raw["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(KeyError, match="config.json has no hidden_size"):
        Vargpt.load(str(tmp_path))
    assert set(FILES) == {"config.json", "*.safetensors", "tokenizer.json"}


def test_half_precision_keeps_adapters_bits_and_frequencies(vargpt, pictures):
    half = load_backbone("vargpt", base="random", precision="bf16")
    frozen = {name: p.dtype for name, p in half.network.named_parameters() if "lora_" not in name}
    assert {d for name, d in frozen.items() if not name.startswith("vae_local")} == {torch.bfloat16}
    assert {d for name, d in frozen.items() if name.startswith("vae_local")} == {torch.float32}
    assert {p.dtype for p in half.role_parameters("generator")} == {torch.float32}
    rates = {name: b for name, b in half.network.named_buffers() if name.endswith("inv_freq")}
    own = dict(vargpt.network.named_buffers())
    assert rates and all(torch.equal(b, own[name]) for name, b in rates.items())
    assert torch.equal(half.encode_images(pictures), vargpt.encode_images(pictures))
    drawn = half.generate_images(PROMPTS, seeds=[1, 2], role="generator")
    stats = half.generation_stats(PROMPTS, drawn.codes, role="generator")
    assert torch.allclose(drawn.logp, stats.logp, atol=0.05)


def test_the_published_sizes():
    network = full_size()
    count = lambda module: sum(p.numel() for p in module.parameters()) / 1e9
    assert count(network.qwen) == pytest.approx(8.291, abs=1e-3)
    assert count(network.vargpt_gen.block_chunks) == pytest.approx(2.147, abs=2e-3)
    assert count(network.vae_local) == pytest.approx(0.110, abs=1e-3)
    assert network.vargpt_gen.scales.positions == 2521 and network.sizes.image_side == 512


# -- released adapters -----------------------------------------------------------------------------------------------
def write_released(backbone, folder, rank=8):
    """A checkpoint as the released code saves it; returns the tensors by role."""
    model, written = folder / "se_checkpoint_200" / "model", {}
    for role, place in (("generator", model), ("proposer", model / "proposer"), ("solver", model / "solver")):
        place.mkdir(parents=True, exist_ok=True)
        layers = {name: m for name, m in backbone.network.named_modules()
                  if isinstance(m, LoraLayer) and "language_model" in name}
        made = torch.Generator().manual_seed(len(written))
        shapes = {f"{publish(name)}.lora_{part}.weight": shape for name, m in layers.items()
                  for part, shape in (("A", (rank, m.in_features)), ("B", (m.out_features, rank)))}
        written[role] = {f"base_model.model.{name}": torch.randn(size, generator=made) for name, size in shapes.items()}
        save_file(written[role], place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": 2 * rank}))
    names = {"generator": "default", "proposer": "proposer", "solver": "solver"}
    (model / "se_adapter_manifest.json").write_text(json.dumps({"adapters": [*names.values()], "role_adapters": names}))
    return folder / "se_checkpoint_200", written


def test_released_adapters_are_read_tensor_by_tensor(tmp_path, pictures):
    backbone = Vargpt.load()
    perturb(backbone, ["generator"], seed=1)
    path, written = write_released(backbone, tmp_path)
    with pytest.warns(UserWarning, match="no weights of the drawing head"):
        assert load_released(backbone, path) == dict.fromkeys(ROLES, 28)
    for role, tensors in written.items():
        held = dict(backbone.network.named_parameters())
        for name, tensor in tensors.items():
            ours = rename(name.removeprefix("base_model.model.")).replace(".weight", f".{role}.weight")
            assert torch.equal(held[ours], tensor), name
    head = [p for name, p in backbone.network.named_parameters() if "vargpt_gen" in name and "lora_B.generator" in name]
    assert head and not any(p.any() for p in head)  # the files hold no head: it draws as the base's


def test_released_adapters_that_do_not_fit_are_refused_and_change_nothing(tmp_path):
    backbone = Vargpt.load()
    path, written = write_released(backbone, tmp_path, rank=4)
    with pytest.raises(ValueError, match="open it with lora_rank=4 lora_alpha=8"):
        load_released(backbone, path)
    path, written = write_released(backbone, tmp_path)
    before = [p.detach().clone() for p in backbone.role_parameters("proposer")]
    tensors = dict(written["solver"])
    name = min(tensors)
    tensors["base_model.model.visual.blocks.0.attn.qkv.lora_A.weight"] = tensors.pop(name)
    save_file(tensors, path / "model" / "solver" / "adapter_model.safetensors")
    with pytest.raises(KeyError, match="solver: 1 tensors missing .*1 unexpected .*visual"):
        load_released(backbone, path)
    assert all(torch.equal(a, b) for a, b in zip(before, backbone.role_parameters("proposer"), strict=True))
    with pytest.raises(FileNotFoundError, match="se_adapter_manifest.json: give the folder se_checkpoint_N"):
        load_released(backbone, tmp_path)
