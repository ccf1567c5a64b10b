"""Relations that published tables imply: gains, averages, repeated rows, other sources, whole numbers of items."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction

from asgkit.report.tables.published import (
    GENEVAL_PARTS,
    GVU_GENEVAL_PARTS,
    PLUS_PARTS,
    UNDERSTANDING,
    Cell,
    Elsewhere,
    Table,
)
from asgkit.stats.rounding import (
    CONFLICT,
    CONSISTENT,
    INCONSISTENT,
    WITHIN,
    Finding,
    Interval,
    bounds,
    centre,
    judge,
    mean,
    same,
    show,
)

Tables = Mapping[str, Table]
BACKBONES = ("BLIP3o-8B", "BAGEL", "VARGPT-v1.1")
PERCENT = tuple(name for name, unit in UNDERSTANDING.items() if unit == "percent")
AVERAGES = {"3": GENEVAL_PARTS, "GvU-GenEval": GVU_GENEVAL_PARTS, "GvU-GenEval++": PLUS_PARTS}
BASE, FULL, OURS = "BLIP3o-8B (base)", "Full framework", "BLIP3o-8B (Ours)"
REPEATED = (*((table, row, origin) for table in ("4", "5") for row, origin in ((BASE, "BLIP3o-8B"), (FULL, OURS))),
            ("6", BASE, "BLIP3o-8B"), ("6", "LoRA (default)", OURS))
SWEEPS = ("S2", "S3", "S4")
# row of S5 -> row of Table 5 with the same eight scores, for BLIP3o-8B; BAGEL has its parts in Table 2 only
COUPLING = {"Base": BASE, "Understanding-only": "w/o generation loop (understanding only)",
            "Generation-only": "w/o understanding loop (generation only)",
            "Self-generated pool": "Self-generated images only", "Joint (ours)": FULL}
BAGEL_PARTS = {"Base": "BAGEL", "Joint (ours)": "BAGEL (Ours)"}
# factor of a sweep -> row of S1 and which of its numbers is the adopted setting
SETTINGS = {
    "LoRA rank r": ("LoRA = rank / alpha / dropout", 0), "PPS count N": ("Understanding = framings N", 0),
    "Proposer candidates K": ("Understanding = proposer candidates K", 0), "STE window W": ("Understanding = STE", -1),
    "Learning rate": ("Optimisation = learning rate", 0), "Weight decay": ("Optimisation = weight decay", 0),
    "LoRA dropout": ("LoRA = rank / alpha / dropout", 2),
    "KL coefficient": ("KL = coefficient / target / adapt rate / bounds", 0),
    "Generations L": ("Generation = candidates L", 0),
    "Min. QA pairs": ("Spec quality = min quality / min QA pairs", 1),
    "QA fidelity weight": ("Rewards = QA fidelity / cycle / diversity / contradiction penalty", 0),
    "Cycle weight": ("Rewards = QA fidelity / cycle / diversity / contradiction penalty", 1),
    "Min. spec quality": ("Spec quality = min quality / min QA pairs", 0),
}
SAME_SYSTEM = {"Show-o": "Show-o", "Janus": "Janus", "Janus-Pro-7B": "Janus-Pro", "Emu3": "Emu3",
               "BLIP3o-8B": "BLIP3-o 8B", "BAGEL": "BAGEL"}  # row of ASG's Table 3 -> row of GvU's GenEval table
# benchmark -> items that are right or wrong as a whole, and the source of the count
WHOLE = {"MMMU": (900, "MMMU validation, spec: related 3.1"), "RWQA": (765, "RealWorldQA, spec: related 3.1")}
PLUS_ITEMS = 40  # per category: 280 prompts in 7 categories, spec: related 3.1 (count from memory there)
_NUMBERS = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
_UNIT = {"fraction": 100, "percent": 1, "points": 1}


def held(cell: Cell) -> Interval | None:
    """Rounding interval of a cell in percent (or points), None where it is missing."""
    return None if cell.value is None else bounds(cell.printed).times(_UNIT[cell.unit])


def relations(tables: Tables, elsewhere: list[Elsewhere]) -> list[Finding]:
    """Every relation of these kinds, in the order of the tables; a relation with a missing cell is left out."""
    return [*printed_gains(tables), *averages(tables), *gains_from_parts(tables), *coupling_averages(tables),
            *repeated_rows(tables), *repeated_words(tables), *adopted_settings(tables), *two_papers(tables),
            *other_places(tables, elsewhere), *whole_items(tables)]


def printed_gains(tables: Tables) -> Iterator[Finding]:
    """Gains printed in Tables 2 and 3 against `ours - base`, each bound `+- (half a unit + half a unit)`."""
    for id in ("2", "3"):
        for name, cells in tables[f"{id}-deltas"].rows.items():
            for column, cell in cells.items():
                after, before = (held(tables[id].rows[row][column]) for row in (f"{name} (Ours)", name)
                                 ) if cell.value is not None else (None, None)
                if after and before:
                    yield _finding("printed gain", tables[f"{id}-deltas"].file, cell, f"ours - base of Table {id}",
                                   after.minus(before))


def averages(tables: Tables) -> Iterator[Finding]:
    """Overall scores against the mean of their printed parts; rows without all parts are left out."""
    for id, names in AVERAGES.items():
        for cells in tables[id].rows.values():
            overall = cells["Overall"]
            parts = [bounds(cells[name].printed) for name in names if cells[name].value is not None]
            if overall.value is not None and len(parts) == len(names):
                relation = f"mean of {len(names)} parts"
                yield _finding("overall from parts", tables[id].file, overall, relation, mean(parts))


def gains_from_parts(tables: Tables) -> Iterator[Finding]:
    """Printed gain of GenEval's overall against the mean gain of its six printed parts."""
    for name in BACKBONES:
        rows = [tables["3"].rows[row] for row in (f"{name} (Ours)", name)]
        after, before = (mean([bounds(row[part].printed) for part in GENEVAL_PARTS]) for row in rows)
        yield _finding("overall gain from parts", tables["3-deltas"].file, tables["3-deltas"].rows[name]["Overall"],
                       "mean of the gains of 6 parts", after.minus(before))


