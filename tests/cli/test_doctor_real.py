"""What a real backbone needs: counts by hand on a small network, the published sizes, files, and the command."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from asgkit.backbones.base import REAL, ROLES
from asgkit.cli import doctor_real
from asgkit.cli.app import app
from asgkit.cli.doctor_real import count_adapter, count_parameters, measure_needs

# Billions, by first words of the parts' names (spec: backbones 1; Janus-Pro: SigLIP, Llama and VQ of its config).
PUBLISHED = {
    "janus": {"": 7.42, "model.vision_model": 0.304, "model.vqmodel": 0.072},
    "blip3o": {"network.vlm": 8.292, ("network.dit", "network.caption_projection"): 1.365, "eva": 4.4,
               ("decoder.unet", "decoder.vae"): 2.6},
    "bagel": {"": 14.7, "vit_model": 0.403, "autoencoder": 0.084},
    "vargpt": {"qwen": 8.291, "vargpt_gen": 2.205, "vae_local": 0.110},
}
SOURCES = {"janus": "Janus-Pro-7B", "blip3o": "BLIP3o-Model-8B", "bagel": "BAGEL-7B-MoT", "vargpt": "VARGPT-v1.1"}


@pytest.fixture(scope="module")
def needs():
    return {name: measure_needs(name) for name in REAL}


def asgkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


class Small(nn.Module):
    """One layer of three linear maps, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"q": nn.Linear(4, 6), "up": nn.Linear(6, 10, bias=False),
                                                    "norm": nn.LayerNorm(6)})])
        self.head = nn.Linear(6, 3)


# -- by hand -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("target", "rank", "expected"), [
    (r"layers\.\d+\.q", 2, 2 * (4 + 6)),
    (r"layers\.\d+\.(q|up)", 2, 2 * (4 + 6) + 2 * (6 + 10)),
    (r"layers\.\d+\.q|head", 3, 3 * (4 + 6) + 3 * (6 + 3)),
    (r"layers\.\d+\.norm", 2, 0),  # no linear map
    (r"q", 2, 0),  # a suffix is no full name
])
def test_numbers_of_an_adapter(target, rank, expected):
    assert count_adapter(Small(), target, rank) == expected
    assert count_adapter(nn.ModuleDict({"network": Small(), "other": nn.Linear(2, 2)}), target, rank) == expected


def test_parameters_are_grouped_by_part_and_tied_ones_count_once():
    network = Small()
    network.twin = network.head
    assert count_parameters(network) == {"layers.0": (4 * 6 + 6) + 6 * 10 + 2 * 6, "head": 6 * 3 + 3}


# -- the real ones -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REAL)
def test_published_sizes_within_three_percent(needs, name):
    counts = needs[name].parameters
    for part, expected in PUBLISHED[name].items():
        found = sum(count for own, count in counts.items() if own.startswith(part))
        assert found / 1e9 == pytest.approx(expected, rel=0.03), part


@pytest.mark.parametrize("name", REAL)
def test_full_size_networks_take_no_memory(name):
    network = import_module(f"asgkit.backbones.{name}").full_size()
    assert {p.device.type for p in network.parameters()} == {"meta"}


@pytest.mark.parametrize("name", ["blip3o", "vargpt", "bagel"])
def test_a_reader_of_28_layers_of_qwen_7b_has_40_million_numbers(needs, name):
    # rank x (in + out) of q, k, v, o, gate, up, down; 28 layers of width 3584, 4 heads of keys of 128, MLP 18944
    sides = [3584 + 3584, 3584 + 512, 3584 + 512, 3584 + 3584, *[3584 + 18944] * 3]
    assert needs[name].adapters["proposer"] == needs[name].adapters["solver"] == 16 * 28 * sum(sides)
    assert 16 * 28 * sum(sides) == pytest.approx(40.4e6, rel=0.01)


@pytest.mark.parametrize("name", REAL)
def test_every_role_adapts_something(needs, name):
    assert set(needs[name].adapters) == set(ROLES) and min(needs[name].adapters.values()) > 10e6
    reader, generator = needs[name].adapters["solver"], needs[name].adapters["generator"]
    assert generator == reader if name == "bagel" else generator > reader  # BAGEL's two halves are alike


