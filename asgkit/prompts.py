"""The prompts of the three roles as one typed object; every backbone brings its own words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompts:
    """Templates of one backbone.

    ask: the Proposer's request for one question. diagnose: its request for a question that a caption settles
    (`{caption}`). framings: the N instruction preambles of the Solver (`{question}`); only the preamble varies, the
    verbatim question and the answer rules stay (paper, table S7). canonical: the framing of the greedy call that
    yields STE. captions: the Solver's caption requests, one is drawn per image. draw: the Generator's request
    (`{caption}`). held_out: framings that no run trains on, to score a trained Solver under. Source: paper, sections on
    the three roles.
    """

    ask: str
    diagnose: str
    canonical: str
    framings: tuple[str, ...]
    captions: tuple[str, ...]
    draw: str
    held_out: tuple[str, ...] = ()

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
        if not self.captions:
            raise ValueError("at least one caption request is needed")

    def solve(self, question: str, framing: int | None = None) -> str:
        """The Solver's prompt for a question under one framing (None: the canonical one)."""
        template = self.canonical if framing is None else self.framings[framing]
        return template.format(question=question)
