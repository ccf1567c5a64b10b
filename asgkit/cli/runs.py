"""The commands that train and score models: premise, train, eval. `asgkit.cli.app` registers them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from asgkit.cli.console import Overrides, Threads, TrainProgress, out, refusing
from asgkit.config import SCENES, Config, PoolConfig, measured_name, parse_override, resolve
from asgkit.errors import Refused
from asgkit.runs.wording import table


def premise(
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="dev (settings are chosen on it) or test.")] = "dev",
    to: Annotated[Path | None, typer.Option("--out", help="JSON file to write as well.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="280 questions and 30 groups only.")] = False,
    results: Annotated[Path, typer.Option(help="Where runs of the arm oracle are looked for.")] = Path("results"),
    threads: Threads = 1,
) -> None:
    """Measure on the base whether the method can work at all: voting gain, H_sc and STE as error detectors, R_g.

    A second table says which conditions hold and what follows where one does not. Examples:
    [bold]asgkit premise --quick[/] · [bold]asgkit premise backbone=tiny-flow[/] ·
    [bold]asgkit premise base=registers --split test --out premise.json[/] ·
    [bold]asgkit premise backbone=tiny-flow generator.scorer=CHECKPOINT[/] (another judge of the same drawings)
    """
    from asgkit.evals.worlds import world_of
    from asgkit.experiments import gates
    from asgkit.experiments import premise as report
    from asgkit.launch import open_scorer, use_threads
    from asgkit.report.premise import judge_premise, print_verdicts

    if split not in ("dev", "test"):
        raise Refused(f"unknown split {split!r}; choose dev or test")
    if to and to.is_dir():
        raise Refused(f"{to} is a folder; name a file with --out, for example {to / 'premise.json'}")
    use_threads(threads)
    config = resolve("tiny", overrides or [])
    scorer = open_scorer(config, _device(config))
    backbone = check_backbone(config)
    found = report.measure_premise(backbone, split=split, seed=config.seed, config=config, scorer=scorer,
                                   **(report.QUICK if quick else report.FULL))
    if world_of(backbone).unanswerable:
        found["gates"] = gates.measure_gates(backbone, config, split=split, seed=config.seed,
                                             **(gates.QUICK if quick else gates.FULL))
    found["oracle_gain"] = report.oracle_gain(results, config.backbone, report.base_name(config))
    report.print_premise(found, out)
    print_verdicts(judge_premise(found), out)
    if "gates" in found:
        gates.print_gates(found["gates"], out)
    if "registers" in found["base"]:
        out.print("On the base registers the framings err independently by design: its voting gain is built in.")
    if to:
        report.write_premise(to, found)
        out.print(f"wrote {to}", markup=False, highlight=False)


def train(
    overrides: Overrides = None,
    preset: Annotated[str | None, typer.Option(help="smoke, tiny or paper (default: tiny, or the resumed run's).")]
    = None,
    run: Annotated[Path | None, typer.Option(help="Run directory (default: results/runs/PRESET-BACKBONE-BASE-sSEED)."
                                             )] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest valid checkpoint.")] = False,
    threads: Threads = 1,
) -> None:
    """Let a model evolve on unlabelled images: the whole loop, with checkpoints and a log.

    Examples:

    [bold]asgkit train --preset smoke[/] · ten steps

    [bold]asgkit train seed=3 base=registers[/] · the tiny preset on the other base

    [bold]asgkit train pool.path=my/photos --run results/runs/photos[/] · your own folder of images

    [bold]asgkit train control=oracle[/] · the ceiling: rewards from the truth

    [bold]asgkit train --run results/runs/photos --resume[/] · go on after a stop
    """
    from asgkit import launch
    from asgkit.errors import StopRequested
    from asgkit.recipes.controls import needs_judge

    launch.use_threads(threads)
    config = _train_config(preset, list(overrides or []), run, resume)
    path = run or default_run(config)
    if not resume and (path / "config.yaml").exists():
        raise Refused(f"{path} already holds a run: continue it with --resume, or choose another --run")
    if resume:
        _check_resume(path, config)
    backbone = check_backbone(config)
    default_pool(config)
    out.print(f"device: {_device(config).reason}", markup=False, highlight=False)
    out.print(f"run: {path}, {config.schedule.steps} steps of {config.schedule.images} images", markup=False,
              highlight=False)
    judge = None
    if needs_judge(config.control):
        from asgkit.evals.oracle import ShapesJudge
        from asgkit.evals.worlds import world_of

        judge = ShapesJudge(world_of(backbone))
    try:
        with TrainProgress(config.schedule.steps, out, _step_of(path) if resume else 0) as progress:
            launch.train(config, path, resume=resume, judge=judge, progress=progress)
    except StopRequested as reason:
        out.print(f"stopped ({reason}); go on with: asgkit train --run {path} --resume", markup=False)
        raise typer.Exit(128 + signal.Signals[str(reason)]) from reason
    out.print(f"done; next: asgkit eval {path}", markup=False, highlight=False)


def _check_resume(path: Path, config: Config) -> None:
    from asgkit.runs.directory import RunDirectory

    if not (path / "config.yaml").is_file():
        raise Refused(f"no run in {path} to resume: name it with --run, or leave out --resume to start one")
    saved = RunDirectory(path).newest_valid_checkpoint()
    if saved and saved.step >= config.schedule.steps:
        raise Refused(f"{path} has done its {saved.step} steps (schedule.steps={config.schedule.steps}): score it "
                      f"with asgkit eval {path}, or go on with --resume schedule.steps={2 * saved.step}")


def default_run(config: Config) -> Path:
    """results/runs/PRESET-BACKBONE-BASE-sSEED, with the control's name if there is one."""
    parts = [config.preset, measured_name(config.backbone, config.base), *([config.control] if config.control else [])]
    return Path("results/runs") / f"{'-'.join(parts)}-s{config.seed}"


