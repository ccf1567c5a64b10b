"""BLIP3o from a folder with the published files; nothing is ever fetched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from asgkit.backbones.blip3o.decoder import PixelDecoder
from asgkit.backbones.blip3o.eva import EvaEncoder
from asgkit.backbones.blip3o.network import Blip3oNetwork, make_dit
from asgkit.backbones.blip3o.parts import FILES, SOURCE, Parts
from asgkit.backbones.weights import UnmatchedTensors, fill, require_files, stream

Module = TypeVar("Module", bound=nn.Module)

REQUIRED = [name for name, what in FILES.items() if not what.startswith("optional")]
DECODER = [name for name in FILES if name.startswith("diffusion-decoder/")]
EVA_FILE = "eva_clip_vision_tower/pytorch_model.bin"
EVA_INSIDE = "model.gen_vision_tower.vision_tower.model."  # a checkpoint saved after training may hold the encoder too
_CLIP_HEAD = re.compile(r"(norm|fc_norm|head)\.(weight|bias)|logit_scale")  # what the encoder's features do not pass
POOLING = "early_pool2d_4"  # 4x4 patches of the encoder to one cell that is drawn
# The released names, then those of current transformers; first match decides.
RENAMES = (
    (r"model\.dit\.model\.caption_projection\.", "caption_projection."), (r"model\.dit\.model\.", "dit."),
    (r"model\.latent_queries$", "queries"), (r"visual\.", "vlm.model.visual."),
    (r"model\.(?=language_model\.|visual\.)", "vlm.model."), (r"model\.", "vlm.model.language_model."),
    (r"lm_head\.", "vlm.lm_head."),
)


def rename(name: str) -> str | None:
    """The network's name of a published tensor; None for those of the EVA-CLIP encoder."""
    if name.startswith(EVA_INSIDE):
        return None
    for pattern, ours in RENAMES:
        found = re.match(pattern, name)
        if found:
            return ours + name[found.end():]
    return name


def allocate(module: Module, dtype: torch.dtype, device: str | torch.device) -> Module:
    """Give parameters on the meta device frozen memory of `dtype`; buffers (rotary frequencies) stay as they are."""
    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None and old.is_meta:
                new = made.get(id(old))
                if new is None:
                    new = nn.Parameter(torch.empty(old.shape, dtype=dtype, device=device), requires_grad=False)
                    made[id(old)] = new
                part._parameters[name] = new
    return module.eval()


def shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of safetensors files, from their headers."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    return found


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many numbered blocks stand under a prefix."""
    return len({name[len(prefix):].split(".")[0] for name in names if name.startswith(prefix)})


def read_parts(folder: Path, dtype: torch.dtype, device: str | torch.device) -> Parts:
    """Open a folder laid out as `FILES`, weights in `dtype` on `device`; every tensor is accounted for.

    Raises FileNotFoundError for missing files, UnmatchedTensors for names or shapes that do not fit, ValueError for a
    tokenizer without [IMG] or another pooling than `early_pool2d_4`.
    """
    require_files(folder, REQUIRED, SOURCE)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if "[IMG]" not in tokenizer.get_vocab():
        raise ValueError(f"the tokenizer in {folder} has no [IMG]: copy the tokenizer of {SOURCE}")
    settings = json.loads((folder / "config.json").read_text())
    if settings.get("gen_pooling") != POOLING or "n_query" not in settings:
        raise ValueError(f"{folder / 'config.json'} needs n_query and gen_pooling={POOLING!r}: is it that of {SOURCE}?")
    files = sorted(folder.glob("model*.safetensors"))
    held = shapes(files)
    network = _network(settings, held, dtype, device)
    fill(network, stream(files), rename)
    # BLIP3o reads as many patches as its encoder has: 4 a cell (448 px as published)
    side = 4 * network.grid * network.vlm.config.vision_config.patch_size
    absent: dict[str, str] = {}
    eva = _eva(folder, files, held, network.grid, dtype, device, absent)
    decoder = _decoder(folder, dtype, device, absent)
    return Parts(network, tokenizer, side, 128, eva, decoder, absent)


def _network(settings: dict, held: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str | torch.device
             ) -> Blip3oNetwork:
    """The network without weights: the drawing transformer's sizes are in no config, so its tensors tell them."""
    dit = "model.dit.model."
    _require(held, f"{dit}patch_embedder.proj.weight", f"{dit}layers.0.gate")
    width, channels = held[f"{dit}patch_embedder.proj.weight"]
    (heads,) = held[f"{dit}layers.0.gate"]
    layers, queries = count_blocks(held, f"{dit}layers."), settings["n_query"]
    config = Qwen2_5_VLConfig(**{k: v for k, v in settings.items() if k not in ("model_type", "architectures")})
    with init_empty_weights(include_buffers=False):
        transformer = make_dit(grid=math.isqrt(queries), channels=channels, width=width, layers=layers, heads=heads)
        network = Blip3oNetwork(config, transformer, queries)
    return allocate(network, dtype, device)


