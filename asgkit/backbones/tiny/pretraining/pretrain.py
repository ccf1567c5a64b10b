"""Pre-train a tiny base on labelled scenes: `asgkit pretrain tiny-ar`. The only place where labels teach a model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from asgkit.backbones.reader import select_rows
from asgkit.backbones.tiny.codes import build_codebook, encode, halve, patches, to_tensor
from asgkit.backbones.tiny.language import LANGUAGES, language_of
from asgkit.backbones.tiny.network import NetworkConfig, TinyARNetwork, TinyReader
from asgkit.backbones.tiny.pretraining.data import Batch, TextRows
from asgkit.backbones.tiny.pretraining.lessons import LESSONS
from asgkit.backbones.tiny.tokenizer import EOS, WordTokenizer
from asgkit.backbones.tiny.trunk import TrunkConfig
from asgkit.backbones.tiny.understand import network_settings, read_checkpoint

# Of the bases about scenes, which have more words to read, more patches to draw and a harder drawing test.
SCENES = {"world": "scenes", "steps": 1500, "questions": 2, "coarse_codes": 640, "fine_codes": 1536,
          "draw_weight": 1.0}
REGISTERS = {"steps": 600, "learning_rate": 1e-3, "registers": 0.25, "seed": 1}  # of the second stage
SCENES_REGISTERS = SCENES | REGISTERS | {"steps": 220, "questions": 6, "learning_rate": 2e-3, "registers": 0.2}


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of one pre-training; `steps` of `images` scenes with `questions` questions each."""

    steps: int = 1500
    images: int = 64
    learning_rate: float = 2e-3
    warmup: int = 60
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    registers: float = 0.0  # strength p of framing-specific systematic errors
    coarse_codes: int = 448
    fine_codes: int = 1024
    code_scenes: int = 20000
    precision: str = "bf16"
    world: str = "shapes"
    questions: int = 3  # about each scene
    draw_weight: float = 0.5  # of the drawing loss, beside 1 of answers and 0.5 of questions and captions


