"""The command `asgkit claims`: the paper's claims against what was measured. `asgkit.cli.app` registers it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from asgkit.cli.console import out, refusing
from asgkit.errors import Refused
from asgkit.runs.wording import table


def claims(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    to: Annotated[list[Path] | None, typer.Option("--out", help="Write everything to this .json or .md file; may be "
                                                                "given twice.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of results.")] = Path("results"),
    file: Annotated[Path, typer.Option("--claims", help="The claims and their rules.")] = Path("results/claims.yaml"),
) -> None:
    """Hold each claim of the paper against the measured results: supported, contradicted, inconclusive, not tested.

    Claims that ask for it may also be `toy` (supported on tiny models alone) or `no effect` (within their margin).

    Exit status 0 whatever the verdicts are. Examples:

    [bold]asgkit claims[/] · [bold]asgkit claims --json[/]

    [bold]asgkit claims --out results/claims.json --out results/claims.md[/] · after new runs
    """
    from asgkit.report.claims import claims as report
    from asgkit.report.measured import Untraceable, load_measured
    from asgkit.runs.files import write_atomic, write_json

    for path in to or []:
        if path.suffix not in (".json", ".md"):
            raise Refused(f"--out {path}: the suffix says the format; name a .json or .md file")
        if not path.parent.is_dir():
            raise Refused(f"--out {path}: there is no folder {path.parent}; make it first")
    if not (results / "measured").is_dir():
        raise Refused(f"no measured results in {results}: run this in the folder of the clone, or name the folder, "
                      "--results")
    with refusing(report.ClaimsError, Untraceable):
        measured = load_measured(results)
        content = report.as_json(report.assess_all(report.load_claims(file), measured), measured)
    for path in to or []:
        if path.suffix == ".json":
            write_json(path, content)
        else:
            write_atomic(path, report.as_markdown(content))
    if as_json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    _show(content)
    for path in to or []:
        out.print(f"wrote {path}", markup=False, highlight=False)


def _show(content: dict[str, Any]) -> None:
    rows = [(f"{c['verdict']} {c['scope']}".strip(), f"{c['id']}: {c['statement']}", _evidence(c))
            for c in content["claims"]]
    out.print(table("claims of the paper, and what was measured here",
                    ("verdict", "claim", "effect, 95% interval, n; or what would test it"), rows))
    out.print(table("verdicts", ("verdict", "claims", "meaning"),
                    [(v, count, content["verdicts"][v]) for v, count in content["counts"].items()]))


def _evidence(claim: dict[str, Any]) -> str:
    """One line per comparison that was measured, then the command where one was not."""
    from asgkit.report.claims.claims import NOT_TESTED, effect

    tested = [p for p in claim["comparisons"] if p["verdict"] != NOT_TESTED]
    lines = [f"{p['what']}: {effect(p)} ({p['n_items']} items, {p['n_seeds']} seeds)"
             + (f", {p['note']}" if p["note"] else "") for p in tested]
    if len(tested) < len(claim["comparisons"]):
        lines.append(f"{len(claim['comparisons']) - len(tested)} not measured: {', '.join(claim['commands'])}")
    return "\n".join(lines)
