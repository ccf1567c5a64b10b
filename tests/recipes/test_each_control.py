"""Each control's sentence, proven on the records of a short run: what is as in the method, and what is destroyed.

The first steps of every run start from the same base and seed, so questions, answers and drawings are the method's own
until a reward acts; what then trained is in the records (`control/...`).
"""

from functools import cache

import pytest
import torch
from loops import moved, open_trainer, small_config, weights

from asgkit.errors import ConfigError
from asgkit.evals.oracle import ShapesJudge
from asgkit.recipes.controls import CONTROLS, needs_judge
from asgkit.solve import solver_rewards, vote
from asgkit.stages.answer import answer_questions
from asgkit.updates import group_advantages

STEPS = {"schedule.understanding": 1, "schedule.generation": 1, "schedule.images": 6}


@pytest.fixture(scope="module")
def runs(pool_folder, tmp_path_factory):
    """A U and a G step under a control, made once: trainer, U records, G records, the U step's table, who moved."""

    @cache
    def make(control: str, update: str = "sft", train_on: str = "all"):
        config = small_config(pool_folder, STEPS | {"control": control, "solver.update": update,
                                                    "solver.train_on": train_on})
        trainer = open_trainer(config, tmp_path_factory.mktemp(control or "method") / "run",
                               judge=ShapesJudge() if needs_judge(control) else None)
        works, sample = [], trainer.recipe.sample
        trainer.recipe.sample = lambda shard, phase: works.append(sample(shard, phase)) or works[-1]
        before = weights(trainer.backbone)
        asked, drawn = trainer.train_step(), trainer.train_step()
        return trainer, asked, drawn, works[0], moved(before, trainer.backbone)

    return make


def taught(runs, *arguments: str) -> list[list[bool]]:
    """Which questions the method teaches, by its own table."""
    work = runs("", *arguments)[3]
    return [[k in row.solver_advantages for k in range(len(row.questions))] for row in work.table]


def majorities(runs) -> list[list[str | None]]:
    return [[v and v.majority for v in row.votes] for row in runs("")[3].table]


def column(records: list[dict], name: str) -> list:
    return [r[name] for r in records]


def flat(rows: list[list]) -> list:
    return [x for row in rows for x in row]


def own_rewards(record: dict) -> list[float]:
    """R_s of the chosen question, from its logged answers alone."""
    return [round(r, 6) for r in solver_rewards(vote(record["solver/answers"]), low_info=0.0)]


def check_advantages(records: list[dict], name: str) -> None:
    """Advantages of a group are those of what the control pays."""
    for r in records:
        if any(r[name]):
            expected = group_advantages(torch.tensor([r["control/rewards"]]))[0][0]
            assert r[name] == pytest.approx(expected.tolist(), abs=2e-2)


def test_every_control_says_what_is_matched_and_what_is_destroyed():
    for control in CONTROLS.values():
        assert control.matched[0].isupper() and control.destroyed[0].islower()
        assert control.sentence.count(". ") == 0 and control.sentence.endswith(".")


def test_the_method_logs_no_field_of_a_control(runs):
    _, asked, drawn, *_ = runs("")
    assert not any(name.startswith("control/") for r in asked + drawn for name in r)


@pytest.mark.parametrize("update", ["sft", "reinforce"])
def test_random_pays_numbers_and_teaches_every_valid_question(runs, update):
    _, asked, drawn, _, roles = runs("random", update)
    assert column(asked, "questions") == column(runs("")[1], "questions")
    assert column(asked, "control/trained") == column(asked, "questions/valid")  # as many as were sampled, no gate
    assert set(flat(column(asked, "control/labels"))) == {None}  # each framing its own answer
    assert all(0 <= x < 1 for x in flat(column(asked + drawn, "control/rewards")))
    assert column(asked, "control/rewards") != column(asked, "proposer/rewards")
    check_advantages(asked, "proposer/advantages")
    check_advantages(drawn, "generator/advantages")
    assert roles == {"proposer", "solver", "generator"}


def test_random_chooses_and_replays_by_what_it_pays(runs):
    trainer, asked, drawn, *_ = runs("random", "reinforce", "best")
    chosen = 0
    for r in asked:
        paid = [x if valid else -1.0 for x, valid in zip(r["control/rewards"], r["questions/valid"], strict=True)]
        assert r["question"] == r["questions"][paid.index(max(paid))]
        chosen += r["proposer/reward"] < max(r["proposer/rewards"])
    assert chosen >= 1  # not always the question of highest R_p
    groups = trainer.backbone.generate_images  # the drawings are made again from their logged seeds, by the base
    kept = [r for r in drawn if r["spec/passed"]]
    assert len(kept) == len(trainer.recipe.replay) >= 2
    for r, image in zip(kept, trainer.recipe.replay.images, strict=True):
        best = r["control/rewards"].index(max(r["control/rewards"]))
        text = trainer.backbone.spec.prompts.draw.format(caption=r["prompt"])
        assert groups([text], seeds=[r["generator/seeds"][best]], role=None).images[0].tobytes() == image.tobytes()


