"""Role adapters of the released ASG checkpoints of BLIP3o: peft folders in the names of an older transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from asgkit.backbones.base import Role
from asgkit.backbones.weights import UnmatchedTensors

# A role's folder holds its adapter in a folder named after it, or directly; the Solver's adapter is called "default".
NESTED: dict[Role, tuple[str, ...]] = {
    "solver": ("solver/default", "solver"), "proposer": ("proposer/proposer", "proposer"),
    "generator": ("generator/generator", "generator"),
}
PREFIX = "base_model.model."
TEXT_NAMES = ((r"model\.layers\.", "vlm.model.language_model.layers."), (r"visual\.", "vlm.model.visual."))
DIT_NAMES = ((r"model\.caption_projection\.", "caption_projection."), (r"model\.", "dit."))
PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False, "modules_to_save": None}  # other LoRAs change the sum


def load_released(network: nn.Module, lora: tuple[int, int], role: Role, path: Path) -> dict[str, int]:
    """Read one role of a checkpoint folder `step_XXXXX`; the Generator's also from its `dit_lora`, when there is one.

    Modules that the checkpoint does not adapt get a zero adapter. Returns how many tensors were read, and how many of
    their LoRA B are zero (adapters that the released training never moved).
    Raises FileNotFoundError without an adapter; UnmatchedTensors unless every tensor of the files has its place (those
    in the vision tower need targets="released") and every adapted part is complete; ValueError for another kind of
    LoRA, a scale alpha / rank that is not the backbone's, or a rank above it.
    """
    found = _read(_adapter_folder(path, NESTED[role]), TEXT_NAMES, lora)
    if role == "generator" and (path / "dit_lora").is_dir():
        found |= _read(_adapter_folder(path, ("dit_lora", "dit_lora/default")), DIT_NAMES, lora)
    own = {name.replace(f".{role}.", "."): parameter for name, parameter in network.named_parameters()
           if f".{role}." in name}
    _check_names(found, own, role, path)
    with torch.no_grad():
        for name, parameter in own.items():
            if name in found:
                parameter.copy_(_padded(found[name], parameter, name))
            elif ".lora_B." in name:
                parameter.zero_()
    flat = sum(not tensor.any() for name, tensor in found.items() if ".lora_B." in name)
    return {"tensors": len(found), "zero": flat}


def _adapter_folder(path: Path, places: tuple[str, ...]) -> Path:
    for place in places:
        if (path / place / "adapter_config.json").is_file():
            return path / place
    raise FileNotFoundError(f"{path} has no adapter in {' or '.join(places)}: is it a folder step_XXXXX of a released "
                            "BLIP3o run?")


def _read(folder: Path, names: tuple[tuple[str, str], ...], lora: tuple[int, int]) -> dict[str, Tensor]:
    """Tensors of one peft folder under our names."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    _check_settings(settings, folder, lora)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} is missing: copy it again")
    return {_ours(name, names): tensor for name, tensor in load_file(weights).items()}


def _ours(name: str, names: tuple[tuple[str, str], ...]) -> str:
    inner = name.removeprefix(PREFIX)
    for pattern, start in names:
        matched = re.match(pattern, inner)
        if matched:
            return start + inner[matched.end():]
    return name


def _check_settings(settings: dict[str, Any], folder: Path, lora: tuple[int, int]) -> None:
    odd = {key: settings[key] for key, plain in PLAIN.items() if settings.get(key, plain) not in (plain, None)}
    if odd:
        raise ValueError(f"{folder}: adapters with {odd} are not plain LoRA and cannot be read")
    rank, alpha = lora
    ranks, alphas = settings.get("rank_pattern") or {}, settings.get("alpha_pattern") or {}
    pairs = {(settings["r"], settings["lora_alpha"])}
    pairs |= {(ranks.get(key, settings["r"]), alphas.get(key, settings["lora_alpha"])) for key in {*ranks, *alphas}}
    for r, a in pairs:
        if a * rank != alpha * r or r > rank:
            raise ValueError(f"{folder}: rank {r} and alpha {a} do not fit the backbone's {rank} and {alpha}; open it "
                             f"with lora_rank={settings['r']}, lora_alpha={settings['lora_alpha']}")


def _part(name: str) -> str:
    """Parts that a checkpoint adapts as a whole or not at all."""
    for part in ("visual.merger", "visual", "language_model", "dit", "caption_projection"):
        if f"{part}." in name:
            return part
    return name


def _check_names(found: dict[str, Tensor], own: dict[str, nn.Parameter], role: Role, path: Path) -> None:
    adapted = {_part(name) for name in found} | {"language_model"}
    unexpected = sorted(found.keys() - own.keys())
    missing = sorted(name for name in own.keys() - found.keys() if _part(name) in adapted)
    if unexpected or missing:
        hint = "; the vision tower's need targets=\"released\"" if any("visual." in name for name in unexpected) else ""
        raise UnmatchedTensors(f"adapter {role} in {path}: {len(unexpected)} unexpected tensors {unexpected[:4]}, "
                               f"{len(missing)} missing {missing[:4]}{hint}")


def _padded(tensor: Tensor, like: Tensor, name: str) -> Tensor:
    """A LoRA matrix of a smaller rank with zeros up to ours: the same sum, since the scales are equal."""
    axis = 0 if ".lora_A." in name else 1
    if tensor.shape[1 - axis] != like.shape[1 - axis] or tensor.shape[axis] > like.shape[axis]:
        raise UnmatchedTensors(f"tensor {name}: {tuple(tensor.shape)} does not fit {tuple(like.shape)}")
    padded = torch.zeros_like(like)
    padded.narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
    return padded
