"""What can go wrong in a run, or stop it, by name; and `StopSignal`, which turns SIGTERM and Ctrl-C into a flag.

Every stage polls the flag, because one that is looked at only between steps misses the preemption of a slow stage.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class ConfigError(ValueError):
    """A configuration key or value that cannot be used; the message names the nearest key."""


class Refused(Exception):
    """Something that the user can put right; shown as one line, exit status 2."""


class StopRequested(Exception):
    """The run was asked to stop; raised by `StopSignal.check` inside a stage."""


class NonFiniteValue(ArithmeticError):
    """A loss, reward, gradient or log-probability is NaN or infinite; `.name` says which."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(f"{name} is not finite: {detail}")
        self.name = name


class TrainingAborted(RuntimeError):
    """Too many updates in a row were skipped; the message names the dumped batches and what to try."""


class StopSignal:
    """Context manager that turns SIGTERM and Ctrl-C into a flag, and gives the old handlers back on exit.

    Call `.check()` inside every stage. A second Ctrl-C raises KeyboardInterrupt at once, for a stage that
    hangs. Outside the main thread Python allows no handlers: then only `.request()` sets the flag.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True once a stop was asked for."""
        return bool(self.reason)

    def request(self, reason: str = "stop requested") -> None:
        """Ask for a stop at the next `.check()`; safe from any thread."""
        self.reason = self.reason or reason

    def check(self) -> None:
        """Raise StopRequested if a stop was asked for; costs one attribute look-up otherwise."""
        if self.reason:
            raise StopRequested(self.reason)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self.request(signal.Signals(number).name)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            # None means that the handler was not installed from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
