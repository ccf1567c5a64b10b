"""docs/log_glossary.md, made from the recipes' tables: `python -m asgkit.recipes.glossary > docs/log_glossary.md`."""

from __future__ import annotations

from asgkit.recipes import RECIPES, load_recipe
from asgkit.runs.schema import CORE, EVERY, FieldTable

_INTRODUCTION = """# What `log.jsonl` holds

One JSON record per item and step, on one line. A record carries every field of its phase and no other; what could not
be computed is null where the table says so (`?` inside a list: single elements may be null). Each recipe logs what it
measures, so each has a section of its own. K = candidate questions, N = framings, M = diagnostic questions, L =
candidate images. Wall-clock times are in `timings.jsonl`, so that an interrupted and resumed run writes the same log,
byte for byte.

This page is generated: `python -m asgkit.recipes.glossary > docs/log_glossary.md`.
"""
_PHASES = {("asg", "U"): "understanding step (U)", ("asg", "G"): "generation step (G)", EVERY: "both steps"}


def glossary_markdown() -> str:
    """The text of the page: the fields of every record, then a section per recipe with a table per phase."""
    parts = [_INTRODUCTION, "\n## Every record\n\n", _table(CORE)]
    for name in RECIPES:
        fields = load_recipe(name).fields
        own = {field: value for field, value in fields.items() if field not in CORE}
        for phase in dict.fromkeys(value.phases for value in own.values()):
            title = _PHASES.get((name, phase)) or _PHASES.get(phase) or f"step {phase}"
            parts += [f"\n## {name}: {title}\n\n", _table({k: v for k, v in own.items() if v.phases == phase})]
    return "".join(parts)


def _table(fields: FieldTable) -> str:
    rows = [f"| `{name}` | `{f.type}` | {f.unit} | {'yes' if f.nullable else ''} | {f.description} |\n"
            for name, f in fields.items()]
    return "| Field | Type | Unit | Null? | Meaning |\n|---|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    print(glossary_markdown(), end="")
