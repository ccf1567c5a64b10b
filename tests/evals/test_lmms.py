"""The lmms-eval plug-in, without lmms-eval: answers of a tiny backbone, image modes, presets, what is kept."""

import importlib
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asgkit.backbones import ROLES, load_backbone
from asgkit.config import resolve
from asgkit.evals import lmms, lmms_run
from asgkit.evals.lmms.models import AVAILABLE_MODELS
from asgkit.evals.lmms.models import asgkit_backbone as bare
from asgkit.evals.presets import BY_TASK, PRESETS, UNGRADED, graded_outside
from asgkit.evals.protocol import Protocol
from asgkit.evals.subject import Subject, adapter_hash, open_subject, parse_role
from asgkit.evals.vqa import BenchmarkError, Item, VQASettings, cut, decoding_of, prompt_of
from asgkit.evals.vqa_images import GREY, Shuffle, blank, digest, fit_image, montage
from asgkit.runs.directory import RunDirectory

MODEL = {"backbone": "tiny-ar", "base": "tiny-ar-clean", "precision": "fp32", "device": "cpu", "asgkit": "x"}
QUESTIONS = ["is there a red circle ?", "how many objects are there ?", "is there a digit ?"]


@pytest.fixture(scope="module")
def trained():
    """A backbone whose Solver differs from its base."""
    backbone = load_backbone("tiny-ar", seed=1)
    torch.manual_seed(0)
    for parameter in backbone.role_parameters("solver"):
        parameter.data.normal_(0.0, 0.15)
    return backbone


@pytest.fixture()
def plugin(monkeypatch):
    """The plug-in's module, read beside a minimal stand-in of lmms-eval's base class."""
    class Lmms:
        def __init__(self):
            self.task_dict = {}

    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")
    for name in names:
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["lmms_eval.api.model"].lmms = Lmms
    monkeypatch.setitem(sys.modules, bare.__name__, None)
    monkeypatch.delitem(sys.modules, bare.__name__)
    module = importlib.import_module(bare.__name__)
    monkeypatch.setattr(module, "version", lambda name: "0.0")
    yield module
    sys.modules[bare.__name__] = bare


def requests(questions, visual=lambda doc: [doc["image"]], options=None, task="shapes"):
    options = options or {"max_new_tokens": 1, "until": ["\n\n"], "do_sample": False}
    return [SimpleNamespace(args=(text, dict(options), visual, i, task, "test")) for i, text in enumerate(questions)]


def answers_of(plugin, subject, pictures, out, questions=QUESTIONS, **settings):
    model = plugin.AsgkitBackbone(out=str(out), subject=subject, prompt="canonical", **settings)
    model.task_dict["shapes"] = {"test": [{"image": image} for image in pictures]}
    return model.generate_until(requests(questions))


