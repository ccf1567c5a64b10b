"""Published numbers, read strictly from `results/paper`: every cell keeps its printed text, its unit and its place."""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pandas as pd

PAPER = Path("results/paper")
ASG, GVU = "ASG, arXiv 2606.27376", "GvU, arXiv 2603.06043"
UNICORN = "UniCorn, arXiv 2601.03193, from a published summary"
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class PublishedError(ValueError):
    """A published file does not have the shape that its transcription has; the message names file and row."""


@dataclass(frozen=True)
class Cell:
    """One printed cell; `printed` is its text, empty where nothing legible was printed."""

    table: str
    row: str
    column: str
    printed: str
    unit: str
    place: str

    @property
    def value(self) -> Decimal | None:
        """The printed number, exactly; None where the cell is missing or holds words."""
        return Decimal(self.printed) if self.unit != "text" and self.printed else None


@dataclass(frozen=True)
class Table:
    """One published table: cells by row and column, in the printed order."""

    id: str
    file: str
    title: str
    rows: dict[str, dict[str, Cell]]

    def numbers(self, row: str) -> dict[str, Cell]:
        """The legible numeric cells of a row; KeyError for a row that the table does not have."""
        return {name: cell for name, cell in self.rows[row].items() if cell.value is not None}


@dataclass(frozen=True)
class Elsewhere:
    """The score of a system in another place than the table that it is compared with."""

    table: str
    row: str
    column: str
    printed: str
    unit: str
    kind: str  # published | re-run
    place: str


@dataclass(frozen=True)
class _File:
    name: str
    tables: dict[str, str]  # id -> title; more than one: the column `table` says which
    source: str
    key: tuple[str, ...]  # the columns that name a row
    texts: tuple[str, ...]
    numbers: dict[str, str]  # column -> unit
    fixed: tuple[tuple[str, str], ...] = ()  # columns that must hold this word, left out of the cells


UNDERSTANDING = {"MMMU": "percent", "MMBench": "percent", "TextVQA": "percent", "SEED": "percent", "RWQA": "percent",
                 "MM-Vet": "percent", "MME-P": "points", "MME-C": "points"}
ALL_METRICS = UNDERSTANDING | {"GenEval": "percent"}
GENEVAL_PARTS = ("Single obj.", "Two obj.", "Counting", "Colors", "Position", "Color attri.")
GVU_GENEVAL_PARTS = ("Single Obj.", "Two Obj.", "Counting", "Colors", "Position", "Attr. Binding")
PLUS_PARTS = ("Color", "Count", "Color/Count", "Color/Pos", "Pos/Count", "Pos/Size", "Multi-Count")
_SHOWN = ("group", "method", "baseline", "params")


def _units(names: tuple[str, ...], unit: str) -> dict[str, str]:
    return dict.fromkeys(names, unit)


_FILES = (
    _File("table1_methods.csv", {"1": "Method comparison"}, ASG, ("method",),
          ("external_supervision", "tasks", "architecture_specific", "cross_paradigm_validation"), {}),
    _File("table2_understanding.csv", {"2": "Understanding"}, ASG, ("method",),
          ("group", "baseline", "params", "on_project_page"), UNDERSTANDING),
    _File("table2_printed_deltas.csv", {"2-deltas": "Gains printed in Table 2"}, ASG, ("method",), (), UNDERSTANDING),
    _File("table3_geneval.csv", {"3": "GenEval"}, ASG, ("method",),
          ("group", "baseline", "params", "on_project_page"), _units((*GENEVAL_PARTS, "Overall"), "percent")),
    _File("table3_printed_deltas.csv", {"3-deltas": "Gains printed in Table 3"}, ASG, ("method",), (),
          _units((*GENEVAL_PARTS, "Overall"), "percent")),
    _File("table4_ablation.csv", {"4": "Component ablation"}, ASG, ("configuration",), (), ALL_METRICS),
    _File("table5_loop_coupling.csv", {"5": "Loop coupling"}, ASG, ("configuration",), (), ALL_METRICS),
    _File("table6_parameter_strategy.csv", {"6": "Parameter strategy"}, ASG, ("strategy",), (),
          {"params_percent": "percent of parameters"} | ALL_METRICS),
    _File("tableS1_hyperparameters.csv", {"S1": "Hyper-parameters"}, ASG, ("category", "hyperparameter"),
          ("value",), {}),
    _File("tableS2_S3_S4_sweeps.csv", {"S2": "Sweeps of the understanding side", "S3": "Sweeps of the optimiser",
                                       "S4": "Sweeps of the generation side"}, ASG, ("factor", "setting"),
          ("adopted", "setting_label_inferred"), ALL_METRICS),
    _File("tableS5_coupling_controls.csv", {"S5": "Coupling controls"}, ASG, ("setting",), ("learnable_roles",),
          _units(("BLIP3o-8B und_avg", "BLIP3o-8B GenEval", "BAGEL und_avg", "BAGEL GenEval"), "percent")),
    _File("gvu_geneval.csv", {"GvU-GenEval": "GenEval"}, GVU, ("method",), ("group",),
          _units((*GVU_GENEVAL_PARTS, "Overall"), "fraction"), (("source", "gvu"),)),
    _File("gvu_dpg.csv", {"GvU-DPG": "DPG-Bench"}, GVU, ("method",), ("group",),
          _units(("Global", "Entity", "Attribute", "Relation", "Other", "Overall"), "percent"), (("source", "gvu"),)),
    _File("gvu_geneval_plus_plus.csv", {"GvU-GenEval++": "GenEval++"}, GVU, ("method",), ("group",),
          _units((*PLUS_PARTS, "Overall"), "fraction"), (("source", "gvu"),)),
    _File("gvu_mmt_bench.csv", {"GvU-MMT": "MMT-Bench"}, GVU, ("model",), (),
          _units(("MMT-Bench Overall", "VR", "VI", "Ha", "VCR", "DKR"), "percent"), (("source", "gvu"),)),
    _File("unicorn_headline.csv", {"UniCorn": "Headline scores"}, UNICORN, ("benchmark",), ("kind",),
          {"value": "percent"}, (("source", "unicorn-summary"),)),
)
_YES_NO = ("on_project_page", "adopted", "setting_label_inferred", "cross_paradigm_validation")


