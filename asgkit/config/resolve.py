"""From `key=value` to a configuration: presets, overrides, strict keys that name the nearest one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from asgkit.config.presets import PRESETS, SCENES, TUNED
from asgkit.config.reads import DEFAULT_RECIPE, refuse_unread
from asgkit.config.sections import KL_RULES, Config
from asgkit.errors import ConfigError


def measured_name(backbone: str, base: str) -> str:
    """`<backbone>-<base>`, as results name a base; of a path only the file's name counts, of a module its class."""
    return f"{backbone.rpartition(':')[2]}-{Path(base).stem.removeprefix(f'{backbone}-')}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the configuration."""
    found: list[str] = []
    for name, field in model.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation))
                 if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if kinds:
            found += keys(kinds[0], f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    if key not in keys() and not re.fullmatch(r"own\.\w+", key):
        raise ConfigError(f"unknown key {key!r}; {_hint(key)}")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = value


def _hint(key: str) -> str:
    """What the user may have meant: a key of that group, of that last name, or of similar letters."""
    known = keys()
    inside = [k for k in known if k.startswith(f"{key}.")]
    same_name = [k for k in known if k.rpartition(".")[2] == key]
    near = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if inside:
        return f"it is a group: set one of its keys, {', '.join(inside)}"
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    groups = sorted({f"{k.partition('.')[0]}." if "." in k else k for k in known})
    return f"keys are, or begin with, {', '.join(groups)}"


def _copy(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in tree.items()}


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as YAML (`3`, `1e-4`, `true`, `null`, text)."""
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"override {text!r} is not of the form key=value, for example seed=3")
    try:
        parsed = yaml.safe_load(value) if value.strip() else ""  # `control=` means the empty text, not null
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: its value opens a bracket or quote and does not close it, or is "
                          f"otherwise not YAML; plain text goes in quotes, {key}='\"a [b]\"'") from error
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-4 as text
        try:
            parsed = float(parsed)
        except ValueError:
            pass
    return key.strip(), parsed


def resolve(preset: str = "tiny", overrides: Iterable[str] | dict[str, Any] = ()) -> Config:
    """The configuration of a preset with overrides (`["seed=3"]` or `{"seed": 3}`).

    Raises ConfigError for an unknown preset, an unknown key (naming the nearest) or a value out of range.
    """
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS, n=1, cutoff=0.0)
        raise ConfigError(f"unknown preset {preset!r}; did you mean {near[0]!r}? Presets: {sorted(PRESETS)}")
    tree = _copy(PRESETS[preset])
    pairs = dict(overrides.items() if isinstance(overrides, dict) else map(parse_override, overrides))
    _choose_kl(tree, pairs)
    backbone, base = (str(pairs.get(key, Config.model_fields[key].default)) for key in ("backbone", "base"))
    tuned = TUNED.get((preset, backbone), {})
    if preset != "paper" and measured_name(backbone, base).startswith(f"{backbone}-scenes"):
        tuned = tuned | SCENES
    for key, value in (tuned | pairs).items():
        if key == "preset" and value != preset:  # it would rename the run and change nothing else
            raise ConfigError(f"preset={value} cannot be an override: choose it by --preset {value}")
        _set(tree, key, value)
    refuse_unread(str(tree.get("recipe", DEFAULT_RECIPE)), pairs)
    return from_dict(tree)


def _choose_kl(tree: dict[str, Any], pairs: dict[str, Any]) -> None:
    """A rule that is chosen brings its own constants instead of the preset's; a rate that is chosen says which rule
    it belongs to (`KLConfig`)."""
    if "kl.rule" in pairs:
        tree["kl"] = {}
    elif "kl.rate" in pairs and "kl" in tree:
        tree["kl"] = KL_RULES[tree["kl"]["rule"]] | {k: v for k, v in tree["kl"].items() if k != "rule"}


def from_dict(tree: dict[str, Any]) -> Config:
    """Validate a nested dictionary (for example a run's config.yaml); raises ConfigError naming each bad key."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_sentence, error.errors()))) from error


def _sentence(error: Any) -> str:
    """One error of pydantic with the key that it is about, if it is about one."""
    where = ".".join(map(str, error["loc"]))
    return (f"{where}: " if where else "") + error["msg"].removeprefix("Value error, ") + _given(error["input"])


def _given(value: Any) -> str:
    return "" if isinstance(value, dict | BaseModel) else f", not {value!r}"
