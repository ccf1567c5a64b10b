"""The command line: help, strict keys, one-line errors, and a tiny run trained, resumed and scored."""

import json
import re
import shutil
from pathlib import Path

import datasets
import nbformat
import pytest
from paths import ROOT
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner, Result

from asgkit.backbones.base import BACKBONES
from asgkit.backbones.tiny.understand import CHECKPOINTS
from asgkit.cli import doctor
from asgkit.cli.app import app
from asgkit.cli.console import TrainProgress
from asgkit.cli.runs import base_config, default_run
from asgkit.config import resolve
from asgkit.errors import Refused
from asgkit.experiments import evaluate as scoring
from asgkit.experiments import reproduce
from asgkit.grids.load import GridRun
from asgkit.runs.directory import RunDirectory, RunExists, read_log
from asgkit.runs.packed_log import NAME, pack_log
from asgkit.runs.wording import duration, table
from asgkit.shapes.world import render_pool

COMMANDS = ["doctor", "pretrain", "premise", "train", "eval", "report", "verify", "bench", "pool", "reproduce",
            "audit", "claims", "batch", "log", "drift", "draw-pool", "shapes render", "shapes detector",
            "benchmark presets", "benchmark vqa", "benchmark geneval_hf", "benchmark compare"]
TINY = ["schedule.images=2", "generator.candidates=2", "generator.questions=2", "generator.votes=1",
        "solver.framings=3", "schedule.understanding=1", "schedule.generation=1", "checkpoint.every=1",
        "precision=fp32", "device=cpu"]
SIZES = {"per_family": 2, "per_tag": 1, "samples": 1}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own, and one that is not the clone."""
    monkeypatch.chdir(tmp_path)
    for name in ("FULL", "SMALL", "CURVE"):
        monkeypatch.setattr(scoring, name, SIZES)


def asgkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def pool_of(count: int) -> str:
    return str(render_pool("pool", count))


def refused(result: Result, *words: str) -> None:
    """One line on stderr, exit status 2, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0]


