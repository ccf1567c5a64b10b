"""The premise report: hand-made answers with known accuracies, and one small measurement end to end."""

import io
import json

import numpy as np
import pytest
import report_data as data
from rich.console import Console
from typer.testing import CliRunner

from asgkit.backbones import load_backbone
from asgkit.cli.app import app
from asgkit.config import resolve
from asgkit.evals.shapes import AnswerItems
from asgkit.experiments import premise
from asgkit.experiments.premise import (
    COMPONENTS,
    _rank_premise,
    answer_premise,
    base_name,
    detector_premise,
    measure_premise,
    oracle_gain,
    premise_rows,
    print_premise,
    write_premise,
)
from asgkit.report.measured import Untraceable
from asgkit.report.premise import judge_premise

SMALL = {"per_family": 4, "per_tag": 2, "samples": 2, "groups": 4}


@pytest.fixture
def items():
    """Four questions, three framings; the last question is unanimous and wrong, with a high STE."""
    return AnswerItems(
        framings=np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool),
        sampled=np.array([[1, 0, 0, 0]] * 3, bool), canonical=np.array([1, 1, 1, 0], bool),
        majority=np.array([1, 1, 0, 0], bool), entropy=np.array([0.0, 0.64, 0.64, 0.0]),
        sampled_entropy=np.array([0.0, 0.64, 0.64, 1.1]), ste=np.array([0.1, 0.2, 0.3, 0.9]),
        logp=np.log([0.9, 0.8, 0.7, 0.4]),
        fraction=np.array([1, 2 / 3, 2 / 3, 1]), family=np.array(["count", "count", "color", "color"]),
        answers=["1", "2", "red", "blue"],
    )


def test_answer_premise_by_hand(items):
    found = answer_premise(items)
    assert (found["n"], found["canonical"], found["majority"], found["sampled"]) == (4, 75.0, 50.0, 25.0)
    assert found["single"] == pytest.approx(100 * 6 / 12)
    assert found["framings"] == [50.0, 50.0, 50.0]
    gap = np.array([0, 1 / 3, -1 / 3, 0])
    assert found["majority_minus_single"]["delta"] == pytest.approx(0.0)
    assert found["majority_minus_single"]["se"] == pytest.approx(100 * gap.std(ddof=1) / 2)
    assert found["majority_minus_canonical"] == {"delta": -25.0, "se": pytest.approx(25.0)}  # 0, 0, -1, 0
    assert list(found["families"]) == ["color", "count"]
    assert found["families"]["count"]["single"] == pytest.approx(100 * 5 / 6)


def test_detector_premise_by_hand(items):
    found = detector_premise(items)
    assert found["canonical"]["wrong"] == 1
    assert found["canonical"]["ste"] == 1.0  # the wrong answer has the highest STE
    assert found["canonical"]["h_sc"] == pytest.approx(1 / 6)  # 0 against 0, 0.64, 0.64: one tie
    assert found["majority"]["h_sc"] == pytest.approx(0.5)  # {0.64, 0} against {0, 0.64}
    assert found["unanimous"]["n"] == 2 and found["unanimous"]["majority_wrong_share"] == 50.0
    assert found["unanimous"]["majority_ste"] == 1.0


def test_detectors_are_undefined_without_wrong_answers(items):
    right = np.ones(4, bool)
    found = detector_premise(AnswerItems(**{**vars(items), "canonical": right, "majority": right}))
    assert found["canonical"]["ste"] is None and found["unanimous"]["majority_ste"] is None


def test_best_of_compares_mean_reward_choice_and_oracle():
    truth = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    signals = {name: list(np.array([[0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.3, 0.4]])) for name in COMPONENTS}
    found = _rank_premise(signals, truth)
    assert found["best_of"] == {"candidates": 2, "mean": 50.0, "by_reward": 50.0, "oracle": 75.0,
                                "mixed_groups": 50.0}
    assert found["zero_variance_share"] == 25.0
    assert found["spearman"]["reward"]["mean"] == pytest.approx(0.0)  # +1 and -1
    assert found["spearman"]["reward"]["groups"] == 2


def test_a_penalty_that_falls_with_the_truth_counts_as_useful():
    truth, penalty = np.array([[0.0, 0.0, 1.0]]), np.array([0.5, 0.4, 0.0])
    found = _rank_premise({name: [penalty] for name in COMPONENTS}, truth)["spearman"]
    assert found["contradiction"]["mean"] > 0.8 > -0.8 > found["fidelity"]["mean"]


@pytest.fixture(scope="module")
def measured():
    return measure_premise(load_backbone("tiny-ar"), **SMALL)


def test_measured_premise_is_complete_and_json(measured):
    assert json.loads(json.dumps(measured, allow_nan=False)) == measured
    assert measured["answers"]["n"] == 28 and len(measured["answers"]["framings"]) == 7
    assert measured["drawings"]["n"] == 24
    assert measured["drawn_images"]["n"] <= 48 and measured["drawn_images"]["n"] % 2 == 0
    assert measured["reward"]["used"] <= 4 and set(measured["reward"]["spearman"]) == set(COMPONENTS)
    best = measured["reward"]["best_of"]
    assert best["oracle"] >= max(best["mean"], best["by_reward"])
    assert measured["reader"]["noise 0"] >= 99.0


