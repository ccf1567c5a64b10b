"""Batching and prefix reuse against one call per row: the same U and G step with both, in one process."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from asgkit.backbones.base import Answers, Backbone, Drawings, GenStats, NoiseSpec, Prefix, Role, TextStats
from asgkit.config import Config, resolve
from asgkit.launch import open_backbone
from asgkit.pool.open import open_pool
from asgkit.runs.directory import RunDirectory
from asgkit.scale.device import choose_device
from asgkit.trainer import Trainer

TARGETS = {"U": 4.0, "G": 3.0}  # speed-up that batching must reach on tiny-ar
NAMES = {"U": "understanding", "G": "generation"}


class NaiveBackbone:
    """The protocol with one call per row and nothing reused: how the released code calls its models.

    A prefix keeps the pictures alone and `answer` reads its picture again for every prompt. Greedy answers,
    drawings and statistics equal those of `backbone`; sampled answers differ, since row i draws from `seed + i`
    (the protocol has one seed per call).
    """

    def __init__(self, backbone: Backbone) -> None:
        self.inner, self.spec = backbone, backbone.spec

    def prefix(self, images: Sequence[Image.Image], *, role: Role | None) -> Prefix:
        """Remember the pictures; nothing is computed."""
        return Prefix(len(images), role, list(images))

    def answer(self, prefix: Prefix, prompts: Sequence[str], *, rows: Sequence[int] | None = None,
               max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
               keep_logits: int = 0) -> Answers:
        """One picture and one prompt at a time."""
        rows = range(prefix.size) if rows is None else rows
        parts = []
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            single = self.inner.prefix([prefix.cache[row]], role=prefix.role)
            parts.append(self.inner.answer(single, [prompt], max_new_tokens=max_new_tokens, temperature=temperature,
                                           top_p=top_p, seed=seed + i, keep_logits=keep_logits))
        logits = _stack([part.logits for part in parts]) if keep_logits else None
        return Answers([part.texts[0] for part in parts], _stack([part.ids for part in parts]),
                       _stack([part.mask for part in parts]), _stack([part.logp for part in parts]), logits)

    def text_stats(self, images: Sequence[Image.Image] | None, prompts: Sequence[str],
                   completions: Answers | Sequence[str], *, rows: Sequence[int] | None = None, role: Role | None,
                   grad: bool = False, keep_logits: bool = False) -> TextStats:
        """One teacher-forced pass per row."""
        rows = range(len(prompts)) if rows is None else rows
        parts = []
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            picture = None if images is None else [images[row]]
            parts.append(self.inner.text_stats(picture, [prompt], _one(completions, i), role=role, grad=grad,
                                               keep_logits=keep_logits))
        logits = _stack([part.logits for part in parts]) if keep_logits else None
        return TextStats(_stack([part.logp for part in parts]), _stack([part.entropy for part in parts]),
                         _stack([part.mask for part in parts]), logits, torch.cat([part.pooled for part in parts]))

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """One picture at a time."""
        return torch.cat([self.inner.encode_images([image]) for image in images])

    def generate_images(self, prompts: Sequence[str], *, seeds: Sequence[int], role: Role | None,
                        guidance: float | None = None, temperature: float | None = None) -> Drawings:
        """One drawing at a time."""
        parts = [self.inner.generate_images([prompt], seeds=[seed], role=role, guidance=guidance,
                                            temperature=temperature)
                 for prompt, seed in zip(prompts, seeds, strict=True)]
        return Drawings([part.images[0] for part in parts], torch.cat([part.codes for part in parts]),
                        _join([part.logp for part in parts]))

    def generation_stats(self, prompts: Sequence[str], codes: Tensor, *, role: Role | None,
                         noise: NoiseSpec | None = None, grad: bool = False, keep_logits: bool = False) -> GenStats:
        """One drawing at a time; a regression's row keeps its own times and noise seed."""
        parts = [self.inner.generation_stats([prompt], codes[i : i + 1], role=role, grad=grad, keep_logits=keep_logits,
                                             noise=_row(noise, i))
                 for i, prompt in enumerate(prompts)]
        return GenStats(**{field.name: _join([getattr(part, field.name) for part in parts])
                           for field in fields(GenStats)})

    def use_role(self, role: Role | None) -> AbstractContextManager[None]:
        """As the inner backbone."""
        return self.inner.use_role(role)

    def role_parameters(self, role: Role) -> list[nn.Parameter]:
        """As the inner backbone."""
        return self.inner.role_parameters(role)

    def save_role(self, role: Role, path: Path) -> None:
        """As the inner backbone."""
        self.inner.save_role(role, path)

    def load_role(self, role: Role, path: Path) -> None:
        """As the inner backbone."""
        self.inner.load_role(role, path)