# -- logs -----------------------------------------------------------------------------------------------------------
def test_a_log_is_printed_packed_or_not_with_chosen_fields() -> None:
    records = [{"step": 1, "phase": "U", "question": "is there a cross ?"}, {"step": 2, "phase": "G", "prompt": "é"}]
    Path("plain").mkdir()
    Path("plain/log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("packed").mkdir()
    pack_log(records, Path("packed") / NAME)
    for folder in ("plain", "packed"):
        assert [json.loads(line) for line in asgkit("log", folder).stdout.splitlines()] == records
        told = asgkit("log", folder, "--fields", "step, prompt", "--phase", "G").stdout
        assert json.loads(told) == {"step": 2, "prompt": "é"}
    refused(asgkit("log", "plain", "--fields", "step,promt"), "'promt'", "did you mean 'prompt'")
    refused(asgkit("log", "plain", "--phase", "X"), "choose U", "G (generation)")
    refused(asgkit("log", "nowhere"), "no log in nowhere")


# -- help and errors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_teaches_with_an_example(command: str) -> None:
    result = asgkit(*command.split(), "--help")
    assert result.exit_code == 0 and "Example" in result.output
    assert f"asgkit {command}" in " ".join(result.output.split())


def test_the_table_of_commands_is_complete() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names == {command for command in COMMANDS if " " not in command}


def test_draw_pool_fills_a_folder_once_and_repeats_itself(tmp_path: Path) -> None:
    arguments = ["draw-pool", "seed=0", "precision=fp32", "--count", "3", "--out"]
    assert asgkit(*arguments, str(tmp_path / "a")).exit_code == 0
    assert asgkit(*arguments, str(tmp_path / "b")).exit_code == 0
    a, b = (sorted(p.read_bytes() for p in (tmp_path / name).iterdir()) for name in "ab")
    assert a == b and len(set(a)) == 3
    refused(asgkit(*arguments, str(tmp_path / "a")), "not empty")


def test_an_unknown_key_names_its_nearest() -> None:
    refused(asgkit("train", "solver.framing=5"), "unknown key 'solver.framing'", "'solver.framings'")


def test_a_value_out_of_range_names_its_key() -> None:
    refused(asgkit("train", "solver.framings=0"), "solver.framings")


def test_an_unknown_preset_is_refused() -> None:
    refused(asgkit("train", "--preset", "tinny"), "did you mean 'tiny'")


def test_an_unknown_backbone_and_base_are_refused() -> None:
    refused(asgkit("train", "backbone=tiny-xy"), "unknown backbone")
    refused(asgkit("train", "base=absent.safetensors"), "asgkit pretrain tiny-ar")
    refused(asgkit("train", f"base={CHECKPOINTS / 'tiny-flow-clean.safetensors'}"), "set backbone=tiny-flow")


def test_a_missing_pool_is_refused_before_a_run_exists() -> None:
    refused(asgkit("train", "pool.path=absent"), "no image folder at absent")
    assert not Path("results").exists()


def test_a_recipe_that_is_none_is_one_line() -> None:
    refused(asgkit("train", "recipe=nowhere:Mine"), "recipe nowhere:Mine: Python finds no module nowhere")
    refused(asgkit("train", "recipe=gvuu"), "error: unknown recipe 'gvuu'; did you mean 'gvu'?")
    refused(asgkit("train", "recipe=gvu", "solver.framings=5"), "solver.framings changes nothing under recipe=gvu")


def test_more_framings_than_the_model_has_are_refused() -> None:
    refused(asgkit("train", "solver.framings=8"), "set solver.framings=7")


def test_a_damaged_base_is_one_line() -> None:
    Path("bad.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    refused(asgkit("train", "base=bad.safetensors"), "damaged safetensors", "bad.safetensors")


def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(asgkit("train", "device=cuda"), "device=auto")


def test_scoring_what_is_no_run_is_refused() -> None:
    refused(asgkit("eval", "absent"), "no run in absent")
    refused(asgkit("eval"), "give a run directory, or --base tiny-ar-clean")
    refused(asgkit("eval", "--base", "absent"), "asgkit pretrain tiny-ar")
    refused(asgkit("eval", "--base", "tiny-flow-registers"), "asgkit pretrain tiny-flow", "tiny-flow-clean")
    refused(asgkit("eval", "absent", "--temperature", "1"), "go together")
    refused(asgkit("eval", "absent", "--split", "train"), "choose dev or test")


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("asgkit.shapes.benchmark.detector_accuracy", broken)
    result = asgkit("shapes", "detector")
    assert isinstance(result.exception, RuntimeError) and result.exit_code == 1


def test_a_missing_system_file_is_not_passed_off_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgkit.shapes.benchmark.detector_accuracy", lambda *_: Path("absent").read_text())
    assert isinstance(asgkit("shapes", "detector").exception, FileNotFoundError)


def test_brackets_in_a_message_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RunExists("a [b] c")

    monkeypatch.setattr("asgkit.shapes.benchmark.detector_accuracy", refuse)
    refused(asgkit("shapes", "detector"), "a [b] c")


# -- small commands -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [r"a\[/x].png", r"a\\[b].png", "[red]x[/red].png", "[/].png"])
def test_names_that_look_like_markup_are_shown_as_they_are(name: str) -> None:
    """A backslash before a bracket once undid the escape, and a closing tag without its opening one is an error."""
    shown = Console(width=200, force_terminal=False)
    with shown.capture() as captured:
        shown.print(table(name, ("file", "reason"), [(name, "broken")]))
    assert captured.get().count(name) == 2


def test_pool_counts_and_explains_skips() -> None:
    folder = Path(pool_of(2))
    Image.new("RGB", (40, 30), "red").save(folder / "photo.jpg")
    (folder / "torn.png").write_bytes((folder / "00000.png").read_bytes()[:60])
    (folder / "empty.png").touch()
    result = asgkit("pool", str(folder))
    assert result.exit_code == 0 and "3 of 5 image files can be used, 2 skipped" in result.output
    assert "torn.png" in result.output and "empty file" in result.output


def test_pool_counts_prompts_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(Path("cache").resolve()))
    Path("prompts.txt").write_text("a cat\n\na cat\n[/]\n")
    result = asgkit("pool", "prompts.txt")
    assert result.exit_code == 0 and "2 of 4 lines can be used, 2 skipped: a pool of prompts" in result.output
    assert "the same as prompts.txt:1" in result.output
    datasets.Dataset.from_dict({"a": ["x", "y"], "b": ["z", "z"]}).to_parquet("rows.parquet")
    refused(asgkit("pool", "rows.parquet"), "Name one with pool.column; there are: a (prompts), b (prompts)")
    result = asgkit("pool", "rows.parquet", "--column", "b")
    assert result.exit_code == 0 and "1 of 2 rows of column 'b' can be used, 1 skipped" in result.output


def test_a_run_on_prompts_is_refused_where_pictures_are_needed() -> None:
    Path("prompts.txt").write_text("a cat\n")
    refused(asgkit("train", "pool.path=prompts.txt"), "prompts.txt yields prompts, and recipe=asg needs pictures")


def test_pool_of_no_images_is_refused() -> None:
    Path("none").mkdir()
    refused(asgkit("pool", "none"), "no image files in none")


def test_shapes_render_and_detector() -> None:
    assert asgkit("shapes", "render", "some", "--count", "3", "--seed", "1").exit_code == 0
    assert len(list(Path("some").iterdir())) == 3
    refused(asgkit("shapes", "render", "some"), "not empty")
    shown = asgkit("shapes", "detector", "--count", "20")
    assert shown.exit_code == 0 and re.search(r"0 +│ +100\.00", shown.output)
    refused(asgkit("shapes", "detector", "--split", "train"), "unknown benchmark split")


def test_doctor_exits_by_what_it_finds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = json.loads(asgkit("doctor", "--json").output)
    names = {check["name"] for check in found["checks"]}
    assert {"python", "torch", "device", "disk", "pool", "profile smoke"} <= names
    assert {name.removeprefix("base ") for name in names if name.startswith("base ")} == {
        path.stem for path in CHECKPOINTS.glob("*.safetensors")}
    assert asgkit("doctor").exit_code == (0 if found["ok"] else 1)
    monkeypatch.setattr("asgkit.backbones.tiny.understand.CHECKPOINTS", tmp_path)
    result = asgkit("doctor")
    assert result.exit_code == 1 and "fix base tiny-ar-clean: " in result.output
    assert "fix base tiny-flow-clean: " in result.output and "asgkit pretrain tiny-flow --out" in result.output
    (tmp_path / "tiny-ar-clean.safetensors").write_bytes(b"torn")
    result = asgkit("doctor")
    assert result.exit_code == 1 and "is damaged" in result.output and "asgkit pretrain tiny-ar" in result.output


def test_doctor_finds_a_package_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "1.0" if name == "torch" else real(name))
    (bad,) = [check for check in doctor.run_checks() if check.name == "torch"]
    assert not bad.ok and bad.fix == "make setup" and ">=2.13" in bad.found


