"""Rows of data sets: small parquet files and a webdataset shard made here; nothing comes from a network."""

import io
import os
import re
import sys
import tarfile
import tomllib
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from loops import small_config
from paths import ROOT
from PIL import Image

from asgkit.launch import train
from asgkit.pool.base import PoolError, PoolPrompt
from asgkit.pool.open import open_pool
from asgkit.pool.rows import EXTRA, NoDataSet, RowPool, choose_column, open_rows
from asgkit.runs.directory import read_log

TEXTS = ["a red circle", "", "two squares", "a red circle", None, " a ring "]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test, no hub, and no progress bars of the files that tests write."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(shade: int, side: int = 10) -> Image.Image:
    return Image.new("RGB", (side + 4, side), (shade, 0, 255 - shade))


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    picture(shade).save(stream, "PNG")
    return stream.getvalue()


def write_pictures(path: Path, contents: list[bytes | None], **columns: list) -> Path:
    """A parquet file with a column `image` of encoded pictures, and other columns."""
    features = Features({"image": datasets.Image()} | {name: Value("string") for name in columns})
    cells = [content and {"bytes": content, "path": None} for content in contents]
    Dataset.from_dict({"image": cells} | columns, features=features).to_parquet(path)
    return path


def write_texts(path: Path, **columns: list) -> Path:
    Dataset.from_dict(columns).to_parquet(path)
    return path


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as shard:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


# -- pictures -------------------------------------------------------------------------------------------------------
def test_an_image_column_yields_pictures_named_by_their_row(tmp_path):
    pool = open_pool(write_pictures(tmp_path / "photos.parquet", [png(10 * i) for i in range(4)]), size=8)
    assert pool.kind == "pictures" and pool.names == [f"photos.parquet:{i}" for i in range(4)]
    assert pool.load(3).size == (8, 8) and pool.load(3).getpixel((4, 4)) == (30, 0, 225)
    native = open_pool(tmp_path / "photos.parquet")
    assert np.array_equal(np.asarray(native.load(2)), np.asarray(picture(20)))
    assert sorted(item.index for item in pool.next_batch(4)) == [0, 1, 2, 3]


def test_broken_and_missing_pictures_are_skipped_with_reasons(tmp_path):
    path = write_pictures(tmp_path / "p.parquet", [png(1), b"no picture", None, png(2)[:40], png(3)])
    pool = open_pool(path)
    assert pool.names == ["p.parquet:0", "p.parquet:4"] and pool.load(1).getpixel((0, 0)) == (3, 0, 252)
    reasons = dict(pool.report.skipped)
    assert sorted(reasons) == ["p.parquet:1", "p.parquet:2", "p.parquet:3"]
    assert reasons["p.parquet:1"] == "not an image that can be identified"
    assert reasons["p.parquet:2"] == "no picture in this row"
    assert pool.unit == "rows of column 'image'"


def test_a_data_set_of_broken_pictures_is_refused(tmp_path):
    with pytest.raises(PoolError, match="none of the 1 rows of column 'image' in .*p.parquet can be used"):
        open_pool(write_pictures(tmp_path / "p.parquet", [b"no picture"]))


def test_a_row_may_name_a_file_but_not_a_pipe(tmp_path):
    picture(7).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    cells = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "b.png", "c.png")]
    rows = Dataset.from_dict({"image": cells}, features=Features({"image": datasets.Image(decode=False)}))
    pool = RowPool("saved", rows, "image")
    assert pool.names == ["saved:0"] and pool.load(0).getpixel((0, 0)) == (7, 0, 248)
    reasons = dict(pool.report.skipped)
    assert "not a regular file" in reasons["saved:1"] and "No such file" in reasons["saved:2"]


