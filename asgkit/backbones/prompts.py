"""The prompts of the three roles as one typed object; every backbone brings its own words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    """Templates of one backbone.

    ask: the Proposer's request for one question. diagnose: its request for a question that a caption settles
    (`{caption}`). framings: the N instruction preambles of the Solver (`{question}`); only the preamble varies, the
    verbatim question and the answer rules stay (paper, table S7). canonical: the framing of the greedy call that
    yields STE. captions: the Solver's caption requests, one is drawn per image. draw: the Generator's request
    (`{caption}`). held_out: framings that no run trains on, to score a trained Solver under. forms: (pattern, index of
    the caption request) of texts that answer another request than the first, for prompts that no request was made for.
    spec, expect (`{question}`): the Proposer's requests for a drawing prompt of its own and for the answer that it
    expects to a question, as released; where they are empty, the caption request and the canonical framing ask for
    them. hints: what the calls of one vote are told to look at, in turn, where focus hints are asked for.
    Source: paper, sections on the three roles.
    """

    ask: str
    diagnose: str
    canonical: str
    framings: tuple[str, ...]
    captions: tuple[str, ...]
    draw: str
    held_out: tuple[str, ...] = ()
    forms: tuple[tuple[str, int], ...] = ()
    spec: str = ""
    expect: str = ""
    hints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("canonical", *(f"framings[{i}]" for i in range(len(self.framings)))):
            text = self.canonical if name == "canonical" else self.framings[int(name[9:-1])]
            if text.count("{question}") != 1:
                raise ValueError(f"prompt {name} must hold {{question}} exactly once: {text!r}")
        if any(text.count("{question}") != 1 for text in self.held_out):
            raise ValueError(f"every held-out framing must hold {{question}} exactly once: {self.held_out}")
        if set(self.held_out) & {self.canonical, *self.framings}:
            raise ValueError("a held-out framing is also one that runs train on")
        if len(set(self.framings)) != len(self.framings):
            raise ValueError("two framings are the same text; a vote among them would count one answer twice")
        for name in ("diagnose", "draw"):
            if getattr(self, name).count("{caption}") != 1:
                raise ValueError(f"prompt {name} must hold {{caption}} exactly once: {getattr(self, name)!r}")
        if self.expect and self.expect.count("{question}") != 1:
            raise ValueError(f"prompt expect must hold {{question}} exactly once: {self.expect!r}")
        if not self.captions:
            raise ValueError("at least one caption request is needed")

    def request_for(self, text: str) -> str:
        """The caption request that a given text would answer: that of the first form that matches, else the first."""
        found = [index for pattern, index in self.forms if re.search(pattern, text)]
        return self.captions[found[0] if found else 0]

    def solve(self, question: str, framing: int | None = None, hint: int | None = None) -> str:
        """The Solver's prompt for a question under one framing (None: the canonical one), below a focus hint if any."""
        template = self.canonical if framing is None else self.framings[framing]
        told = "" if hint is None else f"{self.hints[hint % len(self.hints)]}\n"
        return told + template.format(question=question)
