"""Decides when the requests of an open loop are due."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """When each request of an open loop is due. Times are nanoseconds of one clock."""

    def due(self, now: int) -> int:
        """Returns how many requests have been due by now."""

    def time(self, number: int) -> int:
        """Returns when request `number`, counted from 0, is due; `number` must never decrease."""


@dataclass(frozen=True, slots=True)
class EvenSchedule:
    """One request every `interval` nanoseconds."""

    begin: int
    interval: float

    def due(self, now: int) -> int:
        return math.floor((now - self.begin) / self.interval) + 1 if now >= self.begin else 0

    def time(self, number: int) -> int:
        return self.begin + math.floor(number * self.interval)


class RandomSchedule:
    """A Poisson process: independent clients, with one request per `interval` on average.

    The sum of several Poisson processes is one as well, so each process of a test has its own.
    """

    __slots__ = ("_ahead", "_chance", "_interval", "_last", "_passed")

    def __init__(self, begin: int, interval: float, chance: random.Random) -> None:
        self._interval = interval
        self._chance = chance
        self._last = float(begin)
        self._passed = 0  # how many times have left `_ahead`, because they are not needed again
        self._ahead: deque[int] = deque()
        self._draw()

    def due(self, now: int) -> int:
        while self._ahead[-1] <= now:
            self._draw()
        return self._passed + bisect_right(self._ahead, now)

    def time(self, number: int) -> int:
        while self._passed < number:
            self._ahead.popleft()
            self._passed += 1
            if not self._ahead:
                self._draw()
        return self._ahead[0]

    def _draw(self) -> None:
        self._last += self._chance.expovariate(1 / self._interval)
        self._ahead.append(int(self._last))
