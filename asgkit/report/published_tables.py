"""The published tables in their printed layout, and beside each a twin for what was measured here.

A reported number and a measured one never share a cell: a twin has the rows of its table, columns of its own
(the tiny world has no MMMU) and a `source` column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd

from asgkit.report.published import Cell, Table

MISSING = "-"  # not printed, or illegible
UNMEASURED = "not measured"
TWINS = ("2", "3", "4", "5", "6", "S2", "S3", "S4", "S5")
TWIN_COLUMNS = ("table", "row", "system", "metric", "value", "low", "high", "seeds", "n", "run_ids", "source")
_HIDDEN = ("on_project_page", "adopted", "setting_label_inferred", "source")
_HEADS = {"params_percent": "Params (%)", "learnable_roles": "Learnable roles", "tasks": "Tasks",
          "external_supervision": "External supervision", "architecture_specific": "Architecture-specific",
          "cross_paradigm_validation": "Cross-paradigm validation"}
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


def twin(tables: Mapping[str, Table], id: str, measured: pd.DataFrame | None = None) -> pd.DataFrame:
    """The measured twin of a published table: its rows, per system a line with `value [low, high]` per metric.

    `measured` has the columns TWIN_COLUMNS, one row per table, row, system and metric, in one unit per metric; rows
    without any say "not measured". Raises ValueError for a table without a twin, unknown columns or rows, a repeated
    cell, or a number that names no run.
    """
    if id not in TWINS:
        raise ValueError(f"table {id!r} has no measured twin; those with one are {', '.join(TWINS)}")
    rows = [row for row, cells in tables[id].rows.items() if id not in _SIDES or cells["group"].printed in _SIDES[id]]
    held = _own(measured, id, rows)
    metrics = list(dict.fromkeys(held["metric"]))
    lines = [line for row in rows for line in _twin_lines(held, row, metrics)]
    return pd.DataFrame(lines, columns=["row", "system", *metrics, "seeds", "n", "source"])


def render(frame: pd.DataFrame, title: str, form: Literal["md", "tex", "html"]) -> str:
    """A frame of texts as Markdown, LaTeX (booktabs) or HTML under its caption; ValueError for another form."""
    from asgkit.report.tables import to_latex, to_markdown

    if form == "html":
        body = frame.to_html(index=False, border=0)
        return body.replace("<thead>", f"<caption>{_escaped(title)}</caption>\n  <thead>", 1) + "\n"
    if form not in ("md", "tex"):
        raise ValueError(f"unknown form {form!r}; choose md, tex or html")
    return to_markdown(frame, title) if form == "md" else to_latex(frame, title)


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


def _own(measured: pd.DataFrame | None, id: str, rows: list[str]) -> pd.DataFrame:
    if measured is None:
        return pd.DataFrame(columns=list(TWIN_COLUMNS))
    from asgkit.report.tables import refuse_untraced

    if set(measured.columns) != set(TWIN_COLUMNS):
        raise ValueError(f"columns must be {', '.join(TWIN_COLUMNS)}, got {', '.join(measured.columns)}")
    refuse_untraced(measured)
    held = measured[measured["table"] == id]
    unknown = sorted(set(held["row"]) - set(rows))
    if unknown:
        raise ValueError(f"table {id} has no row {unknown[0]!r} to measure; its rows are {', '.join(rows)}")
    if held.duplicated(["row", "system", "metric"]).any():
        raise ValueError(f"table {id}: two numbers for one row, system and metric")
    return held


def _twin_lines(held: pd.DataFrame, row: str, metrics: list[str]) -> list[dict[str, str]]:
    own = held[held["row"] == row]
    if own.empty:
        return [{"row": row, "system": MISSING, **dict.fromkeys(metrics, UNMEASURED), "seeds": MISSING, "n": MISSING,
                 "source": UNMEASURED}]
    lines = []
    for system, group in own.groupby("system", sort=False):
        found = {r.metric: f"{r.value:.1f} [{r.low:.1f}, {r.high:.1f}]" for r in group.itertuples()}
        lines.append({"row": row, "system": str(system), **{m: found.get(m, UNMEASURED) for m in metrics},
                      "seeds": _all(group["seeds"]), "n": _all(group["n"]), "source": "measured"})
    return lines


def _all(counts: pd.Series) -> str:
    return ", ".join(str(count) for count in sorted(set(counts)))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
