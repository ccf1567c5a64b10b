"""Where a figure or table comes from: inputs and their hashes, run ids, seeds, versions; no clock, no machine."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from asgkit.report.measured import Measurement, Run
from asgkit.runs.files import sha256, write_json

COMMAND = "asgkit report"
KEY = "asgkit"  # of the PNG text chunk that holds the provenance
SUBJECT = re.compile(rb"/Subject \(((?:[^()\\]|\\.)*)\)", re.DOTALL)  # a PDF string; brackets in it are escaped
LIBRARIES = ("numpy", "pandas", "scipy", "matplotlib", "pillow")
# The release since which the code gives these bytes, and not the version of the package: with that one, every release
# would change every picture for nothing. When a change of code changes the bytes of a file from the same inputs, give
# the file the coming release in CHANGED, by its name or its kind (a kind stands for all bases); raise SINCE, and empty
# CHANGED, only when all files change.
SINCE = "0.1.0"
CHANGED = {"gains": "0.2.0", "figureS1_within_prompts": "0.2.0", "ours_generator_updates": "0.2.0",
           "learning_curve_tiny-ar-registers": "0.2.0", "signals_tiny-ar-registers": "0.2.0"}
# Kinds of figures that seaborn draws: its version decides their bytes too.
SEABORN = ("gains", "figureS1_within_prompts", "ours_generator_updates")


def versions(name: str = "") -> dict[str, str]:
    """Versions that decide the bytes of the figure or table `name` (without its suffix)."""
    of = lambda kind: name == kind or name.startswith(f"{kind}_")
    release = next((release for kind, release in CHANGED.items() if of(kind)), SINCE)
    libraries = (*LIBRARIES, *(["seaborn"] if any(map(of, SEABORN)) else []))
    found = {library: importlib.metadata.version(library) for library in libraries}
    return {"asgkit": release, "python": platform.python_version(), **found}


def provenance(measurements: Iterable[Measurement], results_dir: Path, name: str = "") -> dict[str, Any]:
    """What the figure or table `name` was made from; input paths are relative to the results folder."""
    used = sorted({m.name: m for m in measurements}.values(), key=lambda m: m.name)
    runs = [m for m in used if isinstance(m, Run)]
    files = sorted(path for m in used for path in m.evidence())
    return {
        "command": COMMAND, "run_ids": [r.name for r in runs],
        "bases": [m.name for m in used if not isinstance(m, Run)], "seeds": sorted({r.seed for r in runs}),
        "config_hashes": {r.name: r.config_hash for r in runs},
        "inputs": {p.relative_to(results_dir).as_posix(): sha256(p.read_bytes()) for p in files},
        "versions": versions(name),
    }


def as_text(record: dict[str, Any]) -> str:
    """The one spelling of a provenance record: what is embedded, and what `verify` compares."""
    return json.dumps(record, sort_keys=True, ensure_ascii=True)


def write_sidecar(stem: Path, record: dict[str, Any], outputs: Sequence[Path]) -> Path:
    """Write `<stem>.json`: the provenance and the sha256 of every output."""
    path = stem.with_name(stem.name + ".json")
    write_json(path, {**record, "outputs": {p.name: sha256(p.read_bytes()) for p in outputs}})
    return path


def read_sidecar(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A sidecar as (provenance, output hashes)."""
    content = json.loads(path.read_text(encoding="utf-8"))
    outputs = content.pop("outputs")
    return content, outputs


def embedded(picture: Path) -> str | None:
    """The provenance text inside a PNG (text chunk) or PDF (Subject), None when there is none.

    Raises OSError or SyntaxError for a PNG that is none.
    """
    if picture.suffix == ".pdf":
        found = SUBJECT.search(picture.read_bytes())
        return None if found is None else re.sub(rb"\\(.)", rb"\1", found[1]).decode("ascii")
    with Image.open(picture) as image:
        return image.info.get(KEY)
