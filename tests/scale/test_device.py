"""Device and precision: chosen once, with a reason; an impossible choice is refused."""

import os

import pytest
import torch

from asgkit.scale import device
from asgkit.scale.device import choose_device, make_deterministic


def machine(monkeypatch, *, cuda: bool, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(device, "_cpu_has_bf16", lambda: bf16)


@pytest.mark.parametrize("cuda, bf16, name, precision, reason", [
    (True, True, "cuda", "bf16", "a CUDA device is present; native bf16"),
    (True, False, "cuda", "fp32", "a CUDA device is present; no native bf16"),
    (False, True, "cpu", "bf16", "no CUDA device; native bf16"),
    (False, False, "cpu", "fp32", "no CUDA device; no native bf16"),
])
def test_auto_takes_the_best_that_is_there(monkeypatch, cuda, bf16, name, precision, reason):
    machine(monkeypatch, cuda=cuda, bf16=bf16)
    found = choose_device()
    assert (found.name, found.precision) == (name, precision)
    assert found.reason == f"{name}, {precision} compute with fp32 adapters ({reason})"


@pytest.mark.parametrize("cuda", [True, False])
def test_explicit_choices_are_obeyed(monkeypatch, cuda):
    machine(monkeypatch, cuda=cuda, bf16=True)
    found = choose_device("cpu", "fp32")
    assert (found.name, found.precision) == ("cpu", "fp32")
    assert "device=cpu; precision=fp32" in found.reason


def test_a_missing_gpu_is_said_not_replaced(monkeypatch):
    machine(monkeypatch, cuda=False, bf16=True)
    with pytest.raises(RuntimeError, match="device=cuda, but torch sees no CUDA device; use device=auto"):
        choose_device("cuda")


def test_bf16_is_read_from_the_processors_flags(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(device, "Path", lambda _: info)
    assert device._cpu_has_bf16() is False  # no such file: another system
    for flags, expected in [("flags : sse2 avx512_bf16", True), ("flags : amx_bf16 avx", True),
                            ("flags : sse2 avx512f", False), ("model name : bf16", False)]:
        info.write_text(f"processor : 0\n{flags}\n")
        assert device._cpu_has_bf16() is expected


def test_determinism_is_switched_on(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # without it every product on CUDA raises
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        make_deterministic()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the user's own choice stays
    finally:
        torch.use_deterministic_algorithms(before)
