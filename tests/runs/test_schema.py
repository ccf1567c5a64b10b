"""The log's field table: what a record may hold, and the glossary made from it."""


import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from asgkit.runs.schema import FIELDS, SchemaError, glossary_markdown, validate_record

EXAMPLES = {
    "int": 3, "float": 0.5, "str": "red", "bool": True, "list[float]": [0.5, 1], "list[float?]": [0.5, None],
    "list[str]": ["red"], "list[bool]": [True, False], "list[int]": [7], "list[list[str]]": [["a"], []],
}


def record_of(phase: str) -> dict:
    """A valid record of a phase, one example value per type."""
    return {name: EXAMPLES[f.type] for name, f in FIELDS.items() if f.applies_to(phase)} | {"phase": phase}


@pytest.mark.parametrize("phase", ["U", "G"])
def test_a_complete_record_is_valid_and_null_is_valid_only_where_nullable(phase):
    record = record_of(phase)
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
    with pytest.raises(SchemaError, match="'U' or 'G'"):
        validate_record(record_of("U") | {"phase": phase})


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.floats() | st.text(max_size=3)))
def test_nothing_but_schema_errors_comes_out_of_the_check(junk):
    with pytest.raises(SchemaError):
        validate_record(junk)


def test_the_table_is_complete_in_itself():
    for name, field in FIELDS.items():
        assert field.type in EXAMPLES, name
        assert field.phases in ("U", "G", "both"), name
        assert field.unit and field.description.endswith("."), name
        assert "|" not in field.description, f"{name}: a bar would break the glossary's table"


def test_the_committed_glossary_is_the_generated_one():
    page = ROOT / "docs" / "log_glossary.md"
    assert page.read_text(encoding="utf-8") == glossary_markdown(), \
        "run: python -m asgkit.runs.schema > docs/log_glossary.md"
