"""docs/method.md and the README: every link leads somewhere, and every field, key and function they name exists."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import yaml
from loops import open_trainer, small_config
from paths import ROOT

import asgkit
from asgkit import recipes
from asgkit.config import Config, flatten, keys, parse_override, resolve
from asgkit.recipes import all_fields
from asgkit.recipes.controls import CONTROLS
from asgkit.report.page.page import BLOCK, PAGE, fill_page
from asgkit.shapes.benchmark import drawing_benchmark

FIELDS = all_fields()
METHOD = ROOT / "docs" / "method.md"
RECIPES = ROOT / "docs" / "recipes.md"
CONTROL_PAGE = ROOT / "docs" / "controls.md"
RELEASED_PAGE = ROOT / "docs" / "released.md"
PAGES = [ROOT / "README.md", METHOD, RECIPES, ROOT / "docs" / "world.md", CONTROL_PAGE, RELEASED_PAGE,
         ROOT / "docs" / "real_backbones.md", ROOT / "AGENTS.md"]
LINKS = {"AGENTS.md": 2, "recipes.md": 7, "controls.md": 2, "released.md": 2, "world.md": 3}  # at least; else 10


def links(page: Path) -> list[str]:
    return [target for target in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in target]


def code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", page.read_text())


def names_of_the_package() -> set[str]:
    """Public functions and classes of every module, and the public attributes of the classes."""
    found: set[str] = set()
    for module in pkgutil.walk_packages(asgkit.__path__, "asgkit."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            if callable(thing) and getattr(thing, "__module__", "").startswith("asgkit"):
                found |= {name, *(f"{name}.{part}" for part in dir(thing) if isinstance(thing, type))}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert len(links(page)) >= LINKS.get(page.name, 10)
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_the_method_names_log_fields_that_exist() -> None:
    fields = [text for text in code(METHOD) if re.fullmatch(r"[a-z]+/[a-z_]+", text)]
    assert len(fields) >= 30 and not set(fields) - FIELDS.keys()


def test_the_method_names_settings_that_exist() -> None:
    settings = {key for text in code(METHOD) for key in re.findall(r"\b([a-z]+\.[a-z_]+)(?==|$)", text)}
    settings = {key for key in settings if not key.endswith((".py", ".md", ".w_"))}
    assert len(settings) >= 8 and not settings - set(keys())


def test_the_method_names_functions_that_exist() -> None:
    names = {re.sub(r"\(.*", "", text) for text in code(METHOD)}
    symbols = {name for name in names if re.fullmatch(r"[a-z]+(_[a-z]+)+|[A-Z][a-zA-Z]+(\.[a-z_]+)?", name)}
    symbols -= FIELDS.keys() | CONTROLS.keys() | {"generator_updates"}  # values of control, a grid
    assert len(symbols) >= 20 and not symbols - names_of_the_package()


def test_the_recipe_of_ones_own_on_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool_folder: Path
                                                   ) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", RECIPES.read_text(), flags=re.DOTALL)
    (tmp_path / "page_recipes.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    changes = {"recipe": "page_recipes:Bright", "own.power": 2.0}
    trainer = open_trainer(small_config(pool_folder, changes), tmp_path / "run")
    assert all(0 < reward < 1 for record in trainer.train_step() for reward in record["generator/rewards"])


def test_the_results_page_says_rightly_what_its_runs_cannot_show() -> None:
    """The limits at its top, held to the runs' own settings and to the benchmark."""
    runs = [yaml.safe_load(path.read_text()) for path in (ROOT / "results/measured/runs").glob("*/config.yaml")]
    assert len(runs) >= 260 and {run["solver"]["train_on"] for run in runs} == {"all"}
    assert {run["kl"]["rate"] for run in runs} == {0.0} and {run["solver"]["max_new_tokens"] for run in runs} == {1}
    assert sum(run["solver"]["update"] == "reinforce" for run in runs) == 3
    dev, test = ([prompt.text for prompt in drawing_benchmark(split, 42)] for split in ("dev", "test"))
    assert (len(test), sum(text in set(dev) for text in test), len(set(test))) == (252, 190, 114)


def test_every_recipe_is_on_the_page() -> None:
    assert re.findall(r"^## (\w+)$", RECIPES.read_text(), flags=re.MULTILINE) == list(recipes.RECIPES)


def test_the_page_of_controls_is_the_table_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?)\. \| (.+?)\. \|$", CONTROL_PAGE.read_text(), flags=re.MULTILINE)
    assert rows == [(name, c.matched, c.destroyed[0].upper() + c.destroyed[1:]) for name, c in CONTROLS.items()]
    assert list(CONTROLS) == list(get_args(Config.model_fields["control"].annotation))[1:]


def test_the_pages_name_settings_and_fields_that_exist() -> None:
    for page in PAGES:
        settings = {key for text in code(page) for key in re.findall(r"^([a-z]+\.[a-z_]+)=", text)}
        assert not {key for key in settings if not key.startswith("own.")} - set(keys()), page.name
    assert {text for text in code(CONTROL_PAGE) if text.startswith("control/")} == {
        name for name, field in FIELDS.items() if field.controls}


def test_the_ten_points_are_switches_and_the_preset_sets_each_where_the_page_says() -> None:
    rows = re.findall(r"^\| (\d+) \| .+ \| (`.+`) \| (.+?) \|$", RELEASED_PAGE.read_text(), flags=re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 11))
    own = {"tiny-ar": ("all", "autoregressive"), "tiny-flow": ("all", "flow", "tiny-flow"),
           "tiny-diffusion": ("all", "diffusion")}
    for number, switches, where in rows:
        wanted = [parse_override(text) for text in re.findall(r"`([^`]+)`", switches)]
        for backbone, names in own.items():
            released = flatten(resolve("released", {"backbone": backbone}).model_dump())
            says = any(name in re.split(r"[;,] ", where) for name in names)
            assert (released[wanted[0][0]] == wanted[0][1]) == says, (number, backbone)
            assert all(key in released for key, _ in wanted)


def test_the_rows_of_table_s1_that_the_page_gives_as_settings_are_the_presets() -> None:
    text = RELEASED_PAGE.read_text()
    paper = flatten(resolve("paper").model_dump())
    section = text[text.index("## Table S1") : text.index("## The paper's step")]
    given = dict(parse_override(one) for one in re.findall(r"`(pool[^`]+|precision[^`]+|kl[^`]+)`", section))
    assert given == {"pool.limit": 10_000, "precision": "bf16", "kl.rule": "adaptive"}
    assert all(paper[key] == value for key, value in given.items())


def test_the_method_stays_short_enough_to_look_things_up() -> None:
    assert len(METHOD.read_text().splitlines()) <= 190


def test_the_results_page_quotes_only_cells_of_the_table() -> None:
    """Every gain with its interval on the hand-ordered results page stands so in a table that a report makes."""
    folder = ROOT / "results" / "measured"
    tables = [pd.read_csv(path) for path in (folder / "tables").glob("table_*.csv")]
    known = {f"{r.delta:+.1f} [{r.low:+.1f}, {r.high:+.1f}]"
             for table in tables if "delta" in table for r in table.itertuples()}
    quoted = re.findall(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", (folder / "README.md").read_text())
    assert len(quoted) >= 100 and set(quoted) <= known


def test_the_tables_of_the_results_page_are_those_of_the_report() -> None:
    folder = ROOT / "results" / "measured"
    text = (folder / PAGE).read_text()
    assert len(BLOCK.findall(text)) >= 16 and fill_page(text, folder / "tables") == text
