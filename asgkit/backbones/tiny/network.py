"""The networks of the tiny family: one reader (pictures in, words in and out) and what tiny-ar adds to draw."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from asgkit.backbones.tiny.codes import COARSE, TOKENS, patches, unpatch
from asgkit.backbones.tiny.trunk import KeyValues, Trunk, TrunkConfig, attention_bias

IMAGE_TOKENS = 36
TEXT_POSITIONS = 48


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a model that draws codes; `coarse` and `fine` are codebook sizes, `positions` those of words."""

    words: int
    coarse: int
    fine: int
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    positions: int = TEXT_POSITIONS


class TinyReader(nn.Module):
    """The understanding half: pictures in (36 tokens, mutually visible), words in and out (causal), one trunk."""

    def __init__(self, words: int, trunk: TrunkConfig, positions: int = TEXT_POSITIONS) -> None:
        super().__init__()
        width = trunk.width
        self.stem = nn.Sequential(nn.Conv2d(3, width // 2, 3, 2, 1), nn.GELU(), nn.Conv2d(width // 2, width, 3, 2, 1))
        self.image_position = nn.Parameter(torch.randn(IMAGE_TOKENS, width) * 0.02)
        self.word = nn.Embedding(words, width)
        self.word_position = nn.Parameter(torch.randn(positions, width) * 0.02)
        self.trunk = Trunk(trunk)
        self.word_head = nn.Linear(width, words)

    def small_embeddings(self) -> None:
        """Start every embedding at standard deviation 0.02, like the positions."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def see(self, pixels: Tensor) -> KeyValues:
        """Keys and values of pictures (B, 3, 24, 24)."""
        tokens = self.stem(pixels - 0.5).flatten(2).transpose(1, 2) + self.image_position
        return self.trunk(tokens)[1]

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """Causal pass over words (R, T) after a past; `start` (R,) is the position of the first real word.

        past_mask: (R, P) bool, None when every past key exists. Returns hidden states (R, T, D) and the new cache.
        """
        rows, width = ids.shape
        length = 0 if past is None else past[0][0].shape[2]
        positions = (start[:, None] + mask.long().cumsum(1) - 1).clamp(0, len(self.word_position) - 1)
        if past_mask is None:
            past_mask = torch.ones(rows, length, dtype=torch.bool, device=ids.device)
        steps = torch.arange(width, device=ids.device)
        causal = torch.cat([torch.ones(width, length, dtype=torch.bool, device=ids.device),
                            steps[:, None] >= steps[None]], 1)
        bias = attention_bias(mask, torch.cat([past_mask, mask], 1), causal)
        return self.trunk(self.word(ids) + self.word_position[positions], bias, past)


class TinyARNetwork(TinyReader):
    """A reader that also draws image codes through its trunk: 9 coarse codes in turn, then 36 fine ones at once."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config.words, config.trunk, config.positions)
        self.config = config
        width = config.trunk.width
        self.code_position = nn.Parameter(torch.randn(TOKENS, width) * 0.02)
        self.coarse_word = nn.Embedding(config.coarse + 1, width)  # the last entry starts a drawing
        self.fine_in = nn.Linear(48, width)
        self.coarse_head = nn.Linear(width, config.coarse)
        self.fine_head = nn.Linear(width, config.fine)
        self.register_buffer("coarse_book", torch.zeros(config.coarse, 48))
        self.register_buffer("fine_book", torch.zeros(config.fine, 48))
        self.small_embeddings()

    def coarse_inputs(self, previous: Tensor, first: int = 0) -> Tensor:
        """Inputs of coarse positions `first`.. given the codes before each: previous (B, t) -> (B, t, D)."""
        return self.coarse_word(previous) + self.code_position[first : first + previous.shape[1]]

    def fine_inputs(self, coarse: Tensor) -> Tensor:
        """Inputs of the 36 fine positions: patches of the up-sampled coarse picture, coarse (B, 9) -> (B, 36, D)."""
        picture = unpatch(self.coarse_book[coarse])  # (B, 3, 12, 12)
        enlarged = nn.functional.interpolate(picture, scale_factor=2, mode="nearest")
        return self.fine_in(patches(enlarged) - 0.5) + self.code_position[COARSE:]

    def draw_hidden(self, codes: Tensor, past: KeyValues, past_mask: Tensor) -> Tensor:
        """Teacher-forced hidden states of a whole drawing: codes (B, 45) -> (B, 45, D)."""
        b = codes.shape[0]
        begin = torch.full((b, 1), self.config.coarse, device=codes.device)
        previous = torch.cat([begin, codes[:, : COARSE - 1]], 1)
        x = torch.cat([self.coarse_inputs(previous), self.fine_inputs(codes[:, :COARSE])], 1)
        steps = torch.arange(TOKENS, device=codes.device)
        own = (steps[:, None] >= steps[None]) | ((steps >= COARSE)[:, None] & (steps >= COARSE)[None])
        causal = torch.cat([torch.ones(TOKENS, past_mask.shape[1], dtype=torch.bool, device=codes.device), own], 1)
        keys = torch.cat([past_mask, torch.ones(b, TOKENS, dtype=torch.bool, device=codes.device)], 1)
        return self.trunk(x, attention_bias(None, keys, causal), past)[0]

    def code_logits(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Coarse (B, 9, V1) and fine (B, 36, V2) logits of teacher-forced hidden states (B, 45, D)."""
        return self.coarse_head(hidden[:, :COARSE]), self.fine_head(hidden[:, COARSE:])
