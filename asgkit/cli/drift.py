"""The command `asgkit drift`: two versions or machines, the same steps? `asgkit.cli.app` registers it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from asgkit.cli.console import out
from asgkit.errors import Refused
from asgkit.runs.wording import table


def drift(
    a: Annotated[str, typer.Argument(help="A commit, a folder that holds the package, or recorded runs.")],
    b: Annotated[str, typer.Argument(help="The other side (default: this folder).")] = ".",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the long case.")] = 20,
    backbones: Annotated[str, typer.Option(help="Names with commas between them; real ones as tiny random instances.")]
    = "tiny-ar,tiny-flow,tiny-diffusion",
    to: Annotated[Path | None, typer.Option("--out", help="Keep the runs here, to compare with another machine's.")]
    = None,
) -> None:
    """Make the same short runs by two versions and name the first field that differs. Exit status 1 if one does.

    About five minutes on one core. Examples: [bold]asgkit drift HEAD~1[/] (before a merge) · [bold]asgkit drift HEAD
    --out here[/] on one machine, then [bold]asgkit drift here/b .[/] on another
    """
    from asgkit.experiments.drift import run_drift

    names = [name.strip() for name in backbones.split(",") if name.strip()]
    if not names:
        raise Refused("no backbone named: give --backbones tiny-ar, for example")
    with tempfile.TemporaryDirectory() as scratch:
        found = run_drift(a, b, to or Path(scratch), steps=steps, backbones=names,
                          say=lambda text: out.print(text, highlight=False))
    out.print(table(f"{a} against {b}", ("run", "steps", "records", "values", "files", "state"),
                    [(d.run, *map(str, (d.steps, d.records, d.fields, d.files)),
                      "DIFFERS" if d.first else "equal") for d in found]))
    for d in found:
        if d.first:
            out.print(f"{d.run}: {d.first}", markup=False, highlight=False)
    if any(d.first for d in found):
        raise typer.Exit(1)
