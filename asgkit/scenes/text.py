"""Text about scenes: questions with one true answer each, captions in four styles, and what a caption asks for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from asgkit.scenes.world import COLOR_NAMES, LINES, PLACES, SHAPES, Scene, kinds
from asgkit.shapes.text import RELATIONS, relation_between
from asgkit.shapes.world import PLURALS

ANSWERABLE = ("existence", "color", "shape", "object", "count", "place", "comparison", "list", "reading")
UNANSWERABLE = ("none", "several")
FAMILIES = (*ANSWERABLE, *UNANSWERABLE)
NONE, SEVERAL = "there is none", "there are several"  # nothing is, or more than one thing is, what the question names
STYLES = ("objects", "places", "relation", "count")
SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
NUMBERS = ("no", "one", "two", "three", "four", "five")
PLACED = 3  # a caption names places for at most this many objects


@dataclass(frozen=True)
class QA:
    """One question about a scene, its one canonical answer and its family (`none`, `several`: unanswerable)."""

    question: str
    answer: str
    family: str


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


# -- the truth -----------------------------------------------------------------------------------------------------
def _referent(found: list, say) -> str:
    """The answer about the one object that is meant, or that there is none, or that there are several."""
    return NONE if not found else say(found[0]) if len(found) == 1 else SEVERAL


def _answer_count(scene: Scene, match: re.Match) -> str:
    color, plural = match["c"], match["p"]
    number = sum((color is None or t.color == color) and plural in ("objects", PLURALS[t.shape]) for t in scene.things)
    thing = plural if number != 1 else "object" if plural == "objects" else SINGULAR[plural]
    return " ".join(["there", "is" if number == 1 else "are", NUMBERS[number], *filter(None, [color]), thing])


def _answer_more(scene: Scene, match: re.Match) -> str:
    tail = match["t"] or ""
    have = Counter([t.color for t in scene.things] if tail else [PLURALS[t.shape] for t in scene.things])
    first, second = match["a"], match["b"]
    if have[first] == have[second]:
        return "equal"
    return f"more {first if have[first] > have[second] else second}{tail}"


def _in(scene: Scene, name: str) -> list:
    cells = LINES.get(name) or (PLACES.index(name),)
    return [thing for thing in scene.ordered() if thing.cell in cells]


def _answer_list(scene: Scene, match: re.Match) -> str:
    return " and ".join(thing.shape for thing in _in(scene, match["w"])) or NONE


_C, _S, _P = "|".join(COLOR_NAMES), "|".join(SHAPES), "|".join(SINGULAR)
_W = "|".join([*LINES, *PLACES])
READERS = tuple((family, re.compile(pattern), reader) for family, pattern, reader in (
    ("existence", rf"is there a (?P<c>{_C}) (?P<s>{_S}) \?",
     lambda scene, m: "yes" if kinds(scene)[m["c"], m["s"]] else "no"),
    ("color", rf"what color is the (?P<s>{_S}) \?",
     lambda scene, m: _referent([t for t in scene.things if t.shape == m["s"]], lambda t: f"it is {t.color}")),
    ("shape", rf"what shape is the (?P<c>{_C}) object \?",
     lambda scene, m: _referent([t for t in scene.things if t.color == m["c"]], lambda t: f"it is a {t.shape}")),
    ("object", rf"which object is in the (?P<w>{_W}) \?",
     lambda scene, m: _referent(_in(scene, m["w"]), lambda t: f"a {t.color} {t.shape}")),
    ("count", rf"how many (?:(?P<c>{_C}) )?(?P<p>{_P}|objects) are there \?", _answer_count),
    ("place", rf"where is the (?P<c>{_C}) (?P<s>{_S}) \?",
     lambda scene, m: _referent([t for t in scene.things if (t.color, t.shape) == (m["c"], m["s"])],
                                lambda t: f"in the {PLACES[t.cell]}")),
    ("comparison", rf"are there more (?P<a>{_C}) or (?P<b>{_C})(?P<t> objects) \?", _answer_more),
    ("comparison", rf"are there more (?P<a>{_P}) or (?P<b>{_P})(?P<t>) \?", _answer_more),
    ("list", rf"which shapes are in the (?P<w>{'|'.join(LINES)}) \?", _answer_list),
    ("reading", r"what number is shown \?", lambda scene, m: scene.number or NONE),
))


def read_question(scene: Scene, question: str) -> QA | None:
    """A question of the world with its true answer and family about a scene; None for any other text."""
    for family, pattern, reader in READERS:
        if match := pattern.fullmatch(question.strip()):
            answer = reader(scene, match)
            family = {NONE: "none", SEVERAL: "several"}.get(answer, family)
            return QA(question.strip(), answer, family)
    return None


def answer_question(scene: Scene, question: str) -> str | None:
    """The one true answer to a question of the world about a scene; None for any other text.

    A question about something that is not there has the answer `NONE`, about one of several the answer `SEVERAL`.
    """
    qa = read_question(scene, question)
    return qa.answer if qa else None


# -- asking --------------------------------------------------------------------------------------------------------
def _kind_near(rng, scene) -> tuple[str, str]:
    """A (colour, shape): mostly one that recombines what the scene has, which is harder to deny than any other."""
    color, shape = _pick(rng, scene.things).color, _pick(rng, scene.things).shape
    if rng.random() < 0.3:
        color = _pick(rng, COLOR_NAMES)
    elif rng.random() < 0.3:  # the other shade of a colour that is there
        color = color.removeprefix("dark ") if color.startswith("dark ") else f"dark {color}"
    return color, _pick(rng, SHAPES) if rng.random() < 0.3 else shape


def _existence(rng, scene):
    if rng.random() < 0.5:
        thing = _pick(rng, scene.things)
        return f"is there a {thing.color} {thing.shape} ?"
    while (kind := _kind_near(rng, scene)) in kinds(scene):
        pass
    return f"is there a {kind[0]} {kind[1]} ?"


def _count(rng, scene):
    color, shape = _kind_near(rng, scene)
    near = _pick(rng, scene.things)
    if rng.random() < 0.6:
        color, shape = near.color, near.shape
    named = _pick(rng, ["objects", f"{color} objects", PLURALS[shape], PLURALS[shape], f"{color} {PLURALS[shape]}"])
    return f"how many {named} are there ?"


def _comparison(rng, scene):
    by_color = rng.random() < 0.5
    have = sorted({t.color if by_color else t.shape for t in scene.things})
    names = COLOR_NAMES if by_color else SHAPES
    first, second = _pick(rng, have), _pick(rng, have if rng.random() < 0.6 else names)
    if first == second and rng.random() < 0.8:  # "more X or X" is rare, and its answer is always "equal"
        second = _pick(rng, [name for name in names if name != first])
    if rng.random() < 0.5:
        first, second = second, first
    if by_color:
        return f"are there more {first} or {second} objects ?"
    return f"are there more {PLURALS[first]} or {PLURALS[second]} ?"


def _where(rng) -> str:
    return _pick(rng, PLACES) if rng.random() < 0.6 else _pick(rng, list(LINES))


def _color(rng, scene):
    return f"what color is the {_pick(rng, SHAPES)} ?"


def _shape(rng, scene):
    color = _kind_near(rng, scene)[0] if rng.random() < 0.5 else _pick(rng, scene.things).color
    return f"what shape is the {color} object ?"


def _object(rng, scene):
    return f"which object is in the {_where(rng)} ?"


def _place(rng, scene):
    thing = _pick(rng, scene.things)
    color, shape = _kind_near(rng, scene) if rng.random() < 0.5 else (thing.color, thing.shape)
    return f"where is the {color} {shape} ?"


def _list(rng, scene):
    return f"which shapes are in the {_pick(rng, list(LINES))} ?"


def _reading(rng, scene):
    return "what number is shown ?"


MAKERS = dict(zip(ANSWERABLE, (_existence, _color, _shape, _object, _count, _place, _comparison, _list, _reading),
                  strict=True))
# Which questions are asked without an answer: most of all those whose family would otherwise nearly always have one, or
# a base learns that "which object" is never answered by "there is none".
ASKED_OF = {"none": {"color": 0.22, "shape": 0.10, "object": 0.30, "place": 0.12, "list": 0.18, "reading": 0.08},
            "several": {"color": 0.30, "shape": 0.20, "object": 0.35, "place": 0.15}}


def ask_about(rng: np.random.Generator, scene: Scene, family: str, tries: int = 12) -> QA | None:
    """One question of a family with its true answer; None where the scene does not support the family."""
    for _ in range(tries):
        maker = family
        if family in UNANSWERABLE:
            maker = str(rng.choice(list(ASKED_OF[family]), p=list(ASKED_OF[family].values())))
        qa = read_question(scene, MAKERS[maker](rng, scene))
        if qa.family == family:
            return qa
    return None


def sample_qa(rng: np.random.Generator, scene: Scene, weights: tuple[float, ...] | None = None) -> QA:
    """A question of a random family; every scene supports existence, count and comparison."""
    while True:
        qa = ask_about(rng, scene, FAMILIES[int(rng.choice(len(FAMILIES), p=weights))])
        if qa is not None:
            return qa


# -- captions ------------------------------------------------------------------------------------------------------
def caption_styles(scene: Scene) -> list[str]:
    """Caption styles that fit a scene."""
    styles, ordered = ["objects"], scene.ordered()
    if len(ordered) <= PLACED:
        styles.append("places")
    if len(ordered) == 2 and len(kinds(scene)) == 2 and relation_between(*ordered):
        styles.append("relation")
    if max(kinds(scene).values()) > 1:
        styles.append("count")
    return styles


def caption(scene: Scene, style: str) -> str:
    """Describe a scene in one style, or, where that does not fit, in style `objects`; a number is always named.

    objects: every colour and shape; places: and its cell; relation: two objects and where the first lies; count:
    how many there are of each colour and shape. Raises ValueError for an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown caption style {style!r}; choose one of {STYLES}")
    ordered = scene.ordered()
    if style not in caption_styles(scene):
        style = "objects"
    if style == "relation":
        a, b = ordered
        text = f"{a.color} {a.shape} {relation_between(a, b)} {b.color} {b.shape}"
    elif style == "count":
        groups = Counter((t.color, t.shape) for t in ordered)
        text = " , ".join(f"{c} {s}" if n == 1 else f"{NUMBERS[n]} {c} {PLURALS[s]}" for (c, s), n in groups.items())
    else:
        at = [f" {PLACES[t.cell]}" if style == "places" else "" for t in ordered]
        text = " , ".join(f"{t.color} {t.shape}{where}" for t, where in zip(ordered, at, strict=True))
    return text if scene.number is None else f"{text} , number {scene.number}"