def rows(folder, name="items-shapes.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# -- the plug-in ----------------------------------------------------------------------------------------------------
def test_the_table_leads_to_a_class_by_the_paths_that_lmms_eval_builds(plugin) -> None:
    (name, kind), = AVAILABLE_MODELS.items()
    assert getattr(importlib.import_module(f"{lmms.__name__}.models.{name}"), kind) is plugin.AsgkitBackbone
    assert importlib.util.find_spec(f"{lmms.__name__}.tasks").submodule_search_locations
    assert issubclass(plugin.AsgkitBackbone, sys.modules["lmms_eval.api.model"].lmms)
    assert plugin.AsgkitBackbone.is_simple


@pytest.mark.skipif(bare.INSTALLED, reason="lmms-eval is installed here")
def test_without_lmms_eval_the_module_can_be_read_and_the_error_says_how_to_install_it() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install lmms-eval"):
        bare.AsgkitBackbone(out="somewhere")
    with pytest.raises(BenchmarkError, match="pip install lmms-eval"):
        lmms_run.require_lmms_eval()


@pytest.mark.parametrize("role", [None, "solver"])
def test_answers_are_those_of_the_backbone_under_that_role(plugin, trained, pictures, tmp_path, role) -> None:
    subject = Subject(trained, role, MODEL, {"solver": "abc"})
    got = answers_of(plugin, subject, pictures, tmp_path / "o", batch_size=2)
    prefix = trained.prefix(pictures[:3], role=role)
    asked = [trained.spec.prompts.solve(question) for question in QUESTIONS]
    assert got == trained.answer(prefix, asked, max_new_tokens=1).texts


def test_base_and_solver_differ_in_the_subject_alone(plugin, trained, pictures, tmp_path) -> None:
    both = Subject(trained, "solver", MODEL, {"solver": "abc"}, "a-run", 7)
    first = answers_of(plugin, both.under(None), pictures, tmp_path / "base")
    second = answers_of(plugin, both, pictures, tmp_path / "solver")
    assert first != second
    base, solver = (Protocol.read(tmp_path / name) for name in ("base", "solver"))
    assert base.settings == solver.settings and base.benchmark == "vqa"
    assert base.subject == {"role": "none", "adapter_sha256": None, "run": None, "step": None}
    assert solver.subject == {"role": "solver", "adapter_sha256": "abc", "run": "a-run", "step": 7}
    assert base.settings["tasks"]["shapes"]["items"] == 3 and base.settings["lmms_eval"] == "0.0"


def test_every_answer_is_kept_with_all_that_made_it(plugin, tiny, pictures, tmp_path) -> None:
    got = answers_of(plugin, Subject(tiny, None, MODEL), pictures, tmp_path)
    kept = rows(tmp_path)
    assert [row["answer"] for row in kept] == got and [row["doc"] for row in kept] == [0, 1, 2]
    assert kept[1]["prompt"] == tiny.spec.prompts.solve(QUESTIONS[1])
    assert kept[0] | {"answer": "", "raw": ""} == {
        "task": "shapes", "split": "test", "doc": 0, "prompt": tiny.spec.prompts.solve(QUESTIONS[0]), "answer": "",
        "raw": "", "images": "real", "image_of": 0, "image_sha256": digest(pictures[0]), "role": "none",
        "adapter_sha256": None, "run": None, "step": None,
        "decoding": {"max_new_tokens": 1, "temperature": 0.0, "top_p": 1.0, "until": ["\n\n"]}}


def test_answers_do_not_depend_on_the_batch(plugin, tiny, pictures, tmp_path) -> None:
    subject = Subject(tiny, None, MODEL)
    parts = [answers_of(plugin, subject, pictures, tmp_path / str(n), batch_size=n) for n in (1, 3)]
    assert parts[0] == parts[1]


def test_a_second_result_never_lands_in_the_folder_of_the_first(plugin, tiny, pictures, tmp_path) -> None:
    answers_of(plugin, Subject(tiny, None, MODEL), pictures, tmp_path)
    with pytest.raises(FileExistsError, match="holds a result already"):
        answers_of(plugin, Subject(tiny, None, MODEL), pictures, tmp_path)


@pytest.mark.parametrize("arguments, words", [
    ({}, "out is missing"), ({"out": "o", "batch_size": "auto"}, "batch_size=auto"),
    ({"out": "o", "role": "painter"}, "painter"), ({"out": "o", "role": "solver"}, "give a run"),
    ({"out": "o", "image_mode": "blank"}, "image_mode"), ({"out": "o", "images": "black"}, "images")])
def test_wrong_arguments_raise_and_name_themselves(plugin, arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        plugin.AsgkitBackbone(**arguments)


def test_tasks_of_another_kind_are_refused(plugin, tmp_path) -> None:
    model = plugin.AsgkitBackbone(out=str(tmp_path), device="cpu")
    for call in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(BenchmarkError, match="generate_until"):
            call([])


# -- a run as a subject ---------------------------------------------------------------------------------------------
def test_a_subject_holds_the_adapters_of_a_checkpoint(trained, tmp_path) -> None:
    config = resolve("smoke", {"device": "cpu"})
    run = RunDirectory.create(tmp_path / "run", config.model_dump())
    with pytest.raises(FileNotFoundError, match="asgkit train"):
        open_subject(tmp_path / "run")
    folder = run.save_checkpoint(5, lambda to: [trained.save_role(role, to / role) for role in ROLES], {}, {})
    subject = open_subject(tmp_path / "run", role="solver")
    assert subject.step == 5 and subject.run == "run" and subject.model["base"] == "tiny-ar-clean"
    assert subject.adapters["solver"] == adapter_hash(folder / "solver") != subject.adapters["generator"]
    for mine, theirs in zip(subject.backbone.role_parameters("solver"), trained.role_parameters("solver"), strict=True):
        assert torch.equal(mine, theirs)
    assert subject.under(None).record["adapter_sha256"] is None


def test_the_hash_of_an_adapter_changes_with_any_file_of_it(tmp_path) -> None:
    (tmp_path / "a").write_text("1")
    first = adapter_hash(tmp_path)
    (tmp_path / "a").write_text("2")
    second = adapter_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, adapter_hash(tmp_path)}) == 3
    assert parse_role("none") is None and parse_role("solver") == "solver"


