"""One notebook of a batch, executed in a process of its own: `python -m asgkit.experiments.job`, driven by `batch`.

A process each, because papermill changes the working directory of the whole process. The job arrives as one line of
JSON on standard input; when the input ends, the parent wants to stop or is gone, and the kernel is shut down. The
exit status is an `Outcome`, and the last line of the output says why.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

SENTINEL = "finished"  # the last cell of a batch notebook prints this word and the token it was given


class Outcome(IntEnum):
    """Exit status of the process."""

    DONE = 0
    CRASHED = 1  # Python's own status for a traceback
    CELL_FAILED = 3
    KERNEL_DIED = 4
    NO_SENTINEL = 5
    STOPPED = 130


@dataclass(frozen=True)
class Job:
    """What one process executes: notebook, parameters, where the copy goes, kernel's folder, expected token."""

    notebook: str
    output: str
    parameters: dict[str, Any]
    cwd: str
    token: str

    def line(self) -> str:
        """The job as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @property
    def partial(self) -> Path:
        """Where the notebook lies while it runs."""
        return Path(self.output).with_suffix(".partial.ipynb")

    @property
    def failed(self) -> Path:
        """Where a notebook with a failing cell is kept, to be opened."""
        return Path(self.output).with_suffix(".failed.ipynb")


def has_sentinel(path: Path, token: str) -> bool:
    """Whether the last code cell of a notebook printed `finished <token>` as its last line.

    The outputs are searched, not the sources: the token is also in the cell of injected parameters.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = code[-1]["outputs"] if code else []
    printed = "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream" and o["name"] == "stdout")
    return printed.rstrip("\n").rpartition("\n")[2] == f"{SENTINEL} {token}"


def execute(job: Job) -> tuple[Outcome, str]:
    """Execute a job's notebook aside, and rename it when all cells ran and the sentinel is there.

    Returns the outcome and one sentence. A notebook with a failing cell is kept as NAME.failed.ipynb.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config as KernelConfig

    try:
        # encryption: "auto" keeps the kernel from warning about plain TCP on the loop-back device at every start
        papermill.execute_notebook(job.notebook, str(job.partial), parameters=job.parameters, kernel_name="python3",
                                   progress_bar=False, cwd=job.cwd, shutdown_kernel="immediate",
                                   config=KernelConfig({"KernelManager": {"transport_encryption": "auto"}}))
    except PapermillExecutionError as error:
        os.replace(job.partial, job.failed)
        return Outcome.CELL_FAILED, f"cell {error.exec_count} failed: {error.ename}: {error.evalue}; see {job.failed}"
    except DeadKernelError:
        return Outcome.KERNEL_DIED, "the kernel died: out of memory, or killed from outside"
    if not has_sentinel(job.partial, job.token):
        os.replace(job.partial, job.failed)
        return Outcome.NO_SENTINEL, (f"the last cell did not print '{SENTINEL} <token>', so not all of it ran; see "
                                     f"{job.failed}")
    os.replace(job.partial, job.output)
    return Outcome.DONE, "done"


def _stop_with_parent() -> None:
    """Interrupt this process when its standard input ends; raw reads, so that a normal exit waits for no lock."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def main() -> int:
    """Read the job, execute it, print one sentence, and return the outcome."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored in the background
    job = Job(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        outcome, sentence = execute(job)
    except KeyboardInterrupt:
        outcome, sentence = Outcome.STOPPED, "stopped"
    finally:
        job.partial.unlink(missing_ok=True)
    print(" ".join(sentence.split()), flush=True)
    return int(outcome)


if __name__ == "__main__":
    sys.exit(main())
