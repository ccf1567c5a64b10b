"""tiny-ar: an autoregressive unified model that draws coarse codes one by one and fine codes at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asgkit.backbones.base import ROLES, BackboneSpec, Drawings, GenStats, NoiseSpec, Role
from asgkit.backbones.sampling import guide, log_softmax_stats, row_uniforms, sample_tokens
from asgkit.backbones.tiny.codes import COARSE, FINE, TOKENS, encode, to_images, to_tensor, unpatch
from asgkit.backbones.tiny.language import LANGUAGES, SHIPPED, Language, language_of
from asgkit.backbones.tiny.network import NetworkConfig, TinyARNetwork
from asgkit.backbones.tiny.prompts import DRAW
from asgkit.backbones.tiny.trunk import KeyValues, TrunkConfig
from asgkit.backbones.tiny.understand import (
    CHECKPOINTS,
    TRUNK_TARGETS,
    TinyUnderstanding,
    network_settings,
    read_checkpoint,
)


class TinyAR(TinyUnderstanding):
    """The tiny autoregressive backbone; see `asgkit.backbones.base.Backbone` for the protocol."""

    network: TinyARNetwork

    @classmethod
    def load(cls, base: str = "clean", **settings: Any) -> TinyAR:
        """Open a shipped base (one of `SHIPPED`) or a checkpoint file, with fresh adapters."""
        path = CHECKPOINTS / f"tiny-ar-{base}.safetensors" if base in SHIPPED else Path(base)
        tensors, meta = read_checkpoint(path, "tiny-ar")
        sizes, words, trained = network_settings(meta)
        config = NetworkConfig(**{**sizes, "trunk": TrunkConfig(**sizes["trunk"])})
        network = TinyARNetwork(config)
        for name in ("coarse_book", "fine_book"):
            tensors[name] = tensors[name].float() / 255
        network.load_state_dict(tensors)
        return cls.wrap(network, words, registers=trained["registers"] > 0, language=language_of(meta), **settings)

    @classmethod
    def wrap(cls, network: TinyARNetwork, words: list[str], *, registers: bool = False,
             language: Language = LANGUAGES["shapes"], **settings: Any) -> TinyAR:
        """Give a network its three roles and the prompts of its base."""
        spec = BackboneSpec("tiny-ar", "autoregressive", 24, (TOKENS,), len(words) + 2, language.longest,
                            language.prompts["registers" if registers else "clean"], world=language.world)
        return cls(network, words, spec, targets=dict.fromkeys(ROLES, TRUNK_TARGETS), **settings)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Nearest codes (B, 45): exact for drawn objects, quantised for handwriting and anything else."""
        return encode(to_tensor(images).to(self.device), self.network.coarse_book, self.network.fine_book)

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of codes (B, 45): the fine codes alone decide the pixels."""
        return to_images(unpatch(self.network.fine_book[codes[:, COARSE:]]))

    def _read_captions(self, prompts: Sequence[str]) -> tuple[KeyValues, Tensor]:
        ids, mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        start = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        return self.network.read(ids, mask, None, None, start)[1], mask

    def _stream(self, prompts: Sequence[str], guidance: float) -> tuple[KeyValues, Tensor]:
        """Caption cache; with guidance, captionless rows are appended below the captioned ones."""
        extra = [DRAW] * len(prompts) if guidance != 1.0 else []
        return self._read_captions([*prompts, *extra])

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Sample 9 coarse codes in turn, then 36 fine codes at once; guidance g: u + g (c - u) on logits.

        logp (B, 45) is that of the unguided policy at temperature 1, the one the Generator is trained by.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        guidance = 1.0 if guidance is None else guidance
        temperature = 1.0 if temperature is None else temperature
        noise = row_uniforms(list(seeds), TOKENS).to(self.device)
        with torch.no_grad(), self.use_role(role), self._cast():
            past, mask = self._stream(prompts, guidance)
            coarse, logp, past, mask = self._draw_coarse(past, mask, noise, guidance, temperature)
            fine, fine_logp = self._draw_fine(coarse, past, mask, noise, guidance, temperature)
        codes = torch.cat([coarse, fine], 1)
        return Drawings(self.decode_images(codes), codes, torch.cat([logp, fine_logp], 1))

    def _draw_coarse(self, past: KeyValues, mask: Tensor, noise: Tensor, guidance: float, temperature: float):
        count, streams = len(noise), len(mask) // len(noise)
        previous = torch.full((count,), self.network.config.coarse, device=self.device)
        picked, logps = [], []
        one = torch.ones(len(mask), 1, dtype=torch.bool, device=self.device)
        for t in range(COARSE):
            x = self.network.coarse_inputs(previous.repeat(streams)[:, None], t)
            mask = torch.cat([mask, one], 1)
            hidden, past = self.network.trunk(x, _key_bias(mask), past)
            logits = self.network.coarse_head(hidden[:, 0]).float()
            previous = sample_tokens(guide(logits, count, guidance), noise[:, t], temperature)
            picked.append(previous)
            logps.append(log_softmax_stats(logits[:count], previous)[0])
        return torch.stack(picked, 1), torch.stack(logps, 1), past, mask

    def _draw_fine(self, coarse: Tensor, past: KeyValues, mask: Tensor, noise: Tensor, guidance: float,
                   temperature: float) -> tuple[Tensor, Tensor]:
        count, streams = len(noise), len(mask) // len(noise)
        mask = torch.cat([mask, torch.ones(len(mask), FINE, dtype=torch.bool, device=self.device)], 1)
        x = self.network.fine_inputs(coarse).repeat(streams, 1, 1)
        logits = self.network.fine_head(self.network.trunk(x, _key_bias(mask), past)[0]).float()
        guided = guide(logits, count, guidance)
        flat = sample_tokens(guided.flatten(0, 1), noise[:, COARSE:].flatten(), temperature)
        fine = flat.reshape(count, FINE)
        return fine, log_softmax_stats(logits[:count], fine)[0]

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Teacher-forced log-probabilities (B, 45) of drawings; `noise` has no meaning for tokens and must be None."""
        if noise is not None:
            raise ValueError("tiny-ar draws tokens: its likelihood is exact and takes no noise")
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            past, mask = self._read_captions(prompts)
            coarse, fine = self.network.code_logits(self.network.draw_hidden(codes, past, mask))
        logits = _pad_join(coarse.float(), fine.float())
        logp, entropy = log_softmax_stats(logits, codes)
        return GenStats(-logp.mean(1), logp, entropy, logits if keep_logits else None)


def _key_bias(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))[:, None, None]


def _pad_join(coarse: Tensor, fine: Tensor) -> Tensor:
    """Coarse (B, 9, V1) and fine (B, 36, V2) logits as one (B, 45, V) tensor, missing codes at -inf."""
    width = max(coarse.shape[-1], fine.shape[-1])
    pad = lambda x: torch.nn.functional.pad(x, (0, width - x.shape[-1]), value=float("-inf"))
    return torch.cat([pad(coarse), pad(fine)], 1)
