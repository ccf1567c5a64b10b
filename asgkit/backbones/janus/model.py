"""Janus and Janus-Pro: one Llama that reads SigLIP features and draws the codes of a VQ autoencoder, one by one.

The networks are transformers' own (`JanusForConditionalGeneration`); the passes over them are ours, so that positions,
caches, noise and log-probabilities are explicit. A chat is laid out as published:

    understanding   <bos> system, `<|User|>: `, image, newline | text, `<|Assistant|>:` | answer <eos>
    drawing         <bos> `<|User|>: ` text, `<|Assistant|>:` <begin_of_image> | 576 codes

The released ASG adapters do not cover Janus; roles are saved and loaded in the kit's own format alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.processing_janus import DEFAULT_SYSTEM_PROMPT

from asgkit.backbones.base import BackboneSpec, Drawings, GenStats, NativeSampling, NoiseSpec, Role
from asgkit.backbones.chat import PROMPTS, ChatTokenizer, pad_rows, phrase_tokenizer
from asgkit.backbones.reader import KeyValues, Reader
from asgkit.backbones.sampling import guide, log_softmax_stats, row_uniforms, sample_tokens
from asgkit.backbones.weights import default_dtype, fill, require_files, stream

SOURCE = ("deepseek-community/Janus-Pro-7B or Janus-Pro-1B (transformers' layout; code MIT, weights under the DeepSeek "
          "Model License, as published by deepseek-ai; not verified)")
FILES = {
    "config.json": "sizes of the three networks",
    "*.safetensors": "weights of language model, vision tower, VQ autoencoder and heads",
    "preprocessor_config.json": "side and normalisation of the images",
    "tokenizer.json": "words and special tokens",
}

USER, TURN = "<|User|>: ", "\n\n<|Assistant|>:"
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
IMAGE, IMAGE_START, IMAGE_END = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
GUIDANCE = 5.0  # published sampling: guidance 5 at temperature 1
MAX_NEW_TOKENS = 128  # the Proposer's limit (paper); captions are as long at most

_LANGUAGE = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
ROLE_TARGETS: dict[Role, str] = {
    "proposer": _LANGUAGE,
    "solver": _LANGUAGE,
    "generator": rf"{_LANGUAGE}|model\.generation_head\.(proj_out|vision_head)",
}


class Janus(Reader):
    """Janus behind the protocol; see `asgkit.backbones.base.Backbone`."""

    network: JanusForConditionalGeneration
    tokenizer: ChatTokenizer
    rows_at_once = 32  # Janus-Pro-7B: 0.5 MB of keys and values per token in bf16, 12 GB for 32 rows of 750

    def __init__(self, network: JanusForConditionalGeneration, words: PreTrainedTokenizerBase,
                 processor: JanusImageProcessorPil, *, max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any) -> None:
        config, vq = network.config, network.model.vqmodel
        spec = BackboneSpec("janus", "autoregressive", config.vision_config.image_size,
                            (vq.config.num_patches**2,), config.text_config.vocab_size, max_new_tokens, PROMPTS,
                            native=NativeSampling(GUIDANCE))
        ids = {text: _special(words, text) for text in (BOS, EOS, PAD, IMAGE_START, IMAGE_END)}
        super().__init__(network, ChatTokenizer(words, TURN, end=ids[EOS], pad=ids[PAD]), spec, targets=ROLE_TARGETS,
                         **settings)
        self.processor, self.bos, self.image_start = processor, ids[BOS], ids[IMAGE_START]
        self._head = [ids[BOS], *self.tokenizer.encode(DEFAULT_SYSTEM_PROMPT + USER)]
        self._tail = [ids[IMAGE_END], *self.tokenizer.encode("\n")]
        self.blank_start = len(self._head)
        self.text_start = len(self._head) + 1 + config.vision_config.num_image_tokens + len(self._tail)

    @classmethod
    def load(cls, base: str = "random", *, precision: str = "fp32", **settings: Any) -> Janus:
        """Open a folder with the published files, or `random`: a tiny instance with random weights.

        precision bf16 stores the frozen weights in bf16, but for the VQ autoencoder: pixels and codes are the same in
        both. Raises FileNotFoundError (lists the files), UnmatchedTensors (lists the tensors).
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        settings["precision"] = precision
        if base == "random":
            return cls(*_random(dtype), max_new_tokens=32, **settings)
        folder = Path(base)
        require_files(folder, list(FILES), SOURCE)
        # by its file: the class that the published tokenizer_config.json names drops spaces in transformers 5
        words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        processor = JanusImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(_published(folder, dtype), words, processor, **settings)

    # -- reading -----------------------------------------------------------------------------------------------
    def _words(self, rows: Sequence[Sequence[int]] | Tensor) -> Tensor:
        """Input embeddings of word ids, (B, T, D)."""
        return self.network.model.language_model.embed_tokens(torch.as_tensor(rows, device=self.device))

    def _run(self, x: Tensor, keys: Tensor, positions: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """One causal pass over embeddings x (R, T, D); keys (R, P + T) bool: which of past and x exist."""
        cache = DynamicCache(past)
        out = self.network.model.language_model(inputs_embeds=x, attention_mask=keys, position_ids=positions,
                                                past_key_values=cache, use_cache=True)
        return out.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers]

    def _begin_with(self, x: Tensor) -> KeyValues:
        rows, width, _ = x.shape
        positions = torch.arange(width, device=self.device).expand(rows, width)
        return self._run(x, torch.ones(rows, width, dtype=torch.bool, device=self.device), positions, None)[1]

    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values of system text, user mark and each image."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
        features = self.network.model.get_image_features(pixels).pooler_output  # (B, 576, D)
        spread = lambda ids: self._words([ids]).expand(len(images), -1, -1)
        return self._begin_with(torch.cat([spread([*self._head, self.image_start]), features, spread(self._tail)], 1))

    def unseen(self, count: int) -> KeyValues:
        """Keys and values of system text and user mark."""
        return self._begin_with(self._words([self._head] * count))

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """A causal pass of the language model; see `Reader.read`."""
        if past_mask is None:
            seen = past[0][0].shape[2] if past else 0
            past_mask = torch.ones(len(ids), seen, dtype=torch.bool, device=self.device)
        return self._run(self._words(ids), torch.cat([past_mask, mask], 1), start[:, None] + _count(mask), past)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        return self.network.lm_head(hidden)

    # -- image codes -------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Codes (B, 576): the codebook entries of nearest direction to the VQ encoder's output.

        The codebook is defined by direction: decoding normalises its entries, and the original implementation
        normalises both sides before it compares. transformers' `encode` compares lengths too, so its codes differ
        where the stored entries are not of length 1.
        """
        vq = self.network.model.vqmodel
        shown = self.processor(images=list(images), do_normalize=False, return_tensors="pt").pixel_values
        found = []
        for part in shown.split(self.rows_at_once):
            z = vq.quant_conv(vq.encoder(part.to(self.device) * 2 - 1)).flatten(2).transpose(1, 2)  # (B, 576, 8)
            found.append((z @ nn.functional.normalize(vq.quantize.embedding.weight, dim=-1).T).argmax(-1))
        return torch.cat(found)

    @torch.no_grad()
    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of codes (B, 576)."""
        decode = self.network.model.vqmodel.decode
        pixels = torch.cat([decode(part).clamp(-1, 1) for part in codes.split(self.rows_at_once)])
        arrays = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(array) for array in arrays]

    # -- drawing -----------------------------------------------------------------------------------------------
    def _requests(self, prompts: Sequence[str], free: bool) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) of drawing requests; `free` appends the null requests that guidance leads away from.

        A null request keeps its first and last token (<bos>, <begin_of_image>) and is padding in between, which is
        attended: the published form, whose length follows its prompt's.
        """
        rows = [[self.bos, *self.tokenizer.encode(USER + text + TURN), self.image_start] for text in prompts]
        if free:
            rows += [[self.bos, *[self.tokenizer.pad] * (len(row) - 2), self.image_start] for row in rows]
        ids, mask = pad_rows(rows, self.tokenizer.pad, left=True)
        return ids.to(self.device), mask.to(self.device)

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Sample the codes in turn; guidance g (None: 5, as published): u + g (c - u) on logits.

        logp (B, 576) is that of the unguided policy at temperature 1, the one the Generator is trained by.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        guidance = GUIDANCE if guidance is None else guidance
        temperature = 1.0 if temperature is None else temperature
        noise = row_uniforms(list(seeds), self.spec.code_shape[0]).to(self.device)
        size = max(1, self.rows_at_once // (1 if guidance == 1.0 else 2))
        with torch.no_grad(), self.use_role(role), self._cast():
            parts = [self._sample(prompts[i : i + size], noise[i : i + size], guidance, temperature)
                     for i in range(0, len(prompts), size)]
        codes, logp = (torch.cat(column) for column in zip(*parts, strict=True))
        return Drawings(self.decode_images(codes), codes, logp)

    def _sample(self, prompts: Sequence[str], noise: Tensor, guidance: float, temperature: float
                ) -> tuple[Tensor, Tensor]:
        """Codes and their log-probabilities, both (B, 576), from uniforms (B, 576)."""
        ids, mask = self._requests(prompts, free=guidance != 1.0)
        count, streams = len(prompts), len(ids) // len(prompts)
        position, one = mask.sum(1, keepdim=True), torch.ones_like(mask[:, :1])
        hidden, past = self._run(self._words(ids), mask, _count(mask), None)
        codes, logps = [], []
        for t in range(noise.shape[1]):
            if t:
                mask = torch.cat([mask, one], 1)
                x = self.network.prepare_embeddings_for_image_generation(codes[-1].repeat(streams)[:, None])
                hidden, past = self._run(x, mask, position + t - 1, past)
            logits = self.network.model.generation_head(hidden[:, -1]).float()
            codes.append(sample_tokens(guide(logits, count, guidance), noise[:, t], temperature))
            logps.append(log_softmax_stats(logits[:count], codes[-1])[0])
        return torch.stack(codes, 1), torch.stack(logps, 1)

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Teacher-forced log-probabilities (B, 576) of drawings; `noise` has no meaning for tokens and must be None."""
        if noise is not None:
            raise ValueError("janus draws tokens: its likelihood is exact and takes no noise")
        codes = codes.to(self.device)
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            ids, mask = self._requests(prompts, free=False)
            drawn = self.network.prepare_embeddings_for_image_generation(codes[:, :-1])
            mask = torch.cat([mask, torch.ones_like(codes[:, :-1], dtype=torch.bool)], 1)
            hidden, _ = self._run(torch.cat([self._words(ids), drawn], 1), mask, _count(mask), None)
            logits = self.network.model.generation_head(hidden[:, -codes.shape[1] :]).float()
        logp, entropy = log_softmax_stats(logits, codes)
        return GenStats(-logp.mean(1), logp, entropy, logits if keep_logits else None)


