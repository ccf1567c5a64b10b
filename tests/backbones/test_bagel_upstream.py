"""BAGEL beside its published code on the same random weights, in fp32 on a CPU.

The published code needs flash attention, bf16 and an older transformers. Stand-ins are put in place here, around the
comparison alone; none of them changes what is computed.
"""

import sys
import types
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from parity import checkout, record
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from asgkit.backbones.bagel import Bagel, DrawingSizes, Sampling, autoencoder
from asgkit.backbones.bagel.vision import patchify, table_rows, unpatchify
from asgkit.backbones.base import NoiseSpec
from asgkit.backbones.noise import row_normals
from asgkit.backbones.weights import fill

pytestmark = [pytest.mark.upstream,
              # transformers 5 about the published configuration class, which sets and checks fields of version 4
              pytest.mark.filterwarnings("ignore:`rope_.*` is deprecated:FutureWarning")]
SOURCE = "https://github.com/ByteDance-Seed/Bagel"
PROMPTS = ["What is in the middle?", "How many balls are there, and where is the second one?"]
TEXTS = [" a cat two left", " no red blue"]
LIMIT = 1e-4


def packed_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
    """Attention within each packed sequence; causal is aligned to the last key. q: (T, heads, d)."""
    out, groups = [], q.shape[1] // k.shape[1]
    heads = lambda x, times: x.repeat_interleave(times, 1).transpose(0, 1)
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(c[i]), int(c[i + 1])) for c in (cu_seqlens_q, cu_seqlens_k))
        one, seen, value = q[rows], k[keys], v[keys]
        mask = torch.ones(len(one), len(seen), dtype=torch.bool).tril(len(seen) - len(one)) if causal else None
        mixed = F.scaled_dot_product_attention(heads(one, 1), heads(seen, groups), heads(value, groups), mask)
        out.append(mixed.transpose(0, 1))
    return torch.cat(out)


def plain_rope(config, device=None, **_):
    """Rotary rates without scaling, which transformers 5 no longer registers under a name."""
    width = config.hidden_size // config.num_attention_heads
    return 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width), 1.0


def rearranged(x, pattern, **sizes):
    """The two patterns that the published autoencoder asks of einops: a picture to a row of cells, and back."""
    if pattern == "b c h w -> b 1 (h w) c":
        return x.flatten(2).transpose(1, 2)[:, None]
    assert pattern == "b 1 (h w) c -> b c h w"
    return x[:, 0].transpose(1, 2).unflatten(2, (sizes["h"], sizes["w"]))