def make_codebooks(config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Coarse and fine codebooks (V, 48) in [0, 1], learned from rendered scenes."""
    rng, world = np.random.default_rng([config.seed, 3]), LESSONS[config.world]
    pixels = to_tensor([world.render(world.sample_scene(rng, "train")) for _ in range(config.code_scenes)])
    books = []
    for picture, size in ((halve(pixels), config.coarse_codes), (pixels, config.fine_codes)):
        rows = (patches(picture).reshape(-1, 48) * 255).round().to(torch.uint8).numpy()
        books.append(torch.from_numpy(build_codebook(rows, size, config.seed)).float() / 255)
    return books[0], books[1]


def _text_loss(network: TinyReader, past, group: TextRows) -> Tensor:
    start = torch.zeros(len(group.rows), dtype=torch.int64) if group.start is None else group.start
    hidden, _ = network.read(group.ids, group.mask, select_rows(past, group.rows), None, start)
    target = group.loss[:, 1:]
    return nn.functional.cross_entropy(network.word_head(hidden[:, :-1][target]).float(), group.ids[:, 1:][target])


def _draw_loss(network: TinyARNetwork, batch: Batch) -> Tensor:
    ids, mask = batch.draw.ids, batch.draw.mask & (batch.draw.ids != EOS)
    start = torch.zeros(len(ids), dtype=torch.int64)
    _, past = network.read(ids, mask, None, None, start)
    codes = encode(batch.pixels[batch.draw.rows], network.coarse_book, network.fine_book)
    coarse, fine = network.code_logits(network.draw_hidden(codes, past, mask))
    cut = coarse.shape[1]
    return (nn.functional.cross_entropy(coarse.float().flatten(0, 1), codes[:, :cut].flatten())
            + nn.functional.cross_entropy(fine.float().flatten(0, 1), codes[:, cut:].flatten()))


def reading_losses(network: TinyReader, batch: Batch) -> dict[str, Tensor]:
    """Mean cross-entropies (nats) of answers, and of questions and captions."""
    past = network.see(batch.pixels)
    return {"answer": _text_loss(network, past, batch.short), "text": _text_loss(network, past, batch.long)}


def losses(network: TinyARNetwork, batch: Batch) -> dict[str, Tensor]:
    """The reading losses and the mean cross-entropy (nats) of image codes."""
    return reading_losses(network, batch) | {"draw": _draw_loss(network, batch)}


WEIGHTS = {"answer": 1.0, "text": 0.5}


def _rate(config: PretrainConfig, step: int) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def new_network(config: PretrainConfig) -> TinyARNetwork:
    """A freshly initialised network with its codebooks."""
    torch.manual_seed(config.seed)
    spoken = LANGUAGES[config.world]
    words = len(WordTokenizer(spoken.vocabulary()))
    coarse, fine = make_codebooks(config)
    network = TinyARNetwork(NetworkConfig(words, len(coarse), len(fine), TrunkConfig(), spoken.positions))
    network.coarse_book.copy_(coarse)
    network.fine_book.copy_(fine)
    return network


def train(network: TinyReader, config: PretrainConfig, log: Path, progress: bool = True,
          losses: Callable[[TinyReader, Batch], dict[str, Tensor]] = losses,
          after: Callable[[int], object] = lambda step: None) -> None:
    """Train in place on the weighted sum of `losses`; writes one JSON line of them (nats) every 20 steps to `log`.

    `after(n)` is called when n steps are done.
    """
    tokenizer = WordTokenizer(LANGUAGES[config.world].vocabulary())
    sampler = LESSONS[config.world].sampler(tokenizer, config.seed, config.images, config.registers,
                                            config.questions)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, betas=(0.9, 0.98),
                                  weight_decay=config.weight_decay)
    cast = torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext()
    weights, began = WEIGHTS | {"draw": config.draw_weight}, time.time()
    with log.open("w") as file:
        for step in track(range(config.steps), "pretrain", console=Console(stderr=True), disable=not progress):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(config, step)
            batch = sampler.batch()
            with cast:
                parts = losses(network, batch)
            loss = sum(weights[name] * part for name, part in parts.items())
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"pre-training diverged at step {step}; lower learning_rate")
            optimizer.step()
            after(step + 1)
            if step % 20 == 0 or step == config.steps - 1:
                row = {"step": step, **{k: round(v.item(), 4) for k, v in parts.items()},
                       "seconds": round(time.time() - began, 1)}
                file.write(json.dumps(row) + "\n")
                file.flush()


def save(network: TinyARNetwork, config: PretrainConfig, path: Path) -> None:
    """Write weights, codebooks (as uint8), vocabulary and settings into one safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    for name in ("coarse_book", "fine_book"):
        tensors[name] = (tensors[name] * 255).round().to(torch.uint8)
    meta = {"network": json.dumps(asdict(network.config)), "words": json.dumps(LANGUAGES[config.world].vocabulary()),
            "pretrain": json.dumps(asdict(config)), "world": config.world}
    save_file(tensors, path, metadata=meta)


def finetune_registers(base: Path, config: PretrainConfig, log: Path, progress: bool = True) -> TinyARNetwork:
    """Second stage: teach the trained framings of a clean base their own systematic errors (strength `registers`).

    Drawing and captioning go on being trained, so that only the answers change. Source: designed, Dawid-Skene
    annotators; every page that uses this base says that the independence of the errors is put in.
    """
    tensors, meta = read_checkpoint(base, "tiny-ar")
    sizes, words, _ = network_settings(meta)
    if language_of(meta).world != config.world:
        raise ValueError(f"{base.name} speaks about {language_of(meta).world}, the second stage about {config.world}: "
                         "name the world of the base with --world")
    if words != language_of(meta).vocabulary():
        raise ValueError(f"{base.name} was trained with another vocabulary; pretrain a clean base with this version")
    network = TinyARNetwork(NetworkConfig(**{**sizes, "trunk": TrunkConfig(**sizes["trunk"])}))
    network.load_state_dict({n: t.float() / 255 if n.endswith("_book") else t for n, t in tensors.items()})
    train(network, config, log, progress)
    return network
