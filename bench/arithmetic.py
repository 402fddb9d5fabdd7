"""Medians, ranges and ratios of rounds. A value missing from a round is None."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    least: float
    most: float
    count: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Returns median, least and most of the values that are not None; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(statistics.median(there), min(there), max(there), len(there))


def ratios(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[float | None]:
    """Returns the ratio for each round: two servers see the same machine only if they are measured close together."""
    pairs = zip(ours, theirs, strict=False)
    return [mine / other if mine is not None and other else None for mine, other in pairs]


def three_digits(value: float) -> str:
    """Returns the value with three significant digits: 0.00123, 1.23, 12.3, 1,230."""
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000 or rounded == 0:
        return f"{rounded:,.0f}"
    digits = max(0, 2 - int(f"{rounded:e}".partition("e")[2]))
    return f"{rounded:.{digits}f}"
