"""The command line: `asgkit --help`. Each command is thin; the work is done by the modules that it names."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler

from asgkit import __version__
from asgkit.cli import audit as cli_audit
from asgkit.cli import batch as cli_batch
from asgkit.cli import benchmarks as cli_benchmarks
from asgkit.cli import claims as cli_claims
from asgkit.cli import drift as cli_drift
from asgkit.cli import log as cli_log
from asgkit.cli import pretrain as cli_pretrain
from asgkit.cli import runs as cli_runs
from asgkit.cli.console import Overrides, PlainErrors, Threads, out, refusing
from asgkit.config import resolve
from asgkit.errors import Refused
from asgkit.runs.wording import duration, table

app = typer.Typer(cls=PlainErrors, no_args_is_help=True, rich_markup_mode="rich", add_completion=False,
                  pretty_exceptions_show_locals=False,
                  help="Ask, Solve, Generate: one multimodal model teaches itself from unlabelled images.\n\n"
                       "Start with [bold]asgkit doctor[/], then [bold]asgkit reproduce --profile smoke[/].")
shapes_app = typer.Typer(cls=PlainErrors, no_args_is_help=True, rich_markup_mode="rich",
                         help="The procedural world: make pictures, check the detector.")
app.add_typer(shapes_app, name="shapes")


def _version(value: bool) -> None:
    if value:
        out.print(f"asgkit {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True,
                                               help="Print the version.")] = False) -> None:
    """Log messages of the package go to the screen, warnings and worse."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True,
                        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)])


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    backbone: Annotated[str | None, typer.Option(help="What a real backbone needs: janus, blip3o, bagel or "
                                                      "vargpt.")] = None,
    base: Annotated[Path | None, typer.Option(help="With --backbone: the folder of its weights, to check.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="With --backbone: LoRA rank (default: the paper's).")] = None,
) -> None:
    """Check Python, packages, device, disk, checkpoints and pool. Exit status 1 if something is missing.

    With --backbone: parameters, memory, files and licence of a real model, counted without its weights or a GPU.

    Examples: [bold]asgkit doctor[/] · [bold]asgkit doctor --json[/] · [bold]asgkit doctor --backbone bagel[/] ·
    [bold]asgkit doctor --backbone janus --base weights/janus[/]
    """
    if backbone is not None:
        _doctor_real(backbone, base, rank, as_json)
        return
    if base is not None or rank is not None:
        raise Refused("--base and --rank go with --backbone, for example --backbone bagel --base weights/bagel")
    from asgkit.cli import doctor as checks

    found = checks.run_checks()
    if as_json:
        print(json.dumps(checks.as_json(found), indent=1))
    else:
        out.print(table("asgkit doctor", ("check", "state", "found"),
                        [(c.name, "ok" if c.ok else "MISSING", c.found) for c in found]))
        for check in found:
            if not check.ok:
                out.print(f"fix {check.name}: {check.fix}", markup=False, highlight=False)
    if not all(check.ok for check in found):
        raise typer.Exit(1)


def _doctor_real(backbone: str, base: Path | None, rank: int | None, as_json: bool) -> None:
    from asgkit.cli import doctor_real

    with refusing(ValueError):
        needs = doctor_real.measure_needs(backbone, base, rank)
    if as_json:
        print(json.dumps(doctor_real.as_json(needs), indent=1))
    else:
        out.print(table(f"{backbone}: what it needs", ("what", "how much"), doctor_real.rows(needs)))
        place = base or Path("weights") / backbone
        out.print(f"Put the files into a folder, say {place}, then: asgkit train --preset paper backbone={backbone} "
                  f"base={place} pool.path=IMAGES. Without weights: backbone={backbone} base=random", markup=False,
                  highlight=False)
    if needs.missing:
        raise typer.Exit(1)


for command in (cli_pretrain.pretrain, cli_runs.premise, cli_runs.train):
    app.command()(command)
app.command("eval")(cli_runs.evaluate)
app.command()(cli_audit.audit)
app.command()(cli_claims.claims)
app.command("batch")(cli_batch.batch)
app.command()(cli_log.log)
app.command()(cli_drift.drift)
app.add_typer(cli_benchmarks.app, name="benchmark")


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    figures: Annotated[Path, typer.Option(help="Folder for figures.")] = Path("figures"),
    formats: Annotated[str, typer.Option(help="What each table is written as: csv and md always, tex and html on "
                                              "demand.")] = "csv,md",
) -> None:
    """Make tables, figures and their index pages from the committed results and from your runs.

    Examples: [bold]asgkit report[/] · [bold]asgkit report --formats csv,md,tex,html[/]
    """
    from asgkit.report.build import build_report
    from asgkit.report.tables.tables import forms_of

    with refusing(ValueError):
        forms = forms_of(formats)
    if not (results / "measured").is_dir():
        raise Refused(f"no measured results in {results}: run this in the folder of the clone, or make some with "
                      "asgkit reproduce --profile smoke and name their folder, --results results/smoke")
    for path in build_report(results, figures, forms=forms):
        out.print(str(path), markup=False, highlight=False)


@app.command()
def verify(root: Annotated[Path, typer.Argument(help="Folder of the clone.")] = Path(".")) -> None:
    """Check that every number, table and figure can be traced to a run. Exit status 1 if one cannot.

    Example: [bold]asgkit verify[/]
    """
    from asgkit.report.verify import size_line
    from asgkit.report.verify import verify as check

    found = check(root)
    for finding in found:
        out.print(str(finding), markup=False, highlight=False)
    out.print(size_line(root), highlight=False)
    out.print(f"{len(found)} findings" if found else "everything can be traced", highlight=False)
    if found:
        raise typer.Exit(1)


@app.command()
def bench(
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option(help="Preset of the timed steps.")] = "tiny",
    steps: Annotated[int, typer.Option(min=1, help="Timed repeats of the U and of the G step.")] = 2,
    to: Annotated[Path | None, typer.Option("--out", help="Where the result goes (default: "
                                                          "results/bench/BACKBONE_DEVICE.json).")] = None,
    threads: Threads = 1,
) -> None:
    """Time the same U and G step batched with prefix reuse, and naively with one call per row.

    Run it on an idle machine. Examples: [bold]asgkit bench --steps 3[/] · [bold]asgkit bench backbone=tiny-flow[/]
    """
    from asgkit.experiments.bench import NAMES, TARGETS, run_bench
    from asgkit.launch import use_threads
    from asgkit.runs.files import write_json

    use_threads(threads)
    config = resolve(preset, overrides or [])
    cli_runs.check_backbone(config)
    cli_runs.default_pool(config)
    result = run_bench(preset, Path(config.pool.path), steps, overrides or [])
    to = to or Path("results/bench") / f"{config.backbone.replace('-', '_')}_{result['machine']['device']}.json"
    to.parent.mkdir(parents=True, exist_ok=True)
    write_json(to, result)
    for phase, stages in result["steps"].items():
        rows = [(stage, row["batched_s"], row["naive_s"], row["ratio"]) for stage, row in stages.items()]
        out.print(table(f"{NAMES[phase]} step (target {TARGETS[phase]:g}x on tiny-ar)",
                        ("stage", "batched s", "naive s", "ratio"), rows))
    out.print(f"wrote {to}", markup=False, highlight=False)


