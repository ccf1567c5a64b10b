"""Adapters as the released ASG code saves them for VARGPT.

    se_checkpoint_N/model/   adapter_config.json, adapter_model.safetensors: the Generator's ("default")
        proposer/  solver/   the same two files for the other roles
        se_adapter_manifest.json    which role has which adapter

All three adapt the language model's seven projections (rank 16, alpha 32). The released trainer also means to train
the head and its projectors, but its files hold no tensor of them: a loaded Generator draws with the base's head.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from asgkit.backbones.base import ROLES, Role
from asgkit.backbones.vargpt.model import Vargpt
from asgkit.backbones.vargpt.network import publish

NOTICE = ("the released files hold no weights of the drawing head and its projectors: the Generator draws with those "
          "of the base")
_OUTER = "base_model.model."


def load_released(backbone: Vargpt, path: str | Path) -> dict[Role, int]:
    """Read a released checkpoint into the three roles; returns the tensors read per role.

    path: `se_checkpoint_N` or its folder `model`. The Generator's adapters on the head, which the files lack, are set
    to no effect, and a warning says so. Raises FileNotFoundError (a missing file), KeyError (missing or unexpected
    tensors, by name) and ValueError (another rank or alpha, a tensor of another shape); the backbone is changed only
    when all files fit.
    Source: spec: backbones 5.
    """
    folder = Path(path)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    manifest = folder / "se_adapter_manifest.json"
    if not manifest.is_file():
        raise FileNotFoundError(f"{folder} has no se_adapter_manifest.json: give the folder se_checkpoint_N of a "
                                "released run, or its folder model")
    names = json.loads(manifest.read_text())["role_adapters"]
    places = {role: folder if names[role] == "default" else folder / names[role] for role in ROLES}
    read = {role: _read(backbone, role, place) for role, place in places.items()}
    for role, tensors in read.items():
        _assign(backbone, role, tensors)
    warnings.warn(NOTICE, stacklevel=2)
    return {role: len(tensors) for role, tensors in read.items()}


def _layers(backbone: Vargpt, role: Role) -> dict[str, LoraLayer]:
    return {name: m for name, m in backbone.network.named_modules() if isinstance(m, LoraLayer) and role in m.lora_A}


def _own(backbone: Vargpt, role: Role) -> dict[str, Tensor]:
    """The role's tensors by the names that the released files use."""
    found = {}
    for name, layer in _layers(backbone, role).items():
        found[f"{publish(name)}.lora_A.weight"] = layer.lora_A[role].weight
        found[f"{publish(name)}.lora_B.weight"] = layer.lora_B[role].weight
    return found


def _read(backbone: Vargpt, role: Role, place: Path) -> dict[str, Tensor]:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (place / name).is_file():
            raise FileNotFoundError(f"the released adapter of {role} has no {name} in {place}")
    _same_rank(backbone, role, json.loads((place / "adapter_config.json").read_text()))
    stored = {name.removeprefix(_OUTER): t for name, t in load_file(place / "adapter_model.safetensors").items()}
    own = {name: t for name, t in _own(backbone, role).items() if name.startswith("model.layers.")}
    if stored.keys() != own.keys():
        missing, extra = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
        raise KeyError(f"released adapter of {role}: {len(missing)} tensors missing {missing[:3]}, {len(extra)} "
                       f"unexpected {extra[:3]}")
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"released adapter of {role}, {name}: {tuple(tensor.shape)} does not fit "
                             f"{tuple(own[name].shape)}")
    return stored


def _same_rank(backbone: Vargpt, role: Role, config: dict) -> None:
    layer = next(iter(_layers(backbone, role).values()))
    rank, alpha = layer.r[role], layer.lora_alpha[role]
    if (config["r"], config["lora_alpha"]) != (rank, alpha):
        raise ValueError(f"released adapter of {role} has rank {config['r']}, alpha {config['lora_alpha']}; this model "
                         f"{rank} and {alpha}: open it with lora_rank={config['r']} lora_alpha={config['lora_alpha']}")


@torch.no_grad()
def _assign(backbone: Vargpt, role: Role, tensors: dict[str, Tensor]) -> None:
    for name, own in _own(backbone, role).items():
        if name in tensors:
            own.copy_(tensors[name])
        elif ".lora_B." in name:
            own.zero_()