def coupling_averages(tables: Tables) -> Iterator[Finding]:
    """und_avg of S5 against the mean of the six understanding scores in percent (MME is in points)."""
    note = "the six scores in percent; the two in points (MME) cannot be part of this average"
    for row, cells in tables["S5"].rows.items():
        for backbone, id, origin in (("BLIP3o-8B", "5", COUPLING.get(row)), ("BAGEL", "2", BAGEL_PARTS.get(row))):
            cell = cells[f"{backbone} und_avg"]
            if origin and cell.value is not None:
                parts = [bounds(tables[id].rows[origin][name].printed) for name in PERCENT]
                relation = f"mean of 6 scores of Table {id}, {origin}"
                yield _finding("average from parts", tables["S5"].file, cell, relation, mean(parts), note)


def repeated_rows(tables: Tables) -> Iterator[Finding]:
    """Rows that stand in several tables: base and full rows of Tables 4-6, S5, adopted rows of the sweeps."""
    adopted = [(id, row, OURS) for id in SWEEPS for row, cells in tables[id].rows.items()
               if cells["adopted"].printed == "yes"]
    for id, row, origin in (*REPEATED, *adopted):
        for column in (*UNDERSTANDING, "GenEval"):
            first = (tables["3"].rows[origin]["Overall"] if column == "GenEval" else tables["2"].rows[origin][column])
            yield from _repeat(tables[id].file, tables[id].rows[row][column], first)
    for row, origin in COUPLING.items():
        yield from _repeat(tables["S5"].file, tables["S5"].rows[row]["BLIP3o-8B GenEval"],
                           tables["5"].rows[origin]["GenEval"])
    for row, origin in BAGEL_PARTS.items():
        yield from _repeat(tables["S5"].file, tables["S5"].rows[row]["BAGEL GenEval"],
                           tables["3"].rows[origin]["Overall"])


def repeated_words(tables: Tables) -> Iterator[Finding]:
    """Baseline and size of the systems that stand in both Table 2 and Table 3."""
    for row in tables["2"].rows:
        for column in ("baseline", "params") if row in tables["3"].rows else ():
            first, second = (tables[id].rows[row][column].printed for id in ("2", "3"))
            yield Finding("repeated row", tables["3"].file, row, column, "as in Table 2", second, first, "",
                          CONSISTENT if first == second else INCONSISTENT)


def adopted_settings(tables: Tables) -> Iterator[Finding]:
    """The setting marked as adopted in each sweep against Table S1."""
    for id in SWEEPS:
        for cells in tables[id].rows.values():
            factor, setting = cells["factor"].printed, cells["setting"].printed
            if cells["adopted"].printed == "yes" and factor in SETTINGS:
                row, place = SETTINGS[factor]
                wanted = _NUMBERS.findall(tables["S1"].rows[row]["value"].printed)[place]
                equal = Fraction(wanted) == Fraction(setting)
                yield Finding("adopted setting", tables[id].file, f"{factor} = {setting}", "setting",
                              f"Table S1, {row}", setting, wanted, "", CONSISTENT if equal else INCONSISTENT)


def two_papers(tables: Tables) -> Iterator[Finding]:
    """GenEval of the same system as ASG prints it (percent) and as GvU prints it (fraction)."""
    for ours, theirs in SAME_SYSTEM.items():
        for column, other in zip((*GENEVAL_PARTS, "Overall"), (*GVU_GENEVAL_PARTS, "Overall"), strict=True):
            cell, second = tables["3"].rows[ours][column], tables["GvU-GenEval"].rows[theirs][other]
            first, last = held(cell), held(second)
            if first and last:
                yield _sources(cell, tables["3"].file, f"{second.printed}, {second.place}", first, last)


