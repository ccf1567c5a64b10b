"""lmms-eval's view of a backbone of the kit: base and adapted models answer through this one class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asgkit.evals.protocol import Protocol, claim_folder
from asgkit.evals.subject import Subject, open_subject, parse_role
from asgkit.evals.vqa import DIFFERENCES, Answerer, BenchmarkError, Item, VQASettings

INSTALLED = find_spec("lmms_eval") is not None
if INSTALLED:
    from lmms_eval.api.model import lmms
else:
    class lmms:
        """Stands where lmms-eval's base class would be, so that this module can be read; it cannot be used."""

        def __init__(self) -> None:
            raise ModuleNotFoundError("lmms-eval is not installed and no dependency of the kit: pip install lmms-eval")


class AsgkitBackbone(lmms):
    """A backbone under one role (`none`: the base) that answers `generate_until` tasks about pictures.

    Arguments are those of `--model_args`: run (and step) or backbone and base; role; images (real, blank, shuffled),
    seed, fit, prompt, max_new_tokens (see `asgkit.evals.vqa.VQASettings`); out: folder for protocol.json and one
    items-TASK.jsonl per task. batch_size and device come from lmms-eval's own options. `subject` is for callers that
    hold an open model.

    Raises ModuleNotFoundError without lmms-eval, ValueError for a role without a run or an unknown setting,
    FileExistsError when `out` holds a result.
    """

    is_simple = True

    def __init__(self, run: str = "", role: str = "none", out: str = "", step: int | None = None,
                 backbone: str = "tiny-ar", base: str = "clean", batch_size: int | str = 1,
                 max_batch_size: int | None = None, device: str | None = None, precision: str | None = None,
                 subject: Subject | None = None, **settings: Any) -> None:
        super().__init__()
        if not out:
            raise ValueError("out is missing: name a folder for the answers, --model_args out=results/bench/NAME,...")
        if max_batch_size is not None or not str(batch_size).isdigit():
            raise ValueError(f"batch_size={batch_size}: the protocol records a number, so give one")
        self.subject = subject or open_subject(run or None, step=step, role=parse_role(role), backbone=backbone,
                                               base=base, device=device and device.partition(":")[0],
                                               precision=precision)
        self.folder = Path(out)
        self._rank, self._world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        suffix = f".{self._rank}" if self._world_size > 1 else ""
        self.answerer = Answerer(self.subject, VQASettings(batch_size=int(batch_size), **settings), self.folder,
                                 suffix)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer lmms-eval's requests in order; writes the protocol before the first answer."""
        items = [self._item(request.args) for request in requests]
        if self._rank == 0:
            claim_folder(self.folder, self.protocol(items))
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.answerer.answer(items)

    def _item(self, args: tuple[Any, ...]) -> Item:
        text, options, to_visual, doc, task, split = args
        docs = self.task_dict[task][split]
        return Item(task, split, doc, text, options, lambda i: _flat(to_visual(docs[i])), len(docs))

    def protocol(self, items: Sequence[Item]) -> Protocol:
        """What a second result must share with this one to have a delta, and what may differ."""
        answerer = self.answerer
        settings = {"model": self.subject.model, "answering": answerer.settings.model_dump(),
                    "tasks": answerer.describe(items), "processes": self._world_size, "lmms_eval": version("lmms-eval")}
        return Protocol("vqa", settings, self.subject.record, DIFFERENCES)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: none of the paper's seven benchmarks scores continuations."""
        raise BenchmarkError("this plug-in answers tasks of type generate_until, not of type loglikelihood")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: none of the paper's seven benchmarks has several rounds."""
        raise BenchmarkError("this plug-in answers tasks of type generate_until, not of several rounds")


def _flat(visuals: Any) -> list[Any]:
    """What `doc_to_visual` returned (None, one picture, a list, or a list in a list) as a flat list."""
    if visuals is None:
        return []
    if not isinstance(visuals, list | tuple):
        return [visuals]
    return [image for part in visuals for image in _flat(part)]