def test_a_picture_changed_in_its_row_is_noticed(tmp_path):
    state = open_pool(write_pictures(tmp_path / "p.parquet", [png(1), png(2)])).state_dict()
    open_pool(tmp_path / "p.parquet").load_state_dict(state)
    (tmp_path / "p.parquet").unlink()
    changed = open_pool(write_pictures(tmp_path / "p.parquet", [png(1), png(3)]))
    assert changed.load(1).getpixel((0, 0)) == (3, 0, 252), "the library's cache must not hide a new file"
    with pytest.raises(PoolError, match="usable images in .*p.parquet are not those .*restore the data set"):
        changed.load_state_dict(state)


@pytest.mark.slow
def test_a_run_trains_on_rows_and_goes_on_after_a_stop(tmp_path):
    """Three steps at once, and two with one after a resume, draw the same rows."""
    path = write_pictures(tmp_path / "p.parquet", [png(20 * i) for i in range(6)], caption=list("abcdef"))
    drawn = []
    for name, parts in (("whole", (3,)), ("parts", (2, 3))):
        for steps in parts:
            config = small_config(path, {"schedule.steps": steps, "schedule.images": 2, "pool.column": "image"})
            run = train(config, tmp_path / name, resume=True)
        drawn.append(read_log(run.log_path)["image"].tolist())
    assert drawn[0] == drawn[1] and len(drawn[0]) == 6 and set(drawn[0]) == {f"p.parquet:{i}" for i in range(6)}
    with pytest.raises(PoolError, match="yields prompts, and recipe=asg needs pictures"):
        train(small_config(path, {"pool.column": "caption"}), tmp_path / "prompts")
    assert not (tmp_path / "prompts").exists()


# -- texts ----------------------------------------------------------------------------------------------------------
def test_a_text_column_yields_prompts(tmp_path):
    pool = open_pool(write_texts(tmp_path / "t.parquet", prompt=TEXTS, n=list(range(6))))
    assert pool.kind == "prompts"
    assert [pool.item(i) for i in range(3)] == [
        PoolPrompt("t.parquet:0", 0, "a red circle"), PoolPrompt("t.parquet:2", 1, "two squares"),
        PoolPrompt("t.parquet:5", 2, "a ring")]
    assert pool.report.skipped == [("t.parquet:1", "empty"), ("t.parquet:3", "the same as t.parquet:0"),
                                   ("t.parquet:4", "empty")]


# -- the column -----------------------------------------------------------------------------------------------------
def test_the_column_may_be_named_and_images_go_before_texts(tmp_path):
    path = write_pictures(tmp_path / "p.parquet", [png(1)], caption=["a square"])
    assert open_pool(path).kind == "pictures"
    assert open_pool(path, column="caption").next_batch(1) == [PoolPrompt("p.parquet:0", 0, "a square")]


@pytest.mark.parametrize(("kinds", "column", "says"), [
    ({"a": "prompts", "n": "int64"}, "b", "x has no column 'b'; there are: a (prompts), n (int64)"),
    ({"a": "prompts", "n": "int64"}, "n", "holds neither images nor texts (int64) in its column 'n'; there are: a"),
    ({"a": "pictures", "b": "pictures", "c": "prompts"}, None, "which column of x? Name one with pool.column; there"),
    ({"a": "prompts", "b": "prompts"}, None, "there are: a (prompts), b (prompts)"),
    ({"n": "int64"}, None, "there are: n (int64)"),
    ({"__key__": "prompts"}, None, "there are: __key__ (prompts)"),
])
def test_a_column_that_is_not_clear_lists_those_there_are(kinds, column, says):
    with pytest.raises(PoolError, match=re.escape(says)):
        choose_column(kinds, column, "x")


def test_a_column_of_another_type_is_refused_by_the_file_itself(tmp_path):
    path = write_texts(tmp_path / "t.parquet", prompt=["a"], n=[1], parts=[["x", "y"]])
    with pytest.raises(PoolError, match=r"\(int64\) in its column 'n'; there are: prompt \(prompts\), n \(int64\), p"):
        open_pool(path, column="n")


