"""The schema of `log.jsonl`: one flat record per item and step, every field named, typed and explained.

A record carries *every* field of its phase, so a reader never has to guess whether a missing key means zero,
"not measured" or "forgotten": what could not be computed is null, and only where the field allows it. The fields that
every record has are here; each recipe declares its own beside them (`field_table`), and logs nothing that it does not
measure. Records hold no wall-clock time, because a resumed run must write the same bytes as an uninterrupted one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EVERY = "every"  # of a field that records of all phases carry
Row = tuple[str, str, str, str]  # name, JSON type (a last "?" makes the field nullable), unit, meaning


class SchemaError(ValueError):
    """A log record has an unknown field, lacks one, or holds a value of the wrong type."""


@dataclass(frozen=True)
class Field:
    """One logged field: its JSON type, unit, phases, meaning, and whether it may be null.

    `type` is one of int, float, str, bool, or `list[...]` of these, nested at will; `?` inside a list
    (`list[float?]`) lets single elements be null. `phases` is one phase of a recipe, or EVERY. `controls`: records of
    runs under a control carry it, and those of the method do not.
    """

    type: str
    unit: str
    phases: str
    description: str
    nullable: bool = False
    controls: bool = False

    def applies_to(self, phase: str, control: str = "") -> bool:
        """Tell whether records of `phase`, in a run under `control`, carry this field."""
        return self.phases in (phase, EVERY) and (bool(control) or not self.controls)


FieldTable = Mapping[str, Field]

_CORE: list[Row] = [
    ("step", "int", "step", "Training step, counted from 1."),
    ("phase", "str", "-", "What the step did; the recipe names its phases."),
    ("rank", "int", "-", "Process that saw the item; 0 in a single-process run."),
    ("image", "str", "-", "Name of the picture (or prompt), relative to the pool."),
    ("image_index", "int", "-", "Its index in the pool's sorted list of usable items."),
    ("control", "str", "-", "Name of the reward control; empty in the true method."),
]

# Values of a role's optimiser step; the same on each record of the step, null when the step was skipped.
_UPDATE: list[Row] = [
    ("loss", "float?", "nats", "Total loss: policy loss + kl_coefficient x kl."),
    ("policy_loss", "float?", "nats", "Policy (reward-weighted) part of the loss."),
    ("kl", "float?", "nats", "Mean per-token KL from the adapted model to the frozen base."),
    ("kl_coefficient", "float", "-", "Adaptive KL coefficient used in this step."),
    ("grad_norm", "float?", "-", "Norm of the role's gradient before clipping."),
    ("entropy", "float?", "nats", "Mean token entropy of the role's policy on its own samples."),
    ("clip_fraction", "float?", "fraction", "Share of tokens whose ratio was clipped."),
    ("applied", "bool", "-", "The optimiser stepped."),
]


def update_rows(role: str) -> list[Row]:
    """The fields of one role's optimiser step, for a recipe's table."""
    return [(f"{role}/{name}", kind, unit, f"{role.capitalize()}: {text[0].lower() + text[1:]}")
            for name, kind, unit, text in _UPDATE]


def field_table(phases: Mapping[str, Sequence[Row]], controls: Mapping[str, Sequence[Row]] | None = None
                ) -> FieldTable:
    """A recipe's fields by name, after the core ones, in the order in which records are written.

    phases: rows of each phase, or of EVERY; controls: the same for records of runs under a control. Raises SchemaError
    for a name that is declared twice.
    """
    fields: dict[str, Field] = {}
    both = [(False, EVERY, _CORE), *((False, *item) for item in phases.items()),
            *((True, *item) for item in (controls or {}).items())]
    for only, phase, rows in both:
        for name, kind, unit, text in rows:
            if name in fields:
                raise SchemaError(f"{name!r} is declared twice in a recipe's table of fields")
            fields[name] = Field(kind.removesuffix("?"), unit, phase, text, kind.endswith("?"), only)
    return fields


CORE: FieldTable = field_table({})


def phases_of(fields: FieldTable) -> list[str]:
    """The phases of a table, in its order."""
    return list(dict.fromkeys(field.phases for field in fields.values() if field.phases != EVERY))


def _matches(value: Any, kind: str) -> bool:
    """Tell whether a JSON value has the type `kind`; floats must be finite, bools are not numbers."""
    if kind.endswith("?"):
        return value is None or _matches(value, kind[:-1])
    if kind.startswith("list["):
        return type(value) is list and all(_matches(item, kind[5:-1]) for item in value)
    if kind == "float":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is {"int": int, "str": str, "bool": bool}[kind]


def _unknown(name: str, phase: str, fields: FieldTable) -> str:
    """Explain an unexpected key: a field of another phase, or a misspelling of a known one."""
    if name in fields:
        return f"{name!r} belongs to phase {fields[name].phases}, not {phase}"
    near = difflib.get_close_matches(name, fields, n=1, cutoff=0.0)
    return f"unknown field {name!r} (nearest known: {near[0]!r}; a recipe declares its fields in its `fields`)"


def _problems(record: Mapping[str, Any], phase: str, fields: FieldTable) -> list[str]:
    """List everything that is wrong with a record of the given phase."""
    control = str(record.get("control", ""))
    expected = {name: field for name, field in fields.items() if field.applies_to(phase, control)}
    found = [_unknown(name, phase, fields) for name in record if name not in expected]
    found += [f"missing field {name!r}" for name in expected if name not in record]
    for name, field in expected.items():
        kind = field.type + "?" * field.nullable
        if name in record and not _matches(record[name], kind):
            shown = repr(record[name])[:80]
            found.append(f"{name!r} must be {kind}, finite and of plain Python type, not {shown}")
    return found


def validate_record(record: Mapping[str, Any], fields: FieldTable) -> None:
    """Check one log record against its recipe's table: every field of its phase, no other, each of its type.

    Values must be what JSON can hold exactly: plain Python int, float, str, bool, list or None (use `.item()`
    and `.tolist()` on tensors). NaN and infinities never pass.

    Raises SchemaError, which names every unknown key (with the nearest known one), every missing key and
    every value of a wrong type at once. Source: spec "generation 8, 12" and "understanding 6".
    """
    phase, known = record.get("phase"), phases_of(fields)
    if phase not in known:
        raise SchemaError(f"'phase' must be one of {', '.join(map(repr, known))}, not {phase!r}")
    problems = _problems(record, phase, fields)
    if problems:
        raise SchemaError(f"log record of phase {phase}: " + "; ".join(problems))
