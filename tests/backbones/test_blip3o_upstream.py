"""BLIP3o against the released code (branch `main` of its repository), part by part, on the same random weights.

    ASGKIT_UPSTREAM_BLIP3O=CHECKOUT pytest tests/backbones/test_blip3o_upstream.py -m upstream

The released code was written for transformers 4.51 and a fork of diffusers. What it needs of them is put in its way
here: the fork's two-thirds rule for gated layers, stand-ins for packages that only its unused paths call, and a local
noise schedule in place of a download. Not comparable: the pixel decoder, whose code is published with the weights.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace

import parity
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention import LuminaFeedForward
from PIL import Image
from torch import nn
from transformers import Qwen2_5_VLConfig

from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.blip3o import Blip3o
from asgkit.backbones.blip3o.backbone import AFTER, DRAW, HEADER
from asgkit.backbones.blip3o.eva import EvaEncoder, normalised
from asgkit.backbones.blip3o.network import Blip3oNetwork, make_dit
from asgkit.backbones.blip3o.parts import Parts, Sampler, random_parts, tiny_settings
from asgkit.backbones.noise import row_normals

pytestmark = pytest.mark.upstream
PROMPT = DRAW.format(caption="a cat in front of a tree")
PACKAGES = ("blip3o", "blip3o.model", "blip3o.model.language_model", "blip3o.model.multimodal_encoder",
            "blip3o.model.multimodal_encoder.eva_clip")
BUILDERS = {
    "blip3o.model.multimodal_encoder.builder": ("build_vision_tower", "build_gen_vision_tower", "build_dit"),
    "blip3o.model.multimodal_projector": (), "blip3o.model.multimodal_projector.builder": (
        "build_vision_projector", "build_down_projector", "build_gen_vision_projector"),
}


def module(name: str, **names) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(names)
    return made


@pytest.fixture(scope="module")
def folder():
    folder = parity.checkout("blip3o")
    if not (folder / "blip3o" / "model" / "nextdit_crossattn.py").is_file():
        pytest.fail(f"{folder} is not BLIP3o-8B's code: check out branch `main` (the default branch is a later model)")
    return folder


@pytest.fixture(scope="module")
def upstream(folder):
    """The released modules by name, imported without the packages' own imports of everything."""
    attend = lambda q, k, v, p, scale: nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), scale=scale).transpose(1, 2)
    with pytest.MonkeyPatch.context() as patch:
        for name in PACKAGES:
            patch.setitem(sys.modules, name, module(name, __path__=[str(folder / name.replace(".", "/"))]))
        for name, functions in BUILDERS.items():
            patch.setitem(sys.modules, name, module(name, **dict.fromkeys(functions)))
        patch.setitem(sys.modules, "einops", module("einops", rearrange=None, repeat=None))
        pair = lambda x: (x, x)
        patch.setitem(sys.modules, "timm", module("timm"))
        patch.setitem(sys.modules, "timm.layers", module("timm.layers", drop_path=None, to_2tuple=pair,
                                                         trunc_normal_=nn.init.trunc_normal_))
        ops = module("xformers.ops", memory_efficient_attention=attend)
        patch.setitem(sys.modules, "xformers", module("xformers", ops=ops))
        patch.setitem(sys.modules, "xformers.ops", ops)
        patch.setattr("huggingface_hub.snapshot_download", lambda **_: "")
        local = lambda *_, **__: FlowMatchEulerDiscreteScheduler()
        patch.setattr(FlowMatchEulerDiscreteScheduler, "from_pretrained", local)
        names = {"eva": "multimodal_encoder.eva_clip.eva_vit", "dit": "nextdit_crossattn", "next": "lumina_nextdit2d",
                 "arch": "blip3o_arch", "draw": "language_model.blip3o_qwen_inference",
                 "train": "language_model.blip3o_qwen"}
        found = {short: importlib.import_module(f"blip3o.model.{name}") for short, name in names.items()}
        patch.setattr(found["next"], "LuminaFeedForward", lambda dim, inner_dim, **settings: LuminaFeedForward(
            dim=dim, inner_dim=int(2 * inner_dim / 3), **settings))
        yield SimpleNamespace(**found)


