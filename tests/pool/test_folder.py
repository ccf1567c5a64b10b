"""The image pool: awkward files, the schedule, resume."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from asgkit.pool.folder import ImagePool, PoolError, fit_square, to_rgb

RED, BLUE = (255, 0, 0), (0, 0, 255)


def two_halves(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def fill(folder: Path, count: int) -> Path:
    for i in range(count):
        Image.new("RGB", (8, 8), (i * 20 % 256, i, 0)).save(folder / f"{i:03d}.png")
    return folder


def close(pixel, colour, tolerance=12) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: to be turned 90 degrees clockwise
    two_halves().save(tmp_path / "turned.jpg", exif=exif, quality=95, subsampling=0)
    image = ImagePool(tmp_path).load(0)
    assert image.size == (20, 40)
    assert close(image.getpixel((10, 2)), RED) and close(image.getpixel((10, 37)), BLUE)


def test_cmyk_becomes_rgb(tmp_path):
    two_halves().convert("CMYK").save(tmp_path / "print.jpg", quality=95, subsampling=0)
    image = ImagePool(tmp_path).load(0)
    assert image.mode == "RGB"
    assert close(image.getpixel((3, 10)), RED) and close(image.getpixel((36, 10)), BLUE)


def test_alpha_is_laid_over_black(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0))  # white hidden below full transparency
    image.putpixel((0, 0), (200, 100, 50, 255))
    image.save(tmp_path / "a.png")
    loaded = ImagePool(tmp_path).load(0)
    assert loaded.getpixel((0, 0)) == (200, 100, 50) and loaded.getpixel((3, 3)) == (0, 0, 0)


def test_a_palette_with_a_transparent_entry_is_laid_over_black(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=1)
    loaded = ImagePool(tmp_path).load(0)
    assert loaded.getpixel((0, 0)) == RED and loaded.getpixel((3, 3)) == (0, 0, 0)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)).save(tmp_path / "deep.png")
    image = ImagePool(tmp_path).load(0)
    shades = [image.getpixel((x, y)) for y in range(2) for x in range(2)]
    assert shades == [(v, v, v) for v in (0, 100, 200, 255)]


def test_float_images_are_scaled_by_their_own_range():
    image = to_rgb(Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]
    assert to_rgb(Image.fromarray(np.full((2, 2), 3.0, np.float32))).getpixel((0, 0)) == (0, 0, 0)


def test_webp_bmp_tiff_and_the_first_gif_frame_load(tmp_path):
    for name in ("a.webp", "b.bmp", "c.tif", "D.JPEG"):
        Image.new("RGB", (8, 8), RED).save(tmp_path / name)
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "e.gif", save_all=True, append_images=frames[1:])
    pool = ImagePool(tmp_path)
    assert pool.names == ["D.JPEG", "a.webp", "b.bmp", "c.tif", "e.gif"]
    assert all(close(pool.load(i).getpixel((4, 4)), RED) for i in range(5))


def test_bad_files_are_counted_and_logged_with_reasons(tmp_path, caplog):
    fill(tmp_path, 2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("this is not a picture")
    (tmp_path / "zero.webp").write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "notes.txt").write_text("not even counted")
    (tmp_path / "._000.png").write_bytes(b"hidden, not counted")
    with caplog.at_level(logging.WARNING):
        report = ImagePool(tmp_path).report
    assert (report.found, report.usable) == (6, 2)
    reasons = dict(report.skipped)
    assert sorted(reasons) == ["cut.jpg", "gone.png", "text.png", "zero.webp"]
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["text.png"] == "not an image that can be identified"
    assert reasons["zero.webp"] == "empty file"
    assert "No such file" in reasons["gone.png"]
    assert not any(str(tmp_path) in reason for reason in reasons.values())
    assert "4 of 6 image files skipped" in caplog.text


@pytest.mark.timeout(20)
def test_a_pipe_is_skipped_and_not_waited_for(tmp_path):
    fill(tmp_path, 2)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    pool = ImagePool(tmp_path)
    assert pool.report.skipped == [("linked.png", "not a regular file"),
                                   ("pipe.png", "not a regular file")]
    (tmp_path / "001.png").unlink()
    os.mkfifo(tmp_path / "001.png")
    with pytest.raises(PoolError, match="001.png could be read at the start, not now"):
        pool.load(1)


def test_a_name_that_is_not_utf8_is_skipped(tmp_path):
    fill(tmp_path, 1)
    Path(f"{tmp_path}/bad\udcff.png").write_bytes((tmp_path / "000.png").read_bytes())
    report = ImagePool(tmp_path).report
    assert (report.found, report.usable) == (2, 1)
    report.skipped[0][0].encode("utf-8")


@pytest.mark.parametrize(("make", "says"), [
    (lambda f: f / "absent", "no image folder at"),
    (lambda f: f, "no image files in .*png"),
    (lambda f: (f / "x.png").write_text("text") and f, "none of the 1 image files .*x.png"),
])
def test_a_pool_without_images_says_what_to_do(tmp_path, make, says):
    folder = make(tmp_path)
    with pytest.raises(PoolError, match=says) as caught:
        ImagePool(folder)
    assert str(folder) in str(caught.value)


def test_sub_folders_are_scanned_and_names_are_relative(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("z.png", "b/a.png", ".hidden/c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    assert ImagePool(tmp_path).names == ["b/a.png", "z.png"]


@pytest.mark.parametrize("size", [8, 100])
def test_the_centre_square_is_cut_and_resized(size):
    image = Image.new("RGB", (30, 10), BLUE)
    image.paste(RED, (10, 0, 20, 10))
    square = fit_square(image, size)
    assert square.size == (size, size)
    assert square.getpixel((0, 0)) == RED == square.getpixel((size - 1, size - 1))


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(ImagePool(tmp_path, size=24).load(0)), noise)


def test_drawing_on_a_loaded_image_does_not_change_the_cache(tmp_path):
    pool = ImagePool(fill(tmp_path, 3), size=8)
    before = np.asarray(pool.load(1))
    pool.load(1).paste(BLUE, (0, 0, 8, 8))
    assert np.array_equal(np.asarray(pool.load(1)), before)


def test_the_cache_is_bounded_and_off_for_large_images(tmp_path):
    fill(tmp_path, 5)
    assert len(ImagePool(tmp_path, size=8, cache=2)._decoded) == 2
    assert len(ImagePool(tmp_path, size=65)._decoded) == 0
    assert len(ImagePool(tmp_path)._decoded) == 0


def test_an_image_that_vanishes_raises_by_name(tmp_path):
    pool = ImagePool(fill(tmp_path, 2))
    (tmp_path / "001.png").unlink()
    with pytest.raises(PoolError, match="001.png"):
        pool.load(1)


def test_a_limit_takes_the_same_subset_for_every_seed_and_fills_up_past_bad_files(tmp_path):
    fill(tmp_path, 12)
    (tmp_path / "bad.png").write_text("x")
    subsets = {tuple(ImagePool(tmp_path, limit=5, seed=seed).names) for seed in range(3)}
    assert len(subsets) == 1
    assert len(next(iter(subsets))) == 5 and next(iter(subsets)) != tuple(f"{i:03d}.png" for i in range(5))
    assert len(ImagePool(tmp_path, limit=12)) == 12


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_each_epoch_is_a_permutation_and_a_pure_function_of_seed_and_epoch(pools, seed, epoch):
    first, second = pools
    first.seed = second.seed = seed
    second.index_for(0)  # another epoch in the cache must not matter
    order = [first.index_for(epoch * 7 + i) for i in range(7)]
    first._order = second._order = None
    assert sorted(order) == list(range(7))
    assert order == [second.index_for(epoch * 7 + i) for i in reversed(range(7))][::-1]


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = fill(tmp_path_factory.mktemp("pool"), 7)
    return ImagePool(folder), ImagePool(folder)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_every_image_occurs_in_both_phases(tmp_path, world_size):
    # 40 images and a cycle of 5 steps: without a new shuffle per epoch each image would keep its phase.
    ranks = [ImagePool(fill(tmp_path, 40), rank=r, world_size=world_size) for r in range(world_size)]
    seen = {"U": set(), "G": set()}
    for step in range(40 * 20 // world_size):
        phase = "U" if step % 5 < 3 else "G"
        seen[phase] |= {ranks[r].next_batch(1)[0].index for r in range(world_size)}
    assert seen["U"] == seen["G"] == set(range(40))


def test_ranks_share_an_epoch_without_overlap(tmp_path):
    ranks = [ImagePool(fill(tmp_path, 12), rank=r, world_size=3) for r in range(3)]
    drawn = [image.index for pool in ranks for _ in range(2) for image in pool.next_batch(2)]
    assert sorted(drawn) == list(range(12))
    assert {pool.position for pool in ranks} == {12}
    with pytest.raises(PoolError, match="rank"):
        ImagePool(tmp_path, rank=3, world_size=3)


def test_a_restored_position_continues_the_order(tmp_path):
    pool, other = ImagePool(fill(tmp_path, 5), seed=3), ImagePool(tmp_path, seed=3)
    pool.next_batch(7)
    other.load_state_dict(pool.state_dict())
    assert [i.name for i in pool.next_batch(9)] == [i.name for i in other.next_batch(9)]


def test_a_changed_pool_cannot_be_resumed(tmp_path):
    state = ImagePool(fill(tmp_path, 3)).state_dict()
    (tmp_path / "002.png").unlink()
    with pytest.raises(PoolError, match="restore the folder"):
        ImagePool(tmp_path).load_state_dict(state)
