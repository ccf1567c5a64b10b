"""The run directory: configuration, log, checkpoints and exact resume."""

import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_schema import record_of

import asgkit
from asgkit.recipes.asg_fields import FIELDS
from asgkit.runs.directory import (
    ConfigChanged,
    CorruptCheckpoint,
    RunDirectory,
    RunExists,
    StateMismatch,
    environment,
    load_checkpoint,
    optimizer_state,
    pack,
    read_log,
    restore_optimizer,
    restore_rng,
    rng_state,
    unpack,
)
from asgkit.runs.schema import SchemaError

CONFIG = {"seed": 3, "schedule": {"steps": 10, "cycle": [3, 2]}, "checkpoint": {"keep": 3}, "name": "é"}


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", CONFIG)


def write_roles(folder) -> None:
    (folder / "solver").mkdir()
    (folder / "solver" / "adapter.safetensors").write_bytes(b"weights")


def save(run: RunDirectory, step: int):
    tensors = {"x": torch.full((2,), float(step))}
    return run.save_checkpoint(step, write_roles, tensors, {"step_twice": 2 * step})


# configuration, environment, status

def test_the_configuration_is_written_sorted_and_hashed(run):
    text = (run.path / "config.yaml").read_text(encoding="utf-8")
    assert text.startswith("checkpoint:\n  keep: 3\nname: é\n")
    assert (run.path / "config.sha256").read_text() == f"{run.config_hash}  config.yaml\n"
    reordered = RunDirectory.create(run.path.parent / "other", dict(reversed(CONFIG.items())))
    assert reordered.config_hash == run.config_hash
    assert RunDirectory(run.path).config == CONFIG


def test_a_run_is_not_overwritten(run):
    with pytest.raises(RunExists, match="already holds a run"):
        RunDirectory.create(run.path, CONFIG)


def test_resume_may_lengthen_the_run_but_not_change_it(run):
    old_hash = run.config_hash
    longer = CONFIG | {"schedule": {"steps": 20, "cycle": [3, 2]}, "checkpoint": {"keep": 9, "every": 5}}
    resumed = RunDirectory.create(run.path, longer, resume=True)
    assert resumed.config["schedule"]["steps"] == 20 and resumed.config_hash != old_hash
    changed = {"seed": 4, "schedule": {"steps": 30, "cycle": [1, 1]}, "checkpoint": {}, "extra": 1}
    with pytest.raises(ConfigChanged) as caught:
        RunDirectory.create(run.path, changed, resume=True)
    message = str(caught.value)
    for word in ("seed: 3 -> 4", "schedule.cycle", "extra: '(absent)' -> 1", "name"):
        assert word in message
    assert "steps: " not in message and "keep" not in message
    assert RunDirectory(run.path).config == resumed.config


def test_two_stages_are_not_lengthened_since_their_border_would_move(tmp_path):
    staged = CONFIG | {"schedule": {"steps": 10, "order": "two_stage"}}
    RunDirectory.create(tmp_path / "staged", staged)
    longer = staged | {"schedule": {"steps": 20, "order": "two_stage"}}
    with pytest.raises(ConfigChanged, match="schedule.steps: 10 -> 20"):
        RunDirectory.create(tmp_path / "staged", longer, resume=True)


def test_resume_of_nothing_starts_a_run_and_opening_nothing_raises(tmp_path):
    assert RunDirectory.create(tmp_path / "new", CONFIG, resume=True).newest_valid_checkpoint() is None
    with pytest.raises(FileNotFoundError, match="asgkit train --run"):
        RunDirectory(tmp_path / "absent")


def test_the_environment_record_names_versions_but_no_place(run):
    text = (run.path / "environment.json").read_text()
    record = json.loads(text)
    assert record["versions"]["asgkit"] == asgkit.__version__
    assert record["versions"]["torch"] == torch.__version__ and record["threads"] == torch.get_num_threads()
    assert str(run.path.parent) not in text and '"/' not in text
    RunDirectory.create(run.path, CONFIG, resume=True, device="cuda:0")
    record = json.loads((run.path / "environment.json").read_text())
    assert [entry["device"] for entry in record["resumed"]] == ["cuda:0"]
    assert environment("cpu")["device"] == "cpu"


