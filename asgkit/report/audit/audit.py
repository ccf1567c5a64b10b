"""`asgkit audit`: everything that the published tables imply, recomputed; as findings, JSON and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from asgkit.report.audit import power as audit_power
from asgkit.report.audit.claims import claims
from asgkit.report.audit.power import LEFT_OUT, Power, power
from asgkit.report.audit.relations import relations
from asgkit.report.tables.published import PAPER, files, load_elsewhere, load_published
from asgkit.runs.files import sha256
from asgkit.stats.rounding import CONFLICT, CONSISTENT, INCONSISTENT, VERDICTS, WITHIN, Finding

MEANING = {
    CONSISTENT: "what was recomputed from the print rounds to what is printed",
    WITHIN: "it does not, but from unrounded values that print alike it could",
    INCONSISTENT: "not even from unrounded values that print alike; something else differs, be it the definition, the "
                  "items, or a slip in print or in transcription",
    CONFLICT: "another source gives another score for the same system; settings may differ",
}
NOT_CHECKED = {
    "DPG-Bench overall": "an average over prompts; the printed categories do not determine it",
    "MMT-Bench overall": "five of its tasks are printed; the others are not",
    "MME": "sub-task scores are not printed",
    "TextVQA, MM-Vet, MMBench, SEED as whole items": "partial credit, rotations, or steps finer than the print",
    "Two-stage of S5; BAGEL's controls of S5": "the parts of their averages are not printed",
}
_FINDINGS = ("kind", "file", "row", "column", "relation", "printed", "recomputed", "bound", "verdict", "note")
_POWER = {"benchmark": "benchmark", "system": "system", "items": "items", "base": "base", "gain": "published gain",
          "se_run": "SE, one run", "se_unpaired": "SE, unpaired", "se_paired": "SE, paired",
          "smallest_unpaired": "smallest, unpaired", "smallest_paired": "smallest, paired",
          "reading": "the published gain is"}


@dataclass(frozen=True)
class Audit:
    """Findings in a fixed order, power of the benchmarks, and the sha256 of every file that was read."""

    findings: list[Finding]
    power: list[Power]
    inputs: dict[str, str]

    def counts(self) -> dict[str, dict[str, int]]:
        """Findings by kind and verdict, every verdict named, and `all` for their sums."""
        kinds = list(dict.fromkeys(f.kind for f in self.findings))
        held = Counter((f.kind, f.verdict) for f in self.findings)
        table = {kind: {verdict: held[kind, verdict] for verdict in VERDICTS} for kind in kinds}
        return table | {"all": {verdict: sum(table[kind][verdict] for kind in kinds) for verdict in VERDICTS}}

    def open(self) -> list[Finding]:
        """The findings that are not consistent, gravest first, else in order."""
        found = [f for f in self.findings if f.verdict != CONSISTENT]
        return sorted(found, key=lambda f: (INCONSISTENT, CONFLICT, WITHIN).index(f.verdict))


def run_audit(folder: str | Path = PAPER) -> Audit:
    """Recompute every relation of the published tables in `folder`.

    Raises FileNotFoundError and PublishedError as `load_published`.
    """
    tables, elsewhere = load_published(folder), load_elsewhere(folder)
    inputs = {name: sha256((Path(folder) / name).read_bytes()) for name in files()}
    return Audit([*relations(tables, elsewhere), *claims(tables)], power(tables), inputs)


def assumptions() -> dict[str, Any]:
    """What the standard errors and the smallest differences rest on."""
    return {"discordance": audit_power.DISCORDANCE, "correlation_within_prompt": audit_power.WITHIN_PROMPT,
            "correlation_between_runs": audit_power.BETWEEN_RUNS, "level_two_sided": audit_power.LEVEL,
            "power": audit_power.POWER, "standard_errors_per_smallest_difference": round(audit_power.FACTOR, 4)}


def as_json(audit: Audit) -> dict[str, Any]:
    """The whole audit as plain values; equal inputs give equal bytes through `asgkit.runs.files.write_json`."""
    return {"source": "reported", "verdicts": MEANING, "counts": audit.counts(),
            "findings": [asdict(f) for f in audit.findings], "not_checked": NOT_CHECKED,
            "power": {"unit": "percentage points", "assumptions": assumptions(),
                      "gains": [asdict(p) for p in audit.power], "left_out": LEFT_OUT},
            "inputs": audit.inputs}


def as_markdown(audit: Audit) -> str:
    """The whole audit as one page: counts, what is not consistent, power, what was not checked, every finding."""
    opened = [[f.verdict, *(getattr(f, name) for name in _FINDINGS if name != "verdict")] for f in audit.open()]
    columns = ["verdict", *(name for name in _FINDINGS if name != "verdict")]
    parts = [
        "# Audit of the published numbers", _INTRODUCTION, "## Counts", _counts(audit),
        "".join(f"- **{verdict}**: {meaning}.\n" for verdict, meaning in MEANING.items()),
        "## Not consistent as printed", _table(columns, opened), "## How small a gain can be told from noise",
        _power_words(), _table(list(_POWER.values()), [[_number(getattr(p, n)) for n in _POWER] for p in audit.power]),
        "Items:\n\n" + "".join(f"- {line}\n" for line in _item_sources(audit)),
        "## Left out", "".join(f"- {name}: {reason}.\n" for name, reason in (NOT_CHECKED | LEFT_OUT).items()),
        "## Every finding", _table(list(_FINDINGS), [[getattr(f, n) for n in _FINDINGS] for f in audit.findings]),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


_INTRODUCTION = (
    "Made by `asgkit audit --out results/audit.md` from [results/paper](paper/README.md); every number here was "
    "published by others and none was measured by this project. The audit asks one question of each: does it follow "
    "from the numbers printed beside it, given that all of them were rounded? Arithmetic is exact. A finding says what "
    "differs, not why, and the transcription itself may be at fault.")


def _power_words() -> str:
    used = assumptions()
    return (
        f"Percentage points. The smallest difference is what a test at {used['level_two_sided']:.0%}, two-sided, finds "
        f"with a probability of {used['power']:.0%}: {used['standard_errors_per_smallest_difference']:.2f} standard "
        "errors of the difference. An unpaired difference knows the two scores only; a paired one also knows which "
        f"items each run got right. Assumed for it: two runs differ on {used['discordance']:.0%} of the items (or on "
        "as many as the gain, if that is more). For GenEval: the four images of a prompt correlate with "
        f"{used['correlation_within_prompt']}, and two runs correlate with {used['correlation_between_runs']}. Only "
        "the noise of the items counts here; another training seed adds its own, and the published runs have one, so "
        "a real comparison needs more than this. The tables print no result per item, so only the unpaired column can "
        "be read off them.")


def _item_sources(audit: Audit) -> list[str]:
    return list(dict.fromkeys(f"{p.benchmark}, {p.items}: {p.source}" for p in audit.power))


def _counts(audit: Audit) -> str:
    rows = [[kind, *(str(row[verdict]) for verdict in VERDICTS)] for kind, row in audit.counts().items()]
    return _table(["relation", *VERDICTS], rows)


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
