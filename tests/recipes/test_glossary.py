"""The tables of every recipe, and the page that is made from them."""

import pytest
from paths import ROOT

from asgkit.recipes import RECIPES, all_fields, load_recipe
from asgkit.recipes.glossary import glossary_markdown
from asgkit.runs.schema import CORE, EVERY, phases_of

TYPES = {"int", "float", "str", "bool", "list[float]", "list[float?]", "list[str]", "list[str?]", "list[bool]",
         "list[int]", "list[list[str]]"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_table_is_complete_in_itself(name):
    fields = load_recipe(name).fields
    assert list(fields)[: len(CORE)] == list(CORE)
    for field, held in fields.items():
        assert held.type in TYPES, field
        assert held.phases in (EVERY, *phases_of(fields)), field
        assert held.unit and held.description.endswith("."), field
        assert "|" not in held.description, f"{field}: a bar would break the glossary's table"


def test_a_recipe_logs_what_it_measures_and_nothing_of_another():
    gvu, asg = load_recipe("gvu").fields, load_recipe("asg").fields
    assert not {name for name in gvu if name.startswith(("solver/", "proposer/", "questions", "replay/"))}
    assert "generator/diversity" in asg and "generator/diversity" not in gvu
    assert set(all_fields()) == set(gvu) | set(asg)


def test_one_name_has_one_type_in_every_recipe():
    for name, field in all_fields().items():
        kinds = {load_recipe(recipe).fields[name].type for recipe in RECIPES if name in load_recipe(recipe).fields}
        assert kinds == {field.type}, name


def test_the_page_has_a_section_per_recipe():
    page = glossary_markdown()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Every record", "## asg: both steps", "## asg: understanding step (U)", "## asg: generation step (G)",
        "## gvu: step G"]


def test_the_committed_glossary_is_the_generated_one():
    page = ROOT / "docs" / "log_glossary.md"
    assert page.read_text(encoding="utf-8") == glossary_markdown(), \
        "run: python -m asgkit.recipes.glossary > docs/log_glossary.md"