def test_pretrain_refuses_to_overwrite_and_makes_a_usable_base() -> None:
    refused(asgkit("pretrain", "tiny-xy"), "did you mean 'tiny-ar'")
    refused(asgkit("pretrain", "tiny-flw"), "did you mean 'tiny-flow'")
    refused(asgkit("pretrain", "tiny-flow", "--registers", "0.25"), "--registers is for tiny-ar")
    refused(asgkit("pretrain", "tiny-ar", "--from", "x.safetensors"), "--registers 0.25")
    Path("mine").mkdir()
    refused(asgkit("pretrain", "tiny-ar", "--registers", "0.25", "--from", "absent.safetensors"),
            "no checkpoint absent")
    arguments = ["pretrain", "tiny-ar", "--registers", "0.25", "--steps", "1", "--images", "2", "--precision", "fp32",
                 "--out", "mine/base.safetensors"]
    result = asgkit(*arguments)
    assert result.exit_code == 0, result.output
    assert Path("mine/base.jsonl").read_text().count("\n") == 1
    refused(asgkit(*arguments), "name another file")
    assert asgkit("train", "base=mine/base.safetensors", f"pool.path={pool_of(4)}", "--run", "r", *TINY,
                  "schedule.steps=1").exit_code == 0


# -- a run ----------------------------------------------------------------------------------------------------------
def test_train_resume_and_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "POOL_SCENES", 4)
    result = asgkit("train", "--run", "r", *TINY, "schedule.steps=1")
    assert result.exit_code == 0, result.output
    assert len(list(Path("data/pool").iterdir())) == 4
    assert "made the default pool: 4 unlabelled scenes in data/pool" in result.output
    assert "device: cpu, fp32" in result.output and "step 1/1" in result.output
    refused(asgkit("train", "--run", "r", *TINY), "already holds a run", "--resume")
    refused(asgkit("train", "--run", "r", "--resume"), "has done its 1 steps", "asgkit eval r", "schedule.steps=2")
    refused(asgkit("train", "--run", "absent", "--resume"), "no run in absent to resume")
    refused(asgkit("train", "--run", "r", "--resume", "seed=7", "schedule.steps=2"), "seed: 42 -> 7")
    more = asgkit("train", "--run", "r", "--resume", "schedule.steps=2")
    assert more.exit_code == 0 and "made the default pool" not in more.output, more.output
    assert read_log("r")["step"].unique().tolist() == [1, 2]
    scored = asgkit("eval", "r", "--temperature", "0.7", "--guidance", "2")
    assert scored.exit_code == 0, scored.output
    evolved, base = (json.loads(Path("r", name).read_text()) for name in ("metrics.json", "base/metrics.json"))
    assert (evolved["step"], base["step"]) == (2, 0) and evolved["scores"].keys() == base["scores"].keys()
    assert evolved["best_decoding"] == base["best_decoding"] == {"temperature": 0.7, "guidance": 2.0}
    reproduce.publish(Path("r"), Path("fresh"), "tiny-ar-clean-joint-s42")
    reported = asgkit("report", "--results", "fresh", "--figures", "drawn")
    assert reported.exit_code == 0, reported.output
    assert "table_joint" in reported.output and any(Path("drawn", "ours").iterdir())
    assert Path("fresh/measured/tables/README.md").is_file() and not any(Path("fresh").rglob("*.tex"))
    refused(asgkit("eval", "r", "--step", "9"), "kept are [1, 2]")
    curve = asgkit("eval", "r", "--curve")
    assert curve.exit_code == 0 and [row["step"] for row in scoring.read_curve(Path("r/curve.csv"))] == [0, 1, 2]
    (Path("r/checkpoints/step_000002/state.safetensors")).write_bytes(b"torn")
    refused(asgkit("eval", "r", "--step", "2"), "state.safetensors is changed")
    refused(asgkit("eval", "r", "--curve"), "step_000002", "delete that checkpoint")


