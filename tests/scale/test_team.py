"""Invariants of scale: however a step's batch is cut (processes, shards, micro-batches, prefixes), it is one step."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loops import open_trainer, same, small_config, weights
from safetensors.torch import load_file, save_file

from asgkit.backbones import ROLES, base
from asgkit.backbones.tiny.understand import CHECKPOINTS
from asgkit.config import Config
from asgkit.errors import NonFiniteValue, StopRequested
from asgkit.launch import open_backbone, train
from asgkit.learning.objectives import Counts, Objective
from asgkit.learning.optimiser import RoleOptimiser
from asgkit.pool.folder import ImagePool
from asgkit.recipes import rewards as rewards_module
from asgkit.runs.directory import ConfigChanged, RunDirectory, load_checkpoint
from asgkit.scale.shards import Shard, cut_shards
from asgkit.scale.team import Team
from asgkit.trainer import Trainer

READY = [name for name in base.BACKBONES if (CHECKPOINTS / f"{name}-clean.safetensors").is_file()]
LAUNCHERS = Path(base.__file__).parents[1] / "scale" / "launchers"
STEPS = 6  # U U G U U G
# Everything with a memory is switched on: dropout, momentum, an adaptive KL, replay, a warm-up.
MEMORY = {"schedule.understanding": 2, "schedule.generation": 1, "schedule.steps": STEPS, "checkpoint.every": 3,
          "lora.dropout": 0.1, "kl.rate": 0.1, "replay.mix": 0.5, "replay.capacity": 4, "optimiser.warmup": 3,
          "solver.pseudo_label_share": 0.5, "pool.limit": 18}  # whole batches of 6, so none spans two epochs


def test_the_shipped_backbones_are_tested():
    assert "tiny-ar" in READY


# -- by hand -------------------------------------------------------------------------------------------------------
def test_shard_zero_has_the_streams_of_a_run_without_shards():
    assert Shard(7, 3, 0, []).rng(5, 1).random() == np.random.default_rng([7, 3, 5, 1]).random()
    assert Shard(7, 3, 0, []).number(2) == int(np.random.default_rng([7, 3, 2]).integers(2**31))


def test_no_two_streams_of_a_step_are_alike():
    streams = [(use,) for use in range(9)] + [(5, 1), (103,)]
    drawn = {Shard(0, 1, index, []).rng(*stream).random() for index in range(8) for stream in streams}
    assert len(drawn) == 8 * len(streams)


def test_ranks_and_shards_cut_one_order_of_images(pool_folder):
    whole = [item.index for item in ImagePool(pool_folder, size=24, seed=3).next_batch(12)]
    ranks = [ImagePool(pool_folder, size=24, seed=3, rank=r, world_size=2) for r in range(2)]
    shards = [cut_shards(pool.next_batch(6), 3, seed=3, step=1, first=2 * r) for r, pool in enumerate(ranks)]
    assert [shard.index for group in shards for shard in group] == [0, 1, 2, 3]
    assert [item.index for group in shards for shard in group for item in shard.items] == whole
    assert {pool.position for pool in ranks} == {12}


def test_a_process_alone_sends_nothing():
    team = Team.join()
    p = torch.nn.Parameter(torch.ones(2))
    team.sum_gradients([p])
    team.meet()
    assert (team.rank, team.size, team.first, p.grad) == (0, 1, True, None)
    assert team.gather([1, None]) == [1, None] and team.agree(lambda: 3) == 3
    with pytest.raises(NonFiniteValue, match="x is not finite: nan"), team:
        team.agree(lambda: (_ for _ in ()).throw(NonFiniteValue("x", "nan")))


def test_parts_weigh_by_their_rows_and_tokens(pool_folder):
    """Rows 1, 3 and tokens 6, 2: d/dw = (1/4 * 8 + 3/4 * 4) + beta * (6/8 * 2 + 2/8 * 10), not a mean of means."""
    w = torch.nn.Parameter(torch.tensor([1.0]))
    config = small_config(pool_folder, {"optimiser.clip": 100.0})
    role = RoleOptimiser(SimpleNamespace(role_parameters=lambda _: [w]), "solver", 0.1, config)
    total = Counts(4, 8, 4)
    parts = [(8.0, 2.0, 0.5, Counts(1, 6, 1)), (4.0, 10.0, 0.1, Counts(3, 2, 3))]
    shares = [role.accumulate(Objective((w * a).sum(), (w * k).sum(), h, 1.0), mine, total)
              for a, k, h, mine in parts]
    stats = role.finish(shares, Team())
    beta = config.kl.coefficient
    assert stats.policy_loss == pytest.approx(5.0) and stats.kl == pytest.approx(4.0)
    assert stats.loss == pytest.approx(5.0 + beta * 4.0) and stats.grad_norm == pytest.approx(5.0 + beta * 4.0)
    assert stats.entropy == pytest.approx(0.75 * 0.5 + 0.25 * 0.1) and stats.clip_fraction == pytest.approx(1.0)
    assert stats.applied and stats.kl_coefficient == beta


# -- one process, other cuts ---------------------------------------------------------------------------------------
@contextmanager
def recorded(folder: Path):
    """Every gradient that an optimiser steps with, as folder/NUMBER_ROLE.safetensors."""
    own, count = RoleOptimiser.apply, 0
    folder.mkdir(parents=True)

    def apply(self, stats):
        nonlocal count
        if stats.applied:
            count += 1
            found = {str(i): p.grad.clone() for i, p in enumerate(self.parameters) if p.grad is not None}
            save_file(found, folder / f"{count:02d}_{self.role}.safetensors")
        own(self, stats)

    RoleOptimiser.apply = apply
    try:
        yield
    finally:
        RoleOptimiser.apply = own


def assert_same_gradients(found: Path, wanted: Path, tolerance: float) -> set[str]:
    """Every file and tensor agrees, relative to the norm of the role's gradient; returns the roles seen."""
    names = sorted(p.name for p in wanted.iterdir())
    assert sorted(p.name for p in found.iterdir()) == names
    for name in names:
        a, b = load_file(found / name), load_file(wanted / name)
        assert a.keys() == b.keys()
        difference = sum(float((a[k] - b[k]).square().sum()) for k in b) ** 0.5
        size = sum(float(x.square().sum()) for x in b.values()) ** 0.5
        assert size > 0 and difference <= tolerance * size, name
    return {name[3:].removesuffix(".safetensors") for name in names}


