"""`asgkit log`: the records behind a figure, as JSON lines for the eye, jq or pandas."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from asgkit.errors import Refused
from asgkit.recipes import all_fields
from asgkit.runs.files import read_lines
from asgkit.runs.packed_log import NAME, read_packed_log


def log(
    run: Annotated[Path, typer.Argument(help="A folder of results/runs or of results/measured/runs.")],
    fields: Annotated[str, typer.Option(help="Only these fields, with commas between them.")] = "",
    phase: Annotated[str, typer.Option(help="Only understanding (U) or generation (G) steps.")] = "",
) -> None:
    """Print the log of a run, one JSON record per image and step. docs/log_glossary.md explains every field.

    Examples: [bold]asgkit log results/runs/photos[/] ·
    [bold]asgkit log results/measured/runs/tiny-ar-clean-joint-s0 --fields step,question,solver/answers --phase U[/]
    """
    wanted = [name.strip() for name in fields.split(",") if name.strip()]
    _check(wanted, phase)
    for record in read_any_log(run):
        if phase and record["phase"] != phase:
            continue
        shown = {name: record[name] for name in wanted if name in record} if wanted else record
        print(json.dumps(shown, ensure_ascii=False))


def read_any_log(run: Path) -> list[dict[str, Any]]:
    """The records of a run directory, or of a measured run, whose log is packed. Raises FileNotFoundError."""
    if (run / NAME).is_file():
        return read_packed_log(run / NAME)
    if (run / "log.jsonl").is_file():
        return [record for _, record in read_lines(run / "log.jsonl")]
    raise FileNotFoundError(f"no log in {run}: name a folder of results/runs or of results/measured/runs")


def _check(wanted: Sequence[str], phase: str) -> None:
    """Raise Refused for a field that no log has, naming the nearest, or an unknown phase."""
    known = all_fields()
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise Refused(f"no field {name!r} in a log; did you mean {near[0]!r}?")
    if phase not in ("", "U", "G"):
        raise Refused(f"unknown phase {phase!r}; choose U (understanding) or G (generation)")
