"""The processes of one run: messages between ranks, and gradients summed learner by learner.

No wrapper is put around the model, because one that watches the parameters trainable at its birth silently skips every
role but the first (spec: backbones 7).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from asgkit.errors import NonFiniteValue, StopRequested

IMAGE = "rgb_image"  # the key of an image in a message
T = TypeVar("T")


class Team:
    """The processes of one run. `Team()` is a process alone: its methods are identities and send nothing.

    Messages are JSON in byte tensors: floats come back exactly, and nothing is unpickled. Every method but `first` is
    a meeting: all ranks must call it, in the same order.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._joined = False

    @classmethod
    def join(cls, device: str = "cpu", *, lock_step: bool = False) -> Team:
        """The team in which a launcher (torchrun, accelerate) started this process; alone without one.

        device `cuda`: this process computes on the GPU of its local rank. lock_step: all processes do the same work
        (`LockStep`). Raises ValueError from torch, naming the variable, when the launcher set WORLD_SIZE but not the
        address of rank 0.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
            return cls()
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        fresh = not dist.is_initialized()
        if fresh:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        team = (LockStep if lock_step else cls)(dist.get_rank(), dist.get_world_size())
        team._joined = fresh
        return team

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._joined:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes the run directory."""
        return self.rank == 0

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """Every rank's values (plain JSON data and RGB images), rank by rank: with one value per shard, in shard order.

        Images come back pixel for pixel.
        """
        if self.size == 1:
            return list(values)
        mine = torch.from_numpy(np.frombuffer(_message(values), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        width = max(int(n) for n in lengths)
        parts = [torch.empty(width, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, nn.functional.pad(mine, (0, width - len(mine))))
        texts = [part[: int(n)].numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]
        return [value for text in texts for value in json.loads(text, object_hook=_image_from_json)]

    def meet(self) -> None:
        """Wait for every rank."""
        self.gather([])

    def agree(self, work: Callable[[], T]) -> T:
        """Do `work` and return its result, if no rank met a non-finite value or was asked to stop.

        Otherwise every rank raises: StopRequested if any was asked to stop, else NonFiniteValue naming the rank. Other
        errors are defects; they end this process, and the launcher ends the others. `work` must not send messages.
        """
        if self.size == 1:
            return work()
        result, trouble = None, []
        try:
            result = work()
        except StopRequested as error:
            trouble = [("", str(error), self.rank)]
        except NonFiniteValue as error:
            trouble = [(error.name, str(error), self.rank)]
        found = self.gather(trouble)
        for name, text, _ in found:
            if not name:
                raise StopRequested(text)
        for name, text, rank in found:
            raise NonFiniteValue(name, f"rank {rank} met it ({text})")
        return result

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over the ranks, as one vector in the given order; bit for bit the same on every rank.

        A rank without a gradient adds zeros. Where no rank has one it stays None, since AdamW would otherwise apply
        its weight decay to a tensor that a single process leaves alone.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        dist.all_reduce(there)
        dist.all_reduce(flat)
        pieces = flat.split([p.numel() for p in parameters])
        for p, piece, count in zip(parameters, pieces, there.tolist(), strict=True):
            p.grad = piece.view_as(p) if count else None


class LockStep(Team):
    """Processes that do one process's work together: to data and gradients they are one rank of one."""

    def __init__(self, place: int, count: int) -> None:
        super().__init__(0, 1)
        self.place, self.count = place, count

    @property
    def first(self) -> bool:
        """Whether this process writes the run directory."""
        return self.place == 0

    def meet(self) -> None:
        """Wait for every process."""
        dist.barrier()


def _message(values: Sequence[Any]) -> bytes:
    return json.dumps(list(values), default=_image_to_json).encode()


def _image_to_json(value: Any) -> dict[str, Any]:
    """What JSON asks of what it cannot write: an RGB image becomes size and base64."""
    if isinstance(value, Image.Image) and value.mode == "RGB":
        return {IMAGE: [*value.size, base64.b64encode(value.tobytes()).decode()]}
    raise TypeError(f"a message holds plain data and RGB images, not {type(value).__name__}")


def _image_from_json(value: dict[str, Any]) -> Any:
    if IMAGE not in value:
        return value
    width, height, text = value[IMAGE]
    return Image.frombytes("RGB", (width, height), base64.b64decode(text))
