"""BAGEL as a backbone: reads images as one full-attention block and draws by removing noise from a latent block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from asgkit.backbones.bagel import autoencoder
from asgkit.backbones.bagel.config import DrawingSizes, Sampling, guided
from asgkit.backbones.bagel.files import (
    END,
    LOOK,
    LOOKED,
    PAD,
    START,
    convert_released,
    load_folder,
    random_instance,
)
from asgkit.backbones.bagel.mot import causal
from asgkit.backbones.bagel.network import BagelNetwork
from asgkit.backbones.base import ROLES, BackboneSpec, Drawings, GenStats, NativeSampling, NoiseSpec, Role
from asgkit.backbones.chat import PROMPTS, ChatTokenizer, pad_rows
from asgkit.backbones.noise import row_normals
from asgkit.backbones.reader import KeyValues, Reader, select_rows

IMAGE_SIDE = 512  # pixels, of the published model: its smallest trained drawing, and the release's size in updates
TINY_SIDE = 32
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LAYERS = r"language_model\.model\.layers\.\d+\."
_READ = _LAYERS + r"(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_DRAW = _LAYERS + r"(self_attn\.[qkvo]_proj_moe_gen|mlp_moe_gen\.(gate|up|down)_proj)"
_RELEASED = _LAYERS + r"(self_attn\.[qkvo]_proj|mlp(_moe_gen)?\.(gate|up|down)_proj)"
Targets = Literal["roles", "released"]
TARGETS: dict[str, dict[Role, str]] = {
    "roles": {"proposer": _READ, "solver": _READ, "generator": _DRAW},
    # what the seven suffixes of the released code match: never the attention of the generation weights
    "released": dict.fromkeys(ROLES, _RELEASED),
}
ROLE_TARGETS = TARGETS["roles"]


class TurnTokenizer(ChatTokenizer):
    """BAGEL knows no chat roles: a text is `<|im_start|> text <|im_end|>`, and `<|im_start|>` asks for the next."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        end, pad = tokenizer.convert_tokens_to_ids([END, PAD])
        super().__init__(tokenizer, END + START, end, pad)

    def batch(self, texts: Sequence[str], *, left: bool = False) -> tuple[Tensor, Tensor]:
        """Prompts that the model is to continue: ids (B, T) and mask (B, T)."""
        return super().batch([START + text for text in texts], left=left)

    def captions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts that an image follows, padded on the left."""
        return pad_rows([self.encode(START + text + END) for text in texts], self.pad, left=True)


@dataclass(frozen=True)
class _Captions:
    """What the latent block attends to: keys and values, their mask (B, P), and the block's rotary position (B,)."""

    past: KeyValues
    mask: Tensor
    position: Tensor

    def rows(self, index: Tensor) -> _Captions:
        return _Captions(select_rows(self.past, index), self.mask[index], self.position[index])