def load_published(folder: str | Path = PAPER) -> dict[str, Table]:
    """Read every published table by id ("1".."6", "2-deltas", "3-deltas", "S1".."S5", "GvU-...", "UniCorn").

    An empty cell stays missing. Raises FileNotFoundError when a file is not there and PublishedError for unknown or
    missing columns, a cell that is no number, a repeated row or a wrong yes/no. Source: results/paper/README.md.
    """
    return {table.id: table for file in _FILES for table in _read(Path(folder), file)}


def load_elsewhere(folder: str | Path = PAPER) -> list[Elsewhere]:
    """Read `elsewhere.csv`: scores of the same systems in other places; raises as `load_published`."""
    columns = ("system", "table", "row", "column", "printed", "unit", "kind", "place")
    found = []
    for line, record in enumerate(_records(Path(folder) / "elsewhere.csv", columns), 2):
        if not _NUMBER.fullmatch(record["printed"]) or record["kind"] not in ("published", "re-run"):
            raise PublishedError(f"elsewhere.csv line {line}: printed must be a number and kind published or re-run")
        found.append(Elsewhere(**{name: record[name] for name in columns[1:]}))
    return found


def published(folder: str | Path = PAPER) -> pd.DataFrame:
    """Every published cell as one tidy frame, `source` always "reported".

    Columns: table, row, column, printed (text), value (float, NaN where missing or words), unit, source, place.
    Raises as `load_published`.
    """
    rows = [{"table": cell.table, "row": cell.row, "column": cell.column, "printed": cell.printed,
             "value": math.nan if cell.value is None else float(cell.value), "unit": cell.unit, "source": "reported",
             "place": cell.place}
            for table in load_published(folder).values() for row in table.rows.values() for cell in row.values()]
    return pd.DataFrame(rows)


def files() -> list[str]:
    """Names of the files that `load_published` and `load_elsewhere` read."""
    return [*(file.name for file in _FILES), "elsewhere.csv"]


def _records(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: take the folder results/paper of the clone")
    with path.open(encoding="utf-8", newline="") as stream:
        lines = [line for line in csv.reader(stream, strict=True) if line]
    if not lines or set(lines[0]) != set(columns) or len(lines[0]) != len(columns):
        raise PublishedError(f"{path.name}: columns must be {sorted(columns)}, got {sorted(lines[0]) if lines else []}")
    short = [number for number, line in enumerate(lines, 1) if len(line) != len(columns)]
    if short:
        raise PublishedError(f"{path.name} line {short[0]}: {len(columns)} cells expected; quote a cell with commas")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _read(folder: Path, file: _File) -> list[Table]:
    several = len(file.tables) > 1
    columns = (("table",) if several else ()) + file.key + file.texts + tuple(file.numbers)
    columns += tuple(name for name, _ in file.fixed)
    tables = {id: Table(id, file.name, title, {}) for id, title in file.tables.items()}
    for line, record in enumerate(_records(folder / file.name, columns), 2):
        id = record["table"] if several else next(iter(file.tables))
        row = " = ".join(record[name] for name in file.key)
        _check(file, line, record, id, row, tables)
        tables[id].rows[row] = _cells(file, id, row, record)
    return list(tables.values())


def _check(file: _File, line: int, record: dict[str, str], id: str, row: str, tables: dict[str, Table]) -> None:
    where = f"{file.name} line {line}"
    if id not in tables:
        raise PublishedError(f"{where}: table {id!r} is none of {sorted(tables)}")
    if not row or row in tables[id].rows:
        raise PublishedError(f"{where}: row {row!r} is empty or repeated")
    for name in file.numbers:
        if record[name] and not _NUMBER.fullmatch(record[name]):
            raise PublishedError(f"{where}, column {name}: {record[name]!r} is no number; leave a missing cell empty")
    wrong = [name for name, word in file.fixed if record[name] != word]
    wrong += [name for name in _YES_NO if name in file.texts and record[name] not in ("yes", "no")]
    if wrong:
        raise PublishedError(f"{where}, column {wrong[0]}: {record[wrong[0]]!r} is not one of its words")


def _cells(file: _File, id: str, row: str, record: dict[str, str]) -> dict[str, Cell]:
    units = {name: "text" for name in (*file.key, *file.texts)} | file.numbers
    table = f"Table {id}" if file.source == ASG else f"{file.tables[id]} table"
    return {name: Cell(id, row, name, record[name], unit, f"{file.source}, {table}, row {row}, column {name}")
            for name, unit in units.items()}
