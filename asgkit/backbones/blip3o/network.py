"""BLIP3o's trainable side as one module: Qwen2.5-VL, learned queries, and a NextDiT that draws image features."""

from __future__ import annotations

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, get_2d_rotary_pos_embed_lumina
from torch import Tensor, nn
from transformers import DynamicCache, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from asgkit.backbones.reader import KeyValues

TRAIN_TIMES = 1000  # the transformer's time runs from 1000 (noise) to 0 (picture)


def make_dit(*, grid: int, channels: int, width: int, layers: int, heads: int) -> LuminaNextDiT2DModel:
    """The drawing transformer over `grid` x `grid` cells of `channels` numbers; published: 8, 1792, 1792, 24, 28."""
    dit = LuminaNextDiT2DModel(sample_size=grid, patch_size=1, in_channels=channels, hidden_size=width,
                               num_layers=layers, num_attention_heads=heads, num_kv_heads=heads, learn_sigma=False,
                               cross_attention_dim=width)
    del dit.pad_token  # neither used nor published
    return dit


class Blip3oNetwork(nn.Module):
    """Reads with `vlm`; draws with `dit` from what `queries` (1, n, D) saw, through `caption_projection`."""

    def __init__(self, config: Qwen2_5_VLConfig, dit: LuminaNextDiT2DModel, queries: int) -> None:
        super().__init__()
        self.vlm = Qwen2_5_VLForConditionalGeneration(config)
        width = config.text_config.hidden_size
        self.caption_projection = PixArtAlphaTextProjection(width, dit.hidden_size)
        self.dit = dit
        self.queries = nn.Parameter(torch.randn(1, queries, width))
        self.grid = dit.sample_size
        angles = get_2d_rotary_pos_embed_lumina(dit.head_dim, self.grid, self.grid)
        self.register_buffer("angles", angles, persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (..., D) of ids (...)."""
        return self.vlm.model.language_model.embed_tokens(ids)

    def features(self, patches: Tensor, grids: Tensor) -> Tensor:
        """The vision tower's tokens (B, n, D) of B images of one size, patches and grids as its processor gives them.
        """
        return torch.stack(self.vlm.model.get_image_features(patches, grids, return_dict=True).pooler_output)

    def read(self, x: Tensor, mask: Tensor, positions: Tensor, past: KeyValues | None, past_mask: Tensor | None
             ) -> tuple[Tensor, KeyValues]:
        """Causal pass over embeddings x (R, T, D), mask (R, T) bool, after a past (past_mask (R, P), None: all exist).

        positions: (3, R, T) M-RoPE positions in time, row and column. They are always given: without them the model
        would count its own, from state that an earlier image left on the module. Returns hidden states and the cache.
        """
        length = 0 if past is None else past[0][0].shape[2]
        if past_mask is None:
            past_mask = torch.ones(len(x), length, dtype=torch.bool, device=x.device)
        out = self.vlm.model.language_model(
            inputs_embeds=x, attention_mask=torch.cat([past_mask, mask], 1), position_ids=positions,
            past_key_values=DynamicCache(past), use_cache=True)
        return out.last_hidden_state, [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    def condition(self, ids: Tensor, mask: Tensor, past: KeyValues | None, start: int) -> Tensor:
        """Hidden states (R, n, D) of the queries after words ids (R, T) that begin at position `start`."""
        rows, count = len(ids), self.queries.shape[1]
        asked = self.queries.to(self.embed(ids).dtype).expand(rows, -1, -1)
        mask = torch.cat([mask, torch.ones(rows, count, dtype=torch.bool, device=mask.device)], 1)
        positions = word_positions(mask, torch.full((rows,), start, device=ids.device))
        return self.read(torch.cat([self.embed(ids), asked], 1), mask, positions, past, None)[0][:, -count:]

    def velocity(self, x: Tensor, timestep: Tensor, condition: Tensor) -> Tensor:
        """Velocity `noise - features` (B, C, g, g) of noisy features x at timesteps (B,) in (0, 1000].

        condition: (B, n, D), or zeros for a drawing without a caption.
        """
        caption = self.caption_projection(condition)
        everything = torch.ones(caption.shape[:2], device=x.device)
        return self.dit(hidden_states=x, timestep=timestep, encoder_hidden_states=caption, encoder_mask=everything,
                        image_rotary_emb=self.angles, cross_attention_kwargs={}).sample


def word_positions(mask: Tensor, start: Tensor) -> Tensor:
    """M-RoPE positions (3, R, T) of words: alike in time, row and column, counted from `start` (R,) over mask (R, T).
    """
    return (start[:, None] + mask.long().cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)


def image_positions(before: int, side: int, after: int) -> Tensor:
    """M-RoPE positions (3, 1, T) of `before` words, side x side image tokens and `after` words.

    An image stands at one time; its rows and columns count from there, and the words after it go on behind the
    larger of them. Source: Qwen2-VL.
    """
    rows, columns = (x.flatten() for x in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    image = before + torch.stack([torch.zeros_like(rows), rows, columns])
    first, last = torch.arange(before).expand(3, -1), before + side + torch.arange(after).expand(3, -1)
    return torch.cat([first, image, last], 1)[:, None]