class Bagel(Reader):
    """BAGEL-7B-MoT; see `asgkit.backbones.base.Backbone` for the protocol.

    Codes are latents (C, side / 8, side / 8). `drawn_at_once` bounds the drawings that pass the network together.
    """

    network: BagelNetwork
    tokenizer: TurnTokenizer
    text_start = 1  # the whole image block stands at position 0
    rows_at_once = 16
    drawn_at_once = 8

    def __init__(self, network: BagelNetwork, tokenizer: PreTrainedTokenizerBase, *, image_side: int,
                 max_new_tokens: int, sampling: Sampling, targets: Targets, **settings: Any) -> None:
        sizes = network.sizes
        step, most = sizes.drawing.shrink * sizes.drawing.patch, sizes.drawing.side
        if image_side % step or not 0 < image_side <= step * most:
            raise ValueError(f"image_side {image_side} must be a multiple of {step} up to {step * most}")
        cells = image_side // sizes.drawing.shrink
        spec = BackboneSpec("bagel", "flow", image_side, (sizes.drawing.channels, cells, cells),
                            sizes.text.vocabulary, max_new_tokens, PROMPTS, times="logit_normal",
                            native=NativeSampling(sampling.guidance), predicts="velocity")
        self.targets: Targets = targets
        self.sampling = sampling
        self.view_side = sizes.vision.view_side(image_side)
        super().__init__(network, TurnTokenizer(tokenizer), spec, targets=TARGETS[targets], **settings)
        self.edges = torch.tensor(tokenizer.convert_tokens_to_ids([LOOK, LOOKED]), device=self.device)

    @classmethod
    def load(cls, base: str = "random", *, image_side: int | None = None, sampling: Sampling | None = None,
             targets: Targets = "roles", drawing: DrawingSizes | None = None, device: str | torch.device = "cpu",
             precision: str = "fp32", **settings: Any) -> Bagel:
        """Open a folder with the published files, or (`random`) a tiny instance with random weights.

        image_side: pixels, 512 by default (1024 is the published drawing size); sampling: of drawings; targets: which
        modules carry adapters, `released` to continue released ones; drawing: sizes that no file of the folder holds.
        With precision bf16 frozen weights are bf16, except the autoencoder's; adapters are always fp32.
        """
        if precision not in DTYPES:
            raise ValueError(f"precision {precision!r} must be 'fp32' or 'bf16'")
        own = {"device": device, "precision": precision, "targets": targets, **settings}
        if base == "random":
            network, tokenizer = random_instance(device, DTYPES[precision])
            return cls(network, tokenizer, image_side=image_side or TINY_SIDE, max_new_tokens=12,
                       sampling=sampling or Sampling(points=6), **own)
        network, tokenizer = load_folder(Path(base), drawing or DrawingSizes(), device, DTYPES[precision])
        return cls(network, tokenizer, image_side=image_side or IMAGE_SIDE, max_new_tokens=128,
                   sampling=sampling or Sampling(), **own)

    def load_released(self, folder: Path) -> None:
        """Read the three roles of a released ASG folder (`role_<role>.pt`); raises unless every tensor fits.

        The files do not say alpha; the released code used rank 16, alpha 32. Needs `load(..., targets="released")`.
        """
        if self.targets != "released":
            raise ValueError("released adapters sit on other modules: open the model with targets='released' and the "
                             "rank and alpha they were trained with (16 and 32 in the released code)")
        with TemporaryDirectory() as place:
            convert_released(Path(folder), Path(place))
            for role in ROLES:
                self.load_role(role, Path(place) / role)

    # -- reading -----------------------------------------------------------------------------------------------
    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values of image blocks (B, kv heads, 2 + patches, d): one pass, full attention, position 0."""
        seen = [self._fit(image, self.spec.image_side) for image in images]
        return self.network.see(self._pixels(seen, self.view_side), self.edges)

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """A causal pass of the understanding weights; see `Reader.read`."""
        positions = start[:, None] + (mask.long().cumsum(1) - 1).clamp(min=0)
        before = 0 if past is None else past[0][0].shape[2]
        allowed = causal(mask, before, past_mask)
        return self.network.language_model(self.network.embed(ids), positions, allowed, past)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        return self.network.language_model.lm_head(hidden)

    # -- pictures ----------------------------------------------------------------------------------------------
    @staticmethod
    def _fit(image: Image.Image, side: int) -> Image.Image:
        image = image.convert("RGB")
        return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BICUBIC)

    def _pixels(self, images: Sequence[Image.Image], side: int) -> Tensor:
        arrays = np.stack([np.asarray(self._fit(image, side), dtype=np.float32) for image in images])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).to(self.device) / 127.5 - 1.0

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Latents (B, C, h, w) fp32 of pictures, which are resized to squares first."""
        with torch.no_grad():
            parts = [autoencoder.encode(self.network.autoencoder, self._pixels(images[i : i + self.drawn_at_once],
                                                                               self.spec.image_side))
                     for i in range(0, len(images), self.drawn_at_once)]
        return torch.cat(parts)

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, C, h, w)."""
        with torch.no_grad():
            parts = [autoencoder.decode(self.network.autoencoder, part.to(self.device).float())
                     for part in codes.split(self.drawn_at_once)]
        pixels = (torch.cat(parts) * 0.5 + 0.5).clamp(0.0, 1.0).mul(255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    # -- drawing -----------------------------------------------------------------------------------------------
    def _read_captions(self, prompts: Sequence[str]) -> _Captions:
        ids, mask = (t.to(self.device) for t in self.tokenizer.captions(prompts))
        start = torch.zeros(len(prompts), dtype=torch.int64, device=self.device)
        return _Captions(self.read(ids, mask, None, None, start)[1], mask, mask.sum(1))

    def _velocity(self, x: Tensor, t: Tensor, captions: _Captions | None) -> Tensor:
        if captions is None:  # free of a caption the latent block is the whole context
            start = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            return self.network.velocity(x, t, self.edges, None, None, start)
        return self.network.velocity(x, t, self.edges, captions.past, captions.mask, captions.position)

    def _remove_noise(self, x: Tensor, captions: _Captions, guidance: float) -> Tensor:
        """Euler steps `x <- x - (t - t') v` over the warped times; x: (B, C, h, w) noise."""
        times = self.sampling.times()
        for now, after in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            t = torch.full((len(x),), now, device=x.device)
            v = self._velocity(x, t, captions)
            if guidance > 1 and self.sampling.guides(now):
                v = guided(v, self._velocity(x, t, None), guidance, self.sampling.renorm_min)
            x = x - (now - after) * v
        return x

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Draw from noise by `sampling`; captions are read once, and every step uses their keys again.

        guidance: default `sampling.guidance`, 1 for none; temperature scales the standard deviation of the noise.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        guidance = self.sampling.guidance if guidance is None else guidance
        if guidance < 1:
            raise ValueError(f"guidance {guidance} must be at least 1 (no guidance)")
        noise = row_normals(list(seeds), self.spec.code_shape).to(self.device)
        noise = noise * (1.0 if temperature is None else temperature)
        with torch.no_grad(), self.use_role(role), self._cast():
            captions = self._read_captions(prompts)
            codes = torch.cat([self._remove_noise(noise[rows], captions.rows(rows), guidance)
                               for rows in self._chunks(len(noise))])
        return Drawings(self.decode_images(codes), codes, None)

    def _chunks(self, count: int) -> Sequence[Tensor]:
        return torch.arange(count, device=self.device).split(self.drawn_at_once)

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Mean squared error (B,) of the velocity `eps - x0` at `x_t = (1 - t) x0 + t eps`, times and noise given.

        pred, target: (B, S, C, h, w). Source: spec: backbones 1.2 (rectified flow, training without a shift).
        """
        if noise is None or noise.t.shape[0] != len(prompts) or len(noise.seeds) != len(prompts):
            raise ValueError("bagel draws by regression: give a NoiseSpec with one row per drawing")
        draws = noise.t.shape[1]
        eps = row_normals(list(noise.seeds), (draws, *self.spec.code_shape)).to(self.device).flatten(0, 1)
        t = noise.t.to(self.device).float().flatten()
        clean = codes.to(self.device).float().repeat_interleave(draws, 0)
        share = t[:, None, None, None]
        x, target = (1 - share) * clean + share * eps, eps - clean
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            captions = self._read_captions(prompts)
            parts = [self._velocity(x[rows], t[rows], captions.rows(rows // draws)) for rows in self._chunks(len(x))]
        pred, target = torch.cat(parts).unflatten(0, (-1, draws)), target.unflatten(0, (-1, draws))
        return GenStats((pred - target).square().mean((1, 2, 3, 4)), pred=pred, target=target)
