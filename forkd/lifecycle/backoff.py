"""How soon something that failed may be tried again."""

from __future__ import annotations

import random
from typing import Final

from msgspec import Struct

BACKOFF_FIRST: Final = 0.5

BACKOFF_LAST: Final = 30.0

BACKOFF_JITTER: Final = 0.2

BACKOFF_MEMORY: Final = 60.0

REPLACE_RATE: Final = 32.0  # workers a second; each costs about 3 ms of a processor

REPLACE_BURST: Final = 50  # workers, in addition to a whole pool


class Backoff(Struct):
    """When something that keeps failing may be tried again: after 0, 0.5, 1, 2 .. 30 s, with jitter."""

    failures: int = 0
    until: float = 0.0

    def lived(self, seconds: float) -> None:
        """Forgets the failures before something that lasted long."""
        if seconds >= BACKOFF_MEMORY:
            self.failures = 0

    def failed(self, now: float, jitter: random.Random) -> None:
        self.failures += 1
        delay = min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(self.failures - 2, 10)) if self.failures > 1 else 0.0
        self.until = now + delay * jitter.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)


class Allowance(Struct):
    """How fast workers that had served are replaced: a burst at once, REPLACE_RATE a second in the long run.

    A slot does not wait because its worker crashed. Otherwise a client whose requests kill workers could empty
    the pool with a few of them, and keep it empty for the 30 s of a back-off.
    """

    spent_by: float = 0.0

    def take(self, now: float, burst: int) -> float:
        """Counts another worker; returns the time from which it may be forked."""
        self.spent_by = max(self.spent_by, now) + 1 / REPLACE_RATE
        return max(now, self.spent_by - burst / REPLACE_RATE)
