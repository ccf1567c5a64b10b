"""Hygiene of the committed notebooks: complete, clean, small, portable, in one house style, and in order."""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from paths import ROOT

from asgkit.lessons.helpers import EXERCISES

PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BATCH = sorted((ROOT / "notebooks" / "batch").glob("*.ipynb"))  # to run with other parameters, over bases and seeds
NAMES = ["00_start_here", "01_one_backbone_three_roles", "02_ask", "03_solve", "04_solver_token_entropy",
         "05_draw_and_score", "06_the_full_loop", "07_understanding_tables", "08_generation_tables",
         "09_signal_analysis", "10_loop_coupling", "11_training_dynamics", "12_before_and_after",
         "13_ablations_and_sweeps", "14_real_backbones", "15_bring_your_own_backbone"]
MAX_BYTES = 300_000
# A typed default and a comment that papermill shows as its help: `seed: int = 0  # what it decides`.
PARAMETER = re.compile(r"[a-z_]+: (?:int|float|str|bool|list) = \S.*  # \S.*")
ABSOLUTE = re.compile(r"(?<![\w.:/<])/(?:home|root|Users|tmp|work|opt|usr|var|mnt|private)/|[A-Z]:\\\\")

PREMISES, RUN = (ROOT / "notebooks" / "batch" / f"{name}.ipynb" for name in ("premises", "run"))

each = pytest.mark.parametrize("path", PATHS + BATCH, ids=lambda path: path.stem)
lesson = pytest.mark.parametrize("path", [*PATHS, PREMISES], ids=lambda path: path.stem)  # the runner teaches nothing


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def headings(path: Path, level: int) -> list[str]:
    """Markdown headings of one level; code cells and fenced blocks do not count."""
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)


def test_the_lessons_are_there_and_numbered_without_gaps():
    assert [path.stem for path in PATHS][: len(NAMES)] == NAMES
    assert [int(path.stem[:2]) for path in PATHS] == list(range(len(PATHS)))


def test_the_batch_notebooks_are_there():
    assert BATCH == [PREMISES, RUN]


def test_the_premise_notebook_takes_the_parameters_that_scripts_rely_on():
    (cell,) = [c for c in code_cells(PREMISES) if "parameters" in c.metadata.get("tags", [])]
    found = dict(re.findall(r"^([a-z_]+): (\w+) =", cell.source, flags=re.MULTILINE))
    assert found == {"backbone": "str", "base": "str", "split": "str", "per_family": "int", "per_tag": "int",
                     "samples": "int", "groups": "int", "seed": "int", "out": "str"}


def test_the_premise_notebook_says_that_independence_is_designed_and_leads_back():
    text = "\n".join(cell.source for cell in read(PREMISES).cells if cell.cell_type == "markdown")
    assert "independence is designed" in text
    assert "(../00_start_here.ipynb)" in text and "(../06_the_full_loop.ipynb)" in text


@each
def test_valid_notebook_of_the_plain_python_kernel(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}, "left by a runner: `make notebooks` drops it"


@each
def test_cell_ids_are_stable_and_metadata_holds_tags_only(path):
    notebook = read(path)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert all(identifier.startswith(path.stem[:2] + "-") for identifier in ids)
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


@each
def test_every_code_cell_was_run_once_from_top_to_bottom(path):
    assert [cell.execution_count for cell in code_cells(path)] == list(range(1, len(code_cells(path)) + 1))


@each
def test_no_error_and_nothing_on_stderr(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", f"{cell.id}: {output.get('text')}"


@each
def test_no_absolute_paths(path):
    found = ABSOLUTE.search(path.read_text(encoding="utf-8"))
    assert found is None, found


def test_the_path_pattern_finds_paths_and_leaves_links_and_fractions():
    assert ABSOLUTE.search('"/home/me/x"') and ABSOLUTE.search("in /tmp/x") and ABSOLUTE.search(r"C:\\x")
    assert not ABSOLUTE.search("https://example.org/home/x") and not ABSOLUTE.search("5/7 and notebooks/06.ipynb")


@each
def test_small_enough_to_read_on_the_web(path):
    assert path.stat().st_size < MAX_BYTES


@lesson
def test_shape_of_a_lesson(path):
    cells = read(path).cells
    lengths = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert 25 <= len(cells) <= 45
    assert statistics.median(lengths) <= 8 and max(lengths) <= 25
    assert len(headings(path, 1)) == 1 and 5 <= len(headings(path, 2)) <= 8


@lesson
def test_fixed_furniture(path):
    cells = read(path).cells
    assert "You will learn" in cells[0].source and re.search(r"\bminutes?\b", cells[0].source)
    assert "versions()" in cells[1].source and "nbval-ignore-output" in cells[1].metadata.tags
    titles = [title.lower() for title in headings(path, 2)]
    for words in ("what the paper says, what we do", "summary", "exercises"):
        assert any(words in title for title in titles), words


@each
def test_one_parameters_cell_typed_and_explained(path):
    tagged = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    lines = tagged[0].source.splitlines()
    assert lines and all(PARAMETER.fullmatch(line) for line in lines), lines
    later = "\n".join(cell.source for cell in code_cells(path)[2:])
    unused = [line.split(":")[0] for line in lines if not re.search(rf"\b{line.split(':')[0]}\b", later)]
    assert not unused, f"parameters that change nothing: {unused}"


@each
def test_papermill_reads_every_parameter(path):
    (cell,) = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    found = papermill.inspect_notebook(str(path))
    assert list(found) == [line.split(":")[0] for line in cell.source.splitlines()]
    assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in found.values())


@lesson
def test_every_exercise_is_posed_and_left_open(path):
    source = "\n".join(cell.source for cell in code_cells(path))
    posed = re.findall(r'^check\("([0-9a-z.]+)", (.+?)\)(?:  #.*)?$', source, flags=re.MULTILINE)
    assert [name for name, _ in posed] == [name for name in EXERCISES if name.startswith(path.stem[:2])]
    assert 3 <= len(posed) <= 5 and all(attempt == "None" for _, attempt in posed)


@lesson
def test_lessons_probe_what_they_show(path):
    probes = sum("assert " in cell.source for cell in code_cells(path))
    assert probes >= 5


@each
def test_links_to_lessons_figures_and_tables_lead_somewhere(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#:]+)[)#]", text)  # a colon: an address of the web
    assert any(target.endswith(".ipynb") for target in targets)
    assert [target for target in targets if not (path.parent / target).exists()] == []


@each
def test_stored_the_way_git_likes_it(path):
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n") and "\r" not in text
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", *map(str, PATHS + BATCH)], cwd=ROOT,
                          capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_loop_notebook_takes_the_parameters_that_scripts_rely_on():
    (cell,) = [c for c in code_cells(PATHS[6]) if "parameters" in c.metadata.get("tags", [])]
    found = dict(re.findall(r"^([a-z_]+): (\w+) =", cell.source, flags=re.MULTILINE))
    assert found == {"backbone": "str", "base": "str", "preset": "str", "seed": "int", "steps": "int",
                     "overrides": "list", "pool": "str", "run_dir": "str"}


def test_the_loop_notebook_ends_by_writing_its_record():
    last = code_cells(PATHS[6])[-1]
    assert "run.json" in last.source and "config_hash" in last.source
