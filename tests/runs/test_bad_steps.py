"""Bad steps: found, dumped, counted."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asgkit.errors import NonFiniteValue, TrainingAborted
from asgkit.runs.bad_steps import BadStepGuard


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), torch.tensor([1.0, float("inf")]),
                                   torch.tensor(float("nan")), torch.tensor([float("nan")]).bfloat16()])
def test_non_finite_values_are_found_and_named(value):
    with pytest.raises(NonFiniteValue, match="solver/loss") as caught:
        BadStepGuard.check_finite("solver/loss", value)
    assert caught.value.name == "solver/loss"


@pytest.mark.parametrize("value", [0.0, -3, torch.zeros(0), torch.tensor([1, 2]), torch.ones(2, 3)])
def test_finite_values_pass(value):
    BadStepGuard.check_finite("x", value)


def test_a_skip_dumps_the_batch_with_its_nan(tmp_path):
    ids = torch.arange(6).reshape(2, 3)
    batch = {"loss": float("nan"), "ids": ids, "nested": {"rows": [ids[0], np.array([1.0, np.inf])]},
             "question": "how many?", "count": np.int64(3)}
    path = BadStepGuard().skipped(12, "solver/loss is NaN", batch, tmp_path)
    assert path == tmp_path / "bad_batches" / "step_000012.json"
    text = json.loads(path.read_text())
    assert (text["step"], text["reason"]) == (12, "solver/loss is NaN")
    assert text["batch"]["loss"] == "nan" and text["batch"]["count"] == 3
    tensors = load_file(path.with_suffix(".safetensors"))
    assert set(tensors) == {"batch/ids", "batch/nested/rows/0", "batch/nested/rows/1"}
    assert torch.equal(tensors["batch/ids"], ids)
    assert tensors["batch/nested/rows/1"][1] == float("inf")
    assert text["batch"]["ids"] == {"tensor": "batch/ids", "shape": [2, 3], "dtype": "torch.int64"}


def test_two_skips_of_one_step_keep_both_dumps(tmp_path):
    guard = BadStepGuard()
    names = [guard.skipped(1, "x", {"a": i}, tmp_path).name for i in range(2)]
    assert names == ["step_000001.json", "step_000001_2.json"]


def test_an_undumpable_batch_names_its_key(tmp_path):
    with pytest.raises(TypeError, match="batch/model"):
        BadStepGuard().skipped(1, "x", {"model": object()}, tmp_path)


def test_a_streak_over_the_limit_aborts_and_ok_resets_it(tmp_path):
    guard = BadStepGuard(limit=2)
    for step in (1, 2):
        guard.skipped(step, "loss is NaN", {}, tmp_path)
    guard.ok()
    for step in (3, 4):
        guard.skipped(step, "loss is NaN", {}, tmp_path)
    with pytest.raises(TrainingAborted, match="learning rate") as caught:
        guard.skipped(5, "loss is NaN", {}, tmp_path)
    assert all(f"bad_batches/step_00000{n}.json" in str(caught.value) for n in (3, 4, 5))
    assert "step_000002" not in str(caught.value)
    assert guard.total == 5


def test_the_streak_survives_a_checkpoint(tmp_path):
    guard, other = BadStepGuard(limit=1), BadStepGuard(limit=1)
    guard.skipped(1, "x", {}, tmp_path)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    with pytest.raises(TrainingAborted):
        other.skipped(2, "x", {}, tmp_path)
