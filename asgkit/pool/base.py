"""What every pool shares: usable items in a fixed order, a schedule of epochs, and a position to resume from.

Nothing but names, pixels and prompts leaves a pool: no label can reach the loop through it. Each epoch has its own
permutation, a pure function of (seed, epoch), so a pool's whole state is one integer, and an item does not fall into
the same phase of the training cycle in every epoch.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

Kind = Literal["pictures", "prompts"]
log = logging.getLogger(__name__)


class PoolError(ValueError):
    """The pool is missing, empty, of another kind or holds nothing usable, or it has changed under the run."""


@dataclass(frozen=True)
class PoolImage:
    """One drawn image: its name in the pool, its index among the usable ones, RGB pixels."""

    name: str
    index: int
    image: Image.Image


@dataclass(frozen=True)
class PoolPrompt:
    """One drawn prompt: its place (`prompts.txt:12` is line 12), its index among the usable ones, its text."""

    name: str
    index: int
    text: str


@dataclass
class PoolReport:
    """What `Pool.check` found: candidates, usable ones, and (name, reason) of each skipped one."""

    found: int = 0
    usable: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


Item = TypeVar("Item", PoolImage, PoolPrompt)


class Pool(ABC, Generic[Item]):
    """Usable items in fixed order, drawn by a schedule that only (seed, position) decides.

    `limit` takes a fixed random subset, the same for every seed, so that runs with different seeds see the same pool.
    With `world_size` > 1 each rank gets other positions of one common schedule.

    Raises PoolError if nothing usable is there. The position is the only state.
    """

    kind: ClassVar[Kind]
    noun: ClassVar[str]  # what is drawn
    unit: str  # what is counted: an image comes from an image file
    holder: str  # what must be restored if it changed under a run

    def __init__(self, place: str | Path, *, limit: int | None = None, seed: int = 0, rank: int = 0,
                 world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise PoolError(f"rank must be in [0, world_size), got rank {rank} of {world_size}")
        if limit is not None and limit < 1:
            raise PoolError(f"limit must be at least 1 {self.noun} or None, not {limit}")
        self.place, self.limit, self.seed = place, limit, seed
        self.rank, self.world_size, self.position = rank, world_size, 0
        self._order: tuple[int, np.ndarray] | None = None
        self.places: list[int] = []  # of the usable items, among all that were found
        self.names: list[str] = []
        self.report = self.check()

    # -- what a kind of pool defines -----------------------------------------------------------------------------------
    @abstractmethod
    def found(self) -> list[str]:
        """The names of all candidates in fixed order; raises PoolError if there are none."""

    @abstractmethod
    def trouble(self, place: int, name: str) -> str:
        """Why candidate `place` cannot be used; empty if it can."""

    @abstractmethod
    def item(self, index: int) -> Item:
        """Usable item `index`."""

    def contents(self) -> list[str]:
        """What tells one pool from another: the usable names, and more where a name does not stand for its content."""
        return self.names

    def nothing_usable(self, found: int, name: str, reason: str) -> str:
        """The error of a pool whose candidates were all skipped, the first for `reason`."""
        return f"none of the {found} {self.unit} in {self.place} can be used (first: {name}, {reason})"

    # -- the check -----------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.names)

    def check(self) -> PoolReport:
        """Look at every candidate once; keep the usable ones, count and log the others with reasons.

        Raises PoolError naming the place and the fix if it is missing, empty or wholly unusable.
        """
        found = self.found()
        report, kept = PoolReport(found=len(found)), []
        for place in self._with_progress(self._candidates(len(found))):
            if len(kept) == self.limit:
                break
            if reason := self.trouble(place, found[place]):
                report.skipped.append((_printable(found[place]), reason))
            else:
                kept.append(place)
        self.places, report.usable = sorted(kept), len(kept)
        self.names = [found[place] for place in self.places]
        _log_skips(report, self.unit)
        if not kept:
            raise PoolError(self.nothing_usable(len(found), *report.skipped[0]))
        return report

    def expect(self, needs: Collection[Kind], recipe: str) -> None:
        """Raise PoolError, saying what to give instead, if a recipe cannot start from what this pool yields."""
        if self.kind not in needs:
            wanted = {"pictures": "a folder of images, or pool.column naming an image column",
                      "prompts": "a text file with a prompt a line, or pool.column naming a column of texts"}
            raise PoolError(f"{self.place} yields {self.kind}, and recipe={recipe} needs {' or '.join(sorted(needs))}: "
                            f"give {' or '.join(wanted[kind] for kind in sorted(needs))}")

    # -- the schedule --------------------------------------------------------------------------------------------------
    def index_for(self, position: int) -> int:
        """Return the item's index at a schedule position: `permutation(seed, epoch)[offset]`.

        `epoch, offset = divmod(position, len(pool))`; every item occurs once per epoch.
        """
        epoch, offset = divmod(position, len(self))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self))
        return int(self._order[1][offset])

    def next_batch(self, n: int) -> list[Item]:
        """Draw this rank's next `n` items; `position` moves on by `n * world_size` on every rank.

        Rank r takes the r-th block of `n` consecutive positions, so that two ranks with one block each see what one
        process with both would see. Ranks see different items as long as the batch of all stays within one epoch.
        """
        begin = self.position + self.rank * n
        self.position += n * self.world_size
        return [self.item(self.index_for(position)) for position in range(begin, begin + n)]

    # -- the state -----------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return the position, and a digest of the usable items to notice a pool that has changed."""
        return {"position": self.position, "digest": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; raises PoolError if the usable items are not the same as then."""
        if state["digest"] != self._digest():
            raise PoolError(f"the usable {self.noun}s in {self.place} are not those the run began with, so its "
                            f"order cannot go on: restore the {self.holder} (and limit), or start a new run")
        self.position = int(state["position"])

    def _digest(self) -> str:
        return hashlib.sha256("\0".join(self.contents()).encode("utf-8")).hexdigest()

    def _candidates(self, count: int) -> list[int]:
        """Order of checking: as found, or shuffled for a subset (the first few might be of one kind)."""
        return list(range(count)) if self.limit is None else np.random.default_rng(0).permutation(count).tolist()

    def _with_progress(self, places: list[int]) -> Iterable[int]:
        """Show a progress bar where the check takes long enough for a person to wonder."""
        if len(places) <= 1000 or self.kind == "prompts":
            return places
        return track(places, description=f"checking {self.noun}s", console=Console(stderr=True))


def _printable(name: str) -> str:
    """A file's name as text, even if the file system holds bytes that are none."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _log_skips(report: PoolReport, unit: str) -> None:
    """Log each skipped candidate at INFO and their number, with the first few, as one warning."""
    for name, reason in report.skipped:
        log.info("skipped %s: %s", name, reason)
    if report.skipped:
        first = "; ".join(f"{name} ({reason})" for name, reason in report.skipped[:5])
        log.warning("%d of %d %s skipped: %s%s", len(report.skipped), report.found, unit, first,
                    "; ..." if len(report.skipped) > 5 else "")
