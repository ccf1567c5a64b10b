"""Grids as data: one YAML file says which runs answer a question, and becomes a list of experiments.

    title: Loop coupling (Table 5 and S5)
    question: what does each loop give alone, and does joint training give more?
    preset: tiny
    backbones: [tiny-ar]              # and bases, seeds: every combination is a run
    shared: [checkpoint.every=30]     # overrides of every arm, written as for `asgkit train`
    curve: true                       # measure the kept checkpoints too
    reference: {u-: u-only, "": joint}  # the arm that each arm is compared with, by the start of its name
    arms:
      joint: []
      u-only: [schedule.generation=0, schedule.steps=90]
      long: {overrides: [schedule.steps=750], seeds: [0], curve: false}
    sweeps:
      framings: {keys: [solver.framings], values: [3, 5]}   # the arms framings-3 and framings-5

The shipped ones are in `asgkit/grids/`; `asgkit batch` runs one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from asgkit.config import ConfigError, measured_name, parse_override
from asgkit.grids.experiment import Experiment

FOLDER = Path(__file__).parent
IN_NAME = ("preset", "backbone", "base", "seed")  # these make the run's id, so an override would make it lie
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]*")


class GridError(ConfigError):
    """A grid that cannot be read or whose runs do not resolve; the message names file, arm and key."""


def make_experiment(preset: str, backbone: str, base: str, arm: str, seed: int, overrides: Sequence[str] = ()
                    ) -> Experiment:
    """The experiment `<backbone>-<base>-<arm>-s<seed>`; of a checkpoint's path only the file's name counts.

    Raises ConfigError when an override sets what the name already says, or when the arm's name is no file name.
    """
    if not ARM_NAME.fullmatch(arm):
        raise ConfigError(f"{arm!r} cannot be an arm: use letters, digits and . _ + = - (it becomes a folder)")
    for text in overrides:
        if (key := parse_override(text)[0]) in IN_NAME:
            raise ConfigError(f"override {text!r} would contradict the run's name: give {key} beside the overrides")
    head = (f"backbone={backbone}", f"base={base}", f"seed={seed}")
    return Experiment(f"{measured_name(backbone, base)}-{arm}-s{seed}", preset, (*head, *overrides))


@dataclass(frozen=True)
class GridRun:
    """One run of a grid: what its name is made of, its further overrides, and whether its curve is measured."""

    preset: str
    backbone: str
    base: str
    arm: str
    seed: int
    overrides: tuple[str, ...]
    curve: bool

    @property
    def experiment(self) -> Experiment:
        """Name, preset and all overrides, as `run_experiment` takes them."""
        return make_experiment(self.preset, self.backbone, self.base, self.arm, self.seed, self.overrides)


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _list_is_overrides(value: Any) -> Any:
    return {"overrides": value} if isinstance(value, list) else value


def _names(values: list[Any]) -> list[Any]:
    if len(set(map(str, values))) != len(values):
        raise ValueError(f"holds something twice: {values}")
    return values


class Arm(_Strict):
    """Overrides of one arm; what is None is taken from the grid."""

    overrides: list[str] = []
    backbones: list[str] | None = Field(None, min_length=1)
    bases: list[str] | None = Field(None, min_length=1)
    seeds: list[int] | None = Field(None, min_length=1)
    curve: bool | None = None
    reference: str | None = Field(None, min_length=1)


class Sweep(_Strict):
    """One factor: an arm per value, all `keys` set to it."""

    keys: list[str] = Field(min_length=1)
    values: list[int | float | str] = Field(min_length=1)
    seeds: list[int] | None = Field(None, min_length=1)

    def arms(self, name: str) -> dict[str, Arm]:
        """`<name>-<value>` for every value."""
        return {f"{name}-{value}": Arm(overrides=[f"{key}={value}" for key in self.keys], seeds=self.seeds)
                for value in self.values}


class Grid(_Strict):
    """Arms x seeds x backbones x bases of one preset; `experiments()` are its runs."""

    GROUPS: ClassVar[dict[str, type[BaseModel]]] = {"arms": Arm, "sweeps": Sweep}

    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    preset: str = "tiny"
    backbones: list[str] = Field(["tiny-ar"], min_length=1)
    bases: list[str] = Field(["clean"], min_length=1)
    seeds: list[int] = Field(min_length=1)
    shared: list[str] = []
    curve: bool = False
    reference: str | dict[str, str] = {}  # an arm, of this grid or another, or one per start of an arm's name
    arms: dict[str, Annotated[Arm, BeforeValidator(_list_is_overrides)]] = {}
    sweeps: dict[str, Sweep] = {}

    _unique = field_validator("backbones", "bases", "seeds")(_names)

    def all_arms(self) -> dict[str, Arm]:
        """The arms, then those of the sweeps. Raises GridError when a sweep makes an arm that is there already."""
        found = dict(self.arms)
        for name, sweep in self.sweeps.items():
            for arm, content in sweep.arms(name).items():
                if arm in found:
                    raise GridError(f"sweep {name!r} makes the arm {arm!r} a second time: rename one of them")
                found[arm] = content
        return found

    def reference_of(self, arm: str) -> str | None:
        """The arm that a report compares `arm` with beside the base: its own choice, else the grid's by the longest
        start of its name; None where there is none, or where that is the arm itself.
        """
        own = self.arms[arm].reference if arm in self.arms else None
        starts = self.reference if isinstance(self.reference, dict) else {"": self.reference}
        fitting = sorted((start for start in starts if arm.startswith(start)), key=len)
        found = own or (starts[fitting[-1]] if fitting else None)
        return None if found == arm else found

    def runs(self) -> list[GridRun]:
        """Every run, seed by seed: what is stopped early has whole seeds of all arms.

        Raises GridError when a run does not resolve or two runs have one name, naming arm and key.
        """
        found: dict[str, GridRun] = {}
        for run in sorted(self._combinations(), key=lambda run: run.seed):  # stable: arms keep their order
            name = _resolved_name(run)
            if name in found:
                raise GridError(f"arm {run.arm!r}: the run {name} is there twice (bases {found[name].base!r} and "
                                f"{run.base!r}): name a seed once, and rename an arm or checkpoint of one name")
            found[name] = run
        return list(found.values())

    def experiments(self) -> list[Experiment]:
        """The runs as experiments: id, preset and overrides, all of which resolve."""
        return [run.experiment for run in self.runs()]

    def _combinations(self) -> Iterator[GridRun]:
        for backbone in self.backbones:
            for base in self.bases:
                for name, arm in self.all_arms().items():
                    if backbone in (arm.backbones or self.backbones) and base in (arm.bases or self.bases):
                        curve = self.curve if arm.curve is None else arm.curve
                        yield from (GridRun(self.preset, backbone, base, name, seed,
                                            (*self.shared, *arm.overrides), curve)
                                    for seed in arm.seeds or self.seeds)


def _resolved_name(run: GridRun) -> str:
    try:
        experiment = run.experiment
        experiment.config()
    except ConfigError as error:
        raise GridError(f"arm {run.arm!r}, {run.backbone}, seed {run.seed}: {error}") from error
    return experiment.name


def load_grid(path: str | Path) -> Grid:
    """Read and check a grid file; every run of it resolves.

    Raises GridError naming the file, and in it the arm and the key (with the nearest known one); FileNotFoundError
    when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no grid {path}: name a YAML file, or a shipped grid ({', '.join(shipped_grids())})")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _NoDuplicates)
        if not isinstance(content, dict):
            raise GridError("is not a mapping: begin with title:, question:, seeds: and arms:")
        grid = Grid.model_validate(content)
        if not grid.all_arms():
            raise GridError("has no arms: add arms: {joint: []}")
        _check_arm_choices(grid)
        grid.runs()
    except yaml.YAMLError as error:
        raise GridError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise GridError(f"{path}: {'; '.join(map(_sentence, error.errors()))}") from error
    except GridError as error:
        raise GridError(f"{path}: {error}") from error
    return grid