def test_a_base_is_measured_once() -> None:
    arguments = ["eval", "--base", "tiny-ar-clean", "--temperature", "1", "--guidance", "1"]
    assert asgkit(*arguments).exit_code == 0
    held = json.loads(Path("results/measured/base/tiny-ar-clean/metrics.json").read_text())
    assert held["step"] == 0 and held["split"] == "test" and "answers/single" in held["scores"]
    refused(asgkit(*arguments), "delete it to measure again")


def test_bases_are_named_as_results_name_them() -> None:
    named = {name: (config.backbone, config.base) for name in (
        "clean", "tiny-ar-registers", "tiny-flow-clean", "my/tiny-diffusion-own.safetensors", "own.safetensors",
        "tiny-flow-own.safetensors") if (config := base_config(name))}
    assert named == {
        "clean": ("tiny-ar", "clean"), "tiny-ar-registers": ("tiny-ar", "registers"),
        "tiny-flow-clean": ("tiny-flow", "clean"), "own.safetensors": ("tiny-ar", "own.safetensors"),
        "my/tiny-diffusion-own.safetensors": ("tiny-diffusion", "my/tiny-diffusion-own.safetensors"),
        "tiny-flow-own.safetensors": ("tiny-flow", "tiny-flow-own.safetensors")}
    assert default_run(base_config("my/tiny-flow-own.safetensors")).name == "tiny-tiny-flow-own-s42"


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_a_regression_base_is_measured_and_trains(backbone: str) -> None:
    assert asgkit("eval", "--base", f"{backbone}-clean", "--temperature", "1", "--guidance", "1").exit_code == 0
    held = json.loads(Path(f"results/measured/base/{backbone}-clean/metrics.json").read_text())
    assert held["step"] == 0 and "drawings/overall" in held["scores"]
    result = asgkit("train", f"backbone={backbone}", "--run", "r", f"pool.path={pool_of(4)}", *TINY, "schedule.steps=2")
    assert result.exit_code == 0, result.output
    scored = asgkit("eval", "r", "--temperature", "1", "--guidance", "1")
    assert scored.exit_code == 0 and "step 2" in scored.output, scored.output


