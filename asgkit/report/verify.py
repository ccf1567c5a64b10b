"""`asgkit verify`: hash every input and output again, build the report anew, and name whatever differs."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from asgkit.report.audit.audit import as_json, as_markdown, run_audit
from asgkit.report.build import build_report
from asgkit.report.measured import LIMIT, Untraceable, measured_bytes
from asgkit.report.places import PAGE, made_folders
from asgkit.report.provenance import as_text, embedded, read_sidecar
from asgkit.report.tables.published import PublishedError
from asgkit.report.tables.tables import ON_DEMAND, Form
from asgkit.runs.files import sha256


@dataclass(frozen=True)
class Finding:
    """One thing that does not hold: the file (relative to the root) and what is wrong with it."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def verify(root: str | Path = ".", *, rebuild: bool = True) -> list[Finding]:
    """Check `<root>/results` and `<root>/figures`; an empty list means that everything holds.

    Hashes of inputs (logs, items, configurations, published numbers) and outputs against each JSON sidecar; the
    provenance inside each PNG and PDF against the same; the audit made again from the published numbers; the size of
    `results/measured`; and with `rebuild` every table and CSV built anew, byte for byte (pictures too where the
    versions are those of the sidecar), so that editing a file together with its hash is found as well.
    Raises FileNotFoundError when there is nothing to check.
    """
    root = Path(root)
    sidecars = _sidecars(root)
    if not sidecars:
        raise FileNotFoundError(f"no figures or tables with a JSON sidecar below {root}: build them with asgkit report")
    findings = [f for path in sidecars for f in _check_sidecar(root, path)]
    findings += _check_audit(root) + _check_size(root)
    return list(dict.fromkeys(findings + (_check_rebuild(root, sidecars) if rebuild else [])))


def size_line(root: str | Path = ".") -> str:
    """The size of `<root>/results/measured` in words, beside what it may be."""
    return f"results/measured holds {measured_bytes(Path(root) / 'results') / 1e6:.1f} MB of {LIMIT / 1e6:.0f} MB"


def _check_size(root: Path) -> list[Finding]:
    if measured_bytes(root / "results") <= LIMIT:
        return []
    return [Finding("results/measured", f"{size_line(root)}: leave out the logs of the least important runs")]


def _check_audit(root: Path) -> list[Finding]:
    """`results/audit.json` and `.md` against what the published numbers give now."""
    results = root / "results"
    if not (results / "paper").is_dir():
        return []
    try:
        found = run_audit(results / "paper")
    except (PublishedError, FileNotFoundError) as error:
        return [Finding("results/paper", f"the published numbers cannot be read: {error}")]
    wanted = {"audit.json": lambda text: json.loads(text) == json.loads(json.dumps(as_json(found))),
              "audit.md": lambda text: text == as_markdown(found)}
    findings = []
    for name, same in wanted.items():
        path = results / name
        try:
            problem = None if same(path.read_text(encoding="utf-8")) else "not what the published numbers give"
        except (FileNotFoundError, ValueError) as error:
            problem = "missing" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
        if problem:
            findings.append(Finding(f"results/{name}", f"{problem}; make it again: asgkit audit --out results/{name}"))
    return findings


def _sidecars(root: Path) -> list[Path]:
    return sorted(path for folder in made_folders(root) for path in folder.glob("*.json"))


def _check_sidecar(root: Path, path: Path) -> list[Finding]:
    name = path.relative_to(root).as_posix()
    try:
        record, outputs = read_sidecar(path)
        inputs = record["inputs"]
    except (ValueError, KeyError) as error:
        return [Finding(name, f"not a provenance sidecar ({error!r}); build it again: asgkit report")]
    findings = [found for relative, wanted in inputs.items()
                for found in _check_file(root, root / "results" / relative, wanted)]
    for output, wanted in outputs.items():
        held = path.with_name(output)
        findings += _check_file(root, held, wanted)
        if held.suffix in (".png", ".pdf") and held.is_file():
            findings += _check_embedded(root, held, as_text(record))
    return findings


def _check_file(root: Path, path: Path, wanted: str) -> list[Finding]:
    name = path.relative_to(root).as_posix()
    if not path.is_file():
        return [Finding(name, "missing")]
    return [] if sha256(path.read_bytes()) == wanted else [Finding(name, "changed since the report was built")]


def _check_embedded(root: Path, picture: Path, wanted: str) -> list[Finding]:
    name = picture.relative_to(root).as_posix()
    try:
        held = embedded(picture)
    except (OSError, SyntaxError) as error:  # what Pillow raises for a broken picture
        return [Finding(name, f"not a readable picture ({error})")]
    return [] if held == wanted else [Finding(name, "its embedded provenance is not that of its JSON")]


def _check_rebuild(root: Path, sidecars: list[Path]) -> list[Finding]:
    """Everything built anew in every form below another root, and compared with what is here."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder)
        try:
            build_report(root / "results", other / "figures", other / "results", forms=list(Form))
        except (Untraceable, PublishedError) as error:
            where = "paper" if isinstance(error, PublishedError) else "measured"
            return [Finding(f"results/{where}", f"the report cannot be built again: {error}")]
        findings = [found for path in sidecars for found in _compare(root, path, other / path.relative_to(root))]
        lacking = {path.relative_to(other) for path in _sidecars(other)} - {path.relative_to(root) for path in sidecars}
        findings += [Finding(path.as_posix(), "missing, with what it describes; make it: asgkit report")
                     for path in sorted(lacking)]
        return findings + _check_pages(root, other)


def _check_pages(root: Path, other: Path) -> list[Finding]:
    """The results page, which may be absent, and the index pages, which may not, against those built anew."""
    results, findings = Path("results", "measured", PAGE), []
    for name in [results, *((folder / PAGE).relative_to(root) for folder in made_folders(root))]:
        held, fresh = root / name, other / name
        if not fresh.is_file() or (name == results and not held.is_file()):
            continue
        if not held.is_file():
            findings.append(Finding(name.as_posix(), "missing; make it: asgkit report"))
        elif held.read_bytes() != fresh.read_bytes():
            findings.append(Finding(name.as_posix(), "not the page of what was measured; make it again: asgkit report"))
    return findings


def _compare(root: Path, path: Path, fresh: Path) -> list[Finding]:
    """Files of one sidecar against their rebuilt twins; pictures only where the versions are the same."""
    if not fresh.is_file():
        return [Finding(path.relative_to(root).as_posix(), "the report no longer makes it: delete it or its leftovers")]
    try:
        held, made = read_sidecar(path)[0], read_sidecar(fresh)
        same = held["versions"] == made[0]["versions"]
    except (ValueError, KeyError):
        return []  # reported already by the check of the sidecar
    compared = [path.with_name(name) for name in made[1] if same or not name.endswith((".png", ".pdf"))]
    compared += [path.with_suffix(f".{form}") for form in ON_DEMAND]
    return [Finding(file.relative_to(root).as_posix(), "not what the inputs give when built anew")
            for file in compared if file.is_file() and _differ(file, fresh.with_name(file.name))]


def _differ(held: Path, fresh: Path) -> bool:
    return not fresh.is_file() or held.read_bytes() != fresh.read_bytes()