def test_status_and_metrics_are_strict_json(run):
    run.write_status("running", 3, 10, eta_s=12.5)
    status = json.loads((run.path / "status.json").read_text())
    assert status == {"state": "running", "step": 3, "total": 10, "eta_s": 12.5, "message": ""}
    with pytest.raises(ValueError):
        run.write_metrics({"accuracy": float("nan")})
    with pytest.raises(TypeError, match="strings"):
        run.write_metrics({"by_step": [{3: 0.5}]})
    assert not (run.path / "metrics.json").exists()


# the log

def test_records_are_checked_written_and_read_back(run):
    record = record_of("U") | {"question": "line\u2028separator \N{SNOWMAN}?", "proposer/reward": 0.1 + 0.2}
    run.append(record, FIELDS)
    run.append(record_of("G"), FIELDS)
    frame = read_log(run.path)
    assert len(frame) == 2 and list(frame["phase"]) == ["U", "G"]
    assert frame["question"][0] == record["question"] and frame["proposer/reward"][0] == 0.1 + 0.2
    assert frame["questions"][0] == record["questions"]
    with pytest.raises(SchemaError):
        run.append(record | {"proposer/reward": float("nan")}, FIELDS)
    assert len(read_log(run.log_path)) == 2


def test_the_order_of_keys_in_a_record_does_not_change_the_log(run):
    record = record_of("G")
    run.append(record, FIELDS)
    run.append(dict(reversed(record.items())), FIELDS)
    first, second = run.log_path.read_bytes().splitlines()
    assert first == second


def test_a_killed_run_leaves_a_log_that_resumes_bit_equal(run, tmp_path):
    whole = RunDirectory.create(tmp_path / "whole", CONFIG)
    for step in range(1, 7):
        whole.append(record_of("U") | {"step": step}, FIELDS)
        whole.append(record_of("U") | {"step": step, "rank": 1}, FIELDS)
    for step in range(1, 6):  # killed while step 5 was being written; the checkpoint is of step 3
        run.append(record_of("U") | {"step": step}, FIELDS)
        run.append(record_of("U") | {"step": step, "rank": 1}, FIELDS)
        run.append_timing(step, {"ask": 0.5})
    with run.log_path.open("ab") as stream:
        stream.write('{"step": 5, "question": "é'.encode()[:-1])
    run.truncate_log(3)
    for step in range(4, 7):
        run.append(record_of("U") | {"step": step}, FIELDS)
        run.append(record_of("U") | {"step": step, "rank": 1}, FIELDS)
    assert run.log_path.read_bytes() == whole.log_path.read_bytes()
    timings = [json.loads(line) for line in (run.path / "timings.jsonl").read_text().splitlines()]
    assert timings == [{"step": s, "timing_s/ask": 0.5} for s in (1, 2, 3)]


def test_a_torn_last_line_is_left_out_with_a_warning(run, caplog):
    run.append(record_of("U"), FIELDS)
    with run.log_path.open("a") as stream:
        stream.write('{"step": 9')
    with caplog.at_level(logging.WARNING):
        assert len(read_log(run.path)) == 1
    assert "torn line of 10 bytes" in caplog.text


# checkpoints

def test_a_checkpoint_reads_back_and_old_ones_are_pruned(run):
    for step in (1, 2, 3, 10, 100):
        save(run, step)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_000003", "step_000010", "step_000100"]
    found = run.newest_valid_checkpoint()
    assert (found.step, found.values) == (100, {"step_twice": 200})
    assert torch.equal(found.tensors["x"], torch.tensor([100.0, 100.0]))
    assert (found.path / "solver" / "adapter.safetensors").read_bytes() == b"weights"
    assert json.loads((found.path / "manifest.json").read_text())["config_hash"] == run.config_hash


def test_shared_storage_scalars_and_empty_states_are_saved(run):
    base = torch.arange(4.0)
    views = {"a": base, "b": base[1:3], "t": base[0], "c": base.view(2, 2).T}
    path = run.save_checkpoint(1, write_roles, views, {})
    tensors = load_checkpoint(path).tensors
    assert torch.equal(tensors["b"], base[1:3]) and tensors["t"].shape == ()
    assert torch.equal(tensors["c"], base.view(2, 2).T)
    assert load_checkpoint(run.save_checkpoint(2, write_roles, {}, {})).tensors == {}