def test_the_bench_is_named_after_backbone_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"total": {"batched_s": 1.0, "naive_s": 2.0, "ratio": 2.0}}
    monkeypatch.setattr("asgkit.experiments.bench.run_bench",
                        lambda *_: {"steps": {"U": row}, "machine": {"device": "cpu"}})
    assert asgkit("bench", "backbone=tiny-flow", f"pool.path={pool_of(1)}").exit_code == 0
    assert [path.name for path in Path("results/bench").iterdir()] == ["tiny_flow_cpu.json"]


def test_the_oracle_control_gets_its_judge() -> None:
    result = asgkit("train", "--run", "r", "control=oracle", f"pool.path={pool_of(4)}", *TINY, "schedule.steps=2")
    assert result.exit_code == 0, result.output
    scores = read_log("r").query("phase == 'G'")["judge_scores"].iloc[0]
    assert len(scores) == 2 and set(scores) <= {0.0, 1.0}


def test_a_report_of_nothing_is_refused() -> None:
    refused(asgkit("report", "--results", "absent"), "no measured results in absent")
    refused(asgkit("report", "--formats", "csv,pdf"), "unknown format 'pdf'; choose among csv, md, tex, html")
    assert not Path("figures").exists()


def test_a_stop_request_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgkit.errors import StopRequested

    def stopped(*_: object, **__: object) -> None:
        raise StopRequested("SIGTERM")

    monkeypatch.setattr("asgkit.launch.train", stopped)
    result = asgkit("train", "--run", "r", f"pool.path={pool_of(1)}")
    assert result.exit_code == 143 and "asgkit train --run r --resume" in result.output


