"""Where the figures of a comparison with an upstream checkout are kept: `results/bench/parity.json`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
from pathlib import Path

import pytest

FIGURES = Path(__file__).parents[1] / "results" / "bench" / "parity.json"


def checkout(name: str) -> Path:
    """The upstream checkout named by the variable ASGKIT_UPSTREAM_<NAME>; the test is skipped without it."""
    variable = f"ASGKIT_UPSTREAM_{name.upper()}"
    if variable not in os.environ:
        pytest.skip(f"compares with an upstream checkout: set {variable} to its folder")
    return Path(os.environ[variable])


def record(name: str, folder: Path, source: str, figures: dict[str, float]) -> None:
    """Keep the largest absolute differences of one comparison, with the commit and the versions they hold for."""
    commit = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "diffusers")}
    found = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {}
    found[name] = {"source": source, "commit": commit.stdout.strip(), "versions": versions,
                   "largest_difference": {key: float(f"{value:.3g}") for key, value in figures.items()}}
    FIGURES.write_text(json.dumps(dict(sorted(found.items())), indent=2) + "\n")
