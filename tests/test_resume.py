"""Runs that survive: kill -9, SIGTERM, corrupt checkpoints and NaN, each compared with an undisturbed run."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from loops import moved, open_trainer, small_config, weights

from asgkit.errors import TrainingAborted
from asgkit.launch import train
from asgkit.recipes import rewards as rewards_module
from asgkit.runs.directory import RunDirectory, load_checkpoint
from asgkit.stages import generation as rounds_module

HALF, WHOLE = 4, 8
# Everything that has a memory is switched on: dropout, momentum, an adaptive KL, replay, baselines, warm-up.
CHANGES = {"schedule.steps": WHOLE, "checkpoint.every": HALF, "lora.dropout": 0.1, "kl.rate": 0.1, "replay.mix": 0.5,
           "replay.capacity": 4, "solver.update": "reinforce", "optimiser.warmup": 3}


@pytest.fixture(scope="module")
def config(pool_folder):
    return small_config(pool_folder, CHANGES)


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The undisturbed run; tests that damage it take a copy."""
    return train(config, tmp_path_factory.mktemp("reference") / "run").path


def assert_equal_runs(path: Path, reference: Path) -> None:
    """Log bytes, role files, optimisers, windows, baselines, replay and pool position: all bit for bit."""
    assert (path / "log.jsonl").read_bytes() == (reference / "log.jsonl").read_bytes()
    name = f"checkpoints/step_{WHOLE:06d}"
    found, wanted = load_checkpoint(path / name), load_checkpoint(reference / name)
    assert found.tensors.keys() == wanted.tensors.keys()
    assert [k for k, v in wanted.tensors.items() if not torch.equal(v, found.tensors[k])] == []
    # Python's and numpy's global generators are saved, but no number of a run comes from them
    assert {k: v for k, v in found.values.items() if k != "rng"} == {k: v for k, v in wanted.values.items()
                                                                     if k != "rng"}
    for file in sorted((reference / name).rglob("adapter.safetensors")):
        assert (path / name / file.relative_to(reference / name)).read_bytes() == file.read_bytes()


def test_the_reference_uses_every_memory(reference):
    saved = load_checkpoint(reference / f"checkpoints/step_{WHOLE:06d}")
    held = saved.values["memories"]
    assert held["window"]["values"] and held["baseline"]["value"] is not None and held["tokens"]["value"] > 0
    assert held["replay"]["pushed"] > 4 and len(saved.tensors["memory/replay/images"]) == 4
    assert all(o["steps"] > 1 and o["kl"]["coefficient"] != 0.05 for o in saved.values["optimisers"].values())
    assert any(name.startswith("optimiser/solver/") and value.any() for name, value in saved.tensors.items())
    images = [json.loads(line)["image"] for line in (reference / "log.jsonl").read_text().splitlines()]
    assert any(name.startswith("replay/") for name in images)


# -- a process that dies -------------------------------------------------------------------------------------------
CHILD = """
import json, os, signal, sys, time
import torch
torch.set_num_threads(1)
from asgkit.config import from_dict
from asgkit.errors import StopRequested
from asgkit.launch import train
from asgkit.learning.optimiser import RoleOptimiser

path, mode, config = sys.argv[1], sys.argv[2], from_dict(json.loads(sys.argv[3]))
apply, done = RoleOptimiser.apply, []

def dying_apply(self, stats):
    apply(self, stats)
    done.append(self.role)
    if done.count("proposer") == int(mode.partition(":")[2]):
        os.kill(os.getpid(), signal.SIGKILL)  # weights of one role have moved, those of the other have not

def progress(step, records):
    print("step", step, flush=True)
    while mode == "wait" and step == 5 and not os.path.exists(path + ".sent"):
        time.sleep(0.02)  # the test sends its signal now

if mode.startswith("kill:"):
    RoleOptimiser.apply = dying_apply
try:
    train(config, path, progress=progress)
except StopRequested as reason:
    print("stopped by", reason, flush=True)
    sys.exit(3)
"""


