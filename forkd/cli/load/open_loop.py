"""Matches an open loop's requests with its connections: what is due goes to a link that is free.

If no link is free, a request waits, and still counts from the time when it was due. This room decides which link
carries what; `loop` sends. Times are nanoseconds, and passed in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from forkd.cli.load.link import Link, State
from forkd.cli.load.schedule import Schedule


class Turns:
    """The requests of a schedule in order, and the links that have room for some."""

    __slots__ = ("_free", "_next", "_pipeline", "_schedule")

    def __init__(self, schedule: Schedule, pipeline: int) -> None:
        self._schedule = schedule
        self._pipeline = pipeline
        self._next = 0  # the number of the next request to leave
        self._free: deque[Link] = deque()

    def offer(self, link: Link) -> None:
        """Puts a link that has room in the queue for requests."""
        if not link.is_free:
            link.is_free = True
            self._free.append(link)

    def deal(self, now: int, most: int) -> Iterator[tuple[Link, list[int]]]:
        """Yields links for at most `most` requests that are due, each with the times when its requests were due."""
        due = min(self._schedule.due(now), self._next + most)
        while self._next < due and self._free:
            link = self._free.popleft()
            link.is_free = False
            if link.state is not State.OPEN or link.rest:
                continue
            # Spread overdue requests over all links that are free.
            waiting = due - self._next
            fair = -(-waiting // (len(self._free) + 1))
            count = min(fair, self._pipeline - len(link.starts), link.left)
            if count > 0:
                yield link, [self._schedule.time(number) for number in range(self._next, self._next + count)]
                self._next += count

    def next_time(self) -> int | None:
        """Returns when the next request leaves; None while no link is free for it."""
        return self._schedule.time(self._next) if self._free else None

    def overdue(self, now: int) -> int:
        """Returns how many requests have been due by now but have not left."""
        return max(0, self._schedule.due(now) - self._next)
