"""The loop on tiny-ar: who moves when, what the first step must measure, updates, controls, caching."""

import json
from dataclasses import replace
from statistics import pstdev

import pytest
import torch
from loops import moved, open_trainer, same, small_config, weights

from asgkit.backbones import ROLES
from asgkit.draw import diversity
from asgkit.errors import StopRequested
from asgkit.evals.oracle import ShapesJudge
from asgkit.launch import train
from asgkit.recipes import asg as asg_module
from asgkit.recipes.asg_fields import FIELDS
from asgkit.runs.directory import RunExists, read_log
from asgkit.runs.schema import validate_record
from asgkit.stages.judge import pixels

CYCLE = "UUUGG"


def base_of(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for name, p in trainer.backbone.network.named_parameters() if "lora_" not in name]


@pytest.fixture(scope="module")
def story(pool_folder, tmp_path_factory):
    """One cycle, step by step: records, roles that moved, the base before and after."""
    trainer = open_trainer(small_config(pool_folder), tmp_path_factory.mktemp("story") / "run")
    base, steps = base_of(trainer), []
    for _ in CYCLE:
        before = weights(trainer.backbone)
        records = trainer.train_step()
        steps.append((records, moved(before, trainer.backbone)))
    return trainer, steps, same(base, base_of(trainer))


# -- who moves -----------------------------------------------------------------------------------------------------
def test_each_phase_moves_its_roles_and_never_the_base(story):
    _, steps, base_kept = story
    assert [roles for _, roles in steps] == [{"proposer", "solver"}] * 3 + [{"generator"}] * 2
    assert base_kept


def test_three_u_steps_then_two_g_steps(story):
    trainer, steps, _ = story
    assert "".join(records[0]["phase"] for records, _ in steps) == CYCLE
    assert "".join(trainer.recipe.phase(step) for step in range(1, 16)) == 3 * CYCLE


@pytest.mark.parametrize("understanding, generation, expected", [(5, 0, "UUUU"), (0, 5, "GGGG"), (1, 1, "UGUG")])
def test_other_schedules(pool_folder, tmp_path, understanding, generation, expected):
    changes = {"schedule.understanding": understanding, "schedule.generation": generation}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    assert "".join(trainer.recipe.phase(step) for step in range(1, 5)) == expected


@pytest.mark.parametrize("role", ROLES)
def test_a_frozen_role_does_not_move(pool_folder, tmp_path, role):
    changes = {"schedule.understanding": 1, "schedule.generation": 1, f"{role}.train": False}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    before = weights(trainer.backbone)
    records = trainer.train_step() + trainer.train_step()
    assert moved(before, trainer.backbone) == set(ROLES) - {role}
    assert not any(r[f"{role}/applied"] for r in records if f"{role}/applied" in r)


# -- what the log says ---------------------------------------------------------------------------------------------
def test_every_record_is_valid_and_one_per_image(story):
    _, steps, _ = story
    for number, (records, _) in enumerate(steps, start=1):
        assert len(records) == 3 and {r["step"] for r in records} == {number}
        for record in records:
            validate_record(record, FIELDS)
            assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("step, role", [(1, "proposer"), (1, "solver"), (4, "generator")])
def test_a_role_starts_as_the_base_and_on_policy(story, step, role):
    record = story[1][step - 1][0][0]
    assert record[f"{role}/applied"]
    assert record[f"{role}/kl"] == pytest.approx(0.0, abs=1e-6)  # LoRA B = 0: the role is the base
    if role != "solver":
        assert record[f"{role}/clip_fraction"] == 0.0
        # ratio 1 everywhere: the surrogate is minus the mean advantage, and group advantages sum to zero
        assert record[f"{role}/policy_loss"] == pytest.approx(0.0, abs=1e-3)
    assert record[f"{role}/grad_norm"] > 0


def test_kl_appears_once_a_role_has_moved(story):
    assert story[1][1][0][0]["solver/kl"] > 0
    assert story[1][4][0][0]["generator/kl"] > 0


