"""Drift: the first field that differs is named, and two recordings by one version agree."""

import json
from pathlib import Path

import pytest
from paths import ROOT
from typer.testing import CliRunner

from asgkit.cli import app
from asgkit.errors import Refused
from asgkit.experiments import drift
from asgkit.experiments.drift import compare_runs, run_drift

RECORDS = [{"step": 1, "image": "a.png", "x": 0.5, "y": ["q"]}, {"step": 2, "image": "b.png", "x": 0.25, "y": []}]


def run_of(folder: Path, records: list[dict], *, weights: bytes = b"w", sheet: bytes = b"s") -> Path:
    """A run directory as far as the comparison looks."""
    for name, content in (("checkpoints/step_000010/solver/adapter.safetensors", b"old"),
                          ("checkpoints/step_000020/solver/adapter.safetensors", weights),
                          ("samples/step_000004.png", sheet)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def changed(index: int, **values) -> list[dict]:
    return [record | (values if i == index else {}) for i, record in enumerate(RECORDS)]


@pytest.mark.parametrize(("records", "files", "first"), [
    (RECORDS, {}, ""),
    (changed(1, x=0.26), {}, "step 2, b.png, x: 0.25 against 0.26"),
    (changed(0, y=["p"]), {"weights": b"v"}, "step 1, a.png, y: ['q'] against ['p']"),
    (changed(1, z=None), {}, "step 2, b.png, z: 'absent' against None"),
    (RECORDS[:1], {}, "2 records against 1"),
    (RECORDS, {"weights": b"v"}, "checkpoints/step_000020/solver/adapter.safetensors differs"),
    (RECORDS, {"sheet": b"t"}, "samples/step_000004.png differs"),
])
def test_the_first_difference_is_named(tmp_path, records, files, first):
    found = compare_runs("r", run_of(tmp_path / "a", RECORDS), run_of(tmp_path / "b", records, **files))
    assert found == drift.Drift("r", 2, 2, 8, 2, first)


def test_recorded_runs_are_compared_without_making_any(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "record_side", lambda *a, **k: pytest.fail("nothing is to be recorded"))
    for side in "ab":
        for name in drift.run_names(["tiny-ar"]):
            run_of(tmp_path / side / name, RECORDS)
    sides = str(tmp_path / "a"), str(tmp_path / "b")
    found = run_drift(*sides, tmp_path / "work", steps=3, backbones=["tiny-ar"])
    assert [row.run for row in found] == ["tiny-ar-smoke", "tiny-ar-loop"] and not any(row.first for row in found)
    assert CliRunner().invoke(app, ["drift", *sides, "--backbones", "tiny-ar"]).exit_code == 0
    run_of(tmp_path / "b" / "tiny-ar-loop", changed(0, x=1.0))
    shown = CliRunner().invoke(app, ["drift", *sides, "--backbones", "tiny-ar"])
    assert shown.exit_code == 1 and "step 1, a.png, x: 0.5 against 1.0" in shown.output


def test_a_side_that_is_nothing_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(Refused, match="'no-such-commit' is no commit of this clone"):
        run_drift("no-such-commit", ".", tmp_path, steps=1, backbones=["tiny-ar"])
    with pytest.raises(Refused, match="no run in .*record that side again"):
        compare_runs("r", run_of(tmp_path / "a", RECORDS), tmp_path / "b")


@pytest.mark.slow
def test_one_version_agrees_with_itself_and_a_failing_side_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "CASES", {"short": ("--preset", "smoke", "schedule.images=2", "schedule.understanding=1",
                                                   "schedule.generation=1")})
    said: list[str] = []
    (row,) = run_drift(str(ROOT), str(ROOT), tmp_path, steps=2, backbones=["tiny-ar"], say=said.append)
    assert row == drift.Drift("tiny-ar-short", 2, 4, row.fields, 4, "") and row.fields > 100
    assert said == ["a: tiny-ar-short", "b: tiny-ar-short"]
    with pytest.raises(Refused, match="tiny-ar-short failed in .*seeed"):
        monkeypatch.setattr(drift, "CASES", {"short": ("--preset", "smoke", "seeed=1")})
        run_drift(str(ROOT), str(ROOT), tmp_path / "again", steps=2, backbones=["tiny-ar"], say=said.append)
