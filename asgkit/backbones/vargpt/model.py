"""VARGPT-v1.1 behind the protocol: it draws a picture as bits, grid by grid, each grid thought through by Qwen2-VL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from asgkit.backbones.base import BackboneSpec, Drawings, GenStats, NativeSampling, NoiseSpec, Role
from asgkit.backbones.chat import PROMPTS, pad_rows
from asgkit.backbones.reader import KeyValues
from asgkit.backbones.sampling import log_softmax_stats, row_uniforms, sample_tokens
from asgkit.backbones.vargpt import network as files
from asgkit.backbones.vargpt.autoencoder import to_images, to_pixels
from asgkit.backbones.vargpt.network import VargptNetwork
from asgkit.backbones.vargpt.reading import SYSTEM, VargptReading, count

GUIDANCE, TEMPERATURE, TOP_P = 3.0, 0.5, 0.97  # published sampling; its top-k of 900 means nothing among two values
MAX_NEW_TOKENS = 128  # the Proposer's limit (paper); captions are as long at most
REQUEST = "Please draw a picture of this: {caption}"

_LANGUAGE = r"qwen\.model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_HEAD = r"vargpt_gen\.block_chunks\.\d+\.module\.\d+\.(sa\.(mat_qkv|proj)|ca\.(mat_q|mat_kv|proj)|ffn\.fc[12])"
ROLE_TARGETS: dict[Role, str] = {
    "proposer": _LANGUAGE,
    "solver": _LANGUAGE,
    "generator": rf"{_LANGUAGE}|{_HEAD}|image_gen_projector(_out)?\.mlp\.[02]",
}


class Vargpt(VargptReading):
    """VARGPT-v1.1; see `asgkit.backbones.base.Backbone`.

    Codes are bits (B, L, d) int64 in {0, 1}: L positions of all grids (2521 at full size), d bits each (32). The
    policy decides bit by bit: given prompt and earlier grids, the bits of a grid are independent, so the likelihood
    is a product over bits and exact. Statistics are per bit, flattened: logp and entropy (B, L * d), logits
    (B, L * d, 2), in the order of `codes.flatten(1)`; the log-probability of a position is the sum over its d.
    """

    rows_at_once = 16
    drawings_at_once = 8  # full size: 0.8 GB of keys and values per drawing in bf16, 1.5 GB with guidance

    def __init__(self, network: VargptNetwork, words: PreTrainedTokenizerBase, *,
                 max_new_tokens: int = MAX_NEW_TOKENS, **settings: Any) -> None:
        scales = network.vargpt_gen.scales
        spec = BackboneSpec("vargpt", "autoregressive", network.sizes.image_side, (scales.positions, scales.bits),
                            network.sizes.text["vocab_size"], max_new_tokens, replace(PROMPTS, draw=REQUEST),
                            native=NativeSampling(GUIDANCE, TEMPERATURE, TOP_P))
        super().__init__(network, words, spec, targets=ROLE_TARGETS, **settings)
        self.scales = scales

    @classmethod
    def load(cls, base: str = "random", *, precision: str = "fp32", **settings: Any) -> Vargpt:
        """Open a folder with the published files, or `random`: a tiny instance with random weights.

        precision bf16 stores the frozen weights in bf16, but for the bit tokenizer: codes are the same in both.
        Raises FileNotFoundError (lists the files), UnmatchedTensors (lists the tensors).
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        settings["precision"] = precision
        if base == "random":
            return cls(*files.tiny(dtype), max_new_tokens=32, **settings)
        return cls(*files.published(Path(base), dtype), **settings)

    # -- codes -------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Bits (B, L, d) of pictures: residual signs on every grid, none flipped."""
        pixels = to_pixels(images, self.spec.image_side)
        parts = pixels.split(self.drawings_at_once)
        return torch.cat([self.scales.encode(self.network.vae_local.encode(p.to(self.device))) for p in parts])

    @torch.no_grad()
    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of bits (B, L, d)."""
        canvas = self.scales.canvas(codes.to(self.device))
        return to_images(torch.cat([self.network.vae_local.decode(p) for p in canvas.split(self.drawings_at_once)]))

    # -- drawing -----------------------------------------------------------------------------------------------
    def _requests(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, P + 1), padded on the left: the chat, and the token that starts a drawing."""
        rows = [[*self.tokenizer.encode(SYSTEM + text + self.tokenizer.after), self.network.sizes.draw]
                for text in prompts]
        ids, mask = pad_rows(rows, self.tokenizer.pad, left=True)
        return ids.to(self.device), mask.to(self.device)

    def _start(self, rows: int) -> Tensor:
        """The head's condition (B, C) of a drawing with a prompt."""
        token = torch.full((rows,), self.network.sizes.draw, device=self.device)
        return self.network.vargpt_gen.pool(self.network.sos_embedding(token))

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Teacher-forced statistics of the bits of drawings, one pass; the loss is the mean over bits, in nats.

        Every grid is read with the canvas of the bits that `codes` hold: none is flipped, as the released training
        does. Raises ValueError for noise (the likelihood is exact) and for codes of another shape.
        """
        if noise is not None:
            raise ValueError("vargpt draws bits: its likelihood is exact and takes no noise")
        if tuple(codes.shape) != (len(prompts), *self.spec.code_shape):
            raise ValueError(f"codes {tuple(codes.shape)} must be bits {(len(prompts), *self.spec.code_shape)}")
        codes = codes.to(self.device)
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            logits = self._forced_logits(prompts, codes).float().flatten(1, 2)
        logp, entropy = log_softmax_stats(logits, codes.flatten(1))
        return GenStats(-logp.mean(1), logp, entropy, logits if keep_logits else None)

    def _forced_logits(self, prompts: Sequence[str], codes: Tensor) -> Tensor:
        """Raw logits (B, L, d, 2) of all grids at once."""
        net, gen, positions = self.network, self.network.vargpt_gen, self.scales.positions
        ids, mask = self._requests(prompts)
        start = self._start(len(prompts))
        drawn = torch.cat([gen.first(start), gen.word_embed(self.scales.inputs(codes))], 1)
        x = torch.cat([self._words(ids), net.image_gen_projector(drawn)], 1)
        keys = torch.cat([mask, mask.new_ones(len(mask), positions)], 1)
        hidden, _ = self._run(x, keys, count(keys), None)
        prompt = net.image_gen_projector_out(hidden[:, : mask.shape[1] - 1])
        thought = net.image_gen_projector_out(hidden[:, -positions:])
        return gen(thought, start, prompt, mask[:, :-1], slice(0, positions))[0]

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Sample the bits grid by grid; guidance g (None: 3, as published): u + g (c - u) on logits.

        temperature None is the published pair: 0.5, and no bit whose probability is 3 % or less; a number is that
        temperature alone. logp (B, L * d) is that of the unguided policy at temperature 1, which is trained.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        guidance = GUIDANCE if guidance is None else guidance
        heat = (TEMPERATURE, TOP_P) if temperature is None else (temperature, 1.0)
        noise = row_uniforms(list(seeds), self.scales.positions * self.scales.bits).to(self.device)
        size = self.drawings_at_once
        with torch.no_grad(), self.use_role(role), self._cast():
            parts = [self._sample(prompts[i : i + size], noise[i : i + size], guidance, heat)
                     for i in range(0, len(prompts), size)]
        codes, logp = (torch.cat(column) for column in zip(*parts, strict=True))
        return Drawings(self.decode_images(codes), codes, logp)

    def _sample(self, prompts: Sequence[str], noise: Tensor, guidance: float, heat: tuple[float, float]
                ) -> tuple[Tensor, Tensor]:
        """Bits (B, L, d) and their log-probabilities (B, L * d), from uniforms (B, L * d)."""
        net, gen, rows, guided = self.network, self.network.vargpt_gen, len(prompts), guidance != 1.0
        ids, mask = self._requests(prompts)
        hidden, past = self._run(self._words(ids), mask, count(mask), None)
        start, shown, prompt = self._start(rows), mask[:, :-1], net.image_gen_projector_out(hidden[:, :-1])
        if guided:
            start = torch.cat([start, gen.pool(gen.cfg_uncond[:1]).expand(rows, -1)])
            prompt, shown = torch.cat([prompt, gen.null_prompt(shown).to(prompt.dtype)]), torch.cat([shown, shown])
        x, canvas, memory, codes, logps = gen.first(start), 0.0, None, [], []
        for i, part in enumerate(self.scales.parts):
            mask = torch.cat([mask, mask.new_ones(rows, x.shape[1])], 1)
            hidden, past = self._think(x, mask, past)
            logits, memory = gen(net.image_gen_projector_out(hidden), start, prompt, shown, part, memory)
            flat, first = logits.float().flatten(1, 2), part.start * self.scales.bits
            picked = _pick(flat, rows, guidance, noise[:, first : first + flat.shape[1]], heat)
            logps.append(log_softmax_stats(flat[:rows], picked)[0])
            codes.append(picked.unflatten(1, (-1, self.scales.bits)))
            canvas = self.scales.grow(canvas, codes[-1], i)
            if i + 1 < len(self.scales.parts):
                x = gen.word_embed(self.scales.view(canvas, i + 1)).repeat(1 + guided, 1, 1)
        return torch.cat(codes, 1), torch.cat(logps, 1)

    def _think(self, x: Tensor, mask: Tensor, past: KeyValues) -> tuple[Tensor, KeyValues]:
        """Hidden states of one grid x (B, n, C) after its past; rows beyond the past's are the null prompt's.

        The null stream remembers nothing in the language model: each of its grids is read alone, from position 0, as
        the published sampler does. Its memory is that of the head.
        """
        x, rows, width = self.network.image_gen_projector(x), len(mask), x.shape[1]
        hidden, past = self._run(x[:rows], mask, count(mask)[:, -width:], past)
        if len(x) > rows:
            alone = torch.arange(width, device=self.device).expand(len(x) - rows, -1)
            free, _ = self._run(x[rows:], torch.ones_like(alone, dtype=torch.bool), alone, None)
            hidden = torch.cat([hidden, free])
        return hidden, past


def _pick(logits: Tensor, rows: int, guidance: float, noise: Tensor, heat: tuple[float, float]) -> Tensor:
    """Bits (B, n * d) from logits (B or 2 B, n * d, 2) and uniforms (B, n * d)."""
    if len(logits) > rows:
        conditional, free = logits.split(rows)
        logits = free + guidance * (conditional - free)
    return sample_tokens(logits.flatten(0, 1), noise.flatten(), *heat).reshape(noise.shape)