def numbers(record: dict) -> dict[str, float]:
    """Losses, norms and other floats of a record."""
    return {k: v for k, v in record.items() if isinstance(v, float)}


def one_u_one_g(pool: Path, folder: Path, backbone: str, changes: dict, wrap=lambda b: b):
    config = small_config(pool, {"backbone": backbone, "schedule.understanding": 1, "schedule.generation": 1,
                                 "solver.pseudo_label_share": 0.5} | changes)
    trainer = open_trainer(config, folder / "run", wrap=wrap)
    with recorded(folder / "gradients"):
        return trainer.train_step() + trainer.train_step(), trainer


class Counting:
    """Counts the rows of every pass that carries a gradient."""

    def __init__(self, inner):
        self.inner, self.spec, self.rows = inner, inner.spec, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def text_stats(self, images, prompts, completions, *, grad=False, **settings):
        self.rows += [len(prompts)] if grad else []
        return self.inner.text_stats(images, prompts, completions, grad=grad, **settings)

    def generation_stats(self, prompts, codes, *, grad=False, **settings):
        self.rows += [len(prompts)] if grad else []
        return self.inner.generation_stats(prompts, codes, grad=grad, **settings)


@pytest.mark.parametrize(("backbone", "update", "size"), [(name, "sft", 1) for name in READY] + [
    ("tiny-ar", "reinforce", 4)])
