"""The schema of `log.jsonl`: one flat record per image and step, every field named, typed and explained.

The tables below are the only place where a logged field is declared. A record carries *every* field of its
phase ("U" understanding, "G" generation), so a reader never has to guess whether a missing key means zero,
"not measured" or "forgotten": what could not be computed is null, and only where the field allows it.
Records hold no wall-clock time, because a resumed run must write the same bytes as an uninterrupted one.

`docs/log_glossary.md` is generated from this table: `python -m asgkit.runs.schema > docs/log_glossary.md`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class SchemaError(ValueError):
    """A log record has an unknown field, lacks one, or holds a value of the wrong type."""


@dataclass(frozen=True)
class Field:
    """One logged field: its JSON type, unit, phases, meaning, and whether it may be null.

    `type` is one of int, float, str, bool, or `list[...]` of these, nested at will; `?` inside a list
    (`list[float?]`) lets single elements be null. `phases` is "U", "G" or "both".
    """

    type: str
    unit: str
    phases: str
    description: str
    nullable: bool = False

    def applies_to(self, phase: str) -> bool:
        """Tell whether records of `phase` ("U" or "G") carry this field."""
        return self.phases in (phase, "both")


# The tables: name, JSON type (a last "?" makes the field nullable), unit, meaning.
# K = candidate questions, N = framings, M = diagnostic questions, L = candidate images.
_BOTH: list[tuple[str, str, str, str]] = [
    ("step", "int", "step", "Training step, counted from 1."),
    ("phase", "str", "-", "U (understanding) or G (generation)."),
    ("rank", "int", "-", "Process that saw the image; 0 in a single-process run."),
    ("image", "str", "-", "File name of the image, relative to the pool folder."),
    ("image_index", "int", "-", "Index of the image in the pool's sorted list of usable files."),
    ("control", "str", "-", "Name of the reward control; empty in the true method."),
    ("questions", "list[str]", "text", "The Proposer's K candidate (U) or M diagnostic (G) questions."),
    ("questions/valid", "list[bool]", "-", "Per question: passed the validity test."),
    ("questions/problems", "list[str]", "text", "Per question: why it is invalid; empty when valid."),
]

_UNDERSTANDING: list[tuple[str, str, str, str]] = [
    ("questions/duplicate", "list[bool]", "-", "Per candidate: repeats an earlier one of its group."),
    ("question", "str", "text", "The chosen question q*: the candidate of highest R_p."),
    ("proposer/reward", "float", "reward", "R_p of the chosen question."),
    ("proposer/rewards", "list[float]", "reward", "R_p per candidate, under a control too."),
    ("proposer/advantages", "list[float]", "-", "Group-relative advantage per candidate."),
    ("proposer/difficulty", "list[float?]", "fraction", "d_ste per candidate: rank of its STE among recent."),
    ("proposer/self_consistency_reward", "list[float?]", "reward", "r_sc in [-1, 1] per candidate."),
    ("proposer/zero_variance", "bool", "-", "All candidates earned the same R_p: no gradient this step."),
    ("proposer/target_entropy", "float", "nats", "Running target mu of medium self-consistency entropy."),
    ("solver/answers", "list[str]", "text", "Raw answers to the chosen question, one per framing (N)."),
    ("solver/normalised", "list[str]", "text", "The same answers, normalised for the vote."),
    ("solver/majority", "str?", "text", "Most frequent normalised answer a*."),
    ("solver/majority_count", "int?", "count", "Number of framings that gave a*."),
    ("solver/majority_fraction", "float?", "fraction", "Share of the N framings that gave a*."),
    ("solver/self_consistency_entropy", "float?", "nats", "H_sc of the vote on the chosen question."),
    ("solver/margin", "float?", "fraction", "Vote share of a* minus that of the runner-up."),
    ("solver/entropies", "list[float?]", "nats", "H_sc per candidate question."),
    ("solver/greedy_answer", "str?", "text", "Greedy answer to the chosen question, from the STE pass."),
    ("solver/token_entropy", "float?", "nats", "STE of the chosen question: max over its first tokens."),
    ("solver/token_entropies", "list[float?]", "nats", "STE per candidate question."),
    ("solver/token_entropy_mean", "float?", "nats", "Mean instead of max over the same tokens (a control)."),
    ("solver/difficulty", "float?", "fraction", "d_ste of the chosen question, in [0, 1]."),
    ("solver/window_size", "int", "count", "Values in the rolling STE window when d_ste was taken."),
    ("solver/rewards", "list[float]", "reward", "R_s per framing on the chosen question; a control's, if one is set."),
    ("solver/advantages", "list[float]", "-", "Per framing: R_s minus the baseline, group-relative, or 1 (sft)."),
    ("solver/update", "str", "-", "Update rule: reinforce, group or sft."),
    ("solver/trained", "bool", "-", "The chosen question entered the Solver's update."),
    ("solver/skip_reason", "str", "text", "Why it did not; empty when it did, or was not considered."),
    ("solver/baseline", "float?", "reward", "EMA baseline taken off R_s, before this step changes it."),
    ("frac_reward_zero_std", "float", "fraction", "Share of reward groups with zero spread in this step."),
    ("completions/mean_length", "float", "tokens", "Mean length of the Proposer's sampled completions."),
    ("num_tokens", "int", "tokens", "Sampled tokens so far: questions, and answers of U steps."),
]

_GENERATION: list[tuple[str, str, str, str]] = [
    ("prompt", "str", "text", "Drawing prompt t: the Solver's caption of the real image."),
    ("references", "list[str]", "text", "The Solver's majority answers on the real image (M)."),
    ("references/fraction", "list[float]", "fraction", "Vote share behind each reference."),
    ("spec/quality", "float", "fraction", "Quality of the prompt card (prompt and questions), in [0, 1]."),
    ("spec/passed", "bool", "-", "The card passed the quality gate."),
    ("generator/rewards", "list[float]", "reward", "R_g per candidate image (L), under a control too."),
    ("generator/fidelity", "list[float]", "fraction", "S_fid: the candidate's answers against references."),
    ("generator/cycle", "list[float]", "fraction", "S_cyc per candidate: mean of the next two values."),
    ("generator/text_similarity", "list[float]", "cosine", "Prompt against the candidate's caption."),
    ("generator/image_text_similarity", "list[float]", "probability", "Prompt given the candidate, per token."),
    ("generator/diversity", "list[float]", "fraction", "S_div: leave-one-out part of group diversity."),
    ("generator/contradiction", "list[float]", "fraction", "S_ctr: share of explicit yes/no conflicts."),
    ("generator/captions", "list[str]", "text", "The Solver's caption of each candidate."),
    ("generator/answers", "list[list[str]]", "text", "The Solver's majority answers per candidate (L x M)."),
    ("generator/best", "int?", "-", "Index of the candidate of highest R_g."),
    ("generator/best_reward", "float?", "reward", "Its R_g."),
    ("generator/advantages", "list[float]", "-", "Group-relative advantage per candidate."),
    ("generator/zero_variance", "bool", "-", "Equal R_g, or a card below the gate: no gradient this step."),
    ("generator/seeds", "list[int]", "-", "Seed that draws each candidate again."),
    ("replay/pushed", "bool", "-", "The best candidate entered the replay buffer."),
    ("judge_scores", "list[float]", "fraction", "Scores of an injected control judge; else empty."),
]

# Values of a role's optimiser step; the same on each record of the step, null when the step was skipped.
_UPDATE: list[tuple[str, str, str, str]] = [
    ("loss", "float?", "nats", "Total loss: policy loss + kl_coefficient x kl."),
    ("policy_loss", "float?", "nats", "Policy (reward-weighted) part of the loss."),
    ("kl", "float?", "nats", "Mean per-token KL from the adapted model to the frozen base."),
    ("kl_coefficient", "float", "-", "Adaptive KL coefficient used in this step."),
    ("grad_norm", "float?", "-", "Norm of the role's gradient before clipping."),
    ("entropy", "float?", "nats", "Mean token entropy of the role's policy on its own samples."),
    ("clip_fraction", "float?", "fraction", "Share of tokens whose ratio was clipped."),
    ("applied", "bool", "-", "The optimiser stepped."),
]


def _update_rows(role: str) -> list[tuple[str, str, str, str]]:
    """Repeat the optimiser-step table for one role."""
    return [(f"{role}/{name}", kind, unit, f"{role.capitalize()}: {text[0].lower() + text[1:]}")
            for name, kind, unit, text in _UPDATE]


def _build() -> dict[str, Field]:
    """Turn the tables into one dictionary, in the order in which records are written."""
    tables = {
        "both": _BOTH,
        "U": _UNDERSTANDING + _update_rows("proposer") + _update_rows("solver"),
        "G": _GENERATION + _update_rows("generator"),
    }
    fields: dict[str, Field] = {}
    for phases, rows in tables.items():
        for name, kind, unit, text in rows:
            if name in fields:
                raise SchemaError(f"{name!r} is declared twice in the tables of asgkit.runs.schema")
            fields[name] = Field(kind.removesuffix("?"), unit, phases, text, kind.endswith("?"))
    return fields


FIELDS: dict[str, Field] = _build()


def _matches(value: Any, kind: str) -> bool:
    """Tell whether a JSON value has the type `kind`; floats must be finite, bools are not numbers."""
    if kind.endswith("?"):
        return value is None or _matches(value, kind[:-1])
    if kind.startswith("list["):
        return type(value) is list and all(_matches(item, kind[5:-1]) for item in value)
    if kind == "float":
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is {"int": int, "str": str, "bool": bool}[kind]


def _unknown(name: str, phase: str) -> str:
    """Explain an unexpected key: a field of the other phase, or a misspelling of a known one."""
    if name in FIELDS:
        return f"{name!r} belongs to phase {FIELDS[name].phases}, not {phase}"
    near = difflib.get_close_matches(name, FIELDS, n=1, cutoff=0.0)
    return f"unknown field {name!r} (nearest known: {near[0]!r}; new fields are declared in asgkit.runs.schema)"


def _problems(record: Mapping[str, Any], phase: str) -> list[str]:
    """List everything that is wrong with a record of the given phase."""
    expected = {name: field for name, field in FIELDS.items() if field.applies_to(phase)}
    found = [_unknown(name, phase) for name in record if name not in expected]
    found += [f"missing field {name!r}" for name in expected if name not in record]
    for name, field in expected.items():
        kind = field.type + "?" * field.nullable
        if name in record and not _matches(record[name], kind):
            shown = repr(record[name])[:80]
            found.append(f"{name!r} must be {kind}, finite and of plain Python type, not {shown}")
    return found


def validate_record(record: Mapping[str, Any]) -> None:
    """Check one log record against the table: every field of its phase, no other, each of its type.

    Values must be what JSON can hold exactly: plain Python int, float, str, bool, list or None (use `.item()`
    and `.tolist()` on tensors). NaN and infinities never pass.

    Raises SchemaError, which names every unknown key (with the nearest known one), every missing key and
    every value of a wrong type at once. Source: spec "generation 8, 12" and "understanding 6".
    """
    phase = record.get("phase")
    if phase not in ("U", "G"):
        raise SchemaError(f"'phase' must be 'U' or 'G', not {phase!r}")
    problems = _problems(record, phase)
    if problems:
        raise SchemaError(f"log record of phase {phase}: " + "; ".join(problems))


def glossary_markdown() -> str:
    """Return the text of `docs/log_glossary.md`: one table per phase, in the order of the field table."""
    parts = [_INTRODUCTION]
    titles = {"both": "Both phases", "U": "Understanding step (U)", "G": "Generation step (G)"}
    for phases, title in titles.items():
        parts.append(f"\n## {title}\n\n| Field | Type | Unit | Null? | Meaning |\n|---|---|---|---|---|\n")
        parts += [f"| `{name}` | `{f.type}` | {f.unit} | {'yes' if f.nullable else ''} | {f.description} |\n"
                  for name, f in FIELDS.items() if f.phases == phases]
    return "".join(parts)


_INTRODUCTION = """# What `log.jsonl` holds

One JSON record per image and step, on one line. A record carries every field of its phase and no other;
what could not be computed is null where the table says so (`?` inside a list: single elements may be null).
K = candidate questions, N = framings, M = diagnostic questions, L = candidate images. Wall-clock times are
in `timings.jsonl`, so that an interrupted and resumed run writes the same log, byte for byte.

This page is generated: `python -m asgkit.runs.schema > docs/log_glossary.md`.
"""


if __name__ == "__main__":
    print(glossary_markdown(), end="")
