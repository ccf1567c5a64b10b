"""Exercises of the lessons on tables: notebooks 07, 08 and 13."""

from __future__ import annotations

from asgkit.lessons.exercises import Exercise, near

TABLES: dict[str, Exercise] = {
    "07.1": Exercise(near(2.3), "50.6 was at least 50.55 and 52.8 at most 52.85."),
    "07.2": Exercise(near(2.0), "sqrt(p (1 - p) / n) = sqrt(0.8 x 0.2 / 400), times 100."),
    "07.3": Exercise(near(9800, 50), "2.80 sqrt(0.5 / n) = 0.02, since each run adds p (1 - p) / n = 0.25 / n."),
    "07.4": Exercise(near(-2.0), "A benchmark asks in one plain wording, so compare 78 with 80."),
    "08.1": Exercise(near(80.0), "The mean of the six categories, each counted once."),
    "08.2": Exercise(near(23.0), "0.575 x 40."),
    "08.3": Exercise(near(210.5, 1.0), "The variance of a prompt's mean of four is (1 + 3 rho) / 4 of one image's."),
    "08.4": Exercise(near(1.0), "Compare like with like: both at their best decoding."),
    "13.1": Exercise(near(0.6415), "One minus the chance that all twenty hold 0, which is 0.95 to the power of 20."),
    "13.2": Exercise(near(0.06), "The second smallest of three is multiplied by 2; adjusted values never fall."),
    "13.3": Exercise(near(0.95, 0.01), "The standard error is sqrt((0.10 - 0.01^2) / 900) = 1.053 points."),
    "13.4": Exercise(near(0.0), "Equal rewards have equal weights of mean 1; then subtract 1."),
}
