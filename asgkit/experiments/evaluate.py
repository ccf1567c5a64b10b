"""Score a run beside its base, and along its checkpoints: what `asgkit eval` does."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asgkit.backbones.base import Backbone
from asgkit.config import Config, from_dict
from asgkit.errors import Refused
from asgkit.launch import open_backbone
from asgkit.runs.directory import CorruptCheckpoint, RunDirectory, load_checkpoint
from asgkit.runs.files import write_atomic, write_json

FULL = {"per_family": 300, "per_tag": 42, "samples": 4}  # 2,100 questions, 252 prompts x 4 drawings
SMALL = {"per_family": 60, "per_tag": 20, "samples": 2}  # 420 questions, 120 prompts x 2: seconds, wide intervals
CURVE = {"per_family": 30, "per_tag": 10, "samples": 2}  # 210 questions, 60 prompts x 2, at every checkpoint


def choose_decoding(config: Config, per_tag: int, samples: int) -> dict[str, float]:
    """Temperature and guidance that serve the untrained base best, chosen on the dev split: the fair opponent."""
    from asgkit.evals.shapes import best_decoding

    temperature, guidance = best_decoding(open_backbone(config), None, "dev", per_tag, samples)[0]
    return {"temperature": temperature, "guidance": guidance}


def evaluate_base(config: Config, folder: Path, split: str, best: dict[str, float] | None = None, *,
                  sizes: dict[str, int]) -> dict[str, Any]:
    """Measure the untrained base of a configuration; writes metrics.json and items.npz into `folder`."""
    from asgkit.evals.run import measure

    best = best or choose_decoding(config, sizes["per_tag"], sizes["samples"])
    scores, items = measure(open_backbone(config), split, base=True, best=best, **sizes)
    result = {"step": 0, "split": split, "best_decoding": best, "scores": scores}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", result)
    np.savez_compressed(folder / "items.npz", **items)
    return result


def evaluate(path: Path, split: str = "test", step: int | None = None, best: dict[str, float] | None = None,
             *, sizes: dict[str, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Evolved and base model of a run on the same items and seeds, as (evolved, base) results in percent.

    Writes metrics.json and items.npz into the run's folder for the evolved model, into RUN/base for its base.
    """
    from asgkit.evals.run import evaluate_run

    config = from_dict(RunDirectory(path).config)
    best = best or choose_decoding(config, sizes["per_tag"], sizes["samples"])
    evolved = evaluate_run(path, split, best, step, **sizes)
    base = evaluate_base(config, path / "base", split, best, sizes=sizes)
    return evolved, base


def learning_curve(path: Path, sizes: dict[str, int]) -> Path:
    """Scores of the base (step 0) and of every kept, valid checkpoint on the dev split; writes RUN/curve.csv.

    Beside it RUN/blind.csv: the same questions with another picture, a grey one or none (`evals.blind`).
    """
    from asgkit.evals.blind import blind_scores, write_blind

    rows, blind = [], []
    for step, backbone, evolved in _checkpoints(path):
        rows.append({"step": step, **_dev_scores(backbone, evolved, sizes)})
        blind.append((step, blind_scores(backbone, "solver" if evolved else None, "dev", sizes["per_family"])))
    lines = [",".join(rows[0])] + [",".join(f"{v:g}" for v in row.values()) for row in rows]
    write_atomic(path / "curve.csv", "\n".join(lines) + "\n")
    write_blind(path / "blind.csv", blind)
    return path / "curve.csv"


def _checkpoints(path: Path) -> Iterator[tuple[int, Backbone, bool]]:
    """(step, backbone, evolved) of the base as step 0 and of every kept checkpoint, the roles' adapters loaded."""
    run = RunDirectory(path)
    folders = sorted(run.checkpoints.glob("step_*"))
    if not folders:
        raise FileNotFoundError(f"{path} has no checkpoint: train it first, and keep more than the newest three "
                                "with checkpoint.keep=100")
    yield 0, open_backbone(from_dict(run.config)), False
    for folder in folders:
        try:
            load_checkpoint(folder)
        except CorruptCheckpoint as error:
            raise Refused(f"{path}: {error}; delete that checkpoint folder and run the curve again") from error
        backbone = open_backbone(from_dict(run.config))
        for role in ("solver", "generator"):
            backbone.load_role(role, folder / role)
        yield int(folder.name[5:]), backbone, True


def _dev_scores(backbone: Backbone, evolved: bool, sizes: dict[str, int]) -> dict[str, float]:
    from asgkit.evals.shapes import evaluate_answers, evaluate_drawings

    answers = evaluate_answers(backbone, "solver" if evolved else None, "dev", sizes["per_family"]).summary()
    drawings = evaluate_drawings(backbone, "generator" if evolved else None, "dev", sizes["per_tag"], sizes["samples"])
    picked = {f"answers/{name}": answers[name] for name in ("single", "majority", "sampled")}
    return picked | {"drawings/overall": drawings.summary()["overall"]}


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a curve.csv as numbers."""
    with path.open(encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
