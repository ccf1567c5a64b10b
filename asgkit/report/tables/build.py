"""The tables of `asgkit report`: which there are, their captions, and what each was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from asgkit.report.provenance import COMMAND, provenance, versions
from asgkit.report.tables.arms import all_grids, grid_arms, grid_caption, grid_shown, grid_table
from asgkit.report.tables.families import (
    counted,
    families_shown,
    families_table,
    headline_bases,
    premise_note,
    seed_note,
)
from asgkit.report.tables.gains import Gains
from asgkit.report.tables.measured import Measured, Measurement
from asgkit.report.tables.pseudo_labels import label_accuracy
from asgkit.report.tables.published import load_published
from asgkit.report.tables.published_tables import TWINS, save_layouts, twin
from asgkit.report.tables.tables import contrast_table, designed, joint_table, premise_table, save_table, wide
from asgkit.report.tables.twins import twin_caption, twin_rows
from asgkit.stats.effects import METHOD, WORDS


def write_tables(measured: Measured, gains: Gains, results: Path, folder: Path) -> list[Path]:
    """Write every measured table into `folder`; returns the files. A table without rows is not written.

    Raises Untraceable when a number does not follow from its items.
    """
    return [*_main_tables(measured, gains, results, folder), *_families(measured, gains, results, folder),
            *_pseudo_labels(measured, results, folder),
            *_grids(measured, gains, results, folder), *_twins(measured, gains, results, folder)]


def write_published(results: Path, folder: Path) -> list[Path]:
    """The layouts of the published tables of `<results>/paper` in `folder`; nothing where there is no such folder."""
    paper = results / "paper"
    if not paper.is_dir():
        return []
    return save_layouts(load_published(paper), paper, folder, {"command": COMMAND, "versions": versions()})


def _main_tables(measured: Measured, gains: Gains, results: Path, folder: Path) -> list[Path]:
    written: list[Path] = []
    table = joint_table(measured, gains=gains)
    note = f" Not finished, so left out: {', '.join(measured.unfinished)}." if measured.unfinished else ""
    if len(table):
        caption = (f"Evolved score (gain over the base with 95% paired {WORDS[METHOD]} interval over items and seeds), "
                   "percent." + designed(table["base"]) + note)
        written += save_table(table, wide(table), folder / "table_joint", caption, _record(measured, table, results))
    contrasts = contrast_table(measured, resamples=gains.resamples)
    if len(contrasts):
        caption = "Differences between arms, points with 95% interval." + designed(contrasts["base"])
        written += save_table(contrasts, _shown(contrasts), folder / "table_contrasts", caption,
                              _record(measured, contrasts, results))
    premises = {name: json.loads((m.path / "premise.json").read_text(encoding="utf-8"))
                for name, m in measured.bases.items() if (m.path / "premise.json").is_file()}
    if premises:
        frame = premise_table(premises)
        written += save_table(frame, frame.drop(columns="source"), folder / "table_premise",
                              "The premise, measured on the base before any run." + designed(frame["base"]),
                              provenance([measured.bases[name] for name in premises], results))
    return written


def _shown(contrasts: pd.DataFrame) -> pd.DataFrame:
    cells = [f"{r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}]" for r in contrasts.itertuples()]
    shown = contrasts[["base", "contrast", "metric"]].assign(difference=cells)
    return shown.assign(seeds=contrasts["seeds"].astype(str), n=contrasts["n"].astype(str))


def _families(measured: Measured, gains: Gains, results: Path, folder: Path) -> list[Path]:
    bases = headline_bases()
    table = families_table(measured, gains, bases)
    if table.empty:
        return []
    caption = ("The joint method on every backbone, question family (one framing, and the majority of framings) and "
               "drawing tag (default decoding, and the base's best), percent; beside its gain those of random rewards "
               "and of rewards from the truth, and, where it is no clear gain, what the premise says." + counted(table)
               + seed_note(table["seeds"]) + premise_note(measured, bases))
    return save_table(table, families_shown(table, bases), folder / "table_families", caption,
                      _record(measured, table, results))


def _pseudo_labels(measured: Measured, results: Path, folder: Path) -> list[Path]:
    """How often the taught majorities of joint runs are right, where the pool's truth is known."""
    table = label_accuracy(measured)
    if table.empty:
        return []
    caption = ("How often the majority that the Solver is taught is right, percent of n taught questions q*, by the "
               "question's first words and by thirds of the run; joint runs, all seeds. determined: the picture has "
               "an answer to the question. range: the lowest and highest seed with ten such questions or more."
               + designed(table["base"]))
    shown = table[["base", "opening", "third", "seeds", "n", "determined", "right"]].copy()
    shown[["seeds", "n"]] = shown[["seeds", "n"]].astype(str)
    shown[["determined", "right"]] = shown[["determined", "right"]].map("{:.1f}".format)
    shown["range"] = [f"{r.low:.0f} to {r.high:.0f}" if r.low == r.low else "-" for r in table.itertuples()]
    return save_table(table, shown, folder / "table_pseudo_labels", caption, _record(measured, table, results))


def _grids(measured: Measured, gains: Gains, results: Path, folder: Path) -> list[Path]:
    """A table per shipped grid, also of one that was not begun; none where no run of any grid is there."""
    plans = {name: grid_arms(measured, grid) for name, grid in all_grids().items()}
    tables = {name: grid_table(name, plan.arms, measured, gains) for name, plan in plans.items()}
    if all(table.empty for table in tables.values()):
        return []
    written: list[Path] = []
    for name, table in tables.items():
        plan = plans[name]
        caption = grid_caption(name, all_grids()[name], table, plan)
        written += save_table(table, grid_shown(name, plan.arms, table), folder / f"table_{name}", caption,
                              _record(measured, table, results))
    return written


def _twins(measured: Measured, gains: Gains, results: Path, folder: Path) -> list[Path]:
    if not (results / "paper").is_dir():
        return []
    tables, written = load_published(results / "paper"), []
    titles = {id: tables[id].title for id in TWINS}
    for id in TWINS:
        found = twin_rows(id, measured, gains)
        if len(found.rows):
            shown = twin(tables, id, found.rows, found.missing)
            caption = twin_caption(id, titles) + seed_note(found.rows["seeds"])
            written += save_table(found.rows, shown, folder / f"table_twin_{id}", caption,
                                  _record(measured, found.rows, results))
    return written


def _record(measured: Measured, table: pd.DataFrame, results: Path) -> dict:
    """Provenance of the runs that a table names, and of their bases."""
    named = {name for ids in table["run_ids"] for name in ids.split()}
    return provenance(_with_bases(measured, named), results)


def _with_bases(measured: Measured, named: Iterable[str]) -> list[Measurement]:
    wanted = set(named)
    runs = [run for run in measured.runs if run.name in wanted]
    bases = wanted | {run.base for run in runs}
    return [*(base for name, base in measured.bases.items() if name in bases), *runs]
