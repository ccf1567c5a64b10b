"""The self-evolving loop cannot reach a label: not by import, not when the labelled modules do not exist."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import asgkit

ROOT = Path(asgkit.__file__).parent
METHOD = ("ask", "solve", "ste", "draw", "updates", "trainer")


def modules_in(*rooms: str) -> tuple[str, ...]:
    """Dotted names of every module in these folders, so that a new file is looked at from its first day."""
    paths = sorted(path for room in rooms for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py")
    return tuple(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


LEARNERS = modules_in("recipes", "learning", "stages")
LOOP = (*METHOD, "config", "errors", *LEARNERS, *modules_in("runs", "scale", "pool"), "backbones", "backbones.base",
        "backbones.roles", "backbones.prompts")
LABELLED = ("asgkit.shapes", "asgkit.scenes", "asgkit.evals", "sklearn")
BLIND = (*METHOD, *LEARNERS, "scale.team")  # to the model they run on


def tree_of(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module, package: str) -> set[str]:
    """Full names of everything a module imports, at any depth, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = package.split(".")[: -node.level] if node.level else []
            module = ".".join([*parent, *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_labelled(name: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in LABELLED)


@pytest.mark.parametrize("module", LOOP)
def test_the_loop_imports_no_labels(module):
    names = imported(tree_of(module), f"asgkit.{module}")
    assert {name for name in names if is_labelled(name)} == set()
    assert "importlib" not in names  # nor by a name that this test could not see


def test_loading_by_name_imports_backbones_and_what_the_user_named_only():
    tree = tree_of("backbones.loading")
    assert {name for name in imported(tree, "asgkit.backbones.loading") if is_labelled(name)} == set()
    calls = [ast.unparse(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call)
             and isinstance(node.func, ast.Name) and node.func.id == "import_module"]
    assert sorted(calls) == ["f'asgkit.backbones.{name}'", "where"]


BASE = ("ar", "codes", "network", "trunk", "tokenizer", "prompts", "scene_prompts", "language", "understand", "latent",
        "latent_drawing", "flow", "diffusion")  # what a shipped tiny model needs to read and draw


@pytest.mark.parametrize("module", BASE)
def test_a_tiny_base_names_its_world_without_importing_it(module):
    """The one exception is a list of words that the first edition's pre-training reads inside a function."""
    tree = tree_of(f"backbones.tiny.{module}")
    names = {name for node in tree.body for name in imported(ast.Module([node], []), "asgkit.backbones.tiny.x")
             if not isinstance(node, ast.FunctionDef)}
    assert {name for name in names if is_labelled(name)} == set()


@pytest.mark.parametrize("line", ["import sklearn.datasets", "from asgkit.shapes.text import QA",
                                  "from asgkit import evals", "from ..shapes import world", "from .. import shapes",
                                  "def f():\n    from asgkit.shapes import digits", "from ..scenes.text import QA",
                                  "import asgkit.scenes.world as w"])
def test_the_search_sees_every_kind_of_import(line):
    assert any(map(is_labelled, imported(ast.parse(line), "asgkit.backbones.base")))


CHILD = """
import importlib.abc, json, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("asgkit.shapes", "asgkit.scenes", "asgkit.evals", "sklearn.")):
            raise ModuleNotFoundError(f"{name} does not exist here")

sys.meta_path.insert(0, Absent())
sys.modules["sklearn"] = None  # the way to be absent that libraries who look for it understand
for name in ("asgkit.shapes", "asgkit.scenes", "asgkit.evals.oracle", "sklearn", "sklearn.datasets"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported: the test proves nothing")

from asgkit.config import from_dict
from asgkit.launch import train
train(from_dict(json.loads(sys.argv[1])), sys.argv[2])
found = [name for name in sys.modules if name.startswith(("asgkit.shapes", "asgkit.scenes", "asgkit.evals"))]
assert not found, found
"""


def test_a_whole_run_needs_only_a_folder_of_images(pool_folder, tmp_path):
    from loops import small_config

    config = small_config(pool_folder).model_dump_json()
    done = subprocess.run([sys.executable, "-W", "error", "-c", CHILD, config, str(tmp_path / "run")],
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 5 * 3


# -- one loop for every model --------------------------------------------------------------------------------------
FORBIDDEN = ("tiny", "autoregressive", "diffusion", "flow", "blip3o", "bagel", "vargpt", "janus")


def model_branches(tree: ast.Module) -> list[str]:
    """Attribute accesses and string constants (docstrings aside) by which a module could tell models apart."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented)
            and isinstance(node.body[0], ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "paradigm":
            found.append("paradigm")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found += [word for word in FORBIDDEN if word in node.value.lower()]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("hasattr", "getattr"):
            found += [node.func.id] if "backbone" in ast.unparse(node.args[0]) else []
        if isinstance(node, ast.Compare) and "spec.name" in ast.unparse(node):
            found.append("spec.name")
    return found


@pytest.mark.parametrize("module", BLIND)
def test_the_loop_has_no_branch_on_the_model(module):
    assert model_branches(tree_of(module)) == []


@pytest.mark.parametrize("line", ["if b.spec.paradigm == x: pass", "if name == 'tiny-ar': pass", "x = 'flow'",
                                  "if self.backbone.spec.name == y: pass", "hasattr(self.backbone, 'pred')"])
def test_the_search_sees_a_branch(line):
    assert model_branches(ast.parse(line))
