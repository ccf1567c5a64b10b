"""Which of our runs stands for which row of the published Tables 2 to 6 and S2 to S5, and their measured twins.

The worlds differ (tiny models, procedural pictures), so a twin repeats the question of a row, never its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from asgkit.report.measured import Measured
from asgkit.report.tables.arms import ARM_METRICS, BASE, made_by
from asgkit.report.tables.gains import EXACT, Gains
from asgkit.report.tables.published_tables import TWIN_COLUMNS
from asgkit.shapes.benchmark import TAGS
from asgkit.shapes.text import FAMILIES
from asgkit.stats.effects import METHOD, WORDS

AR, FLOW, DIFFUSION = "tiny-ar-clean", "tiny-flow-clean", "tiny-diffusion-clean"
PARADIGMS = {"BLIP3o-8B": DIFFUSION, "BAGEL": FLOW, "VARGPT-v1.1": AR}  # by how they draw
_UNDERSTANDING = ("answers/single", "answers/canonical", "answers/majority",
                  *(f"answers/single/{family}" for family in FAMILIES))
_DRAWING = (*(f"drawings/tag/{tag}" for tag in TAGS), "drawings/overall", "drawings_best/overall")
METRICS = {"2": _UNDERSTANDING, "3": _DRAWING}  # the others: ARM_METRICS
_LOOPS = {"u-only": (AR, FLOW, DIFFUSION), "g-only": (AR, FLOW, DIFFUSION), "two-stage": (AR, FLOW, DIFFUSION),
          "joint": (AR, FLOW, DIFFUSION), BASE: (AR, FLOW, DIFFUSION)}
_HEADLINE = {row: [(base, arm)] for name, base in PARADIGMS.items()
             for row, arm in ((name, BASE), (f"{name} (Ours)", "joint"))}


def _on(*arms: str) -> list[tuple[str, str]]:
    """The arms on every base that their grid has them for; tiny-ar where that is the only one."""
    return [(base, arm) for arm in arms for base in _LOOPS.get(arm, (AR,))]


def _ar(*arms: str) -> list[tuple[str, str]]:
    return [(AR, arm) for arm in arms]


ROWS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "2": _HEADLINE, "3": _HEADLINE,
    "4": {"BLIP3o-8B (base)": _ar(BASE), "Full framework": _ar("joint", "u-only", "g-only"),
          "w/o STE (self-consistency only)": _ar("u-no-ste"),
          "w/o self-consistency (STE only)": _ar("u-no-consistency"),
          "w/o prompt perturbation (temperature sampling)": _ar("u-temperature"),
          "w/o QA fidelity scoring": _ar("g-no-fidelity"), "w/o cycle-consistent captioning": _ar("g-no-cycle")},
    "5": {"BLIP3o-8B (base)": _on(BASE), "Full framework": _on("joint"),
          "w/o generation loop (understanding only)": _on("u-only"),
          "w/o understanding loop (generation only)": _on("g-only"), "Self-generated images only": _on("self-images")},
    "6": {"BLIP3o-8B (base)": _ar(BASE), "LoRA (default)": _ar("joint"), "QLoRA (4-bit)": _ar("qlora"),
          "SFT (self-generated data)": _ar("sft-self"), "Full fine-tuning": _ar("full-rank", "full-rank-slow")},
    "S2": {"LoRA rank r = 2": _ar("u-r-2"), "LoRA rank r = 8": _ar("u-only"), "LoRA rank r = 32": _ar("u-r-32"),
           "PPS count N = 3": _ar("u-n-3"), "PPS count N = 5": _ar("u-n-5"), "PPS count N = 7": _ar("u-only"),
           "Proposer candidates K = 2": _ar("u-k-2"), "Proposer candidates K = 3": _ar("u-only"),
           "Proposer candidates K = 5": _ar("u-k-5"), "STE window W = 32": _ar("u-w-32"),
           "STE window W = 128": _ar("u-only"), "STE window W = 512": _ar("u-w-512")},
    "S3": {"Learning rate = 6e-5": _ar("u-lr-0.3"), "Learning rate = 2e-4": _ar("u-only"),
           "Learning rate = 6e-4": _ar("u-lr-3"), "Weight decay = 0.01": _ar("u-only", "g-only"),
           "LoRA dropout = 0.00": _ar("u-only", "g-only"), "KL coefficient = 0.05": _ar("u-only", "g-only"),
           "KL coefficient = 0.5": _ar("u-kl-0.5", "g-kl-0.5")},
    "S4": {"Generations L = 3": _ar("g-l-3"), "Generations L = 8": _ar("g-only"),
           "Min. QA pairs = 1": _ar("g-minqa-1"), "Min. QA pairs = 2": _ar("g-only"),
           "Min. QA pairs = 3": _ar("g-minqa-3"), "QA fidelity weight = 0.30": _ar("g-fid-0.3"),
           "QA fidelity weight = 0.65": _ar("g-only"), "Cycle weight = 0.20": _ar("g-only"),
           "Cycle weight = 0.50": _ar("g-cyc-0.5"), "Min. spec quality = 0.35": _ar("g-only")},
    "S5": {"Base": _on(BASE), "Understanding-only": _on("u-only"), "Generation-only": _on("g-only"),
           "Self-generated pool": _on("self-images"), "Two-stage": _on("two-stage"), "Joint (ours)": _on("joint")},
}
NOTES = {
    "2": "Backbones stand for their paradigm: BLIP3o-8B tiny-diffusion, BAGEL tiny-flow, VARGPT-v1.1 tiny-ar.",
    "3": "Backbones stand for their paradigm: BLIP3o-8B tiny-diffusion, BAGEL tiny-flow, VARGPT-v1.1 tiny-ar.",
    "4": "A component is left out of the loop that it belongs to: compare u- arms with u-only, g- arms with g-only.",
    "6": "Full fine-tuning stands for adapters of full rank on the matrices that LoRA adapts.",
    "S2": "Our preset has r = 8, N = 7, K = 3, W = 128.",
    "S3": "Our preset has learning rate 2e-4 (Solver), weight decay 0.01, no dropout, KL 0.05.",
    "S4": "Our preset has L = 8, at least 2 QA pairs, weights 0.65 and 0.20, spec quality 0.35.",
}


@dataclass(frozen=True)
class Twin:
    """What is measured for one row: the tidy rows, and what is missing of it as (row, system, command)."""

    rows: pd.DataFrame
    missing: list[tuple[str, str, str]]


def twin_rows(id: str, measured: Measured, gains: Gains) -> Twin:
    """The measured side of one published table, columns TWIN_COLUMNS, in percent and percentage points.

    Raises KeyError for a table without a twin, Untraceable where a score does not follow from its items.
    """
    rows: list[dict[str, Any]] = []
    missing: list[tuple[str, str, str]] = []
    for row, systems in ROWS[id].items():
        for base, arm in systems:
            runs = measured.arms(base).get(arm, [])
            if base not in measured.bases or (arm != BASE and not runs):
                missing.append((row, f"{base}: {arm}", made_by(arm)))
                continue
            rows += _cells(id, row, base, arm, measured, gains)
    return Twin(pd.DataFrame(rows, columns=list(TWIN_COLUMNS)), missing)


def _cells(id: str, row: str, base: str, arm: str, measured: Measured, gains: Gains) -> Iterator[dict[str, Any]]:
    held = measured.bases[base]
    for metric in METRICS.get(id, ARM_METRICS):
        values = held.values(metric)
        cell = {"table": id, "row": row, "system": f"{base}: {arm}", "metric": metric, "source": "measured",
                "value": 100 * float(values.mean()), "delta": math.nan, "low": math.nan, "high": math.nan, "exact": "",
                "seeds": 0, "n": len(values), "run_ids": base}
        if arm != BASE:
            runs = measured.arms(base)[arm]
            found = gains.over_base(held, runs, metric)
            cell |= {"value": cell["value"] + found.delta, "delta": found.delta, "low": found.low, "high": found.high,
                     "exact": EXACT if found.exact else "", "seeds": len(runs),
                     "run_ids": " ".join(run.name for run in runs)}
        yield cell


def twin_caption(id: str, titles: Mapping[str, str]) -> str:
    """What stands over a twin: the table that it repeats, and that nothing in it was published by others."""
    note = f" {NOTES[id]}" if id in NOTES else ""
    return (f"Measured twin of the published Table {id} ({titles[id]}): score and, in brackets, its difference to "
            f"the base with a 95% {WORDS[METHOD]} interval over items and seeds; percent and points on the shapes "
            f"world, not on the benchmarks of the paper.{note}")
