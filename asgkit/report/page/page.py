"""Tables inside the results page, filled by `asgkit report`: nobody copies a number by hand.

A table stands between a comment that says what it shows, in YAML, and an end mark; all other text is left alone.

    <!-- arms
    grid: coupling                 # the rows are measured arms of table_coupling.csv, in its order
    arms: [u-only, two-stage]      # or patterns such as u-*
    columns:                       # heading: metric, and what it is held against: base, an arm, or `reference`
      "answers, one framing": [answers/single, base]
      minus joint: [answers/single, joint]
    also: {"g-only: awm": [coupling, g-only]}   # further rows from another grid, with a label of their own
    -->
    | base | arm | seeds | answers, one framing | minus joint |
    ...
    <!-- end of arms -->
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asgkit.report.measured import Untraceable
from asgkit.report.places import PAGE
from asgkit.report.tables.arms import BASE

BLOCK = re.compile(r"<!-- arms\n(?P<asked>.*?)-->\n(?P<table>.*?)<!-- end of arms -->\n", re.DOTALL)
ALL = ["*"]
REFERENCE = "reference"  # whichever arm the grid holds an arm against


class Asked(BaseModel):
    """What a block asks for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    grid: str
    arms: list[str] = ALL
    bases: list[str] = ALL
    columns: dict[str, tuple[str, str]] = Field(min_length=1)
    also: dict[str, tuple[str, str]] = {}


def fill_page(text: str, tables: Path) -> str:
    """The page with every block's table made from the grids' CSV files in `tables`.

    Raises Untraceable for a block that cannot be read, and where a grid has no table or no such arm or column.
    """
    return BLOCK.sub(lambda found: f"<!-- arms\n{found['asked']}-->\n{_table(found['asked'], tables)}"
                                   "<!-- end of arms -->\n", text)


def write_page(source: Path, tables: Path, target: Path) -> list[Path]:
    """Write the page of `source` filled from `tables` to `target`; nothing where there is no page."""
    if not source.is_file():
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(fill_page(source.read_text(encoding="utf-8"), tables), encoding="utf-8")
    return [target]


def _table(asked: str, tables: Path) -> str:
    try:
        block = Asked.model_validate(yaml.safe_load(asked))
    except (yaml.YAMLError, ValidationError) as error:
        raise Untraceable(f"{PAGE}: a block of arms cannot be read: {' '.join(str(error).split())}\n{asked}") from error
    table = _grid(block.grid, tables)
    _check_columns(table, block)
    rows = [_row(group, arm, block) for arm, group in _chosen(table, block.grid, block.arms, block.bases)]
    shown = list(dict.fromkeys(row[0] for row in rows))
    for label, (grid, arm) in block.also.items():
        rows += [_row(group, label, block) for _, group in _chosen(_grid(grid, tables), grid, [arm], shown)]
    if not any(cell not in ("", "-") for row in rows for cell in row[3:]):
        raise Untraceable(f"{PAGE}: a block of the grid {block.grid} shows nothing measured:\n{asked}")
    heads = ["base", "arm", "seeds", *block.columns]
    lines = [f"| {' | '.join(line)} |" for line in (heads, *rows)]
    lines.insert(1, "|" + "---|" * len(heads))
    return "\n".join(lines) + "\n"


def _grid(name: str, tables: Path) -> pd.DataFrame:
    path = tables / f"table_{name}.csv"
    if not path.is_file():
        raise Untraceable(f"{PAGE}: no {path.name}; grids with a table are "
                          f"{', '.join(sorted(p.stem.removeprefix('table_') for p in tables.glob('table_*.csv')))}")
    return pd.read_csv(path, keep_default_na=False)


def _check_columns(table: pd.DataFrame, block: Asked) -> None:
    known = {*table["metric"], *table["against"], REFERENCE}
    if strange := [part for pair in block.columns.values() for part in pair if part not in known]:
        raise Untraceable(f"{PAGE}: grid {block.grid} has no {strange[0]}; it has {', '.join(sorted(known))}")


def _chosen(table: pd.DataFrame, grid: str, arms: Sequence[str], bases: Sequence[str]
            ) -> list[tuple[str, Mapping[tuple[str, str], object]]]:
    """Measured arms that are named, as (arm, rows by metric and reference)."""
    for pattern in arms:
        if not any(fnmatchcase(arm, pattern) for arm in table["arm"]):
            raise Untraceable(f"{PAGE}: grid {grid} has no measured arm {pattern!r}")
    found = []
    for (base, arm), group in table.groupby(["base", "arm"], sort=False):
        if any(fnmatchcase(arm, p) for p in arms) and any(fnmatchcase(base, p) for p in bases):
            rows = list(group.itertuples())
            found.append((arm, {(r.metric, REFERENCE): r for r in rows if r.against != BASE}
                          | {(r.metric, r.against): r for r in rows}))
    return found


def _row(group: Mapping[tuple[str, str], object], label: str, block: Asked) -> list[str]:
    first = next(iter(group.values()))
    return [first.base, label, str(first.seeds), *(_cell(group.get(pair)) for pair in block.columns.values())]


def _cell(row: object | None) -> str:
    """A difference with its interval; `unchanged` where not one item differs; `-` where nothing is compared."""
    if row is None:
        return "-"
    return "unchanged" if row.exact else f"{row.delta:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