def test_random_vote_teaches_one_ballot_and_leaves_questions_and_drawings_alone(runs):
    _, asked, drawn, *_ = runs("random_vote")
    assert column(asked, "proposer/advantages") == column(runs("")[1], "proposer/advantages")
    assert column(asked, "control/trained") == column(asked, "questions/valid")
    assert column(drawn, "control/rewards") == column(drawn, "generator/rewards")
    others = 0
    for r in asked:
        label = r["control/labels"][r["questions"].index(r["question"])]
        assert label in r["solver/normalised"]
        others += label != r["solver/majority"]
    assert others >= 1


def test_permuted_labels_are_the_methods_labels_on_other_questions(runs):
    _, asked, drawn, *_ = runs("permuted")
    assert column(asked, "control/trained") == taught(runs)  # the same questions, through the method's gate
    wanted = [m if on else None for m, on in zip(flat(majorities(runs)), flat(taught(runs)), strict=True)]
    labels = flat(column(asked, "control/labels"))
    assert sorted(map(str, labels)) == sorted(map(str, wanted)) and labels != wanted
    donors = [(r["image"], name) for r in asked for name in r["control/donors"] if name]
    assert len(donors) == sum(flat(taught(runs))) and any(a != b for a, b in donors)
    assert sorted(flat(column(asked, "control/rewards"))) == sorted(flat(column(asked, "proposer/rewards")))
    passed = [r for r in drawn if r["spec/passed"]]
    values = [sorted(flat(column(passed, name))) for name in ("control/rewards", "generator/rewards")]
    assert len(passed) >= 2 and values[0] == values[1]
    assert column(passed, "control/rewards") != column(passed, "generator/rewards")


def test_permuted_rewards_are_the_methods_rewards_on_other_answers(runs):
    _, asked, *_ = runs("permuted", "reinforce", "best")
    trained = [r for r in asked if r["solver/trained"]]
    found, own = flat(column(trained, "solver/rewards")), flat([own_rewards(r) for r in trained])
    assert len(trained) >= 2 and sorted(found) == pytest.approx(sorted(own), abs=2e-6)
    assert found != pytest.approx(own, abs=1e-4)


def test_other_picture_teaches_the_same_questions_the_majority_of_another_picture(runs):
    _, asked, drawn, *_ = runs("other_picture")
    assert column(asked, "control/trained") == taught(runs)
    assert column(asked, "proposer/advantages") == column(runs("")[1], "proposer/advantages")
    held = {r["image"]: {m for m, on in zip(row, mask, strict=True) if on}
            for r, row, mask in zip(asked, majorities(runs), taught(runs), strict=True)}
    pairs = [(r["image"], label, donor) for r in asked
             for label, donor in zip(r["control/labels"], r["control/donors"], strict=True) if donor]
    assert len(pairs) == sum(flat(taught(runs))) >= 4
    assert all(donor != image and label in held[donor] for image, label, donor in pairs)
    passed = {tuple(r["generator/rewards"]): r["image"] for r in drawn if r["spec/passed"]}
    assert len(passed) >= 2
    assert all(passed[tuple(r["control/rewards"])] != r["image"] for r in drawn if r["spec/passed"])


def test_other_picture_moves_answers_with_their_rewards(runs):
    _, asked, _, work, _ = runs("other_picture", "reinforce", "best")
    assert column(asked, "control/trained") == taught(runs, "reinforce", "best")  # the same questions
    by_image = {r["image"]: r for r in asked}
    trained = [r for r in asked if r["solver/trained"]]
    assert len(trained) >= 2
    for r in trained:
        (donor,) = [name for name in r["control/donors"] if name]
        assert donor != r["image"]
        assert r["solver/rewards"] == pytest.approx(own_rewards(by_image[donor]), abs=2e-6)
    batch = runs("other_picture", "reinforce", "best")[0].recipe.solver_batch(work)
    sampled = {tuple(row) for row in work.solved.answers.ids.tolist()}
    assert all(tuple(row) in sampled for row in batch.rollout.answers.ids.tolist())  # never re-tokenised
    raw = [by_image[next(name for name in r["control/donors"] if name)]["solver/answers"] for r in trained]
    assert batch.rollout.answers.texts == flat(raw)


