"""Device and precision, chosen once, with the reason."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Device:
    """Where and how to compute; `reason` is what to print."""

    name: str
    precision: str
    reason: str


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere bf16 is emulated and slow."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """Pick `cuda` when there is one and bf16 where the hardware has it; explicit choices are obeyed or refused.

    Adapters, entropies and log-probabilities stay fp32 either way. Raises RuntimeError for device=cuda without CUDA.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise RuntimeError("device=cuda, but torch sees no CUDA device; use device=auto or device=cpu")
    name = ("cuda" if cuda else "cpu") if device == "auto" else device
    native = torch.cuda.is_bf16_supported() if name == "cuda" else _cpu_has_bf16()
    chosen = ("bf16" if native else "fp32") if precision == "auto" else precision
    where = {("auto", "cuda"): "a CUDA device is present", ("auto", "cpu"): "no CUDA device"}.get((device, name),
                                                                                                  f"device={device}")
    how = f"precision={precision}" if precision != "auto" else ("native bf16" if native else "no native bf16")
    return Device(name, chosen, f"{name}, {chosen} compute with fp32 adapters ({where}; {how})")


def make_deterministic() -> None:
    """Ask torch for deterministic kernels; a few CUDA kernels then raise instead of varying.

    cuBLAS is deterministic only with a workspace of fixed size, and torch refuses to multiply without one.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=False)
