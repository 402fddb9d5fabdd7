"""The master's own clock, which stands still while the master does.

A master that was stopped (SIGSTOP), swapped out or starved could not see that a worker was ready, or that a
handler had returned; by real time, every process would be late. So deadlines are measured in the time for
which the master was there to see. Pure: times are passed in, in seconds.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

SLACK: Final = 1.0  # how late a master may be without having been away
KEPT: Final = 16


class MasterClock(Struct):
    """Monotonic time minus what the master has missed.

    `absences` are the latest ones: when the master came back, and for how long it was away.
    """

    missed: float = 0.0
    absences: list[tuple[float, float]] = field(default_factory=list)

    def returned(self, due: float, now: float) -> float:
        """Notes that the master, due to be awake at `due`, is awake at `now`; returns how long it was away."""
        away = now - due
        if away <= SLACK:
            return 0.0
        self.missed += away
        self.absences = [*self.absences[1 - KEPT :], (now, away)]
        return away

    def at(self, moment: float) -> float:
        """Converts a moment in the past, in monotonic seconds, to the master's time."""
        time = moment - self.missed
        for came_back, away in reversed(self.absences):
            if moment >= came_back:
                break
            time += min(away, came_back - moment)
        return time
