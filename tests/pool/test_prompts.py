"""Prompts of a text file: what is skipped, how places are named, and the schedule that all pools share."""

import logging

import pytest

from asgkit.pool.base import PoolError, PoolPrompt
from asgkit.pool.open import open_pool

LINES = "\ufeffa red circle\n\n  two blue squares \na red circle\n\t\na green ring\n"


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def test_each_line_is_a_prompt_named_by_its_place(prompts):
    pool = open_pool(prompts)
    assert pool.kind == "prompts"
    assert [pool.item(i) for i in range(len(pool))] == [
        PoolPrompt("prompts.txt:1", 0, "a red circle"), PoolPrompt("prompts.txt:3", 1, "two blue squares"),
        PoolPrompt("prompts.txt:6", 2, "a green ring")]


def test_empty_lines_and_repetitions_are_counted_and_logged(prompts, caplog):
    with caplog.at_level(logging.WARNING):
        report = open_pool(prompts).report
    assert (report.found, report.usable) == (6, 3)
    assert report.skipped == [("prompts.txt:2", "empty"), ("prompts.txt:4", "the same as prompts.txt:1"),
                              ("prompts.txt:5", "empty")]
    assert "3 of 6 lines skipped: prompts.txt:2 (empty)" in caplog.text


def test_a_line_that_is_no_text_is_skipped_alone(tmp_path):
    (tmp_path / "p.txt").write_bytes("größe\r\n".encode() + b"gr\xf6\xdfe\nplain\x0btext")
    pool = open_pool(tmp_path / "p.txt")
    assert [pool.item(i).text for i in range(len(pool))] == ["größe", "plain\x0btext"]
    assert pool.report.skipped == [("p.txt:2", "not text in UTF-8")]


def test_a_limit_keeps_the_first_of_equal_lines_and_the_order_of_the_file(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"prompt {i % 20}\n" for i in range(60)))
    subsets = {tuple(open_pool(tmp_path / "p.txt", limit=12, seed=seed).places) for seed in range(3)}
    assert len(subsets) == 1
    places = list(subsets.pop())
    assert len(places) == 12 and places == sorted(places) and set(places) < set(range(20))
    assert places != list(range(12))


def test_every_epoch_draws_each_prompt_once_and_ranks_share_one_schedule(tmp_path):
    (tmp_path / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(12)))
    alone = open_pool(tmp_path / "p.txt", seed=3)
    ranks = [open_pool(tmp_path / "p.txt", seed=3, rank=r, world_size=3) for r in range(3)]
    whole = [item.name for _ in range(4) for item in alone.next_batch(6)]
    assert sorted(whole[:12]) == sorted(whole[12:]) and whole[:12] != whole[12:]
    assert whole == [item.name for _ in range(4) for pool in ranks for item in pool.next_batch(2)]


def test_a_position_goes_on_and_a_prompt_changed_in_its_place_is_noticed(prompts):
    pool, other = open_pool(prompts, seed=1), open_pool(prompts, seed=1)
    pool.next_batch(4)
    state = pool.state_dict()
    other.load_state_dict(state)
    assert pool.next_batch(5) == other.next_batch(5)
    prompts.write_text(LINES.replace("green", "white"), encoding="utf-8")
    with pytest.raises(PoolError, match="usable prompts in .*prompts.txt are not those .*restore the file"):
        open_pool(prompts).load_state_dict(state)


@pytest.mark.parametrize(("text", "says"), [
    ("", "no lines in .*p.txt: write some prompts"),
    ("\n \n", "none of the 2 lines in .*p.txt can be used .first: p.txt:1, empty."),
])
def test_a_file_without_prompts_says_so(tmp_path, text, says):
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(PoolError, match=says):
        open_pool(tmp_path / "p.txt")


def test_a_limit_below_one_is_refused_in_the_words_of_the_pool(prompts):
    with pytest.raises(PoolError, match="at least 1 prompt or None, not 0"):
        open_pool(prompts, limit=0)
