"""Taught majorities against the truth of the pool's scenes."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from asgkit.report.tables.pseudo_labels import _thirds, check_labels
from asgkit.shapes.world import Scene, Thing, pool_scenes, render, render_pool

SCENES = [Scene((Thing("circle", "red", 5, 0, 1, 1),)), Scene((Thing("cross", "blue", 5, 4, 9, 9),) * 1)]


class Log:
    """A run that has nothing but a log."""

    def __init__(self, rows: list[tuple]) -> None:
        self.rows = rows

    def log(self, fields: list[str]) -> pd.DataFrame:
        return pd.DataFrame(self.rows, columns=fields)


def test_labels_are_right_wrong_or_undetermined() -> None:
    found = check_labels(Log([
        (1, "00000.png", "what color is the circle ?", "red", True),
        (1, "data/pool/00001.png", "what color is the cross ?", "red", True),  # wrong
        (2, "00000.png", "what color is the cross ?", "blue", True),  # there is none: no answer is right
        (2, "00000.png", "what color is the circle ?", "red", False),  # not taught
        (3, "00000.png", None, None, None),  # a G step
        (3, "holiday.jpg", "what color is the circle ?", "red", True),  # nobody knows its truth
        (3, "00009.png", "what color is the circle ?", "red", True),  # beyond the pool
    ]), SCENES)
    assert found["step"].tolist() == [1, 1, 2] and set(found["opening"]) == {"what color"}
    assert found["determined"].tolist() == [True, True, False] and found["right"].tolist() == [True, False, False]


def test_thirds_by_hand() -> None:
    table = pd.DataFrame({"step": [1] * 20 + [30] * 20, "opening": "how many", "determined": True,
                          "right": [True] * 15 + [False] * 5 + [False] * 20, "seed": ([0] * 10 + [1] * 10) * 2})
    rows = {(row[2], row[3]): row[4:] for row in _thirds("b", "joint", table)}
    assert rows["all", "early"] == (2, 20, 100.0, 75.0, 50.0, 100.0)
    assert rows["how many", "late"][:4] == (2, 20, 100.0, 0.0)
    assert ("all", "middle") not in rows


def test_seeds_with_few_questions_give_no_range() -> None:
    table = pd.DataFrame({"step": [1, 2, 3], "opening": "is there", "determined": True, "right": True, "seed": 0})
    assert all(np.isnan(row[8]) and row[7] == pytest.approx(100.0) for row in _thirds("b", "joint", table))


def test_pool_scenes_are_what_the_pool_shows(tmp_path) -> None:
    folder = render_pool(tmp_path / "pool", 4, seed=3)
    for i, scene in enumerate(pool_scenes(4, seed=3)):
        assert np.array_equal(np.asarray(Image.open(folder / f"{i:05d}.png")), render(scene))
