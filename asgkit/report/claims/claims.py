"""`asgkit claims`: what the paper claims, held against what was measured here; verdicts are computed, never typed.

`results/claims.yaml` says, claim by claim, which measured quantity bears on it and which rule decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from asgkit.report.claims.rules import POINTS, Arms, Found, Identical, Rule, Strict
from asgkit.report.claims.series import Curve, Lead, Tracking, Trend
from asgkit.report.claims.signals import Detector, Gap, Premise, Together, Within
from asgkit.report.measured import Measured

SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTED = "supported", "contradicted", "inconclusive", "not tested here"
TOY, NO_EFFECT = "toy", "no effect"
VERDICTS = (SUPPORTED, TOY, NO_EFFECT, CONTRADICTED, INCONCLUSIVE, NOT_TESTED)
LEVEL = 0.95
EQUAL_LEVEL = 0.90  # two one-sided tests at 5%: the 90% interval lies inside the margin
MEANING = {
    SUPPORTED: "every comparison has its whole 95% interval on the claimed side of the bar, with the seeds asked for",
    CONTRADICTED: "at least one comparison has its whole interval on the other side, also after the interval is "
                  "widened for the number of comparisons (level 1 - 0.05 / comparisons)",
    TOY: "supported, but on tiny models alone, and the paper says it of its large models",
    NO_EFFECT: "every comparison differs by less than the claim's margin, either way: two one-sided tests at 5% each, "
               "so its 90% interval lies inside the margin",
    INCONCLUSIVE: "neither: an interval holds the bar, seeds are too few, or a part is not measured yet",
    NOT_TESTED: "nothing that bears on it has been measured yet; the command says what would",
}


class ClaimsError(ValueError):
    """The claims file cannot be used; the message names the claim and the key."""


class Claim(Strict):
    """One claim of the paper in our words, its place, the quantity that bears on it, the rule, and what reruns it.

    `seeds`: training runs that each arm needs before a verdict is given (0 for rules on the untrained base).
    `about`: "large" where the paper's own words speak of its large models: measured on tiny models (`tiny-*`) alone,
    such a claim can be `toy` at best; "any" where it speaks of the method.
    """

    id: str = Field(pattern=r"[a-z0-9][a-z0-9-]*")
    place: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    measured: str = Field(min_length=1)
    rule: Annotated[Arms | Identical | Within | Detector | Gap | Together | Premise | Trend | Lead | Curve | Tracking,
                    Field(discriminator="kind")]
    seeds: int = Field(ge=0)
    about: Literal["any", "large"] = "any"
    commands: list[str] = Field(min_length=1)


class _File(Strict):
    claims: list[Claim] = Field(min_length=1)


@dataclass(frozen=True)
class Part:
    """One comparison with its verdict."""

    found: Found
    verdict: str
    note: str


@dataclass(frozen=True)
class Assessed:
    """A claim with its comparisons, its verdict and the reason in words."""

    claim: Claim
    parts: list[Part]
    verdict: str
    reason: str

    @property
    def scope(self) -> str:
        """Which models the verdict speaks of; empty where none was measured."""
        tiny = _origins(self.parts)
        return {(): "", (True,): "on the tiny models", (False,): "on the models measured"}.get(
            tuple(sorted(tiny)), "on tiny and other models")


def _origins(parts: Sequence[Part]) -> set[bool]:
    """Whether the models that the comparisons rest on are tiny: both values where there are both."""
    return {name.startswith("tiny-") for part in parts for name in part.found.used}


def load_claims(path: str | Path) -> list[Claim]:
    """Read claims strictly. Raises FileNotFoundError without the file, ClaimsError for anything that does not fit."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no claims file {path}: take results/claims.yaml of the clone, or name one, --claims")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        claims = _File.model_validate(content).claims
    except yaml.YAMLError as error:
        raise ClaimsError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise ClaimsError(f"{path}: {'; '.join(_sentence(e, content) for e in error.errors())}") from error
    if twice := [id for id, count in Counter(c.id for c in claims).items() if count > 1]:
        raise ClaimsError(f"{path}: the claim {twice[0]!r} is there twice: rename one")
    return claims


def _sentence(error: Any, content: Any) -> str:
    """One pydantic error with the id of its claim in place of its number."""
    where = [str(part) for part in error["loc"]]
    if len(where) > 1 and where[0] == "claims" and isinstance(claim := content["claims"][int(where[1])], dict):
        where[:2] = [f"claim {claim.get('id', where[1])!r}"]
    return f"{'.'.join(where) or 'the file'}: {error['msg']}"


