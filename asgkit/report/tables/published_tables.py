"""The published tables in their printed layout, and beside each a twin for what was measured here.

A reported number and a measured one never share a cell: a twin has the rows of its table, columns of its own
(the tiny world has no MMMU) and a `source` column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from asgkit.report.tables.published import Cell, Table
from asgkit.runs.files import sha256

if TYPE_CHECKING:
    from asgkit.report.tables.tables import Form

MISSING = "-"  # not printed, or illegible
UNMEASURED = "not measured"
TWINS = ("2", "3", "4", "5", "6", "S2", "S3", "S4", "S5")
TWIN_COLUMNS = ("table", "row", "system", "metric", "value", "delta", "low", "high", "exact", "seeds", "n", "run_ids",
                "source")
_HIDDEN = ("on_project_page", "adopted", "setting_label_inferred", "source")
_HEADS = {"params_percent": "Params (%)", "learnable_roles": "Learnable roles", "tasks": "Tasks",
          "external_supervision": "External supervision", "architecture_specific": "Architecture-specific",
          "cross_paradigm_validation": "Cross-paradigm validation"}
_SWEEPS = ("S2", "S3", "S4")
_SIDES = {"2": ("base", "ours"), "3": ("base", "ours")}  # groups of a table that can be measured; others: every row


def layout(tables: Mapping[str, Table], id: str) -> pd.DataFrame:
    """One published table as it is printed, every cell text: one line per row, gains in brackets in Tables 2 and 3.

    In the sweeps `*` marks the adopted setting and `?` a setting inferred from its neighbours. Raises KeyError for a
    table that is not among `tables`.
    """
    gains = tables.get(f"{id}-deltas")
    lines = [_line(cells, gains) for cells in tables[id].rows.values()]
    return pd.DataFrame(lines).reset_index(drop=True)


def caption(table: Table) -> str:
    """What stands over a published table: its title, its place, and that it is reported."""
    first = next(iter(next(iter(table.rows.values())).values()))
    place = first.place.split(", row ")[0]
    return f"{table.title} ({place}; reported, not measured here). {MISSING}: not printed or illegible."


def layouts(tables: Mapping[str, Table]) -> dict[str, pd.DataFrame]:
    """Every published table by id in its printed layout; the printed gains stand inside Tables 2 and 3."""
    return {id: layout(tables, id) for id in tables if not id.endswith("-deltas")}


def changes(tables: Mapping[str, Table], id: str, reference: str | None = None) -> pd.DataFrame:
    """Printed scores minus those of the row `reference`, one line per other row; NaN where either is missing.

    Without a reference each row of a sweep is held against the adopted setting of its factor. Differences of printed
    numbers, so each can be off by the last digit. Raises KeyError for no such row, or no adopted setting.
    """
    rows = tables[id].rows
    adopted = {} if reference else {cells["factor"].printed: row for row, cells in rows.items()
                                    if cells["adopted"].printed == "yes"}
    found = {}
    for row, cells in rows.items():
        beside = reference or adopted[cells["factor"].printed]
        if row != beside:
            found[row] = {name: _minus(cell, rows[beside][name]) for name, cell in cells.items() if cell.unit != "text"}
    return pd.DataFrame.from_dict(found, orient="index")


def _minus(cell: Cell, other: Cell) -> float:
    return math.nan if cell.value is None or other.value is None else float(cell.value - other.value)


def twin(tables: Mapping[str, Table], id: str, measured: pd.DataFrame | None = None,
         missing: Sequence[tuple[str, str, str]] = ()) -> pd.DataFrame:
    """The measured twin of a published table: its rows, per system a line with `score (gain [low, high])` per metric.

    `measured` has the columns TWIN_COLUMNS, one row per table, row, system and metric, in one unit per metric; a base
    has no gain (NaN). `missing` names (row, system, command) of what was not run. In the sweeps S2 to S4 a setting of
    our own may be added to a factor that the table has. Rows without anything say "not measured". Raises ValueError
    for a table without a twin, unknown columns or rows, a repeated cell, or a number that names no run.
    """
    if id not in TWINS:
        raise ValueError(f"table {id!r} has no measured twin; those with one are {', '.join(TWINS)}")
    held = _own(measured, id)
    rows = _rows(tables, id, [*held["row"], *(row for row, _, _ in missing)])
    metrics = list(dict.fromkeys(held["metric"]))
    lines = [line for row in rows for line in _twin_lines(held, missing, row, metrics)]
    return pd.DataFrame(lines, columns=["row", "system", *metrics, "seeds", "n", "source"])


def render(frame: pd.DataFrame, title: str, form: Literal["md", "tex", "html"]) -> str:
    """A frame of texts as Markdown, LaTeX (booktabs) or HTML under its caption; ValueError for another form."""
    from asgkit.report.tables.tables import to_html, to_latex, to_markdown

    forms = {"md": to_markdown, "tex": to_latex, "html": to_html}
    if form not in forms:
        raise ValueError(f"unknown form {form!r}; choose md, tex or html")
    return forms[form](frame, title)


def save_layouts(tables: Mapping[str, Table], paper: Path, folder: Path, record: Mapping[str, Any],
                 forms: Sequence[Form] = ()) -> list[Path]:
    """Write every published table as `<folder>/table_<id>.md` and `.json` (provenance), and as LaTeX and HTML if asked.

    `paper`: the folder that `tables` were read from, which holds them as CSV; `record`: command and versions. Returns
    the paths.
    """
    from asgkit.report.provenance import write_sidecar
    from asgkit.report.tables.tables import write_shown

    written = []
    for id, frame in layouts(tables).items():
        stem = folder / f"table_{id.replace('+', 'p')}"
        markdown, others = write_shown(frame, stem, caption(tables[id]), forms)
        files = sorted({tables[id].file, *(tables[d].file for d in (f"{id}-deltas",) if d in tables)})
        inputs = {f"{paper.name}/{name}": sha256((paper / name).read_bytes()) for name in files}
        origin = write_sidecar(stem, {**record, "source": "reported", "inputs": inputs}, [markdown])
        written += [markdown, *others, origin]
    return written


def _line(cells: Mapping[str, Cell], gains: Table | None) -> dict[str, str]:
    shown = {}
    for name, cell in cells.items():
        if name not in _HIDDEN:
            shown[_HEADS.get(name, name.capitalize() if name.islower() else name)] = cell.printed or MISSING
    if "adopted" in cells:
        marks = "*" * (cells["adopted"].printed == "yes") + "?" * (cells["setting_label_inferred"].printed == "yes")
        shown["Setting"] += marks
    method = cells["method"].printed if "method" in cells else ""
    if gains and method.removesuffix(" (Ours)") in gains.rows and method.endswith(" (Ours)"):
        for name, gain in gains.numbers(method.removesuffix(" (Ours)")).items():
            shown[name] += f" ({gain.value:+})"
    group = shown.pop("Group", None)
    return shown if group is None else {"Group": group, **shown}


def _own(measured: pd.DataFrame | None, id: str) -> pd.DataFrame:
    if measured is None:
        return pd.DataFrame(columns=list(TWIN_COLUMNS))
    from asgkit.report.tables.tables import refuse_untraced

    if set(measured.columns) != set(TWIN_COLUMNS):
        raise ValueError(f"columns must be {', '.join(TWIN_COLUMNS)}, got {', '.join(measured.columns)}")
    refuse_untraced(measured)
    held = measured[measured["table"] == id]
    if held.duplicated(["row", "system", "metric"]).any():
        raise ValueError(f"table {id}: two numbers for one row, system and metric")
    return held


def _rows(tables: Mapping[str, Table], id: str, named: Sequence[str]) -> list[str]:
    """The printed rows of a table, and in a sweep our own settings among those of their factor, in rising order."""
    rows = [row for row, cells in tables[id].rows.items() if id not in _SIDES or cells["group"].printed in _SIDES[id]]
    factors = list(dict.fromkeys(row.split(" = ")[0] for row in rows)) if id in _SWEEPS else []
    for name in dict.fromkeys(named):
        if name not in rows and name.split(" = ")[0] not in factors:
            raise ValueError(f"table {id} has no row {name!r} to measure; its rows are {', '.join(rows)}")
    every = list(dict.fromkeys([*rows, *named]))
    place = lambda row: (factors.index(row.split(" = ")[0]), float(row.split(" = ")[1]))
    return sorted(every, key=place) if factors else every


def _twin_lines(held: pd.DataFrame, missing: Sequence[tuple[str, str, str]], row: str, metrics: list[str]
                ) -> list[dict[str, str]]:
    lines = []
    for system, group in held[held["row"] == row].groupby("system", sort=False):
        found = {r.metric: _score(r) for r in group.itertuples()}
        lines.append({"row": row, "system": str(system), **{m: found.get(m, UNMEASURED) for m in metrics},
                      "seeds": _all(group["seeds"]), "n": _all(group["n"]), "source": "measured"})
    absent = [(system, f"{UNMEASURED}: {command}") for name, system, command in missing if name == row]
    for system, words in absent or ([] if lines else [(MISSING, UNMEASURED)]):
        lines.append({"row": row, "system": system, **dict.fromkeys(metrics, MISSING), "seeds": MISSING, "n": MISSING,
                      "source": words})
    return lines


def _score(cell: Any) -> str:
    if pd.isna(cell.delta):
        return f"{cell.value:.1f}"
    return f"{cell.value:.1f} ({cell.exact or f'{cell.delta:+.1f} [{cell.low:+.1f}, {cell.high:+.1f}]'})"


def _all(counts: pd.Series) -> str:
    return ", ".join(str(count) for count in sorted(set(counts))) if any(counts) else MISSING
