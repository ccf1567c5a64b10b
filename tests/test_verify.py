"""Verify: an untouched report has no findings; a changed cell, log line, picture or hash has."""

import gzip
import json
import shutil

import pytest
import report_data as data
from PIL import Image

from asgkit.files import sha256
from asgkit.report.build import build_report
from asgkit.report.verify import verify

LOG = f"results/measured/runs/{data.BASE}-joint-s0/log.jsonl.gz"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One base and two figures: what is verified does not depend on how many there are."""
    from asgkit.report import build

    monkeypatch.setattr(build, "EXPECTED", (data.BASE,))
    monkeypatch.setattr(build, "RESAMPLES", 200)
    monkeypatch.setattr(build, "_FIGURES", {k: build._FIGURES[k] for k in ("gains", "signals")})


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return data.make_results(tmp_path_factory.mktemp("verify") / "results").parent


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
    path = root / "results/measured/table_joint.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[1] = lines[1].replace("measured", "reported", 1) if "measured" in lines[1] else lines[1] + "1"
    path.write_text("".join(lines))
    assert "results/measured/table_joint.csv" in _paths(verify(root, rebuild=False))


def test_a_cell_changed_together_with_its_hash_is_found_by_the_rebuild(root):
    path = root / "figures" / f"gains_{data.BASE}.csv"
    text = path.read_text()
    cell = text.splitlines()[1].split(",")[4]
    path.write_text(text.replace(cell, "99.5", 1))
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    content["outputs"][path.name] = sha256(path.read_bytes())
    sidecar.write_text(json.dumps(content))
    assert verify(root, rebuild=False) == []
    assert _paths(verify(root)) == {f"figures/gains_{data.BASE}.csv"}


def test_a_changed_log_line_is_found(root):
    text = gzip.decompress((root / LOG).read_bytes()).replace(b"0.75", b"0.76", 1)
    (root / LOG).write_bytes(gzip.compress(text, mtime=0))
    found = verify(root)
    assert LOG in _paths(found) and f"figures/signals_{data.BASE}.csv" in _paths(found)


def test_a_changed_pixel_is_found_even_with_the_provenance_kept(root):
    path = root / "figures" / f"gains_{data.BASE}.png"
    with Image.open(path) as image:
        text, picture = image.info["asgkit"], image.copy()
    picture.putpixel((5, 5), (255, 0, 0, 255))
    from PIL.PngImagePlugin import PngInfo

    held = PngInfo()
    held.add_text("asgkit", text)
    picture.save(path, pnginfo=held)
    assert f"figures/gains_{data.BASE}.png" in _paths(verify(root, rebuild=False))


def test_a_picture_without_its_provenance_is_found(root):
    path = root / "figures" / f"gains_{data.BASE}.png"
    with Image.open(path) as image:
        picture = image.copy()
    picture.save(path)
    problems = [f.problem for f in verify(root, rebuild=False)]
    assert "its embedded provenance is not that of its JSON" in problems


def test_missing_files_and_broken_sidecars_are_found(root):
    (root / "figures" / f"gains_{data.BASE}.pdf").unlink()
    (root / "figures" / f"signals_{data.BASE}.json").write_text("{}")
    found = {f.path: f.problem for f in verify(root, rebuild=False)}
    assert found[f"figures/gains_{data.BASE}.pdf"] == "missing"
    assert "not a provenance sidecar" in found[f"figures/signals_{data.BASE}.json"]


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
