"""VARGPT-v1.1 as one module: Qwen2-VL that reads and thinks, and the head and tokenizer that draw; and its files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2VLConfig
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL
from transformers.initialization import no_init_weights

from asgkit.backbones.chat import phrase_tokenizer
from asgkit.backbones.vargpt.autoencoder import AutoencoderSize, BitAutoencoder
from asgkit.backbones.vargpt.head import BitHead, HeadSize
from asgkit.backbones.weights import default_dtype, fill, require_files, stream

SOURCE = ("VARGPT-family/VARGPT-v1.1 (7B + 2B; Apache-2.0 as its code says, on Qwen2-VL-7B and Infinity-2B; not "
          "verified)")
FILES = {
    "config.json": "sizes of Qwen2-VL, ids of the drawing tokens",
    "*.safetensors": "weights of Qwen2-VL, head, bit tokenizer and projectors",
    "tokenizer.json": "words, with the drawing tokens",
}

DRAW = "<|image_gen_start|>"
PAD, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL = (PAD, IM_START, IM_END, VISION_START, VISION_END, IMAGE, DRAW)

_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling")
_VISION = ("depth", "embed_dim", "hidden_size", "hidden_act", "mlp_ratio", "num_heads", "patch_size",
           "spatial_merge_size", "temporal_patch_size")


@dataclass(frozen=True)
class Sizes:
    """All sizes of a model. text, vision: Qwen2-VL's, named as in its config.json; draw: id of the token that starts
    a drawing. The published code fixes head and autoencoder; another size stands in config.json under `asgkit`."""

    text: dict[str, Any]
    vision: dict[str, Any]
    draw: int
    head: HeadSize = field(default_factory=HeadSize)
    autoencoder: AutoencoderSize = field(default_factory=AutoencoderSize)

    @property
    def image_side(self) -> int:
        """Side in pixels of what is drawn, and of what is given to read."""
        return self.head.sides[-1] * self.autoencoder.factor

    def to_json(self) -> dict[str, Any]:
        """As a config.json in the published layout, and the sizes that the layout has no place for."""
        own = {"head": asdict(self.head), "autoencoder": asdict(self.autoencoder)}
        special = {"image_gen_start": DRAW, "image_gen_start_token_id": self.draw}
        return {"model_type": "vargpt_qwen2_vl", **self.text, "vision_config": self.vision, "special_tokens": special,
                "asgkit": own}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Sizes:
        """From a config.json; KeyError names what it lacks."""
        own = raw.get("asgkit", {"head": {}, "autoencoder": {}})
        try:
            text, vision = {k: raw[k] for k in _TEXT}, {k: raw["vision_config"][k] for k in _VISION
                                                        if k in raw["vision_config"]}
            draw = raw["special_tokens"]["image_gen_start_token_id"]
        except KeyError as error:
            raise KeyError(f"config.json has no {error.args[0]}: copy it from {SOURCE}") from error
        listed = lambda sizes: {k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()}
        return cls(text, vision, draw, HeadSize(**listed(own["head"])), AutoencoderSize(**listed(own["autoencoder"])))

    def qwen(self) -> Qwen2VLConfig:
        """The configuration of transformers' Qwen2-VL."""
        text = {**self.text, "rope_scaling": {**self.text["rope_scaling"]}, "use_sliding_window": False,
                "bos_token_id": None, "eos_token_id": None}  # the reader knows how texts end
        config = Qwen2VLConfig(text_config=text, vision_config=dict(self.vision), tie_word_embeddings=False)
        config._attn_implementation = "sdpa"
        return config


class Projector(nn.Module):
    """A two-layer net between head and language model. The files hold a norm for it that the model never applies."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.ln_q = nn.LayerNorm(inside, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(inside, inside), nn.GELU(), nn.Linear(inside, outside))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., inside) to (..., outside)."""
        return self.mlp(x)


