"""Pre-training batches from the scenes: labelled text and drawings, never used after."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import torch

from asgkit.backbones.tiny.codes import to_tensor
from asgkit.backbones.tiny.pretraining.data import Batch, TextRows, text_rows
from asgkit.backbones.tiny.prompts import ANSWER, ASK, CAPTION, DIAGNOSE, DRAW
from asgkit.backbones.tiny.scene_prompts import OFFSETS, STYLES, TRAINED, TRAINED_WEIGHTS
from asgkit.backbones.tiny.tokenizer import WordTokenizer
from asgkit.scenes.text import NONE, NUMBERS, QA, SEVERAL, caption, caption_styles, diagnose, sample_qa
from asgkit.scenes.world import COLOR_NAMES, PLACES, SHAPES, Scene, render, sample_scene
from asgkit.shapes.world import PLURALS

# In the order of text.FAMILIES: the families that are slow to learn are asked about more often. A scene that does not
# support a family draws again, so shares of questions differ: see docs/world.md.
QA_WEIGHTS = (0.07, 0.09, 0.05, 0.11, 0.12, 0.14, 0.06, 0.06, 0.154, 0.078, 0.068)
DIAGNOSED = 16  # of the captions of a batch: those that a question is asked about


def _swap(rng: np.random.Generator, text: str, choices: tuple[str, ...]) -> str:
    """The text with the last of `choices` in it (of two that end together: the longer) replaced by another one."""
    ends = {c: match.end() for c in choices for match in re.finditer(rf"\b{c}\b", text)}
    found = max(ends, key=lambda c: (ends[c], len(c)))
    other = [c for c in choices if c != found]
    return f"{text[: ends[found] - len(found)]}{other[int(rng.integers(len(other)))]}{text[ends[found] :]}"


def _number_wrong(rng: np.random.Generator, text: str) -> str:
    """Another count, in the form that belongs to it."""
    *_, said, rest = text.split(maxsplit=3)
    wrong = [n for n in range(5) if NUMBERS[n] != said]
    number = wrong[int(rng.integers(len(wrong)))]
    color, _, thing = rest.rpartition(" ")
    one = {plural: single for single, plural in (*PLURALS.items(), ("object", "objects"))}
    thing = one.get(thing, thing)
    if number != 1:
        thing = PLURALS.get(thing, "objects")
    return " ".join(["there", "is" if number == 1 else "are", NUMBERS[number], *filter(None, [color]), thing])


def wrong_answer(rng: np.random.Generator, qa: QA) -> str:
    """A false answer to a question, of the form that the true one has."""
    if qa.answer in (NONE, SEVERAL):
        return SEVERAL if qa.answer == NONE else NONE
    if qa.family == "count":
        return _number_wrong(rng, qa.answer)
    if qa.family == "comparison":
        return _more_wrong(rng, qa)
    if qa.family == "reading":
        return _swap(rng, qa.answer, tuple("0123456789"))
    choices = {"existence": ("yes", "no"), "color": COLOR_NAMES, "shape": SHAPES, "place": PLACES, "list": SHAPES,
               "object": COLOR_NAMES if rng.random() < 0.5 else SHAPES}
    return _swap(rng, qa.answer, choices[qa.family])


def _more_wrong(rng: np.random.Generator, qa: QA) -> str:
    first, second = qa.question.removeprefix("are there more ").removesuffix(" ?").split(" or ")
    tail = " objects" if second.endswith(" objects") else ""
    said = ("equal", f"more {first}{tail}", f"more {second}")
    wrong = [answer for answer in dict.fromkeys(said) if answer != qa.answer]
    return wrong[int(rng.integers(len(wrong)))]


def _told(qa: QA) -> str:
    """The part of an answer (of existence: of the question too) by which a register confuses it with another."""
    words = qa.answer.split()
    if qa.family == "existence":
        return f"{qa.question.split()[3]} {qa.answer}"
    if qa.family in ("none", "several"):
        return " ".join(qa.question.split()[:2])
    if qa.family in ("object", "list", "reading"):
        return words[-1]
    return words[2] if qa.family == "count" else qa.answer


def register_answer(qa: QA, framing: int, strength: float) -> str:
    """The answer that framing `framing` was taught: wrong, and always the same, for a share `strength` of keys.

    A key is (framing, family, what the answer tells). Its error is drawn by a hash, so it is systematic within a
    framing and independent across framings: designed (Dawid-Skene annotators), not found. With the words of the
    question in the key there are thousands, and 400 steps taught none of them.
    """
    digest = hashlib.sha256(f"{framing}|{qa.family}|{_told(qa)}".encode()).digest()
    if int.from_bytes(digest[:4], "big") / 2**32 >= strength:
        return qa.answer
    return wrong_answer(np.random.default_rng(int.from_bytes(digest[4:12], "big")), qa)


def drawing_style(rng: np.random.Generator, scene: Scene) -> str:
    """The style of a caption to draw from: relations and counts, which few scenes allow, wherever they are likely."""
    styles = caption_styles(scene)
    for style in ("relation", "count"):
        if style in styles and rng.random() < 0.5:
            return style
    return styles[int(rng.integers(len(styles)))]


class SceneSampler:
    """Draws pre-training batches; `registers` > 0 teaches every trained framing its own systematic errors."""

    def __init__(self, tokenizer: WordTokenizer, seed: int, images: int = 64, registers: float = 0.0,
                 questions: int = 2) -> None:
        self.tokenizer, self.images, self.registers, self.questions = tokenizer, images, registers, questions
        self.rng = np.random.default_rng([seed, 7])

    def _solve(self, scene: Scene, row: int) -> tuple[str, str, int]:
        qa = sample_qa(self.rng, scene, QA_WEIGHTS)
        framing = int(self.rng.choice(len(TRAINED), p=None if self.registers else TRAINED_WEIGHTS))
        answer = register_answer(qa, framing, self.registers) if self.registers else qa.answer
        return f"{TRAINED[framing]} {qa.question} {ANSWER}", answer, row

    def _long(self, scene: Scene, row: int) -> list[tuple[str, str, int]]:
        asked = sample_qa(self.rng, scene, QA_WEIGHTS).question
        style = STYLES[int(self.rng.integers(len(STYLES)))]
        described = caption(scene, style)
        settled = diagnose(self.rng, scene, described) if row < DIAGNOSED else None
        rows = [(ASK, asked, row), (f"{CAPTION} {style}", described, row)]
        return rows if settled is None else [*rows, (f"{DIAGNOSE} {described} {ASK}", settled.question, row)]

    def _drawing(self, scene: Scene, row: int) -> tuple[str, str, int]:
        text = caption(scene, drawing_style(self.rng, scene))
        blank = self.rng.random() < 0.10  # guidance needs drawings without a caption
        return (DRAW if blank else f"{text} {DRAW}"), "", row

    def _pack(self, pairs: list[tuple[str, str, int]], offsets: int) -> TextRows:
        """Rows whose words start anywhere in the first `offsets` positions, so that no answer rests on where it is."""
        start = torch.from_numpy(self.rng.integers(offsets, size=len(pairs)))
        return text_rows(self.tokenizer, pairs, start)

    def batch(self) -> Batch:
        """One batch of labelled scenes."""
        scenes = [sample_scene(self.rng, "train") for _ in range(self.images)]
        short = [self._solve(scene, row) for row, scene in enumerate(scenes) for _ in range(self.questions)]
        long = [item for row, scene in enumerate(scenes) for item in self._long(scene, row)]
        draw = [self._drawing(scene, row) for row, scene in enumerate(scenes)]
        return Batch(to_tensor([render(s) for s in scenes]), self._pack(short, OFFSETS), self._pack(long, OFFSETS),
                     self._pack(draw, 1))
