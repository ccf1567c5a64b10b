"""Verify: an untouched report has no findings; a changed cell, log line, picture or hash has."""

import json
import shutil

import pytest
import report_data as data
from paths import RESULTS
from PIL import Image

from asgkit.report import verify as module
from asgkit.report.audit.audit import as_json, as_markdown, run_audit
from asgkit.report.build import build_report
from asgkit.report.measured import load_measured
from asgkit.report.page.page import fill_page
from asgkit.report.tables.tables import forms_of
from asgkit.report.verify import size_line, verify
from asgkit.runs.files import sha256, write_json
from asgkit.runs.packed_log import NAME, pack_log, read_packed_log

LOG = f"results/measured/runs/{data.BASE}-joint-s0/{NAME}"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One base and two figures: what is verified does not depend on how many there are."""
    from asgkit.report import build

    monkeypatch.setattr(build, "EXPECTED", (data.BASE,))
    monkeypatch.setattr(build, "RESAMPLES", 200)
    monkeypatch.setattr(build, "_FIGURES", {k: build._FIGURES[k] for k in ("gains", "signals")})
    monkeypatch.setattr(build, "_BY_BASE", {})
    monkeypatch.setattr(build, "_SHARED", {})


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """Measured results, the published numbers, and the audit of them."""
    results = data.make_results(tmp_path_factory.mktemp("verify") / "results")
    shutil.copytree(RESULTS / "paper", results / "paper",
                    ignore=shutil.ignore_patterns("tables"))
    found = run_audit(results / "paper")
    write_json(results / "audit.json", as_json(found))
    (results / "audit.md").write_text(as_markdown(found))
    return results.parent


@pytest.fixture
def root(pristine, tmp_path):
    if not (pristine / "figures").exists():  # built under `small`, once
        build_report(pristine / "results", pristine / "figures")
    shutil.copytree(pristine, tmp_path / "clone")
    return tmp_path / "clone"


def _paths(findings):
    return {finding.path for finding in findings}


def test_an_untouched_report_holds(root):
    assert verify(root) == []


def test_nothing_to_check_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="asgkit report"):
        verify(tmp_path)


def test_a_changed_table_cell_is_found(root):
    path = root / "results/measured/tables/table_joint.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("measured", "reported", 1) if "measured" in lines[1] else lines[1] + "1"
    path.write_text("".join(lines))
    assert "results/measured/tables/table_joint.csv" in _paths(verify(root, rebuild=False))


def test_a_cell_changed_together_with_its_hash_is_found_by_the_rebuild(root):
    path = root / "figures/ours" / f"gains_{data.BASE}.csv"
    text = path.read_text()
    cell = text.splitlines()[1].split(",")[4]
    path.write_text(text.replace(cell, "99.5", 1))
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    content["outputs"][path.name] = sha256(path.read_bytes())
    sidecar.write_text(json.dumps(content))
    assert verify(root, rebuild=False) == []
    assert _paths(verify(root)) == {f"figures/ours/gains_{data.BASE}.csv"}


def test_a_changed_number_on_the_results_page_is_found(root):
    page = root / "results/measured/README.md"
    block = ("<!-- arms\ngrid: headline\narms: [joint]\ncolumns:\n  answers: [answers/single, base]\n-->\n"
             "<!-- end of arms -->\n")
    page.write_text(fill_page(block, root / "results/measured/tables"))
    assert verify(root) == []
    page.write_text(page.read_text().replace("| 2 |", "| 5 |"))
    assert _paths(verify(root)) == {"results/measured/README.md"}


def test_a_changed_log_line_is_found(root):
    records = read_packed_log(root / LOG)
    next(r for r in records if r.get("solver/token_entropy") == 0.75)["solver/token_entropy"] = 0.76
    pack_log(records, root / LOG)
    found = verify(root)
    assert LOG in _paths(found) and f"figures/ours/signals_{data.BASE}.csv" in _paths(found)


def test_a_changed_pixel_is_found_even_with_the_provenance_kept(root):
    path = root / "figures/ours" / f"gains_{data.BASE}.png"
    with Image.open(path) as image:
        text, picture = image.info["asgkit"], image.copy()
    picture.putpixel((5, 5), (255, 0, 0, 255))
    from PIL.PngImagePlugin import PngInfo

    held = PngInfo()
    held.add_text("asgkit", text)
    picture.save(path, pnginfo=held)
    assert f"figures/ours/gains_{data.BASE}.png" in _paths(verify(root, rebuild=False))


def test_a_picture_without_its_provenance_is_found(root):
    path = root / "figures/ours" / f"gains_{data.BASE}.png"
    with Image.open(path) as image:
        picture = image.copy()
    picture.save(path)
    problems = [f.problem for f in verify(root, rebuild=False)]
    assert "its embedded provenance is not that of its JSON" in problems


def test_a_pdf_whose_provenance_was_changed_is_found(root):
    path = root / "figures/ours" / f"gains_{data.BASE}.pdf"
    path.write_bytes(path.read_bytes().replace(b"asgkit report", b"asgkit rep0rt", 1))
    found = [f.problem for f in verify(root, rebuild=False) if f.path == f"figures/ours/gains_{data.BASE}.pdf"]
    assert found == ["changed since the report was built", "its embedded provenance is not that of its JSON"]


def test_missing_files_and_broken_sidecars_are_found(root):
    (root / "figures/ours" / f"gains_{data.BASE}.pdf").unlink()
    (root / "figures/ours" / f"signals_{data.BASE}.json").write_text("{}")
    found = {f.path: f.problem for f in verify(root, rebuild=False)}
    assert found[f"figures/ours/gains_{data.BASE}.pdf"] == "missing"
    assert "not a provenance sidecar" in found[f"figures/ours/signals_{data.BASE}.json"]


def test_a_changed_score_stops_the_rebuild(root):
    path = root / "results" / "measured" / "runs" / f"{data.BASE}-random-s0" / "metrics.json"
    content = json.loads(path.read_text())
    content["scores"]["answers/single"] = 99.0
    path.write_text(json.dumps(content))
    assert "results/measured" in _paths(verify(root))


def test_a_second_build_changes_no_byte(root):
    files = sorted(p for folder in ("figures", "results") for p in (root / folder).rglob("*") if p.is_file())
    before = {p: p.read_bytes() for p in files}
    build_report(root / "results", root / "figures")
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("page", ["figures/ours/README.md", "results/measured/tables/README.md",
                                  "results/paper/tables/README.md"])
def test_an_index_page_that_was_changed_or_deleted_is_found(root, page):
    path = root / page
    path.write_text(path.read_text().replace("](", "](no-", 1))
    assert {f.path: f.problem for f in verify(root)} == {
        page: "not the page of what was measured; make it again: asgkit report"}
    path.unlink()
    assert {f.path: f.problem for f in verify(root)} == {page: "missing; make it: asgkit report"}


# -- tables of the experiments, published layouts, audit ------------------------------------------------------------
TABLES = (*(f"measured/tables/table_{name}" for name in ("families", "headline", "twin_2")), "paper/tables/table_4")


@pytest.mark.parametrize("stem", TABLES)
def test_a_changed_cell_of_a_kept_table_is_found_by_its_hash(root, stem):
    path = root / "results" / f"{stem}.md"
    _change_last_digit(path)
    assert f"results/{stem}.md" in _paths(verify(root, rebuild=False))


def _change_last_digit(path):
    text = path.read_text()
    digit = next(i for i in range(len(text) - 1, 0, -1) if text[i].isdigit())
    path.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])


def test_forms_on_demand_change_no_other_file_and_are_verified_like_them(root):
    files = sorted(p for folder in ("figures", "results") for p in (root / folder).rglob("*") if p.is_file())
    before = {p: p.read_bytes() for p in files}
    written = build_report(root / "results", root / "figures", forms=forms_of("html, tex"))
    assert {p: p.read_bytes() for p in before} == before
    on_demand = [p for p in written if p.suffix in (".tex", ".html")]
    assert len(on_demand) == 2 * len([p for p in written if p.suffix == ".md" and p.name.startswith("table_")])
    assert verify(root) == []
    changed = [root / "results" / f"{stem}{end}" for stem, end in zip(TABLES, [".tex", ".html"] * 2, strict=True)]
    for path in changed:
        _change_last_digit(path)
    assert _paths(verify(root)) == {path.relative_to(root).as_posix() for path in changed}


def test_a_cell_of_text_changed_together_with_its_hash_is_found_and_a_deleted_table_is_missed(root):
    path = root / "results/measured/tables/table_headline.md"
    path.write_text(path.read_text().replace("joint", "j0int", 1))
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    content["outputs"][path.name] = sha256(path.read_bytes())
    sidecar.write_text(json.dumps(content))
    for path in (root / "results/measured/tables").glob("table_twin_2.*"):
        path.unlink()
    assert _paths(verify(root)) == {f"results/measured/tables/{name}" for name in ("table_headline.md",
                                                                                   "table_twin_2.json")}


def test_a_changed_published_number_is_found_in_layout_and_audit(root):
    path = root / "results/paper/table4_ablation.csv"
    old = path.read_bytes()
    path.write_text(path.read_text().replace("52.8", "58.2", 1))
    sidecar = root / "results/paper/tables/table_4.json"
    sidecar.write_text(sidecar.read_text().replace(sha256(old), sha256(path.read_bytes())))
    assert _paths(verify(root)) == {"results/audit.json", "results/audit.md", "results/paper/tables/table_4.md"}
    path.write_text(path.read_text().replace("58.2", "many", 1))
    assert "results/paper" in _paths(verify(root, rebuild=False))


def test_a_changed_or_missing_audit_is_found(root):
    path = root / "results/audit.json"
    path.write_text(path.read_text().replace("consistent", "fine", 1))
    (root / "results/audit.md").unlink()
    found = {f.path: f.problem for f in verify(root, rebuild=False)}
    assert found["results/audit.json"].startswith("not what the published numbers give")
    assert found["results/audit.md"] == "missing; make it again: asgkit audit --out results/audit.md"
    path.write_text("{")
    assert "not readable" in {f.path: f.problem for f in verify(root, rebuild=False)}["results/audit.json"]


def test_a_folder_that_is_too_big_is_a_finding(root, monkeypatch):
    assert size_line(root).startswith("results/measured holds 0.") and size_line(root).endswith("of 60 MB")
    monkeypatch.setattr(module, "LIMIT", 1000)
    assert "results/measured" in _paths(verify(root, rebuild=False))


def test_no_reported_number_stands_in_a_measured_table(root):
    """Every tidy table under results/measured is measured throughout; layouts are reported throughout."""
    import pandas as pd

    for path in (root / "results/measured/tables").glob("table_*.csv"):
        frame = pd.read_csv(path)
        assert set(frame["source"]) <= {"measured"}, path.name  # an empty table has none
    runs = {run.name for run in load_measured(root / "results").runs} | {data.BASE}
    twin = pd.read_csv(root / "results/measured/tables/table_twin_2.csv")
    assert {name for ids in twin["run_ids"] for name in ids.split()} <= runs
    assert json.loads((root / "results/paper/tables/table_2.json").read_text())["source"] == "reported"
