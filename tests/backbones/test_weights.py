"""Every tensor of a checkpoint is accounted for."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from asgkit.backbones.weights import UnmatchedTensors, fill, require_files, stream


def _pair() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    module.register_buffer("ghost", torch.zeros(4), persistent=False)
    return module


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(t, i + 1) for i, (name, t) in enumerate(module.state_dict().items())}


def test_every_tensor_is_copied_and_counted():
    module = _pair()
    given = _tensors(module)
    assert fill(module, given.items()) == 7  # weight and bias twice, two running statistics and a counter
    assert all(torch.equal(t, given[name]) for name, t in module.state_dict().items())


def test_names_are_translated_and_other_parts_left_out():
    module = _pair()
    given = {f"part.{name}": t for name, t in _tensors(module).items()} | {"other.weight": torch.ones(1)}
    rename = lambda name: name.removeprefix("part.") if name.startswith("part.") else None
    assert fill(module, given.items(), rename) == 7


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop("0.bias"), "1 missing: 0.bias"),
    (lambda t: t.update(extra=torch.ones(2)), "1 unexpected: extra"),
    (lambda t: t.update({"0.bias": torch.ones(9)}), r"1 of another shape: 0.bias \(9,\) for \(3,\)"),
])
def test_whatever_does_not_fit_raises_by_name(change, message):
    module = _pair()
    given = _tensors(module)
    change(given)
    with pytest.raises(UnmatchedTensors, match=message):
        fill(module, given.items())


def test_tied_weights_are_given_by_one_name():
    module = nn.ModuleDict({"word": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    module["head"].weight = module["word"].weight
    assert fill(module, {"word.weight": torch.ones(5, 3)}.items()) == 1
    assert module["head"].weight.sum() == 15


def test_missing_files_are_listed_with_their_source(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="lacks b.json, .*safetensors: copy them from the hub"):
        require_files(tmp_path, ["a.json", "b.json", "*.safetensors"], "the hub")
    with pytest.raises(FileNotFoundError, match="base=random"):
        require_files(tmp_path / "none", [], "the hub")


def test_a_damaged_file_is_named(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "good.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    assert [name for name, _ in stream([tmp_path / "good.safetensors"])] == ["x"]
    with pytest.raises(SafetensorError, match="bad.safetensors"):
        list(stream([tmp_path / "bad.safetensors"]))
