"""Self-rewarding methods, one short file each: `asg` (the paper's), `gvu`; `base` says what a recipe is."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

from asgkit.backbones.loading import import_own
from asgkit.config.sections import section_of
from asgkit.errors import ConfigError
from asgkit.recipes.base import Recipe, Tools
from asgkit.runs.schema import FieldTable

RECIPES = {"asg": "ASG", "gvu": "GvU"}  # module: its class


def load_recipe(name: str) -> type[Recipe]:
    """The class of a recipe by name, or of one's own by `my_package.my_module:MyRecipe`.

    Raises ConfigError for an unknown name, and ValueError for a class that cannot be imported or is no recipe.
    """
    if ":" in name:
        return _whole(import_own(name, "recipe", "MyRecipe"), name)
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}; this version knows {', '.join(RECIPES)}, and my_module:MyRecipe "
                          "for a class of your own")
    return getattr(import_module(f"asgkit.recipes.{name}"), RECIPES[name])


def _whole(kind: type, name: str) -> type[Recipe]:
    """A class of one's own, if it says what a run must know before it starts."""
    if lacking := [part for part in ("name", "Settings", "needs", "drawing", "fields") if not hasattr(kind, part)]:
        raise ValueError(f"recipe {name} is no Recipe, since it has no {', '.join(lacking)}; asgkit.recipes.base lists "
                         "what it must have, and asgkit.recipes.groups.GroupRecipe is a start")
    return kind


def make_recipe(tools: Tools) -> Recipe:
    """The recipe of a configuration, with its own settings checked.

    Raises ConfigError for settings that it does not have, ValueError for a class of one's own that is no recipe.
    """
    name = tools.config.recipe
    kind, section = load_recipe(name), section_of(name)
    own = getattr(tools.config, section) if section else None
    made = kind(replace(tools, own=_checked(kind.Settings, own or {}) if section == "own" else own))
    if not isinstance(made, Recipe):
        raise ValueError(f"recipe {name} is no Recipe: asgkit.recipes.base lists the methods and attributes that it "  # noqa: TRY004
                         "must have")
    return made


def _checked(settings: type[BaseModel] | None, given: dict[str, Any]) -> BaseModel | None:
    """The settings `own.*` of a class of one's own, by its `Settings`."""
    if settings is None:
        if given:
            raise ConfigError(f"own.{next(iter(given))} is set, and the recipe has no settings (its Settings is None)")
        return None
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        raise ConfigError("; ".join(f"own.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                          ) from error


def all_fields() -> FieldTable:
    """Every field that some recipe of this version logs, by name: what a log may hold."""
    return {name: field for recipe in RECIPES for name, field in load_recipe(recipe).fields.items()}
