"""The command `asgkit pretrain`: a tiny base from labelled scenes. `asgkit.cli.app` registers it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import typer

from asgkit.cli.console import Threads, out, refusing
from asgkit.errors import Refused


def pretrain(
    model: Annotated[str, typer.Argument(help="tiny-ar, tiny-flow or tiny-diffusion")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of every stage (default: as shipped).")]
    = None,
    seed: Annotated[int | None, typer.Option(help="Seed (default: as the shipped base).")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Scenes per step.")] = None,
    registers: Annotated[float | None, typer.Option(
        min=0.0, max=1.0, help="Second stage of tiny-ar: teach a clean base errors of this strength.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Clean base of the second stage.")] = None,
    world: Annotated[str, typer.Option(help="shapes, or scenes: what it learns to read and draw.")] = "shapes",
    snapshots: Annotated[str, typer.Option(help="Steps of the reading stage to keep as well: 60,150,400.")] = "",
    to: Annotated[Path | None, typer.Option("--out", help="Checkpoint to write (.safetensors).")] = None,
    precision: Annotated[str, typer.Option(help="bf16, or fp32 for processors without bf16.")] = "bf16",
    threads: Threads = 1,
) -> None:
    """Train a tiny base on labelled scenes: the only place where labels teach a model.

    On one core 8 minutes (tiny-ar), 17 (tiny-flow), 22 (tiny-diffusion). Examples: [bold]asgkit pretrain tiny-ar --out
    my.safetensors[/] · [bold]asgkit pretrain tiny-ar --registers 0.25 --out my-registers.safetensors[/] · [bold]asgkit
    pretrain tiny-flow[/] · [bold]asgkit pretrain tiny-ar --world scenes[/] (20 minutes). Then train on it:
    [bold]asgkit train base=my.safetensors[/]
    """
    from asgkit.backbones.base import BACKBONES
    from asgkit.launch import use_threads

    if model not in BACKBONES:
        near = difflib.get_close_matches(model, BACKBONES, n=1, cutoff=0.0)
        raise Refused(f"unknown model {model!r}; did you mean {near[0]!r}? Models: {', '.join(BACKBONES)}")
    if model != "tiny-ar" and registers is not None:
        raise Refused(f"--registers is for tiny-ar; {model} has the base clean alone")
    if precision not in ("bf16", "fp32"):
        raise Refused(f"unknown precision {precision!r}; choose bf16 or fp32")
    if source and registers is None:
        raise Refused("--from is the base of the second stage; give its strength too: --registers 0.25")
    if world not in BASES:
        raise Refused(f"unknown world {world!r}; choose one of {', '.join(BASES)}")
    path = to or Path("results/pretrain") / f"{model}-{BASES[world][registers is not None]}.safetensors"
    if path.exists():
        raise Refused(f"{path} exists; name another file with --out")
    use_threads(threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    chosen = {"steps": steps, "seed": seed, "images": images, "registers": registers, "precision": precision}
    chosen = {k: v for k, v in chosen.items() if v is not None}
    keep = _snapshot_steps(snapshots)
    if model == "tiny-ar":
        _pretrain_codes(path, world, chosen, source, keep)
    else:
        _pretrain_latent(model, path, world, chosen, keep)
    log = path.with_suffix(".jsonl").name
    out.print(f"wrote {path} and {log}; train on it: asgkit train {_as_backbone(model)}base={path}", markup=False,
              highlight=False)


BASES = {"shapes": ("clean", "registers"), "scenes": ("scenes", "scenes-registers")}  # without and with registers


def _as_backbone(model: str) -> str:
    return "" if model == "tiny-ar" else f"backbone={model} "


def _snapshot_steps(text: str) -> set[int]:
    if text and not all(part.strip().isdigit() for part in text.split(",")):
        raise Refused(f"--snapshots {text}: give step numbers with commas between them, as 60,150,400")
    return {int(part) for part in text.split(",")} if text else set()


def _pretrain_codes(path: Path, world: str, chosen: dict[str, Any], source: Path | None, keep: set[int]) -> None:
    from asgkit.backbones.tiny.pretraining import pretrain as stage
    from asgkit.backbones.tiny.understand import CHECKPOINTS

    recipes = {"shapes": ({}, stage.REGISTERS), "scenes": (stage.SCENES, stage.SCENES_REGISTERS)}
    config = stage.PretrainConfig(**{**recipes[world]["registers" in chosen], **chosen})
    log = path.with_suffix(".jsonl")
    if "registers" in chosen:
        clean = source or CHECKPOINTS / f"tiny-ar-{BASES[world][0]}.safetensors"
        with refusing(ValueError):  # a base of another version or world
            network = stage.finetune_registers(clean, config, log)
    else:
        network = stage.new_network(config)
        stage.train(network, config, log, after=lambda step: step in keep and stage.save(
            network, config, path.with_name(f"{path.stem}-step{step}.safetensors")))
    stage.save(network, config, path)


def _pretrain_latent(model: str, path: Path, world: str, chosen: dict[str, Any], keep: set[int]) -> None:
    from asgkit.backbones.tiny.pretraining import pretrain_latent as stage

    config = stage.latent_config(model, world=world, **chosen)
    network = stage.new_network(model, config.seed, world)
    stage.train_stages(network, config, path.with_suffix(".jsonl"), after=lambda step: step in keep and stage.save(
        network, config, path.with_name(f"{path.stem}-step{step}.safetensors")))
    stage.save(network, config, path)