def test_saving_a_step_again_replaces_it(run):
    save(run, 5)
    path = run.save_checkpoint(5, write_roles, {}, {"second": True})
    assert load_checkpoint(path).values == {"second": True}
    assert [p.name for p in run.checkpoints.iterdir()] == ["step_000005"]


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


DAMAGE = {
    "solver/adapter.safetensors is changed": lambda p: flip(p / "solver" / "adapter.safetensors"),
    "state.safetensors is changed": lambda p: flip(p / "state.safetensors"),
    "state.safetensors is changed ": lambda p: (p / "state.safetensors").write_bytes(b""),
    "state.json is missing": lambda p: (p / "state.json").unlink(),
    "solver/extra.bin is not in the manifest": lambda p: (p / "solver" / "extra.bin").write_bytes(b"x"),
    "manifest.json is missing or unreadable": lambda p: (p / "manifest.json").unlink(),
    "manifest.json is missing or unreadable ": lambda p: (p / "manifest.json").write_text('{"step": 2, "fi'),
    "manifest.json is missing or unreadable  ": lambda p: (p / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("says", DAMAGE)
def test_a_damaged_checkpoint_is_found_named_and_skipped(run, caplog, says):
    save(run, 1)
    newest = save(run, 2)
    DAMAGE[says](newest)
    with pytest.raises(CorruptCheckpoint, match=f"step_000002/{says.strip()}"):
        load_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        assert run.newest_valid_checkpoint().step == 1
    assert "1 corrupt" in caplog.text and says.strip() in caplog.text


def test_when_all_are_corrupt_there_is_none(run, caplog):
    flip(save(run, 1) / "state.safetensors")
    with caplog.at_level(logging.WARNING):
        assert run.newest_valid_checkpoint() is None
    assert "none is valid" in caplog.text


def test_a_kill_while_writing_leaves_the_last_whole_checkpoint(run):
    save(run, 1)

    def killed(folder) -> None:
        write_roles(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save_checkpoint(2, killed, {}, {})
    assert run.newest_valid_checkpoint().step == 1
    save(run, 3)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_000001", "step_000003"]


def test_a_role_that_pickles_is_refused(run):
    with pytest.raises(ValueError, match=r"adapter\.bin"):
        run.save_checkpoint(1, lambda folder: (folder / "adapter.bin").write_bytes(b"x"), {}, {})
    assert run.newest_valid_checkpoint() is None


def test_values_that_would_not_read_back_are_refused(run):
    for values, error in (({"x": float("inf")}, ValueError), ({"window": {3: 1}}, TypeError)):
        with pytest.raises(error):
            run.save_checkpoint(1, write_roles, {}, values)
    assert run.newest_valid_checkpoint() is None


def test_rewind_forgets_what_came_after(run):
    for step in (1, 2, 3):
        run.append(record_of("U") | {"step": step}, FIELDS)
        save(run, step)
    flip(run.checkpoints / "step_000003" / "state.json")
    run.rewind(run.newest_valid_checkpoint().step)
    assert list(read_log(run.path)["step"]) == [1, 2]
    assert [p.name for p in sorted(run.checkpoints.iterdir())] == ["step_000001", "step_000002"]


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        RunDirectory.create(tmp_path / "run", CONFIG, keep=0)


# optimisers and random generators

@given(st.dictionaries(st.text("ab/", min_size=1, max_size=4), st.integers(0, 9)))
def test_unpack_undoes_pack(names):
    tensors = {name: torch.tensor(value) for name, value in names.items()}
    both = pack("optimizer/solver", tensors) | pack("optimizer/solver2", tensors) | pack("rng", tensors)
    assert unpack("optimizer/solver", both) == tensors


def model_and_optimizer(amsgrad: bool = False):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    groups = [{"params": list(model[0].parameters()), "lr": 0.1}, {"params": list(model[1].parameters())}]
    return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), weight_decay=0.02, amsgrad=amsgrad)


def train(model, optimizer, steps: int, generator: torch.Generator) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(5, 3, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_n_steps_saved_and_n_more_equal_two_n_steps_bit_for_bit(run, amsgrad):
    whole, whole_optimizer = model_and_optimizer(amsgrad)
    train(whole, whole_optimizer, 8, torch.Generator().manual_seed(1))

    model, optimizer = model_and_optimizer(amsgrad)
    data = torch.Generator().manual_seed(1)
    train(model, optimizer, 4, data)
    weights, (tensors, values) = pack("model", model.state_dict()), optimizer_state(optimizer)
    rng_tensors, rng_values = rng_state({"data": data})
    everything = weights | pack("optimizer/solver", tensors) | pack("rng", rng_tensors)
    run.save_checkpoint(4, write_roles, everything, {"optimizer": values, "rng": rng_values})

    found = run.newest_valid_checkpoint()
    model, optimizer = model_and_optimizer(amsgrad)
    data = torch.Generator().manual_seed(99)
    model.load_state_dict(unpack("model", found.tensors))
    restore_optimizer(optimizer, unpack("optimizer/solver", found.tensors), found.values["optimizer"])
    restore_rng({"data": data}, unpack("rng", found.tensors), found.values["rng"])
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95) and optimizer.param_groups[0]["lr"] == 0.1
    train(model, optimizer, 4, data)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    ours, theirs = optimizer_state(optimizer), optimizer_state(whole_optimizer)
    assert ours[1] == theirs[1] and ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in ours[0])
    assert float(ours[0]["3/step"]) == 8