def _check_arm_choices(grid: Grid) -> None:
    """An arm may narrow backbones and bases; one that the grid lacks would be left out without a word."""
    for name, arm in grid.arms.items():
        for what in ("backbones", "bases"):
            strange = sorted(set(getattr(arm, what) or []) - set(getattr(grid, what)))
            if strange:
                raise GridError(f"arm {name!r}: {what} {strange} are not among the grid's {getattr(grid, what)}: "
                                "add them there")


class _NoDuplicates(yaml.SafeLoader):
    """YAML keeps the last of two equal keys; here the second arm of one name is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different; raises GridError naming one that is there twice."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise GridError(f"the key {key!r} is there twice (line {key_node.start_mark.line + 1}): rename one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _sentence(error: Any) -> str:
    """One pydantic error as a sentence; an unknown key names the nearest known one."""
    *parents, last = error["loc"]
    where = ".".join(map(str, error["loc"]))
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}"
    known = list((Grid.GROUPS[str(parents[0])] if parents else Grid).model_fields)
    near = difflib.get_close_matches(str(last), known, n=1, cutoff=0.0)
    return f"unknown key {where!r}; did you mean {near[0]!r}? Keys here are {', '.join(known)}"


def shipped_grids() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def find_grid(name: str) -> Path:
    """The file of a grid given by path or by a shipped name. Raises FileNotFoundError naming the nearest."""
    shipped = shipped_grids()
    if name in shipped:
        return shipped[name]
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise FileNotFoundError(f"no grid {name!r}; {hint}Name the path of a YAML file or a shipped one: "
                            f"{', '.join(shipped)}")