# -- files and folders ----------------------------------------------------------------------------------------------
def test_a_webdataset_shard_yields_its_pictures_or_its_texts(tmp_path):
    members = {f"{i:03d}.{kind}": content for i in range(3)
               for kind, content in (("png", png(50 * i)), ("txt", f"shade {i}".encode()), ("json", b'{"n": 1}'))}
    path = write_shard(tmp_path / "shard.tar", members)
    pool = open_pool(path, size=8)
    assert pool.names == ["shard.tar:0", "shard.tar:1", "shard.tar:2"]
    assert [pool.load(i).getpixel((0, 0))[0] for i in range(3)] == [0, 50, 100]
    texts = open_pool(path, column="txt")
    assert [texts.item(i).text for i in range(3)] == ["shade 0", "shade 1", "shade 2"]


def test_a_folder_of_shards_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "data" / "[b] *").mkdir(parents=True)
    (tmp_path / "data" / ".cache").mkdir()
    write_texts(tmp_path / "data" / "[b] *" / "1.parquet", prompt=["third"])
    write_texts(tmp_path / "data" / "A.parquet", prompt=["first", "second"])
    write_texts(tmp_path / "data" / ".cache" / "0.parquet", prompt=["hidden"])
    (tmp_path / "data" / "README.md").write_text("not counted")
    pool = open_pool(tmp_path / "data")
    assert [(item.name, item.text) for item in map(pool.item, range(len(pool)))] == [
        ("data:0", "first"), ("data:1", "second"), ("data:2", "third")]


def test_a_folder_of_images_stays_one_beside_a_data_set(tmp_path):
    write_texts(tmp_path / "labels.parquet", label=["cat"])
    picture(1).save(tmp_path / "a.png")
    assert open_pool(tmp_path).names == ["a.png"]
    with pytest.raises(PoolError, match="pool.column=label is for the rows of a data set"):
        open_pool(tmp_path, column="label")


def test_a_folder_of_both_kinds_is_refused(tmp_path):
    write_texts(tmp_path / "a.parquet", prompt=["a"])
    write_shard(tmp_path / "b.tar", {"0.txt": b"a"})
    with pytest.raises(PoolError, match=r"several kinds \(.parquet, .tar\)"):
        open_pool(tmp_path)


def test_files_that_differ_in_columns_or_are_damaged_are_refused_with_the_reason(tmp_path):
    write_texts(tmp_path / "a.parquet", prompt=["a"])
    write_texts(tmp_path / "b.parquet", other=[1])
    with pytest.raises(NoDataSet, match="cannot read the data set .*column names don't match"):
        open_pool(tmp_path)
    for name in ("bad.parquet", "bad.tar"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(NoDataSet, match=f"cannot read the data set .*{name}: "):
            open_pool(tmp_path / name)


# -- the hub and the library ----------------------------------------------------------------------------------------
def test_a_name_that_is_no_folder_is_looked_for_on_the_hub_and_both_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PoolError, match="no image folder at my/photos: create it .*no data set of that name: .*Hub"):
        open_pool("my/photos")


def test_a_data_set_of_the_hub_is_read_by_its_name(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return {"test": Dataset.from_dict({"q": ["no"]}), "train": Dataset.from_dict({"q": ["a cat", "a dog"]})}

    monkeypatch.setattr(datasets, "load_dataset", load)
    pool = open_pool("own.er/na_me", column="q")
    assert asked == ["own.er/na_me"] and [item.name for item in map(pool.item, (0, 1))] == ["na_me:0", "na_me:1"]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: {"a": None, "b": None})
    with pytest.raises(PoolError, match="no split train, and several others: a, b"):
        open_pool("own.er/na_me")


def test_without_the_library_the_extra_is_named_as_pyproject_declares_it(tmp_path, monkeypatch):
    path = write_texts(tmp_path / "t.parquet", prompt=["a"])
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PoolError, match=re.escape(f"the extra `data` of this package: pip install '{EXTRA}'")):
        open_rows(path, [path])
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert declared["data"] == [EXTRA] and EXTRA in declared["test"]
