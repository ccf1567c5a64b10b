"""VARGPT-v1.1 beside its published code on the same random weights, in fp32 on a CPU.

The published code needs flash attention, bf16 inside its cross-attention and an older transformers. Stand-ins are put
in place here, around the comparison alone; none of them changes what is computed, but for the rounding to bf16.
"""

import importlib.machinery
import sys
import types
from contextlib import contextmanager

import numpy as np
import pandas  # noqa: F401  before the stand-in of pytz, whose version it asks for
import pytest
import torch
from parity import checkout, record
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from asgkit.backbones.chat import phrase_tokenizer
from asgkit.backbones.sampling import row_uniforms
from asgkit.backbones.vargpt import Vargpt
from asgkit.backbones.vargpt import network as files
from asgkit.backbones.vargpt.autoencoder import AutoencoderSize, to_pixels
from asgkit.backbones.vargpt.head import HeadSize
from asgkit.backbones.vargpt.reading import TURN
from asgkit.backbones.weights import fill

pytestmark = [pytest.mark.upstream,
              # transformers 5 about the published configuration class, which is written for version 4
              pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
              # the published code asks for a GPU by name
              pytest.mark.filterwarnings("ignore:.*Disabling:UserWarning")]
SOURCE = "https://github.com/VARGPT-family/VARGPT-v1.1"
LIMIT = 1e-4
SIDES = (1, 2, 4, 6, 8, 12, 16)  # the published schedule for 256 x 256 pixels, "0.06M"
TEXT = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "hidden_act": "quick_gelu", "mlp_ratio": 2, "num_heads": 2,
          "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
HEAD = HeadSize(bits=8, width=128, inner=512, layers=4, heads=4, chunks=2, sides=SIDES)
PICTURES = AutoencoderSize(bits=8, channels=32, multipliers=(1, 1, 2, 2, 1), blocks=1)


# -- stand-ins -------------------------------------------------------------------------------------------------------
def packed_attention(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale):
    """Full attention within each packed sequence. q: (T, heads, c); kv: (S, 2, heads, c)."""
    out = []
    for i in range(len(cu_seqlens_q) - 1):
        rows, keys = (slice(int(c[i]), int(c[i + 1])) for c in (cu_seqlens_q, cu_seqlens_k))
        one, (k, v) = q[rows].transpose(0, 1), kv[keys].permute(1, 2, 0, 3)
        out.append(F.scaled_dot_product_attention(one, k, v, scale=softmax_scale).transpose(0, 1))
    return torch.cat(out)


REARRANGED = {  # the patterns that the published quantiser asks of einops
    "b d ... -> b ... d": lambda x: x.movedim(1, -1), "b ... d -> b d ...": lambda x: x.movedim(-1, 1),
    "b n (c d) -> b n c d": lambda x: x.unflatten(2, (1, -1)), "b n c d -> b n (c d)": lambda x: x.flatten(2),
    "... c d -> ... (c d)": lambda x: x.flatten(-2), "... 1 d -> ... d": lambda x: x.squeeze(-2),
}


def plain_rope(config, device=None, **_):
    """Rotary rates without scaling, which transformers 5 no longer registers under a name."""
    width = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    return 1.0 / TEXT["rope_theta"] ** (torch.arange(0, width, 2).float() / width), 1.0


class NoDrop(nn.Identity):
    """Stochastic depth in evaluation."""

    def __init__(self, rate):
        super().__init__()


STAND_INS = {
    "timm": {}, "timm.models": {"register_model": lambda f: f}, "timm.loss": {"SoftTargetCrossEntropy": nn.Identity},
    "timm.models.layers": {"DropPath": NoDrop, "drop_path": None},
    "cv2": {}, "pytz": {}, "imageio": {}, "torchvision": {}, "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
    "flash_attn": {"flash_attn_varlen_kvpacked_func": packed_attention},
    "einops": {"rearrange": lambda x, pattern, **_: REARRANGED[pattern](x), "reduce": None,
               "pack": lambda xs, pattern: (xs[0].flatten(1, -2), xs[0].shape[1:-1]),
               "unpack": lambda x, middle, pattern: [x.unflatten(1, middle)]},
}