def assess_all(claims: Sequence[Claim], measured: Measured) -> list[Assessed]:
    """Every claim against what was measured. Raises Untraceable when a number does not follow from its items."""
    return [assess(claim, measured) for claim in claims]


def assess(claim: Claim, measured: Measured) -> Assessed:
    """Judge every comparison at 95%, then the claim; a contradiction must survive a widening for their number."""
    parts = _judged(claim, measured, LEVEL)
    tested = sum(part.verdict != NOT_TESTED for part in parts)
    verdict, reason = combine([part.verdict for part in parts]), _counted(parts)
    if verdict == CONTRADICTED and tested > 1:
        strict = _judged(claim, measured, 1 - (1 - LEVEL) / tested)
        if CONTRADICTED not in [part.verdict for part in strict]:
            verdict = INCONCLUSIVE
            reason += f"; no contradiction is left when {tested} comparisons are allowed for"
    if {part.verdict for part in parts} == {SUPPORTED, NO_EFFECT}:
        reason += "; all are decided, but not alike"
    if verdict == SUPPORTED and claim.about == "large" and _origins(parts) == {True}:
        verdict = TOY
    return Assessed(claim, parts, verdict, reason)


def _judged(claim: Claim, measured: Measured, level: float) -> list[Part]:
    """Every comparison at a level; where equality is asked for, also at the level of two one-sided tests."""
    rule, held = claim.rule, list(claim.rule.find(measured, level))
    narrow = [None] * len(held) if rule.equal_within is None else list(rule.find(measured, EQUAL_LEVEL))
    return [Part(found, *judge(found, rule, claim.seeds, inner)) for found, inner in zip(held, narrow, strict=True)]


def judge(found: Found, rule: Rule, seeds: int, narrow: Found | None = None) -> tuple[str, str]:
    """(verdict, note) of one comparison: on which side of the rule's bar the whole interval lies.

    narrow: the same comparison at EQUAL_LEVEL, for a rule that asks whether two arms are equal.
    """
    if found.effect is None:
        return (INCONCLUSIVE if found.items else NOT_TESTED), found.note
    notes = [found.note] if found.note else []
    if found.seeds < seeds:
        return INCONCLUSIVE, "; ".join([*notes, f"{found.seeds} of {seeds} seeds"])
    if found.low is None or found.high is None:
        return INCONCLUSIVE, "; ".join([*notes, "one run has no interval"])
    above, below = found.low > rule.bar, found.high < (-rule.bar if rule.side == "within" else rule.bar)
    if above or below:
        held = rule.side == ("above" if above else "below")
        return (SUPPORTED if held else CONTRADICTED), "; ".join(notes)
    if rule.equal_within is not None and _inside(narrow, rule.equal_within):
        notes.append(f"within {rule.equal_within:g} {found.unit} either way")
        return (SUPPORTED if rule.side == "within" else NO_EFFECT), "; ".join(notes)
    if found.unit == POINTS and max(abs(found.low), abs(found.high)) < 1.0:
        notes.append("less than 1 point either way")
    return INCONCLUSIVE, "; ".join(notes)


def _inside(found: Found | None, margin: float) -> bool:
    """Whether an interval lies strictly between -margin and margin."""
    return found is not None and found.low is not None and found.high is not None and (
        -margin < found.low and found.high < margin)


