"""Samples: which pictures a sheet shows and where, and that a run writes one per checkpoint."""

from pathlib import Path

import numpy as np
from loops import open_trainer, small_config
from PIL import Image

from asgkit.runs.samples import BEST, FRAME, OTHER, ROWS, TILE, write_samples

SIDE = TILE + 2 * FRAME


def plain(value: int, side: int = 24) -> Image.Image:
    return Image.new("RGB", (side, side), (value, value, value))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_sheet_by_hand(tmp_path):
    groups = [[plain(10), plain(20)], [plain(30), plain(40, 200)]]
    path = write_samples(tmp_path / "samples", 7, [plain(1), plain(2)], groups, [[0.1, 0.9], [0.5, 0.5]])
    assert path.name == "step_000007.png"
    sheet = pixels(path)
    assert sheet.shape == (2 * SIDE, 3 * SIDE, 3)
    middles = sheet[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE, 0]
    assert middles.tolist() == [[1, 10, 20], [2, 30, 40]]
    frames = [[tuple(map(int, sheet[y * SIDE, x * SIDE])) for x in range(3)] for y in range(2)]
    assert frames == [[OTHER, OTHER, BEST], [OTHER, BEST, OTHER]]  # of equals the first


def test_a_sheet_has_few_rows(tmp_path):
    many = [plain(i) for i in range(ROWS + 3)]
    path = write_samples(tmp_path, 1, many, [[image] for image in many], [[0.0]] * len(many))
    assert pixels(path).shape == (ROWS * SIDE, 2 * SIDE, 3)


def test_a_run_writes_a_sheet_per_checkpoint_that_shows_its_drawings(pool_folder, tmp_path):
    # phases U G U G U G U G with a checkpoint every 3 steps: blocks 1-3, 4-6 and 7-8, of which 2, 4 and 8 draw first
    config = small_config(pool_folder, {"schedule.steps": 8, "schedule.understanding": 1, "schedule.generation": 1,
                                        "checkpoint.every": 3})
    trainer = open_trainer(config, tmp_path / "run")
    trainer.fit()
    sheets = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in sheets] == ["step_000002.png", "step_000004.png", "step_000008.png"]
    shape = (SIDE * min(ROWS, config.schedule.images), SIDE * (1 + config.generator.candidates), 3)
    assert all(pixels(path).shape == shape for path in sheets)