def test_memory_is_weights_adapters_and_optimisers(needs):
    found = needs["bagel"]
    weights, trained = 2 * sum(found.parameters.values()), sum(found.adapters.values())
    assert found.inference_gb == pytest.approx((weights + 4 * trained) / 1e9)
    assert found.training_gb == pytest.approx((weights + (4 + 4 + 4 + 4) * trained) / 1e9)
    assert 29 < found.inference_gb < 30.5  # 29 GB of bf16 weights (spec: backbones 1.2)


def test_a_higher_rank_is_a_larger_adapter(needs):
    assert measure_needs("janus", rank=32).adapters["solver"] == 2 * needs["janus"].adapters["solver"]


def test_no_gpu_is_needed(needs):
    row = dict(doctor_real.rows(needs["vargpt"]))["this machine"]
    assert row.startswith("one GPU of" if torch.cuda.is_available() else "no CUDA device: use base=random")


@pytest.mark.parametrize(("room", "verdict"), [(40.0, "trains on it"), (34.0, "training may not fit"),
                                               (24.0, "too small for one")])
def test_the_verdict_on_a_machine(needs, room, verdict):
    found = dict(doctor_real.rows(doctor_real.Needs(**{**vars(needs["bagel"]), "device_gb": room})))
    assert verdict in found["this machine"]


# -- files ---------------------------------------------------------------------------------------------------------
def test_files_are_missing_only_of_a_named_folder(needs, tmp_path: Path):
    assert needs["bagel"].missing == [] and {there for _, there in needs["bagel"].files.values()} == {None}
    (tmp_path / "llm_config.json").touch()
    found = measure_needs("bagel", tmp_path)
    assert "llm_config.json" not in found.missing and {"ema.safetensors", "ae.safetensors"} <= set(found.missing)


def test_optional_files_are_absent_but_not_missing(tmp_path: Path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model-00001.safetensors"):
        (tmp_path / name).touch()
    found = measure_needs("blip3o", tmp_path)
    assert found.missing == []
    rows = dict(doctor_real.rows(found))
    assert rows["model*.safetensors"].startswith("there: ")
    assert rows["eva_clip_vision_tower/pytorch_model.bin"].startswith("absent: optional")


def test_an_unknown_name_raises():
    with pytest.raises(ValueError, match="no real backbone 'tiny-ar'; there are janus, blip3o, bagel, vargpt"):
        measure_needs("tiny-ar")


# -- the command ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REAL)
def test_the_command_shows_needs_and_exits_cleanly(name):
    result = asgkit("doctor", "--backbone", name)
    assert result.exit_code == 0, result.output
    for text in ("parameters, all", "generator adapter, rank 16", "memory to train", SOURCES[name],
                 f"backbone={name} base=weights/{name}"):
        assert text in result.output


def test_the_command_as_json(needs):
    result = asgkit("doctor", "--backbone", "bagel", "--json")
    found = json.loads(result.output)
    assert result.exit_code == 0 and found["missing"] == [] and found["rank"] == 16
    assert sum(found["parameters"].values()) == sum(needs["bagel"].parameters.values())
    assert found["adapters"] == needs["bagel"].adapters and found["files"]["ae.safetensors"][1] is None


def test_the_command_lists_missing_files_of_a_folder(tmp_path: Path):
    result = asgkit("doctor", "--backbone", "janus", "--base", str(tmp_path))
    assert result.exit_code == 1 and "MISSING: " in result.output and "tokenizer.json" in result.output
    plain = asgkit("doctor", "--backbone", "janus", "--base", str(tmp_path), "--json")
    assert plain.exit_code == 1 and "config.json" in json.loads(plain.output)["missing"]
    for name in json.loads(plain.output)["missing"]:
        (tmp_path / name.replace("*", "model")).touch()
    assert asgkit("doctor", "--backbone", "janus", "--base", str(tmp_path)).exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (("--backbone", "tiny-ar"), "no real backbone 'tiny-ar'"),
    (("--base", "weights"), "go with --backbone"),
    (("--rank", "4"), "go with --backbone"),
])
def test_the_command_refuses_what_it_does_not_know(arguments, message):
    result = asgkit("doctor", *arguments)
    assert result.exit_code == 2 and message in result.output