def _one(completions: Answers | Sequence[str], i: int) -> Answers | list[str]:
    """Completion i alone, cut to its own length: a single call would not have been padded."""
    if not isinstance(completions, Answers):
        return [completions[i]]
    width = int(completions.mask[i].sum())
    cut = slice(i, i + 1), slice(0, max(1, width))
    return Answers([completions.texts[i]], completions.ids[cut], completions.mask[cut], completions.logp[cut])


def _row(noise: NoiseSpec | None, i: int) -> NoiseSpec | None:
    return None if noise is None else NoiseSpec(noise.t[i : i + 1], [noise.seeds[i]])


def _join(parts: Sequence[Tensor | None]) -> Tensor | None:
    """One tensor of all rows; None where the model has no such statistic."""
    return None if parts[0] is None else torch.cat(parts)


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Join (1, T_i, ...) tensors into (B, max T, ...), zeros after the end of each row."""
    width = max(part.shape[1] for part in parts)
    tail = [0, 0] * (parts[0].dim() - 2)
    return torch.cat([nn.functional.pad(part, (*tail, 0, width - part.shape[1])) for part in parts])


def bench_config(preset: str, pool: Path, overrides: Sequence[str] = ()) -> Config:
    """The preset with U and G steps in turn."""
    return resolve(preset, [*overrides, f"pool.path={pool}", "schedule.understanding=1", "schedule.generation=1"])


def new_trainer(config: Config, folder: Path, naive: bool) -> Trainer:
    """A trainer on fresh adapters, batched or naive."""
    backbone = open_backbone(config)
    pool = open_pool(config.pool.path, column=config.pool.column, size=backbone.spec.image_side,
                     limit=config.pool.limit, seed=config.seed)
    run = RunDirectory.create(folder, config.model_dump())
    return Trainer(config, NaiveBackbone(backbone) if naive else backbone, pool, run)


def run_bench(preset: str, pool: Path, repeats: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Time `repeats` U steps and as many G steps, batched and naive, alternating after one untimed pair.

    Returns seconds per stage and per step (medians), their ratios naive / batched, and the machine. The order of
    the two modes swaps with every repeat, so that neither always runs on a warmer processor.
    """
    config = bench_config(preset, pool, overrides)
    seconds: dict[str, dict[str, dict[str, list[float]]]] = {m: {"U": {}, "G": {}} for m in ("batched", "naive")}
    with tempfile.TemporaryDirectory() as folder:
        trainers = {mode: new_trainer(config, Path(folder) / mode, mode == "naive") for mode in seconds}
        for repeat in range(repeats + 1):
            for phase in ("U", "G"):
                for mode in sorted(trainers, reverse=repeat % 2 == 1):
                    times = _timed_step(trainers[mode])
                    for stage, value in times.items() if repeat else ():
                        seconds[mode][phase].setdefault(stage, []).append(value)
    return {"preset": config.preset, "backbone": config.backbone, "base": config.base, "overrides": list(overrides),
            "images_per_step": config.schedule.images, "repeats": repeats, "targets": TARGETS,
            "steps": {phase: _compare(seconds, phase) for phase in ("U", "G")}, "machine": machine(config)}


def _timed_step(trainer: Trainer) -> dict[str, float]:
    began = time.perf_counter()
    trainer.train_step()
    return trainer.times | {"total": time.perf_counter() - began}


def _compare(seconds: dict[str, dict[str, dict[str, list[float]]]], phase: str) -> dict[str, dict[str, float]]:
    """Median seconds of both modes, and the median of the ratios of each repeat."""
    rows = {}
    for stage, fast in seconds["batched"][phase].items():
        slow = seconds["naive"][phase][stage]
        ratio = statistics.median(s / f for s, f in zip(slow, fast, strict=True))
        rows[stage] = {"batched_s": statistics.median(fast), "naive_s": statistics.median(slow), "ratio": ratio}
    return rows


def machine(config: Config) -> dict[str, Any]:
    """What the times depend on: processor model, cores, torch, threads, device and precision; no host name."""
    device = choose_device(config.device, config.precision)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {"processor": model, "cores": sum(line.startswith("processor") for line in lines) or None,
            "gpu": torch.cuda.get_device_name() if device.name == "cuda" else None, "torch": torch.__version__,
            "threads": torch.get_num_threads(), "device": device.name, "precision": device.precision}
