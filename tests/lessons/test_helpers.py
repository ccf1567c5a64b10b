"""The helpers of the notebooks: pictures, digests, and exercises that a reader can solve, fail or leave."""

import math

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgkit.lessons.helpers import (
    EXERCISES,
    LIBRARIES,
    check,
    describe,
    digest,
    draw_map,
    judge,
    picture,
    pictures,
    sample_scenes,
    show_grid,
    show_table,
    start_notebook,
    versions,
)

# name: (a right answer, a wrong one)
ANSWERS = {
    "00.1": ("Solver", "proposer"), "00.2": ("G", "U"), "00.3": (24, 21),
    "01.1": (8 * 32 + 64 * 8, 8 * 32), "01.2": (2.0, 0.5), "01.3": (False, True),
    "02.1": ("which object is on the left?", "nice picture?"), "02.2": (0.41, 0.4), "02.3": (1.2247, 1.0),
    "03.1": (0.5983, 0.863), "03.2": (list("aaabbbc"), list("aabbccd")), "03.3": ("the red circle", "red circle"),
    "04.1": (math.log(8), 3.0), "04.2": ([7.0, 0.0, 0.0], [1.0, 0.0, 0.0]), "04.3": (0.3125, 0.375),
    "04.4": ("smaller", "larger"),
    "05.1": (1.0, 0.0), "05.2": (0.54, 0.64), "05.3": (1.0, 0.95), "05.4": (0, 3),
    "06.1": ("solver.framings=5", "framings=5"), "06.2": ("G", "U"), "06.3": ("generator/zero_variance", "zero"),
    "07.1": (2.3, 2.2), "07.2": (2.0, 4.0), "07.3": (9811, 4900), "07.4": (-2, 10),
    "08.1": (80, 82), "08.2": (23, 57.5), "08.3": (210.5, 400), "08.4": (1, 8),
    "09.1": (0.75, 4 / 6), "09.2": ("Upper left", "upper right"), "09.3": (0, 1.9459), "09.4": (6, 14),
    "10.1": (150, 90), "10.2": (0, -1), "10.3": (2, -2), "10.4": (0.8, 0.64),
    "11.1": (12.706, 1.96), "11.2": (0, 6), "11.3": (0.73, 0.9), "11.4": ("reward", "truth"),
    "12.1": (0.0215, 0.0107), "12.2": (63, 126), "12.3": (0.07, 0.01),
    "12.4": (([True] * 3 + [False] * 5, [False] * 3 + [True] * 4 + [False]), ([False, True], [True, True])),
    "13.1": (1 - 0.95**20, 0.05), "13.2": (0.06, 0.03), "13.3": (0.95, 1.0), "13.4": (0, 1),
    "14.1": (114_688, 57_344), "14.2": (29.4, 14.7), "14.3": (2, 4), "14.4": (1, 2),
    "15.1": (2.0794, 8), "15.2": (3072, 1536), "15.3": ("drawing_seeds", "seeds"), "15.4": ("smaller", "larger"),
    "pr.1": (0.648, 0.6), "pr.2": (2 / 3, 0.75), "pr.3": (2, 4), "pr.4": ("not shown", "holds"),
}


@pytest.fixture(autouse=True)
def _tidy():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def test_every_exercise_has_its_answers_here():
    assert set(ANSWERS) == set(EXERCISES)


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_exercises_know_right_from_wrong_and_from_none(name, capsys):
    right, wrong = ANSWERS[name]
    assert judge(name, right) is True
    assert judge(name, wrong) is False
    assert judge(name, None) is None
    check(name, None)
    check(name, wrong)
    check(name, right)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"exercise {name}: not attempted yet", f"exercise {name}: not yet. Hint: {EXERCISES[name].hint}",
                    f"exercise {name}: right"]


@pytest.mark.parametrize("name", sorted(ANSWERS))
@pytest.mark.parametrize("nonsense", ["???", [], object()])
def test_an_attempt_of_a_wrong_kind_is_wrong_and_no_error(name, nonsense):
    assert judge(name, nonsense) is False


def test_an_unknown_exercise_raises():
    with pytest.raises(KeyError):
        judge("99.9", 1)


def test_digest_depends_on_values_and_shape_not_on_the_integer_type():
    row = np.array([1, 2, 3, 4])
    assert digest(row) == digest(row.astype(np.uint8)) == digest([1, 2, 3, 4])
    assert digest(row) != digest(row.reshape(2, 2))
    assert digest(row) != digest(row + 1)
    assert len(digest(row)) == 12


def test_digest_refuses_floats():
    with pytest.raises(TypeError, match="round"):
        digest([0.5])


@given(st.lists(st.integers(0, 255), min_size=1, max_size=20), st.integers(0, 19))
def test_one_changed_pixel_changes_the_digest(values, place):
    changed = list(values)
    changed[place % len(values)] ^= 1
    assert digest(values) != digest(changed)


def test_show_grid_shows_each_picture_with_its_title():
    images = pictures(sample_scenes(5, seed=0))
    figure = show_grid(images, list("abcde"), columns=3)
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == list("abcde")
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(shown[4].images[0].get_array(), np.asarray(images[4]))


@pytest.mark.parametrize(("count", "titles"), [(0, []), (2, ["one"])])
def test_show_grid_refuses_no_pictures_and_missing_titles(count, titles):
    with pytest.raises(ValueError, match="as many titles"):
        show_grid(pictures(sample_scenes(count, seed=0)), titles)


def test_a_picture_is_small_sharp_enough_and_the_same_twice():
    import io

    from PIL import Image

    figure, axis = plt.subplots(figsize=(4, 2), layout="none")
    axis.plot(range(50), np.random.default_rng(0).normal(size=50))
    plain = io.BytesIO()
    figure.savefig(plain, format="png", dpi=120, bbox_inches="tight")
    first, again = picture(figure, dpi=120), picture(figure, dpi=120)
    assert first.data == again.data and len(first.data) < 0.6 * len(plain.getvalue())
    shown, full = Image.open(io.BytesIO(first.data)), Image.open(plain)
    assert shown.size == full.size
    difference = np.abs(np.asarray(shown.convert("RGB"), int) - np.asarray(full.convert("RGB"), int))
    assert difference.mean() < 3


def test_a_table_is_shown_under_its_title_and_escaped():
    shown = show_table(pd.DataFrame({"arm": ["a<b"], "gain": ["+1.0"]}), "Gains").data
    assert "<caption>Gains</caption>" in shown and "<td>a&lt;b</td><td>+1.0</td>" in shown


def test_scenes_follow_their_seed_and_the_fixed_properties():
    first, again, other = (pictures(sample_scenes(3, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(scene.things) == 2 for scene in sample_scenes(4, 0, count=2))


def test_describe_counts_what_is_drawn():
    figure, axis = plt.subplots()
    axis.plot([0, 1], [0, 1])
    axis.scatter([1, 2, 3], [1, 2, 3])
    axis.bar([0, 1], [1, 2])
    axis.set_title("two\nlines")
    assert describe(figure) == "axes 0 (two lines): 1 lines, 3 points, 2 bars"


def test_the_map_names_every_role_and_reward():
    texts = " ".join(text.get_text() for text in draw_map().axes[0].texts)
    for word in ("Proposer", "Solver", "Generator", "$R_p$", "$R_s$", "$R_g$", "frozen"):
        assert word in texts


def test_versions_lists_every_library():
    lines = versions().splitlines()
    assert [line.split()[0] for line in lines] == ["python", *LIBRARIES]


def test_start_notebook_limits_threads():
    import torch

    before = torch.get_num_threads()
    start_notebook()
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