def combine(verdicts: Sequence[str]) -> str:
    """Contradicted if any is; else supported if all are, not tested here if none is tested, else inconclusive."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    kinds = set(verdicts)
    return kinds.pop() if len(kinds) == 1 else INCONCLUSIVE


def _counted(parts: Sequence[Part]) -> str:
    held = Counter(part.verdict for part in parts)
    counted = ", ".join(f"{held[v]} {v}" for v in VERDICTS if held[v])
    return f"one comparison: {parts[0].verdict}" if len(parts) == 1 else f"of {len(parts)} comparisons: {counted}"


def as_json(assessed: Sequence[Assessed], measured: Measured) -> dict[str, Any]:
    """Everything as plain values, numbers to 4 decimals; `read` names what was there to be measured against."""
    counts, asked = Counter(a.verdict for a in assessed), _asked([a.claim for a in assessed])
    return {"source": "measured", "level": LEVEL, "verdicts": {v: MEANING[v] for v in asked},
            "counts": {v: counts[v] for v in asked},
            "claims": [_claim_json(a) for a in assessed],
            "read": {"bases": sorted(measured.bases), "runs": {run.name: run.config_hash for run in measured.runs}}}


def _asked(claims: Sequence[Claim]) -> list[str]:
    """The verdicts that these claims can have: `toy` and `no effect` only where one asks for them."""
    unasked = {TOY} if all(claim.about == "any" for claim in claims) else set()
    unasked |= {NO_EFFECT} if all(claim.rule.margin is None for claim in claims) else set()
    return [verdict for verdict in VERDICTS if verdict not in unasked]


def _claim_json(assessed: Assessed) -> dict[str, Any]:
    claim = assessed.claim
    rule = claim.rule.model_dump(mode="json", exclude={"margin"} if claim.rule.margin is None else None)
    about = {} if claim.about == "any" else {"about": claim.about}
    return {"id": claim.id, "place": claim.place, "statement": claim.statement, "measured": claim.measured,
            **about, "rule": rule, "computed_by": claim.rule.computed_by,
            "seeds_needed": claim.seeds, "commands": claim.commands, "verdict": assessed.verdict,
            "scope": assessed.scope, "reason": assessed.reason,
            "comparisons": [_part_json(part, claim.rule) for part in assessed.parts]}


def _part_json(part: Part, rule: Rule) -> dict[str, Any]:
    found = part.found
    number = lambda value: None if value is None else round(value, 4) + 0.0  # no -0.0
    return {"what": found.label, "unit": found.unit, "effect": number(found.effect), "low": number(found.low),
            "high": number(found.high), "side": rule.side, "bar": rule.bar, "n_items": found.items,
            "n_seeds": found.seeds, "runs": list(found.used), "verdict": part.verdict, "note": part.note}


_INTRODUCTION = (
    "Made by `asgkit claims --out results/claims.json --out results/claims.md` from [claims.yaml](claims.yaml) and "
    "[measured](measured/README.md): the paper's claims in our words, and what was measured here that bears on them. "
    "Each verdict says on which models it was reached: \"on the tiny models\" means that the mechanism was, or was "
    "not, seen on models that this kit trains itself; it does not say what 7-8B models do. Intervals are 95%: over "
    "questions or prompts and training seeds for scores, over training seeds for what is read off logs and curves, "
    "over questions or groups for untrained bases. Every claim has its own rule, fixed in claims.yaml; with this many "
    "of them, one or two verdicts could go either way by chance.")


def as_markdown(content: dict[str, Any]) -> str:
    """The page of what `as_json` gave: counts, all claims in one table, then every comparison."""
    rows = [[f"**{c['verdict']}**{' ' + c['scope'] if c['scope'] else ''}", f"[{c['id']}](#{c['id']})", c["statement"],
             c["place"], c["reason"]] for c in content["claims"]]
    parts = ["# Claims", _INTRODUCTION, "## Counts",
             _table(list(content["counts"]), [[str(count) for count in content["counts"].values()]]),
             "".join(f"- **{verdict}**: {meaning}.\n" for verdict, meaning in content["verdicts"].items()),
             "## All claims", _table(["verdict", "claim", "in our words", "place", "reason"], rows),
             "## Every comparison", *(_details(c) for c in content["claims"])]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _details(claim: dict[str, Any]) -> str:
    rows = [[p["what"], effect(p), f"{p['n_items']} items, {p['n_seeds']} seeds", p["verdict"], p["note"],
             " ".join(p["runs"])] for p in claim["comparisons"]]
    again = ", ".join(f"`{command}`" for command in claim["commands"])
    head = (f"### {claim['id']}\n\n{claim['statement']} ({claim['place']})\n\nMeasured: {claim['measured']}. Holds "
            f"where {_bar(claim['rule'])}, with {claim['seeds_needed']} seeds; `{claim['computed_by']}`."
            f"\n\nAgain: {again}.\n\n")
    return head + _table(["comparison", "effect [95%]", "n", "verdict", "note", "runs"], rows)


def _bar(rule: dict[str, Any]) -> str:
    """Where an interval must lie, in words."""
    if rule["side"] == "within":
        return f"the 90% interval lies within {rule['bar']:g} either way"
    none = f" (no effect: the 90% interval lies within {rule['margin']:g} either way)" if "margin" in rule else ""
    return f"the interval lies {rule['side']} {rule['bar']:g}{none}"


def effect(part: dict[str, Any]) -> str:
    """`+1.20 [+0.40, +2.00] points`, other units with three decimals; the effect alone without an interval.

    Empty without an effect.
    """
    if part["effect"] is None:
        return ""
    if part["unit"] == "values that differ":
        return f"{part['effect']:.0f} {part['unit']}"
    form = "+.2f" if part["unit"] == POINTS else "+.3f"
    ends = "" if part["low"] is None else f" [{part['low']:{form}}, {part['high']:{form}}]"
    return f"{part['effect']:{form}}{ends} {part['unit']}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