@pytest.mark.parametrize("update", ["sft", "reinforce"])
def test_constant_pays_nothing_and_moves_nothing(runs, update):
    _, asked, drawn, _, roles = runs("constant", update)
    assert column(asked, "questions") == column(runs("")[1], "questions")
    assert set(flat(column(asked + drawn, "control/rewards"))) == {0.0} and roles == set()


def test_format_pays_form_alone(runs):
    _, asked, drawn, *_ = runs("format")
    assert column(asked, "control/rewards") == [list(map(float, r["questions/valid"])) for r in asked]
    assert column(asked, "control/trained") == column(asked, "questions/valid")
    assert set(flat(column(asked, "control/labels"))) == {None}
    assert set(flat(column(drawn, "control/rewards"))) == {0.0} and all(column(drawn, "generator/zero_variance"))
    assert not any(flat(runs("format", "reinforce")[1][i]["control/trained"] for i in range(6)))


def truths(runs) -> list[list[str | None]]:
    """The true answer of every question, from the pictures themselves."""
    work = runs("")[3]
    return [[ShapesJudge().answer(picture, q.text) if q.valid else None for q in row.questions]
            for picture, row in zip(work.shard.pictures, work.table, strict=True)]


def said(runs) -> list[list[bool]]:
    """Whether some framing gave the true answer."""
    return [[bool(t and v and t in v.answers) for t, v in zip(true, row.votes, strict=True)]
            for true, row in zip(truths(runs), runs("")[3].table, strict=True)]


def test_the_oracle_abstains_without_a_truth_and_teaches_it_elsewhere(runs):
    _, asked, drawn, work, _ = runs("oracle")
    assert column(asked, "control/trained") == said(runs)
    assert column(asked, "control/labels") == [[t if on else None for t, on in zip(*pair, strict=True)]
                                               for pair in zip(truths(runs), said(runs), strict=True)]
    assert column(asked, "proposer/advantages") == column(runs("")[1], "proposer/advantages")
    for row, true in zip(work.table, truths(runs), strict=True):
        assert all(row.skip[k] == "no true answer" for k, t in enumerate(true) if t is None and row.votes[k])
    assert column(drawn, "control/rewards") == column(drawn, "judge_scores")


def test_the_gated_oracle_teaches_the_methods_questions_that_have_a_truth(runs):
    _, asked, *_ = runs("oracle_gated")
    both = [[a and b for a, b in zip(*pair, strict=True)] for pair in zip(said(runs), taught(runs), strict=True)]
    assert column(asked, "control/trained") == both
    assert sum(flat(both)) < sum(flat(said(runs)))  # the gate took some away


def test_best_of_teaches_the_methods_questions_and_one_drawing_of_each_card(runs):
    trainer, asked, drawn, *_ = runs("best_of")
    assert column(asked, "control/trained") == taught(runs)
    assert column(asked, "control/rewards") == column(asked, "proposer/rewards")
    assert column(drawn, "control/rewards") == column(drawn, "generator/rewards")
    assert "generator" in runs("best_of")[4] and trainer.config.generator.candidates == 3


def test_who_exchanges_needs_somebody_to_exchange_with(pool_folder):
    for control in ("permuted", "other_picture"):
        with pytest.raises(ConfigError, match=r"schedule\.images to 2 or more"):
            small_config(pool_folder, {"control": control, "schedule.images": 1})


def judged_by(scorer: str, pool_folder, folder) -> tuple:
    """A U step that moves the Solver far, then a G step: records of both, the G step's work, the trainer."""
    config = small_config(pool_folder, STEPS | {"generator.scorer": scorer, "solver.learning_rate": 0.02})
    trainer = open_trainer(config, folder / scorer)
    works, sample = [], trainer.recipe.sample
    trainer.recipe.sample = lambda shard, phase: works.append(sample(shard, phase)) or works[-1]
    return trainer.train_step(), trainer.train_step(), works[1], trainer


def test_a_frozen_judge_answers_as_the_base_and_everything_else_is_the_methods(pool_folder, tmp_path):
    asked, drawn, *_ = judged_by("live", pool_folder, tmp_path)
    same, other, work, trainer = judged_by("frozen", pool_folder, tmp_path)
    assert asked == same and all(column(drawn, name) == column(other, name) for name in ("prompt", "questions"))
    assert column(drawn, "references") != column(other, "references")  # the Solver has moved, the base has not
    base = trainer.backbone.prefix(work.shard.pictures, role=None)
    for i, (r, card) in enumerate(zip(other, work.made.cards, strict=True)):
        votes = answer_questions(trainer.backbone, base, card.questions, [i] * len(card.questions), framings=3,
                                 temperature=0.0, max_new_tokens=1).votes if card.questions else []
        assert r["references"] == [v.majority for v in votes]