@app.command()
def pool(
    path: Annotated[str, typer.Argument(help="A folder of images, a data set (.parquet or .tar files, or owner/name of "
                                             "the hub), or a .txt file of prompts.")],
    column: Annotated[str | None, typer.Option(help="Of a data set: the column of images or texts.")] = None,
    size: Annotated[int, typer.Option(min=1, help="Side in pixels to which images are fitted.")] = 24,
) -> None:
    """Check a pool of images or prompts: how many can be used, which are skipped and why.

    Examples: [bold]asgkit pool my/photos[/], then [bold]asgkit train pool.path=my/photos[/] ·
    [bold]asgkit pool photos.parquet --column image[/] · [bold]asgkit pool prompts.txt[/]
    """
    from asgkit.pool.open import open_pool

    log = logging.getLogger("asgkit.pool")
    level = log.level
    log.setLevel(logging.ERROR)  # the skips are shown in a table here
    try:
        opened = open_pool(path, column=column, size=size)
    finally:
        log.setLevel(level)
    found = opened.report
    out.print(f"{found.usable} of {found.found} {opened.unit} can be used, {len(found.skipped)} skipped: a pool of "
              f"{opened.kind}", markup=False, highlight=False)
    if found.skipped:
        out.print(table("skipped", ("where", "reason"), found.skipped))