def other_places(tables: Tables, elsewhere: list[Elsewhere]) -> Iterator[Finding]:
    """Scores of the same systems in other places; `A+B` compares with the sum of two columns."""
    for found in elsewhere:
        cells = [tables[found.table].rows[found.row][name] for name in found.column.split("+")]
        ours = [bounds(cell.printed).times(_UNIT[cell.unit]) for cell in cells]
        total = ours[0] if len(ours) == 1 else ours[0].plus(ours[1])
        second = bounds(found.printed).times(_UNIT[found.unit])
        verdict = same(total, second) if len(ours) == 1 else judge(second, total)
        place = f"{found.printed}, {found.kind}: {found.place}"
        yield Finding("two sources", tables[found.table].file, found.row, found.column, place,
                      " + ".join(cell.printed for cell in cells), found.printed, str(second), _conflict(verdict))


def whole_items(tables: Tables) -> Iterator[Finding]:
    """Whether a score can be a whole number of right answers: k / n within the rounding of the print, k whole.

    A score that prints so only after two roundings is within rounding. Checked where an item is right or wrong as a
    whole and its count is known: MMMU (900) and RealWorldQA (765) in ASG's own rows, one finding per distinct print
    and table, and the categories of GenEval++ (40).
    """
    own = {"2": [row for name in BACKBONES for row in (name, f"{name} (Ours)")]}
    own |= {id: list(tables[id].rows) for id in ("4", "5", "6", *SWEEPS)}
    for id, rows in own.items():
        for column, (items, source) in WHOLE.items():
            seen: dict[str, list[Cell]] = {}
            for row in rows:
                seen.setdefault(tables[id].rows[row][column].printed, []).append(tables[id].rows[row][column])
            yield from (_whole(tables[id].file, cells, items, source) for text, cells in seen.items() if text)
    plus = tables["GvU-GenEval++"]
    for row in plus.rows:
        yield from (_whole(plus.file, [plus.rows[row][name]], PLUS_ITEMS, "40 prompts per category, spec: related 3.1")
                    for name in PLUS_PARTS if plus.rows[row][name].value is not None)


def _whole(file: str, cells: list[Cell], items: int, source: str) -> Finding:
    cell = cells[0]
    unit = 100 if cell.unit == "percent" else 1
    print_ = bounds(cell.printed)
    count = math.ceil(print_.low * items / unit)
    shares = {k: Fraction(k * unit, items) for k in (count - 1, count)}
    twice = [k for k, share in shares.items() if _widened(print_).holds(share)]  # 70.8497 -> 70.85 -> 70.9
    if print_.holds(shares[count]):
        kept, verdict, note = [count], CONSISTENT, ""
    elif twice:
        kept, verdict, note = twice, WITHIN, f"only if it was rounded twice ({items} items: {source})"
    else:
        kept, verdict = list(shares), INCONSISTENT
        note = (f"no whole number of {items} items prints so ({source}); an average over runs, another set of items, "
                "another weighting or a slip of transcription would")
    return Finding("whole items", file, "; ".join(c.row for c in cells), cell.column,
                   f"a whole number of {items} items", cell.printed,
                   " or ".join(f"{k}/{items} = {show(shares[k])}" for k in kept), str(print_), verdict, note)


def _widened(print_: Interval) -> Interval:
    """The values that reach the print when they are rounded to one decimal more first."""
    more = (print_.high - print_.low) / 20
    return Interval(print_.low - more, print_.high + more)


def _finding(kind: str, file: str, cell: Cell, relation: str, recomputed: Interval, note: str = "") -> Finding:
    verdict = judge(bounds(cell.printed), recomputed)
    return Finding(kind, file, cell.row, cell.column, relation, cell.printed, show(centre(recomputed)), str(recomputed),
                   verdict, note)


def _repeat(file: str, cell: Cell, first: Cell) -> Iterator[Finding]:
    if cell.value is not None and first.value is not None:
        one, other = bounds(cell.printed), bounds(first.printed)
        relation = f"as in Table {first.table}, {first.row}, {first.column}"
        yield Finding("repeated row", file, cell.row, cell.column, relation, cell.printed, first.printed, str(other),
                      same(one, other))


def _sources(cell: Cell, file: str, place: str, first: Interval, second: Interval) -> Finding:
    return Finding("two sources", file, cell.row, cell.column, place, cell.printed, show(centre(second)), str(second),
                   _conflict(same(first, second)))


def _conflict(verdict: str) -> str:
    return verdict if verdict in (CONSISTENT, WITHIN) else CONFLICT
