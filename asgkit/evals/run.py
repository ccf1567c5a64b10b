"""Evaluate a run directory: base and evolved on the same items, seeds and decodings, with per-item results kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from asgkit.backbones.base import ROLES, Backbone
from asgkit.config import from_dict
from asgkit.evals.shapes import AnswerItems, DrawingItems, evaluate_answers, evaluate_drawings
from asgkit.launch import open_backbone
from asgkit.runs.directory import RunDirectory, load_checkpoint


def open_run(path: str | Path, step: int | None = None) -> tuple[RunDirectory, Backbone, int]:
    """A run, its backbone with the adapters of one checkpoint (default: the newest valid), and that step."""
    run = RunDirectory(path)
    backbone = open_backbone(from_dict(run.config))
    found = (load_checkpoint(run.checkpoints / f"step_{step:06d}") if step is not None
             else run.newest_valid_checkpoint())
    if found is None:
        raise FileNotFoundError(f"{path} has no valid checkpoint; train it first: asgkit train --run {path}")
    for role in ROLES:
        backbone.load_role(role, found.path / role)
    return run, backbone, found.step


def measure(backbone: Backbone, split: str, *, base: bool, best: dict[str, float], per_family: int = 300,
            per_tag: int = 42, samples: int = 4) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Answering and drawing scores (percent) of the base or the evolved model, and their per-item arrays."""
    answers = evaluate_answers(backbone, None if base else "solver", split, per_family)
    role = None if base else "generator"
    drawings = evaluate_drawings(backbone, role, split, per_tag, samples)
    tuned = evaluate_drawings(backbone, role, split, per_tag, samples, **best)
    scores = {f"answers/{k}": v for k, v in answers.summary().items()}
    scores |= {f"drawings/{k}": v for k, v in drawings.summary().items()}
    scores |= {f"drawings_best/{k}": v for k, v in tuned.summary().items()}
    return scores, item_arrays(answers, drawings, tuned)


def item_arrays(answers: AnswerItems, drawings: DrawingItems, tuned: DrawingItems) -> dict[str, np.ndarray]:
    """Per-item arrays for paired statistics: bool correctness, families and tags, H_sc, STE, logp."""
    return {
        "framings": answers.framings, "sampled": answers.sampled, "canonical": answers.canonical,
        "majority": answers.majority, "entropy": answers.entropy.astype(np.float32),
        "ste": answers.ste.astype(np.float32), "logp": answers.logp.astype(np.float32),
        "fraction": answers.fraction.astype(np.float32),
        "family": answers.family.astype("U12"), "drawings": drawings.correct, "drawings_best": tuned.correct,
        "tag": drawings.tag.astype("U12"),
    }


def evaluate_run(path: str | Path, split: str, best: dict[str, float], step: int | None = None, **sizes: int
                 ) -> dict[str, Any]:
    """Measure a run's evolved model; writes metrics.json and items.npz into the run directory."""
    run, backbone, at = open_run(path, step)
    scores, items = measure(backbone, split, base=False, best=best, **sizes)
    result = {"step": at, "split": split, "best_decoding": best, "scores": scores}
    run.write_metrics(result)
    np.savez_compressed(run.path / "items.npz", **items)
    return result
