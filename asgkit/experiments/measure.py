"""The committed experiments: which runs there are, and how one becomes a folder of `results/measured`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from asgkit.config import Config, measured_name, resolve
from asgkit.evals.oracle import ShapesJudge
from asgkit.evals.run import evaluate_run, open_run
from asgkit.evals.shapes import best_decoding, evaluate_drawings
from asgkit.experiments.evaluate import FULL, evaluate_base
from asgkit.grids.experiment import Experiment, same_config
from asgkit.grids.load import GridError, GridRun, load_grid, make_experiment, shipped_grids
from asgkit.launch import open_backbone, train
from asgkit.pool.folder import SUFFIXES
from asgkit.recipes.controls import needs_judge
from asgkit.report.figures.examples import write_examples
from asgkit.report.measured import Measurement
from asgkit.runs.directory import RunDirectory
from asgkit.runs.files import read_lines, write_json
from asgkit.runs.packed_log import NAME, pack_log

HEADLINE = "headline"  # the grid that a reader wants first
CURVE_SIZES = {"per_family": 100, "per_tag": 30, "samples": 2}  # dev items at every checkpoint of a learning curve
KEPT = ("config.yaml", "environment.json", "metrics.json", "items.npz", "curve.csv", "blind.csv", "examples.npz")


def committed_runs() -> list[GridRun]:
    """Every run of every shipped grid once, the headline first; photographs apart, since they are not shipped.

    Raises GridError when two grids give one name to two configurations.
    """
    grids = shipped_grids()
    found: dict[str, GridRun] = {}
    for grid in sorted(grids, key=lambda name: (name != HEADLINE, name)):
        for run in load_grid(grids[grid]).runs():
            first = found.setdefault(run.experiment.name, run)
            if first.experiment.config() != run.experiment.config():
                raise GridError(f"{grids[grid]}: the run {run.experiment.name} is another one in an earlier grid: "
                                f"rename the arm {run.arm!r}")
    return list(found.values())


def committed_grid() -> list[Experiment]:
    """The experiments of `committed_runs`, in the same order."""
    return [run.experiment for run in committed_runs()]


def measure_base(config: Config, folder: Path, split: str = "test", *, sizes: Mapping[str, int] = FULL
                 ) -> dict[str, float]:
    """Measure the untrained base of a configuration, its best decoding chosen on dev; returns that decoding.

    `folder` is named `measured_name(config.backbone, config.base)`. It gets metrics.json last, so a folder that has
    one is whole; other files in it stay. `sizes`: items of the test, and drawings of each decoding that is tried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    backbone = open_backbone(config)
    (temperature, guidance), scores = best_decoding(backbone, None, "dev", sizes["per_tag"], sizes["samples"])
    best = {"temperature": temperature, "guidance": guidance}
    write_json(aside / "decodings.json", {"split": "dev", "scores": scores, "best": best})
    few = {"per_tag": CURVE_SIZES["per_tag"], "samples": CURVE_SIZES["samples"]}
    curve = {name: evaluate_drawings(backbone, None, "dev", **few, **decoding).summary()["overall"]
             for name, decoding in (("drawings/overall", {}), ("drawings_best/overall", best))}
    write_json(aside / "curve_base.json", curve)
    evaluate_base(config, aside, split, best, sizes=dict(sizes))
    for path in sorted(aside.iterdir(), key=lambda path: path.name == "metrics.json"):
        os.replace(path, folder / path.name)
    aside.rmdir()
    return best


def base_measured(folder: Path) -> bool:
    """Whether `measure_base` has ended in this folder."""
    return (folder / "metrics.json").is_file() and (folder / "decodings.json").is_file()


def finished(experiment: Experiment, measured: Path) -> bool:
    """Whether the experiment's measured folder is complete and was made by the same configuration.

    A run of an earlier version lacks the keys that the kit gained since: it counts where the experiment leaves them
    as the preset has them, which is what the version before did.
    """
    folder = measured / "runs" / experiment.name
    if not (folder / "metrics.json").is_file():
        return False
    config = experiment.config()
    preset = resolve(experiment.preset, {"backbone": config.backbone})
    return same_config(RunDirectory(folder).config, config.model_dump(mode="json"), preset.model_dump(mode="json"))


def run_experiment(experiment: Experiment, work: Path, measured: Path, curve: Callable[[Path], Path] | None = None,
                   progress: Callable[[int, list[dict[str, Any]]], None] | None = None, *,
                   sizes: Mapping[str, int] = FULL) -> Path:
    """Train (or resume), evaluate on test, and copy what a report needs to `measured/runs/<id>`; skips finished ones.

    The base must be in `measured/base` (`measure_base`, with the same `sizes`). The log is packed, so that equal
    logs give equal bytes (`asgkit.runs.packed_log`). The first joint run of a base gets examples.
    """
    target = measured / "runs" / experiment.name
    if finished(experiment, measured):
        return target
    config, path = experiment.config(), work / experiment.name
    train(config, path, resume=True, judge=ShapesJudge() if needs_judge(config.control) else None, progress=progress)
    base = measured / "base" / measured_name(config.backbone, config.base)
    best = json.loads((base / "decodings.json").read_text(encoding="utf-8"))["best"]
    evaluate_run(path, "test", best, **sizes)
    if curve is not None:
        curve(path)
    if experiment.name == f"{base.name}-joint-s0":
        _show(path, base, sizes)
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in KEPT:
        if (path / name).is_file():
            shutil.copyfile(path / name, aside / name)
    pack_log((record for _, record in read_lines(path / "log.jsonl")), aside / NAME)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _show(path: Path, base: Path, sizes: Mapping[str, int]) -> None:
    """Before and after of one run, by the fixed rule of `report.examples`."""
    run, backbone, _ = open_run(path)
    write_examples(backbone, Measurement(base.name, base), Measurement(run.path.name, run.path),
                   per_family=sizes["per_family"], per_tag=sizes["per_tag"])


def collect_photos(folder: Path) -> int:
    """Copy the sample photographs that scikit-image and scikit-learn ship into a folder; returns how many."""
    import skimage.data
    import sklearn.datasets

    folder.mkdir(parents=True, exist_ok=True)
    sources = [Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"]
    found = [p for source in sources for p in sorted(source.iterdir()) if p.suffix.lower() in SUFFIXES]
    for path in found:
        shutil.copyfile(path, folder / path.name)
    return len(found)


def photo_experiment() -> Experiment:
    """The method on ordinary photographs (`collect_photos(Path("data/photos"))`), judged on the shapes benchmarks."""
    kept = ("checkpoint.every=30", "checkpoint.keep=100")  # as every committed run
    return make_experiment("tiny", "tiny-ar", "clean", "photos", 0, (*kept, "pool.path=data/photos"))
