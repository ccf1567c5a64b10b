"""One run as a grid names it, and when two configurations are the same run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asgkit.config import Config, flatten, resolve


@dataclass(frozen=True)
class Experiment:
    """One run: its id `<backbone>-<base>-<arm>-s<seed>`, preset and overrides."""

    name: str
    preset: str
    overrides: tuple[str, ...]

    def config(self) -> Config:
        """The resolved configuration."""
        return resolve(self.preset, self.overrides)


def same_config(stored: Mapping[str, Any], wanted: Mapping[str, Any], preset: Mapping[str, Any]) -> bool:
    """Whether nested configurations agree in every stored key, and `wanted` is the preset in all others."""
    old, new, default = flatten(stored), flatten(wanted), flatten(preset)
    return old.items() <= new.items() and all(new[key] == default[key] for key in new.keys() - old.keys())
