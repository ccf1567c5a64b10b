"""Pre-train a regression base in three stages: read (labelled scenes), codec (pictures), draw (captioned scenes)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from asgkit.backbones.noise import draw_times
from asgkit.backbones.tiny.codes import to_tensor
from asgkit.backbones.tiny.language import LANGUAGES
from asgkit.backbones.tiny.latent import CHANNELS, CellAutoencoder, LatentNetwork
from asgkit.backbones.tiny.latent_drawing import NETWORKS
from asgkit.backbones.tiny.network import TinyReader
from asgkit.backbones.tiny.pretraining.lessons import LESSONS
from asgkit.backbones.tiny.pretraining.pretrain import PretrainConfig, reading_losses, train
from asgkit.backbones.tiny.prompts import DRAW
from asgkit.backbones.tiny.tokenizer import WordTokenizer
from asgkit.backbones.tiny.trunk import TrunkConfig

BLANK = 0.10  # share of drawings without a caption: guidance needs them
# A reader of its own for each base, so that agreement between bases is evidence and not one network counted twice.
SEEDS = {"tiny-flow": 1, "tiny-diffusion": 2}
# Of the bases about scenes: a reader that learns nothing but to read gains most from more questions about each scene.
# Of 2,000 steps the head drew 12% of the prompts right; more have not been measured (docs/world.md).
SCENES_READ = {"world": "scenes", "steps": 1000, "questions": 4}
SCENES = {"steps": 6000}


@dataclass(frozen=True)
class LatentConfig:
    """Settings of the stages; `read` is the first, the codec learns `codec_steps`, the head `steps`."""

    read: PretrainConfig
    codec_steps: int = 4500
    codec_scenes: int = 12_000
    codec_cells: int = 384  # a step
    codec_rate: float = 3e-3
    steps: int = 2400
    batch: int = 256
    scenes: int = 60_000
    learning_rate: float = 2e-3
    warmup: int = 100
    clip: float = 1.0
    average: float = 0.999  # of the exponential moving average that is shipped
    precision: str = "bf16"
    seed: int = field(default=0)


def latent_config(model: str, *, steps: int | None = None, seed: int | None = None, images: int | None = None,
                  precision: str = "bf16", world: str = "shapes") -> LatentConfig:
    """The settings of a shipped base, with `steps` for every stage and another seed, scenes per reading step or
    precision where given."""
    seed = SEEDS[model] if seed is None else seed
    read = PretrainConfig(seed=seed, precision=precision, **(SCENES_READ if world == "scenes" else {}))
    read = replace(read, **{k: v for k, v in (("steps", steps), ("images", images)) if v is not None})
    config = LatentConfig(read, precision=precision, seed=seed, **(SCENES if world == "scenes" else {}))
    return config if steps is None else replace(config, codec_steps=steps, steps=steps)


def new_network(model: str, seed: int, world: str = "shapes") -> LatentNetwork:
    """A freshly initialised network of one of `NETWORKS`; its reader starts alike whatever head is attached."""
    spoken = LANGUAGES[world]
    words = len(WordTokenizer(spoken.vocabulary()))
    torch.manual_seed(seed)
    network = NETWORKS[model](words, TrunkConfig(), spoken.positions)
    torch.manual_seed(seed)
    reader = TinyReader(words, TrunkConfig(), spoken.positions)
    reader.small_embeddings()
    network.load_state_dict(reader.state_dict(), strict=False)
    return network


def _cells(config: LatentConfig) -> tuple[Tensor, Tensor, Tensor]:
    """All cells (n, 3, 8, 8) of the codec's scenes, the distinct ones, and how often to show each of those.

    Most cells are empty and most others recur; digits and overlaps do not. Shown as they come, the empty ones would
    take most of the steps, and scenes with a digit were read back exactly in 1% of cases instead of 98%.
    """
    rng, world = np.random.default_rng([config.seed, 21]), LESSONS[config.read.world]
    pixels = to_tensor([world.render(world.sample_scene(rng, "train")) for _ in range(config.codec_scenes)])
    cells = pixels.reshape(-1, 3, 3, 8, 3, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 8, 8)
    rows = (cells.flatten(1) * 255).round().to(torch.uint8).numpy()
    distinct, counts = np.unique(rows, axis=0, return_counts=True)
    weights = torch.from_numpy(np.minimum(counts, 20).astype(np.float32))
    return cells, torch.from_numpy(distinct).float().reshape(-1, 3, 8, 8) / 255, weights


def train_codec(codec: CellAutoencoder, config: LatentConfig, progress: bool = True) -> float:
    """Learn the picture codec, four fifths of each step on distinct cells; returns the last mean squared error."""
    cells, distinct, weights = _cells(config)
    generator = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.Adam(codec.parameters(), lr=config.codec_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.codec_steps)
    n, rare = config.codec_cells, config.codec_cells * 4 // 5
    codec.train()
    for _ in track(range(config.codec_steps), "codec", console=Console(stderr=True), disable=not progress):
        picked = distinct[torch.multinomial(weights, rare, replacement=True, generator=generator)]
        shown = torch.cat([picked, cells[torch.randint(len(cells), (n - rare,), generator=generator)]])
        sigma = 0.5 * torch.rand(n, 1, 1, 1, generator=generator)
        loss = codec.loss(shown, torch.randn(n, CHANNELS, 1, 1, generator=generator), sigma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    codec.eval()
    return loss.item()


@dataclass(frozen=True)
class Captioned:
    """Latents (S, 9, 8) of scenes and, for each, its captions in every style that fits it."""

    latents: Tensor
    captions: list[list[str]]


def captioned_scenes(codec: CellAutoencoder, config: LatentConfig) -> Captioned:
    """Encode the scenes that the head is trained on, once."""
    rng, world = np.random.default_rng([config.seed, 22]), LESSONS[config.read.world]
    latents, captions = [], []
    for _ in range(0, config.scenes, 1000):
        scenes = [world.sample_scene(rng, "train") for _ in range(min(1000, config.scenes - len(captions)))]
        with torch.no_grad():
            latents.append(codec.encode(to_tensor([world.render(scene) for scene in scenes])))
        captions += [world.captions(scene) for scene in scenes]
    return Captioned(torch.cat(latents), captions)


def _batch(data: Captioned, config: LatentConfig, rng: np.random.Generator) -> tuple[list[str], Tensor]:
    rows = rng.integers(len(data.captions), size=config.batch)
    texts = [data.captions[i][int(rng.integers(len(data.captions[i])))] for i in rows]
    blank = rng.random(config.batch) < BLANK
    prompts = [DRAW if b else f"{text} {DRAW}" for text, b in zip(texts, blank, strict=True)]
    return prompts, data.latents[torch.from_numpy(rows)]


def _head_parameters(network: LatentNetwork) -> list[nn.Parameter]:
    """What the drawing stage learns: neither the reader nor the codec."""
    return [p for name, p in network.named_parameters() if name.partition(".")[0] in network.head]


def _head_loss(network: LatentNetwork, data: Captioned, config: LatentConfig, tokenizer: WordTokenizer,
               rng: np.random.Generator) -> Tensor:
    prompts, latents = _batch(data, config, rng)
    noise = torch.from_numpy(rng.standard_normal(latents.shape)).float()
    t = draw_times((len(prompts),), network.times, rng)
    x, target = network.noisy(latents, noise, t)
    with torch.autocast("cpu", torch.bfloat16) if config.precision == "bf16" else nullcontext():
        pred = network.predict(x, t, network.read_captions(*tokenizer.batch(prompts, left=True)))
    return (pred.float() - target).square().mean()


def train_head(network: LatentNetwork, config: LatentConfig, log: Path, progress: bool = True) -> None:
    """Train the drawing head and leave the moving average of its weights; appends the loss every 20 steps to `log`."""
    data, rng = captioned_scenes(network.autoencoder, config), np.random.default_rng([config.seed, 23])
    tokenizer = WordTokenizer(LANGUAGES[config.read.world].vocabulary())
    parameters = _head_parameters(network)
    network.requires_grad_(False)
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.99))
    average = [p.detach().clone() for p in parameters]
    began = time.time()
    with log.open("a") as file:
        for step in track(range(config.steps), f"draw ({network.paradigm})", console=Console(stderr=True),
                          disable=not progress):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _rate(config, step)
            loss = _head_loss(network, data, config, tokenizer, rng)
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"pre-training diverged at step {step}; lower learning_rate")
            optimizer.step()
            keep = min(config.average, (step + 1) / (step + 10))  # a short memory first, or the start would linger
            for mean, p in zip(average, parameters, strict=True):
                mean.lerp_(p.detach(), 1 - keep)
            if step % 20 == 0 or step == config.steps - 1:
                file.write(json.dumps({"stage": "draw", "step": step, "loss": round(loss.item(), 4),
                                       "seconds": round(time.time() - began, 1)}) + "\n")
                file.flush()
    with torch.no_grad():
        for mean, p in zip(average, parameters, strict=True):
            p.copy_(mean)


def _rate(config: LatentConfig, step: int) -> float:
    """Warm-up, a plateau, and a linear descent over the last 40%."""
    up = min(1.0, (step + 1) / config.warmup)
    return up * min(1.0, max(0.02, (config.steps - step) / (0.4 * config.steps)))


def train_stages(network: LatentNetwork, config: LatentConfig, log: Path, progress: bool = True,
                 after: Callable[[int], object] = lambda step: None) -> None:
    """All three stages of a regression base, in place; `after(n)` is called when n reading steps are done."""
    train(network, config.read, log, progress, reading_losses, after)
    train_codec(network.autoencoder, config, progress)
    network.start_head()
    network.eval()
    train_head(network, config, log, progress)


def save(network: LatentNetwork, config: LatentConfig, path: Path) -> None:
    """Write weights (float16: half the size, and no score changes), vocabulary and settings into one file."""
    tensors = {name: t.half().contiguous() if t.is_floating_point() else t.contiguous()
               for name, t in network.state_dict().items()}
    trunk = asdict(TrunkConfig())
    sizes = {"words": network.word.num_embeddings, "trunk": trunk, "positions": len(network.word_position)}
    meta = {"network": json.dumps(sizes), "words": json.dumps(LANGUAGES[config.read.world].vocabulary()),
            "pretrain": json.dumps(asdict(config)), "world": config.read.world}
    save_file(tensors, path, metadata=meta)