def test_group_advantages_have_mean_zero_and_follow_the_rewards(story):
    records = [r for rs, _ in story[1] for r in rs]
    for r in records:
        role = "proposer" if r["phase"] == "U" else "generator"
        rewards, advantages = r[f"{role}/rewards"], r[f"{role}/advantages"]
        spread = pstdev(rewards)
        if r[f"{role}/zero_variance"] or spread < 1e-4:  # dividing by less enlarges the rounding of the log
            continue
        assert sum(advantages) == pytest.approx(0.0, abs=1e-5 + 1e-6 / spread)
        if len(set(rewards)) == 3:
            order = sorted(range(3), key=rewards.__getitem__)
            assert advantages[order[0]] < 0 < advantages[order[-1]]
            assert advantages[order[0]] < advantages[order[1]] < advantages[order[-1]]


def test_the_chosen_question_is_the_best_paid(story):
    for r in (r for records, _ in story[1][:3] for r in records):
        assert r["proposer/reward"] == max(r["proposer/rewards"])
        assert r["question"] == r["questions"][r["proposer/rewards"].index(r["proposer/reward"])]
        assert len(r["solver/answers"]) == 7


def test_the_window_counts_what_was_there_before_the_step(story):
    sizes = [records[0]["solver/window_size"] for records, _ in story[1][:3]]
    asked = [sum(sum(r["questions/valid"]) for r in records) for records, _ in story[1][:3]]
    assert sizes == [0, asked[0], asked[0] + asked[1]]


def test_logged_seeds_draw_the_candidates_again(story):
    trainer, steps, _ = story
    record = steps[3][0][0]
    assert len(set(record["generator/seeds"])) == 3
    prompt = trainer.backbone.spec.prompts.draw.format(caption=record["prompt"])
    # step 4 drew with a Generator that was still the base
    drawn = trainer.backbone.generate_images([prompt] * 3, seeds=record["generator/seeds"], role=None)
    assert diversity(pixels(drawn.images)).tolist() == pytest.approx(record["generator/diversity"], abs=1e-6)


# -- repeatability -------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_bytes(pool_folder, tmp_path):
    runs = [train(small_config(pool_folder, {"seed": seed, "lora.dropout": 0.1}), tmp_path / f"{i}")
            for i, seed in enumerate((1, 1, 2))]
    logs = [run.log_path.read_bytes() for run in runs]
    assert logs[0] == logs[1] != logs[2]
    files = [{p.parent.name: p.read_bytes() for p in run.path.rglob("adapter.safetensors")} for run in runs]
    assert len(files[0]) == 3 and files[0] == files[1] != files[2]
    assert json.loads((runs[0].path / "status.json").read_text())["state"] == "finished"
    assert len(read_log(runs[0].path)) == 15
    with pytest.raises(RunExists):
        train(small_config(pool_folder, {"seed": 1, "lora.dropout": 0.1}), tmp_path / "0")


class Recomputing:
    """A backbone without any sharing: each row of a call brings its own copy of its image."""

    def __init__(self, inner):
        self.inner = inner
        self.spec = inner.spec
        self.prefixes = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def prefix(self, images, *, role):
        return {"images": list(images), "role": role, "size": len(images)}

    def answer(self, prefix, prompts, *, rows=None, **settings):
        rows = range(prefix["size"]) if rows is None else rows
        fresh = self.inner.prefix([prefix["images"][r] for r in rows], role=prefix["role"])
        self.prefixes += len(rows)
        return self.inner.answer(fresh, prompts, **settings)

    def text_stats(self, images, prompts, completions, *, rows=None, **settings):
        images = images if images is None or rows is None else [images[r] for r in rows]
        return self.inner.text_stats(images, prompts, completions, **settings)


def test_sharing_the_image_prefix_changes_nothing(pool_folder, tmp_path):
    config = small_config(pool_folder)
    shared = open_trainer(config, tmp_path / "shared")
    apart = open_trainer(config, tmp_path / "apart", wrap=Recomputing)
    for _ in CYCLE:
        for a, b in zip(shared.train_step(), apart.train_step(), strict=True):
            texts = {k: v for k, v in a.items() if isinstance(v, str | bool | int)}
            assert texts == {k: b[k] for k in texts}
            numbers = [k for k, v in a.items() if isinstance(v, float)]
            assert [b[k] for k in numbers] == pytest.approx([a[k] for k in numbers], abs=2e-4)
    for role in ROLES:
        for p, q in zip(shared.backbone.role_parameters(role), apart.backbone.role_parameters(role), strict=True):
            assert torch.allclose(p, q, atol=3e-4)  # Adam turns a rounding of a tiny gradient into part of a step
    assert apart.backbone.prefixes > 3 * 7 * 3


