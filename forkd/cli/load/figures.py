"""Counts for a client loop in plain attributes, which are quick to add to, and copies them into the tally."""

from __future__ import annotations

from forkd.cli.load.plan import UNLIMITED
from forkd.cli.load.tally import Tally


class LoopFigures:
    """The counts of one process of a load test. Times are nanoseconds."""

    __slots__ = ("answered", "bytes_in", "bytes_out", "last", "latencies", "longest", "since", "tally")

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.latencies = tally.latencies
        self.since = UNLIMITED  # requests sent or due earlier do not count
        self.last = 0  # when the last reply came
        self.answered = self.bytes_in = self.bytes_out = self.longest = 0

    def restart(self) -> None:
        """Forgets the requests of the warm-up."""
        self.answered = self.bytes_in = self.bytes_out = self.longest = 0
        self.tally.clear_requests()

    def publish(self, wrong: int, end: int | None) -> None:
        """Writes the counts into the tally. `end` is None once everything is sent: then the last reply is the end."""
        tally = self.tally
        tally["answered"], tally["longest"] = self.answered, self.longest
        tally["bytes_in"], tally["bytes_out"] = self.bytes_in, self.bytes_out
        tally["wrong"] = wrong
        if self.since != UNLIMITED:
            tally["began"] = self.since
            tally["ended"] = max(self.last, self.since) if end is None else end