def test_micro_batches_change_memory_and_nothing_else(pool_folder, tmp_path, backbone, update, size):
    def run(name: str, rows: int | None):
        changes = {"schedule.micro_batch": rows, "solver.update": update, "schedule.images": 2}
        return one_u_one_g(pool_folder, tmp_path / name, backbone, changes, Counting)

    (whole, at_once), (cut, in_parts) = run("whole", None), run("cut", size)
    assert len(at_once.backbone.rows) == 3 and max(at_once.backbone.rows) > 4  # one pass per role
    assert max(in_parts.backbone.rows) == size and sum(in_parts.backbone.rows) == sum(at_once.backbone.rows)
    assert assert_same_gradients(tmp_path / "cut/gradients", tmp_path / "whole/gradients", 2e-5) == set(ROLES)
    for a, b in zip(cut, whole, strict=True):
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-4, abs=3e-6) and a["questions"] == b["questions"]


class FreshPrefix:
    """Answers every row from a prefix of its own, and keeps the sampled ids."""

    def __init__(self, inner, shared: bool):
        self.inner, self.spec, self.shared, self.ids = inner, inner.spec, shared, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def prefix(self, images, *, role):
        return self.inner.prefix(images, role=role) if self.shared else SimpleNamespace(images=images, role=role)

    def answer(self, prefix, prompts, *, rows=None, **settings):
        if not self.shared:
            rows = range(len(prompts)) if rows is None else rows
            prefix, rows = self.inner.prefix([prefix.images[r] for r in rows], role=prefix.role), None
        found = self.inner.answer(prefix, prompts, rows=rows, **settings)
        self.ids.append(found.ids)
        return found


@pytest.mark.parametrize("backbone", READY)
def test_sharing_a_prefix_changes_nothing(pool_folder, tmp_path, backbone):
    shared, one = one_u_one_g(pool_folder, tmp_path / "on", backbone, {}, lambda b: FreshPrefix(b, True))
    apart, other = one_u_one_g(pool_folder, tmp_path / "off", backbone, {}, lambda b: FreshPrefix(b, False))
    assert len(one.backbone.ids) == 8 and same(one.backbone.ids, other.backbone.ids)
    norms = [{k: v for k, v in r.items() if k.endswith(("/loss", "grad_norm"))} for r in (*shared, *apart)]
    for a, b in zip(norms[: len(shared)], norms[len(shared) :], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5) and None not in a.values()


