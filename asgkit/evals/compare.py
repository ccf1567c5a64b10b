"""Evolved minus base on one benchmark: refused unless both were measured alike, paired by item, with an interval."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asgkit.evals import geneval_hf
from asgkit.evals.geneval_scoring import TAGS
from asgkit.evals.protocol import Protocol, ProtocolMismatch, require_comparable
from asgkit.runs.files import read_lines, write_json
from asgkit.stats.intervals import paired_bootstrap


@dataclass(frozen=True)
class Delta:
    """One score of base and evolved in its own unit, their difference with a 95% interval where items can be paired.

    items: how many were paired; 0 where the score exists for a task as a whole only.
    """

    score: str
    base: float
    evolved: float
    delta: float
    low: float | None
    high: float | None
    items: int


def compare(base: Path, evolved: Path) -> list[Delta]:
    """Every delta of two result folders; raises ProtocolMismatch naming the field in which they were measured apart."""
    first, second = Protocol.read(base), Protocol.read(evolved)
    require_comparable(first, second)
    return compare_geneval(base, evolved) if first.benchmark == geneval_hf.NAME else compare_vqa(base, evolved)


def write_comparison(base: Path, evolved: Path, to: Path) -> list[Delta]:
    """`compare`, and a JSON file with both subjects, the deltas and the known differences."""
    deltas = compare(base, evolved)
    first, second = Protocol.read(base), Protocol.read(evolved)
    write_json(to, {"benchmark": first.benchmark, "base": dict(first.subject), "evolved": dict(second.subject),
                    "deltas": [vars(delta) for delta in deltas], "known_differences": list(first.differences)})
    return deltas


def _scores(folder: Path) -> dict[str, Any]:
    path = folder / "scores.json"
    if not path.is_file():
        raise FileNotFoundError(f"no scores.json in {folder}: its measurement did not finish; run it again")
    return json.loads(path.read_text(encoding="utf-8"))["scores"]


def compare_geneval(base: Path, evolved: Path) -> list[Delta]:
    """Overall and six tags in percent; prompts are resampled, each with all its drawings (they are not independent).

    For the overall score a prompt of tag g weighs P / (6 P_g), so that the mean over P prompts is the mean over tags.
    """
    numbers, tags, before = geneval_hf.per_prompt(base)
    others, _, after = geneval_hf.per_prompt(evolved)
    if not np.array_equal(numbers, others):
        raise ProtocolMismatch("items: base and evolved hold other prompts; measure the unfinished one again")
    first, second = _scores(base), _scores(evolved)
    weight = len(tags) / (len(TAGS) * np.array([(tags == tag).sum() for tag in tags]))
    rows = {"overall": np.ones(len(tags), bool), **{tag: tags == tag for tag in TAGS}}
    deltas = []
    for name, own in rows.items():
        scale = 100.0 * (weight if name == "overall" else np.ones(len(tags)))[own]
        found = paired_bootstrap(before[own] * scale, after[own] * scale)
        deltas.append(Delta(name, first[name], second[name], found.delta, found.low, found.high, found.n_items))
    return deltas


def compare_vqa(base: Path, evolved: Path) -> list[Delta]:
    """Every metric of every task; the interval needs a metric that is a number for each item."""
    before, after = _answers(base), _answers(evolved)
    _require_same_items(before, after)
    first, second = _scores(base), _scores(evolved)
    points, others = _item_scores(base), _item_scores(evolved)
    deltas = []
    for task, metrics in first.items():
        for metric, value in metrics.items():
            pair = _paired(points, others, task, metric)
            found = paired_bootstrap(*pair) if pair and np.isclose(pair[0].mean(), value) else None
            deltas.append(Delta(f"{task}/{metric}", value, second[task][metric], second[task][metric] - value,
                                found.low if found else None, found.high if found else None,
                                found.n_items if found else 0))
        same = [before[key]["answer"] == after[key]["answer"] for key in before if key[0] == task]
        changed = 1.0 - float(np.mean(same))
        deltas.append(Delta(f"{task}/answers changed (share)", 0.0, changed, changed, None, None, len(same)))
    return deltas


def _answers(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    files = sorted(folder.glob("items-*.jsonl"))
    return {(row["task"], row["doc"]): row for file in files for _, row in read_lines(file)}


def _require_same_items(before: dict[tuple[str, int], dict[str, Any]], after: dict[tuple[str, int], dict[str, Any]]
                        ) -> None:
    """Raise ProtocolMismatch unless both answered the same questions about the same pictures."""
    if before.keys() != after.keys():
        raise ProtocolMismatch(f"items: {len(before.keys() ^ after.keys())} were answered by one of the two only; "
                               "measure both again")
    for key, row in before.items():
        for field in ("prompt", "image_sha256", "decoding"):
            if row[field] != after[key][field]:
                raise ProtocolMismatch(f"{field} of item {key[1]} of {key[0]}: {row[field]!r} against "
                                       f"{after[key][field]!r}; measure both again")


def _item_scores(folder: Path) -> dict[tuple[str, int], dict[str, float]]:
    path = folder / "item_scores.jsonl"
    return {(row["task"], row["doc"]): row["scores"] for _, row in read_lines(path)} if path.is_file() else {}


def _paired(before: dict[tuple[str, int], dict[str, float]], after: dict[tuple[str, int], dict[str, float]], task: str,
            metric: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The metric of every item of a task under base and evolved, (Q,) each; None where items do not have it."""
    keys = sorted(key for key in before if key[0] == task)
    if not keys or not all(metric in before[key] and metric in after.get(key, {}) for key in keys):
        return None
    return tuple(np.array([rows[key][metric] for key in keys]) for rows in (before, after))
