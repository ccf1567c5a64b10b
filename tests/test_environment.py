"""The environment files say the same thing, and the interpreter that runs the tests agrees with them."""

import ast
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import pytest_socket
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT

# conda-forge's name -> the distribution it installs.
CONDA_NAMES = {"matplotlib-base": "matplotlib"}
# Entries of environment.yml that are tools of the environment, not imports of the package.
CONDA_TOOLS = {"python", "pip", "make"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def by_name(lines: list[str]) -> dict[str, Requirement]:
    """Requirement lines keyed by canonical name; a name given twice is an error."""
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        assert name not in found, f"{name} is listed twice"
        found[name] = requirement
    return found


def read_lock() -> dict[str, Version]:
    lines = (ROOT / "requirements-lock.txt").read_text().splitlines()
    locked = by_name([line for line in lines if line and not line.startswith("#")])
    for name, requirement in locked.items():
        assert re.fullmatch(r"==[^,+*]+", str(requirement.specifier)), f"{name} is not pinned to one version"
    return {name: Version(str(requirement.specifier)[2:]) for name, requirement in locked.items()}


def read_conda() -> tuple[dict[str, str], list[str]]:
    """(conda requirement by name, pip lines) of environment.yml."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip_block,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    lines = [entry for entry in entries if isinstance(entry, str)]
    pairs = [re.fullmatch(r"([a-z-]+)(.*)", line).groups() for line in lines]
    return {name: spec for name, spec in pairs}, pip_block


LOCK = read_lock()
CORE = by_name(PROJECT["dependencies"])
DIRECT = CORE | by_name(PROJECT["optional-dependencies"]["test"])
CONDA, CONDA_PIP = read_conda()


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_each_direct_dependency_is_locked_inside_its_range(name: str) -> None:
    assert name in LOCK, f"add {name} to requirements-lock.txt"
    assert DIRECT[name].specifier.contains(LOCK[name])


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_the_installed_version_lies_inside_the_range(name: str) -> None:
    assert DIRECT[name].specifier.contains(importlib.metadata.version(name), prereleases=True)


@pytest.mark.parametrize("name", sorted(LOCK))
def test_locked_packages_accept_the_first_release_of_our_python(name: str) -> None:
    """Debian's 3.11.2 is in use: a package that asks for 3.11.5 would break `make setup` there."""
    wanted = importlib.metadata.metadata(name)["Requires-Python"]
    assert wanted is None or SpecifierSet(wanted).contains("3.11.0"), wanted


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_ranges_have_a_floor_and_a_ceiling(name: str) -> None:
    assert {clause.operator for clause in DIRECT[name].specifier} == {">=", "<"}


@pytest.mark.parametrize("name", sorted(set(CONDA) - CONDA_TOOLS))
def test_conda_ranges_are_those_of_pyproject(name: str) -> None:
    ours = CORE[CONDA_NAMES.get(name, name)]
    assert Requirement(f"{name}{CONDA[name]}").specifier == ours.specifier


def test_conda_pip_block_is_the_lock_and_then_the_package() -> None:
    assert CONDA_PIP[-1] == "-e .[test]"
    for name, requirement in by_name(CONDA_PIP[:-1]).items():
        assert str(requirement.specifier) == f"=={LOCK[name]}"


def test_conda_lists_every_dependency_once() -> None:
    from_conda = {CONDA_NAMES.get(name, name) for name in set(CONDA) - CONDA_TOOLS}
    from_pip = set(by_name(CONDA_PIP[:-1]))
    assert not from_conda & from_pip
    assert from_conda | from_pip == set(CORE)


def test_conda_python_is_the_floor_of_pyproject() -> None:
    assert CONDA["python"].lstrip("=") == PROJECT["requires-python"].removeprefix(">=")
    assert "sys.version_info < (3, 11)" in MAKEFILE and PROJECT["requires-python"] == ">=3.11"


def test_torch_is_pinned_alike_in_makefile_and_lock() -> None:
    (pinned,) = re.findall(r"^TORCH := (\S+)$", MAKEFILE, flags=re.MULTILINE)
    assert Version(pinned) == LOCK["torch"]


def test_the_installed_torch_is_the_tested_one() -> None:
    assert Version(importlib.metadata.version("torch")).public == str(LOCK["torch"])


# Distributions that work through a command or as a plugin, and where it stands in the Makefile or in .ci/run.
COMMANDS = {"jupyterlab": "-m jupyterlab", "ruff": "-m ruff", "nbval": "--nbval ", "pytest-xdist": "-n $(WORKERS)",
            "pytest-timeout": "--timeout=", "import-linter": "lint-imports", "ipykernel": "kernel_name=python3"}
DECLARED = [canonicalize_name(Requirement(line).name)
            for line in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())]
