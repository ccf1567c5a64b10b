"""What an exercise of a notebook is: how an attempt is judged, and the hint for another try.

The exercises themselves stand in `asgkit.lessons.helpers` and, for the lessons on results, in `the other modules here`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """How an answer is judged, and the hint for another try."""

    judge: Callable[[Any], bool]
    hint: str


def near(expected: float, tolerance: float = 5e-3) -> Callable[[Any], bool]:
    """A judge of numbers: right within the tolerance. It raises TypeError or ValueError for what is no number."""
    return lambda attempt: abs(float(attempt) - expected) <= tolerance


def word(expected: str) -> Callable[[Any], bool]:
    """A judge of words: case and blanks around them do not count."""
    return lambda attempt: str(attempt).strip().lower() == expected