# -- Solver updates ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("train_on", ["best", "all"])
@pytest.mark.parametrize("update", ["reinforce", "group", "sft"])
def test_solver_updates(pool_folder, tmp_path, update, train_on):
    changes = {"solver.update": update, "solver.train_on": train_on, "schedule.generation": 0,
               "solver.pseudo_label_share": 0.5}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    before = weights(trainer.backbone)
    records = [r for _ in range(3) for r in trainer.train_step()]
    assert "solver" in moved(before, trainer.backbone)
    assert {r["solver/update"] for r in records} == {update}
    taught = [r for r in records if r["solver/trained"]]
    assert taught and all(r["solver/skip_reason"] == "" for r in taught)
    assert all(r["solver/skip_reason"] for r in records if not r["solver/trained"])
    for r in taught:
        check_advantages(update, r)


@pytest.mark.parametrize(("update", "control"), [("reinforce", ""), ("group", ""), ("sft", "random")])
def test_the_gradient_is_taken_where_the_sample_was(pool_folder, tmp_path, monkeypatch, update, control):
    """Same prompts, same image rows, same ids: the first step's log-probabilities are those of sampling.

    It holds for `sft` under random rewards only: there every framing is taught its own answer.
    """
    changes = {"solver.update": update, "control": control}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    inner, gaps = trainer.backbone.text_stats, {}

    def spy(images, prompts, completions, *, role, **settings):
        found = inner(images, prompts, completions, role=role, **settings)
        gaps[role] = (found.logp - completions.logp).abs().max().item()
        return found

    monkeypatch.setattr(trainer.backbone, "text_stats", spy)
    trainer.train_step()
    assert gaps.keys() == {"proposer", "solver", None} and max(gaps.values()) < 1e-4


def check_advantages(update: str, r: dict) -> None:
    advantages, rewards = r["solver/advantages"], r["solver/rewards"]
    if update == "sft":
        assert advantages == [1.0] * 7 and r["solver/majority_fraction"] >= 0.5
    elif update == "group":
        assert sum(advantages) == pytest.approx(0.0, abs=1e-2)
    else:
        assert advantages == pytest.approx([x - (r["solver/baseline"] or 0.0) for x in rewards], abs=2e-6)


def test_a_vote_below_the_share_does_not_teach(pool_folder, tmp_path):
    changes = {"solver.update": "reinforce", "solver.min_share": 1.0, "schedule.generation": 0}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    records = [r for _ in range(2) for r in trainer.train_step()]
    split = [r for r in records if r["solver/majority_fraction"] < 1]
    assert split and {r["solver/skip_reason"] for r in split} == {"vote share below 1.000"}
    assert not any(r["solver/trained"] for r in records)  # and a unanimous vote has no variance to learn from


# -- controls ------------------------------------------------------------------------------------------------------
def one_cycle(pool_folder, folder, changes, judge=None):
    trainer = open_trainer(small_config(pool_folder, {"schedule.understanding": 1, "schedule.generation": 1}
                                        | changes), folder, judge=judge)
    before = weights(trainer.backbone)
    return trainer.train_step(), trainer.train_step(), moved(before, trainer.backbone)


@pytest.fixture(scope="module")
def method(pool_folder, tmp_path_factory):
    """One U and one G step under the method's own reward."""
    return one_cycle(pool_folder, tmp_path_factory.mktemp("method") / "run", {})