def _train_config(preset: str | None, overrides: list[str], run: Path | None, resume: bool) -> Config:
    """The preset with overrides; a resumed run without --preset starts from its own configuration."""
    if resume and run and not preset and (run / "config.yaml").is_file():
        from asgkit.config import flatten
        from asgkit.runs.directory import RunDirectory

        own = flatten(RunDirectory(run).config)
        return resolve(own["preset"], own | dict(map(parse_override, overrides)))
    return resolve(preset or "tiny", overrides)


def _device(config: Config) -> Any:
    from asgkit.scale.device import choose_device

    with refusing(RuntimeError):
        return choose_device(config.device, config.precision)


def check_backbone(config: Config) -> Any:
    """Open recipe and backbone once before anything is written: names, checkpoint and framings are settled here."""
    from asgkit.launch import open_backbone
    from asgkit.recipes import load_recipe

    device = _device(config)
    with refusing(ValueError):
        load_recipe(config.recipe)
        backbone = open_backbone(config, device)
    _check_length(config, backbone)
    have = len(backbone.spec.prompts.framings)
    for key, count in (("solver.framings", config.solver.framings), ("generator.votes", config.generator.votes)):
        if count > have:
            raise Refused(f"{key}={count}, but {config.backbone} has {have} framings: set {key}={have} or less")
    return backbone


def _check_length(config: Config, backbone: Any) -> None:
    """Refuse answers that are cut off before the longest true one of the base's world ends."""
    from asgkit.evals.worlds import world_of

    with refusing(ValueError):
        words = world_of(backbone).answer_tokens - 1
    if config.solver.max_new_tokens < words:
        raise Refused(f"solver.max_new_tokens={config.solver.max_new_tokens} cuts the answers of {config.base}, which "
                      f"have up to {words} words: set solver.max_new_tokens={words + 1}")


def default_pool(config: Config) -> None:
    """Render the default pool of a world if it is asked for and not there; a folder of one's own is left alone."""
    from asgkit.experiments.reproduce import POOL_SCENES, ensure_pool

    path = config.pool.path
    world = {PoolConfig().path: "shapes", SCENES["pool.path"]: "scenes"}.get(path)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and world and not Path(path).is_dir():
        how = "" if world == "shapes" else f" --world {world}"
        raise Refused(f"several processes would write {path} at once: make it first with asgkit shapes render {path}"
                      f"{how}")
    if world and ensure_pool(Path(path), POOL_SCENES, world):
        out.print(f"made the default pool: {POOL_SCENES} unlabelled scenes in {path}", highlight=False)