class VargptNetwork(nn.Module):
    """The parts under their published names, but for Qwen2-VL, which transformers names its own way (`rename`)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide, head = sizes.text["hidden_size"], sizes.head
        self.sizes = sizes
        self.qwen = Qwen2VL(sizes.qwen())
        self.vae_local, self.vargpt_gen = BitAutoencoder(sizes.autoencoder), BitHead(head)
        self.image_gen_projector = Projector(head.width, wide)
        self.image_gen_projector_out = Projector(wide, head.width)
        self.sos_embedding = nn.Embedding(sizes.draw + 1, head.width)  # its last row alone is used


def rename(name: str) -> str:
    """A published tensor's name to ours: `visual.*`, `model.*` and `lm_head.*` are Qwen2-VL's."""
    for theirs, ours in (("visual.", "qwen.model.visual."), ("model.", "qwen.model.language_model."),
                         ("lm_head.", "qwen.lm_head.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def publish(name: str) -> str:
    """The inverse of `rename`."""
    for ours, theirs in (("qwen.model.visual.", "visual."), ("qwen.model.language_model.", "model."),
                         ("qwen.lm_head.", "lm_head.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def build(sizes: Sizes, dtype: torch.dtype) -> VargptNetwork:
    """A network whose weights have one dtype, but for the tokenizer's: its bits are signs, which rounding would flip.

    Rotary frequencies are computed in fp32 whatever the dtype.
    """
    with default_dtype(dtype):
        network = VargptNetwork(sizes)
    network.vae_local.float()
    return network


def published(folder: Path, dtype: torch.dtype) -> tuple[VargptNetwork, PreTrainedTokenizerBase]:
    """The network and the words of a folder with the published files, every tensor in its place.

    Raises FileNotFoundError (lists the files), KeyError (config.json), UnmatchedTensors (lists the tensors),
    ValueError (another model's tokenizer).
    """
    require_files(folder, list(FILES), SOURCE)
    sizes = Sizes.from_json(json.loads((folder / "config.json").read_text()))
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    if (found := special_id(words, DRAW)) != sizes.draw:
        raise ValueError(f"{DRAW} is token {found} of tokenizer.json and {sizes.draw} of config.json: the two files "
                         f"are not of one model; copy both from {SOURCE}")
    with no_init_weights():  # minutes at full size, for numbers that are overwritten
        network = build(sizes, dtype)
    fill(network, stream(sorted(folder.glob("*.safetensors"))), rename)
    return network, words


def special_id(words: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a special token; ValueError where the tokenizer is of another model."""
    ids = words.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer has no token {text}: it is not VARGPT's; copy tokenizer.json from {SOURCE}")
    return ids[0]


def tiny(dtype: torch.dtype) -> tuple[VargptNetwork, PreTrainedTokenizerBase]:
    """A tiny instance with random weights that always are the same: 24 x 24 pixels, 14 positions of 8 bits."""
    words = phrase_tokenizer(SPECIAL)
    text = {"vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "hidden_act": "quick_gelu", "mlp_ratio": 2,
              "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    head = HeadSize(bits=8, width=64, inner=128, layers=2, heads=4, chunks=2, sides=(1, 2, 3))
    sizes = Sizes(text, vision, special_id(words, DRAW), head, AutoencoderSize(8, 32, (1, 1, 1, 1), 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(sizes, torch.float32)
        for parameter in network.qwen.parameters():
            if parameter.ndim > 1:  # with the usual deviation of 0.02 every input gives nearly the same output
                nn.init.normal_(parameter, std=0.1)
        rounded = build(sizes, dtype)
    rounded.load_state_dict(network.state_dict())
    return rounded, words


def full_size() -> VargptNetwork:
    """The published sizes on the meta device: shapes without memory, for counting."""
    text = {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu",
            "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "hidden_act": "quick_gelu", "mlp_ratio": 4,
              "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    with torch.device("meta"):
        return build(Sizes(text, vision, 151_657), torch.bfloat16)