@pytest.mark.parametrize("control", ["random", "permuted"])
@pytest.mark.parametrize("update", ["reinforce", "sft"])
def test_noise_controls_train_on_other_advantages(method, pool_folder, tmp_path, control, update):
    asked, drawn, _ = method
    other_asked, other_drawn, roles = one_cycle(pool_folder, tmp_path / "control",
                                                {"control": control, "solver.update": update})
    assert {r["control"] for r in other_asked + other_drawn} == {control}
    assert [r["questions"] for r in asked] == [r["questions"] for r in other_asked]
    assert [r["proposer/rewards"] for r in asked] == [r["proposer/rewards"] for r in other_asked]
    assert [r["proposer/advantages"] for r in asked] != [r["proposer/advantages"] for r in other_asked]
    assert [r["generator/advantages"] for r in drawn] != [r["generator/advantages"] for r in other_drawn]
    assert roles == set(ROLES)


@pytest.mark.parametrize("update", ["reinforce", "group", "sft"])
def test_a_constant_reward_teaches_nothing(pool_folder, tmp_path, update):
    asked, drawn, roles = one_cycle(pool_folder, tmp_path / "run", {"control": "constant", "solver.update": update})
    assert roles == set()
    assert all(r["proposer/zero_variance"] and r["frac_reward_zero_std"] == 1.0 for r in asked)
    assert {r["solver/skip_reason"] for r in asked} == {"zero variance"}
    assert all(r["generator/zero_variance"] and r["generator/loss"] is None for r in drawn)
    assert not any(r[f"{role}/applied"] for r in asked for role in ("proposer", "solver"))


def test_the_oracle_teaches_the_truth(pool_folder, tmp_path):
    asked, drawn, _ = one_cycle(pool_folder, tmp_path / "run", {"control": "oracle", "generator.candidates": 6},
                                judge=ShapesJudge())
    for r in drawn:
        assert len(r["judge_scores"]) == 6 and set(r["judge_scores"]) <= {0.0, 1.0}
        for score, advantage in zip(r["judge_scores"], r["generator/advantages"], strict=True):
            assert r["generator/zero_variance"] or (advantage > 0) == (score == 1.0)
    assert not all(r["generator/zero_variance"] for r in drawn)  # or the loop above has compared nothing
    assert any(r["solver/trained"] for r in asked)


