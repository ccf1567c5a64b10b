"""The door to every pool: what a path is decides which, and what is none is refused with what would be one."""

import os

import pytest
from PIL import Image

from asgkit.pool.base import PoolError
from asgkit.pool.folder import ImagePool
from asgkit.pool.open import data_files, open_pool
from asgkit.pool.prompts import PromptPool


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_of_images_is_the_pool_it_always_was(photos):
    settings = {"size": 4, "limit": 4, "seed": 2, "rank": 1, "world_size": 2}
    pool, plain = open_pool(str(photos), **settings), ImagePool(photos, **settings)
    assert type(pool) is ImagePool and pool.state_dict() == plain.state_dict()
    assert [item.name for item in pool.next_batch(5)] == [item.name for item in plain.next_batch(5)]


def test_a_pool_says_whether_it_yields_what_a_recipe_needs(photos, tmp_path):
    (tmp_path / "P.TXT").write_text("a cat\n")
    pictures, prompts = open_pool(photos), open_pool(tmp_path / "P.TXT")
    pictures.expect({"pictures"}, "asg")
    prompts.expect({"pictures", "prompts"}, "gvu")
    assert isinstance(prompts, PromptPool)
    with pytest.raises(PoolError, match="P.TXT yields prompts, and recipe=asg needs pictures: give a folder"):
        prompts.expect({"pictures"}, "asg")
    with pytest.raises(PoolError, match="photos yields pictures, and recipe=mine needs prompts: give a text file"):
        pictures.expect({"prompts"}, "mine")


@pytest.mark.parametrize(("name", "says"), [
    ("absent", "no image folder at .*absent: create it"),
    ("absent.txt", "no pool at .*: there is no such file; a pool is"),
    ("absent.parquet", "there is no such file"), ("photos/0.png", "it is none of these; a pool is a folder of images"),
    ("empty", "no image files in .*empty: expected"), ("pipe.txt", "it is none of these"),
    ("pipe.parquet", "it is none of these"),
])
@pytest.mark.timeout(20)
def test_what_is_no_pool_is_refused_with_what_would_be_one(photos, tmp_path, name, says):
    (tmp_path / "empty").mkdir()
    for pipe in ("pipe.txt", "pipe.parquet"):
        os.mkfifo(tmp_path / pipe)
    with pytest.raises(PoolError, match=says):
        open_pool(tmp_path / name)


def test_a_column_is_refused_where_there_are_no_rows(photos, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    for path in (photos, tmp_path / "p.txt"):
        with pytest.raises(PoolError, match="pool.column=text is for the rows of a data set"):
            open_pool(path, column="text")


def test_a_pipe_among_shards_is_left_out_and_said(tmp_path, caplog):
    os.mkfifo(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").touch()
    assert data_files(tmp_path) == [tmp_path / "b.parquet"]
    assert "skipped a.parquet: not a regular file" in caplog.text