def test_progress_prints_a_line_every_ten_steps(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    with TrainProgress(20, Console(force_terminal=False)) as progress:
        for step in range(1, 21):
            progress(step, [{"proposer/rewards": [0.0, 1.0]}] if step % 2 else [{"generator/rewards": [0.25]}])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["10/20", "20/20"]
    assert "R_p +0.500  R_g +0.250" in lines[0]


@pytest.mark.parametrize(("seconds", "text"), [(4.2, "4 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# -- reproduce ------------------------------------------------------------------------------------------------------
def notebook(path: Path, last: str) -> Path:
    """A parameterised notebook of two cells."""
    cells = [nbformat.v4.new_code_cell('run_dir: str = "r"\nsteps: int = 1  # "quoted" [text]',
                                       metadata={"tags": ["parameters"]}),
             nbformat.v4.new_code_cell(last)]
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def test_a_notebook_without_its_sentinel_is_no_success() -> None:
    run = Path("results/runs/x")
    with pytest.raises(Refused, match="ended without writing run.json"):
        reproduce.run_notebook(notebook(Path("notebooks/a.ipynb"), "1 + 1"), run, {"run_dir": "../results/runs/x"})
    assert not (run / "notebook.ipynb").exists() and (run / "notebook.partial.ipynb").exists()


def test_a_notebook_runs_in_its_folder_and_is_renamed() -> None:
    code = "from pathlib import Path\nPath(run_dir, 'run.json').write_text(str(steps))"
    run = Path("results/runs/x")
    made = reproduce.run_notebook(notebook(Path("notebooks/a.ipynb"), code), run,
                                  {"run_dir": "../results/runs/x", "steps": 3})
    assert made == run / "notebook.ipynb" and made.exists() and (run / "run.json").read_text() == "3"
    assert not (run / "notebook.partial.ipynb").exists()


def test_a_parameter_the_notebook_does_not_declare_is_refused() -> None:
    with pytest.raises(Refused, match=r"no parameters \['stpes'\]"):
        reproduce.run_notebook(notebook(Path("notebooks/a.ipynb"), "1"), Path("r"), {"stpes": 3})


def test_the_full_loop_notebook_declares_what_reproduce_gives() -> None:
    declared = reproduce.declared_parameters(ROOT / reproduce.NOTEBOOK)
    assert declared == {"backbone", "base", "preset", "seed", "steps", "overrides", "pool", "run_dir"}


def test_a_smoke_run_is_replaced_and_nothing_else() -> None:
    RunDirectory.create("smoke", resolve("smoke").model_dump())
    RunDirectory.create("other", resolve("tiny").model_dump())
    reproduce.clear_smoke_run(Path("smoke"))
    assert not Path("smoke").exists()
    Path("photos").mkdir()
    Path("photos/a.png").touch()
    for folder in ("other", "photos"):
        with pytest.raises(Refused, match="not a smoke run"):
            reproduce.clear_smoke_run(Path(folder))
        assert Path(folder).exists()


def test_reproduce_outside_the_clone_and_unknown_profiles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "ensure_pool", lambda *_: False)
    refused(asgkit("reproduce", "--profile", "huge"), "choose one of ['small', 'smoke']")
    refused(asgkit("reproduce"), "run this from the folder of the clone")


def test_the_default_pool_is_whole_or_absent() -> None:
    Path("data").mkdir()
    Path("data/.pool.partial").mkdir()
    assert reproduce.ensure_pool(Path("data/pool"), 2) and not reproduce.ensure_pool(Path("data/pool"), 2)
    assert sorted(p.name for p in Path("data").iterdir()) == ["pool"]
    shutil.rmtree("data")


def test_the_small_profile_measures_bases_and_skips_what_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    from asgkit.experiments import measure as experiments

    grid = [GridRun("tiny", backbone, "clean", arm, 0, overrides, arm == "joint")
            for backbone in ("tiny-ar", "tiny-flow", "tiny-diffusion")
            for arm, overrides in (("joint", ()), ("judge", ("generator.scorer=absent.safetensors",)), ("random", ()))]
    names, called = [run.experiment.name for run in grid], []

    def make(experiment: experiments.Experiment, work: Path, measured: Path, curve: object) -> Path:
        called.append((experiment.name, curve is not None))
        return measured / "runs" / experiment.name

    measured = Path("results/small/measured")
    (measured / "base/tiny-diffusion-clean").mkdir(parents=True)
    for name in ("metrics.json", "decodings.json"):
        (measured / "base/tiny-diffusion-clean" / name).touch()
    monkeypatch.setattr(experiments, "committed_runs", lambda: grid)
    monkeypatch.setattr(experiments, "finished", lambda one, measured: one.name.startswith("tiny-ar"))
    monkeypatch.setattr(experiments, "measure_base", lambda config, folder: called.append((config.backbone, folder)))
    monkeypatch.setattr(experiments, "run_experiment", make)
    monkeypatch.setattr(reproduce, "ensure_pool", lambda *_: False)
    monkeypatch.setattr(reproduce, "_report", lambda *_: None)
    result = asgkit("reproduce", "--profile", "small")
    assert result.exit_code == 0, result.output
    assert called == [("tiny-flow", measured / "base/tiny-flow-clean"), (names[3], True), (names[5], False),
                      (names[6], True), (names[8], False)]
    assert "9 runs in the grids, 4 to make" in result.output and f"4/4 {names[8]}" in result.output
    assert f"left out {names[4]}: absent.safetensors missing" in result.output


def test_a_run_needs_its_pool_and_its_judge() -> None:
    missing = lambda *overrides: reproduce.missing_inputs(resolve("tiny", overrides))
    assert missing() == [] and missing("generator.scorer=frozen") == []
    assert missing("pool.path=mine", "generator.scorer=a.safetensors") == ["mine", "a.safetensors"]
    Path("mine").mkdir()
    assert missing("pool.path=mine") == []


# -- the README -----------------------------------------------------------------------------------------------------
def test_the_readme_names_commands_files_and_symbols_that_exist() -> None:
    import importlib

    text = (ROOT / "README.md").read_text()
    for command in re.findall(r"`asgkit ([a-z-]+)", text):
        assert command in {name.split()[0] for name in COMMANDS}, command
    rows = re.findall(r"^\| [^|]+ \| `([A-Za-z_.]+)` \| `(asgkit/[a-z_/]+\.py)` \|$", text, flags=re.MULTILINE)
    assert len(rows) >= 15
    for name, file in rows:
        target = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            assert hasattr(target, part), (name, file)
            target = getattr(target, part)