# -- pictures -------------------------------------------------------------------------------------------------------
def colored(*colors: str) -> list[Image.Image]:
    return [Image.new("RGB", (24, 24), color) for color in colors]


def test_blank_pictures_are_grey_and_of_nobody(plugin, tiny, pictures, tmp_path) -> None:
    answers_of(plugin, Subject(tiny, None, MODEL), pictures, tmp_path, images="blank")
    grey = digest(Image.new("RGB", (24, 24), GREY))
    assert {(row["image_of"], row["image_sha256"]) for row in rows(tmp_path)} == {(None, grey)}
    assert blank(Image.new("RGB", (30, 20))).size == (30, 20)


def test_shuffled_pictures_are_another_items_and_the_same_on_every_run(plugin, tiny, pictures, tmp_path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        answers_of(plugin, Subject(tiny, None, MODEL), pictures, tmp_path / name, images="shuffled", seed=seed)
    a, b, c = ([(row["image_of"], row["image_sha256"]) for row in rows(tmp_path / name)] for name in "abc")
    assert a == b != c
    for doc, (source, sha) in enumerate(a):
        assert source != doc and sha == digest(pictures[source]) != digest(pictures[doc])


@given(st.integers(2, 40), st.integers(0, 5))
def test_a_shuffle_gives_every_item_another_and_each_picture_once(count, seed) -> None:
    images = [Image.new("RGB", (2, 2), (n, 0, 0)) for n in range(count)]
    shuffle = Shuffle("task", count, seed)
    sources = [shuffle.partner(n, images[n], images.__getitem__)[0] for n in range(count)]
    assert sorted(sources) == list(range(count)) and all(n != source for n, source in enumerate(sources))


def test_items_with_one_picture_get_a_really_different_one() -> None:
    images = colored("red", "red", "red", "blue")
    for seed in range(5):
        assert Shuffle("mme", 4, seed).partner(0, images[0], images.__getitem__)[0] == 3
    with pytest.raises(ValueError, match="no other item has another picture"):
        Shuffle("mme", 3, 0).partner(0, images[0], images.__getitem__)


def test_several_pictures_become_one_grid_and_one_stays_itself() -> None:
    one, = colored("red")
    assert montage([one]).tobytes() == one.tobytes()
    sheet = montage(colored("red", "lime", "blue"))
    assert sheet.size == (48, 48)
    assert [sheet.getpixel(at) for at in ((2, 2), (26, 2), (2, 26), (26, 26))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


def test_a_square_fit_keeps_the_whole_picture_on_black() -> None:
    wide = Image.new("RGB", (40, 20), "white")
    fitted = fit_image(wide, "square", 20)
    assert fitted.size == (20, 20) and fitted.getpixel((10, 1)) == (0, 0, 0)
    assert fitted.getpixel((10, 10)) == (255, 255, 255) == fitted.getpixel((0, 10)) == fitted.getpixel((19, 10))
    assert fit_image(wide, "native", 20) is wide


@pytest.mark.parametrize("visual", [lambda doc: [], lambda doc: None, lambda doc: ["clip.mp4"]])
def test_items_without_a_picture_are_refused(plugin, tiny, pictures, tmp_path, visual) -> None:
    model = plugin.AsgkitBackbone(out=str(tmp_path), subject=Subject(tiny, None, MODEL), prompt="canonical")
    model.task_dict["shapes"] = {"test": [{"image": pictures[0]}]}
    with pytest.raises(BenchmarkError, match="item 0"):
        model.generate_until(requests(QUESTIONS[:1], visual))


def test_nested_lists_of_pictures_are_flat(plugin) -> None:
    red, blue = colored("red", "blue")
    assert plugin._flat([[red], blue]) == [red, blue] and plugin._flat(red) == [red] and plugin._flat(None) == []


# -- presets, decoding and prompts ----------------------------------------------------------------------------------
def test_the_presets_are_the_papers_seven_and_two_need_an_external_grader() -> None:
    assert [p.name for p in PRESETS] == ["MMMU", "MMBench", "TextVQA", "SEED", "RealWorldQA", "MM-Vet", "MME"]
    assert graded_outside([p.task for p in PRESETS]) == ["mmbench_en_dev", "mmvet"]
    assert len(UNGRADED) == 5 and graded_outside(["my_task"]) == []
    assert {p.task: p.max_new_tokens for p in PRESETS} == {
        "mmmu_val": 16, "mmbench_en_dev": 1024, "textvqa_val": None, "seedbench": None, "realworldqa": 16,
        "mmvet": 1024, "mme": 16}


def test_a_preset_decides_before_the_installed_task() -> None:
    sampled = {"max_new_tokens": 128, "temperature": 0.2, "do_sample": True, "until": "ASSISTANT:"}
    found = decoding_of("mmmu_val", sampled, VQASettings(), 4096)
    assert (found.max_new_tokens, found.temperature, found.top_p, found.until) == (16, 0.0, 1.0, ("ASSISTANT:",))
    assert decoding_of("textvqa_val", {}, VQASettings(), 4096).max_new_tokens == 128
    own = decoding_of("my_task", {**sampled, "top_p": 0.9}, VQASettings(), 4096)
    assert (own.max_new_tokens, own.temperature, own.top_p) == (128, 0.2, 0.9)
    assert decoding_of("my_task", {"temperature": 0, "until": None}, VQASettings(), 4096).temperature == 0.0
    assert decoding_of("my_task", {"temperature": 0.2, "do_sample": False}, VQASettings(), 4096).temperature == 0.0


def test_an_answer_is_never_shortened_without_being_asked() -> None:
    with pytest.raises(BenchmarkError, match="max_new_tokens=20"):
        decoding_of("mmvet", {}, VQASettings(), 20)
    assert decoding_of("mmvet", {}, VQASettings(max_new_tokens=20), 20).max_new_tokens == 20
    with pytest.raises(BenchmarkError, match="beam"):
        decoding_of("my_task", {"num_beams": 4}, VQASettings(), 20)


def item(task: str, text: str) -> Item:
    return Item(task, "test", 0, text, {}, lambda doc: [], 1)


def test_prompts_are_sent_as_the_task_writes_them_and_checked(tiny) -> None:
    asked = "<image>What is it?\nAnswer the question using a single word or phrase."
    assert prompt_of(item("mme", asked), VQASettings(), tiny) == asked[len("<image>"):]
    with pytest.raises(BenchmarkError, match="asks otherwise"):
        prompt_of(item("mme", "What is it?"), VQASettings(), tiny)
    assert prompt_of(item("realworldqa", "What is it?"), VQASettings(), tiny) == "What is it?"
    canonical = prompt_of(item("own", "is there a cat ?"), VQASettings(prompt="canonical"), tiny)
    assert canonical == "question : is there a cat ? <answer>"
    assert set(BY_TASK) == {p.task for p in PRESETS}


def test_texts_end_at_the_first_stop() -> None:
    assert cut(" red\n\nASSISTANT: blue", ("ASSISTANT:", "\n\n")) == "red"
    assert cut("red", ()) == "red"


# -- scores ---------------------------------------------------------------------------------------------------------
def test_scores_are_the_metrics_without_errors_and_labels() -> None:
    row = {"alias": "x", "exact_match,none": 0.5, "exact_match_stderr,none": 0.1, "submission,none": None, " ": 3}
    assert lmms_run._numbers(row) == {"exact_match": 0.5}
    assert lmms_run.item_scores({"exact_match": 1, "mme": {"a": 1}}, {"exact_match": 0.5, "mme": 3.0}) == {
        "exact_match": 1.0}


def test_an_external_grader_is_asked_only_when_it_was_allowed(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(BenchmarkError, match="--external-grader"):
        lmms_run.check_graders(["mme", "mmvet"], allowed=False)
    with pytest.raises(BenchmarkError, match="OPENAI_API_KEY"):
        lmms_run.check_graders(["mmvet"], allowed=True)
    lmms_run.check_graders(list(UNGRADED), allowed=False)
    monkeypatch.setenv("OPENAI_API_KEY", "a")
    lmms_run.check_graders(["mmvet"], allowed=True)


def test_the_folder_of_the_plug_in_is_where_the_environment_variable_leads() -> None:
    assert lmms.__name__ in lmms.__doc__ and (Path(lmms.__file__).parent / "models").is_dir()
