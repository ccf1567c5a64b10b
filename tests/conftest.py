"""Shared by the tests of the model and the loop: one small pool, one open model, one thread."""

import os

os.environ.pop("COLUMNS", None)  # rich reads it on import: a width set by the terminal would wrap what tests compare

import numpy as np
import pytest
import torch
from PIL import Image

from asgkit.backbones import load_backbone
from asgkit.shapes.world import render, render_pool, sample_scene


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums in one order: the same bits on every run, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pool_folder(tmp_path_factory):
    return render_pool(tmp_path_factory.mktemp("pool"), 20)


@pytest.fixture(scope="session")
def scenes():
    rng = np.random.default_rng(5)
    return [sample_scene(rng, "dev") for _ in range(6)]


@pytest.fixture(scope="session")
def pictures(scenes):
    return [Image.fromarray(render(scene)) for scene in scenes]


@pytest.fixture(scope="session")
def tiny():
    """The clean base with fresh adapters; tests that change weights open their own."""
    return load_backbone("tiny-ar")
