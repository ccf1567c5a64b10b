"""Base and evolved have a delta only when they were measured alike; `asgkit benchmark` shows it."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from asgkit.cli.app import app
from asgkit.evals import compare as c
from asgkit.evals.geneval_scoring import TAGS
from asgkit.evals.protocol import Protocol, ProtocolMismatch, claim_folder, differing, require_comparable
from asgkit.evals.subject import Subject
from asgkit.runs.files import append_line, write_json

SETTINGS = {"model": {"backbone": "tiny-ar"}, "drawing": {"seed": 42, "guidance": None, "samples": 4},
            "steps": "the backbone's own", "prompts_sha256": "p", "rules": {"threshold": 0.3}}
BASE = {"role": "none", "adapter_sha256": None, "run": None, "step": None}
EVOLVED = {"role": "generator", "adapter_sha256": "abc", "run": "r", "step": 5}


def record(subject=BASE, benchmark="geneval_hf", **changes) -> Protocol:
    settings = json.loads(json.dumps(SETTINGS))
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            settings[group][name] = value
        else:
            settings[group] = value
    return Protocol(benchmark, settings, subject, ("it is another detector",))


def asgkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["benchmark", *arguments], env={"COLUMNS": "200"})


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr


# -- protocols ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("field, value", [("drawing__seed", 43), ("drawing__guidance", 3.0), ("steps", 30),
                                          ("prompts_sha256", "q"), ("drawing__samples", 3),
                                          ("rules__threshold", 0.5), ("model__backbone", "tiny-flow")])
def test_any_differing_setting_is_named_with_both_values(field, value) -> None:
    other = record(EVOLVED, **{field: value})
    (line,) = differing(record(), other)
    assert line.startswith(field.replace("__", ".") + ": ") and repr(value) in line
    with pytest.raises(ProtocolMismatch, match=field.replace("__", r"\.")):
        require_comparable(record(), other)


def test_equal_settings_are_comparable_and_survive_the_disk(tmp_path) -> None:
    first = Protocol("vqa", {"until": ("a", "b"), "n": 3}, BASE)  # tuples come back as lists
    claim_folder(tmp_path / "a", first)
    assert differing(first, Protocol.read(tmp_path / "a")) == []
    require_comparable(record(), record(EVOLVED))


def test_other_benchmarks_and_absent_settings_differ() -> None:
    assert differing(record(), record(benchmark="vqa")) == ["benchmark: 'geneval_hf' against 'vqa'"]
    assert differing(record(), record(drawing__extra=1)) == ["drawing.extra: '(absent)' against 1"]


def test_a_delta_is_between_no_adapter_and_one() -> None:
    with pytest.raises(ProtocolMismatch, match="this one is the base"):
        require_comparable(record(), record())
    with pytest.raises(ProtocolMismatch, match="has role 'generator'"):
        require_comparable(record(EVOLVED), record(EVOLVED))


def test_a_folder_belongs_to_one_result(tmp_path) -> None:
    claim_folder(tmp_path, record())
    with pytest.raises(FileExistsError, match="holds a result already"):
        claim_folder(tmp_path, record())
    claim_folder(tmp_path, record(), resume=True)
    with pytest.raises(ProtocolMismatch, match="drawing.seed: 42 against 1"):
        claim_folder(tmp_path, record(drawing__seed=1), resume=True)
    with pytest.raises(ProtocolMismatch, match="subject"):
        claim_folder(tmp_path, record(EVOLVED), resume=True)
    with pytest.raises(FileNotFoundError, match="asgkit benchmark"):
        Protocol.read(tmp_path / "nowhere")


def test_a_role_without_a_run_is_refused(tiny) -> None:
    with pytest.raises(ValueError, match="untrained"):
        Subject(tiny, "solver", {})


# -- deltas ---------------------------------------------------------------------------------------------------------
def geneval_result(folder: Path, subject: dict, right: dict[str, list[list[bool]]], **changes) -> Path:
    """A result folder of hand-made verdicts: per tag, per prompt, per sample."""
    claim_folder(folder, record(subject, **changes))
    number = 0
    for tag, prompts in right.items():
        for samples in prompts:
            for sample, correct in enumerate(samples):
                append_line(folder / "items.jsonl", {"prompt": number, "sample": sample, "tag": tag,
                                                     "correct": correct})
            number += 1
    scores = {tag: 100.0 * float(np.mean(right[tag])) for tag in TAGS}
    write_json(folder / "scores.json", {"benchmark": "geneval_hf",
                                        "scores": {"overall": float(np.mean(list(scores.values()))), **scores}})
    return folder


def half(count: int, right: int) -> list[list[bool]]:
    """`count` prompts of two drawings; the first `right` of them are right twice."""
    return [[i < right] * 2 for i in range(count)]


@pytest.fixture()
def pair(tmp_path):
    before = {tag: half(4, 2) for tag in TAGS} | {"counting": half(12, 3)}
    after = {tag: half(4, 3) for tag in TAGS} | {"counting": half(12, 3)}
    return (geneval_result(tmp_path / "base", BASE, before), geneval_result(tmp_path / "gen", EVOLVED, after))


def test_overall_weighs_tags_alike_however_many_prompts_they_have(pair) -> None:
    deltas = {delta.score: delta for delta in c.compare(*pair)}
    assert list(deltas) == ["overall", *TAGS]
    assert deltas["overall"].delta == pytest.approx(5 * 25 / 6) and deltas["overall"].items == 32
    assert deltas["overall"].evolved - deltas["overall"].base == pytest.approx(deltas["overall"].delta)
    assert deltas["counting"].delta == 0.0 == deltas["counting"].low == deltas["counting"].high
    assert deltas["colors"].delta == 25.0 and deltas["colors"].items == 4
    assert 0.0 <= deltas["overall"].low < deltas["overall"].delta < deltas["overall"].high


def test_a_mismatch_is_raised_before_any_delta(tmp_path, pair) -> None:
    right = {tag: half(4, 3) for tag in TAGS}
    other = geneval_result(tmp_path / "other", EVOLVED, right, drawing__guidance=4.0)
    with pytest.raises(ProtocolMismatch, match="drawing.guidance: None against 4.0"):
        c.compare(pair[0], other)
    with pytest.raises(ProtocolMismatch, match="other prompts"):
        c.compare(pair[0], geneval_result(tmp_path / "short", EVOLVED, right))
    (pair[1] / "scores.json").unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        c.compare(*pair)


def vqa_result(folder: Path, subject: dict, answers: list[str], *, shown: str = "s", **changes) -> Path:
    """Four questions with answer `yes`, and a task-wide metric that no single item has."""
    claim_folder(folder, record(subject, benchmark="vqa", **changes))
    for doc, answer in enumerate(answers):
        append_line(folder / "items-t.jsonl", {"task": "t", "doc": doc, "prompt": f"q{doc}", "answer": answer,
                                               "image_sha256": shown, "decoding": {"temperature": 0.0}})
        append_line(folder / "item_scores.jsonl", {"task": "t", "doc": doc,
                                                   "scores": {"exact_match": float(answer == "yes")}})
    share = float(np.mean([answer == "yes" for answer in answers]))
    write_json(folder / "scores.json", {"scores": {"t": {"exact_match": share, "mme": 1000 * share}}})
    return folder


def test_answers_are_paired_by_item_where_items_have_the_score(tmp_path) -> None:
    base = vqa_result(tmp_path / "b", BASE, ["yes", "no", "no", "no"])
    evolved = vqa_result(tmp_path / "e", EVOLVED, ["yes", "yes", "no", "maybe"])
    exact, points, changed = c.compare(base, evolved)
    assert (exact.score, exact.delta, exact.items) == ("t/exact_match", 0.25, 4) and exact.low <= 0.25 <= exact.high
    assert (points.delta, points.low, points.items) == (250.0, None, 0)
    assert changed.evolved == 0.5 and "changed" in changed.score


def test_other_pictures_or_items_have_no_delta(tmp_path) -> None:
    base = vqa_result(tmp_path / "b", BASE, ["yes", "no"])
    with pytest.raises(ProtocolMismatch, match="image_sha256 of item 0 of t: 's' against 'other'"):
        c.compare(base, vqa_result(tmp_path / "e", EVOLVED, ["yes", "no"], shown="other"))
    with pytest.raises(ProtocolMismatch, match="1 were answered by one"):
        c.compare(base, vqa_result(tmp_path / "f", EVOLVED, ["yes", "no", "no"]))


# -- the commands ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["presets", "vqa", "geneval_hf", "compare"])
def test_help_teaches_with_an_example(command) -> None:
    result = asgkit(command, "--help")
    assert result.exit_code == 0 and "Example" in result.output
    assert f"asgkit benchmark {command}" in " ".join(result.output.split())


def test_presets_say_plainly_what_needs_an_external_grader() -> None:
    shown = asgkit("presets").output
    for name in ("MMMU", "MMBench", "TextVQA", "SEED", "RealWorldQA", "MM-Vet", "MME"):
        assert name in shown
    assert [line.split(" needs ")[0] for line in shown.splitlines() if "needs an external grader" in line] == [
        "MMBench", "MM-Vet"]


def test_compare_shows_and_writes_deltas(pair, tmp_path) -> None:
    result = asgkit("compare", *map(str, pair), "--out", str(tmp_path / "delta.json"))
    assert result.exit_code == 0 and "20.83" in result.output
    written = json.loads((tmp_path / "delta.json").read_text())
    assert written["evolved"] == EVOLVED and written["known_differences"] == ["it is another detector"]
    assert written["deltas"][0]["score"] == "overall"


def test_compare_refuses_what_was_measured_apart(tmp_path, pair) -> None:
    other = geneval_result(tmp_path / "o", EVOLVED, {tag: half(4, 3) for tag in TAGS}, drawing__seed=1)
    refused(asgkit("compare", str(pair[0]), str(other)), "drawing.seed: 42 against 1")
    refused(asgkit("compare", str(pair[0]), str(tmp_path / "nothing")), "protocol.json")


def test_what_the_user_can_put_right_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refused(asgkit("vqa", "--task", "mmvet"), "mmvet", "--external-grader")
    monkeypatch.setattr("asgkit.evals.lmms_run.find_spec", lambda name: None)
    refused(asgkit("vqa", "--task", "mme"), "pip install lmms-eval")
    result = asgkit("vqa", "--images", "black")
    assert result.exit_code == 2 and "shuffled" in result.stderr
    missing = str(tmp_path / "no.jsonl")
    refused(asgkit("geneval_hf", "--prompts", missing, "--detector", "d", "--clip", "c"), "evaluation_metadata.jsonl")


def test_geneval_hf_measures_both_halves_alike_and_says_what_it_is_not(tmp_path, monkeypatch) -> None:
    """The command with a detector that sees one circle everywhere; a checkpoint of an untrained Generator."""
    from asgkit.backbones import ROLES, load_backbone
    from asgkit.config import resolve
    from asgkit.evals import geneval_models
    from asgkit.evals.geneval_scoring import Detection
    from asgkit.runs.directory import RunDirectory

    class Eyes:
        classes, record = ("circle",), {"reader": "stand-in"}

        def __init__(self, folder, device="cpu"):
            self.folder = folder

        def detect(self, image):
            return {"circle": [Detection((0, 0, 9, 9), 0.99)]}

    lines = [{"tag": tag, "include": [{"class": "circle", "count": 1 + (tag == "counting")}], "prompt": "circle"}
             for tag in TAGS]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = RunDirectory.create(tmp_path / "run", resolve("smoke", {"device": "cpu"}).model_dump())
    backbone = load_backbone("tiny-ar")
    run.save_checkpoint(5, lambda to: [backbone.save_role(role, to / role) for role in ROLES], {}, {})
    for name in ("Mask2Former", "ClipColors"):
        monkeypatch.setattr(geneval_models, name, Eyes)
    result = asgkit("geneval_hf", str(tmp_path / "run"), "--prompts", str(tmp_path / "m.jsonl"), "--detector", "d",
                    "--clip", "c", "--samples", "1", "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "geneval_hf is not GenEval" in result.output
    base, evolved = (Protocol.read(tmp_path / "out" / name) for name in ("base", "generator"))
    assert base.settings == evolved.settings and evolved.subject["step"] == 5
    written = json.loads((tmp_path / "out/delta.json").read_text())
    assert written["benchmark"] == "geneval_hf" and written["deltas"][0]["delta"] == 0.0
    assert written["deltas"][0]["base"] == pytest.approx(100 * 5 / 6)
