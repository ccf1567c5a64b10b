"""What a recipe is: one self-rewarding method as one object that the trainer drives and knows nothing else about.

    pool -> shards -> sample (no gradient) -> batches -> one optimiser step per learner -> remember -> records

A recipe never calls an optimiser, never sees a label, never sends a message between processes and never draws from a
global generator: its random numbers come from its shard. What it remembers is the same on every process, because
every process is shown every process's signals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from PIL import Image
from pydantic import BaseModel

from asgkit.backbones.base import ROLES, Backbone, Role
from asgkit.config import Config
from asgkit.errors import StopSignal
from asgkit.learning.objectives import Batch
from asgkit.learning.optimiser import UpdateStats
from asgkit.recipes.controls import Judge
from asgkit.runs.clock import Clock
from asgkit.runs.schema import FieldTable
from asgkit.scale.shards import Shard

# Streams of derived seeds (`Shard.rng`): a use of chance has a number of its own, so that no two share a sequence.
ASK, SOLVE, CAPTION, DIAGNOSE, DRAW, CONTROL, STYLE, REPLAY, NOISE, EXPECT = range(10)

Record = dict[str, Any]
Signals = Mapping[str, list[Any]]
Scorer = tuple[Backbone, Role | None]


class Learner(NamedTuple):
    """Whose weights an optimiser moves, and its learning rate."""

    adapter: Role
    learning_rate: float


@dataclass(frozen=True)
class Tools:
    """What a recipe works with: settings (all, and its own section), the model, who judges for it, and the clock.

    scorer: who answers and captions for the Generator's reward. judge: truth, for the oracle controls alone. measure:
    another model whose base measures the similarities of the cycle (None: this one's).
    """

    config: Config
    backbone: Backbone
    scorer: Scorer
    clock: Clock
    stop: StopSignal
    judge: Judge | None = None
    own: Any = None
    measure: Backbone | None = None


class Sheet(NamedTuple):
    """Drawings for the eye: the first picture of each row (None: there is none), its candidates, their rewards."""

    sources: Sequence[Image.Image | None]
    groups: Sequence[Sequence[Image.Image]]
    rewards: Sequence[Sequence[float]]


class Memory(Protocol):
    """What a recipe carries from step to step; `state_dict` holds plain data and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""


class Work(Protocol):
    """What a recipe sampled in one shard."""

    @property
    def shard(self) -> Shard:
        """The shard it was sampled from; its items are those that the log names."""

    def signals(self) -> Signals:
        """Numbers, texts and images that every process must know: what memories and step means are made of."""

    def sheet(self) -> Sheet | None:
        """The drawings to show, if there are any."""


@runtime_checkable
class Recipe(Protocol):
    """One self-rewarding method. It is made as `MyRecipe(tools)`.

    Settings: pydantic model of the settings `own.*` of a class of one's own, or None. needs: what it can start from,
    `pictures` or `prompts`, any of these. drawing: its phases that draw. fields: its table of log fields, the core ones
    included. memories: by name, in checkpoints. learners: by name, an optimiser each.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[BaseModel] | None]
    needs: ClassVar[frozenset[str]]
    drawing: ClassVar[frozenset[str]]
    fields: ClassVar[FieldTable]
    memories: Mapping[str, Memory]
    learners: Mapping[str, Learner]

    def phase(self, step: int) -> str:
        """What step `step`, counted from 1, does: the schedule is the recipe's."""

    def sample(self, shard: Shard, phase: str) -> Work:
        """Everything up to the rewards of one shard: no gradient, no message."""

    def batches(self, work: Work) -> dict[str, Batch | None]:
        """What each learner of this phase learns from in this shard; None where nothing teaches it."""

    def remember(self, seen: Sequence[Signals]) -> None:
        """Move the memories by the signals of every shard of every process; called when the step has been taken."""

    def records(self, step: int, work: Work, stats: Mapping[str, UpdateStats]) -> Iterator[Record]:
        """One log record per item of the shard."""


def every(seen: Sequence[Signals], name: str) -> list[Any]:
    """One signal of all shards, in shard order."""
    return [value for shard in seen for value in shard[name]]


def update_fields(stats: Mapping[str, UpdateStats]) -> Record:
    """Optimiser values of the learners that this step concerns, in the order of the roles."""
    merged: Record = {}
    for role in ROLES:
        if role in stats:
            merged |= stats[role].record(role)
    return merged


def rounded(values: Any) -> Any:
    """Six decimals: below any effect, and short enough to keep whole logs."""
    if isinstance(values, list):
        return [rounded(v) for v in values]
    return round(values, 6) if isinstance(values, float) else values
