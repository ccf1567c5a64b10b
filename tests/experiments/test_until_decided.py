"""Seeds until decided, on made measurements: who gets a seed, when it stops, that stopping and going on agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from asgkit.cli import batch as command
from asgkit.cli.app import app
from asgkit.errors import Refused
from asgkit.experiments.until_decided import Plan, as_json, until_decided
from asgkit.grids.load import Grid, GridRun
from asgkit.runs.files import write_json

BASE = "tiny-ar-clean"
FLAT = {"answers/single": 0.5, "drawings/overall": 0.5}


def measurement(folder: Path, answers: float, drawings: float = 0.5) -> None:
    """A folder whose 20 questions and 20 prompts differ from each other, but by the same amount everywhere."""
    folder.mkdir(parents=True)
    level = np.linspace(-0.2, 0.2, 20)
    items = {"framings": (answers + level)[None], "drawings": (drawings + level)[:, None],
             "family": np.array(["f"] * 20), "tag": np.array(["t"] * 20)}
    np.savez(folder / "items.npz", **items)
    write_json(folder / "metrics.json", {"split": "test", "best_decoding": {"temperature": 1.0}, "scores": {
        "answers/single": 100 * items["framings"].mean(), "drawings/overall": 100 * items["drawings"].mean()}})


def grid(**more) -> Grid:
    content = {"title": "t", "question": "q", "preset": "smoke", "seeds": [0, 1, 2], "reference": "joint",
               "arms": {"joint": [], "other": []}}
    return Grid.model_validate(content | more)


class Trainer:
    """Makes measurements in place of trainings: arm and seed -> score of the answers; keeps what it was asked for."""

    def __init__(self, folder: Path, score) -> None:
        self.folder, self.score, self.asked = folder, score, []
        if not (folder / "base").exists():
            measurement(folder / "base" / BASE, 0.5)

    def __call__(self, runs: list[GridRun]) -> bool:
        self.asked.append([(run.arm, run.seed) for run in runs])
        for run in runs:
            folder = self.folder / "runs" / run.experiment.name
            if not folder.exists():
                measurement(folder, self.score(run.arm, run.seed))
        return True


def verdicts(states) -> dict[tuple[str, str, str], str]:
    return {(s.contrast.arm, s.contrast.against, s.contrast.metric.split("/")[0]): s.verdict for s in states}


def test_what_is_clear_at_once_gets_no_further_seed(tmp_path):
    trainer = Trainer(tmp_path, lambda arm, seed: {"joint": 0.6, "other": 0.55}[arm] + 0.0001 * seed)
    states = until_decided(Plan.of(grid(), tmp_path, 10, 1.0), trainer, [].append)
    assert trainer.asked == [[(arm, seed) for seed in range(3) for arm in ("joint", "other")]]
    assert verdicts(states) == {("joint", "base", "answers"): "gain", ("joint", "base", "drawings"): "no effect",
                                ("other", "joint", "answers"): "loss", ("other", "joint", "drawings"): "no effect"}
    assert {s.decision.seeds for s in states} == {3}


def noisy(arm: str, seed: int) -> float:
    """joint gains much and evenly; other gains as much, but now more and now less, so only many seeds can tell."""
    return 0.6 + (0.012 * (-1) ** seed if arm == "other" else 0.0)


def test_open_comparisons_get_seeds_one_at_a_time_up_to_the_maximum(tmp_path):
    trainer, said = Trainer(tmp_path, noisy), []
    states = until_decided(Plan.of(grid(), tmp_path, 6, 1.0), trainer, said.append)
    assert trainer.asked[1:] == [[("other", seed), ("joint", seed)] for seed in (3, 4, 5)]  # matched: both train it
    told = verdicts(states)
    assert (told["other", "joint", "answers"], told["joint", "base", "answers"]) == ("open", "gain")
    still = next(s for s in states if s.verdict == "open")
    assert still.seeds == (0, 1, 2, 3, 4, 5) and still.decision.seeds == 6 and not still.lacks
    assert said[0] == "3 of 4 comparisons decided; 2 more runs" and said[-1] == "3 of 4 comparisons decided"


def test_no_effect_needs_enough_seeds_and_is_then_found(tmp_path):
    trainer = Trainer(tmp_path, lambda arm, seed: 0.6 + (0.004 * (-1) ** seed if arm == "other" else 0.0))
    states = until_decided(Plan.of(grid(), tmp_path, 12, 1.0), trainer, [].append)
    found = next(s for s in states if s.contrast.arm == "other" and s.contrast.metric == "answers/single")
    assert found.verdict == "no effect" and 3 < found.decision.seeds == len(found.seeds) < 12


def test_a_batch_that_was_stopped_goes_on_to_the_same_end(tmp_path):
    first = Trainer(tmp_path, noisy)
    until = until_decided(Plan.of(grid(), tmp_path, 6, 1.0), first, [].append)
    again = Trainer(tmp_path, lambda arm, seed: pytest.fail("trained twice"))
    more = until_decided(Plan.of(grid(), tmp_path, 6, 1.0), again, [].append)
    assert more == until and again.asked == first.asked
    broken = until_decided(Plan.of(grid(), tmp_path, 6, 1.0), lambda runs: False, [].append)
    assert broken is None


def test_arms_with_fewer_seeds_are_matched_to_what_is_there(tmp_path):
    arms = {"joint": [], "other": {"overrides": [], "seeds": [0, 1]}}
    trainer = Trainer(tmp_path, noisy)
    until_decided(Plan.of(grid(seeds=[0, 1, 2, 3], arms=arms), tmp_path, 5, 1.0), trainer, [].append)
    assert trainer.asked[1:] == [[("other", 2)], [("other", 3)], [("other", 4), ("joint", 4)]]


def test_a_reference_of_another_grid_is_read_and_never_trained(tmp_path):
    only = grid(arms={"other": []})
    trainer = Trainer(tmp_path, noisy)
    for seed in range(4):
        measurement(tmp_path / "runs" / f"{BASE}-joint-s{seed}", 0.6)
    states = until_decided(Plan.of(only, tmp_path, 8, 1.0), trainer, [].append)
    assert trainer.asked == [[("other", 0), ("other", 1), ("other", 2)], [("other", 3)]]
    still = next(s for s in states if s.contrast.metric == "answers/single")
    assert still.verdict == "open" and still.lacks == f"{BASE}-joint has no seed 4, and this grid does not train it"
    rows = as_json(states, 8, 1.0)["contrasts"]
    assert rows[0]["seeds"] == 4 and rows[0]["low"] < 0 < rows[0]["high"] and 0.95 < rows[0]["level"] < 1


def test_without_any_seed_of_the_reference_nothing_is_said(tmp_path):
    states = until_decided(Plan.of(grid(arms={"other": []}), tmp_path, 8, 1.0), Trainer(tmp_path, noisy), [].append)
    assert {(s.verdict, s.decision, s.seeds) for s in states} == {("open", None, ())}
    assert all("joint has no seed 3" in s.lacks for s in states)
    assert "delta" not in as_json(states, 8, 1.0)["contrasts"][0]


def test_a_maximum_below_the_grids_own_seeds_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"arm 'joint' on tiny-ar-clean.*got 3 and 2; raise --max-seeds"):
        Plan.of(grid(), tmp_path, 2, 1.0)


# -- the command ------------------------------------------------------------------------------------------------------
def test_the_command_decides_writes_and_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("g.yaml").write_text(json.dumps({"title": "t", "question": "q", "preset": "smoke", "seeds": [0, 1, 2],
                                          "reference": "joint", "arms": {"joint": [], "other": []}}))
    trainer = Trainer(tmp_path / "measured", noisy)
    monkeypatch.setattr(command, "_run", lambda held, tasks, runs, measured, workers: trainer(runs))
    monkeypatch.setattr("asgkit.experiments.batch.prepare", lambda runs, measured: None)
    monkeypatch.setattr("asgkit.experiments.batch.check_parameters", lambda notebook, parameters: None)
    monkeypatch.setattr("asgkit.experiments.batch.content_hash", lambda run, notebook: "t")
    options = ["batch", "g.yaml", "--measured", "measured", "--until-decided", "--max-seeds", "4"]
    shown = CliRunner().invoke(app, options, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    held = json.loads(Path("results/runs/batch/g/decisions.json").read_text())
    assert (held["max_seeds"], held["margin"]) == (4, 1.0)
    assert [row["verdict"] for row in held["contrasts"]] == ["gain", "no effect", "open", "no effect"]
    assert "other - joint" in shown.output and "+10.0 [+10.0, +10.0] at 96.3%, 3 seeds" in shown.output
    refused = CliRunner().invoke(app, [*options, "--only", "*-s0"], env={"COLUMNS": "200"})
    assert refused.exit_code == 2 and "leave --only out" in refused.stderr
    monkeypatch.setattr(command, "_run", lambda *rest: False)
    assert CliRunner().invoke(app, options).exit_code == 1
