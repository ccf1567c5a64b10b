"""The scoring rules of GenEval in own code, on detections from anywhere: counts, colours, positions, six tags.

A prompt is right when every object that it names is found in the number, colour and place that it asks for and no
excluded number is reached. Only the most confident detections of a class are looked at (spec: generation 7.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Rules:
    """Thresholds of the published protocol. max_overlap 1.0 switches the suppression of overlapping boxes off."""

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_margin: float = 0.1


@dataclass(frozen=True)
class Detection:
    """One found object: box (left, top, right, bottom) in pixels, confidence, and its mask (H, W) bool if known."""

    box: tuple[float, float, float, float]
    score: float
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Clause:
    """One object that a prompt names; `position`: a relation, and the number of the clause that it is relative to."""

    name: str
    count: int
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether a drawing is right, and every reason why not."""

    correct: bool
    reasons: tuple[str, ...]


Objects = Mapping[str, Sequence[Detection]]
Colors = Callable[[str, Sequence[Detection]], Sequence[str]]


def overlap(a: Detection, b: Detection) -> float:
    """Intersection over union of two boxes whose edges are pixels of their own (so a side is right - left + 1)."""
    low, high = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    shared = float(np.prod(np.clip(high - low + 1, 0, None)))
    area = sum(float(np.prod(np.clip(np.subtract(d.box[2:], d.box[:2]) + 1, 0, None))) for d in (a, b))
    return shared / (area - shared) if area > shared else 0.0


def keep(found: Iterable[Detection], tag: str, rules: Rules) -> list[Detection]:
    """Detections of one class that count: above the tag's threshold, the best `max_objects`, most confident first."""
    least = rules.counting_threshold if tag == "counting" else rules.threshold
    ranked = sorted((d for d in found if d.score > least), key=lambda d: -d.score)[: rules.max_objects]
    if rules.max_overlap >= 1.0:
        return ranked
    kept: list[Detection] = []
    for detection in ranked:
        if all(overlap(detection, other) < rules.max_overlap for other in kept):
            kept.append(detection)
    return kept


def relations(a: Detection, b: Detection, margin: float) -> set[str]:
    """Where `a` is relative to `b`.

    With the offset d of the centres and the summed sides s, each axis keeps sign(d) max(|d| - margin s, 0); divided by
    the length of d, an axis beyond one half is a relation. Boxes near each other have none.
    """
    boxes = np.array([a.box, b.box], dtype=np.float64).reshape(2, 2, 2)  # (object, corner, axis)
    offset = boxes[0].mean(0) - boxes[1].mean(0)
    sides = np.abs(boxes[:, 1] - boxes[:, 0]).sum(0)
    beyond = np.sign(offset) * np.maximum(np.abs(offset) - margin * sides, 0.0)
    if np.abs(beyond).max() < 1e-3:
        return set()
    x, y = beyond / np.linalg.norm(offset)
    return {name for name, holds in zip(RELATIONS, (x < -0.5, x > 0.5, y < -0.5, y > 0.5), strict=True) if holds}


def judge(include: Sequence[Clause], exclude: Sequence[Clause], found: Objects, colors: Colors, rules: Rules
          ) -> Verdict:
    """Hold the kept detections of a drawing against what its prompt asks for; `colors` names objects' colours."""
    reasons: list[str] = []
    matched: list[Sequence[Detection] | None] = []
    for clause in include:
        best = list(found.get(clause.name, ()))[: clause.count]
        wrong = _wrong(clause, best, matched, colors, rules)
        reasons += [wrong] if wrong else []
        matched.append(None if wrong else best)
    for clause in exclude:
        number = len(found.get(clause.name, ()))
        if number >= clause.count:
            reasons.append(f"{number} {clause.name}, fewer than {clause.count} asked for")
    return Verdict(not reasons, tuple(reasons))


def _wrong(clause: Clause, best: Sequence[Detection], matched: Sequence[Sequence[Detection] | None], colors: Colors,
           rules: Rules) -> str:
    """Why a clause does not hold; empty if it does."""
    if len(best) < clause.count:
        return f"{len(best)} {clause.name}, {clause.count} asked for"
    if clause.color:
        seen = list(colors(clause.name, best))
        if seen.count(clause.color) < clause.count:
            return f"{clause.name} is {' and '.join(seen)}, {clause.color} asked for"
    if clause.position:
        relation, number = clause.position
        target = matched[number]
        if target is None:
            return f"nothing for {clause.name} to be {relation}"
        if any(relation not in relations(a, b, rules.position_margin) for a in best for b in target):
            return f"{clause.name} is not {relation} its target"
    return ""


def parse_clause(content: Mapping[str, Any], earlier: int) -> Clause:
    """A clause of a metadata file; raises ValueError for unknown fields, relations, and later clauses as targets."""
    odd = set(content) - {"class", "count", "color", "position"}
    if odd or "class" not in content or "count" not in content:
        raise ValueError(f"a clause has class and count, and may have color and position; got {dict(content)}")
    place = content.get("position")
    if place and (place[0] not in RELATIONS or not 0 <= place[1] < earlier):
        raise ValueError(f"position {place} is not one of {RELATIONS} relative to an earlier clause")
    return Clause(content["class"], int(content["count"]), content.get("color"),
                  (place[0], int(place[1])) if place else None)


def tag_scores(correct: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Percent right of every tag's drawings, and `overall`, the mean over the six tags.

    Raises ValueError when a tag has no drawing: a mean over fewer tags is another number.
    """
    missing = [tag for tag in TAGS if not len(correct.get(tag, ()))]
    if missing:
        raise ValueError(f"no drawing of {', '.join(missing)}: overall is the mean over all six tags")
    scores = {tag: 100.0 * float(np.mean(correct[tag])) for tag in TAGS}
    return {"overall": float(np.mean(list(scores.values()))), **scores}