@contextmanager
def stand_ins(folder):
    """Modules and names that the published code expects, and what it imported forgotten afterwards."""
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name, parts in STAND_INS.items():
            module = types.ModuleType(name)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            vars(module).update(parts)
            patch.setitem(sys.modules, name, module)
            if "." in name:
                setattr(sys.modules[name.rpartition(".")[0]], name.rpartition(".")[2], module)
        patch.setitem(ROPE_INIT_FUNCTIONS, "default", plain_rope)
        patch.setattr(torch, "bfloat16", torch.float32)  # the published cross-attention casts to it by name
        patch.setattr(torch, "compile", lambda *_, **__: lambda function: function)
        patch.setattr(DynamicCache, "get_usable_length", lambda *_: 0, raising=False)  # its result is not used
        patch.syspath_prepend(str(folder))
        yield
    for name in set(sys.modules) - before:
        if name.startswith("vargpt_qwen_v1_1"):
            del sys.modules[name]


# -- the two models --------------------------------------------------------------------------------------------------
def small_tokenizer(args):
    """The published autoencoder at small sizes."""
    from vargpt_qwen_v1_1.var_model.infinity.models.bsq_vae import flux_vqgan, vae

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "AutoEncoder", lambda settings: settings)
        ways = {"encoder_ch_mult": list(PICTURES.multipliers), "decoder_ch_mult": list(PICTURES.multipliers)}
        settings = vae.vae_model("", "dynamic", PICTURES.bits, 2**PICTURES.bits, test_mode=False, **ways)
    settings.base_ch, settings.num_res_blocks = PICTURES.channels, PICTURES.blocks
    return flux_vqgan.AutoEncoder(settings)


def small_head(vae, args):
    """The published head at small sizes, made by its own function."""
    from vargpt_qwen_v1_1.var_model.tools.run_infinity import load_infinity_train

    sizes = {"depth": HEAD.layers, "embed_dim": HEAD.width, "num_heads": HEAD.heads, "drop_path_rate": 0.1,
             "mlp_ratio": 4, "block_chunks": HEAD.chunks}
    return load_infinity_train(
        rope2d_each_sa_layer=args.rope2d_each_sa_layer, rope2d_normalized_by_hw=args.rope2d_normalized_by_hw,
        use_scale_schedule_embedding=0, pn="0.06M", use_bit_label=1, add_lvl_embeding_only_first_block=1, vae=vae,
        device="cpu", model_kwargs=sizes, text_channels=HEAD.width, use_flex_attn=False)


def randomise(model):
    """Weights whose every tensor matters: matrices keep the size of what they multiply, nothing is 0 or 1."""
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "scale_mul" in name:
            p.data += 0.2 * torch.randn_like(p)
        elif p.ndim < 2:
            p.data = 0.1 * torch.randn_like(p) + (name.endswith("weight"))
        else:
            p.data = torch.randn_like(p) / (1.0 if "embed" in name else p[0].numel() ** 0.5)


@pytest.fixture(scope="module")
def pair():
    """The published model and ours with its weights; every name of the published state dict is accounted for."""
    folder = checkout("vargpt")
    with stand_ins(folder):
        from vargpt_qwen_v1_1 import modeling_vargpt_qwen2_vl as published
        from vargpt_qwen_v1_1.configuration_vargpt_qwen2_vl import VARGPTQwen2VLConfig

        words = phrase_tokenizer(files.SPECIAL)
        ids = {text: files.special_id(words, text) for text in files.SPECIAL}
        pads = {"image_gen_start_token_id": ids[files.DRAW], "image_gen_pad_token_id": len(words)}
        config = VARGPTQwen2VLConfig(
            **TEXT | {"rope_scaling": dict(TEXT["rope_scaling"])}, vision_config=VISION | {"initializer_range": 0.02},
            special_tokens=pads, image_token_id=ids[files.IMAGE], video_token_id=TEXT["vocab_size"] - 1,
            vision_start_token_id=ids[files.VISION_START], pad_token_id=None, attn_implementation="sdpa",
            output_attentions=False, output_hidden_states=False)
        published.load_visual_tokenizer, published.load_var_model = small_tokenizer, small_head
        theirs = published.VARGPTQwen2VLForConditionalGeneration(config).eval()
        theirs.vargpt_gen_args.pn, theirs.vargpt_gen.cond_drop_rate = "0.06M", 0.0
        theirs.bitwise_self_correction = published.BitwiseSelfCorrection(theirs.vae_local)
        theirs.bitwise_self_correction.noise_apply_strength = 0.0
        randomise(theirs)
        network = files.build(files.Sizes(TEXT, VISION, ids[files.DRAW], HEAD, PICTURES), torch.float32)
        fill(network, theirs.state_dict().items(), files.rename)
        with torch.no_grad():
            yield folder, theirs, Vargpt(network, words)


