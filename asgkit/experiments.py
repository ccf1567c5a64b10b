"""The committed experiments: which runs there are, and how one becomes a folder of `results/measured`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asgkit.config import Config, measured_name, resolve
from asgkit.evals.oracle import ShapesJudge
from asgkit.evals.run import evaluate_run, open_run
from asgkit.evals.shapes import best_decoding, evaluate_drawings
from asgkit.files import pack, write_json
from asgkit.launch import open_backbone, train
from asgkit.pool import SUFFIXES
from asgkit.report.examples import write_examples
from asgkit.report.measured import Measurement
from asgkit.runs import RunDirectory
from asgkit.scoring import FULL, evaluate_base

SEEDS = range(5)
CURVE_SIZES = {"per_family": 100, "per_tag": 30, "samples": 2}  # dev items at every checkpoint of a learning curve
BASES = ("clean", "registers")
ARMS: dict[str, list[str]] = {"joint": [], "random": ["control=random"], "oracle": ["control=oracle"]}
NO_VOTE = ["control=random_vote"]  # a random framing's answer is taught: what does counting the votes add?
RATE_FACTORS = (0.1, 10.0, 30.0)  # of the preset's Solver and Generator learning rates; 1 is the joint arm
UPDATES = ("reinforce", "group")  # Solver updates beside the preset's `sft`
KEPT = ("config.yaml", "environment.json", "metrics.json", "items.npz", "curve.csv", "examples.npz")


@dataclass(frozen=True)
class Experiment:
    """One run: its id `<backbone>-<base>-<arm>-s<seed>`, preset and overrides."""

    name: str
    preset: str
    overrides: tuple[str, ...]

    def config(self) -> Config:
        """The resolved configuration."""
        return resolve(self.preset, self.overrides)


def _one(base: str, arm: str, seed: int, extra: Sequence[str]) -> Experiment:
    shared = (f"base={base}", f"seed={seed}", "checkpoint.every=30", "checkpoint.keep=100")
    return Experiment(f"tiny-ar-{base}-{arm}-s{seed}", "tiny", (*shared, *extra))


def joint_grid() -> list[Experiment]:
    """The headline: both bases, the method beside random and oracle rewards, five seeds."""
    return [_one(base, arm, seed, extra) for seed in SEEDS for base in BASES for arm, extra in ARMS.items()]


def rate_grid() -> list[Experiment]:
    """The learning-rate curve on the clean base, two seeds."""
    preset = resolve("tiny")
    grid = []
    for factor in RATE_FACTORS:
        rates = [f"{role}.learning_rate={getattr(preset, role).learning_rate * factor:g}"
                 for role in ("solver", "generator")]
        grid += [_one("clean", f"lr-{factor:g}", seed, rates) for seed in range(2)]
    return grid


def vote_grid() -> list[Experiment]:
    """Pseudo-labels without a vote on both bases, three seeds."""
    return [_one(base, "no-vote", seed, NO_VOTE) for base in BASES for seed in range(3)]


def update_grid() -> list[Experiment]:
    """The Solver's other updates on both bases, three seeds."""
    return [_one(base, update, seed, [f"solver.update={update}"])
            for base in BASES for update in UPDATES for seed in range(3)]


def committed_grid() -> list[Experiment]:
    """Every run behind `results/measured`, the headline first; photographs apart, since they are not shipped."""
    return joint_grid() + rate_grid() + update_grid() + vote_grid()


def measure_base(base: str, folder: Path, split: str = "test") -> dict[str, float]:
    """Measure an untrained base and choose its best decoding on dev; returns that decoding."""
    folder.mkdir(parents=True, exist_ok=True)
    config = resolve("tiny", [f"base={base}"])
    backbone = open_backbone(config)
    (temperature, guidance), scores = best_decoding(backbone, None, "dev")
    best = {"temperature": temperature, "guidance": guidance}
    write_json(folder / "decodings.json", {"split": "dev", "scores": scores, "best": best})
    evaluate_base(config, folder, split, best, sizes=FULL)
    few = {"per_tag": CURVE_SIZES["per_tag"], "samples": CURVE_SIZES["samples"]}
    curve = {name: evaluate_drawings(backbone, None, "dev", **few, **decoding).summary()["overall"]
             for name, decoding in (("drawings/overall", {}), ("drawings_best/overall", best))}
    write_json(folder / "curve_base.json", curve)
    return best


def finished(experiment: Experiment, measured: Path) -> bool:
    """Whether the experiment's measured folder is complete and was made by the same configuration."""
    folder = measured / "runs" / experiment.name
    if not (folder / "metrics.json").is_file():
        return False
    return RunDirectory(folder).config == json.loads(json.dumps(experiment.config().model_dump()))


def run_experiment(experiment: Experiment, work: Path, measured: Path, curve: Callable[[Path], Path] | None = None,
                   progress: Callable[[int, list[dict[str, Any]]], None] | None = None) -> Path:
    """Train (or resume), evaluate on test, and copy what a report needs to `measured/runs/<id>`; skips finished ones.

    The log is gzipped without a time stamp, so equal logs give equal bytes.
    """
    target = measured / "runs" / experiment.name
    if finished(experiment, measured):
        return target
    config, path = experiment.config(), work / experiment.name
    train(config, path, resume=True, judge=ShapesJudge() if config.control == "oracle" else None, progress=progress)
    base = measured / "base" / measured_name(config.backbone, config.base)
    best = json.loads((base / "decodings.json").read_text(encoding="utf-8"))["best"]
    evaluate_run(path, "test", best)
    if curve is not None:
        curve(path)
    if experiment.name.endswith("joint-s0"):
        _show(path, base)
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in KEPT:
        if (path / name).is_file():
            shutil.copyfile(path / name, aside / name)
    pack(path / "log.jsonl", aside / "log.jsonl.gz")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _show(path: Path, base: Path) -> None:
    """Before and after of one run, by the fixed rule of `report.examples`."""
    run, backbone, _ = open_run(path)
    write_examples(backbone, Measurement(base.name, base), Measurement(run.path.name, run.path))


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
    return _one("clean", "photos", 0, ["pool.path=data/photos"])