def test_premise_prints_every_row(measured):
    console = Console(record=True, width=160, file=io.StringIO())
    print_premise(measured, console)
    text = console.export_text()
    assert all(name in text for name, _, _ in premise_rows(measured))


def test_premise_repeats_exactly(measured):
    again = measure_premise(load_backbone("tiny-ar"), **SMALL)
    assert again == measured


def test_the_base_is_named_as_results_name_it(measured):
    assert measured["base"] is None  # no configuration was given
    assert base_name(resolve("tiny", ["base=registers"])) == "registers"
    assert base_name(resolve("tiny", ["base=some/where/tiny-ar-mine.safetensors"])) == "mine"


def test_measured_premise_can_be_judged(measured):
    assert len({verdict.condition for verdict in judge_premise(measured)}) == 11


def test_items_of_another_size_are_refused(items):
    with pytest.raises(ValueError, match="same per_family"):
        measure_premise(load_backbone("tiny-ar"), **SMALL, items=items)


def test_oracle_gain_by_hand(tmp_path):
    results = data.make_results(tmp_path)
    found = oracle_gain(results, "tiny-ar", "clean")
    before, after = data.scores_of(data.make_items(1)), data.scores_of(data.make_items(10, 0.4))
    assert (found["runs"], found["folder"]) == (["tiny-ar-clean-oracle-s0"], "measured")
    assert set(found["gains"]) == {"answers/single", "drawings/overall"}
    for key, gain in found["gains"].items():
        assert gain["delta"] == pytest.approx(after[key] - before[key])
        assert gain["low"] <= gain["delta"] <= gain["high"]


def test_oracle_gain_of_fresh_runs_where_none_are_committed(tmp_path):
    data.make_results(tmp_path / "small")
    found = oracle_gain(tmp_path, "tiny-ar", "clean")
    assert (found["runs"], found["folder"]) == (["tiny-ar-clean-oracle-s0"], "small/measured")


def test_oracle_gain_without_runs_names_the_command(tmp_path):
    found = oracle_gain(tmp_path, "tiny-ar", "clean")
    assert found == {"runs": [], "folder": None, "gains": {}, "command": "asgkit reproduce --profile small"}
    assert oracle_gain(data.make_results(tmp_path), "tiny-ar", "registers")["runs"] == []


def test_oracle_gain_refuses_numbers_that_do_not_follow_from_items(tmp_path):
    results = data.make_results(tmp_path)
    path = results / "measured" / "runs" / "tiny-ar-clean-oracle-s0" / "metrics.json"
    content = json.loads(path.read_text())
    content["scores"]["drawings/overall"] += 1.0
    path.write_text(json.dumps(content))
    with pytest.raises(Untraceable, match="drawings/overall"):
        oracle_gain(results, "tiny-ar", "clean")


def test_oracle_rows_name_their_runs(measured, tmp_path):
    gain = oracle_gain(data.make_results(tmp_path), "tiny-ar", "clean")
    rows = premise_rows({**measured, "oracle_gain": gain})
    assert len(rows) == len(premise_rows(measured)) + 2
    assert rows[-1][0] == "oracle gain drawings/overall" and "tiny-ar-clean-oracle-s0" in rows[-1][2]


def test_written_premise_is_strict_sorted_json(tmp_path):
    path = tmp_path / "new" / "p.json"
    write_premise(path, {"b": None, "a": {"d": 1.5, "c": "±"}})
    assert path.read_text(encoding="utf-8") == '{\n "a": {\n  "c": "±",\n  "d": 1.5\n },\n "b": null\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_premise(path, {"a": float("nan")})
    assert "null" in path.read_text(encoding="utf-8")  # the good file is still there


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(premise, "QUICK", SMALL)
    result = CliRunner().invoke(app, ["premise", "base=registers", "seed=3", "--quick", "--out", "p.json"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["base"], found["seed"], found["sizes"]) == ("registers", 3, SMALL)
    assert found["oracle_gain"]["command"] == "asgkit reproduce --profile small"
    assert list(found) == sorted(found)
    assert "by design" in result.output and "What the premise allows" in result.output


@pytest.mark.parametrize("backbone", ["tiny-flow", "tiny-diffusion"])
def test_the_command_measures_every_backbone(tmp_path, monkeypatch, backbone):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(premise, "QUICK", SMALL)
    result = CliRunner().invoke(app, ["premise", f"backbone={backbone}", "--quick", "--out", "p.json"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["backbone"], found["base"]) == (backbone, "clean") and found["drawings"]["n"] == 24
    assert f"Premise of {backbone}, base clean" in result.output and "by design" not in result.output


def test_the_command_refuses_a_folder_before_it_measures(tmp_path):
    result = CliRunner().invoke(app, ["premise", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "is a folder" in result.output


def test_another_judge_reads_and_ranks_the_same_drawings():
    config = resolve("tiny", {"generator.scorer": "frozen"})
    kept = [measure_premise(load_backbone("tiny-ar"), **SMALL, config=config, scorer=scorer)
            for scorer in (None, load_backbone("tiny-ar"), load_backbone("tiny-ar", base="registers"))]
    own, same, other = ({name: found[name] for name in ("drawings", "drawn_images", "reward")} for found in kept)
    assert own == same and own["drawings"] == other["drawings"]
    assert own["drawn_images"] != other["drawn_images"] and own["reward"] != other["reward"]
    assert kept[0]["scorer"] == "frozen"