def test_a_judge_and_the_oracle_control_go_together(pool_folder, tmp_path):
    with pytest.raises(ValueError, match="must never see the truth"):
        train(small_config(pool_folder), tmp_path / "a", judge=ShapesJudge())
    with pytest.raises(ValueError, match="must never see the truth"):
        train(small_config(pool_folder, {"control": "oracle"}), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


# -- questions that cannot be asked --------------------------------------------------------------------------------
class Scripted:
    """Replaces what the Proposer says, question by question, and counts the rows that the Solver answers."""

    def __init__(self, inner, lines):
        self.inner, self.spec, self.lines = inner, inner.spec, lines
        self.solved = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def answer(self, prefix, prompts, **settings):
        found = self.inner.answer(prefix, prompts, **settings)
        if prefix.role == "solver":
            self.solved += len(prompts)
            return found
        lines = [self.lines[i % len(self.lines)] for i in range(len(prompts))]
        return replace(found, texts=lines)


def test_without_a_valid_question_the_solver_is_not_called(pool_folder, tmp_path):
    trainer = open_trainer(small_config(pool_folder), tmp_path / "run", wrap=lambda b: Scripted(b, ["red circle ,"]))
    before = weights(trainer.backbone)
    records = trainer.train_step()
    assert trainer.backbone.solved == 0 and len(trainer.recipe.window) == 0
    assert moved(before, trainer.backbone) == set()
    for r in records:
        validate_record(r, FIELDS)
        assert r["proposer/rewards"] == [-1.0] * 3 and r["proposer/zero_variance"]
        assert r["solver/majority"] is None and r["solver/answers"] == [] and not r["solver/trained"]
        assert all(r["questions/problems"])


def test_an_invalid_question_earns_minus_one_and_is_not_asked(pool_folder, tmp_path):
    lines = ["what digit is shown ?", "red circle", "what digit is shown ?"]
    config = small_config(pool_folder, {"solver.temperature": 0.0})  # greedy: equal questions get equal votes
    trainer = open_trainer(config, tmp_path / "run", wrap=lambda b: Scripted(b, lines))
    records = trainer.train_step()
    assert trainer.backbone.solved == 3 * 2 * (7 + 1)  # images x valid questions x (framings + the greedy call)
    for r in records:
        assert r["proposer/rewards"][1] == -1.0 < min(r["proposer/rewards"][::2])
        assert r["proposer/difficulty"][1] is None and r["solver/token_entropies"][1] is None
        assert r["questions/duplicate"] == [False, False, True]
        assert r["proposer/rewards"][0] - r["proposer/rewards"][2] == pytest.approx(0.20, abs=1e-5)


def test_a_silent_group_does_not_dilute_the_others(pool_folder, tmp_path, monkeypatch):
    lines = ["red"] * 3 + ["what digit is shown ?", "red", "how many objects are there ?"] * 2
    trainer = open_trainer(small_config(pool_folder), tmp_path / "run", wrap=lambda b: Scripted(b, lines))
    masks, own = [], asg_module.grpo_loss
    monkeypatch.setattr(asg_module, "grpo_loss", lambda *a, **s: masks.append(a[3]) or own(*a, **s))
    records = trainer.train_step()
    assert [r["proposer/zero_variance"] for r in records] == [True, False, False]
    assert records[0]["frac_reward_zero_std"] == pytest.approx(1 / 3, abs=1e-6)
    assert masks[0].any(1).tolist() == [False] * 3 + [True] * 6


@pytest.mark.parametrize("control", ["", "random"])
def test_a_card_without_questions_trains_nothing_and_is_not_replayed(pool_folder, tmp_path, control):
    changes = {"schedule.understanding": 0, "control": control}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run", wrap=lambda b: Scripted(b, ["red"]))
    before = weights(trainer.backbone)
    for r in trainer.train_step():
        validate_record(r, FIELDS)
        assert not r["spec/passed"] and r["generator/best"] is None and not r["replay/pushed"]
        assert r["generator/advantages"] == [0.0] * 3 and not r["generator/applied"]
    assert moved(before, trainer.backbone) == set() and len(trainer.recipe.replay) == 0


# -- replay and stopping -------------------------------------------------------------------------------------------
def test_drawings_return_as_images_of_understanding_steps(pool_folder, tmp_path):
    changes = {"schedule.understanding": 1, "schedule.generation": 1, "replay.mix": 1.0, "replay.capacity": 2}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    asked, drawn = trainer.train_step(), trainer.train_step()
    assert any(r["replay/pushed"] for r in drawn) and 0 < len(trainer.recipe.replay) <= 2
    assert not any(r["image"].startswith("replay/") for r in asked + drawn)
    assert all(r["image"].startswith("replay/") for r in trainer.train_step())
    assert not any(r["image"].startswith("replay/") for r in trainer.train_step())  # G steps use real images


@pytest.mark.parametrize(("phase", "expected"), [("U", ["proposer", "solver"]),
                                                 ("G", ["solver", "proposer", "solver"])])
def test_pictures_are_encoded_once_per_role_and_step(pool_folder, tmp_path, monkeypatch, phase, expected):
    """In a G step the Solver sees two sets of pictures: the real ones, and the candidates drawn from them."""
    changes = {"schedule.understanding": int(phase == "U"), "schedule.generation": int(phase == "G")}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    inner, seen = trainer.backbone.prefix, []
    monkeypatch.setattr(trainer.backbone, "prefix",
                        lambda images, *, role: seen.append((role, len(images))) or inner(images, role=role))
    trainer.train_step()
    assert [role for role, _ in seen] == expected
    assert [count for _, count in seen] == [3, 3, 9][: len(seen)]


@pytest.mark.parametrize("stage", ["prefix", "text_stats"])
def test_a_stop_inside_a_stage_moves_no_weight(pool_folder, tmp_path, monkeypatch, stage):
    trainer = open_trainer(small_config(pool_folder), tmp_path / "run")
    inner = getattr(trainer.backbone, stage)

    def ask_to_stop(*args, **settings):
        trainer.stop.request("SIGTERM")
        return inner(*args, **settings)

    monkeypatch.setattr(trainer.backbone, stage, ask_to_stop)
    before = weights(trainer.backbone)
    with pytest.raises(StopRequested, match="SIGTERM"):
        trainer.train_step()
    assert moved(before, trainer.backbone) == set()
