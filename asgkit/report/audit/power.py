"""How large a gain must be before it can be told from noise, given the number of items of each benchmark.

Only the noise of which items were asked is counted. Another training seed adds its own, and the published runs have
one seed, so every smallest difference here is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from asgkit.report.audit.relations import BACKBONES, Tables
from asgkit.report.tables.published import GENEVAL_PARTS, GVU_GENEVAL_PARTS

DISCORDANCE = 0.10  # share of items on which two runs differ; as in spec: related 3.5
WITHIN_PROMPT = 0.3  # correlation of the images of one prompt; spec: related 3.5 gives 0, 0.3, 0.6 and 1
BETWEEN_RUNS = 0.5  # correlation of the prompt scores of two runs
LEVEL, POWER = 0.05, 0.80
FACTOR = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)  # 2.80
BAGEL_WISE = 0.52  # published score of UniCorn's base, spec: related 3.4
IMAGES = 4  # per prompt, GenEval and DPG-Bench
GENEVAL_PROMPTS = (80, 99, 80, 94, 100, 100)  # in the order of the parts; 553 in all
GENEVAL_SOURCE = ("prompts counted in prompts/evaluation_metadata.jsonl of djghosh13/geneval; 4 images each, "
                  "spec: related 3.1")

# benchmark -> items, source of the count, what its scoring means for the noise
ITEMS: dict[str, tuple[int, str, str]] = {
    "MMMU": (900, "validation split, spec: related 3.1", ""),
    "MMBench": (1164, "development split, spec: related 3.1", "an item counts only if right in every rotation"),
    "TextVQA": (5000, "validation split, spec: related 3.1", "partial credit, so the noise is at most this"),
    "SEED": (14_200, "image part, printed as 14.2k in spec: related 3.1",
             "the transcription does not say which part was scored"),
    "RWQA": (765, "spec: related 3.1", ""),
    "MM-Vet": (218, "spec: related 3.1", "partial credit, so the noise is at most this; a model is the judge"),
}
LEFT_OUT = {
    "MME-P, MME-C": "the sources at hand give tasks, not questions per task, and the scores are points",
    "MMT-Bench": "no item count in the sources at hand",
    "TIIF, CompBench, UniCycle, OneIG": "no item count with a source at hand, or no score of the base beside it",
}


@dataclass(frozen=True)
class Power:
    """One published gain beside the noise of its benchmark; all numbers but `items` in percentage points."""

    benchmark: str
    system: str
    items: str
    base: float
    gain: float
    se_run: float
    se_unpaired: float
    se_paired: float
    smallest_unpaired: float
    smallest_paired: float
    reading: str
    source: str


def share_error(share: float, items: int) -> float:
    """Standard error of a share of right answers: `sqrt(p (1 - p) / n)`, in the unit of the share.

    Raises ValueError for a share outside [0, 1] or no items.
    """
    if not 0 <= share <= 1 or items < 1:
        raise ValueError(f"a share in [0, 1] of at least one item is needed, got {share} of {items}")
    return math.sqrt(share * (1 - share) / items)


def paired_error(gain: float, items: int, discordance: float = DISCORDANCE) -> float:
    """Standard error of a difference on the same items: `sqrt((d - gain^2) / n)`, d the share of items that differ.

    A gain cannot exceed d, so d is raised to the gain where it must be. Raises ValueError for no items.
    """
    if items < 1:
        raise ValueError("at least one item is needed")
    return math.sqrt((max(discordance, abs(gain)) - gain**2) / items)


def geneval_error(shares: list[float], within: float = WITHIN_PROMPT) -> float:
    """Standard error of GenEval's overall: mean of 6 category shares, 4 correlated images per prompt.

    `sqrt(sum_c p_c (1 - p_c) (1 + 3 rho) / (4 n_c)) / 6`; shares (6,) in the order of the categories.
    """
    parts = [share_error(p, n) ** 2 * (1 + (IMAGES - 1) * within) / IMAGES
             for p, n in zip(shares, GENEVAL_PROMPTS, strict=True)]
    return math.sqrt(sum(parts)) / len(parts)


def power(tables: Tables) -> list[Power]:
    """Every published gain whose benchmark has a known number of items; a missing cell is left out."""
    return [*_understanding(tables), *_drawing(tables), *_gvu(tables), *_unicorn(tables)]


def _understanding(tables: Tables) -> Iterator[Power]:
    for name in BACKBONES:
        for benchmark, (items, source, note) in ITEMS.items():
            scores = _values(tables, "2", (name, f"{name} (Ours)"), (benchmark,))
            yield from _shares(benchmark, name, items, scores, f"{source}; {note}" if note else source)


def _drawing(tables: Tables) -> Iterator[Power]:
    for name in BACKBONES:
        yield from _geneval(tables, "3", GENEVAL_PARTS, (name, f"{name} (Ours)"), name)


def _gvu(tables: Tables) -> Iterator[Power]:
    rows = ("X-Omni", "GvU")
    yield from _geneval(tables, "GvU-GenEval", GVU_GENEVAL_PARTS, rows, "GvU on X-Omni")
    yield from _shares("GenEval++", "GvU on X-Omni", 280, _values(tables, "GvU-GenEval++", rows, ("Overall",)),
                       "280 prompts, spec: related 3.1 (from memory there); every printed cell is a multiple of 1/40")
    yield from _shares("DPG-Bench", "GvU on X-Omni", 1065, _values(tables, "GvU-DPG", rows, ("Overall",)),
                       "prompts, spec: related 3.1; partial credit and 4 images each, so the noise is at most this")


def _unicorn(tables: Tables) -> Iterator[Power]:
    gain = _values(tables, "UniCorn", ("WISE",), ("value",))
    scores = None if gain is None else [[BAGEL_WISE], [BAGEL_WISE + gain[0][0]]]
    yield from _shares("WISE", "UniCorn on BAGEL", 1000, scores,
                       "prompts, spec: related 3.1; base .52 from related 3.4; partial credit, so the noise is at most "
                       "this")


def _values(tables: Tables, id: str, rows: Sequence[str], columns: Sequence[str]) -> list[list[float]] | None:
    """Cells as shares of 1, one list per row; None when one of them is missing."""
    cells = [[tables[id].rows[row][column] for column in columns] for row in rows]
    if any(cell.value is None for row in cells for cell in row):
        return None
    return [[float(cell.printed) / (1 if cell.unit == "fraction" else 100) for cell in row] for row in cells]


def _shares(benchmark: str, system: str, items: int, scores: list[list[float]] | None, source: str
            ) -> Iterator[Power]:
    if scores is not None:
        (before,), (after,) = scores
        errors = [share_error(score, items) for score in (before, after)]
        yield _row(benchmark, system, f"{items:,}", before, after - before, errors[0], math.hypot(*errors),
                   paired_error(after - before, items), source)


def _geneval(tables: Tables, id: str, parts: tuple[str, ...], rows: tuple[str, str], system: str) -> Iterator[Power]:
    scores = _values(tables, id, rows, (*parts, "Overall"))
    if scores is not None:
        one, other = (geneval_error(row[:-1]) for row in scores)
        paired = math.sqrt(one**2 + other**2 - 2 * BETWEEN_RUNS * one * other)
        yield _row("GenEval", system, "553 x 4", scores[0][-1], scores[1][-1] - scores[0][-1], one,
                   math.hypot(one, other), paired, GENEVAL_SOURCE)


def _row(benchmark: str, system: str, items: str, before: float, gain: float, one: float, unpaired: float,
         paired: float, source: str) -> Power:
    if gain > FACTOR * unpaired:
        reading = "larger than either smallest difference"
    elif gain > FACTOR * paired:
        reading = "needs a paired comparison"
    else:
        reading = "smaller than either smallest difference"
    numbers = (before, gain, one, unpaired, paired, FACTOR * unpaired, FACTOR * paired)
    return Power(benchmark, system, items, *(round(100 * number, 2) for number in numbers), reading, source)