def _count(mask: Tensor) -> Tensor:
    """Positions (R, T) of real words, from 0; padding on the left shares position 0, and is attended by nobody."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _special(words: PreTrainedTokenizerBase, text: str) -> int:
    """The id of a special token; ValueError where the tokenizer is of another model."""
    ids = words.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"the tokenizer has no token {text}: it is not Janus's; copy tokenizer.json from {SOURCE}")
    return ids[0]


# -- networks --------------------------------------------------------------------------------------------------------
def _build(config: JanusConfig, dtype: torch.dtype) -> JanusForConditionalGeneration:
    """The network in one dtype; rotary frequencies stay fp32 (they are computed so), and so does the autoencoder."""
    config._attn_implementation = "sdpa"
    with default_dtype(dtype):
        network = JanusForConditionalGeneration(config)
    network.model.vqmodel.float()
    return network


def _published(folder: Path, dtype: torch.dtype) -> JanusForConditionalGeneration:
    """The network of a folder, with every tensor of its files in place."""
    files = sorted(folder.glob("*.safetensors"))
    config = JanusConfig.from_pretrained(folder, local_files_only=True)
    # Whether the word embedding is the output layer too: the default of this key differs between versions of
    # transformers, so the files decide. Tying two tensors that both exist would lose one of them.
    config.tie_word_embeddings = not any("lm_head.weight" in _names(file) for file in files)
    with no_init_weights():  # minutes at 7B, for numbers that are overwritten
        network = _build(config, dtype)
    network.tie_weights()
    fill(network, stream(files))
    return network


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _random(dtype: torch.dtype
            ) -> tuple[JanusForConditionalGeneration, PreTrainedTokenizerBase, JanusImageProcessorPil]:
    """A tiny Janus with random weights that always are the same; its special tokens have the published names."""
    # the system text as one token: byte by byte it would be most of every prompt
    words = phrase_tokenizer([BOS, EOS, PAD, IMAGE, IMAGE_START, IMAGE_END, DEFAULT_SYSTEM_PROMPT])
    loud = 0.1  # standard deviation of the weights: with the usual 0.02 every input gives nearly the same output
    config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 4096,
                     "initializer_range": loud, "pad_token_id": None},
        vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
                       "patch_size": 8, "projection_dim": 64, "num_image_tokens": 16, "initializer_range": loud},
        vq_config={"num_embeddings": 64, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1] * 4,
                   "num_res_blocks": 1, "projection_dim": 64, "image_token_embed_dim": 64, "initializer_range": loud},
        image_token_id=_special(words, IMAGE), tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _build(config, dtype)
    processor = JanusImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return network, words, processor


def full_size(size: Literal["1B", "7B"] = "7B") -> JanusForConditionalGeneration:
    """Janus-Pro at its published size on the meta device: shapes without memory, for counting."""
    wide, inner, layers, heads = {"1B": (2048, 5632, 24, 16), "7B": (4096, 11008, 30, 32)}[size]
    config = JanusConfig(
        text_config={"model_type": "llama", "vocab_size": 102_400, "hidden_size": wide, "intermediate_size": inner,
                     "num_hidden_layers": layers, "num_attention_heads": heads, "max_position_embeddings": 16_384},
        vision_config={"projection_dim": wide}, vq_config={"projection_dim": wide, "image_token_embed_dim": wide},
        tie_word_embeddings=False)
    with torch.device("meta"):
        return _build(config, torch.bfloat16)
