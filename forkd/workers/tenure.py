"""Decides when a worker has served long enough and makes room for a fresh one: `max_requests`, `max_age`, `max_memory`.

Pure: time, counts and memory come as arguments. Each limit is moved by up to a tenth, so that workers born together do
not leave together.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

from forkd.ipc.brief import Retirement

_JITTER: Final = 0.1


class Tenure:
    """One worker's own limits, from its birth at `now`, when its row already counted `requests`."""

    def __init__(self, limits: Retirement, chance: Random, now: float, requests: int) -> None:
        def moved(limit: float) -> float:
            return limit * chance.uniform(1 - _JITTER, 1 + _JITTER)

        self._requests = requests + max(1, round(moved(limits.requests))) if limits.requests else None
        self._until = now + moved(limits.seconds) if limits.seconds else None
        self._memory = moved(limits.memory) if limits.memory else None

    @property
    def wears(self) -> bool:
        """Whether work, and not time alone, brings the end nearer."""
        return self._requests is not None or self._memory is not None

    def over(self, now: float, requests: int, memory: Callable[[], int]) -> bool:
        """Whether it is time to leave, reported once; `memory` is called only if it is limited."""
        over = (
            (self._requests is not None and requests >= self._requests)
            or (self._until is not None and now >= self._until)
            or (self._memory is not None and memory() >= self._memory)
        )
        if over:
            self._requests = self._until = self._memory = None
        return over

    def timeout(self, now: float) -> float | None:
        """Returns the seconds until an idle worker must ask again; None for never."""
        return None if self._until is None else max(0.0, self._until - now)
