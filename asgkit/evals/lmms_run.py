"""Run lmms-eval in this process on one subject: answers and protocol by the plug-in, scores by lmms-eval."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from asgkit.evals.presets import graded_outside
from asgkit.evals.subject import Subject
from asgkit.evals.vqa import BenchmarkError, VQASettings
from asgkit.runs.files import append_line, write_json


def require_lmms_eval() -> None:
    """Raise BenchmarkError with the command that installs lmms-eval, which is no dependency of the kit."""
    if find_spec("lmms_eval") is None:
        raise BenchmarkError("lmms-eval is not installed and no dependency of the kit: pip install lmms-eval")


def check_graders(tasks: Sequence[str], allowed: bool) -> None:
    """Raise BenchmarkError for tasks whose answers go to an external grader, unless that was asked for and has a key.
    """
    outside = graded_outside(list(tasks))
    if outside and not allowed:
        raise BenchmarkError(f"{', '.join(outside)}: answers are scored by a model of OpenAI, which costs money and "
                             "leaves this machine; allow it with --external-grader, or leave the task out")
    if outside and not os.environ.get("OPENAI_API_KEY"):
        raise BenchmarkError(f"{', '.join(outside)}: the external grader needs OPENAI_API_KEY in the environment")


def run_tasks(subject: Subject, tasks: Sequence[str], settings: VQASettings, out: Path, *, limit: int | None = None,
              include: Path | None = None) -> dict[str, dict[str, float]]:
    """Answer and score tasks; writes protocol.json, items-TASK.jsonl, scores.json and item_scores.jsonl into `out`.

    limit: only the first so many items of every task, for trying out; include: a folder with task files of your own.
    Returns the scores of each task by metric. Needs lmms-eval.
    """
    require_lmms_eval()
    out.parent.mkdir(parents=True, exist_ok=True)
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from asgkit.evals.lmms.models.asgkit_backbone import AsgkitBackbone

    model = AsgkitBackbone(out=str(out), subject=subject, **settings.model_dump())
    manager = TaskManager("WARNING", include_path=str(include) if include else None, model_name="asgkit_backbone")
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise BenchmarkError(f"lmms-eval knows no task {', '.join(unknown)}; its names: lmms-eval --tasks list, and "
                             "yours need --include FOLDER")
    found = simple_evaluate(model, tasks=list(tasks), batch_size=settings.batch_size, limit=limit,
                            task_manager=manager, log_samples=True, verbosity="WARNING")
    if found is None:  # lmms-eval gathers everything on the first process
        return {}
    scores = {task: _numbers(row) for task, row in found["results"].items()}
    write_json(out / "scores.json", {"benchmark": "vqa", "limit": limit, "scores": scores})
    for task, samples in found["samples"].items():
        for sample in samples:
            append_line(out / "item_scores.jsonl",
                        {"task": task, "doc": sample["doc_id"], "scores": item_scores(sample, scores[task])})
    return scores


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task (their names without lmms-eval's `,filter`), without standard errors and labels."""
    return {name.partition(",")[0]: float(value) for name, value in row.items()
            if isinstance(value, Real) and not isinstance(value, bool) and "_stderr" not in name
            and name.partition(",")[1]}


def item_scores(sample: Mapping[str, Any], metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are a number for a single item; others (MME's pairs, for example) exist for tasks alone."""
    return {name: float(sample[name]) for name in metrics if isinstance(sample.get(name), Real)}