@contextmanager
def child(config, path: Path, mode: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-W", "error", "-c", CHILD, str(path), mode, json.dumps(config.model_dump())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        try:
            yield process
        finally:
            process.kill()  # a failed assertion must not leave it running


def test_kill_and_resume_equals_an_uninterrupted_run(config, reference, tmp_path):
    path = tmp_path / "run"
    with child(config, path, "kill:4") as process:  # the Proposer's fourth update: step 6, two after a checkpoint
        out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert out.split("\n")[-2] == "step 5"
    status = json.loads((path / "status.json").read_text())
    assert (status["state"], status["step"]) == ("running", 5)
    with (path / "log.jsonl").open("a") as log:
        log.write('{"step": 6, "phase": "U", "ra')  # what a kill inside a write leaves
    assert_equal_runs(train(config, path, resume=True).path, reference)


def test_sigterm_stops_safely_and_resumes_exactly(config, reference, tmp_path):
    path = tmp_path / "run"
    with child(config, path, "wait") as process:
        assert [process.stdout.readline().split()[-1] for _ in range(5)] == ["1", "2", "3", "4", "5"]
        process.send_signal(signal.SIGTERM)
        Path(f"{path}.sent").touch()
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (3, "stopped by SIGTERM\n")
    status = json.loads((path / "status.json").read_text())
    assert (status["state"], status["step"], status["message"]) == ("stopped", 5, "SIGTERM")
    assert_equal_runs(train(config, path, resume=True).path, reference)
    assert json.loads((path / "status.json").read_text())["state"] == "finished"


def test_a_run_that_died_before_its_first_checkpoint_starts_again(config, reference, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    shutil.rmtree(path / "checkpoints")
    (path / "checkpoints").mkdir()
    assert_equal_runs(train(config, path, resume=True).path, reference)


# -- a checkpoint that is damaged ----------------------------------------------------------------------------------
@pytest.mark.parametrize("victim", ["state.safetensors", "solver/adapter.safetensors", "manifest.json"])
def test_a_corrupt_checkpoint_is_passed_over(config, reference, tmp_path, caplog, victim):
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    file = path / f"checkpoints/step_{WHOLE:06d}" / victim
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if victim != "manifest.json" else content[: len(content) // 2])
    with caplog.at_level(logging.WARNING):
        assert_equal_runs(train(config, path, resume=True).path, reference)
    assert f"using step {HALF}" in caplog.text


def test_more_steps_may_be_added_later(pool_folder, reference, tmp_path):
    path = tmp_path / "run"
    train(small_config(pool_folder, CHANGES | {"schedule.steps": HALF}), path)
    assert_equal_runs(train(small_config(pool_folder, CHANGES), path, resume=True).path, reference)


def test_a_finished_run_is_left_alone(config, reference, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(reference, path)
    before = (path / "log.jsonl").read_bytes()
    train(config, path, resume=True)
    assert (path / "log.jsonl").read_bytes() == before
    assert RunDirectory(path).newest_valid_checkpoint().step == WHOLE


def test_no_file_of_a_run_is_a_pickle(reference):
    suffixes = {p.suffix for p in reference.rglob("*") if p.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jsonl", ".yaml", ".sha256", ".png"}


# -- numbers that are not finite -----------------------------------------------------------------------------------
def poison_gradient(trainer, role: str) -> None:
    trainer.backbone.role_parameters(role)[-1].register_hook(lambda grad: grad * float("nan"))


def poison_logits(trainer, word: int) -> None:
    trainer.backbone.network.word_head.bias.data[word] = float("nan")


def nan_reward(*args, **settings):
    return float("nan")


def nan_rewards(vote, **settings):
    return [float("nan")] * len(vote.answers)


@pytest.mark.parametrize("source", ["proposer reward", "solver reward", "proposer gradient", "solver gradient",
                                    "logits"])
def test_a_bad_understanding_step_is_skipped_counted_and_dumped(pool_folder, tmp_path, monkeypatch, source):
    changes = {"solver.update": "reinforce"}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    if source == "proposer reward":
        monkeypatch.setattr(rewards_module, "proposer_reward", nan_reward)
    elif source == "solver reward":
        monkeypatch.setattr(rewards_module, "solver_rewards", nan_rewards)
    elif source == "logits":
        poison_logits(trainer, word=3)
    else:
        poison_gradient(trainer, source.split()[0])
    check_bad_step(trainer, expected=source.split()[-1])


@pytest.mark.parametrize("source", ["reward", "gradient"])
def test_a_bad_generation_step_is_skipped_counted_and_dumped(pool_folder, tmp_path, monkeypatch, source):
    trainer = open_trainer(small_config(pool_folder, {"schedule.understanding": 0}), tmp_path / "run")
    if source == "reward":
        own = rounds_module.score_candidates

        def spoiled(*args, **settings):
            scores = own(*args, **settings)
            scores.reward[0, 0] = float("nan")
            return scores

        monkeypatch.setattr(rounds_module, "score_candidates", spoiled)
    else:
        poison_gradient(trainer, "generator")
    check_bad_step(trainer, expected=source)


def states_of(recipe) -> dict:
    """What the recipe remembers; a skipped step must leave it as it was."""
    return {name: {key: str(value) for key, value in memory.state_dict().items()}
            for name, memory in recipe.memories.items()}


def check_bad_step(trainer, expected: str) -> None:
    before, memories = weights(trainer.backbone), states_of(trainer.recipe)
    assert trainer.train_step() == []
    assert moved(before, trainer.backbone) == set() and states_of(trainer.recipe) == memories
    assert trainer.guard.total == 1 and len(trainer.guard.streak) == 1
    dump = json.loads((trainer.run.path / "bad_batches/step_000001.json").read_text())
    words = {"reward": "reward", "gradient": "grad_norm", "logits": "logp"}
    assert words[expected] in dump["reason"] and len(dump["batch"]["images"]) == 3


def test_one_bad_step_costs_one_step(pool_folder, tmp_path, monkeypatch):
    config = small_config(pool_folder)
    trainer = open_trainer(config, tmp_path / "run")
    own, calls = rewards_module.proposer_reward, []

    def once(*args, **settings):
        calls.append(1)
        return float("nan") if len(calls) == 1 else own(*args, **settings)

    monkeypatch.setattr(rewards_module, "proposer_reward", once)
    trainer.fit()
    steps = {json.loads(line)["step"] for line in trainer.run.log_path.read_text().splitlines()}
    assert steps == {2, 3, 4, 5} and trainer.guard.total == 1 and trainer.guard.streak == []
    assert load_checkpoint(trainer.run.path / "checkpoints/step_000005").values["memories"]["guard"]["total"] == 1


def test_a_streak_of_bad_steps_ends_the_run_and_says_why(pool_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards_module, "proposer_reward", nan_reward)
    config = small_config(pool_folder, {"max_bad_steps": 2, "schedule.generation": 0})
    with pytest.raises(TrainingAborted, match="3 updates in a row were skipped.*proposer/rewards"):
        train(config, tmp_path / "run")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and "lower the learning rate" in status["message"]
    assert len(list((tmp_path / "run/bad_batches").iterdir())) == 3
