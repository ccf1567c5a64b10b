"""Text about scenes: questions with answers in seven families, captions in four styles, and what a caption asks for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from asgkit.shapes.world import COLOR_NAMES, PLURALS, SHAPES, Scene, Thing

FAMILIES = ("existence", "color", "shape", "count", "spatial", "comparison", "reading")
STYLES = ("objects", "relation", "count", "shapes")
RELATIONS = ("left of", "right of", "above", "below")
SINGULAR = {plural: shape for shape, plural in PLURALS.items()}


@dataclass(frozen=True)
class QA:
    """One question about a scene, its one-word answer and its family."""

    question: str
    answer: str
    family: str


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def relation_between(a: Thing, b: Thing) -> str | None:
    """Where `a` lies seen from `b` (its dominant axis in cells), None when the axes tie."""
    dx, dy = a.column - b.column, a.row - b.row
    if abs(dx) == abs(dy):
        return None
    if abs(dx) > abs(dy):
        return "right of" if dx > 0 else "left of"
    return "below" if dy > 0 else "above"


def _existence(rng, scene):
    present = {(t.color, t.shape) for t in scene.things}
    if rng.random() < 0.5:
        color, shape = _pick(rng, sorted(present))
        return f"is there a {color} {shape} ?", "yes"
    colors, shapes = sorted({c for c, _ in present}), sorted({s for _, s in present})
    hard = [(c, s) for c in colors for s in SHAPES] + [(c, s) for c in COLOR_NAMES for s in shapes]
    pool = hard if rng.random() < 0.7 else [(c, s) for c in COLOR_NAMES for s in SHAPES]
    absent = [pair for pair in pool if pair not in present]
    color, shape = _pick(rng, absent)
    return f"is there a {color} {shape} ?", "no"


def _color(rng, scene):
    by_shape = {s: {t.color for t in scene.things if t.shape == s} for s in SHAPES}
    single = [s for s in SHAPES if len(by_shape[s]) == 1]
    if not single:
        return None
    shape = _pick(rng, single)
    return f"what color is the {shape} ?", next(iter(by_shape[shape]))


def _shape(rng, scene):
    by_color = {c: {t.shape for t in scene.things if t.color == c} for c in COLOR_NAMES}
    single = [c for c in COLOR_NAMES if len(by_color[c]) == 1]
    if not single:
        return None
    color = _pick(rng, single)
    return f"what shape is the {color} object ?", next(iter(by_color[color]))


def _count(rng, scene):
    kind = int(rng.integers(3))
    if kind == 0:
        return "how many objects are there ?", str(len(scene.things))
    if kind == 1:
        present = [t.color for t in scene.things]
        color = _pick(rng, present) if rng.random() < 0.8 else _pick(rng, COLOR_NAMES)
        return f"how many {color} objects are there ?", str(sum(t.color == color for t in scene.things))
    present = [t.shape for t in scene.things]
    shape = _pick(rng, present) if rng.random() < 0.8 else _pick(rng, SHAPES)
    return f"how many {PLURALS[shape]} are there ?", str(sum(t.shape == shape for t in scene.things))


def _unique(scene) -> list[Thing]:
    kinds = Counter((t.color, t.shape) for t in scene.things)
    return [t for t in scene.ordered() if kinds[(t.color, t.shape)] == 1]


def _spatial(rng, scene):
    things = _unique(scene)
    pairs = [(a, b, relation_between(a, b)) for a in things for b in things if a is not b]
    pairs = [pair for pair in pairs if pair[2]]
    if pairs and rng.random() < 0.6:
        a, b, relation = _pick(rng, pairs)
        answer = relation.removesuffix(" of")
        return f"where is the {a.color} {a.shape} from the {b.color} {b.shape} ?", answer
    if not things:
        return None
    thing = _pick(rng, things)
    if rng.random() < 0.5:
        return f"in which row is the {thing.color} {thing.shape} ?", ("top", "middle", "bottom")[thing.row]
    return f"in which column is the {thing.color} {thing.shape} ?", ("left", "middle", "right")[thing.column]


def _comparison(rng, scene):
    if len(scene.things) < 2:
        return None
    by_color = rng.random() < 0.5
    names = COLOR_NAMES if by_color else SHAPES
    have = Counter(t.color if by_color else t.shape for t in scene.things)
    first = _pick(rng, sorted(have))
    second = _pick(rng, [n for n in names if n != first])
    others = [n for n in sorted(have) if n != first]
    if others and rng.random() < 0.6:
        second = _pick(rng, others)
    if rng.random() < 0.5:
        first, second = second, first
    word = (lambda n: n) if by_color else PLURALS.get
    best = word(first) if have[first] > have[second] else word(second)
    answer = "equal" if have[first] == have[second] else best
    tail = " objects ?" if by_color else " ?"
    return f"are there more {word(first)} or {word(second)}{tail}", answer


def _reading(rng, scene):
    return "what digit is shown ?", "none" if scene.digit is None else str(scene.digit)


_MAKERS = dict(zip(FAMILIES, (_existence, _color, _shape, _count, _spatial, _comparison, _reading), strict=True))


def ask_about(rng: np.random.Generator, scene: Scene, family: str) -> QA | None:
    """One question of a family with its true answer, None where the scene does not support the family."""
    made = _MAKERS[family](rng, scene)
    return None if made is None else QA(made[0], made[1], family)


def sample_qa(rng: np.random.Generator, scene: Scene, weights: tuple[float, ...] | None = None) -> QA:
    """One question of a random family; every scene supports at least existence, count and reading."""
    while True:
        qa = ask_about(rng, scene, FAMILIES[int(rng.choice(len(FAMILIES), p=weights))])
        if qa is not None:
            return qa


def caption_styles(scene: Scene) -> list[str]:
    """Caption styles that can state something true and complete of the scene."""
    styles = ["objects", "shapes"]
    ordered = scene.ordered()
    if len(ordered) == 2 and relation_between(*ordered) and ordered[0].shape != ordered[1].shape:
        styles.append("relation")
    if len(ordered) > 1 and len({t.shape for t in ordered}) == 1:
        styles.append("count")
    return styles


def caption(scene: Scene, style: str) -> str:
    """Describe a scene in one style; where the style does not apply, its nearest complete sibling is used.

    objects: every colour and shape; relation: two shapes and where the first lies; count: a number and one shape;
    shapes: every shape, no colour. A digit is named in every style.
    """
    ordered = scene.ordered()
    if style == "relation" and "relation" in caption_styles(scene):
        text = f"{ordered[0].shape} {relation_between(ordered[0], ordered[1])} {ordered[1].shape}"
    elif style == "count" and "count" in caption_styles(scene):
        color = f" {ordered[0].color}" if len({t.color for t in ordered}) == 1 else ""
        text = f"{len(ordered)}{color} {PLURALS[ordered[0].shape]}"
    elif style in ("objects", "count"):
        text = " , ".join(f"{t.color} {t.shape}" for t in ordered)
    elif style in ("shapes", "relation"):
        text = " , ".join(t.shape for t in ordered)
    else:
        raise ValueError(f"unknown caption style {style!r}; choose one of {STYLES}")
    return text if scene.digit is None else f"{text} , digit {scene.digit}"


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for: (color or None, shape) of every object, a relation of the first two, a digit."""

    objects: tuple[tuple[str | None, str], ...]
    relation: str | None = None
    digit: int | None = None


