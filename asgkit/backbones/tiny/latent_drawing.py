"""tiny-flow and tiny-diffusion as backbones: one class draws with either network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asgkit.backbones.base import BackboneSpec, Drawings, GenStats, NoiseSpec, Role
from asgkit.backbones.noise import row_normals
from asgkit.backbones.tiny.codes import to_images, to_tensor
from asgkit.backbones.tiny.diffusion import TinyDiffusionNetwork
from asgkit.backbones.tiny.flow import TinyFlowNetwork
from asgkit.backbones.tiny.language import LANGUAGES, SHIPPED, Language, language_of
from asgkit.backbones.tiny.latent import CELLS, CHANNELS, LatentNetwork
from asgkit.backbones.tiny.network import TEXT_POSITIONS
from asgkit.backbones.tiny.prompts import DRAW
from asgkit.backbones.tiny.trunk import TrunkConfig
from asgkit.backbones.tiny.understand import (
    CHECKPOINTS,
    TRUNK_TARGETS,
    TinyUnderstanding,
    network_settings,
    read_checkpoint,
)

NETWORKS: dict[str, type[LatentNetwork]] = {"tiny-flow": TinyFlowNetwork, "tiny-diffusion": TinyDiffusionNetwork}


class TinyLatent(TinyUnderstanding):
    """A tiny backbone that draws by regression; see `asgkit.backbones.base.Backbone` for the protocol."""

    network: LatentNetwork

    @classmethod
    def load(cls, name: str, base: str = "clean", **settings: Any) -> TinyLatent:
        """Open a shipped base (`clean`, `scenes`) of one of `NETWORKS`, or a checkpoint file, with fresh adapters."""
        path = CHECKPOINTS / f"{name}-{base}.safetensors" if base in SHIPPED else Path(base)
        tensors, meta = read_checkpoint(path, name)
        sizes, words, _ = network_settings(meta)
        network = NETWORKS[name](sizes["words"], TrunkConfig(**sizes["trunk"]), sizes.get("positions", TEXT_POSITIONS))
        network.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})
        return cls.wrap(network, name, words, language=language_of(meta), **settings)

    @classmethod
    def wrap(cls, network: LatentNetwork, name: str, words: list[str], *, language: Language = LANGUAGES["shapes"],
             **settings: Any) -> TinyLatent:
        """Give a network its three roles: readers on the trunk, the Generator on the head alone."""
        spec = BackboneSpec(name, network.paradigm, 24, (CELLS, CHANNELS), len(words) + 2,
                            language.longest, language.prompts["clean"], times=network.times, world=language.world)
        targets = {"proposer": TRUNK_TARGETS, "solver": TRUNK_TARGETS, "generator": network.generator_targets}
        return cls(network, words, spec, targets=targets, **settings)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Latents (B, 9, 8) of pictures; fp32."""
        with torch.no_grad():
            return self.network.autoencoder.encode(to_tensor(images).to(self.device))

    def decode_images(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of latents (B, 9, 8)."""
        with torch.no_grad():
            return to_images(self.network.autoencoder.decode(codes.float()))

    def _condition(self, prompts: Sequence[str]) -> Any:
        ids, mask = (t.to(self.device) for t in self.tokenizer.batch(prompts, left=True))
        return self.network.read_captions(ids, mask)

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """Remove noise step by step; guidance g: u + g (c - u) on predictions (u: without a caption).

        temperature scales the standard deviation of the first noise, the only random numbers of the sampler.
        """
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}")
        guidance = 1.0 if guidance is None else guidance
        scheduler, extra = self.network.scheduler(), [DRAW] * len(prompts) if guidance != 1.0 else []
        x = row_normals(list(seeds), (CELLS, CHANNELS)).to(self.device)
        x = x * (1.0 if temperature is None else temperature)
        with torch.no_grad(), self.use_role(role):
            with self._cast():
                condition = self._condition([*prompts, *extra])
            for step in scheduler.timesteps:
                t = (step / scheduler.config.num_train_timesteps).expand(len(prompts) + len(extra)).to(self.device)
                with self._cast():
                    both = self.network.predict(torch.cat([x, x]) if extra else x, t, condition).float()
                if extra:
                    given, free = both.chunk(2)
                    both = free + guidance * (given - free)
                x = scheduler.step(both, step, x).prev_sample
        return Drawings(self.decode_images(x), x, None)

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """Regression loss (B,) of drawings at the times and noise of `noise`, with prediction and target."""
        if noise is None or noise.t.shape[0] != len(prompts) or len(noise.seeds) != len(prompts):
            raise ValueError(f"{self.spec.name} draws by regression: give a NoiseSpec with one row per drawing")
        draws = noise.t.shape[1]
        shape = (draws, CELLS, CHANNELS)
        eps = row_normals(list(noise.seeds), shape).to(self.device).flatten(0, 1)
        t = noise.t.to(self.device).float().flatten()
        clean = codes.to(self.device).float().repeat_interleave(draws, 0)
        x, target = self.network.noisy(clean, eps, t)
        with torch.set_grad_enabled(grad), self.roles.use(role, dropout=grad), self._cast():
            condition = repeat_rows(self._condition(prompts), draws)
            pred = self.network.predict(x, t, condition).float()
        pred, target = self.network.estimate(x, t, pred), self.network.estimate(x, t, target)
        pred, target = pred.unflatten(0, (-1, draws)), target.unflatten(0, (-1, draws))
        return GenStats((pred - target).square().mean((1, 2, 3)), pred=pred, target=target)


def repeat_rows(condition: Any, times: int) -> Any:
    """Every row of every tensor in a nest of lists and tuples, `times` in a row."""
    if isinstance(condition, Tensor):
        return condition.repeat_interleave(times, 0)
    return type(condition)(repeat_rows(part, times) for part in condition)
