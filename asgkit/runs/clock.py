"""Seconds of each stage of a step; a stop that was asked for is noticed where a stage begins."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from asgkit.errors import StopSignal


class Clock:
    """`with clock.stage("draw"):` adds up `seconds["draw"]`; `restart` begins a step."""

    def __init__(self, stop: StopSignal) -> None:
        self.stop = stop
        self.seconds: dict[str, float] = {}

    def restart(self) -> None:
        """Forget the step before."""
        self.seconds = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Time a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of one shard. Raises StopRequested if a stop was asked for before it."""
        self.stop.check()
        with self.time(name):
            yield
