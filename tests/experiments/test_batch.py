"""Batches of notebooks: outcomes, sentinel, retry, skipping, resuming, stopping, and what a grid hands to them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from paths import ROOT
from typer.testing import CliRunner

from asgkit.cli.app import app
from asgkit.config import Config
from asgkit.errors import Refused
from asgkit.experiments import batch
from asgkit.experiments.batch import Batch, Task, check_parameters, content_hash, headline, prepare
from asgkit.experiments.job import has_sentinel
from asgkit.grids.load import GridRun
from asgkit.report.measured import Untraceable
from asgkit.runs.files import write_json

RUN = GridRun("smoke", "tiny-ar", "clean", "joint", 0, ("solver.framings=3",), False)
PARAMETERS = 'mode: str = ""  # what happens\nplace: str = ""  # folder of traces\ntoken: str = ""  # of this run\n'
# One fake for every fate: each start leaves a mark, so that a test can count the attempts.
BODY = """
import os, time
from pathlib import Path
marks = Path(place)
marks.joinpath(f"start-{os.getpid()}").write_text(os.environ["OMP_NUM_THREADS"])
if mode == "fail":
    raise ValueError("no such luck")
if mode == "kill" or (mode == "kill once" and len(list(marks.iterdir())) == 1):
    os.kill(os.getpid(), 9)
if mode == "hang":
    time.sleep(600)
"""
LAST = 'if mode != "silent":\n    print("finished", token)'


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(BODY), nbformat.v4.new_code_cell(LAST)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "fake.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def task(tmp_path: Path, name: str, mode: str = "", token: str = "t1") -> Task:
    place = tmp_path / "marks" / name
    place.mkdir(parents=True, exist_ok=True)
    return Task(name, {"mode": mode, "place": str(place), "token": token}, token)


def starts(tmp_path: Path, name: str) -> list[str]:
    return [path.read_text() for path in (tmp_path / "marks" / name).iterdir()]


def files(held: Batch) -> list[str]:
    return sorted(path.name for path in (held.folder / "notebooks").iterdir())


# -- outcomes -------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_every_outcome_is_told_apart_and_the_others_go_on(tmp_path: Path, notebook: Path) -> None:
    held, said = Batch.open(tmp_path / "work", notebook), []
    modes = {"good": "", "bad": "fail", "silent": "silent", "dead": "kill", "unlucky": "kill once"}
    tasks = [task(tmp_path, name, mode) for name, mode in modes.items()]
    tasks.append(replace(task(tmp_path, "unmeasured"), evidence=tmp_path / "metrics.json"))
    assert held.run(tasks, workers=2, say=said.append, measure=lambda name: {"answers": 1.0}) is False
    found = {name: (entry["status"], entry["attempts"]) for name, entry in held.entries.items()}
    assert found == {"good": ("done", 1), "bad": ("failed", 1), "silent": ("failed", 1), "dead": ("failed", 2),
                     "unlucky": ("done", 2), "unmeasured": ("failed", 1)}
    assert "ValueError: no such luck" in held.entries["bad"]["message"]
    assert "did not print" in held.entries["silent"]["message"]
    assert "kernel died" in held.entries["dead"]["message"]
    assert "metrics.json is missing" in held.entries["unmeasured"]["message"]
    assert [len(starts(tmp_path, name)) for name in modes] == [1, 1, 1, 2, 2]
    assert set(starts(tmp_path, "good")) == {"1"}, "one thread each"
    assert held.entries["good"]["metrics"] == {"answers": 1.0} and held.entries["bad"]["metrics"] == {}
    assert files(held) == ["bad.failed.ipynb", "bad.log", "dead.log", "good.ipynb", "silent.failed.ipynb",
                           "silent.log", "unlucky.ipynb", "unmeasured.ipynb", "unmeasured.log"]
    assert has_sentinel(held.output("good"), "t1") and not has_sentinel(held.output("good"), "t2")
    assert json.loads((held.folder / "manifest.json").read_text())["runs"] == held.entries
    assert "6 runs, 0 done already" in said and any("starting it once more" in line for line in said)


@pytest.mark.slow
def test_what_is_done_is_skipped_by_its_hash_and_the_rest_is_made_again(tmp_path: Path, notebook: Path) -> None:
    first = Batch.open(tmp_path / "work", notebook)
    assert first.run([task(tmp_path, "a"), task(tmp_path, "b", "fail")], workers=2, say=[].append) is False
    again = Batch.open(tmp_path / "work", notebook)
    tasks = [task(tmp_path, "a"), task(tmp_path, "b")]
    assert [again.state(t) for t in tasks] == ["done", "failed"]
    assert again.run(tasks, say=[].append) is True
    assert len(starts(tmp_path, "a")) == 1 and len(starts(tmp_path, "b")) == 2
    assert files(again) == ["a.ipynb", "b.ipynb"], "what failed before leaves nothing behind"
    assert again.state(task(tmp_path, "a", token="t2")) == "changed"
    again.output("a").unlink()
    assert again.state(tasks[0]) == "lost"
    assert again.state(Task("b", tasks[1].parameters, "t1", tmp_path / "metrics.json")) == "lost"


STOPPED = """
import signal, sys
from pathlib import Path
from asgkit.experiments.batch import Batch, Task
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests in the background
work, notebook, place = map(Path, sys.argv[1:])
task = Task("a", {"mode": "hang", "place": str(place), "token": "t1"}, "t1")
try:
    Batch.open(work, notebook).run([task])
