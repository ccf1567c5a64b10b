"""Which conditions of the premise hold on a base, and what follows where one does not. Numbers in, words out.

A condition holds, or fails, when its value is two standard errors on the right, or wrong, side of its threshold;
between the two the sample was too small to tell, and `not shown` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from asgkit.runs.wording import table

ROOM = (5.0, 95.0)  # percent: outside, one direction is closed
MIXED = 10.0  # percent of groups with right and wrong candidates: of 16 cards in a step, one or two can teach
READER = 99.0  # percent of clean renders that the detector must read exactly, or the truth itself is in doubt
STATES = ("holds", "fails", "not shown", "undefined", "not measured")


@dataclass(frozen=True)
class Verdict:
    """One condition: its state (one of STATES), the numbers it rests on, and what follows unless it holds."""

    condition: str
    state: str
    found: str
    implies: str


def judge_premise(result: dict[str, Any]) -> list[Verdict]:
    """The verdict on every condition of a premise as `asgkit.experiments.premise.measure_premise` returns it.

    `result["oracle_gain"]` (from `asgkit.experiments.premise.oracle_gain`) is judged where it was asked for.
    """
    verdicts = [*_answers(result["answers"]), *_detectors(result["answers"]["n"], result["detectors"]),
                *_drawings(result), *_reward(result["reward"])]
    return verdicts + (_oracle(result["oracle_gain"]) if "oracle_gain" in result else [])


def print_verdicts(verdicts: Sequence[Verdict], console: Console) -> None:
    """Print the verdicts as one table; what a condition implies is shown only where it does not hold."""
    rows = [(v.condition, v.state, v.found, "" if v.state == "holds" else v.implies) for v in verdicts]
    console.print(table("What the premise allows", ("condition", "state", "found", "if it does not hold"), rows))


def state_of(value: float | None, error: float | None, threshold: float = 0.0) -> str:
    """`holds` if value - 2 error > threshold, `fails` if value + 2 error < threshold, else `not shown`.

    `undefined` where the value, or its standard error, could not be computed.
    """
    if value is None or error is None:
        return "undefined"
    if value - 2.0 * error > threshold:
        return "holds"
    return "fails" if value + 2.0 * error < threshold else "not shown"


def auroc_error(positive: int, negative: int) -> float | None:
    """Standard error of an AUROC around 0.5, `sqrt((n1 + n0 + 1) / (12 n1 n0))`; None when a class is empty.

    The null distribution of the Mann-Whitney statistic without ties; ties only make it narrower.
    """
    if positive == 0 or negative == 0:
        return None
    return math.sqrt((positive + negative + 1) / (12.0 * positive * negative))


def share_error(percent: float | None, count: float) -> float | None:
    """Standard error of a percentage over `count` independent items, `100 sqrt(p (1 - p) / n)`; None without items."""
    if percent is None or count == 0:
        return None
    p = percent / 100.0
    return 100.0 * math.sqrt(p * (1.0 - p) / count)


def _answers(a: dict[str, Any]) -> list[Verdict]:
    vote, canonical = a["majority_minus_single"], a["majority_minus_canonical"]
    return [
        _room("room in answers", a["single"], "The base is too weak or too strong to move: choose another base."),
        Verdict("the vote beats a framing", state_of(vote["delta"], vote["se"]), _gap(vote),
                "The majority is no better than what it teaches: expect no gain in answers."),
        Verdict("the vote beats the canonical framing", state_of(canonical["delta"], canonical["se"]), _gap(canonical),
                "The canonical answer has nothing to learn from the vote and may be pulled down to it: read it apart "
                "from the mean framing."),
    ]


def _detectors(n: int, d: dict[str, Any]) -> list[Verdict]:
    every, flat = d["majority"], d["unanimous"]
    silent = "The Proposer is paid for questions that are not the hard ones."
    return [
        _detector("H_sc finds wrong majorities", every["h_sc"], every["wrong"], n, silent),
        _detector("STE finds wrong majorities", every["ste"], every["wrong"], n, silent),
        _detector("STE finds wrong unanimous votes", flat["majority_ste"], flat["majority_wrong"], flat["n"],
                  "Where the vote is blind, STE adds nothing: expect the run without STE to do as well."),
    ]


def _detector(condition: str, area: float | None, wrong: int, n: int, implies: str) -> Verdict:
    error = auroc_error(wrong, n - wrong)
    shown = "undefined" if area is None or error is None else f"AUROC {area:.2f} ± {error:.2f}"
    return Verdict(condition, state_of(area, error, 0.5), f"{shown}, {wrong} wrong of {n}", implies)


def _drawings(result: dict[str, Any]) -> list[Verdict]:
    drawn, reader = result["drawn_images"], result["reader"]["noise 0"]
    value = drawn["majority"]
    error = share_error(value, drawn["n"] / 2)  # two questions per drawing are not independent
    return [
        _room("room in drawings", result["drawings"]["overall"],
              "Too few, or nearly all, drawings are right: groups hold nothing to prefer."),
        Verdict("the truth can be read", "holds" if reader >= READER else "fails", f"{reader:.1f}% of renders",
                "The detector misreads clean pictures: no number about drawings can be trusted."),
        Verdict("the Solver reads drawings", state_of(value, error, 50.0),
                f"{_number(value, '.1f')}% right, {drawn['n']} questions",
                "The Solver is more often wrong than right on drawings, so QA fidelity is noise."),
    ]


def _reward(r: dict[str, Any]) -> list[Verdict]:
    rank, best = r["spearman"].get("reward"), r["best_of"]
    mixed = best["mixed_groups"] if best else None
    mean, error = (rank["mean"], rank["standard_error"]) if rank else (None, None)
    return [
        Verdict("R_g ranks drawings rightly", state_of(mean, error),
                f"rank correlation {_number(mean, '+.2f')} ± {_number(error, '.2f')}, "
                f"{rank['groups'] if rank else 0} groups",
                "The Generator is taught something else than correctness: expect drawings to drift or fall."),
        Verdict("groups are mixed", state_of(mixed, share_error(mixed, r["used"]), MIXED),
                f"{_number(mixed, '.1f')}% of {r['used']} groups",
                "Most groups are all right or all wrong, and their advantages are noise."),
    ]


def _oracle(gain: dict[str, Any]) -> list[Verdict]:
    names = {"answers/single": "an oracle reward improves answers",
             "drawings/overall": "an oracle reward improves drawings"}
    if not gain["runs"]:
        return [Verdict(name, "not measured", "no run of the arm oracle", f"Make them: {gain['command']}")
                for name in names.values()]
    rows = []
    for key, name in names.items():
        g = gain["gains"][key]
        state = "holds" if g["low"] > 0 else "fails" if g["high"] < 0 else "not shown"
        rows.append(Verdict(name, state, f"{g['delta']:+.1f} [{g['low']:+.1f}, {g['high']:+.1f}], "
                            f"{len(gain['runs'])} runs",
                            "Even true rewards do not help here: blame step size, steps or data before the signals."))
    return rows


def _room(condition: str, percent: float, implies: str) -> Verdict:
    inside = ROOM[0] <= percent <= ROOM[1]
    return Verdict(condition, "holds" if inside else "fails", f"{percent:.1f}%", implies)


def _gap(gap: dict[str, float]) -> str:
    return f"{gap['delta']:+.1f} ± {gap['se']:.1f} points"


def _number(value: float | None, form: str) -> str:
    return "undefined" if value is None else format(value, form)
