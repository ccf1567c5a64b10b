"""Grid files: names, order, strictness, and the shipped grids."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from asgkit.config import Config, ConfigError, resolve
from asgkit.grids.load import Grid, GridError, find_grid, load_grid, make_experiment, shipped_grids

MINIMAL = {"title": "t", "question": "q", "seeds": [0], "arms": {"joint": []}}
SHARED = ("checkpoint.every=30", "checkpoint.keep=100")


def grid(tmp_path: Path, **content: object) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **content}, sort_keys=False))
    return load_grid(path)


def refusal(tmp_path: Path, **content: object) -> str:
    with pytest.raises(GridError) as caught:
        grid(tmp_path, **content)
    assert "\n" not in str(caught.value) and "grid.yaml: " in str(caught.value)
    return str(caught.value).split("grid.yaml: ", 1)[1]


# -- names and runs -------------------------------------------------------------------------------------------------
def test_names_overrides_and_order_by_hand(tmp_path: Path) -> None:
    found = grid(tmp_path, bases=["clean", "registers"], seeds=[1, 0], shared=["checkpoint.every=30"],
                 arms={"joint": [], "u-only": ["schedule.generation=0"]}).experiments()
    assert [e.name for e in found] == [f"tiny-ar-{base}-{arm}-s{seed}" for seed in (0, 1)
                                       for base in ("clean", "registers") for arm in ("joint", "u-only")]
    assert found[1].overrides == ("backbone=tiny-ar", "base=clean", "seed=0", "checkpoint.every=30",
                                  "schedule.generation=0")
    assert found[1].preset == "tiny" and found[1].config().schedule.generation == 0


def test_an_arm_overrides_what_is_shared_and_narrows_the_grid(tmp_path: Path) -> None:
    found = grid(tmp_path, bases=["clean", "registers"], seeds=[0, 1], curve=True, shared=["schedule.steps=7"],
                 arms={"a": ["schedule.steps=9"], "b": {"bases": ["clean"], "seeds": [5], "curve": False}})
    assert [(run.arm, run.base, run.seed, run.curve) for run in found.runs()] == [
        ("a", "clean", 0, True), ("a", "registers", 0, True), ("a", "clean", 1, True), ("a", "registers", 1, True),
        ("b", "clean", 5, False)]
    assert [e.config().schedule.steps for e in found.experiments()] == [9, 9, 9, 9, 7]


def test_a_sweep_is_an_arm_per_value_with_every_key_set(tmp_path: Path) -> None:
    sweeps = {"lr": {"keys": ["solver.learning_rate", "generator.learning_rate"], "values": [1e-4, 3e-4]},
              "N": {"keys": ["solver.framings"], "values": [3], "seeds": [2]}}
    found = {e.name: e.config() for e in grid(tmp_path, arms={}, sweeps=sweeps).experiments()}
    assert list(found) == ["tiny-ar-clean-lr-0.0001-s0", "tiny-ar-clean-lr-0.0003-s0", "tiny-ar-clean-N-3-s2"]
    rates = found["tiny-ar-clean-lr-0.0003-s0"]
    assert rates.solver.learning_rate == rates.generator.learning_rate == 3e-4
    assert found["tiny-ar-clean-N-3-s2"].solver.framings == 3


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
       st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), min_size=1, max_size=4, unique=True))
def test_every_combination_is_there_once(seeds: list[int], arms: list[str]) -> None:
    made = Grid(title="t", question="q", seeds=seeds, bases=["clean", "registers"], arms={arm: [] for arm in arms})
    names = [run.experiment.name for run in made.runs()]
    assert len(set(names)) == len(names) == len(seeds) * len(arms) * 2


def test_a_checkpoint_as_base_gives_its_file_name_to_the_run() -> None:
    made = make_experiment("tiny", "tiny-ar", "my/tiny-ar-own.safetensors", "joint", 3)
    assert made.name == "tiny-ar-own-joint-s3" and made.config().base == "my/tiny-ar-own.safetensors"


# -- strictness -----------------------------------------------------------------------------------------------------
def test_unknown_keys_name_the_nearest(tmp_path: Path) -> None:
    assert "unknown key 'seed'; did you mean 'seeds'?" in refusal(tmp_path, seed=[1])
    assert "unknown key 'arms.a.base'; did you mean 'bases'?" in refusal(tmp_path, arms={"a": {"base": ["clean"]}})
    assert "'sweeps.N.key'; did you mean 'keys'?" in refusal(
        tmp_path, sweeps={"N": {"keys": ["solver.framings"], "values": [1], "key": 1}})


def test_configuration_errors_name_arm_and_key(tmp_path: Path) -> None:
    assert refusal(tmp_path, arms={"a": ["solver.framing=5"]}).startswith(
        "arm 'a', tiny-ar, seed 0: unknown key 'solver.framing'; did you mean 'solver.framings'?")
    assert "arm 'a'" in (text := refusal(tmp_path, arms={"a": ["solver.framings=0"]})) and "solver.framings" in text
    assert "unknown preset 'tny'" in refusal(tmp_path, preset="tny")
    assert "override 'steps' is not of the form" in refusal(tmp_path, shared=["steps"])


def test_what_would_make_a_name_lie_is_refused(tmp_path: Path) -> None:
    for text in ("seed=3", "base=registers", "backbone=tiny-ar", "preset=tiny"):
        assert "contradict the run's name" in refusal(tmp_path, arms={"a": [text]})
        assert "contradict the run's name" in refusal(tmp_path, shared=[text])
    assert "cannot be an arm" in refusal(tmp_path, arms={"../a": []})


def test_nothing_is_there_twice(tmp_path: Path) -> None:
    assert "seeds: Value error, holds something twice: [1, 1]" in refusal(tmp_path, seeds=[1, 1])
    assert "tiny-ar-clean-a-s1 is there twice" in refusal(tmp_path, arms={"a": {"seeds": [1, 1]}})
    assert "'N-3' a second time" in refusal(tmp_path, arms={"N-3": []},
                                            sweeps={"N": {"keys": ["solver.framings"], "values": [3]}})
    two = ["a/own.safetensors", "b/own.safetensors"]
    assert "the run tiny-ar-own-joint-s0 is there twice" in refusal(tmp_path, bases=two)
    path = tmp_path / "grid.yaml"
    path.write_text("title: t\nquestion: q\nseeds: [0]\narms:\n  a: []\n  a: [kl.rate=1]\n")
    with pytest.raises(GridError, match=r"grid.yaml: the key 'a' is there twice \(line 6\)"):
        load_grid(path)


def test_an_arm_cannot_name_what_the_grid_lacks(tmp_path: Path) -> None:
    assert "arm 'a': bases ['registers'] are not among the grid's ['clean']" in refusal(
        tmp_path, arms={"a": {"bases": ["registers"]}})


def test_files_that_are_no_grids(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    for text, words in (("- a\n", "not a mapping"), ("title: [\n", "not YAML"), ("title: t\n", "question: Field")):
        path.write_text(text)
        with pytest.raises(GridError, match=words):
            load_grid(path)
    assert "has no arms" in refusal(tmp_path, arms={})
    assert "arms.a.seeds" in refusal(tmp_path, arms={"a": {"seeds": []}})
    with pytest.raises(FileNotFoundError, match="did you mean 'headline'"):
        find_grid("headlines")
    with pytest.raises(FileNotFoundError, match="no grid"):
        load_grid(tmp_path / "none.yaml")
    assert issubclass(GridError, ConfigError), "the command line shows it as one line"


# -- the shipped grids ----------------------------------------------------------------------------------------------
ALL = ("tiny-ar", "tiny-flow", "tiny-diffusion")
PRESET = resolve("tiny")
RANDOM, ORACLE = {"random": ["control=random"]}, {"oracle": ["control=oracle"]}
RATES = {f"lr-{factor:g}": [f"solver.learning_rate={PRESET.solver.learning_rate * factor:g}",
                            f"generator.learning_rate={PRESET.generator.learning_rate * factor:g}"]
         for factor in (0.1, 10.0, 30.0)}


def runs(backbones: tuple[str, ...], bases: tuple[str, ...], seeds: int, arms: dict[str, list[str]]
         ) -> dict[str, Config]:
    """Names and configurations spelled out without the code under test."""
    return {f"{backbone}-{base}-{arm}-s{seed}": resolve(
                "tiny", [f"backbone={backbone}", f"base={base}", f"seed={seed}", *SHARED, *extra])
            for backbone in backbones for base in bases for arm, extra in arms.items() for seed in range(seeds)}


AR, CLEAN, REGISTERS = ("tiny-ar",), ("clean",), ("registers",)
SHIPPED = {
    "headline": runs(ALL, CLEAN, 5, {"joint": []}) | runs(ALL, CLEAN, 3, RANDOM | ORACLE),
    "registers": (runs(AR, REGISTERS, 5, {"joint": []}) | runs(AR, REGISTERS, 3, RANDOM)
                  | runs(AR, REGISTERS, 2, ORACLE)),
    "rates": runs(AR, CLEAN, 2, RATES),
    "vote": runs(AR, CLEAN + REGISTERS, 3, {"no-vote": ["control=random_vote"]}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_grids_hold_the_runs_that_the_results_rest_on(name: str) -> None:
    assert {e.name: e.config() for e in load_grid(find_grid(name)).experiments()} == SHIPPED[name]


@pytest.mark.parametrize("name", shipped_grids())
def test_every_shipped_grid_loads(name: str) -> None:
    made = load_grid(shipped_grids()[name])
    assert made.experiments() and made.question


def test_steps_of_the_loops_alone_match_the_joint_run() -> None:
    configs = {run.arm: run.experiment.config().schedule for run in load_grid(find_grid("coupling")).runs()}
    joint = PRESET.schedule
    cycle = joint.understanding + joint.generation
    assert configs["u-only"].steps == joint.steps * joint.understanding // cycle
    assert configs["g-only"].steps == joint.steps * joint.generation // cycle
