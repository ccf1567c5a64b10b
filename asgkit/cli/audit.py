"""The command `asgkit audit`: published numbers against each other. `asgkit.cli.app` registers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from asgkit.cli.console import out, refusing
from asgkit.errors import Refused
from asgkit.runs.wording import table

if TYPE_CHECKING:
    from asgkit.report.audit.audit import Audit


def audit(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    to: Annotated[Path | None, typer.Option("--out", help="Write the full audit to this .json or .md file.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Show consistent findings too.")] = False,
    paper: Annotated[Path, typer.Option(help="Folder of the published tables.")] = Path("results/paper"),
) -> None:
    """Recompute what the published tables imply: gains, averages, repeated rows, claims, other sources; then power.

    Exit status 0 whatever is found: findings are about published tables, not about this clone.

    Examples: [bold]asgkit audit[/] · [bold]asgkit audit --all[/] · [bold]asgkit audit --json[/] ·
    [bold]asgkit audit --out results/audit.md[/]
    """
    from asgkit.report.audit import audit as report
    from asgkit.report.tables.published import PublishedError
    from asgkit.runs.files import write_atomic, write_json

    if to and to.suffix not in (".json", ".md"):
        raise Refused(f"--out {to}: the suffix says the format; name a .json or .md file")
    if to and not to.parent.is_dir():
        raise Refused(f"--out {to}: there is no folder {to.parent}; make it first")
    with refusing(PublishedError):
        found = report.run_audit(paper)
    if to and to.suffix == ".json":
        write_json(to, report.as_json(found))
    elif to:
        write_atomic(to, report.as_markdown(found))
    if as_json:
        print(json.dumps(report.as_json(found), indent=1, ensure_ascii=False))
        return
    _show(found, everything)
    if to:
        out.print(f"wrote {to}", markup=False, highlight=False)


def _show(found: Audit, everything: bool) -> None:
    from asgkit.stats.rounding import VERDICTS

    findings = found.findings if everything else found.open()
    title = "every finding" if everything else "not consistent as printed (all: --all)"
    out.print(table(title, ("verdict", "relation", "where", "printed", "recomputed", "bound", "note"),
                    [(f.verdict, f.kind, f"{f.file}, {f.row}, {f.column}: {f.relation}", f.printed, f.recomputed,
                      f.bound, f.note) for f in findings]))
    out.print(table("power, percentage points (5% two-sided, 80%)",
                    ("benchmark", "system", "items", "gain", "SE of a run", "unpaired", "paired", "smallest unpaired",
                     "smallest paired", "the gain is"),
                    [(p.benchmark, p.system, p.items, p.gain, p.se_run, p.se_unpaired, p.se_paired,
                      p.smallest_unpaired, p.smallest_paired, p.reading) for p in found.power]))
    counts = found.counts()
    out.print(table("findings", ("relation", *VERDICTS),
                    [(kind, *(row[verdict] for verdict in VERDICTS)) for kind, row in counts.items()]))