def test_without_the_optimiser_state_the_continuation_differs():
    """The equality above could fail: a fresh AdamW on the same weights and data goes elsewhere."""
    model, optimizer = model_and_optimizer()
    data = torch.Generator().manual_seed(1)
    train(model, optimizer, 4, data)
    other, fresh = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    twin = torch.Generator()
    twin.set_state(data.get_state())
    train(model, optimizer, 1, data)
    train(other, fresh, 1, twin)
    assert not torch.equal(model[0].weight, other[0].weight)


def test_a_restored_optimiser_does_not_write_into_the_checkpoint():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 1, torch.Generator())
    tensors, values = optimizer_state(optimizer)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    restore_optimizer(optimizer, tensors, values)
    train(model, optimizer, 2, torch.Generator())
    assert all(torch.equal(before[name], tensors[name]) for name in before)


def test_a_state_of_another_model_is_refused():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 1, torch.Generator())
    tensors, values = optimizer_state(optimizer)
    with pytest.raises(StateMismatch, match="groups of"):
        restore_optimizer(torch.optim.AdamW(model[0].parameters()), tensors, values)
    tensors["0/exp_avg"] = torch.zeros(5, 5)
    with pytest.raises(StateMismatch, match="0/exp_avg has shape"):
        restore_optimizer(optimizer, tensors, values)


def draw(generators) -> list:
    """One number from each source of randomness; gauss keeps a spare inside the state."""
    private = [torch.rand(1, generator=g).item() if isinstance(g, torch.Generator) else g.standard_normal()
               for g in generators.values()]
    return [random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(1).item(), *private]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), burn=st.integers(0, 3))
def test_every_random_source_continues_after_a_json_round_trip(seed, burn):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    kinds = (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
    generators = {kind.__name__: np.random.Generator(kind(seed)) for kind in kinds}
    generators |= {"noise": torch.Generator().manual_seed(seed)}
    for _ in range(burn):
        draw(generators)
    tensors, values = rng_state(generators)
    values = json.loads(json.dumps(values))
    expected = draw(generators)
    assert draw(generators) != expected
    restore_rng(generators, tensors, values)
    assert draw(generators) == expected


def test_generators_are_matched_by_name_and_kind():
    tensors, values = rng_state({"a": torch.Generator()})
    before = torch.get_rng_state()
    with pytest.raises(StateMismatch, match=r"\['a'\].*\['b'\]"):
        restore_rng({"b": torch.Generator()}, tensors, values)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(TypeError, match="give a torch or numpy Generator"):
        rng_state({"c": random.Random(0)})


def test_missing_cuda_devices_are_an_error_and_change_nothing():
    tensors, values = rng_state({})
    extra = {f"torch/cuda/{i}": torch.get_rng_state() for i in range(torch.cuda.device_count() + 1)}
    with pytest.raises(StateMismatch, match="CUDA"):
        restore_rng({}, tensors | extra, values)


def test_a_run_directory_can_be_moved(run, tmp_path):
    save(run, 1)
    shutil.move(run.path, tmp_path / "moved")
    assert RunDirectory(tmp_path / "moved").newest_valid_checkpoint().step == 1