def _require(held: dict[str, tuple[int, ...]], *names: str) -> None:
    """Raise UnmatchedTensors unless the tensors that tell a module's sizes are there."""
    lacking = [name for name in names if name not in held]
    if lacking:
        raise UnmatchedTensors(f"the weights hold no {', '.join(lacking)}: are they those of {SOURCE}?")


def _eva(folder: Path, files: list[Path], held: dict[str, tuple[int, ...]], grid: int, dtype: torch.dtype,
         device: str | torch.device, absent: dict[str, str]) -> EvaEncoder | None:
    """The encoder from the checkpoint or from its own file; None, with the reason in `absent`, when there is neither.
    """
    inside = {name[len(EVA_INSIDE):]: shape for name, shape in held.items() if name.startswith(EVA_INSIDE)}
    if inside:
        strip = lambda name: name.removeprefix(EVA_INSIDE) if name.startswith(EVA_INSIDE) else None
        encoder = _empty_eva(inside, grid, dtype, device)
        fill(encoder, stream(files), lambda name: _without_head(strip(name)))
        return encoder
    if not (folder / EVA_FILE).is_file():
        absent["eva"] = f"{folder / EVA_FILE} is missing (copy it from {SOURCE})"
        return None
    # published as a pickle; `weights_only` reads tensors from it and runs no code
    tensors: dict[str, Tensor] = torch.load(folder / EVA_FILE, map_location="cpu", weights_only=True, mmap=True)
    encoder = _empty_eva({name: tuple(t.shape) for name, t in tensors.items()}, grid, dtype, device)
    fill(encoder, tensors.items(), _without_head)
    return encoder


def _without_head(name: str | None) -> str | None:
    return None if name is None or _CLIP_HEAD.fullmatch(name) else name


def _empty_eva(held: dict[str, tuple[int, ...]], grid: int, dtype: torch.dtype, device: str | torch.device
               ) -> EvaEncoder:
    _require(held, "patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    width, _, patch, _ = held["patch_embed.proj.weight"]
    side = math.isqrt(held["pos_embed"][1] - 1) * patch
    with init_empty_weights(include_buffers=False):
        encoder = EvaEncoder(side=side, patch=patch, width=width, depth=count_blocks(held, "blocks."),
                             inner=held["blocks.0.mlp.fc1.weight"][0], grid=grid)
    return allocate(encoder, dtype, device)


def _decoder(folder: Path, dtype: torch.dtype, device: str | torch.device, absent: dict[str, str]
             ) -> PixelDecoder | None:
    lacking = [name for name in DECODER if not any(folder.glob(name))]
    if lacking:
        absent["decoder"] = f"{folder} lacks {', '.join(lacking)} (copy them from {SOURCE})"
        return None
    home = folder / "diffusion-decoder"
    unet = _diffusers_part(UNet2DConditionModel, home / "unet", dtype, device)
    vae = _diffusers_part(AutoencoderKL, home / "vae", dtype, device)
    return PixelDecoder(unet, vae, json.loads((home / "scheduler" / "scheduler_config.json").read_text())).eval()


def _diffusers_part(kind: type[Module], home: Path, dtype: torch.dtype, device: str | torch.device) -> Module:
    """One module of the decoder; of several precisions the published bf16 files are read."""
    settings = json.loads((home / "config.json").read_text())
    with init_empty_weights(include_buffers=False):
        module = kind.from_config({k: v for k, v in settings.items() if not k.startswith("_")})
    files = sorted(home.glob("*.bf16*.safetensors")) or sorted(home.glob("*.safetensors"))
    fill(allocate(module, dtype, device), stream(files))
    return module