# -- two processes -------------------------------------------------------------------------------------------------
def member(rank: int, work: Callable, folder: Path, *arguments) -> None:
    """One of two gloo processes: join, do the work, leave."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a machine whose name resolves to nothing still has a loopback
    meeting = (folder / f"meeting_{work.__name__}").as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    work(Team(rank, 2), folder, *arguments)
    dist.destroy_process_group()


def pair(work: Callable, folder: Path, *arguments, seconds: float = 240.0) -> None:
    """Do `work(team, folder, *arguments)` in two processes; a hang fails the test instead of hanging it."""
    context = mp.spawn(member, (work, folder, *arguments), nprocs=2, join=False)
    end = time.monotonic() + seconds
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{work.__name__}: two processes still wait for each other after {seconds} s")


def open_member(config: Config, path: Path, team: Team, wrap=lambda b: b) -> Trainer:
    """A trainer of one process of a team, in a new or an existing run directory."""
    backbone = wrap(open_backbone(config))
    pool = ImagePool(config.pool.path, size=24, limit=config.pool.limit, seed=config.seed, rank=team.rank,
                     world_size=team.size)
    if team.first:
        RunDirectory.create(path, config.model_dump())
    team.meet()
    return Trainer(config, backbone, pool, RunDirectory(path), team=team)


def run_and_record(team: Team, folder: Path, config: Config, name: str) -> None:
    """A whole run; gradients, optimisers and memories of this process go beside it."""
    trainer = open_member(config, folder / name, team)
    with recorded(folder / f"{name}_gradients_{team.rank}"):
        trainer.fit()
    save_file({f"{role}/{k}": v for role, o in trainer.optimisers.items() for k, v in o.state()[0].items()},
              folder / f"{name}_adam_{team.rank}.safetensors")
    parts = trainer.parts().memories
    memory = {name: {k: v for k, v in part.state_dict().items() if k != "images"} for name, part in parts.items()} | {
        "kl": [o.kl.coefficient for o in trainer.optimisers.values()],
        "replayed": [sum(image.tobytes()) for image in trainer.recipe.replay.images]}
    (folder / f"{name}_memory_{team.rank}.json").write_text(json.dumps(memory))


@pytest.fixture(scope="module", params=READY)
def both(request, pool_folder, tmp_path_factory):
    """The same run twice: one process with two shards, two processes with one."""
    folder = tmp_path_factory.mktemp("both")
    changes = MEMORY | {"backbone": request.param}
    run_and_record(Team(), folder, small_config(pool_folder, changes | {"schedule.accumulate": 2}), "one")
    pair(run_and_record, folder, small_config(pool_folder, changes), "two")
    return folder


def log_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_doubled_batch(both):
    for rank in (0, 1):
        roles = assert_same_gradients(both / f"two_gradients_{rank}", both / "one_gradients_0", 1e-6)
        assert roles == set(ROLES)


@pytest.mark.slow
def test_two_processes_have_the_trajectory_of_one(both):
    one, two = log_of(both / "one"), log_of(both / "two")
    assert [r["step"] for r in two] == [step for step in range(1, STEPS + 1) for _ in range(6)]
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k not in numbers(a) and k != "rank"} \
            == {k: v for k, v in b.items() if k not in numbers(b) and k != "rank"}
        assert numbers(a) == pytest.approx(numbers(b), rel=1e-6, abs=2e-6)
    for role, phase in (("proposer", "U"), ("solver", "U"), ("generator", "G")):
        rows = [r for r in two if r["phase"] == phase]
        assert all(r[f"{role}/grad_norm"] > 0 and r[f"{role}/loss"] is not None for r in rows)


@pytest.mark.slow
def test_ranks_see_other_images_and_all_reach_the_log(both):
    for step in range(1, STEPS + 1):
        records = [r for r in log_of(both / "two") if r["step"] == step]
        assert [r["rank"] for r in records] == [0, 0, 0, 1, 1, 1]
        assert len({r["image_index"] for r in records}) == 6
    assert any(r["image"].startswith("replay/") for r in log_of(both / "two"))
    assert {r["rank"] for r in log_of(both / "one")} == {0}


@pytest.mark.slow
def test_optimisers_and_memories_are_the_same_on_every_rank(both):
    first, second, alone = (load_file(both / f"{n}_adam_{r}.safetensors") for n, r in (("two", 0), ("two", 1),
                                                                                      ("one", 0)))
    assert first.keys() == alone.keys() and all(torch.equal(first[k], second[k]) for k in second)
    assert all(torch.allclose(first[k], alone[k], rtol=1e-5, atol=1e-9) for k in alone)
    first, second, alone = ((both / f"{n}_memory_{r}.json").read_text() for n, r in (("two", 0), ("two", 1),
                                                                                    ("one", 0)))
    assert first == second
    first, alone = json.loads(first), json.loads(alone)
    assert first["pool"]["position"] == 6 * STEPS and first["replayed"] == alone["replayed"] != []
    assert len(first["window"]["values"]) > 24 and first["kl"][0] != 0.05
    for part, name in (("window", "values"), ("baseline", "value"), ("target", "mu"), ("replay", "pushed")):
        assert first[part][name] == pytest.approx(alone[part][name], rel=1e-6)
    assert first["kl"] == pytest.approx(alone["kl"], rel=1e-6) and first["tokens"] == alone["tokens"]


# -- trouble on one rank -------------------------------------------------------------------------------------------
class Silent:
    """A Proposer without a readable question: nothing to solve, nothing to learn."""

    def __init__(self, inner):
        self.inner, self.spec = inner, inner.spec

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def answer(self, prefix, prompts, **settings):
        found = self.inner.answer(prefix, prompts, **settings)
        found.texts[:] = ["red"] * len(prompts)
        return found


def spoil(trainer: Trainer, step: int, what: str) -> None:
    """On step `step` of this rank: a NaN gradient, a NaN reward, or a request to stop."""
    own, prefix = rewards_module.proposer_reward, trainer.backbone.prefix

    def reward(*arguments, **settings):
        return float("nan") if trainer.step == step else own(*arguments, **settings)

    def asked(images, *, role):
        if trainer.step == step and role == "solver":
            trainer.stop.request("SIGTERM")
        return prefix(images, role=role)

    if what == "reward":
        rewards_module.proposer_reward = reward
    elif what == "stop":
        trainer.backbone.prefix = asked
    else:
        trainer.backbone.role_parameters("solver")[-1].register_hook(
            lambda g: g * float("nan") if trainer.step == step else g)


def troubles(team: Team, folder: Path, config: Config, longer: Config) -> None:
    """Four short runs; each process writes how they ended, and its weights at the end."""
    story = {}
    for what in ("gradient", "reward", "stop", "silent"):
        alone = team.rank == 1
        trainer = open_member(config, folder / what, team, Silent if what == "silent" and alone else lambda b: b)
        before, own = weights(trainer.backbone), rewards_module.proposer_reward
        if alone and what != "silent":
            spoil(trainer, 2, what)
        try:
            trainer.fit()
        except StopRequested as reason:
            story["reason"] = str(reason)
        rewards_module.proposer_reward = own
        after = {f"{role}/{i}": p for role, ps in weights(trainer.backbone).items() for i, p in enumerate(ps)}
        save_file(after, folder / f"{what}_{team.rank}.safetensors")
        still = [role for role in ROLES if same(before[role], weights(trainer.backbone)[role])]
        story[what] = [trainer.step, trainer.guard.total, still]
    story["sums"] = summed(team)
    train(config, folder / "resumed")
    train(longer, folder / "resumed", resume=True)
    (folder / f"story_{team.rank}.json").write_text(json.dumps(story))


def summed(team: Team) -> list:
    """Three tensors: a gradient on both ranks, on the second alone, on none."""
    p = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
    p[0].grad = torch.tensor([1.0, 2.0]) * (team.rank + 1)
    p[1].grad = torch.tensor([5.0, 6.0]) if team.rank == 1 else None
    team.sum_gradients(p)
    return [None if x.grad is None else x.grad.tolist() for x in p]


@pytest.fixture(scope="module")
def trouble(pool_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trouble")
    short = small_config(pool_folder, MEMORY | {"schedule.steps": 3})
    pair(troubles, folder, short, small_config(pool_folder, MEMORY))
    stories = [json.loads((folder / f"story_{rank}.json").read_text()) for rank in (0, 1)]
    assert stories[0] == stories[1]
    return folder, stories[0]


def equal_weights(folder: Path, what: str) -> bool:
    a, b = (load_file(folder / f"{what}_{rank}.safetensors") for rank in (0, 1))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gradient", "reward"])
def test_a_nan_on_one_rank_skips_the_step_on_all(trouble, what):
    folder, story = trouble
    assert story[what] == [3, 1, []] and equal_weights(folder, what)
    assert {(r["step"], r["rank"]) for r in log_of(folder / what)} == {(s, r) for s in (1, 3) for r in (0, 1)}
    dumps = [json.loads((folder / what / at / "bad_batches/step_000002.json").read_text()) for at in ("", "rank_1")]
    assert dumps[0]["reason"] == dumps[1]["reason"]
    words = {"gradient": "solver/grad_norm", "reward": "rank 1 met it"}
    assert words[what] in dumps[0]["reason"]
    assert len({*dumps[0]["batch"]["images"], *dumps[1]["batch"]["images"]}) == 6


@pytest.mark.slow
def test_a_stop_on_one_rank_stops_all_at_the_same_step(trouble):
    folder, story = trouble
    assert story["stop"][0] == 2 and story["reason"] == "SIGTERM" and equal_weights(folder, "stop")
    assert {r["step"] for r in log_of(folder / "stop")} == {1}


@pytest.mark.slow
def test_a_rank_with_nothing_to_learn_takes_part(trouble):
    folder, story = trouble
    assert story["silent"] == [3, 0, []] and equal_weights(folder, "silent")
    asked = [r for r in log_of(folder / "silent") if r["phase"] == "U"]
    assert {r["rank"] for r in asked if not any(r["questions/valid"])} == {1}
    assert all(r["proposer/applied"] and r["solver/applied"] for r in asked)


@pytest.mark.slow
def test_gradients_of_some_ranks_reach_all(trouble):
    assert trouble[1]["sums"] == [[3.0, 6.0], [5.0, 6.0], None]


# -- resume --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("both", ["tiny-ar"], indirect=True)
def test_two_processes_resume_to_the_run_that_was_never_stopped(trouble, both):
    folder, _ = trouble
    assert (folder / "resumed/log.jsonl").read_bytes() == (both / "two/log.jsonl").read_bytes()
    name = f"checkpoints/step_{STEPS:06d}"
    found, wanted = load_checkpoint(folder / "resumed" / name), load_checkpoint(both / "two" / name)
    assert [k for k, v in wanted.tensors.items() if not torch.equal(v, found.tensors[k])] == []
    assert found.values["shards"] == 2 and found.values["optimisers"] == wanted.values["optimisers"]


@pytest.mark.slow
def test_as_many_shards_resume_in_one_process_and_fewer_are_refused(trouble, pool_folder, tmp_path):
    folder, _ = trouble
    shutil.copytree(folder / "resumed", tmp_path / "run")
    with pytest.raises(ConfigChanged, match="from 2 shard.* not from 1: resume it with as many processes"):
        train(small_config(pool_folder, MEMORY), tmp_path / "run", resume=True)
    shutil.rmtree(tmp_path / f"run/checkpoints/step_{STEPS:06d}")
    config = small_config(pool_folder, MEMORY | {"schedule.accumulate": 2})
    pool = ImagePool(pool_folder, size=24, limit=config.pool.limit, seed=config.seed)
    trainer = Trainer(config, open_backbone(config), pool, RunDirectory(tmp_path / "run"))
    assert trainer.resume() and trainer.step == 3
    trainer.fit()
    for a, b in zip(log_of(tmp_path / "run"), log_of(folder / "resumed"), strict=True):
        assert a["image"] == b["image"] and numbers(a) == pytest.approx(numbers(b), rel=1e-6, abs=2e-6)


@pytest.mark.slow
def test_the_command_runs_under_a_launcher(pool_folder, tmp_path):
    run = [str(Path(sys.executable).parent / "asgkit"), "train", "--preset", "smoke", "--run", str(tmp_path / "run"),
           f"pool.path={pool_folder}", "schedule.steps=2", "schedule.images=2", "schedule.understanding=1",
           "schedule.generation=1", "device=cpu"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file",
                str(LAUNCHERS / "two_cpu_processes.yaml"), "--main_process_port", "0", "--no_python"]
    done = subprocess.run([*launcher, *run], capture_output=True, text=True, timeout=180,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(r["step"], r["rank"]) for r in log_of(tmp_path / "run")] == [(s, r) for s in (1, 2) for r in (0, 0, 1, 1)]
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("path", sorted(LAUNCHERS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_launch_file(path):
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(path))
    assert found.num_processes == {"one_gpu": 1, "eight_gpus": 8}.get(path.stem, 2) and not found.use_cpu
    assert str(found.distributed_type).endswith("NO" if path.stem == "one_gpu" else "MULTI_GPU")
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("# accelerate launch")]
    assert f"--config_file asgkit/scale/launchers/{path.name} --no_python asgkit train" in command