def _step_of(path: Path) -> int:
    status = path / "status.json"
    return json.loads(status.read_text())["step"] if status.is_file() else 0


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run directory, for example results/runs/NAME.",
                                               show_default=False)] = None,
    base: Annotated[str | None, typer.Option(help="Instead of RUN: measure an untrained base, as tiny-flow-clean or "
                                                  "my/tiny-flow-own.safetensors.")] = None,
    split: Annotated[str, typer.Option(help="test is reported; dev is for choosing settings.")] = "test",
    step: Annotated[int | None, typer.Option(help="Checkpoint (default: the newest valid).")] = None,
    curve: Annotated[bool, typer.Option("--curve", help="Every kept checkpoint on dev, into RUN/curve.csv.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="420 questions and 240 drawings only.")] = False,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Of the best decoding, with --guidance.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0.0, help="Of the best decoding, with --temperature.")] = None,
    threads: Threads = 1,
) -> None:
    """Score a run and its base on the same questions and prompts, in percent, by default and best decoding.

    The best decoding is the base's, chosen on dev among nine unless you name it.
    An evolved model must also beat a base that merely samples more sharply.

    Examples: [bold]asgkit eval results/runs/NAME[/] · [bold]asgkit eval results/runs/NAME --curve[/] ·
    [bold]asgkit eval --base tiny-flow-clean[/]
    """
    from asgkit.experiments import evaluate as scoring
    from asgkit.launch import use_threads

    if (temperature is None) != (guidance is None):
        raise Refused("--temperature and --guidance go together; give both or neither")
    if split not in ("dev", "test"):
        raise Refused(f"unknown split {split!r}; choose dev or test")
    if (run is None) == (base is None):
        raise Refused("give a run directory, or --base tiny-ar-clean to measure an untrained base")
    use_threads(threads)
    sizes = scoring.SMALL if quick else scoring.FULL
    best = None if temperature is None else {"temperature": temperature, "guidance": guidance}
    if base is not None:
        _evaluate_base(base_config(base), split, best, sizes)
    elif curve:
        path = scoring.learning_curve(run, scoring.CURVE)
        rows = scoring.read_curve(path)
        out.print(table(f"{path} (dev, percent)", list(rows[0]), [list(row.values()) for row in rows]))
    elif step is not None and not (run / "checkpoints" / f"step_{step:06d}").is_dir():
        raise Refused(f"{run} keeps no checkpoint of step {step}: {_kept(run)}")
    else:
        evolved, before = scoring.evaluate(run, split, step, best, sizes=sizes)
        rows = [(name, before["scores"][name], value, value - before["scores"][name])
                for name, value in evolved["scores"].items()]
        out.print(table(f"{run}, step {evolved['step']}, {split} (percent)", ("score", "base", "evolved", "change"),
                        rows))
        out.print(f"wrote {run / 'metrics.json'}; a change needs its interval: asgkit report", markup=False,
                  highlight=False)


def base_config(name: str) -> Config:
    """The preset `tiny` on a base named as results name it: `tiny-flow-clean`, `my/tiny-flow-own.safetensors`.

    A name without a backbone is a base of tiny-ar.
    """
    from asgkit.backbones.base import BACKBONES

    file = name.endswith(".safetensors")
    first = Path(name).name if file else name
    backbone = next((b for b in BACKBONES if first.startswith(f"{b}-")), "tiny-ar")
    return resolve("tiny", {"backbone": backbone, "base": name if file else name.removeprefix(f"{backbone}-")})


def _evaluate_base(config: Config, split: str, best: dict[str, float] | None, sizes: dict[str, int]) -> None:
    from asgkit.experiments.evaluate import evaluate_base

    name = measured_name(config.backbone, config.base)
    folder = Path("results/measured/base") / name
    if (folder / "metrics.json").exists():
        raise Refused(f"{folder} holds a measurement already: delete it to measure again")
    check_backbone(config)
    result = evaluate_base(config, folder, split, best, sizes=sizes)
    out.print(table(f"base {name}, {split} (percent)", ("score", "percent"), list(result["scores"].items())))
    out.print(f"wrote {folder}", markup=False, highlight=False)


def _kept(run: Path) -> str:
    kept = sorted(int(p.name[5:]) for p in (run / "checkpoints").glob("step_*"))
    return f"kept are {kept}; checkpoint.keep=100 keeps more" if kept else "it has none"