@pytest.fixture(scope="module")
def mine():
    """The published numbers of cells, channels and queries (constants of the released code), with small widths."""
    small = random_parts()
    torch.manual_seed(0)
    dit = make_dit(grid=8, channels=1792, width=64, layers=2, heads=2)
    network = Blip3oNetwork(Qwen2_5_VLConfig(**tiny_settings(len(small.tokenizer))), dit, 64)
    for layer in dit.layers:
        nn.init.normal_(layer.gate)
    eva = EvaEncoder(side=128, patch=4, width=1792, depth=1, inner=64, grid=8)
    nn.init.normal_(eva.pos_embed)
    return Blip3o(Parts(network, small.tokenizer, 32, 16, eva.eval(), None, {}, Sampler()))


@pytest.fixture(scope="module")
def theirs(upstream, mine):
    """What the released methods ask of `self`: our weights in their modules."""
    network, image = mine.network, mine._draw[0, 0]
    config = upstream.dit.NextDiTCrossAttnConfig(dim=64, n_layers=2, n_heads=2, n_kv_heads=2, latent_embedding_size=64,
                                                 _gradient_checkpointing=False)
    dit = upstream.dit.NextDiTCrossAttn(config).eval()
    with mine.use_role(None):
        plain = {name.replace("base_layer.", ""): t for name, t in network.state_dict().items() if "lora_" not in name}
    dit.model.load_state_dict({name.removeprefix("dit."): t for name, t in plain.items()
                               if name.startswith(("dit.", "caption_projection."))})
    eva = upstream.eva.EVAVisionTransformer(
        img_size=128, patch_size=4, embed_dim=1792, depth=1, num_heads=16, mlp_ratio=64 / 1792, qkv_bias=True,
        xattn=True, postnorm=True, norm_layer=upstream.eva.create_norm_layer_factory(True))
    eva.load_state_dict(mine.eva.state_dict())
    tower = lambda pixels: eva.eval()(pixels)[:, 1:]

    def language(inputs_embeds, attention_mask, **_):
        # the released mask does not count [IMG]; transformers 4.51 let that pass
        mask = nn.functional.pad(attention_mask, (inputs_embeds.shape[1] - attention_mask.shape[1], 0), value=1)
        with mine.use_role(None):
            out = network.vlm.model.language_model(inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=False)
        return Out(out.last_hidden_state)

    class Out(tuple):
        def __new__(cls, hidden):
            made = super().__new__(cls, (hidden,))
            made.hidden_states, made.past_key_values, made.attentions = (hidden,), None, None
            return made

    model = SimpleNamespace(
        dit=dit, device=torch.device("cpu"), latent_queries=network.queries.detach(), down_projector=lambda x: x,
        config=SimpleNamespace(n_query=64, gen_pooling="early_pool2d_4"), get_gen_vision_tower=lambda: tower,
        noise_scheduler=FlowMatchEulerDiscreteScheduler(),
        # 151665 is [IMG] of the published vocabulary, 151667 the place of a query
        embed_tokens=lambda ids: network.embed(torch.where(ids >= 151665, image, ids)))

    class Self(upstream.arch.blip3oMetaForCausalLM):
        config = SimpleNamespace(output_attentions=False, output_hidden_states=False, vocab_size=len(mine.tokenizer))
        visual = None
        lm_head = staticmethod(network.vlm.lm_head)
        sample_images = upstream.draw.blip3oQwenForInferenceLM.sample_images

        def get_model(self):
            return model

        def model(self, **settings):
            return language(settings.pop("inputs_embeds"), settings.pop("attention_mask"))

    return Self()


@pytest.fixture(scope="module")
def figures(folder):
    found: dict[str, float] = {}
    yield found
    if len(found) == 7:  # every comparison ran and held
        parity.record("blip3o", folder, "https://github.com/JiuhaiChen/BLIP3o (branch main)", found)