except KeyboardInterrupt:
    sys.exit(130)
"""


def gone(pid: int) -> bool:
    """Whether a process has ended, within the seconds that a kernel needs to notice."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_stopping_ends_kernels_and_leaves_no_partial(tmp_path: Path, notebook: Path, how: int, code: int) -> None:
    waiting = task(tmp_path, "a", "hang")
    place = tmp_path / "marks" / "a"
    with subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path / "work"), str(notebook), str(place)],
                          stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (kernels := list(place.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            process.send_signal(how)
            assert process.wait(30) == code
        finally:
            process.kill()  # a failed assertion must not wait for it for ever
    assert gone(int(kernels[0].name.removeprefix("start-")))
    held = Batch.open(tmp_path / "work", notebook)
    assert held.state(waiting) == "stopped"
    for _ in range(50):  # after a kill the worker cleans up by itself
        if not [name for name in files(held) if "partial" in name]:
            break
        time.sleep(0.1)
    assert files(held) == ["a.log"]


def test_one_batch_per_folder(tmp_path: Path, notebook: Path) -> None:
    held = Batch.open(tmp_path / "work", notebook)
    with batch._locked(held.folder), pytest.raises(Refused, match="another batch works"):
        held.run([task(tmp_path, "a")], say=[].append)


def test_a_partial_notebook_of_a_killed_batch_is_removed(tmp_path: Path, notebook: Path) -> None:
    held = Batch.open(tmp_path / "work", notebook)
    left = held.output("a").with_suffix(".partial.ipynb")
    left.parent.mkdir(parents=True)
    left.write_text("{")
    assert held.run([], say=[].append) is True and not left.exists()


def test_a_damaged_manifest_names_itself(tmp_path: Path, notebook: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(Refused, match="manifest.json is damaged"):
        Batch.open(tmp_path, notebook)


# -- parameters, sentinel, hash -------------------------------------------------------------------------------------
def test_unknown_parameters_are_refused_before_anything_starts(tmp_path: Path, notebook: Path) -> None:
    check_parameters(notebook, ["mode", "token"])
    with pytest.raises(Refused, match="no parameters colour; .*declares mode, place, token"):
        Batch.open(tmp_path / "work", notebook).run([Task("a", {"colour": 1}, "t1")])
    assert not (tmp_path / "work").exists()
    with pytest.raises(FileNotFoundError, match="no notebook"):
        check_parameters(tmp_path / "none.ipynb", [])


def test_the_sentinel_counts_only_as_last_output_of_the_last_code_cell(tmp_path: Path) -> None:
    def saved(*cells: tuple[str, str]) -> Path:
        made = [nbformat.v4.new_code_cell(source, outputs=[nbformat.v4.new_output("stream", name="stdout", text=text)])
                for source, text in cells]
        nbformat.write(nbformat.v4.new_notebook(cells=[*made, nbformat.v4.new_markdown_cell("end")]), tmp_path / "n")
        return tmp_path / "n"

    assert has_sentinel(saved(("1", "x\n"), ("2", "kept\nfinished abc\n")), "abc")
    assert not has_sentinel(saved(("1", "finished abc\n"), ("2", "")), "abc"), "the last cell did not run"
    assert not has_sentinel(saved(("print('finished abc')", "")), "abc"), "a source is no output"
    assert not has_sentinel(saved(("1", "finished abcd\n")), "abc")


def test_the_content_hash_follows_config_name_and_code_but_no_outputs(notebook: Path) -> None:
    first = content_hash(RUN, notebook)
    changed = [GridRun("smoke", "tiny-ar", "clean", "joint", 0, ("solver.framings=5",), False),
               GridRun("smoke", "tiny-ar", "clean", "other", 0, ("solver.framings=3",), False),
               GridRun("smoke", "tiny-ar", "clean", "joint", 0, ("solver.framings=3",), True)]
    assert len({first, *(content_hash(run, notebook) for run in changed)}) == 4
    same = GridRun("smoke", "tiny-ar", "clean", "joint", 0, ("solver.framings=3", "kl.rate=0.0"), False)
    assert content_hash(same, notebook) == first, "the preset's own value changes nothing"
    made = nbformat.read(notebook, as_version=4)
    made.cells[1].outputs = [nbformat.v4.new_output("stream", text="old")]
    nbformat.write(made, notebook)
    assert content_hash(RUN, notebook) == first
    made.cells[1].source += "\n1"
    nbformat.write(made, notebook)
    assert content_hash(RUN, notebook) != first


# -- bases and scores -----------------------------------------------------------------------------------------------
def measurement(folder: Path, right: float, decoding: float = 1.0) -> None:
    """A folder whose 4 answers and 4 drawings are right to this share."""
    folder.mkdir(parents=True)
    hits = np.arange(4) < 4 * right
    write_json(folder / "metrics.json", {"split": "test", "best_decoding": {"temperature": decoding},
                                         "scores": {"answers/single": 100 * right, "drawings/overall": 100 * right}})
    np.savez(folder / "items.npz", framings=hits[None], drawings=hits[:, None], family=np.array(["f"] * 4),
             tag=np.array(["t"] * 4))


def test_headline_scores_and_changes_by_hand(tmp_path: Path) -> None:
    measurement(tmp_path / "base" / "b", 0.5)
    measurement(tmp_path / "runs" / "r", 0.75)
    assert headline("r", "b", tmp_path) == {"answers": 75.0, "answers_change": 25.0, "drawings": 75.0,
                                            "drawings_change": 25.0}
    measurement(tmp_path / "runs" / "q", 0.75, decoding=0.7)
    with pytest.raises(Untraceable):
        headline("q", "b", tmp_path)


def base_folder(folder: Path, text: str = "1") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("decodings.json", "metrics.json"):
        (folder / name).write_text(text)


def test_bases_are_copied_whole_once(tmp_path: Path) -> None:
    clone, measured = tmp_path / "clone", tmp_path / "measured"
    (clone / "data" / "pool").mkdir(parents=True)
    base_folder(clone / "results" / "measured" / "base" / "tiny-ar-clean")
    prepare([RUN], measured, clone)
    copied = measured / "base" / "tiny-ar-clean" / "decodings.json"
    assert copied.read_text() == "1"
    copied.write_text("2")
    prepare([RUN], measured, clone)
    assert copied.read_text() == "2", "a base measured here is left alone"
    assert [path.name for path in (measured / "base").iterdir()] == ["tiny-ar-clean"]


def test_a_base_that_is_nowhere_is_measured_once_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called, said = [], []

    def measure(config: Config, folder: Path) -> None:
        called.append((config.backbone, config.base))
        base_folder(folder)

    monkeypatch.setattr("asgkit.experiments.measure.measure_base", measure)
    (tmp_path / "data" / "pool").mkdir(parents=True)
    half = tmp_path / "measured" / "base" / "tiny-ar-clean"  # of a measurement that was stopped
    half.mkdir(parents=True)
    (half / "decodings.json").write_text("1")
    runs = [RUN, replace(RUN, seed=1), replace(RUN, backbone="tiny-flow")]
    for _ in range(2):
        prepare(runs, tmp_path / "measured", tmp_path, said.append)
    assert called == [("tiny-ar", "clean"), ("tiny-flow", "clean")]
    assert len(said) == 2 and "measuring the base tiny-flow-clean" in said[1]


# -- the command ----------------------------------------------------------------------------------------------------
def asgkit(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["batch", *arguments], env={"COLUMNS": "200"})
    assert result.exit_code in (0, 2), result.output
    return result.output if result.exit_code == 0 else result.stderr


def test_the_command_lists_plans_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    listed = asgkit("--list")
    assert all(name in listed for name in ("headline", "coupling", "30"))
    plan = asgkit("coupling", "--dry-run", "--only", "tiny-ar-*-u-only-s?", "--work", str(tmp_path / "w"))
    assert "tiny-ar-clean-u-only-s2" in plan and "g-only" not in plan and "3 new: 3 to run" in plan
    assert not (tmp_path / "w").exists(), "a dry run writes nothing"
    assert "did you mean 'coupling'" in asgkit("copling")
    assert "no run matches --only 'x'" in asgkit("coupling", "--only", "x")
    assert "--list" in asgkit()
    monkeypatch.chdir(tmp_path)
    assert "in the folder of the clone" in asgkit("coupling")


@pytest.mark.slow
def test_the_command_runs_a_grid_through_a_notebook_and_skips_it_afterwards(tmp_path: Path,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grid = {"title": "t", "question": "q", "preset": "smoke", "seeds": [0], "arms": {"joint": []}}
    Path("g.yaml").write_text(json.dumps(grid))
    Path("data/pool").mkdir(parents=True)
    for kind, name in (("base", "tiny-ar-clean"), ("runs", "tiny-ar-clean-joint-s0")):
        measurement(Path("measured") / kind / name, 0.5)
    Path("measured/base/tiny-ar-clean/decodings.json").write_text("{}")
    shutil.copyfile(ROOT / "notebooks" / "batch" / "run.ipynb", "run.ipynb")
    made = nbformat.read("run.ipynb", as_version=4)
    keep = [cell for cell in made.cells if "parameters" in cell.metadata.get("tags", [])]
    made.cells = [*keep, nbformat.v4.new_code_cell('print("finished", token)')]
    nbformat.write(made, "run.ipynb")
    monkeypatch.setattr("asgkit.experiments.measure.finished", lambda experiment, measured: True)
    options = ("g.yaml", "--notebook", "run.ipynb", "--measured", "measured")
    assert "50.0 (+0.0)" in asgkit(*options)
    assert "1 runs, 1 done already" in asgkit(*options)
    assert "1 done: 0 to run" in asgkit(*options, "--dry-run")
    entry = json.loads(Path("results/runs/batch/g/manifest.json").read_text())["runs"]["tiny-ar-clean-joint-s0"]
    assert entry["status"] == "done" and len(entry["token"]) == 64
    executed = nbformat.read("results/runs/batch/g/notebooks/tiny-ar-clean-joint-s0.ipynb", as_version=4)
    assert 'arm = "joint"' in executed.cells[1].source and "seed = 0" in executed.cells[1].source


def test_the_shipped_notebook_declares_what_a_grid_hands_over() -> None:
    notebook = ROOT / "notebooks" / "batch" / "run.ipynb"
    handed = batch.grid_task(RUN, notebook, Path("w"), Path("m"))
    check_parameters(notebook, handed.parameters)
    assert handed.evidence == Path("m/runs/tiny-ar-clean-joint-s0/metrics.json")
    last = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"][-1]
    assert last.source.splitlines()[-1] == "print(SENTINEL, token or experiment.name)"
    assert os.path.basename(notebook) == batch.NOTEBOOK.name
