"""The master's own clock, which stands still while the master does.

A master that was stopped (SIGSTOP), swapped out or starved could not hear that a worker was ready, or
look whether a handler had returned; by the wall's time everybody would be late. So what it waits for
is measured by the time for which it was there to see it. Pure: times are told, in seconds.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

SLACK: Final = 1.0  # what a master may be late without having been away
KEPT: Final = 16


class MasterClock(Struct):
    """Monotonic time less what the master has missed.

    `absences` are the last ones: when it came back, and for how long it was away.
    """

    missed: float = 0.0
    absences: list[tuple[float, float]] = field(default_factory=list)

    def returned(self, due: float, now: float) -> float:
        """The master, which was to be awake at `due`, is so at `now`; gives how long it was away."""
        away = now - due
        if away <= SLACK:
            return 0.0
        self.missed += away
        self.absences = [*self.absences[1 - KEPT :], (now, away)]
        return away

    def at(self, moment: float) -> float:
        """The master's time at a moment of the past, on the same clock as now's."""
        time = moment - self.missed
        for came_back, away in reversed(self.absences):
            if moment >= came_back:
                break
            time += min(away, came_back - moment)
        return time
