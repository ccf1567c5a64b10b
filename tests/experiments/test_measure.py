"""The committed experiments: one list of the shipped grids, what counts as finished, and runs made small."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import RESULTS

from asgkit.config import resolve
from asgkit.experiments import measure as experiments
from asgkit.experiments.measure import (
    Experiment,
    base_measured,
    committed_grid,
    committed_runs,
    finished,
    measure_base,
    photo_experiment,
    run_experiment,
    same_config,
)
from asgkit.grids.load import GridError, load_grid, make_experiment, shipped_grids
from asgkit.report.measured import Measurement, load_measured, same_items

SIZES = {"per_family": 1, "per_tag": 1, "samples": 1}
SMALL = ("schedule.images=2", "schedule.steps=2", "schedule.understanding=1", "schedule.generation=1", "precision=fp32",
         "generator.candidates=2", "generator.questions=2", "generator.votes=1", "solver.framings=3", "device=cpu")


# -- the list -------------------------------------------------------------------------------------------------------
def test_every_run_of_every_shipped_grid_is_there_once_and_the_headline_first() -> None:
    names = [experiment.name for experiment in committed_grid()]
    grids = {name: {e.name for e in load_grid(path).experiments()} for name, path in shipped_grids().items()}
    assert len(set(names)) == len(names) and set(names) == set().union(*grids.values())
    assert set(names[: len(grids["headline"])]) == grids["headline"]
    assert [run.experiment.name for run in committed_runs()] == names


def grid_file(folder: Path, name: str, **arms: list[str]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"title": name, "question": "q", "seeds": [0], "arms": arms}, sort_keys=False))
    return path


def test_a_run_of_two_grids_counts_once_and_must_be_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: grid_file(tmp_path, name, joint=[], **{name: ["kl.rate=1"]}) for name in ("a", "headline")}
    monkeypatch.setattr(experiments, "shipped_grids", lambda: files)
    assert [e.name for e in committed_grid()] == [f"tiny-ar-clean-{arm}-s0" for arm in ("joint", "headline", "a")]
    grid_file(tmp_path, "a", joint=["kl.rate=1"])
    with pytest.raises(GridError, match="tiny-ar-clean-joint-s0 is another one"):
        committed_grid()


def test_the_measured_runs_are_experiments_of_the_list() -> None:
    known = {experiment.name: experiment for experiment in [*committed_grid(), photo_experiment()]}
    runs = [run.name for run in load_measured(RESULTS).runs]
    assert len(runs) >= 20 and not set(runs) - known.keys()
    assert [name for name in runs if not finished(known[name], RESULTS / "measured")] == []


def test_the_photographs_keep_their_name_and_settings() -> None:
    assert photo_experiment().name == "tiny-ar-clean-photos-s0"
    assert photo_experiment().config() == resolve("tiny", ["seed=0", "checkpoint.every=30", "checkpoint.keep=100",
                                                           "pool.path=data/photos"])


# -- finished -------------------------------------------------------------------------------------------------------
def test_stored_keys_must_agree_and_later_ones_be_the_presets() -> None:
    preset = {"a": 1, "b": {"c": 2, "new": 3}}
    assert same_config(preset, preset, preset)
    assert same_config({"a": 1, "b": {"c": 2}}, preset, preset)
    assert same_config({"a": 5, "b": {"c": 2}}, {"a": 5, "b": {"c": 2, "new": 3}}, preset)
    assert not same_config({"a": 5, "b": {"c": 2}}, preset, preset), "a stored key differs"
    assert not same_config({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2, "new": 4}}, preset), "a later key is set"
    assert not same_config({**preset, "gone": 1}, preset, preset), "the kit has lost a key"


def test_a_run_of_an_earlier_version_is_finished_unless_a_new_key_is_set(tmp_path: Path) -> None:
    plain = make_experiment("tiny", "tiny-flow", "clean", "joint", 0)
    folder = tmp_path / "runs" / plain.name
    folder.mkdir(parents=True)
    stored = plain.config().model_dump(mode="json")
    del stored["generator"]["regression"], stored["generator"]["scorer"]
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    assert not finished(plain, tmp_path), "there are no scores"
    (folder / "metrics.json").write_text("{}")
    assert finished(plain, tmp_path)
    change = lambda *more: Experiment(plain.name, plain.preset, (*plain.overrides, *more))
    assert not finished(change("generator.scorer=frozen"), tmp_path)
    assert not finished(change("schedule.steps=7"), tmp_path)


# -- made small -----------------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "CURVE_SIZES", SIZES)
    monkeypatch.setattr("asgkit.evals.shapes.DECODINGS", ((1.0, 1.0), (0.7, 1.0)))


def test_a_base_is_measured_whole_and_keeps_other_files(tmp_path: Path, quick: None) -> None:
    folder = tmp_path / "base" / "tiny-diffusion-clean"
    folder.mkdir(parents=True)
    (folder / "premise.json").write_text("{}")
    assert not base_measured(folder)
    config = resolve("tiny", ["backbone=tiny-diffusion", "precision=fp32"])
    best = measure_base(config, folder, "dev", sizes=SIZES)
    assert base_measured(folder) and [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sorted(path.name for path in folder.iterdir()) == ["curve_base.json", "decodings.json", "items.npz",
                                                              "metrics.json", "premise.json"]
    decodings = json.loads((folder / "decodings.json").read_text())
    assert decodings["best"] == best and len(decodings["scores"]) == 2
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["split"], metrics["best_decoding"], metrics["step"]) == ("dev", best, 0)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tiny-flow", "tiny-diffusion"])
def test_a_run_is_trained_scored_shown_and_kept(tmp_path: Path, pool_folder: Path, quick: None, backbone: str) -> None:
    base = tmp_path / "base" / f"{backbone}-clean"
    one = make_experiment("tiny", backbone, "clean", "joint", 0, (*SMALL, f"pool.path={pool_folder}"))
    measure_base(one.config(), base, sizes=SIZES)
    folder = run_experiment(one, tmp_path / "work", tmp_path, sizes=SIZES)
    assert folder == tmp_path / "runs" / f"{backbone}-clean-joint-s0" and finished(one, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "environment.json", "examples.npz",
                                                              "items.npz", "log.columns.xz", "metrics.json"]
    same_items(Measurement(base.name, base), Measurement(one.name, folder))
    with np.load(folder / "examples.npz", allow_pickle=False) as shown:
        assert shown["drawing_base"].shape == shown["drawing_evolved"].shape and shown["drawing_base"].ndim == 4
    before = (folder / "log.columns.xz").stat().st_mtime_ns
    assert run_experiment(one, tmp_path / "elsewhere", tmp_path, sizes=SIZES) == folder
    assert (folder / "log.columns.xz").stat().st_mtime_ns == before and not (tmp_path / "elsewhere").exists()
