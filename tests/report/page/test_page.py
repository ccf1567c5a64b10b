"""The results page: its tables are made from the grids' tables, and nothing else of it changes."""

from pathlib import Path

import pytest

from asgkit.report.measured import Untraceable
from asgkit.report.page.page import PAGE, fill_page, write_page

HEAD = "grid,base,arm,against,metric,score,delta,low,high,exact,seeds\n"
DOSES = HEAD + """doses,b1,u-1,base,answers/single,70,1.04,-0.06,2,,3
doses,b1,u-1,u-only,answers/single,70,-5,-6,-4,,3
doses,b1,u-1,base,drawings/overall,60,0,0,0,"unchanged, exact",3
doses,b2,u-1,base,answers/single,70,9,8,10,,2
doses,b1,g-1,base,answers/single,70,0,0,0,"unchanged, exact",1
"""
OTHER = HEAD + "plain,b1,u-only,base,answers/single,70,6,5,7,,5\nplain,b3,u-only,base,answers/single,70,6,5,7,,5\n"
PAGE_TEXT = """Before, with a | bar.

<!-- arms
grid: doses
arms: ["u-*"]
columns:
  answers: [answers/single, base]
  against its own: [answers/single, reference]
  drawings: [drawings/overall, base]
also:
  "u-only: as it is": [plain, u-only]
-->
| base | old |
<!-- end of arms -->

After.
"""


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "table_doses.csv").write_text(DOSES)
    (tmp_path / "table_plain.csv").write_text(OTHER)
    return tmp_path


def test_a_block_is_filled_by_hand_and_the_rest_stays(tables: Path) -> None:
    filled = fill_page(PAGE_TEXT, tables)
    assert filled.startswith(PAGE_TEXT[: PAGE_TEXT.index("| base | old |")]) and filled.endswith("\n\nAfter.\n")
    assert [line for line in filled.splitlines() if line.startswith("|")] == [
        "| base | arm | seeds | answers | against its own | drawings |",
        "|---|---|---|---|---|---|",
        "| b1 | u-1 | 3 | +1.0 [-0.1, +2.0] | -5.0 [-6.0, -4.0] | unchanged |",
        "| b2 | u-1 | 2 | +9.0 [+8.0, +10.0] | - | - |",
        "| b1 | u-only: as it is | 5 | +6.0 [+5.0, +7.0] | - | - |",  # b3 has no other row here
    ]
    assert fill_page(filled, tables) == filled


@pytest.mark.parametrize(("old", "new", "message"), [
    ("grid: doses", "grid: dozes", "no table_dozes.csv; grids with a table are doses, plain"),
    ('["u-*"]', "[x-1]", "no measured arm 'x-1'"),
    ("[answers/single, base]", "[answers/singel, base]", "no answers/singel; it has answers/single"),
    ("columns:", "colums:", "cannot be read"),
    ("grid: doses", "grid: [doses", "cannot be read"),
    ("[plain, u-only]", "[plain, u-lonely]", "no measured arm 'u-lonely'"),
])
def test_a_block_that_asks_for_what_is_not_there_is_refused(tables: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(Untraceable, match=message):
        fill_page(PAGE_TEXT.replace(old, new, 1), tables)


def test_a_page_is_written_where_there_is_one(tables: Path) -> None:
    assert write_page(tables / PAGE, tables, tables / "new.md") == []
    (tables / PAGE).write_text(PAGE_TEXT)
    assert write_page(tables / PAGE, tables, tables / "new.md") == [tables / "new.md"]
    assert (tables / "new.md").read_text() == fill_page(PAGE_TEXT, tables)
