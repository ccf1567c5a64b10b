"""Backbones by name, and classes of one's own by `my_module:MyModel`."""

import sys

import pytest
import torch
from loops import SMALL, moved, weights

from asgkit import launch as launch_module
from asgkit.backbones import load_backbone
from asgkit.config import measured_name, resolve

OWN = '''
from asgkit.backbones.tiny.ar import TinyAR


class Mine(TinyAR):
    @classmethod
    def load(cls, base, **settings):
        opened = super().load("clean", **settings)
        opened.given = (base, settings)
        return opened


class Strange:
    @classmethod
    def load(cls, base, **settings):
        return base
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module outside the package, and one that imports what is not there."""
    (tmp_path / "own_models").mkdir()
    (tmp_path / "own_models" / "mine.py").write_text(OWN)
    (tmp_path / "own_models" / "needy.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "own_models"]:
        del sys.modules[name]


@pytest.mark.usefixtures("own")
def test_a_class_of_ones_own_is_imported_and_gets_every_setting():
    opened = load_backbone("own_models.mine:Mine", base="my/folder", lora_rank=4, lora_alpha=6, lora_dropout=0.1,
                           seed=3)
    assert type(opened).__module__ == "own_models.mine"
    assert opened.given == ("my/folder", {"rank": 4, "alpha": 6, "dropout": 0.1, "seed": 3, "device": "cpu",
                                          "precision": "fp32"})


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "message"), [
    ("own_models.mine:Other", "module own_models.mine has no Other"),
    ("own_models.absent:Mine", "no module own_models.absent; install it, or start with PYTHONPATH"),
    ("absent_models.mine:Mine", "no module absent_models; install it"),
    ("own_models.mine:Strange", "is no Backbone"),
    ("own_models/mine.py:Mine", "must be of the form my_package.my_module:MyModel"),
    (":Mine", "must be of the form"),
    ("own_models.mine:", "must be of the form"),
])
def test_what_cannot_be_opened_says_why(name, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(name)


@pytest.mark.usefixtures("own")
def test_an_import_that_fails_inside_the_module_keeps_its_own_error():
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_backbone("own_models.needy:Mine")


def test_results_name_a_class_of_ones_own_by_the_class():
    assert measured_name("own_models.mine:Mine", "weights/one.safetensors") == "Mine-one"
    assert measured_name("tiny-ar", "clean") == "tiny-ar-clean"


@pytest.mark.usefixtures("own")
def test_the_loop_trains_and_resumes_it_by_its_configuration(pool_folder, tmp_path):
    changes = SMALL | {"backbone": "own_models.mine:Mine", "pool.path": str(pool_folder), "schedule.understanding": 1,
                       "schedule.generation": 1, "schedule.images": 1, "generator.votes": 1}
    seen = []

    def opened(config, device=None):
        seen.append(open_backbone(config, device))
        seen.append(weights(seen[0]))
        return seen[0]

    open_backbone = launch_module.open_backbone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_module, "open_backbone", opened)
        launch_module.train(resolve("smoke", changes | {"schedule.steps": 2}), tmp_path / "run")
    assert moved(seen[1], seen[0])
    again = launch_module.train(resolve("smoke", changes | {"schedule.steps": 3}), tmp_path / "run", resume=True)
    assert again.newest_valid_checkpoint().step == 3


def test_fresh_adapters_follow_the_seed():
    first, again, other = (load_backbone("tiny-ar", seed=seed).role_parameters("solver") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
