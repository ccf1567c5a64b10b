"""Three LoRA roles on one frozen network, through peft, without its traps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from asgkit.backbones.base import ROLES, Role
from asgkit.backbones.quantise import quantise_linears


class RoleAdapters:
    """Proposer, Solver and Generator adapters (fp32) on one frozen network.

    peft's `set_adapter` turns `requires_grad` off for every adapter but the active one; here each role's tensors
    stay trainable all the time and an optimiser is built from `parameters(role)`, an explicit list, so a role can
    neither be frozen nor trained by accident. Targets are given as one regular expression over full module names
    per role: a suffix would also match modules that nobody meant. `quantise="nf4"` keeps the adapted layers in 4 bits,
    which compute in `compute` (None: the type of their weights).
    """

    def __init__(self, network: nn.Module, targets: dict[Role, str], *, rank: int, alpha: int, dropout: float,
                 seed: int, quantise: str = "", compute: torch.dtype | None = None) -> None:
        if quantise not in ("", "nf4"):
            raise ValueError(f"unknown quantisation {quantise!r}; choose nf4, or nothing for weights as they are")
        if quantise:
            quantise_linears(network, targets.values(), compute)
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PeftModel | None = None
            for role in ROLES:
                config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                                    target_modules=targets[role])
                with warnings.catch_warnings():
                    # origin: peft 0.21 asks a transformers model by a name that transformers 5.23 deprecates
                    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                    if model is None:
                        model = get_peft_model(network, config, adapter_name=role)
                    else:
                        model.add_adapter(role, config)
        self.network, self.active = network, None
        self._layers = [m for m in network.modules() if isinstance(m, LoraLayer)]
        self._named = {role: self._collect(role) for role in ROLES}
        for tensors in self._named.values():
            for tensor in tensors.values():
                tensor.data = tensor.data.float()  # master weights: a bf16 LoRA barely moves at small learning rates
        self._drops = [m for layer in self._layers for m in layer.lora_dropout.values()]
        self._switch(None)
        self._drop(False)

    def _collect(self, role: Role) -> dict[str, nn.Parameter]:
        marker = f".{role}."
        return {name.replace(marker, "."): p for name, p in self.network.named_parameters() if marker in name}

    def _switch(self, role: Role | None) -> None:
        for layer in self._layers:
            if role is None:
                layer.enable_adapters(False)
            else:
                layer.enable_adapters(True)
                # a layer that this role does not target keeps no active adapter
                layer.set_adapter(role if role in layer.lora_A else [])
        self.active = role
        for tensors in self._named.values():
            for tensor in tensors.values():
                tensor.requires_grad_(True)

    def _drop(self, active: bool) -> None:
        # peft makes new dropout layers in training mode, also on a network in evaluation mode: sampling would drop
        # connections, and the log-probabilities of what it sampled could not be computed again
        for module in self._drops:
            module.train(active)

    @contextmanager
    def use(self, role: Role | None, *, dropout: bool = False) -> Iterator[None]:
        """Activate one role (None: the frozen base) and restore the previous one afterwards.

        dropout: whether LoRA dropout acts inside; only a pass that carries a gradient should ask for it.
        """
        if role is not None and role not in ROLES:
            raise ValueError(f"unknown role {role!r}; choose one of {ROLES} or None for the frozen base")
        before = self.active
        self._switch(role)
        self._drop(dropout)
        try:
            yield
        finally:
            self._switch(before)
            self._drop(False)

    def parameters(self, role: Role) -> list[nn.Parameter]:
        """The role's tensors in module order, whatever adapter is active."""
        return list(self._named[role].values())

    def save(self, role: Role, path: Path) -> None:
        """Write `adapter.safetensors` with one tensor per LoRA matrix, named by its module."""
        path.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._named[role].items()}
        save_file(tensors, path / "adapter.safetensors")

    def load(self, role: Role, path: Path) -> None:
        """Read `adapter.safetensors`; raises KeyError (names) or ValueError (shapes) unless every tensor fits."""
        stored, own = load_file(path / "adapter.safetensors"), self._named[role]
        if stored.keys() != own.keys():
            missing, extra = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
            raise KeyError(f"adapter {role} in {path.name}: missing tensors {missing[:3]}, unexpected {extra[:3]}")
        for name, tensor in stored.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"adapter {role}, tensor {name}: {tuple(tensor.shape)} does not fit "
                                 f"{tuple(own[name].shape)}; was it trained with another LoRA rank?")
            own[name].data.copy_(tensor)
