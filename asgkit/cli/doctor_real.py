"""`asgkit doctor --backbone NAME`: what a real backbone needs, counted on its full-size network without memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asgkit.backbones.base import REAL, ROLES, Role
from asgkit.config import resolve

BF16, TRAINED = 2, 16  # bytes of a frozen weight; of an adapter number with its gradient and two moments, all fp32
GB = 1e9


@dataclass(frozen=True)
class Needs:
    """What one real backbone takes. parameters: by part of the network; adapters: numbers per role at `rank`;
    inference_gb, training_gb: weights in bf16, with adapters, gradients and optimiser for training; files: pattern ->
    (what it is, whether the folder has it; None where no folder was named); what starts with "optional" can be left
    out."""

    name: str
    source: str
    rank: int
    parameters: dict[str, int]
    adapters: dict[Role, int]
    inference_gb: float
    training_gb: float
    device_gb: float | None
    files: dict[str, tuple[str, bool | None]]

    @property
    def missing(self) -> list[str]:
        """Patterns that a named folder has no file for and that the model cannot be opened without."""
        return [pattern for pattern, (what, there) in self.files.items() if there is False and not _optional(what)]


def _optional(what: str) -> bool:
    return what.startswith("optional")


def measure_needs(name: str, folder: Path | None = None, rank: int | None = None) -> Needs:
    """Count parameters, memory and files of a real backbone; loads no weights and needs no GPU.

    Memory is that of weights, adapters (three roles) and their optimisers: caches of prompts and pictures and the
    activations of an update come on top, and grow with the rows of a batch. Raises ValueError for an unknown name.
    """
    if name not in REAL:
        raise ValueError(f"no real backbone {name!r}; there are {', '.join(REAL)}")
    module = import_module(f"asgkit.backbones.{name}")
    rank = rank or resolve("paper").lora.rank
    network = module.full_size()
    parameters = count_parameters(network)
    adapters = {role: count_adapter(network, module.ROLE_TARGETS[role], rank) for role in ROLES}
    weights, trained = sum(parameters.values()) * BF16, sum(adapters.values())
    files = {pattern: (what, None if folder is None else any(folder.glob(pattern)))
             for pattern, what in module.FILES.items()}
    return Needs(name, module.SOURCE, rank, parameters, adapters, (weights + 4 * trained) / GB,
                 (weights + TRAINED * trained) / GB, _device_gb(), files)


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Parameters by the first two parts of their names, tied ones once."""
    counts: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.count(".") > 1 else name.split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def count_adapter(network: nn.Module, target: str, rank: int) -> int:
    """Numbers of one LoRA adapter: `rank x (in + out)` for each linear layer whose full name matches `target`.

    Names count from the part that carries adapters: `network.` in front is that of a network beside other parts.
    """
    return sum(rank * (layer.in_features + layer.out_features) for name, layer in network.named_modules()
               if isinstance(layer, nn.Linear) and re.fullmatch(target, name.removeprefix("network.")))


def _device_gb() -> float | None:
    return torch.cuda.get_device_properties(0).total_memory / GB if torch.cuda.is_available() else None


def as_json(needs: Needs) -> dict[str, Any]:
    """The needs as plain data."""
    return asdict(needs) | {"missing": needs.missing}


def rows(needs: Needs) -> list[tuple[str, str]]:
    """The needs as (what, how much) rows of a table."""
    total = sum(needs.parameters.values())
    found = [(f"parameters, {part}", _billions(count)) for part, count in _largest(needs.parameters).items()]
    found += [("parameters, all", _billions(total))]
    found += [(f"{role} adapter, rank {needs.rank}", f"{count / 1e6:.1f} M") for role, count in needs.adapters.items()]
    found += [("memory to ask, solve and draw", f"{needs.inference_gb:.1f} GB + caches"),
              ("memory to train the three roles", f"{needs.training_gb:.1f} GB + caches + activations"),
              ("this machine", _verdict(needs))]
    found += [(pattern, _found(what, there)) for pattern, (what, there) in needs.files.items()]
    return [*found, ("from", needs.source)]


def _found(what: str, there: bool | None) -> str:
    if there is None:
        return what
    return f"{'there' if there else 'absent' if _optional(what) else 'MISSING'}: {what}"


def _largest(parts: Mapping[str, int], keep: int = 6) -> dict[str, int]:
    """The largest parts, and the others together."""
    ranked = dict(sorted(parts.items(), key=lambda item: -item[1]))
    top = dict(list(ranked.items())[:keep])
    rest = sum(ranked.values()) - sum(top.values())
    return top | ({"other": rest} if rest else {})


def _billions(count: int) -> str:
    return f"{count / 1e9:.3f} B"


def _verdict(needs: Needs) -> str:
    if needs.device_gb is None:
        return "no CUDA device: use base=random to try the path, or another machine for the weights"
    room = f"one GPU of {needs.device_gb:.0f} GB"
    if needs.device_gb > 1.2 * needs.training_gb:
        return f"{room}: trains on it"
    if needs.device_gb > 1.1 * needs.inference_gb:
        return f"{room}: draws and answers; training may not fit, try schedule.micro_batch=1 or shard_weights=true"
    return f"{room}: too small for one; shard_weights=true over several (asgkit/scale/launchers/fsdp2_two_gpus.yaml)"
