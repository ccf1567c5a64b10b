"""How VARGPT reads: Qwen2-VL with explicit positions, the image before the words, nothing remembered on the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from asgkit.backbones.base import BackboneSpec
from asgkit.backbones.chat import ChatTokenizer
from asgkit.backbones.reader import KeyValues, Reader
from asgkit.backbones.vargpt.network import (
    IM_END,
    IMAGE,
    PAD,
    VISION_END,
    VISION_START,
    VargptNetwork,
    special_id,
)

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"  # Qwen2-VL's
TURN = "<|im_end|>\n<|im_start|>assistant\n"


class VargptReading(Reader):
    """The hooks of `Reader` over Qwen2-VL; a chat is

        system, user mark, <|vision_start|> image <|vision_end|>   |   text, assistant mark   |   answer <|im_end|>

    Positions are three numbers (time, row, column): equal for words, spread over its grid for an image, after which
    the words go on from the largest.
    """

    network: VargptNetwork
    tokenizer: ChatTokenizer

    def __init__(self, network: VargptNetwork, words: PreTrainedTokenizerBase, spec: BackboneSpec,
                 **settings: Any) -> None:
        end, pad = special_id(words, IM_END), special_id(words, PAD)
        super().__init__(network, ChatTokenizer(words, TURN, end=end, pad=pad), spec, **settings)
        vision = network.qwen.config.vision_config
        self._grid = round(spec.image_side / (vision.patch_size * vision.spatial_merge_size))  # image tokens a side
        self._eye = Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size, do_resize=False, image_mean=OPENAI_CLIP_MEAN,
            image_std=OPENAI_CLIP_STD)
        self._head = self.tokenizer.encode(SYSTEM)
        self._before, self._within, self._behind = (special_id(words, t) for t in (VISION_START, IMAGE, VISION_END))
        self.blank_start = len(self._head)
        self.text_start = len(self._head) + self._grid + 2

    # -- the language model ------------------------------------------------------------------------------------
    def _words(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Input embeddings (B, T, D) of word ids."""
        return self.network.qwen.model.language_model.embed_tokens(torch.as_tensor(ids, device=self.device))

    def _run(self, x: Tensor, keys: Tensor, positions: Tensor, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """One causal pass over embeddings x (R, T, D) at positions (R, T) or (3, R, T); keys (R, P + T) bool: which
        of past and x exist. Returns last hidden states (R, T, D) and the new cache."""
        cache = DynamicCache(past)
        out = self.network.qwen.model.language_model(inputs_embeds=x, attention_mask=keys, position_ids=positions,
                                                     past_key_values=cache, use_cache=True)
        return out.last_hidden_state, [(layer.keys, layer.values) for layer in cache.layers]

    def _begin_with(self, x: Tensor, positions: Tensor) -> KeyValues:
        keys = torch.ones(x.shape[:2], dtype=torch.bool, device=self.device)
        return self._run(x, keys, positions[:, None].expand(3, len(x), -1), None)[1]

    # -- hooks -------------------------------------------------------------------------------------------------
    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values of system text, user mark and each image."""
        text = self._words([[*self._head, self._before]]).expand(len(images), -1, -1)
        behind = self._words([[self._behind]]).expand(len(images), -1, -1)
        return self._begin_with(torch.cat([text, self._look(images), behind], 1), self._image_positions())

    def _look(self, images: Sequence[Image.Image]) -> Tensor:
        """Image tokens (B, grid * grid, D) of the vision tower."""
        vision = self.network.qwen.config.vision_config
        side = self._grid * vision.patch_size * vision.spatial_merge_size
        shown = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images]
        made = self._eye(images=shown, return_tensors="pt").to(self.device)
        found = self.network.qwen.model.visual(made.pixel_values, grid_thw=made.image_grid_thw).pooler_output
        return found.unflatten(0, (len(images), -1))

    def _image_positions(self) -> Tensor:
        """Positions (3, P) of system text, user mark, image and its two marks."""
        start, cells = len(self._head) + 1, torch.arange(self._grid**2)
        image = start + torch.stack([torch.zeros_like(cells), cells // self._grid, cells % self._grid])
        text, behind = torch.arange(start).expand(3, -1), torch.full((3, 1), start + self._grid)
        return torch.cat([text, image, behind], 1).to(self.device)

    def unseen(self, count: int) -> KeyValues:
        """Keys and values of system text and user mark."""
        positions = torch.arange(len(self._head), device=self.device).expand(3, -1)
        return self._begin_with(self._words([self._head] * count), positions)

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """A causal pass of the language model; see `Reader.read`."""
        if past_mask is None:
            seen = past[0][0].shape[2] if past else 0
            past_mask = torch.ones(len(ids), seen, dtype=torch.bool, device=self.device)
        return self._run(self._words(ids), torch.cat([past_mask, mask], 1), start[:, None] + count(mask), past)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        return self.network.qwen.lm_head(hidden)


def count(mask: Tensor) -> Tensor:
    """Positions (R, T) of real words, from 0; padding on the left shares position 0, and is attended by nobody."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)