INSTALLED = importlib.metadata.packages_distributions()


@cache
def imported_modules() -> set[str]:
    """The first name of everything that the package, its tests and its notebooks import, inside functions too."""
    sources = [path.read_text() for room in ("asgkit", "tests") for path in (ROOT / room).rglob("*.py")]
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = [cell["source"] for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        sources += ["".join(line for line in cell if not line.startswith(("%", "!"))) for cell in cells]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in
            plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}}


def modules_of(name: str) -> set[str]:
    """What a distribution installs; an extra that is not installed here is taken to be named like its module."""
    return {module for module, owners in INSTALLED.items() if name in map(canonicalize_name, owners)} or {name}


def test_every_declared_distribution_is_imported_or_run_by_a_command() -> None:
    commands = MAKEFILE + (ROOT / ".ci" / "run").read_text()
    found = imported_modules()
    unused = {name for name in DECLARED if not modules_of(name) & found}
    assert unused == set(COMMANDS), "declared and never imported, or listed as a command and imported"
    assert [name for name, command in COMMANDS.items() if command not in commands] == []


def test_the_search_for_imports_sees_functions_and_notebooks_and_no_made_up_name() -> None:
    assert {"papermill", "bitsandbytes", "sklearn", "pytest"} <= imported_modules()
    assert modules_of("pillow") == {"PIL"} and modules_of("bitsandbytes") == {"bitsandbytes"}
    assert "tqdm" not in imported_modules() and "tqdm" not in DECLARED, "one progress library: rich"


def test_version_is_written_once() -> None:
    import asgkit

    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert asgkit.__version__ == PROJECT["version"] == cited


@pytest.mark.parametrize(
    "file", ["pyproject.toml", "environment.yml", "requirements-lock.txt", "Makefile", ".ci/run"]
)
def test_torchvision_is_nowhere(file: str) -> None:
    assert "torchvision" not in (ROOT / file).read_text()


def test_no_module_imports_torchvision() -> None:
    pattern = re.compile(r"^\s*(?:from|import)\s+torchvision\b", flags=re.MULTILINE)
    assert [p.name for p in (ROOT / "asgkit").rglob("*.py") if pattern.search(p.read_text())] == []


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Under `make test` the outer make's options would reach this one through the environment.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=cwd, env=env, check=False, capture_output=True, text=True, timeout=60
    )


def test_help_is_the_default_and_lists_every_target() -> None:
    rules = re.findall(r"^([a-z][a-z-]*(?: [a-z-]+)*):(?!=)(?! export)", MAKEFILE, flags=re.MULTILINE)
    targets = {name for rule in rules for name in rule.split()}
    printed = make()
    assert printed.returncode == 0, printed.stderr
    listed = set(re.findall(r"^  ([a-z-]+)  ", printed.stdout, flags=re.MULTILINE))
    assert listed == targets
    assert {"setup", "reproduce", "test", "test-fast", "lab", "notebooks", "lint", "clean"} <= listed


def test_each_target_with_a_wait_tells_how_long() -> None:
    for line in make("help").stdout.splitlines():
        if line.startswith("  "):
            assert re.search(r"\(.*(second|minute|until)", line), line


@pytest.mark.parametrize("name", ["", ".", "/tmp/elsewhere", ".venv/../..", "asgkit"])
def test_an_environment_outside_the_clone_is_refused(name: str) -> None:
    """Setting up begins with deleting the folder, so a wrong name must stop everything."""
    refused = make("-n", "setup", f"VENV={name}")
    assert refused.returncode != 0 and "starts with .venv" in refused.stderr


