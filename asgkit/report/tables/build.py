"""The tables of `asgkit report`: which there are, their captions, and what each was made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from asgkit.report.measured import Measured, Measurement
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
from asgkit.report.tables.pseudo_labels import label_accuracy
from asgkit.report.tables.published import load_published
from asgkit.report.tables.published_tables import TWINS, save_layouts, twin
from asgkit.report.tables.tables import (
    KEPT,
    Form,
    contrast_table,
    designed,
    joint_table,
    premise_table,
    save_table,
    wide,
)
from asgkit.report.tables.twins import twin_caption, twin_rows
from asgkit.stats.effects import METHOD, WORDS


@dataclass(frozen=True)
class _Job:
    """What every table is made from, where it goes and in which forms."""

    measured: Measured
    gains: Gains
    results: Path
    folder: Path
    forms: Sequence[Form]

    def save(self, name: str, tidy: pd.DataFrame, shown: pd.DataFrame, caption: str,
             used: Sequence[Measurement] | None = None) -> list[Path]:
        """Write `table_<name>`; `used`: what it rests on, where its rows do not name their runs."""
        used = self._named(tidy) if used is None else used
        record = provenance(used, self.results, f"table_{name}")
        return save_table(tidy, shown, self.folder / f"table_{name}", caption, record, self.forms)

    def _named(self, table: pd.DataFrame) -> list[Measurement]:
        """The runs that a table names, and their bases."""
        wanted = {name for ids in table["run_ids"] for name in ids.split()}
        runs = [run for run in self.measured.runs if run.name in wanted]
        bases = wanted | {run.base for run in runs}
        return [*(base for name, base in self.measured.bases.items() if name in bases), *runs]


def write_tables(measured: Measured, gains: Gains, results: Path, folder: Path, forms: Sequence[Form] = KEPT
                 ) -> list[Path]:
    """Write every measured table into `folder`; returns the files. A table without rows is not written.

    Raises Untraceable when a number does not follow from its items.
    """
    job = _Job(measured, gains, results, folder, forms)
    return [*_main_tables(job), *_families(job), *_pseudo_labels(job), *_grids(job), *_twins(job)]


def write_published(results: Path, folder: Path, forms: Sequence[Form] = KEPT) -> list[Path]:
    """The layouts of the published tables of `<results>/paper` in `folder`; nothing where there is no such folder."""
    paper = results / "paper"
    if not paper.is_dir():
        return []
    return save_layouts(load_published(paper), paper, folder, {"command": COMMAND, "versions": versions()}, forms)


def _main_tables(job: _Job) -> list[Path]:
    written: list[Path] = []
    table = joint_table(job.measured, gains=job.gains)
    left_out = job.measured.unfinished
    note = f" Not finished, so left out: {', '.join(left_out)}." if left_out else ""
    if len(table):
        caption = (f"Evolved score (gain over the base with 95% paired {WORDS[METHOD]} interval over items and seeds), "
                   "percent." + designed(table["base"]) + note)
        written += job.save("joint", table, wide(table), caption)
    contrasts = contrast_table(job.measured, resamples=job.gains.resamples)
    if len(contrasts):
        caption = "Differences between arms, points with 95% interval." + designed(contrasts["base"])
        written += job.save("contrasts", contrasts, _shown(contrasts), caption)
    premises = {name: json.loads((m.path / "premise.json").read_text(encoding="utf-8"))
                for name, m in job.measured.bases.items() if (m.path / "premise.json").is_file()}
    if premises:
        frame = premise_table(premises)
        caption = "The premise, measured on the base before any run." + designed(frame["base"])
        written += job.save("premise", frame, frame.drop(columns="source"), caption,
                            [job.measured.bases[name] for name in premises])
    return written


def _shown(contrasts: pd.DataFrame) -> pd.DataFrame:
    cells = [f"{r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}]" for r in contrasts.itertuples()]
    shown = contrasts[["base", "contrast", "metric"]].assign(difference=cells)
    return shown.assign(seeds=contrasts["seeds"].astype(str), n=contrasts["n"].astype(str))


def _families(job: _Job) -> list[Path]:
    bases = headline_bases()
    table = families_table(job.measured, job.gains, bases)
    if table.empty:
        return []
    caption = ("The joint method on every backbone, question family (one framing, and the majority of framings) and "
               "drawing tag (default decoding, and the base's best), percent; beside its gain those of random rewards "
               "and of rewards from the truth, and, where it is no clear gain, what the premise says." + counted(table)
               + seed_note(table["seeds"]) + premise_note(job.measured, bases))
    return job.save("families", table, families_shown(table, bases), caption)


def _pseudo_labels(job: _Job) -> list[Path]:
    """How often the taught majorities of joint runs are right, where the pool's truth is known."""
    table = label_accuracy(job.measured)
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
    return job.save("pseudo_labels", table, shown, caption)


def _grids(job: _Job) -> list[Path]:
    """A table per shipped grid, also of one that was not begun; none where no run of any grid is there."""
    plans = {name: grid_arms(job.measured, grid) for name, grid in all_grids().items()}
    tables = {name: grid_table(name, plan.arms, job.measured, job.gains) for name, plan in plans.items()}
    if all(table.empty for table in tables.values()):
        return []
    written: list[Path] = []
    for name, table in tables.items():
        plan = plans[name]
        caption = grid_caption(name, all_grids()[name], table, plan)
        written += job.save(name, table, grid_shown(name, plan.arms, table), caption)
    return written


def _twins(job: _Job) -> list[Path]:
    if not (job.results / "paper").is_dir():
        return []
    tables, written = load_published(job.results / "paper"), []
    titles = {id: tables[id].title for id in TWINS}
    for id in TWINS:
        found = twin_rows(id, job.measured, job.gains)
        if len(found.rows):
            shown = twin(tables, id, found.rows, found.missing)
            caption = twin_caption(id, titles) + seed_note(found.rows["seeds"])
            written += job.save(f"twin_{id}", found.rows, shown, caption)
    return written