def close(figures, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape and a.isfinite().all()
    worst = (a - b).abs().max().item()
    assert worst <= 1e-4, f"{name}: {worst:.2e}"
    figures[name] = worst


@torch.no_grad()
def test_text_logits(mine, figures, pictures):
    """The released understanding half is Qwen2.5-VL unchanged: transformers' whole model is the reference."""
    shown = mine.patches([image.resize((32, 32), Image.Resampling.BICUBIC) for image in pictures[:2]],
                         return_tensors="pt")
    question = "Is the door open?"
    ids = torch.tensor([mine.tokenizer.encode(
        f"{HEADER}<|vision_start|>{'<|image_pad|>' * 16}<|vision_end|>{question}{AFTER} no<|im_end|>")] * 2)
    kinds = (ids == mine.network.vlm.config.image_token_id).int()
    with mine.use_role(None):
        whole = mine.network.vlm(input_ids=ids, mm_token_type_ids=kinds, **shown).logits[:, -3:-1]
    stats = mine.text_stats(pictures[:2], [question] * 2, [" no"] * 2, role=None, keep_logits=True)
    close(figures, "text_logits", stats.logits, whole)


@torch.no_grad()
def test_velocity(mine, theirs, figures):
    x, z = torch.randn(2, 1792, 8, 8), torch.randn(2, 64, 64)
    times = torch.tensor([1000.0, 333.0])
    with mine.use_role(None):
        ours = mine.network.velocity(x, times, z)
    close(figures, "velocity", ours, theirs.get_model().dit(x=x, timestep=times, z_latents=z))


@torch.no_grad()
def test_one_step_and_a_whole_drawing(mine, theirs, upstream, figures, monkeypatch):
    tokenizer = lambda text, **_: SimpleNamespace(
        input_ids=(ids := torch.tensor([mine.tokenizer.encode(text[0])])), attention_mask=torch.ones_like(ids))
    monkeypatch.setattr(upstream.draw, "randn_tensor", lambda shape, **_: row_normals([3], shape[1:]))
    with mine.use_role(None):
        condition = mine._condition([PROMPT])
        one = theirs.sample_images(condition, FlowMatchEulerDiscreteScheduler(), num_inference_steps=1)
        mine.sampler = Sampler(steps=1)
        close(figures, "sampling_step", mine._sample(condition, [3], 3.0, 1.0), one)
        mine.sampler = Sampler()
        drawn = mine._sample(condition, [3], mine.sampler.guidance, 1.0)
    whole = upstream.draw.blip3oQwenForInferenceLM.generate_image(theirs, [HEADER + PROMPT + AFTER], tokenizer)
    scale = drawn.abs().max()
    assert scale < 100
    close(figures, "drawing_30_steps_guided", drawn.flatten(2).transpose(1, 2), whole)


@torch.no_grad()
def test_image_codes(mine, theirs, figures, pictures):
    pixels = normalised(pictures[:2], 128)
    close(figures, "image_codes", mine.encode_images(pictures[:2]),
          theirs.pool_img(theirs.get_model().get_gen_vision_tower()(pixels)))


@torch.no_grad()
@pytest.mark.parametrize("dropped", [False, True])
def test_denoising_loss(mine, theirs, upstream, figures, pictures, monkeypatch, dropped):
    index, seed = 614, 8
    monkeypatch.setattr(torch, "randn_like", lambda x, **_: row_normals([seed], x.shape[1:]))
    monkeypatch.setattr(torch, "rand", lambda **_: torch.tensor([(index + 0.5) / 1000]))
    monkeypatch.setattr(theirs, "mask_drop", lambda z: torch.zeros_like(z) if dropped else z, raising=False)
    words = mine.tokenizer.encode(HEADER + PROMPT + AFTER) + [151665]
    ids = torch.tensor([words + [151667] * 64])
    labels = torch.where(ids == 151667, ids, -100)
    out = upstream.train.blip3oQwenForCausalLM.forward(
        theirs, input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, i_s_pos=[len(words)],
        return_dict=True, gen_image=normalised(pictures[:1], 128))
    monkeypatch.undo()
    noise = NoiseSpec(torch.tensor([[(1000 - index) / 1000]]), [seed])
    stats = mine.generation_stats([PROMPT], mine.encode_images(pictures[:1]), role=None, noise=noise,
                                  condition_dropout=float(dropped))
    close(figures, "denoising_loss_without_caption" if dropped else "denoising_loss", stats.loss[0], out.loss)
