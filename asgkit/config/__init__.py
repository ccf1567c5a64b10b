"""One typed, strict, frozen configuration; `resolve("tiny", ["seed=3"])` makes one from a preset and overrides."""

from asgkit.config.presets import PRESETS, SCENES
from asgkit.config.resolve import flatten, from_dict, keys, measured_name, parse_override, resolve
from asgkit.config.roles import GeneratorConfig, SolverConfig
from asgkit.config.sections import Config, PoolConfig
from asgkit.errors import ConfigError

__all__ = ["PRESETS", "SCENES", "Config", "ConfigError", "GeneratorConfig", "PoolConfig", "SolverConfig", "flatten",
           "from_dict", "keys", "measured_name", "parse_override", "resolve"]
