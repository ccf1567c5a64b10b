"""BLIP3o-8B: Qwen2.5-VL reads; what 64 learned queries see of a caption guides a transformer that draws features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor
from transformers import Qwen2VLImageProcessorPil

from asgkit.backbones.base import BackboneSpec, Drawings, GenStats, NativeSampling, NoiseSpec, Role
from asgkit.backbones.blip3o.files import read_parts
from asgkit.backbones.blip3o.network import TRAIN_TIMES, Blip3oNetwork, image_positions, word_positions
from asgkit.backbones.blip3o.parts import Parts, random_parts
from asgkit.backbones.blip3o.released import load_released
from asgkit.backbones.chat import PROMPTS, ChatTokenizer
from asgkit.backbones.noise import row_normals
from asgkit.backbones.reader import KeyValues, Reader

HEADER = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"
DRAW = "Please generate image based on the following caption: {caption}"
NEGATIVE = " "  # the published decoder is guided away from what this prompt, without a chat around it, draws
DROPS = 2**41  # keeps the dropout of conditions apart from the noise, which has the same seeds

WORDS = r"vlm\.model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
DRAWING = r"dit\.layers\.\d+\.attn2\.(to_[qkv]|to_out\.0)|caption_projection\.linear_[12]"
# What the released adapters also hold, since their targets were suffixes: the vision tower's gated layers, for every
# role, and on purpose the Solver's merger.
TOWER = r"vlm\.model\.visual\.blocks\.\d+\.mlp\.(gate|up|down)_proj"
MERGER = r"vlm\.model\.visual\.merger\.mlp\.[02]"
TARGETS: dict[str, dict[Role, str]] = {
    "kit": {"proposer": WORDS, "solver": WORDS, "generator": f"{WORDS}|{DRAWING}"},
    "released": {"proposer": f"{WORDS}|{TOWER}", "solver": f"{WORDS}|{TOWER}|{MERGER}",
                 "generator": f"{WORDS}|{TOWER}|{DRAWING}"},
}
ROLE_TARGETS = TARGETS["kit"]


class Blip3o(Reader):
    """BLIP3o behind the protocol; see `asgkit.backbones.base.Backbone`.

    Its codes are latents (1792, 8, 8): EVA-CLIP features of the picture, pooled. They are drawn by velocity
    regression, `x_t = (1 - t) x0 + t noise`, so the paradigm is `flow`; the paper calls this backbone's paradigm
    diffusion. Pixels are made from the latents by a second model that no role adapts and that needs its own files.
    """

    rows_at_once = 16
    decoded_at_once = 4  # pictures that the pixel decoder draws together
    network: Blip3oNetwork

    def __init__(self, parts: Parts, *, targets: Literal["kit", "released"] = "kit", rank: int = 8, alpha: int = 16,
                 **settings: Any) -> None:
        vlm, words = parts.network.vlm, parts.tokenizer
        ids = words.convert_tokens_to_ids
        tokenizer = ChatTokenizer(words, AFTER, ids("<|im_end|>"), ids("<|endoftext|>"))
        prompts = replace(PROMPTS, draw=DRAW)
        shape = (parts.network.dit.in_channels, parts.network.grid, parts.network.grid)
        spec = BackboneSpec("blip3o", "flow", parts.side, shape, vlm.config.text_config.vocab_size,
                            parts.max_new_tokens, prompts, times="uniform",
                            native=NativeSampling(parts.sampler.guidance), predicts="velocity")
        super().__init__(parts.network, tokenizer, spec, targets=TARGETS[targets], rank=rank, alpha=alpha, **settings)
        self.sampler, self.absent, self.lora = parts.sampler, parts.absent, (rank, alpha)
        self.eva = None if parts.eva is None else parts.eva.requires_grad_(False).to(self.device)
        self.decoder = None if parts.decoder is None else parts.decoder.requires_grad_(False).to(self.device)
        self._away: Tensor | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        """Ids and positions of what stands before a prompt: the chat's header, with or without an image."""
        vision = self.network.vlm.config.vision_config
        self.patches = Qwen2VLImageProcessorPil(
            do_resize=False, patch_size=vision.patch_size, merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size)
        tokens = self.spec.image_side // (vision.patch_size * vision.spatial_merge_size)
        header, start = self.tokenizer.encode(HEADER), self.tokenizer.encode("<|vision_start|>")
        end = self.tokenizer.encode("<|vision_end|>")
        as_row = lambda ids: torch.tensor([ids], device=self.device)
        self._header, self._open, self._close = as_row(header), as_row(header + start), as_row(end)
        self._draw = as_row(self.tokenizer.encode("[IMG]"))
        before = len(header) + len(start)
        self._image_positions = image_positions(before, tokens, len(end)).to(self.device)
        self.text_start, self.blank_start = before + tokens + len(end), len(header)

    @classmethod
    def load(cls, base: str, *, precision: str = "fp32", device: str | torch.device = "cpu",
             **settings: Any) -> Blip3o:
        """Open the published files in folder `base`, or with `random` a tiny instance, with fresh adapters.

        Frozen weights are bfloat16 for precision `bf16`, float32 for `fp32`; rotary frequencies and adapters always
        float32. targets: `kit` (the language model; the Generator also the drawing transformer's attention to the
        caption) or `released` (also the modules that the released ASG adapters hold in the vision tower).
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if base == "random":
            parts = random_parts()
            for module in (parts.network, parts.eva, parts.decoder):
                for parameter in module.parameters():  # not `module.to`: it would round the rotary frequencies
                    parameter.data = parameter.data.to(dtype)
        else:
            parts = read_parts(Path(base), dtype, device)
        return cls(parts, precision=precision, device=device, **settings)

    def load_released(self, role: Role, path: str | Path) -> dict[str, int]:
        """Read a role from a released ASG checkpoint folder; see `asgkit.backbones.blip3o.released`."""
        return load_released(self.network, self.lora, role, Path(path))

    # -- reading ---------------------------------------------------------------------------------------------------
    def see(self, images: Sequence[Image.Image]) -> KeyValues:
        """Keys and values of the chat's header and the pictures, resized to `spec.image_side`."""
        side = self.spec.image_side
        sized = [image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC) for image in images]
        given = self.patches(sized, return_tensors="pt").to(self.device)
        shown = self.network.features(given["pixel_values"], given["image_grid_thw"])
        around = [self.network.embed(ids).expand(len(images), -1, -1) for ids in (self._open, self._close)]
        x = torch.cat([around[0], shown.to(around[0].dtype), around[1]], 1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=self.device)
        return self.network.read(x, mask, self._image_positions.expand(-1, len(images), -1), None, None)[1]

    def unseen(self, count: int) -> KeyValues:
        """Keys and values of the chat's header without a picture."""
        mask = torch.ones_like(self._header, dtype=torch.bool)
        start = torch.zeros(1, dtype=torch.int64, device=self.device)
        past = self.read(self._header, mask, None, None, start)[1]
        return [(k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in past]

    def read(self, ids: Tensor, mask: Tensor, past: KeyValues | None, past_mask: Tensor | None, start: Tensor
             ) -> tuple[Tensor, KeyValues]:
        """A causal pass of the language model; see `Reader.read`."""
        return self.network.read(self.network.embed(ids), mask, word_positions(mask, start), past, past_mask)

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary."""
        return self.network.vlm.lm_head(hidden)

    # -- drawing ---------------------------------------------------------------------------------------------------
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Latents (B, 1792, 8, 8) of pictures; raises FileNotFoundError without the EVA-CLIP encoder's file."""
        if self.eva is None:
            raise FileNotFoundError(f"{self.absent['eva']}: it turns real pictures into what BLIP3o draws, which "
                                    "generator.target=source_image needs; the default, candidates, does not")
        return self.eva.encode(images)

    def decode_images(self, codes: Tensor, seeds: Sequence[int], side: int | None = None) -> list[Image.Image]:
        """Pictures of latents (B, 1792, 8, 8), one seed of pixel noise each; side: px, default `spec.image_side`.

        The decoder draws 1024 px. Raises FileNotFoundError without its files.
        """
        self._need_decoder()
        features, s = codes.to(self.device).flatten(2).transpose(1, 2), self.sampler
        away, size, drawn = self._negative(), side or self.spec.image_side, []
        for i in range(0, len(features), self.decoded_at_once):
            rows = slice(i, i + self.decoded_at_once)
            drawn += self.decoder.decode(features[rows], away, list(seeds[rows]), steps=s.decoder_steps,
                                         guidance=s.decoder_guidance)
        return [image if image.width == size else image.resize((size, size), Image.Resampling.BICUBIC)
                for image in drawn]

    def _need_decoder(self) -> None:
        if self.decoder is None:
            raise FileNotFoundError(f"{self.absent['decoder']}: it turns drawn features into pictures, which every "
                                    "generation step judges (a run with schedule.generation=0 needs none)")

    def _negative(self) -> Tensor:
        """Features (1, 64, 1792) that the decoder is guided away from: drawn once, by the frozen base, from seed 0."""
        if self._away is None:
            ids = torch.tensor([self.tokenizer.encode(NEGATIVE)], device=self.device)
            ids = torch.cat([ids, self._draw], 1)
            with torch.no_grad(), self.use_role(None), self._cast():
                condition = self.network.condition(ids, torch.ones_like(ids, dtype=torch.bool), None, 0)
            with self.use_role(None):
                x = self._sample(condition, [0], self.sampler.guidance, 1.0)
            self._away = x.flatten(2).transpose(1, 2)
        return self._away

    def _condition(self, prompts: Sequence[str]) -> Tensor:
        """What the queries see (B, 64, 3584) of prompts; the padding stands between the header and the prompt."""
        ids, mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        ids = torch.cat([ids, self._draw.expand(len(ids), -1)], 1)
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], 1)
        return self.network.condition(ids, mask, self.unseen(len(ids)), self.blank_start)

    @torch.no_grad()
    def _sample(self, condition: Tensor, seeds: Sequence[int], guidance: float, temperature: float) -> Tensor:
        """Euler steps along the velocity, from noise (t = 1) to features (t = 0); the null condition is zero."""
        # upstream downloads the settings of Lumina-Next's scheduler; that its shift is 1 is not verified
        scheduler = FlowMatchEulerDiscreteScheduler(TRAIN_TIMES, shift=1.0)
        steps = self.sampler.steps
        scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps))
        x = row_normals(list(seeds), self.spec.code_shape).to(self.device) * temperature
        streams = 1 if guidance == 1.0 else 2
        given = condition if streams == 1 else torch.cat([condition, torch.zeros_like(condition)])
        for step in scheduler.timesteps:
            # whole numbers, as the published sampler passes them
            times = step.floor().to(self.device).expand(streams * len(x))
            with self._cast():
                v = self.network.velocity(x.repeat(streams, 1, 1, 1), times, given).float()
            if streams == 2:
                caption, free = v.chunk(2)
                v = free + guidance * (caption - free)
            x = scheduler.step(v, step, x).prev_sample
        return x

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Draw features in 30 steps, then their pixels in 50; guidance g: u + g (c - u), by default 3 as published.

        temperature scales the standard deviation of the first noise. Raises FileNotFoundError without the decoder.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        self._need_decoder()
        guidance = self.sampler.guidance if guidance is None else guidance
        temperature = 1.0 if temperature is None else temperature
        parts = []
        with torch.no_grad(), self.use_role(role):
            for i in range(0, len(prompts), self.rows_at_once):
                rows = slice(i, i + self.rows_at_once)
                with self._cast():
                    condition = self._condition(prompts[rows])
                parts.append(self._sample(condition, seeds[rows], guidance, temperature))
        codes = torch.cat(parts)
        return Drawings(self.decode_images(codes, seeds), codes, None)

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False,
                         condition_dropout: float = 0.0) -> GenStats:
        """Velocity loss (B,) of latents at the times and noise of `noise`, with prediction and target.

        `v = noise - x0` at `x_t = (1 - t) x0 + t noise`, t in (0, 1] (the transformer sees 1000 t). condition_dropout:
        how often pre-training replaced a condition by zeros (0.1); 0 for scoring and for the policy's loss.
        """
        if noise is None or noise.t.shape[0] != len(prompts) or len(noise.seeds) != len(prompts):
            raise ValueError("blip3o draws by regression: give a NoiseSpec with one row per drawing")
        draws = noise.t.shape[1]
        eps = row_normals(list(noise.seeds), (draws, *self.spec.code_shape)).to(self.device).flatten(0, 1)
        t = noise.t.to(self.device).float().flatten()
        clean = codes.to(self.device).float().repeat_interleave(draws, 0)
        share = t[:, None, None, None]
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            condition = self._condition(prompts) * self._kept(noise.seeds, condition_dropout)
            pred = self.network.velocity((1 - share) * clean + share * eps, TRAIN_TIMES * t,
                                         condition.repeat_interleave(draws, 0)).float()
        pred, target = pred.unflatten(0, (-1, draws)), (eps - clean).unflatten(0, (-1, draws))
        return GenStats((pred - target).square().flatten(1).mean(1), pred=pred, target=target)

    def _kept(self, seeds: Sequence[int], dropout: float) -> Tensor:
        """Which rows keep their condition (B, 1, 1), 1 or 0, each by its own seed."""
        if dropout == 0.0:
            return torch.ones(len(seeds), 1, 1, device=self.device)
        drawn = [torch.rand((), generator=torch.Generator().manual_seed(seed + DROPS)) for seed in seeds]
        return (torch.stack(drawn) >= dropout).float().to(self.device)[:, None, None]