@pytest.fixture(scope="module")
def figures():
    return {}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((256, 256)) for _ in range(2)]


def gap(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


# -- comparisons -----------------------------------------------------------------------------------------------------
def test_text_logits_about_an_image(pair, images, figures):
    _, theirs, ours = pair
    prompts, texts = ["What is in the middle?"] * 2, [" a cat two left", " no red blue"]
    mine = ours.text_stats(images, prompts, texts, role=None, keep_logits=True)
    shown = [image.resize((252, 252), Image.Resampling.BICUBIC) for image in images]
    made = ours._eye(images=shown, return_tensors="pt")
    for row, text in enumerate(texts):
        tail = ours.tokenizer.encode(prompts[row] + TURN) + ours.tokenizer.encode(text)
        image = [ours._before, *[ours._within] * 81, ours._behind]
        ids = torch.tensor([[*ours._head, *image, *tail]])
        grid, pixels = made.image_grid_thw[row : row + 1], made.pixel_values.unflatten(0, (2, -1))[row]
        positions, _ = theirs.get_rope_index(ids, grid, None, torch.ones_like(ids))
        out = theirs(input_ids=ids, position_ids=positions, pixel_values=pixels, image_grid_thw=grid, return_dict=True)
        length = len(ours.tokenizer.encode(text)) + 1
        there, here = out.logits[0, -length:], mine.logits[row, :length]
        figures["text_logits"] = max(figures.get("text_logits", 0.0), gap(there, here))
    assert figures["text_logits"] <= LIMIT


def test_image_codes_and_pixels(pair, images, figures):
    _, theirs, ours = pair
    pixels, grids = to_pixels(images, 256), [(1, side, side) for side in SIDES]
    raw, _, _ = theirs.vae_local.encode_for_raw_features(pixels, grids)
    figures["image_features"] = gap(raw, ours.network.vae_local.encode(pixels))
    seen, labels = theirs.bitwise_self_correction.flip_requant(grids, pixels, raw, "cpu")
    codes = ours.encode_images(images)
    figures["image_codes_that_differ"] = float((torch.cat(labels, 1) != codes).sum())
    figures["canvas_before_each_grid"] = gap(seen, ours.scales.inputs(codes))
    canvas = ours.scales.canvas(codes)
    whole, pictures = theirs.vae_local.decode_from_indices(
        [c.reshape(2, 1, s, s, 8) for c, s in zip(labels, SIDES, strict=True)], grids, "bit_label")
    figures["canvas"] = gap(whole[:, :, 0], canvas)
    figures["decoded_pixels"] = gap(pictures, ours.network.vae_local.decode(canvas))
    assert 0.2 < codes.double().mean() < 0.8  # the codes say something
    assert max(figures[k] for k in ("image_features", "canvas_before_each_grid", "canvas", "decoded_pixels")) <= LIMIT
    assert figures["image_codes_that_differ"] == 0


def test_teacher_forced_bit_logits(pair, images, figures):
    _, theirs, ours = pair
    prompts = ["one green ball by rocks", "six large rocks by ball"]  # of one length: their batch has no padding
    codes, padded = ours.encode_images(images), 640  # its head works on multiples of 128 positions
    ids, mask = ours._requests(prompts)
    assert mask.all()
    gen_pad = theirs.config.special_tokens["image_gen_pad_token_id"]
    whole = torch.cat([ids, torch.full((2, padded), gen_pad)], 1)
    out = theirs(pixel_gen_values=to_pixels(images, 256), input_ids=whole, dpo_training=True, return_dict=True)
    assert torch.equal(out.image_gen_labels, codes)
    mine = ours.generation_stats(prompts, codes, role=None, keep_logits=True)
    logits = out.gen_logits.unflatten(-1, (-1, 2)).flatten(1, 2)
    figures["bit_logits"] = gap(logits, mine.logits)
    figures["bit_logp"] = gap(logits.log_softmax(-1).gather(-1, codes.flatten(1)[..., None])[..., 0], mine.logp)
    assert max(figures["bit_logits"], figures["bit_logp"]) <= LIMIT


def chosen_by(uniforms, filtered):
    """The published choice of bits, by given uniform numbers (L * d): its filter first, then the inverse of what it
    left. Chance must be shared, since likelier bits alone give a picture of one colour, which compares nothing."""
    left = list(uniforms)

    def pick(logits, **settings):
        filtered(logits, **settings)  # in place; what it drew is dropped
        here = [left.pop(0) for _ in range(logits.shape[1])]
        return (torch.stack(here) >= logits[0].softmax(-1)[:, 0]).long()[None, :, None]
    return pick


def test_a_drawing_with_guidance(pair, figures):
    folder, theirs, ours = pair
    prompt, seen, bits, mine = "a red ball", [], [], []
    head, codes, cache = theirs.vargpt_gen.get_logits, theirs.vae_local.quantizer.lfq.indices_to_codes, DynamicCache()
    module = sys.modules[type(theirs).__module__]
    choose = module.sample_with_top_k_top_p_also_inplace_modifying_logits_
    ids, _ = ours._requests([prompt])
    theirs(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True)
    grids, start = [(1, side, side) for side in SIDES], theirs.get_sos_word_embeddings(ids, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, choose.__name__, chosen_by(row_uniforms([5], 521 * 8)[0], choose))
        patch.setattr(theirs.vargpt_gen, "get_logits", lambda *a: seen.append(head(*a)) or seen[-1].clone())
        patch.setattr(theirs.vae_local.quantizer.lfq, "indices_to_codes",
                      lambda index, **k: bits.append(index.flatten(1, 3)) or codes(index, **k))
        *_, pixels, _ = theirs.autoregressive_infer_cfg(
            scale_schedule=grids, label_B_or_BLT=start, g_seed=0, cfg_list=[3] * 7, tau_list=[0.5] * 7, top_k=900,
            top_p=0.97, returns_vemb=1, cfg_insertion_layer=[0], vae_type=32, ret_img=True, inference_mode=True,
            past_key_values=cache, use_cache=True, return_dict=True)  # the published settings
    watch = ours.network.vargpt_gen.register_forward_hook(lambda _, __, out: mine.append(out[0].flatten(2)))
    drawn = ours.generate_images([prompt], seeds=[5], role=None)
    watch.remove()
    assert 0.2 < drawn.codes.double().mean() < 0.8
    both = [gap(a, b) for a, b in zip(seen, mine, strict=True)]  # per grid: the prompt's stream and the null prompt's
    figures["drawing_bit_logits_of_both_streams"] = max(both)
    figures["drawn_bits_that_differ"] = float((torch.cat(bits, 1) != drawn.codes).sum())
    forced = ours.generation_stats([prompt], drawn.codes, role=None, keep_logits=True).logits
    conditional = torch.cat(seen, 1)[:1].unflatten(-1, (-1, 2)).flatten(1, 2)
    figures["drawn_and_teacher_forced_bit_logits"] = gap(conditional, forced)
    shown = torch.from_numpy(np.asarray(drawn.images[0]).copy())
    figures["drawn_pixels_of_256_levels"] = gap(pixels[0].flip(-1), shown)  # the published picture is blue first
    assert max(*both, figures["drawn_and_teacher_forced_bit_logits"]) <= LIMIT
    assert figures["drawn_bits_that_differ"] == 0
    assert figures["drawn_pixels_of_256_levels"] <= 1
    record("vargpt", folder, SOURCE, figures)
