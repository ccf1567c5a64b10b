"""Exercises of the lessons on real backbones and one's own: notebooks 14 and 15."""

from __future__ import annotations

import math

from asgkit.lessons.exercises import Exercise, near, word

REAL: dict[str, Exercise] = {
    "14.1": Exercise(near(114_688, 0.5), "rank x (in + out), and both are 3584."),
    "14.2": Exercise(near(29.4, 0.05), "Two bytes for each of 14.7 billion numbers."),
    "14.3": Exercise(near(2.0), "Count those whose paradigm is not autoregressive."),
    "14.4": Exercise(near(1.0), "In lock step the processes work on the same images: together they are one."),
    "15.1": Exercise(near(math.log(8)), "Each of 8 colours has the probability 1/8; the loss is -ln of it."),
    "15.2": Exercise(near(3072, 0.5), "Two layers, each 8 x (32 + 96) + 8 x (32 + 32)."),
    "15.3": Exercise(word("drawing_seeds"), "One seed and prompt must give one drawing, in any batch."),
    "15.4": Exercise(word("smaller"), "Dividing logits by 0.5 doubles every gap between them."),
}