@pytest.fixture(scope="module")
def published():
    """Modules of the checkout, imported under stand-ins and forgotten afterwards."""
    folder = checkout("bagel")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name, part, stand_in in (("flash_attn", "flash_attn_varlen_func", packed_attention),
                                     ("einops", "rearrange", rearranged)):
            module = types.ModuleType(name)
            setattr(module, part, stand_in)
            patch.setitem(sys.modules, name, module)
        patch.setitem(ROPE_INIT_FUNCTIONS, "default", plain_rope)
        patch.setattr(torch, "bfloat16", torch.float32)  # the published code casts to it by name
        patch.setattr(torch, "compile", lambda function: function)  # of a kernel that is not used here
        patch.syspath_prepend(str(folder))
        from modeling import autoencoder as pictures
        from modeling import bagel
        from modeling.bagel import qwen2_navit

        from data import data_utils

        patch.setattr(qwen2_navit, "sdpa_kernel", lambda backends: nullcontext())  # it asks for a CUDA kernel
        yield SimpleNamespace(folder=folder, bagel=bagel, data=data_utils, pictures=pictures,
                              cache=qwen2_navit.NaiveCache)
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("data", "modeling"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def ours():
    """The tiny instance with noise on every weight that learns: as built, norms and biases would not show."""
    model = Bagel.load("random", sampling=Sampling(points=6))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.network.named_parameters():
            if "pos_embed" not in name:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def theirs(published, ours):
    sizes, kit = ours.network.sizes, published.bagel
    text, vision, drawing = sizes.text, sizes.vision, sizes.drawing
    llm = kit.Qwen2Config(
        vocab_size=text.vocabulary, hidden_size=text.width, intermediate_size=text.mlp, num_hidden_layers=text.layers,
        num_attention_heads=text.heads, num_key_value_heads=text.kv_heads, rms_norm_eps=text.eps,
        layer_module="Qwen2MoTDecoderLayer", qk_norm=True)
    llm.pad_token_id, llm.rope_theta, llm.rope_scaling = None, text.theta, None  # transformers 5 moved or dropped them
    vit = kit.SiglipVisionConfig(
        hidden_size=vision.width, intermediate_size=vision.mlp, num_hidden_layers=vision.layers, rope=False,
        num_attention_heads=vision.heads, patch_size=vision.patch, image_size=vision.patch * vision.side)
    config = kit.BagelConfig(
        llm_config=llm, vit_config=vit, vae_config=SimpleNamespace(downsample=8, z_channels=drawing.channels),
        latent_patch_size=drawing.patch, max_latent_size=drawing.side, vit_max_num_patch_per_side=vision.side)
    model = kit.Bagel(kit.Qwen2ForCausalLM(llm), kit.SiglipVisionModel(vit), config)
    model.vit_model.vision_model.embeddings.convert_conv2d_to_linear(vit)
    for table in ("vit_pos_embed", "latent_pos_embed"):
        built = getattr(model, table).pos_embed
        assert torch.equal(built, getattr(ours.network, table).pos_embed)
    model.load_state_dict(base_weights(ours))  # strict: the same names and shapes
    return model.eval()


def base_weights(model):
    """The published part of a network that carries adapters, by its published names."""
    return {name.replace(".base_layer.", "."): tensor for name, tensor in model.network.state_dict().items()
            if ".lora_" not in name and not name.startswith("autoencoder.")}


def token_ids(model):
    look, looked = model.edges.tolist()
    start, = model.tokenizer.encode("<|im_start|>")
    return {"bos_token_id": start, "eos_token_id": model.tokenizer.end, "start_of_image": look, "end_of_image": looked}


def gap(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@torch.no_grad()
def logits_of(theirs, published, ours, image, prompt, text):
    """Logits (T, V) of a text after an image and a prompt, through the published cache."""
    ids, tokenizer = token_ids(ours), ours.tokenizer.tokenizer
    cache = published.cache(theirs.config.llm_config.num_hidden_layers)
    transform = lambda picture: ours._pixels([picture], ours.view_side)[0]
    given, lengths, rope = theirs.prepare_vit_images([0], [0], [image], transform, ids)
    cache = theirs.forward_cache_update_vit(cache, **given)
    given, lengths, rope = theirs.prepare_prompts(lengths, rope, [prompt], tokenizer, ids)
    cache = theirs.forward_cache_update_text(cache, **given)
    words = torch.tensor([ids["bos_token_id"], *ours.tokenizer.encode(text)])
    hidden = theirs.language_model.forward_inference(
        packed_query_sequence=theirs.language_model.model.embed_tokens(words),
        query_lens=torch.tensor([len(words)]), packed_query_position_ids=torch.arange(rope[0], rope[0] + len(words)),
        packed_query_indexes=torch.arange(lengths[0], lengths[0] + len(words)), past_key_values=cache,
        packed_key_value_indexes=torch.arange(lengths[0]), key_values_lens=torch.tensor(lengths),
        update_past_key_values=False, is_causal=True, mode="und")
    return theirs.language_model.lm_head(hidden.packed_query_sequence)


def compare_text(theirs, published, ours, images):
    """Largest difference of raw logits, two rows of ours in one padded batch."""
    stats = ours.text_stats(images, PROMPTS, TEXTS, role=None, keep_logits=True)
    found = []
    for i, (image, prompt, text) in enumerate(zip(images, PROMPTS, TEXTS, strict=True)):
        want = logits_of(theirs, published, ours, image, prompt, text)
        found.append(gap(stats.logits[i, : len(want)], want))
    return max(found)


def compare_vision(theirs, ours, images):
    """Largest difference of the image encoder's features, before and after the connector."""
    pixels = ours._pixels(images, ours.view_side)
    sizes = ours.network.sizes.vision
    rows = table_rows(pixels.shape[-1] // sizes.patch, sizes.side, pixels.device)
    patches, count = patchify(pixels, sizes.patch), len(rows)
    with torch.no_grad():
        want = theirs.vit_model(patches.flatten(0, 1), rows.repeat(2), torch.tensor([0, count, 2 * count]), count)
        have = ours.network.vit_model(patches, rows)
        joined = theirs.connector(want) + theirs.vit_pos_embed(rows.repeat(2))
        return gap(have.flatten(0, 1), want), gap(ours.network.features(pixels).flatten(0, 1), joined)


def compare_loss(theirs, published, ours, codes, monkeypatch):
    """Largest difference of squared velocity errors per element, and of the loss, in the published training pass."""
    times, seeds = torch.tensor([[0.3, 0.8], [0.55, 0.95]]), [3, 4]
    stats = ours.generation_stats(PROMPTS, codes, role=None, noise=NoiseSpec(times, seeds))
    patch, found = ours.network.sizes.drawing.patch, []
    for i, prompt in enumerate(PROMPTS):
        eps = row_normals([seeds[i]], (2, *ours.spec.code_shape))[0]
        for j in range(2):
            monkeypatch.setattr(torch, "randn_like", lambda x, e=eps[j]: patchify(e[None], patch)[0])
            want = training_error(theirs, published, ours, prompt, codes[i], times[i, j].logit())
            monkeypatch.undo()
            have = patchify((stats.pred[i, j : j + 1] - stats.target[i, j : j + 1]).square(), patch)[0]
            found.append(gap(have, want))
    return max(found)


def training_error(theirs, published, ours, prompt, code, raw_time):
    """Squared errors (tokens, numbers) of one drawing by the published training pass."""
    ids, patch = token_ids(ours), ours.network.sizes.drawing.patch
    words = [ids["bos_token_id"], *ours.tokenizer.encode(prompt), ids["eos_token_id"]]
    side = code.shape[-1] // patch
    n, latent = len(words), side * side
    mask = published.data.prepare_attention_mask_per_sample([n, latent + 2], ["causal", "noise"])
    theirs.train()
    theirs.config.visual_und = False  # a batch without an image to look at
    with torch.no_grad():
        found = theirs(
            sequence_length=n + latent + 2, sample_lens=[n + latent + 2], nested_attention_masks=[mask],
            packed_text_ids=torch.tensor([*words, ids["start_of_image"], ids["end_of_image"]]),
            packed_text_indexes=torch.tensor([*range(n), n, n + latent + 1]),
            packed_position_ids=torch.tensor([*range(n), *[n] * (latent + 2)]),
            padded_latent=code[None], patchified_vae_latent_shapes=[(side, side)],
            packed_latent_position_ids=table_rows(side, theirs.max_latent_size, code.device),
            packed_vae_token_indexes=torch.arange(n + 1, n + 1 + latent), packed_timesteps=raw_time.expand(latent),
            mse_loss_indexes=torch.arange(n + 1, n + 1 + latent))
    theirs.eval()
    theirs.config.visual_und = True
    return found["mse"]


@torch.no_grad()
def drawn_by(theirs, published, ours, prompt, seed, points):
    """Latent (C, h, w) that the published sampler makes of our noise."""
    ids, cache = token_ids(ours), published.cache(theirs.config.llm_config.num_hidden_layers)
    given, lengths, rope = theirs.prepare_prompts([0], [0], [prompt], ours.tokenizer.tokenizer, ids)
    cache = theirs.forward_cache_update_text(cache, **given)
    size, sampling, patch = [(ours.spec.image_side,) * 2], ours.sampling, ours.network.sizes.drawing.patch
    given = theirs.prepare_vae_latent(lengths, rope, size, ids)
    given["packed_init_noises"] = patchify(row_normals([seed], ours.spec.code_shape), patch)[0]
    free = theirs.prepare_vae_latent_cfg([0], [0], size)
    tokens, = theirs.generate_image(
        past_key_values=cache, num_timesteps=points, timestep_shift=sampling.shift, cfg_renorm_min=sampling.renorm_min,
        cfg_interval=list(sampling.interval), cfg_text_scale=sampling.guidance,
        cfg_text_past_key_values=published.cache(theirs.config.llm_config.num_hidden_layers),
        **{f"cfg_text_{name.removeprefix('cfg_')}": value for name, value in free.items()}, **given)
    return unpatchify(tokens[None], patch)[0]


def compare_drawings(theirs, published, ours, points):
    """Largest difference of latents after all steps, two rows of ours in one padded batch, guidance as published."""
    ours.sampling = Sampling(points=points)
    have = ours.generate_images(PROMPTS, seeds=[5, 6], role=None).codes
    return max(gap(have[i], drawn_by(theirs, published, ours, prompt, 5 + i, points))
               for i, prompt in enumerate(PROMPTS))


def compare_pictures(published, ours, images, folder):
    """Largest differences of latents and of decoded pixels, with the published autoencoder's own weights and file."""
    sizes = ours.network.sizes.drawing
    torch.manual_seed(0)
    theirs = published.pictures.AutoEncoder(published.pictures.AutoEncoderParams(
        resolution=32, in_channels=3, downsample=8, ch=32, out_ch=3, ch_mult=[1, 1, 2, 2], num_res_blocks=2,
        z_channels=sizes.channels, scale_factor=sizes.scale, shift_factor=sizes.shift)).eval()
    theirs.reg.sample = False
    save_file(theirs.state_dict(), folder / "ae.safetensors")
    same = DrawingSizes(channels=sizes.channels, blocks=(32, 32, 64, 64))
    own = autoencoder.make_autoencoder(same)
    fill(own, autoencoder.read_autoencoder(folder / "ae.safetensors", same))
    pixels = ours._pixels(images, ours.spec.image_side)
    with torch.no_grad():
        codes = theirs.encode(pixels)
        return gap(autoencoder.encode(own, pixels), codes), gap(autoencoder.decode(own, codes), theirs.decode(codes))


def test_the_published_code_gives_the_same_numbers(published, ours, theirs, pictures, tmp_path, monkeypatch):
    # as the published pipeline, which resizes for the autoencoder first and for the encoder after that
    images = [ours._fit(picture, ours.spec.image_side) for picture in pictures[:2]]
    codes = ours.encode_images(images)
    figures = {"text_logits": compare_text(theirs, published, ours, images)}
    figures["vision_features"], figures["image_tokens"] = compare_vision(theirs, ours, images)
    figures["velocity_error"] = compare_loss(theirs, published, ours, codes, monkeypatch)
    figures["sampling_step"] = compare_drawings(theirs, published, ours, 2)
    figures["drawing"] = compare_drawings(theirs, published, ours, 8)
    figures["autoencoder_codes"], figures["autoencoder_pixels"] = compare_pictures(published, ours, images, tmp_path)
    assert all(value <= LIMIT for value in figures.values()), figures
    record("bagel", published.folder, SOURCE, figures)
