"""Exercises of the lessons on signals and pictures: notebooks 09 to 12."""

from __future__ import annotations

from typing import Any

import numpy as np

from asgkit.lessons.exercises import Exercise, near, word


def _gain_of_one_with_three_broken(attempt: Any) -> bool:
    before, after = (np.asarray(list(side), dtype=bool) for side in attempt)
    return before.shape == after.shape and after.sum() - before.sum() == 1 and (before & ~after).sum() == 3


SIGNALS: dict[str, Exercise] = {
    "09.1": Exercise(near(0.75), "Six pairs of a wrong and a right answer; a tie counts one half."),
    "09.2": Exercise(word("upper left"), "H_sc is on the horizontal axis and 0 here; STE is on the vertical one."),
    "09.3": Exercise(near(0.0), "H_sc sees only how the votes are spread, and all seven are equal."),
    "09.4": Exercise(near(6.0), "Agreement minus accuracy, after minus before."),
    "10.1": Exercise(near(150.0), "A joint cycle of 5 steps holds 3 U steps: 90 of them take 30 cycles."),
    "10.2": Exercise(near(0.0), "The adapter that draws is the Generator's, and no U step touches it."),
    "10.3": Exercise(near(2.0), "r(d) pairs U(t) with G(t + d)."),
    "10.4": Exercise(near(0.8), "Both right 0.64; one right, one wrong is a tie, 0.32, and a tie is half a win."),
    "11.1": Exercise(near(12.706, 0.05), "t of 1 degree of freedom is 12.706; the standard error of 1 and 3 is 1."),
    "11.2": Exercise(near(0.0), "(86 - 56) - (80 - 50)."),
    "11.3": Exercise(near(0.73), "All three right, or all three wrong: 0.9^3 + 0.1^3."),
    "11.4": Exercise(word("reward"), "Right is the horizontal axis of the figure."),
    "12.1": Exercise(near(0.0215, 5e-4), "Ten coins, at most one head, times two: 2 (1 + 10) / 1024."),
    "12.2": Exercise(near(63.0), "Wrong the first time and right the second: 0.5 x 0.5 of 252."),
    "12.3": Exercise(near(0.07), "The smallest of m p-values is multiplied by m."),
    "12.4": Exercise(_gain_of_one_with_three_broken, "Three turn from right to wrong, so four must turn from wrong to "
                                                     "right."),
}
