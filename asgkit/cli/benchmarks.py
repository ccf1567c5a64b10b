"""The commands `asgkit benchmark ...`: published benchmarks, base and evolved alike. `asgkit.cli.app` adds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from asgkit.cli.console import LINE_EVERY, PlainErrors, Threads, out, refusing
from asgkit.errors import Refused
from asgkit.runs.wording import table

if TYPE_CHECKING:
    from asgkit.backbones.base import Role
    from asgkit.evals.compare import Delta
    from asgkit.evals.subject import Subject

app = typer.Typer(cls=PlainErrors, no_args_is_help=True, rich_markup_mode="rich",
                  help="Published benchmarks: the base and the evolved model of a run, measured alike and compared.\n\n"
                       "Every result keeps its settings in protocol.json; two results that differ in one have no delta."
                       "\n\nExamples: [bold]asgkit benchmark presets[/] · [bold]asgkit benchmark vqa RUN --task "
                       "realworldqa[/] · [bold]asgkit benchmark geneval_hf RUN --prompts FILE --detector FOLDER --clip "
                       "FOLDER[/] · [bold]asgkit benchmark compare BASE EVOLVED[/]")

RunArgument = Annotated[Path | None, typer.Argument(help="A run directory; without one, an untrained base alone.",
                                                    show_default=False)]
Backbone = Annotated[str, typer.Option(help="Without RUN: which backbone.")]
Base = Annotated[str, typer.Option(help="Without RUN: which base, or the folder with its weights.")]
Step = Annotated[int | None, typer.Option(help="Checkpoint of the run (default: the newest valid).")]
Device = Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Where to compute (default: the run's).")]


@app.command()
def presets() -> None:
    """List the paper's seven understanding benchmarks: settings, scores, and which need an external grader.

    Example: [bold]asgkit benchmark presets[/]
    """
    from asgkit.evals.presets import PRESETS

    rows = [(p.name, f"{p.task} ({p.split})", " or ".join(p.markers) or "the question alone",
             str(p.max_new_tokens or "wrapper's default"), ", ".join(p.metrics), p.unit) for p in PRESETS]
    out.print(table("understanding benchmarks of the paper, decoded greedily",
                    ("benchmark", "task of lmms-eval", "the prompt holds", "answer tokens", "scores", "unit"), rows))
    for preset in PRESETS:
        if preset.grader:
            out.print(f"{preset.name} needs an external grader: {preset.grader}", highlight=False)
    for preset in PRESETS:
        if preset.note:
            out.print(f"{preset.name}: {preset.note}", highlight=False)


@app.command()
def vqa(
    run: RunArgument = None,
    task: Annotated[list[str] | None, typer.Option(help="A task of lmms-eval; may be given several times (default: "
                                                        "the paper's five that need no external grader).")] = None,
    images: Annotated[Literal["real", "blank", "shuffled"], typer.Option(
        help="Pictures: the item's, a grey one, or another item's.")] = "real",
    seed: Annotated[int, typer.Option(help="Seed of the shuffle and of sampling.")] = 0,
    fit: Annotated[Literal["square", "native"], typer.Option(
        help="square: on a black square of the backbone's side; native: as it is, for models that read any size.")]
    = "square",
    prompt: Annotated[Literal["verbatim", "canonical"], typer.Option(
        help="verbatim: the task's text (as published); canonical: inside the Solver's framing (for tiny models).")]
    = "verbatim",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Instead of the preset's answer length.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at once.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many items of each task.")] = None,
    include: Annotated[Path | None, typer.Option(help="A folder with task files of your own.")] = None,
    external_grader: Annotated[bool, typer.Option("--external-grader", help="Let OpenAI models grade MMBench and "
                                                                            "MM-Vet (needs OPENAI_API_KEY).")] = False,
    backbone: Backbone = "tiny-ar", base: Base = "clean", step: Step = None, device: Device = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder (default: results/bench/vqa/NAME-IMAGES).")] = None,
    threads: Threads = 1,
) -> None:
    """Answer understanding benchmarks through lmms-eval, as base and as Solver, and compare (pip install lmms-eval).

    Every answer is kept with its prompt, picture, adapter and decoding. A gain that blank or shuffled pictures show
    too is not seen in the pictures. Examples:

    [bold]asgkit benchmark vqa results/runs/NAME --task realworldqa --task textvqa_val --fit native[/]

    [bold]asgkit benchmark vqa results/runs/NAME --task mme --images blank[/] · how much needs no picture

    [bold]asgkit benchmark vqa --backbone bagel --base FOLDER --task mme --limit 20[/] · a base alone, a quick try
    """
    from asgkit.evals import lmms_run
    from asgkit.evals.presets import UNGRADED
    from asgkit.evals.vqa import VQASettings

    tasks = task or list(UNGRADED)
    with refusing(ValueError):
        lmms_run.check_graders(tasks, external_grader)
        lmms_run.require_lmms_eval()
        settings = VQASettings(images=images, seed=seed, fit=fit, prompt=prompt, max_new_tokens=max_new_tokens,
                               batch_size=batch_size)
    subject = _open(run, step, backbone, base, device, threads)
    folder = to or Path("results/bench/vqa") / f"{_name(run, subject)}-{images}"
    with refusing(ValueError, FileExistsError):  # a task, a word or a picture that the backbone cannot read
        _both(subject, "solver", folder, lambda one, where: lmms_run.run_tasks(one, tasks, settings, where, limit=limit,
                                                                                include=include))


@app.command("geneval_hf")
def geneval_hf(
    prompts: Annotated[Path, typer.Option(help="evaluation_metadata.jsonl of a GenEval checkout.")],
    detector: Annotated[Path, typer.Option(help="Folder of a Mask2Former for COCO instances (safetensors).")],
    clip: Annotated[Path, typer.Option(help="Folder of CLIP ViT-L/14 (safetensors and tokenizer).")],
    run: RunArgument = None,
    samples: Annotated[int, typer.Option(min=1, max=999, help="Drawings of every prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed; drawing s of prompt p has seed + 1000 p + s.")] = 42,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="Guidance (default: the backbone's own).")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Temperature (default: the backbone's).")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Drawings made at once.")] = 4,
    per_tag: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts of every tag.")] = None,
    backbone: Backbone = "tiny-ar", base: Base = "clean", step: Step = None, device: Device = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder (default: results/bench/geneval_hf/NAME).")] = None,
    threads: Threads = 1,
) -> None:
    """Draw GenEval's prompts as base and as Generator, and judge the drawings with detectors from transformers.

    The result is called geneval_hf and is not GenEval: what differs is printed with it. The drawings lie as GenEval's
    own scorer reads them (FOLDER/base/images). An interrupted call goes on where it stopped. Example:

    [bold]asgkit benchmark geneval_hf results/runs/NAME --prompts geneval/prompts/evaluation_metadata.jsonl --detector
    weights/mask2former-swin-small-coco-instance --clip weights/clip-vit-large-patch14[/]
    """
    from asgkit.evals import geneval_hf as bench
    from asgkit.evals.geneval_models import ClipColors, Mask2Former
    from asgkit.evals.protocol import ProtocolMismatch

    settings = bench.GenevalSettings(samples=samples, seed=seed, guidance=guidance, temperature=temperature,
                                     batch_size=batch_size, per_tag=per_tag)
    with refusing(ValueError):
        wanted = bench.read_prompts(prompts, per_tag)
    subject = _open(run, step, backbone, base, device, threads)
    where = subject.model["device"]
    eyes, namer = Mask2Former(detector, where), ClipColors(clip, where)
    with refusing(ValueError):
        bench.require_classes(wanted, eyes)
    with refusing(FileExistsError, ProtocolMismatch):
        _both(subject, "generator", to or Path("results/bench/geneval_hf") / _name(run, subject),
              lambda one, folder: bench.evaluate(one, wanted, settings, folder, eyes, namer, progress=_line)["scores"])
    for difference in bench.DIFFERENCES:
        out.print(f"geneval_hf is not GenEval: {difference}", markup=False, highlight=False)


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Result folder of the base.")],
    evolved: Annotated[Path, typer.Argument(help="Result folder of the evolved model.")],
    to: Annotated[Path | None, typer.Option("--out", help="JSON file to write as well.")] = None,
) -> None:
    """Evolved minus base of two result folders; refused, naming the field, unless both were measured alike.

    Example: [bold]asgkit benchmark compare results/bench/vqa/NAME-real/base results/bench/vqa/NAME-real/solver[/]
    """
    from asgkit.evals import compare as c
    from asgkit.evals.protocol import ProtocolMismatch

    with refusing(ProtocolMismatch):
        deltas = c.write_comparison(base, evolved, to) if to else c.compare(base, evolved)
    _show(deltas, f"{evolved} against {base}")


def _open(run: Path | None, step: int | None, backbone: str, base: str, device: str | None, threads: int) -> Subject:
    from asgkit.evals.subject import open_subject
    from asgkit.launch import use_threads

    use_threads(threads)
    if run is not None and step is not None and not (run / "checkpoints" / f"step_{step:06d}").is_dir():
        raise Refused(f"{run} keeps no checkpoint of step {step}")
    with refusing(ValueError, RuntimeError):
        return open_subject(run, step=step, backbone=backbone, base=base, device=device)


def _name(run: Path | None, subject: Subject) -> str:
    return run.name if run else subject.model["base"]


def _both(subject: Subject, role: Role, folder: Path, measure: Callable[[Subject, Path], object]) -> None:
    """Measure the base, then (with a run) the same model under its role, and show the deltas."""
    out.print("base", highlight=False)
    scores = measure(subject.under(None), folder / "base")
    if role not in subject.adapters:
        out.print(f"wrote {folder / 'base'}: {scores}", markup=False, highlight=False)
        return
    out.print(f"evolved ({role})", highlight=False)
    measure(subject.under(role), folder / role)
    from asgkit.evals.compare import write_comparison

    _show(write_comparison(folder / "base", folder / role, folder / "delta.json"), str(folder))
    out.print(f"wrote {folder}", markup=False, highlight=False)


def _show(deltas: list[Delta], title: str) -> None:
    rows = [(d.score, d.base, d.evolved, d.delta, "-" if d.low is None else f"[{d.low:+.2f}, {d.high:+.2f}]",
             d.items or "-") for d in deltas]
    out.print(table(title, ("score", "base", "evolved", "delta", "95% interval (items)", "items"), rows))


def _line(done: int, total: int) -> None:
    if done == total or done % (10 * LINE_EVERY) == 0:
        out.print(f"{done} of {total}", highlight=False)
