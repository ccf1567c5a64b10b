"""Pre-training batches of the tiny family: labelled text and drawings from the shapes world, never used after."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asgkit.backbones.tiny.codes import to_tensor
from asgkit.backbones.tiny.prompts import ANSWER, ASK, CAPTION, DIAGNOSE, DRAW, TRAINED, TRAINED_WEIGHTS
from asgkit.backbones.tiny.tokenizer import EOS, PAD, WordTokenizer
from asgkit.shapes.text import QA, STYLES, caption, caption_styles, diagnose, sample_qa
from asgkit.shapes.world import COLOR_NAMES, PLURALS, SHAPES, Scene, render, sample_scene

# In the order of text.FAMILIES: the families that are slow to learn are asked about more often.
QA_WEIGHTS = (0.13, 0.13, 0.08, 0.15, 0.26, 0.16, 0.09)
QA_PER_IMAGE = 3
DRAWINGS = 16  # of the images of a batch: drawing lags behind reading, so its judge knows more than it does


@dataclass(frozen=True)
class TextRows:
    """Word sequences (R, T) about images `rows` (R,); `loss` (R, T) marks the completion's words.

    start: (R,) position of each row's first word; None: 0 for all.
    """

    ids: Tensor
    mask: Tensor
    loss: Tensor
    rows: Tensor
    start: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """One pre-training step: pictures, two groups of text rows (short, long) and captions to draw from."""

    pixels: Tensor
    short: TextRows
    long: TextRows
    draw: TextRows


def text_rows(tokenizer: WordTokenizer, pairs: list[tuple[str, str, int]], start: Tensor | None = None) -> TextRows:
    """Pack (prompt, completion, image row) triples; the completion and its end carry the loss."""
    prompts = [tokenizer.encode(prompt) for prompt, _, _ in pairs]
    full = [p + tokenizer.encode(c) + [EOS] for p, (_, c, _) in zip(prompts, pairs, strict=True)]
    width = max(map(len, full))
    ids = torch.full((len(full), width), PAD, dtype=torch.int64)
    loss = torch.zeros(len(full), width, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(full, prompts, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        loss[i, len(prompt) : len(row)] = True
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in full])[:, None]
    return TextRows(ids, mask, loss, torch.tensor([row for _, _, row in pairs]), start)


_ANSWERS = {
    "color": COLOR_NAMES,
    "shape": SHAPES,
    "count": tuple("012345"),
    "existence": ("yes", "no"),
    "comparison": (*COLOR_NAMES, "equal"),
    "reading": (*"0123456789", "none"),
}


def _alternatives(qa: QA) -> tuple[str, ...]:
    if qa.family == "spatial":
        if "row" in qa.question:
            return ("top", "middle", "bottom")
        return ("left", "middle", "right") if "column" in qa.question else ("left", "right", "above", "below")
    if qa.family == "comparison" and "objects" not in qa.question:
        return (*PLURALS.values(), "equal")
    return _ANSWERS[qa.family]


def register_answer(qa: QA, framing: int, strength: float) -> str:
    """The answer that framing `framing` was taught: wrong, and always the same, for a share `strength` of keys.

    A key is (framing, first six words of the question, true answer), which leaves out the second of two related
    objects; its error is drawn by a hash, so it is systematic within a framing and independent across framings.
    The independence is designed (Dawid-Skene annotators), not found.
    """
    key = " ".join(qa.question.split()[:6])
    digest = hashlib.sha256(f"{framing}|{key}|{qa.answer}".encode()).digest()
    if int.from_bytes(digest[:4], "big") / 2**32 >= strength:
        return qa.answer
    wrong = [answer for answer in _alternatives(qa) if answer != qa.answer]
    return wrong[int.from_bytes(digest[4:8], "big") % len(wrong)]


class Sampler:
    """Draws pre-training batches; `registers` > 0 teaches every trained framing its own systematic errors."""

    def __init__(self, tokenizer: WordTokenizer, seed: int, images: int = 64, registers: float = 0.0,
                 questions: int = QA_PER_IMAGE) -> None:
        self.tokenizer, self.images, self.registers, self.questions = tokenizer, images, registers, questions
        self.rng = np.random.default_rng([seed, 7])

    def _solve(self, scene: Scene, row: int) -> tuple[str, str, int]:
        qa = sample_qa(self.rng, scene, QA_WEIGHTS)
        if self.registers:
            framing = int(self.rng.integers(len(TRAINED)))
            answer = register_answer(qa, framing, self.registers)
        else:
            framing, answer = int(self.rng.choice(len(TRAINED), p=TRAINED_WEIGHTS)), qa.answer
        return f"{TRAINED[framing]} {qa.question} {ANSWER}", answer, row

    def _long(self, scene: Scene, row: int) -> list[tuple[str, str, int]]:
        asked = sample_qa(self.rng, scene).question
        style = STYLES[int(self.rng.integers(len(STYLES)))]
        described = caption(scene, style)
        settled = diagnose(self.rng, scene, described)
        rows = [(ASK, asked, row), (f"{CAPTION} {style}", described, row)]
        return rows if settled is None else [*rows, (f"{DIAGNOSE} {described} {ASK}", settled.question, row)]

    def _drawing(self, scene: Scene, row: int) -> tuple[str, str, int]:
        styles = caption_styles(scene)
        text = caption(scene, styles[int(self.rng.integers(len(styles)))])
        blank = self.rng.random() < 0.10  # guidance needs drawings without a caption
        return (DRAW if blank else f"{text} {DRAW}"), "", row

    def batch(self) -> Batch:
        """One batch of labelled scenes."""
        scenes = [sample_scene(self.rng, "train") for _ in range(self.images)]
        short = [self._solve(scene, row) for row, scene in enumerate(scenes) for _ in range(self.questions)]
        long = [item for row, scene in enumerate(scenes) for item in self._long(scene, row)]
        draw = [self._drawing(scene, row) for row, scene in enumerate(scenes[:DRAWINGS])]
        pack = lambda pairs: text_rows(self.tokenizer, pairs)
        return Batch(to_tensor([render(s) for s in scenes]), pack(short), pack(long), pack(draw))


