"""The moment between two generations: the new one serves, and the old one may still accept.

Whoever asked for a reload is to meet the new code afterwards, so the answer waits until no worker
of the old generations is idle: a busy one has heard its order before it would accept again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from forkd.handles import WorkerHandle
from forkd.scoreboard import IDLE, STATE

LOOK: Final = 0.002
PATIENCE: Final = 0.5


class Handover:
    """Old workers on their way out; `due` is when to look next, `done` is called once none accepts any more."""

    def __init__(self, workers: Iterable[WorkerHandle], now: float, done: Callable[[], None]) -> None:
        self.due = now
        self._workers = list(workers)
        self._until = now + PATIENCE
        self._done = done

    def look(self, now: float) -> bool:
        """Looks again; True when it was the last time."""
        self._workers = [each for each in self._workers if not each.closed and each.row[STATE] == IDLE]
        self.due = now + LOOK
        if self._workers and now < self._until:
            return False
        self._done()
        return True
