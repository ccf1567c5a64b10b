"""The log's field table: what a record may hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgkit.recipes.asg_fields import FIELDS
from asgkit.runs.schema import CORE, EVERY, SchemaError, field_table, phases_of
from asgkit.runs.schema import validate_record as validate

EXAMPLES = {
    "int": 3, "float": 0.5, "str": "red", "bool": True, "list[float]": [0.5, 1], "list[float?]": [0.5, None],
    "list[str]": ["red"], "list[str?]": ["red", None], "list[bool]": [True, False], "list[int]": [7],
    "list[list[str]]": [["a"], []],
}


def validate_record(record: dict) -> None:
    validate(record, FIELDS)


def record_of(phase: str, control: str = "") -> dict:
    """A valid record of a phase, one example value per type."""
    held = {name: EXAMPLES[f.type] for name, f in FIELDS.items() if f.applies_to(phase, control)}
    return held | {"phase": phase, "control": control}


def test_a_controls_fields_are_in_its_runs_and_in_no_other():
    with pytest.raises(SchemaError, match="missing field 'control/rewards'"):
        validate_record(record_of("G") | {"control": "random"})
    with pytest.raises(SchemaError, match="control/rewards"):
        validate_record(record_of("G", "random") | {"control": ""})


@pytest.mark.parametrize("phase", ["U", "G"])
def test_a_complete_record_is_valid_and_null_is_valid_only_where_nullable(phase):
    record = record_of(phase, "random")
    validate_record(record)
    for name in record.keys() - {"phase"}:
        if FIELDS[name].nullable:
            validate_record(record | {name: None})
        else:
            with pytest.raises(SchemaError, match=name):
                validate_record(record | {name: None})


@pytest.mark.parametrize("phase", ["U", "G"])
def test_every_missing_field_is_named(phase):
    record = record_of(phase)
    for name in record.keys() - {"phase"}:
        with pytest.raises(SchemaError, match=f"missing field '{name}'"):
            validate_record({k: v for k, v in record.items() if k != name})


def test_an_unknown_field_names_its_nearest():
    with pytest.raises(SchemaError, match="unknown field 'solver/majorty'.*nearest known: 'solver/majority'"):
        validate_record(record_of("U") | {"solver/majorty": "red"})


def test_a_field_of_the_other_phase_is_refused():
    with pytest.raises(SchemaError, match="'generator/rewards' belongs to phase G, not U"):
        validate_record(record_of("U") | {"generator/rewards": [1.0]})


def test_all_problems_are_listed_at_once():
    record = record_of("U") | {"step": "3", "nonsense": 1}
    del record["question"]
    with pytest.raises(SchemaError) as caught:
        validate_record(record)
    assert all(word in str(caught.value) for word in ("'step' must be int", "nonsense", "'question'"))


@pytest.mark.parametrize(("name", "value"), [
    ("step", True), ("step", 3.0), ("question", None), ("questions", ("a",)), ("proposer/zero_variance", 1),
    ("proposer/reward", float("nan")), ("proposer/rewards", [0.1, float("inf")]),
    ("proposer/rewards", [None]),
    ("proposer/rewards", [True]), ("proposer/loss", float("nan")), ("questions", "a"),
])
def test_wrong_types_and_non_finite_numbers_are_refused(name, value):
    with pytest.raises(SchemaError, match=f"'{name}' must be"):
        validate_record(record_of("U") | {name: value})


@pytest.mark.parametrize("phase", [None, "u", 1, ""])
def test_the_phase_must_be_u_or_g(phase):
    with pytest.raises(SchemaError, match="'phase' must be one of 'U', 'G', not"):
        validate_record(record_of("U") | {"phase": phase})


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.floats() | st.text(max_size=3)))
def test_nothing_but_schema_errors_comes_out_of_the_check(junk):
    with pytest.raises(SchemaError):
        validate_record(junk)


def test_a_recipe_declares_its_fields_after_the_core_and_none_twice():
    table = field_table({"X": [("score", "float?", "points", "A score.")]})
    assert list(table) == [*CORE, "score"] and phases_of(table) == ["X"]
    assert table["score"].nullable and table["score"].applies_to("X") and not table["score"].applies_to("Y")
    assert all(field.phases == EVERY for field in CORE.values())
    with pytest.raises(SchemaError, match="'step' is declared twice"):
        field_table({"X": [("step", "int", "step", "Again.")]})
