"""What the Solver is asked: framings, and focus hints where they are switched on."""

from types import SimpleNamespace

import torch

from asgkit.backbones.base import Answers
from asgkit.backbones.chat import HINTS, PREAMBLES, PROMPTS
from asgkit.stages.answer import answer_questions


class Asked:
    """Keeps the prompts that it is asked, and says "red" to each."""

    spec = SimpleNamespace(prompts=PROMPTS, name="asked")

    def answer(self, prefix, prompts, **_):
        self.prompts = list(prompts)
        ones = torch.ones(len(prompts), 1)
        return Answers(["red"] * len(prompts), ones.long(), ones.bool(), ones)


def prompts_of(**settings) -> list[str]:
    backbone = Asked()
    answer_questions(backbone, None, ["What colour is it?"], [0], framings=7, temperature=1.0, max_new_tokens=4,
                     **settings)
    return backbone.prompts


def test_only_the_preamble_varies():
    plain = prompts_of()
    assert [text.partition(" Use only")[0] for text in plain] == list(PREAMBLES)
    assert len({text.partition(" Use only")[2] for text in plain}) == 1


def test_each_call_of_a_vote_gets_a_hint_of_its_own_where_they_are_on():
    hinted, plain = prompts_of(hints=True), prompts_of()
    assert hinted == [f"{hint}\n{text}" for hint, text in zip(HINTS, plain, strict=True)]
