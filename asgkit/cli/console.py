"""What the command line shows: expected errors as one line, training progress, and small tables."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from typer import Argument, Exit, Option
from typer.core import TyperGroup

from asgkit.config import ConfigError
from asgkit.errors import Refused, TrainingAborted
from asgkit.pool.base import PoolError
from asgkit.runs.directory import ConfigChanged, CorruptCheckpoint, RunExists
from asgkit.runs.wording import duration

LINE_EVERY = 10  # steps between two lines where no bar can be drawn
TAIL = 20  # steps in the reward tail
out = Console(soft_wrap=True)

Overrides = Annotated[list[str] | None, Argument(help="key=value pairs, for example seed=3 solver.framings=5",
                                                       show_default=False)]
Threads = Annotated[int, Option(min=1, help="CPU threads of torch; two runs of one finish before one of two.")]


EXPECTED = (Refused, ConfigError, PoolError, RunExists, ConfigChanged, CorruptCheckpoint, TrainingAborted,
            FileNotFoundError, SafetensorError)


class PlainErrors(TyperGroup):
    """A command group that prints expected errors as one line and leaves the traceback of all others."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an expected error ends with exit status 2."""
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            if isinstance(error, FileNotFoundError) and error.errno is not None:
                raise  # the system's own, so an accident of ours; those of the package carry a sentence
            text = f"a damaged safetensors file: {error}" if isinstance(error, SafetensorError) else str(error)
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(text)}", highlight=False)
            raise Exit(2) from error


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of these kinds into Refused: for a block where they can only be the user's to put right."""
    try:
        yield
    except kinds as error:
        raise Refused(str(error)) from error


class TrainProgress:
    """Progress of one run: a bar with time left and reward tail on a terminal, a line every 10 steps elsewhere.

    Call it as `progress(step, records)` after every step. The tail is the mean of R_p (all candidates) and of R_g
    (all drawings) over the last 20 steps that had any.
    """

    def __init__(self, total: int, console: Console, start: int = 0) -> None:
        self.total, self.console, self.start = total, console, start
        self.tails: dict[str, deque[float]] = {"R_p": deque(maxlen=TAIL), "R_g": deque(maxlen=TAIL)}
        self.bar: Progress | None = None

    def __enter__(self) -> Self:
        self.began = time.perf_counter()
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                                TextColumn("{task.fields[tail]}"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("train", total=self.total, completed=self.start, tail="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, step: int, records: list[dict[str, Any]]) -> None:
        for name, key in (("R_p", "proposer/rewards"), ("R_g", "generator/rewards")):
            values = [v for record in records for v in record.get(key, [])]
            if values:
                self.tails[name].append(sum(values) / len(values))
        if self.bar:
            self.bar.update(self.task, completed=step, tail=self.tail())
        elif step % LINE_EVERY == 0 or step == self.total:
            done = max(1, step - self.start)
            left = (time.perf_counter() - self.began) / done * (self.total - step)
            self.console.print(f"step {step}/{self.total}  {self.tail()}  {duration(left)} left", highlight=False)

    def tail(self) -> str:
        """The reward tail as text."""
        return "  ".join(f"{name} {sum(v) / len(v):+.3f}" for name, v in self.tails.items() if v)


