"""Many processes, one run: images in shards, messages between ranks, gradients summed role by role.

The batch of a step is cut into `ranks x schedule.accumulate` shards of `schedule.images` images each. A shard has its
own images and random streams, so what it samples does not depend on which process works on it: two processes with one
shard each and one process with two shards are the same run. No wrapper is put around the model, because one that
watches the parameters trainable at its birth silently skips every role but the first (spec: backbones 7).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from asgkit.errors import NonFiniteValue, StopRequested
from asgkit.learning.replay import ReplayBuffer
from asgkit.pool.folder import PoolImage
from asgkit.stages.answer import Rollout, Solved
from asgkit.stages.generation import Round

if TYPE_CHECKING:  # records imports optim, which imports this module
    from asgkit.recipes.asg_records import UnderstandingRow

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """`schedule.images` images of one step, with random streams of their own; `index` counts over all ranks."""

    seed: int
    step: int
    index: int
    images: list[PoolImage]

    @property
    def pictures(self) -> list[Image.Image]:
        """The images without their names."""
        return [item.image for item in self.images]

    def rng(self, *stream: int) -> np.random.Generator:
        """A generator for each step, use and shard: no stream to save, none to replay after a resume.

        Shard 0 has the stream of `[seed, step, *stream]`; the others are spawned from it by their index.
        """
        spawned = (self.index,) if self.index else ()
        return np.random.default_rng(np.random.SeedSequence([self.seed, self.step, *stream], spawn_key=spawned))

    def number(self, stream: int) -> int:
        """One seed of a stream, for what takes a seed and no generator."""
        return int(self.rng(stream).integers(2**31))


def cut_shards(images: Sequence[PoolImage], size: int, *, seed: int, step: int, first: int = 0) -> list[Shard]:
    """The shards `first`, `first + 1`, ... of a step, `size` consecutive images each."""
    return [Shard(seed, step, first + i, list(images[i * size : (i + 1) * size]))
            for i in range(len(images) // size)]


def mix_replay(shard: Shard, replay: ReplayBuffer, share: float, stream: int) -> Shard:
    """The shard with about `share` of its images replaced by earlier best drawings, once there are any."""
    if share == 0 or len(replay) == 0:
        return shard
    rng = shard.rng(stream)
    swap = rng.random(len(shard.images)) < share
    images = [PoolImage(f"replay/{item.name}", item.index, replay.draw(rng)) if s else item
              for item, s in zip(shard.images, swap, strict=True)]
    return replace(shard, images=images)


@dataclass(frozen=True)
class Asked:
    """What a shard of a U step sampled: rows with scores and rewards, the Proposer's texts, the Solver's answers, and
    the (row, candidate) of each question that was answered."""

    shard: Shard
    table: list[UnderstandingRow]
    rollout: Rollout
    solved: Solved | None
    where: list[tuple[int, int]]

    def signals(self, aggregation: str) -> dict[str, list]:
        """The numbers that all ranks must know, as JSON: what memories and step means are made of.

        difficulties: STE (nats) by `aggregation`; entropies: H_sc (nats) of every vote; rewards: R_s of what taught
        the Solver; silent: groups without a spread; lengths and tokens: sampled tokens, per question and in all.
        """
        cells = [(row, k) for row in self.table for k, vote in enumerate(row.votes) if vote is not None]
        lengths = self.rollout.answers.mask.sum(1).tolist()
        answered = int(self.solved.answers.mask.sum()) if self.solved else 0
        return {"difficulties": [(row.ste if aggregation == "max" else row.ste_mean)[k] for row, k in cells],
                "entropies": [row.votes[k].entropy for row, k in cells],
                "rewards": [r for row in self.table for k in row.solver_advantages for r in row.solver_rewards[k]],
                "silent": [row.zero_variance for row in self.table],
                "lengths": lengths, "tokens": [sum(lengths), answered]}


@dataclass(frozen=True)
class Drawn:
    """What a shard of a G step drew, the judge's scores (under control=oracle), and the rewards (G, L) that train."""

    shard: Shard
    made: Round
    judged: list[list[float]]
    rewards: Tensor

    @property
    def passed(self) -> Tensor:
        """Which cards (G,) passed the quality gate and may speak."""
        return torch.tensor([card.passed for card in self.made.cards])

    def best_drawings(self) -> list[Image.Image]:
        """The candidate of highest R_g of every card that passed the gate."""
        best = self.made.scores.reward.argmax(1).tolist()
        return [self.made.groups[i][best[i]] for i, card in enumerate(self.made.cards) if card.passed]


def every(signals: Sequence[Mapping[str, list]], name: str) -> list[Any]:
    """One signal of all shards, in shard order."""
    return [value for shard in signals for value in shard[name]]


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
        (`asgkit.scale.shard`). Raises ValueError from torch, naming the
        variable, when the launcher set WORLD_SIZE but not the address of rank 0.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
            return cls()
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        fresh = not dist.is_initialized()
        if fresh:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
        team = _lock_step() if lock_step else cls(dist.get_rank(), dist.get_world_size())
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
        """Every rank's values (plain JSON data), rank by rank: with one value per shard, in shard order."""
        if self.size == 1:
            return list(values)
        mine = torch.from_numpy(np.frombuffer(json.dumps(list(values)).encode(), np.uint8).copy())
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(mine)]))
        width = max(int(n) for n in lengths)
        parts = [torch.empty(width, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, nn.functional.pad(mine, (0, width - len(mine))))
        texts = [part[: int(n)].numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]
        return [value for text in texts for value in json.loads(text)]

    def gather_images(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Every rank's RGB images, rank by rank, pixel for pixel."""
        if self.size == 1:
            return list(images)
        coded = [[*image.size, base64.b64encode(image.tobytes()).decode()] for image in images]
        return [Image.frombytes("RGB", (w, h), base64.b64decode(text)) for w, h, text in self.gather(coded)]

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


def _lock_step() -> Team:
    from asgkit.scale.shard import LockStep  # which builds on this module

    return LockStep(dist.get_rank(), dist.get_world_size())