_OBJECT = re.compile(rf"(?:(?P<color>{'|'.join(COLOR_NAMES)}) )?(?P<shape>{'|'.join(SHAPES)})")
_RELATION = re.compile(rf"(?P<a>{'|'.join(SHAPES)}) (?P<relation>{'|'.join(RELATIONS)}) (?P<b>{'|'.join(SHAPES)})")
_COUNT = re.compile(rf"(?P<n>[2-9])(?: (?P<color>{'|'.join(COLOR_NAMES)}))? (?P<shape>{'|'.join(SINGULAR)})")


def parse_caption(text: str) -> Wanted | None:
    """Read a caption of any style back into what it asks for; None when it is not a well-formed caption."""
    parts = [part.strip() for part in text.split(",")]
    digit = None
    if parts and (match := re.fullmatch(r"digit ([0-9])", parts[-1])):
        digit, parts = int(match.group(1)), parts[:-1]
    if len(parts) == 1 and (match := _RELATION.fullmatch(parts[0])):
        return Wanted(((None, match["a"]), (None, match["b"])), match["relation"], digit)
    if len(parts) == 1 and (match := _COUNT.fullmatch(parts[0])):
        return Wanted(((match["color"], SINGULAR[match["shape"]]),) * int(match["n"]), None, digit)
    found = [_OBJECT.fullmatch(part) for part in parts]
    if not parts or any(match is None for match in found):
        return None
    return Wanted(tuple((match["color"], match["shape"]) for match in found), None, digit)