def fake_python(folder: Path, version: str) -> Path:
    """A `python3` that reports an old version and fails whatever it is asked to run."""
    path = folder / "old python3"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit 0\nexit 1\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("case", ["old", "missing"])
def test_an_unsuitable_python_is_named_with_the_fix(case: str, tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    for file in ("Makefile", "pyproject.toml", "requirements-lock.txt"):
        (clone / file).write_text((ROOT / file).read_text())
    python = fake_python(tmp_path, "3.9.2") if case == "old" else tmp_path / "absent"
    refused = make("setup", f"PY={python}", cwd=clone)
    assert refused.returncode != 0
    assert "error:" in refused.stderr and "make setup PY=" in refused.stderr
    assert ("Python 3.9.2" in refused.stderr) == (case == "old")
    assert not (clone / ".venv").exists()


def test_ci_entry_is_executable_and_strict() -> None:
    entry = ROOT / ".ci" / "run"
    assert entry.stat().st_mode & 0o111
    text = entry.read_text()
    assert "set -euo pipefail" in text and "make test" in text
    subprocess.run(["bash", "-n", str(entry)], check=True)


def test_sockets_are_blocked() -> None:
    """192.0.2.1 is reserved for documentation: nothing answers there even where the network is open."""
    with pytest.warns(UserWarning), pytest.raises(pytest_socket.SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)


def test_localhost_stays_open_for_notebook_kernels() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), timeout=5) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_python_is_new_enough() -> None:
    assert sys.version_info >= (3, 11)


SANITIZE = re.findall(
    r"^regex: (.*)\nreplace: (.*)$", (ROOT / "tests" / "nbval_sanitize.cfg").read_text(), flags=re.MULTILINE
)


def sanitise(text: str) -> str:
    for pattern, replacement in SANITIZE:
        text = re.sub(pattern, replacement, text)
    return text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (" 40%|####      | 2/5 [00:01<00:02,  1.4it/s]", " 60%|######    | 3/5 [00:02<00:01,  1.1it/s]"),
        ("/tmp/ipykernel_41/123.py:3: note", "/tmp/ipykernel_977/88123.py:3: note"),
        ("took 3.2 s", "took 14 s"),
        ("done in 950 ms, peak 1.5 GB", "done in 1002.4 ms, peak 731 MB"),
        ("<Figure at 0x7f3ab2c01>", "<Figure at 0x7fffb2c99>"),
    ],
)
def test_the_sanitiser_hides_what_varies(one: str, other: str) -> None:
    assert sanitise(one) == sanitise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("STE 0.412 nats", "STE 0.413 nats"),
        ("accuracy 71.2% of 500", "accuracy 71.4% of 500"),
        ("3 steps, loss 1.20", "4 steps, loss 1.20"),
        ("majority: 5 of 7", "majority: 6 of 7"),
    ],
)
def test_the_sanitiser_keeps_every_measured_number(one: str, other: str) -> None:
    assert sanitise(one) != sanitise(other)


HANGING = """
import subprocess, time
def test_sleeps(): time.sleep(40)
def test_after(): pass
def test_waits():
    with subprocess.Popen(["sleep", "40"]) as process:
        process.wait()
"""


@pytest.mark.slow
def test_a_test_that_hangs_fails_or_ends_with_its_process(tmp_path: Path) -> None:
    """By the settings of pyproject.toml and the options of the Makefile, with a second for each of many."""
    (tmp_path / "test_hanging.py").write_text(HANGING)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    (options,) = re.findall(r"^XDIST := -n \$\(WORKERS\) (.*)$", MAKEFILE, flags=re.MULTILINE)
    assert MAKEFILE.count("$(XDIST)") == 3 and settings["timeout"] < 360 < settings["faulthandler_timeout"]
    scaled = settings | {"timeout": 1, "faulthandler_timeout": 2}
    names = ("timeout", "timeout_method", "faulthandler_timeout", "faulthandler_exit_on_timeout")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist.plugin", "-p", "pytest_timeout", "-n1",
               *options.split(), *(f"-o{name}={scaled[name]}" for name in names), "--rootdir", ".", "."]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # the others take seconds at every start
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "test_sleeps - Failed: Timeout" in done.stdout and "1 passed" in done.stdout
    assert "crashed while running 'test_hanging.py::test_waits'" in done.stdout
