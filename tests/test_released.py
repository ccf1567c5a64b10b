"""What the released code does otherwise: each of the ten points is a switch, and each switch changes what it says."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loops import open_trainer, small_config, weights
from typer.testing import CliRunner

from asgkit.ask import TargetEntropy, self_consistency_reward
from asgkit.backbones import load_backbone
from asgkit.backbones.base import Answers
from asgkit.backbones.prompts import Prompts
from asgkit.cli import app
from asgkit.config import flatten, resolve
from asgkit.draw import diversity, generator_reward, soft_match
from asgkit.recipes.asg_work import UnderstandingRow
from asgkit.recipes.rewards import reward_questions
from asgkit.solve import vote
from asgkit.stages.answer import Question, greedy_difficulty
from asgkit.stages.generation import generation_round
from asgkit.stages.judge import pixels, similarities
from asgkit.ste import RollingPercentile, token_entropy

SWITCHES = {  # point of the list in docs/released.md: its setting
    1: "generator.references", 2: "generator.prompt", 3: "generator.target", 4: "generator.adapter",
    5: "generator.cycle", 6: "solver.ste", 7: "proposer.group", 8: "generator.similarity", 9: "checkpoint.adapters",
    10: "solver.ste_from",
}
BACKBONES = ("tiny-ar", "tiny-flow", "tiny-diffusion")


@pytest.mark.parametrize("point", SWITCHES)
def test_each_point_is_set_on_some_backbone(point):
    paper = {name: flatten(resolve("paper", {"backbone": name}).model_dump()) for name in BACKBONES}
    released = {name: flatten(resolve("released", {"backbone": name}).model_dump()) for name in BACKBONES}
    assert any(paper[name][SWITCHES[point]] != released[name][SWITCHES[point]] for name in BACKBONES)


def test_nothing_else_differs_from_the_paper():
    other = {"preset", "solver.votes", "generator.normalise_diversity", "generator.renormalise"}
    for name in BACKBONES:
        paper, released = (flatten(resolve(p, {"backbone": name}).model_dump()) for p in ("paper", "released"))
        assert {key for key in paper if paper[key] != released[key]} <= other | set(SWITCHES.values())


@pytest.mark.parametrize("extra", [[], ["generator.target=source_image", "generator.adapter=solver",
                                        "generator.cycle=text", "proposer.group=released", "solver.ste=true",
                                        "checkpoint.adapters=lost", "generator.similarity=tiny-flow"]])
def test_the_preset_runs_on_tiny_ar(extra, pool_folder, tmp_path):
    arguments = ["train", "--preset", "released", "backbone=tiny-ar", "schedule.steps=10", "schedule.images=2",
                 "device=cpu", "precision=fp32", f"pool.path={pool_folder}", "--run", str(tmp_path / "run"), *extra]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 10 and {r["phase"] for r in records} == {"U", "G"}
    drawn = [r for r in records if r["phase"] == "G" and r["references"]]
    assert drawn and all(set(r["references/fraction"]) == {1.0} for r in drawn)  # one expected answer, no vote


# -- 1 and 2: what the Proposer writes ------------------------------------------------------------------------------
class Listening:
    """Notes every call for texts: role, temperature, prompts and what was said."""

    def __init__(self, inner, spec=None):
        self.inner, self.spec, self.calls = inner, spec or inner.spec, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def answer(self, prefix, prompts, *, temperature=0.0, **settings):
        found = self.inner.answer(prefix, prompts, temperature=temperature, **settings)
        self.calls.append((prefix.role, temperature, list(prompts), found.texts))
        return found


def round_of(backbone, pictures, **changes):
    config = resolve("smoke", {f"generator.{key}": value for key, value in changes.items()})
    rng = np.random.default_rng(0)
    return generation_round(backbone, pictures[:3], config, lambda _: rng)


def test_the_proposer_writes_its_own_expected_answers(tiny, pictures):
    heard = Listening(tiny)
    made = round_of(heard, pictures, references="expected")
    (call,) = [c for c in heard.calls if c[0] == "proposer" and "<ask>" not in c[2][0]]
    questions = [q for card in made.cards for q in card.questions]
    assert call[1] == 1.0 and call[2] == [tiny.spec.prompts.solve(q) for q in questions]  # sampled, one each
    assert [r.answers for card in made.cards for r in card.references] == [vote([t]).answers for t in call[3]]


def test_the_proposer_writes_the_prompt(tiny, pictures):
    heard = Listening(tiny)
    made = round_of(heard, pictures, prompt="spec")
    role, temperature, _, said = heard.calls[0]
    assert (role, temperature) == ("proposer", 1.0) and [card.prompt for card in made.cards] == said
    asked = replace(tiny.spec.prompts, spec="<caption> count", expect="question : {question} <answer>")
    own = Listening(tiny, replace(tiny.spec, prompts=asked))
    round_of(own, pictures, prompt="spec")
    assert own.calls[0][2] == ["<caption> count"] * 3  # a request of its own, where the backbone has one


# -- 7: the group --------------------------------------------------------------------------------------------------
def test_the_hardest_question_is_chosen_and_the_others_are_measured_less():
    votes = [vote(list("aaaaabb")), vote(list("aabbccd")), vote(list("aaaabbb"))]
    row = UnderstandingRow([Question(f"what is {i} ?", (), False) for i in range(3)])
    row.votes, row.ste, row.ste_mean = votes, [0.3, 2.0, 0.9], [0.3, 2.0, 0.9]
    reward_questions([row], resolve("tiny", ["proposer.group=released"]), RollingPercentile(16), TargetEntropy(),
                     np.random.default_rng(0))
    assert row.difficulty[1] > 0 and row.difficulty[0] == row.difficulty[2] == 0.0
    full = self_consistency_reward(votes[1].entropy, votes[1].margin, mu=0.9)
    three = [vote(list(text)) for text in ("aaa", "aaa")]
    assert row.frontier[1] == pytest.approx(full)
    assert [row.frontier[0], row.frontier[2]] == pytest.approx(
        [self_consistency_reward(v.entropy, v.margin, mu=0.9) for v in three])


# -- 8: who measures the cycle -------------------------------------------------------------------------------------
def test_another_model_measures_the_cycle(tiny, pictures):
    other, rng = load_backbone("tiny-flow"), np.random.default_rng(0)
    config = resolve("smoke", {"generator.similarity": "tiny-flow"})
    made = generation_round(tiny, pictures[:3], config, lambda _: rng, measure=other)
    own = round_of(tiny, pictures)
    assert [c.prompt for c in made.cards] == [c.prompt for c in own.cards]
    assert torch.equal(made.scores.fidelity, own.scores.fidelity)
    assert not torch.allclose(made.scores.image_text_similarity, own.scores.image_text_similarity, atol=1e-3)
    cards = [card for card in made.cards for _ in made.groups[0]]
    words = [replace(card, request=other.spec.prompts.request_for(card.prompt)) for card in cards]
    flat = [image for group in made.groups for image in group]
    _, seen = similarities(other, flat, words, [c for group in made.scores.captions for c in group])
    assert torch.allclose(seen, made.scores.image_text_similarity.flatten(), atol=1e-5)


def test_a_measure_and_its_setting_go_together(tiny, pictures):
    with pytest.raises(ValueError, match="do not go together"):
        round_of(tiny, pictures, similarity="tiny-flow")


# -- 9: what a resume loses ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("adapters", ["kept", "lost"])
def test_a_resume_loses_proposer_and_generator_where_it_is_told_to(adapters, pool_folder, tmp_path):
    config = small_config(pool_folder, {"checkpoint.adapters": adapters, "schedule.understanding": 1,
                                        "schedule.generation": 1, "schedule.steps": 2, "checkpoint.every": 2})
    trainer = open_trainer(config, tmp_path / "run")
    fresh = weights(trainer.backbone)
    trainer.fit()
    trained = weights(trainer.backbone)
    again = open_trainer(config, tmp_path / "other")
    again.run = trainer.run
    assert again.resume()
    lost = ("proposer", "generator") if adapters == "lost" else ()
    for role, tensors in weights(again.backbone).items():
        wanted = fresh if role in lost else trained
        assert all(torch.equal(a, b) for a, b in zip(tensors, wanted[role], strict=True)), role
        assert any(not torch.equal(a, b) for a, b in zip(fresh[role], trained[role], strict=True))
    assert again.optimisers["proposer"].steps == 1  # with its old moments


# -- 10: which tokens STE reads ------------------------------------------------------------------------------------
class Tagged:
    """Writes `<answer>` in two tokens, then three words; the second token and the last word are the unsure ones."""

    logits = torch.tensor([[[9.0, 0, 0], [0.0, 0, 0], [3.0, 0, 0], [5.0, 0, 0], [1.0, 0, 0]]])
    starts = torch.tensor([2])

    def __init__(self, template="{question}"):
        prompts = Prompts("ask", "{caption}", template, (template,), ("say",), "{caption}")
        self.spec = SimpleNamespace(prompts=prompts)

    def answer(self, prefix, prompts, *, rows, max_new_tokens, keep_logits):
        mask = torch.ones(1, 5, dtype=torch.bool)
        return Answers(["<answer> a b c"], mask.long(), mask, mask.float(), self.logits[:, :keep_logits], self.starts)


@pytest.mark.parametrize(("start", "tokens", "read"), [
    ("answer", 2, slice(2, 4)), ("answer", 5, slice(2, 5)), ("generated", 2, slice(0, 2)),
    ("generated", 1, slice(0, 1)),
])
def test_ste_reads_behind_the_tag_or_from_the_first_token(start, tokens, read):
    top, mean, _ = greedy_difficulty(Tagged(), None, ["q"], [0], tokens=tokens, max_new_tokens=5, start=start)
    entropy = token_entropy(Tagged.logits)[0, read]
    assert top == pytest.approx([entropy.max().item()]) and mean == pytest.approx([entropy.mean().item()])


def test_a_tag_in_the_prompt_counts_as_one_generated_token():
    held = Tagged("{question} <answer>")
    held.starts = None
    entropy = token_entropy(Tagged.logits)[0]
    for start, tokens in (("answer", 5), ("generated", 4)):
        _, mean, _ = greedy_difficulty(held, None, ["q"], [0], tokens=5, max_new_tokens=5, start=start)
        assert mean == pytest.approx([entropy[:tokens].mean().item()])


def test_a_reader_says_where_an_answer_begins(tiny, pictures):
    from asgkit.backbones.reader import _starts

    words = tiny.tokenizer
    texts = ["<answer> red", "red", "is <answer> blue"]
    rows = [words.encode(text) for text in texts]
    ids = torch.tensor([row + [words.pad] * (4 - len(row)) for row in rows])
    assert _starts(texts, ids, words).tolist() == [1, 0, 2] and _starts(["red"], ids[1:2], words) is None


# -- the forms of m, S_div and R_g ---------------------------------------------------------------------------------
def test_the_forms_of_the_scores_are_settings(tiny, pictures):
    plain = round_of(tiny, pictures)
    scaled = round_of(tiny, pictures, normalise_diversity=True, renormalise=True)
    spread = torch.stack([diversity(pixels(group), normalise=True) for group in plain.groups])
    assert torch.equal(scaled.scores.diversity, spread) and not torch.equal(spread, plain.scores.diversity)
    quality = torch.tensor([c.quality if c.passed else 0.0 for c in scaled.cards])[:, None]
    s = scaled.scores
    assert torch.equal(s.reward, generator_reward(s.fidelity, s.cycle, s.diversity, s.contradiction, quality,
                                                  renormalise=True))


def test_whole_words_are_a_setting():
    from asgkit.stages.judge import _fidelity

    card = SimpleNamespace(questions=["q"], references=[vote(["north"])])
    found = [_fidelity(card, [vote(["no"])], whole) for whole in (False, True)]
    assert found == pytest.approx([0.7 * soft_match("no", "north") + 0.3, 0.3])
