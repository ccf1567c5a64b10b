"""Frozen weights cut over two processes that work in lock step: the run of one process, with less memory."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from loops import small_config
from torch import nn
from torch.distributed.tensor import DTensor

from asgkit.backbones import ROLES
from asgkit.config import Config
from asgkit.errors import StopRequested
from asgkit.launch import open_backbone, train
from asgkit.scale.lock_step import SharedStop, repeated_layers, shard_frozen
from asgkit.scale.team import LockStep, Team


def test_repeated_layers_are_those_of_the_outermost_lists():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]))
    model = nn.ModuleDict({"layers": nn.ModuleList([inner, nn.Sequential(nn.Linear(2, 2))]), "head": nn.Linear(2, 2),
                           "mixed": nn.ModuleList([nn.Linear(2, 2), nn.ReLU()]), "one": nn.ModuleList([nn.ReLU()])})
    assert list(repeated_layers(model)) == list(model["layers"])


def _member(rank: int, folder: Path, configs: dict[str, Config]) -> None:
    """One of two gloo processes, as a launcher would start it."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=(folder / "meeting").as_uri(), rank=rank, world_size=2)
    found: dict[str, object] = {}
    team = Team.join("cpu", lock_step=True)
    found["team"] = [isinstance(team, LockStep), team.rank, team.size, team.first, team.gather([rank])]
    for name, config in configs.items():
        train(config, folder / name)
        found[name] = _cut(config)
    found["stop"] = _stopped(rank)
    found["nothing to cut"] = _refused()
    (folder / f"found_{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _cut(config: Config) -> list[float]:
    """Share of the frozen numbers that this process keeps, and that of the adapters."""
    backbone = open_backbone(config)
    own = {id(p) for role in ROLES for p in backbone.role_parameters(role)}
    total = sum(p.numel() for p in backbone.network.parameters() if id(p) not in own)
    shard_frozen(backbone.network, {p for role in ROLES for p in backbone.role_parameters(role)}, "cpu")
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel()
               for p in backbone.network.parameters() if id(p) not in own)
    whole = all(not isinstance(p, DTensor) for role in ROLES for p in backbone.role_parameters(role))
    return [held / total, whole]


def _stopped(rank: int) -> str:
    stop = SharedStop()
    stop.check()
    if rank == 1:
        stop.request("SIGTERM")
    try:
        stop.check()
    except StopRequested as error:
        return str(error)
    return "went on"


def _refused() -> str:
    try:
        shard_frozen(nn.Linear(2, 2), set(), "cpu")
    except ValueError as error:
        return str(error)
    return "accepted"


@pytest.fixture(scope="module")
def lock_step(pool_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lock_step")
    configs = {name: small_config(pool_folder, {"backbone": name, "schedule.images": 2, "shard_weights": True})
               for name in ("tiny-ar", "tiny-flow")}
    context = mp.spawn(_member, (folder, configs), nprocs=2, join=False)
    end = time.monotonic() + 240
    while not context.join(timeout=1.0):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail("two processes in lock step still wait for each other after 240 s")
    alone = {}
    for name, config in configs.items():
        alone[name] = train(config.model_copy(update={"shard_weights": False}), folder / f"{name}-alone")
    return folder, [json.loads((folder / f"found_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-ar", "tiny-flow"])
def test_the_run_of_two_processes_is_that_of_one(lock_step, name):
    folder, _ = lock_step
    found, wanted = ((folder / run / "log.jsonl").read_text().splitlines() for run in (name, f"{name}-alone"))
    assert len(found) == len(wanted) == 10
    for a, b in zip(map(json.loads, found), map(json.loads, wanted), strict=True):
        numbers = {k for k, v in b.items() if isinstance(v, float)}
        assert {k: a[k] for k in numbers} == pytest.approx({k: b[k] for k in numbers}, rel=1e-5, abs=1e-6)
        assert a["questions"] == b["questions"] and a["image"] == b["image"]


@pytest.mark.slow
def test_each_process_keeps_half_of_the_layers_and_all_adapters(lock_step):
    for found in lock_step[1]:
        for name in ("tiny-ar", "tiny-flow"):
            share, whole = found[name]
            assert 0.5 <= share < 0.75 and whole


@pytest.mark.slow
def test_both_are_one_rank_to_the_data_and_one_of_them_writes(lock_step):
    first, second = lock_step[1]
    assert first["team"] == [True, 0, 1, True, [0]] and second["team"] == [True, 0, 1, False, [1]]


@pytest.mark.slow
def test_a_stop_of_one_stops_both(lock_step):
    first, second = lock_step[1]
    assert first["stop"] == "stop requested of another process" and second["stop"] == "SIGTERM"


@pytest.mark.slow
def test_a_network_without_repeated_layers_is_refused(lock_step):
    assert "set shard_weights=false" in lock_step[1][0]["nothing to cut"]
