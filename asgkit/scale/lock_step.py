"""A model that does not fit on one device: several processes hold one copy of its frozen weights together (FSDP2).

They work in lock step, on the same images with the same random numbers, so that every process calls every layer
equally often: layers are gathered by all processes at once, and processes that sampled texts of different lengths
would wait for each other for ever. It saves memory, not time; data parallelism (`asgkit.scale.team`) saves time.
Adapters, their gradients and optimisers stay whole on every process and are equal there, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from asgkit.backbones.base import ROLES, Backbone
from asgkit.errors import StopSignal


class SharedStop(StopSignal):
    """A stop asked of any process stops all at the same check; every process must check equally often."""

    def check(self) -> None:
        """Raise StopRequested on every process once one was asked to stop."""
        asked = torch.tensor([float(self.requested)])
        dist.all_reduce(asked, dist.ReduceOp.MAX)
        if asked.item():
            self.request("stop requested of another process")
        super().check()


def repeated_layers(network: nn.Module) -> Iterator[nn.Module]:
    """The layers that a network repeats: members of its outermost ModuleLists of two or more alike."""
    for child in network.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(layer) for layer in child}) == 1:
            yield from child
        else:
            yield from repeated_layers(child)


def shard_frozen(network: nn.Module, adapters: set[nn.Parameter], device: str) -> int:
    """Cut the frozen weights of every repeated layer over the processes; returns how many layers were cut.

    What is not in a repeated layer (embeddings, heads) and the adapters stay whole. A layer's methods that do its
    work besides `forward` are named in its class as `entries`. Raises ValueError for a network without such layers.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    count = 0
    for layer in list(repeated_layers(network)):
        entries = getattr(layer, "entries", ())  # before the class is changed by the next line
        fully_shard(layer, mesh=mesh, ignored_params=adapters)
        for name in entries:
            register_fsdp_forward_method(layer, name)
        count += 1
    if count == 0:
        raise ValueError(f"{type(network).__name__} repeats no layer, so nothing can be cut: set shard_weights=false")
    return count


def shard_backbone(backbone: Backbone, device: str) -> int:
    """`shard_frozen` for a backbone built on `asgkit.backbones.reader.Reader`."""
    adapters = {p for role in ROLES for p in backbone.role_parameters(role)}
    return shard_frozen(backbone.network, adapters, device)
