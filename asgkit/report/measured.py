"""Read `results/measured`: bases and runs with their per-item results, each score checked against its items."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from asgkit.config import measured_name
from asgkit.runs.files import sha256
from asgkit.runs.packed_log import NAME as LOG
from asgkit.runs.packed_log import read_packed_log

EVIDENCE = ("config.yaml", "metrics.json", "items.npz", "curve.csv", "blind.csv", LOG, "examples.npz", "premise.json",
            "judging.json", "curve_base.json", "decodings.json")
MAIN = {"answers": "single", "drawings": "overall"}  # the metric that stands for each side in a figure
LIMIT = 60e6  # bytes that results/measured may take: it is cloned with the code


class Untraceable(ValueError):
    """A number that cannot be traced to measured items; no report prints it."""


@dataclass(frozen=True)
class Measurement:
    """A folder with metrics.json and items.npz; scores are percentages, items per-item values in [0, 1]."""

    name: str
    path: Path

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """metrics.json: step, split, best_decoding, scores."""
        return json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))

    @cached_property
    def items(self) -> dict[str, np.ndarray]:
        """items.npz as arrays; no pickled objects are read."""
        with np.load(self.path / "items.npz", allow_pickle=False) as held:
            return dict(held)

    def values(self, metric: str) -> np.ndarray:
        """Per-item values (Q,) of a metric such as `answers/single` or `drawings/tag/two`.

        Raises Untraceable when metrics.json does not hold the mean of exactly these items.
        """
        found = _item_values(self.items, metric)
        printed = self.metrics["scores"].get(metric)
        if printed is None or abs(100.0 * found.mean() - printed) > 1e-4:
            raise Untraceable(f"{self.name}: {metric} is {printed} in metrics.json but {100 * found.mean():.6g} by its "
                              "items; evaluate it again: asgkit eval")
        return found

    def evidence(self) -> list[Path]:
        """The files that a number of this measurement rests on."""
        return [self.path / name for name in EVIDENCE if (self.path / name).is_file()]


@dataclass(frozen=True)
class Run(Measurement):
    """One training run; its id is `<backbone>-<base>-<arm>-s<seed>`."""

    base: str = ""  # "<backbone>-<base>"
    arm: str = ""
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""

    def curve(self) -> pd.DataFrame:
        """curve.csv as rows (arm, seed, step, side, metric, value); empty when there is none.

        Long files have columns step, side, metric, value; wide ones have step and a column per `side/metric`.
        """
        columns = ["arm", "seed", "step", "side", "metric", "value"]
        path = self.path / "curve.csv"
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        frame = pd.read_csv(path)
        if "side" not in frame:
            frame = frame.melt(id_vars="step", var_name="name", value_name="value")
            frame[["side", "metric"]] = frame.pop("name").str.split("/", n=1, expand=True)
        return frame.assign(arm=self.arm, seed=self.seed)[columns]

    def blind(self) -> pd.DataFrame:
        """blind.csv as rows (base, arm, seed, step, mode, family, value); empty when there is none."""
        columns = ["base", "arm", "seed", "step", "mode", "family", "value"]
        path = self.path / "blind.csv"
        if not path.is_file():
            return pd.DataFrame(columns=columns)
        return pd.read_csv(path, keep_default_na=False).assign(base=self.base, arm=self.arm, seed=self.seed)[columns]

    @property
    def log_path(self) -> Path | None:
        """The packed log, None when there is none."""
        return self.path / LOG if (self.path / LOG).is_file() else None

    def log(self, fields: Sequence[str] | None = None) -> pd.DataFrame:
        """The log, one row per record; empty when there is none.

        fields: columns wanted, missing values where a record lacks one; a few are read ten times faster than all.
        """
        path = self.log_path
        if path is None:
            return pd.DataFrame(columns=list(fields or ()))
        records = read_packed_log(path)
        if fields is None:
            return pd.DataFrame(records)
        return pd.DataFrame([[record.get(name) for name in fields] for record in records], columns=list(fields))


@dataclass(frozen=True)
class Measured:
    """Everything measured: bases by `<backbone>-<base>`, runs in the order of their ids, and what is unfinished."""

    bases: dict[str, Measurement]
    runs: list[Run]
    unfinished: list[str]

    def arms(self, base: str) -> dict[str, list[Run]]:
        """Runs of one base by arm, seeds in order."""
        arms: dict[str, list[Run]] = {}
        for run in sorted((r for r in self.runs if r.base == base), key=lambda r: (r.arm, r.seed)):
            arms.setdefault(run.arm, []).append(run)
        return arms


def load_measured(results_dir: str | Path) -> Measured:
    """Open `<results_dir>/measured`; a folder without metrics.json and items.npz is listed as unfinished.

    Hidden folders are left out: `.NAME.partial` is what a run being published, or killed while it was, leaves.
    Raises Untraceable when a run's id does not say what its configuration says.
    """
    root = Path(results_dir) / "measured"
    bases = {p.name: Measurement(p.name, p) for p in _folders(root / "base") if _finished(p)}
    runs = [_open_run(p) for p in _folders(root / "runs") if _finished(p)]
    unfinished = [p.name for kind in ("base", "runs") for p in _folders(root / kind) if not _finished(p)]
    return Measured(bases, runs, unfinished)


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _finished(path: Path) -> bool:
    return (path / "metrics.json").is_file() and (path / "items.npz").is_file()


def _open_run(path: Path) -> Run:
    content = (path / "config.yaml").read_bytes()
    config = yaml.safe_load(content)
    base = measured_name(config["backbone"], config["base"])
    start, end = f"{base}-", f"-s{config['seed']}"
    if not (path.name.startswith(start) and path.name.endswith(end) and len(path.name) > len(start + end)):
        raise Untraceable(f"run {path.name} has base {base} and seed {config['seed']} in its config.yaml: name it "
                          f"{start}<arm>{end}")
    arm = path.name[len(start) : -len(end)]
    return Run(path.name, path, base, arm, int(config["seed"]), config, sha256(content))


def unchanged(base: Measurement, run: Measurement, metric: str) -> bool:
    """Whether every raw result behind a metric is the same on base and run, question by question, drawing by drawing.

    Stricter than a difference of 0: under `answers/single` all framings must agree, not only their mean.
    """
    return all(np.array_equal(a, b) for a, b in zip(*(_raw(m.items, metric) for m in (base, run)), strict=True))


def measured_bytes(results_dir: str | Path) -> int:
    """Bytes of all files below `<results_dir>/measured`; LIMIT is what a clone should carry."""
    return sum(path.stat().st_size for path in (Path(results_dir) / "measured").rglob("*") if path.is_file())


_ANSWERS = {"single": "framings", "sampled": "sampled", "canonical": "canonical", "majority": "majority",
            "agreement": "fraction"}


def _raw(items: dict[str, np.ndarray], metric: str) -> tuple[np.ndarray, ...]:
    """The arrays behind a metric: (N, Q) or (Q,) for answers, (P, S) for drawings."""
    side, name = metric.split("/", 1)
    if side == "answers":
        name, _, family = name.partition("/")
        values = items[_ANSWERS[name]]
        return (values[..., items["family"] == family] if family else values,)
    return (items[side] if name == "overall" else items[side][items["tag"] == name.removeprefix("tag/")],)


def _item_values(items: dict[str, np.ndarray], metric: str) -> np.ndarray:
    side, name = metric.split("/", 1)
    if side == "answers":
        name, _, family = name.partition("/")
        if name not in _ANSWERS:
            raise Untraceable(f"no per-item values are kept for {metric}")
        values = items[_ANSWERS[name]].astype(np.float64)
        values = values.mean(0) if values.ndim == 2 else values
        return values[items["family"] == family] if family else values
    if side not in ("drawings", "drawings_best"):
        raise Untraceable(f"no per-item values are kept for {metric}")
    values = items[side].astype(np.float64).mean(1)  # a prompt is one item: its drawings are not independent
    tag = name.removeprefix("tag/")
    return values if name == "overall" else values[items["tag"] == tag]


def same_items(base: Measurement, run: Measurement) -> None:
    """Raise Untraceable unless both were measured on the same split, items and decoding."""
    for key in ("split", "best_decoding"):
        if base.metrics[key] != run.metrics[key]:
            raise Untraceable(f"{run.name} has {key} {run.metrics[key]}, {base.name} has {base.metrics[key]}: evaluate "
                              "both alike")
    for key in ("family", "tag"):
        if not np.array_equal(base.items[key], run.items[key]):
            raise Untraceable(f"{run.name} and {base.name} were measured on different items ({key}): use equal sizes")
    if base.items["drawings"].shape != run.items["drawings"].shape:
        raise Untraceable(f"{run.name} and {base.name} have different numbers of drawings per prompt")