def diagnose(rng: np.random.Generator, scene: Scene, text: str, limit: int = 40) -> QA | None:
    """One question whose answer the caption `text` fixes (the same for every picture that satisfies it).

    A question is kept when two different scenes of the same caption must answer it alike: colours only if the
    caption names colours, places only for a relation, reading always.
    """
    wanted = parse_caption(text)
    colored = wanted is not None and all(color for color, _ in wanted.objects)
    for _ in range(limit):
        qa = sample_qa(rng, scene)
        if qa.family == "spatial" or (qa.answer == "none" and rng.random() < 0.75):
            continue  # "is there a digit" rarely tells one drawing from another
        if colored or qa.family == "reading" or not _mentions_color(qa.question):
            return qa
    return None


def _mentions_color(question: str) -> bool:
    return "color" in question or any(color in question.split() for color in COLOR_NAMES)


def answer_question(scene: Scene, question: str) -> str | None:
    """The true answer to a question of the world about a scene; None for a question that it does not determine.

    The inverse of `ask_about`: a question about an object that is absent or ambiguous has no answer.
    """
    for pattern, reader in _READERS:
        if match := pattern.fullmatch(question.strip()):
            return reader(scene, match)
    return None


def _one(scene: Scene, color: str, shape: str) -> Thing | None:
    found = [t for t in scene.things if (t.color, t.shape) == (color, shape)]
    return found[0] if len(found) == 1 else None


def _only(values: set[str]) -> str | None:
    return next(iter(values)) if len(values) == 1 else None


def _answer_place(scene: Scene, match: re.Match) -> str | None:
    thing = _one(scene, match["c"], match["s"])
    if thing is None:
        return None
    if match["axis"] == "row":
        return ("top", "middle", "bottom")[thing.row]
    return ("left", "middle", "right")[thing.column]


def _answer_relation(scene: Scene, match: re.Match) -> str | None:
    a, b = _one(scene, match["c"], match["s"]), _one(scene, match["c2"], match["s2"])
    relation = relation_between(a, b) if a and b and a is not b else None
    return relation.removesuffix(" of") if relation else None


def _answer_more(scene: Scene, match: re.Match) -> str | None:
    first, second = match["a"], match["b"]
    if first == second:
        return None
    have = Counter([t.color for t in scene.things] + [PLURALS[t.shape] for t in scene.things])
    if have[first] == have[second]:
        return "equal"
    return first if have[first] > have[second] else second


_C, _S, _P = "|".join(COLOR_NAMES), "|".join(SHAPES), "|".join(SINGULAR)
_READERS = tuple((re.compile(pattern), reader) for pattern, reader in (
    (rf"is there a (?P<c>{_C}) (?P<s>{_S}) \?",
     lambda scene, m: "yes" if (m["c"], m["s"]) in {(t.color, t.shape) for t in scene.things} else "no"),
    (rf"what color is the (?P<s>{_S}) \?",
     lambda scene, m: _only({t.color for t in scene.things if t.shape == m["s"]})),
    (rf"what shape is the (?P<c>{_C}) object \?",
     lambda scene, m: _only({t.shape for t in scene.things if t.color == m["c"]})),
    (r"how many objects are there \?", lambda scene, m: str(len(scene.things))),
    (rf"how many (?P<c>{_C}) objects are there \?",
     lambda scene, m: str(sum(t.color == m["c"] for t in scene.things))),
    (rf"how many (?P<p>{_P}) are there \?",
     lambda scene, m: str(sum(PLURALS[t.shape] == m["p"] for t in scene.things))),
    (rf"in which (?P<axis>row|column) is the (?P<c>{_C}) (?P<s>{_S}) \?", _answer_place),
    (rf"where is the (?P<c>{_C}) (?P<s>{_S}) from the (?P<c2>{_C}) (?P<s2>{_S}) \?", _answer_relation),
    (rf"are there more (?P<a>{_C}) or (?P<b>{_C}) objects \?", _answer_more),
    (rf"are there more (?P<a>{_P}) or (?P<b>{_P}) \?", _answer_more),
    (r"what digit is shown \?", lambda scene, m: "none" if scene.digit is None else str(scene.digit)),
))