@app.command("draw-pool")
def draw_pool(
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option("--out", help="Folder (default data/pool-drawn-BACKBONE).")] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 2000,
    threads: Threads = 1,
) -> None:
    """Fill a pool with pictures that a base draws from no prompt: training on self-generated images alone.

    Example: [bold]asgkit draw-pool backbone=tiny-flow[/], then [bold]asgkit train backbone=tiny-flow
    pool.path=data/pool-drawn-tiny-flow[/]
    """
    from asgkit.config import resolve
    from asgkit.launch import open_backbone, use_threads
    from asgkit.stages.selfdraw import draw_pool as fill

    use_threads(threads)
    config = resolve("tiny", overrides or [])
    folder = to or Path("data") / f"pool-drawn-{config.backbone}"
    with refusing(FileExistsError):
        fill(open_backbone(config), folder, count, config.seed)
    out.print(f"drew {count} pictures into {folder}; train on them: asgkit train pool.path={folder}", markup=False,
              highlight=False)


@app.command()
def reproduce(
    profile: Annotated[str, typer.Option(help="smoke or small.")] = "smoke",
    results: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    figures: Annotated[Path, typer.Option(help="Folder for figures.")] = Path("figures"),
    workers: Annotated[int, typer.Option(min=1, help="Runs at once in profile small, one thread each.")] = 1,
    threads: Threads = 1,
) -> None:
    """Everything in one command: pool, runs, evaluation, tables and figures. Run it in the folder of the clone.

    Examples: [bold]asgkit reproduce --profile smoke[/] · [bold]asgkit reproduce --profile small --workers 2[/]
    """
    from asgkit.experiments import reproduce as r
    from asgkit.launch import use_threads

    if profile not in r.PROFILES:
        raise Refused(f"unknown profile {profile!r}; choose one of {sorted(r.PROFILES)}")
    use_threads(threads)
    say = lambda text: out.print(text, markup=False, highlight=False)
    say(f"profile {profile}: {r.PROFILES[profile]}")
    made = (r.reproduce_smoke(results, figures, say) if profile == "smoke"
            else r.reproduce_small(results, figures, say, workers))
    out.print(table("what was made", ("what", "where", "seconds"), made.rows))
    say(f"{duration(sum(row[2] for row in made.rows))} in all")


@shapes_app.command("render")
def shapes_render(
    folder: Annotated[Path, typer.Argument(help="Folder to write PNG files to.")],
    count: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    world: Annotated[str, typer.Option(help="shapes or scenes.")] = "shapes",
) -> None:
    """Write unlabelled scenes to a folder.

    Example: [bold]asgkit shapes render data/more --count 500 --seed 7[/]
    """
    from asgkit.evals.worlds import WORLDS

    if world not in WORLDS:
        raise Refused(f"unknown world {world!r}; choose one of {', '.join(WORLDS)}")
    if folder.is_dir() and any(folder.iterdir()):
        raise Refused(f"{folder} is not empty: scenes of two seeds would mix; name another folder")
    WORLDS[world].render_pool(folder, count, seed)
    out.print(f"{count} scenes in {folder}", markup=False, highlight=False)


@shapes_app.command("detector")
def shapes_detector(
    split: Annotated[str, typer.Option(help="dev or test.")] = "test",
    count: Annotated[int, typer.Option(min=1, help="Scenes per noise level.")] = 2000,
) -> None:
    """Show how often the exact detector reads a whole scene rightly, clean and under pixel noise.

    Example: [bold]asgkit shapes detector[/]
    """
    from asgkit.shapes.benchmark import detector_accuracy

    with refusing(ValueError):
        accuracy = detector_accuracy(split, count)
    out.print(table(f"detector, {count} scenes, {split}", ("pixel noise", "scenes read exactly (percent)"),
                    [(noise, 100.0 * share) for noise, share in accuracy.items()]))


if __name__ == "__main__":
    app()
