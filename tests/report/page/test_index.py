"""Index pages: every figure and table with a sentence, every file behind a link, and every link a file."""

import re
from pathlib import Path

import pytest
from paths import ROOT

from asgkit.report.build import _BY_BASE, _FIGURES, _SHARED
from asgkit.report.figures.captions import CAPTIONS
from asgkit.report.page.index import Entry, write_figure_pages, write_table_page
from asgkit.report.places import PAGE, figure_place, made_folders
from asgkit.report.provenance import write_sidecar
from asgkit.report.tables.tables import ON_DEMAND

LINK = re.compile(r"\]\(([^)]+)\)|(?:href|src)=\"([^\"]+)\"")


def linked(page: Path) -> set[str]:
    return {first or second for first, second in LINK.findall(page.read_text())}


# -- what is committed ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("folder", made_folders(ROOT), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_the_committed_pages_link_every_file_of_their_folder_and_nothing_else(folder):
    found = linked(folder / PAGE)
    held = {path.name for path in folder.iterdir() if path.suffix[1:] not in list(ON_DEMAND)} - {PAGE}
    assert len(held) >= 30 and held <= found
    assert {link for link in found if not (folder / link).resolve().is_file()} == set()


def test_nothing_lies_beside_the_folders_that_have_a_page():
    ignored = {"smoke", "small"}
    assert {path.name for path in (ROOT / "figures").iterdir()} - ignored == {"paper", "ours"}
    assert {path.name for path in (ROOT / "results/measured").iterdir()} == {
        "README.md", "tried.md", "base", "runs", "tables"}
    assert linked(ROOT / "results/measured/README.md") >= {"tables/README.md", "tried.md"}
    assert "tables/README.md" in linked(ROOT / "results/paper/README.md")


@pytest.mark.parametrize("page", ["results/measured/README.md", "results/measured/tried.md", "results/paper/README.md"])
def test_links_of_the_pages_written_by_hand_lead_somewhere(page):
    links = {link.partition("#")[0] for link in linked(ROOT / page) if "://" not in link}
    assert {link for link in links if not (ROOT / page).parent.joinpath(link).exists()} == set()


# -- how they are made ----------------------------------------------------------------------------------------------
def test_every_figure_that_a_report_draws_has_a_caption_and_a_place():
    assert {*_FIGURES, *_BY_BASE, *_SHARED} == CAPTIONS.keys()
    assert all(caption.text.endswith(".") and caption.text.count(".") == 1 for caption in CAPTIONS.values())
    twins = {kind for kind, caption in CAPTIONS.items() if caption.paper}
    assert {kind for kind in CAPTIONS if kind.startswith("figure")} <= twins
    assert {CAPTIONS[kind].paper for kind in twins} == {"3", "4", "5", "6 and S4 to S6", "S1", "S2", "S3"}
    assert figure_place(Path("f"), "gains", "b") == Path("f/ours/gains_b")
    assert figure_place(Path("f"), "figure4_scores") == Path("f/paper/figure4_scores")
    with pytest.raises(KeyError, match="figure9"):
        figure_place(Path("f"), "figure9")


def test_figures_stand_in_the_order_of_the_captions_and_empty_ones_say_so(tmp_path):
    for name in ("paper", "ours"):
        (tmp_path / name).mkdir()
    entries = [Entry("ours_blind"), Entry("gains", "b"), Entry("gains", "a", empty=True), Entry("figureS3_lags")]
    assert write_figure_pages(tmp_path, entries) == [tmp_path / "paper" / PAGE, tmp_path / "ours" / PAGE]
    paper, ours = ((tmp_path / name / PAGE).read_text() for name in ("paper", "ours"))
    assert [line for line in ours.splitlines() if line.startswith("## ")] == ["## gains", "## ours_blind"]
    assert CAPTIONS["gains"].text in ours and '<img src="gains_b.png"' in ours and '<img src="gains_a.png"' not in ours
    assert "Nothing measured yet: a: [picture](gains_a.png), [PDF](gains_a.pdf)" in ours
    assert "## Figure S3: figureS3_lags" in paper and "(../ours/README.md)" in paper


def test_a_folder_without_figures_gets_no_page_and_no_link_to_it(tmp_path):
    (tmp_path / "ours").mkdir()
    assert write_figure_pages(tmp_path, [Entry("ours_blind")]) == [tmp_path / "ours" / PAGE]
    assert "../paper" not in (tmp_path / "ours" / PAGE).read_text()
    assert write_figure_pages(tmp_path / "none", []) == []


@pytest.mark.parametrize(("caption", "sentence"), [
    ("A grid (Table 4): what does it add? Differences in points.", "A grid (Table 4): what does it add?"),
    ("Scores (one, 2606.27, Table 1; reported). -: not printed.", "Scores (one, 2606.27, Table 1; reported)."),
    ("Score and difference with 95% intervals; percent.", "Score and difference with 95% intervals."),
    ("No stop", "No stop."),
])
def test_a_table_is_named_with_the_first_sentence_of_its_caption(tmp_path, caption, sentence):
    table = tmp_path / "table_x.md"
    table.write_text(f"{caption}\n\n| a |\n|---|\n")
    table.with_suffix(".csv").write_text("a\n")
    assert write_table_page(tmp_path, "T", [table, table.with_suffix(".csv")]) == [tmp_path / PAGE]
    assert (f"| [table_x](table_x.md) | {sentence} | [CSV](table_x.csv), [origin](table_x.json) |"
            in (tmp_path / PAGE).read_text())


def test_a_published_table_leads_to_the_numbers_it_was_laid_out_from(tmp_path):
    table = tmp_path / "table_2.md"
    table.write_text("T.\n")
    write_sidecar(tmp_path / "table_2", {"inputs": {"paper/b.csv": "1", "paper/a.csv": "2"}}, [table])
    write_table_page(tmp_path, "T", [table])
    assert "| [CSV](../a.csv), [CSV](../b.csv), [origin](table_2.json) |" in (tmp_path / PAGE).read_text()
    assert write_table_page(tmp_path, "T", []) == []
