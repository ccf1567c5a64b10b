"""What a printed number can have been: exact intervals of rounding, and the verdicts that follow from them.

A value printed with d decimals lies in [v - 0.5 10^-d, v + 0.5 10^-d]; both ends count, since an exact half may have
been rounded either way. All arithmetic is in fractions, so a value on a boundary is on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

CONSISTENT, WITHIN, INCONSISTENT = "consistent", "within rounding", "inconsistent"
CONFLICT = "conflict between sources"
VERDICTS = (CONSISTENT, WITHIN, INCONSISTENT, CONFLICT)


class Interval(NamedTuple):
    """All values from `low` to `high`, both included."""

    low: Fraction
    high: Fraction

    def plus(self, other: Interval) -> Interval:
        """Sums of a value of each."""
        return Interval(self.low + other.low, self.high + other.high)

    def minus(self, other: Interval) -> Interval:
        """Differences of a value of each."""
        return Interval(self.low - other.high, self.high - other.low)

    def times(self, factor: Fraction | int) -> Interval:
        """All values times a factor above 0."""
        return Interval(self.low * factor, self.high * factor)

    def holds(self, value: Fraction) -> bool:
        """Whether the value lies inside or on an end."""
        return self.low <= value <= self.high

    def meets(self, other: Interval) -> bool:
        """Whether the two share a value, be it one end."""
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        return f"[{show(self.low)}, {show(self.high)}]"


@dataclass(frozen=True)
class Finding:
    """One relation recomputed: what is printed, what its parts give, within which bound, and the verdict."""

    kind: str
    file: str
    row: str
    column: str
    relation: str
    printed: str
    recomputed: str
    bound: str
    verdict: str
    note: str = ""


def bounds(printed: str) -> Interval:
    """The values that print as this text: `v +- 0.5 10^-d` for d decimals. Raises ValueError for what is no number."""
    try:
        value = Decimal(printed)
        decimals = -int(value.as_tuple().exponent)
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"{printed!r} is no printed number") from error
    half = Fraction(1, 2) / Fraction(10) ** decimals
    return Interval(Fraction(value) - half, Fraction(value) + half)


def centre(held: Interval) -> Fraction:
    """The middle of an interval: the printed value itself."""
    return (held.low + held.high) / 2


def mean(parts: Sequence[Interval]) -> Interval:
    """Means of a value of each part. Raises ValueError for no parts."""
    if not parts:
        raise ValueError("a mean needs at least one part")
    return Interval(sum((p.low for p in parts), Fraction()), sum((p.high for p in parts), Fraction())
                    ).times(Fraction(1, len(parts)))


def judge(printed: Interval, recomputed: Interval) -> str:
    """Compare a printed value with what its printed parts give.

    consistent: the parts as printed round to it; within rounding: they do not, but unrounded parts could have;
    inconsistent: no unrounded parts that print like these give a value that prints like this.
    """
    if printed.holds(centre(recomputed)):
        return CONSISTENT
    return WITHIN if printed.meets(recomputed) else INCONSISTENT


def same(first: Interval, second: Interval) -> str:
    """Whether two prints can be of one number.

    With equally many decimals one number prints alike, so the prints must be equal; otherwise the finer must lie
    in (consistent) or reach into (within rounding) the interval of the coarser.
    """
    fine, coarse = sorted((first, second), key=lambda held: held.high - held.low)
    if fine.high - fine.low == coarse.high - coarse.low:
        return CONSISTENT if fine == coarse else INCONSISTENT
    return judge(coarse, fine)


def above(first: Interval, second: Interval, *, ties: bool = False) -> str:
    """Whether the first can exceed the second (with `ties`: be at least as high), by what is printed or unrounded."""
    difference = first.minus(second)
    if centre(difference) > 0 or (ties and centre(difference) == 0):
        return CONSISTENT
    return WITHIN if difference.high > 0 or (ties and difference.high == 0) else INCONSISTENT


def worst(verdicts: Sequence[str]) -> str:
    """The verdict furthest down the list consistent, within rounding, inconsistent, conflict."""
    return max(verdicts, key=VERDICTS.index)


def show(value: Fraction, places: int = 4) -> str:
    """A fraction as decimal text with at most `places` decimals, trailing zeros dropped."""
    text = f"{Decimal(round(value * 10**places)) / 10**places:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