@dataclass(frozen=True)
class Wanted:
    """What a caption asks for: (colour, shape, place or None) of every object, a relation of two, a number."""

    objects: tuple[tuple[str, str, str | None], ...]
    relation: str | None = None
    number: str | None = None


_KIND = rf"(?P<color>{_C}) (?P<shape>{_S})"
_PART = re.compile(rf"{_KIND}(?: (?P<place>{'|'.join(PLACES)}))?")
_GROUP = re.compile(rf"(?P<n>{'|'.join(NUMBERS[2:])}) (?P<color>{_C}) (?P<shape>{_P})")
_PAIR = re.compile(rf"{_KIND} (?P<relation>{'|'.join(RELATIONS)}) (?P<color2>{_C}) (?P<shape2>{_S})")


def _read_part(part: str) -> list[tuple[str, str, str | None]] | None:
    if match := _GROUP.fullmatch(part):
        return [(match["color"], SINGULAR[match["shape"]], None)] * NUMBERS.index(match["n"])
    match = _PART.fullmatch(part)
    return [(match["color"], match["shape"], match["place"])] if match else None


def parse_caption(text: str) -> Wanted | None:
    """Read a caption of any style back into what it asks for; None when it is not a well-formed caption."""
    parts, number = [part.strip() for part in text.split(",")], None
    if match := re.fullmatch(r"number ([0-9](?: [0-9]){0,2})", parts[-1]):
        number, parts = match[1], parts[:-1]
    if len(parts) == 1 and (match := _PAIR.fullmatch(parts[0])):
        pair = ((match["color"], match["shape"], None), (match["color2"], match["shape2"], None))
        return Wanted(pair, match["relation"], number)
    read = [_read_part(part) for part in parts]
    if not parts or any(objects is None for objects in read):
        return None
    return Wanted(tuple(thing for objects in read for thing in objects), None, number)


def settles(wanted: Wanted, qa: QA) -> bool:
    """Whether a caption fixes the answer: the same for every picture that satisfies it. Places only if it names them.

    That nothing, or more than one thing, is of a colour and shape is fixed by every caption.
    """
    if all(place for _, _, place in wanted.objects):
        return True
    return qa.family != "place" and " in the " not in qa.question


def diagnose(rng: np.random.Generator, scene: Scene, text: str, limit: int = 40) -> QA | None:
    """One question about a scene whose answer its caption `text` fixes; None if `limit` questions held none."""
    wanted = parse_caption(text)
    for _ in range(limit):
        qa = sample_qa(rng, scene)
        if qa.answer == NONE and rng.random() < 0.75:
            continue  # what is not there rarely tells one drawing from another
        if settles(wanted, qa):
            return qa
    return None
