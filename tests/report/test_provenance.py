"""The versions of a file: those that decide its bytes, and not the release that happens to be installed."""

import json

import pytest
from paths import ROOT

import asgkit
from asgkit.report import provenance
from asgkit.report.figures.captions import CAPTIONS
from asgkit.report.places import made_folders
from asgkit.report.provenance import CHANGED, SEABORN, SINCE, versions


def test_a_new_release_changes_no_file(monkeypatch):
    before = versions("gains_tiny-ar-clean")
    monkeypatch.setattr(asgkit, "__version__", "9.9.9")
    assert versions("gains_tiny-ar-clean") == before


def test_a_kind_stands_for_all_bases_and_a_name_for_itself(monkeypatch):
    monkeypatch.setattr(provenance, "CHANGED", {"gains": "0.7.0", "premise_b": "0.8.0"})
    monkeypatch.setattr(provenance, "SEABORN", ("gains",))
    wanted = {"gains": "0.7.0", "gains_b": "0.7.0", "gainsay": SINCE, "premise_b": "0.8.0", "premise_c": SINCE,
              "": SINCE}
    assert {name: versions(name)["asgkit"] for name in wanted} == wanted
    assert "seaborn" in versions("gains_b") and "seaborn" not in versions("premise_b")


def test_what_changed_is_a_figure_and_came_after_the_rest():
    number = lambda release: tuple(map(int, release.split(".")))
    for name, release in CHANGED.items():
        assert any(name == kind or name.startswith(f"{kind}_") for kind in CAPTIONS), name
        assert number(SINCE) < number(release)
    assert set(SEABORN) <= CHANGED.keys()


@pytest.mark.parametrize("folder", made_folders(ROOT), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_committed_files_name_the_release_that_the_code_gives_them(folder):
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text())["versions"]["asgkit"] == versions(path.stem)["asgkit"], path.name
