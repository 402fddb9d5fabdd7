"""When a link began to connect, and when it may try again. Times are nanoseconds."""

from __future__ import annotations

from typing import Final

from forkd.cli.load.plan import SECOND, UNLIMITED

_SHORTEST_PAUSE: Final = SECOND // 50
_LONGEST_PAUSE: Final = SECOND


class Attempt:
    """An attempt to connect, and the pause after one that was no use, which doubles from 20 ms up to 1 s."""

    __slots__ = ("_is_queued", "_pause", "next_at", "since")

    def __init__(self) -> None:
        self.since = 0
        self.next_at = 0
        self._is_queued = False  # the attempt is being repeated because the server's queue is full
        self._pause = 0

    def begin(self, now: int) -> None:
        if not self._is_queued:
            self.since = now

    def succeed(self) -> None:
        self._is_queued = False

    def queue(self, now: int) -> None:
        """Repeats the attempt at the next look; the time already spent on it counts."""
        self._is_queued, self.next_at = True, now

    def back_off(self, now: int) -> None:
        self._is_queued = False
        self._pause = min(max(2 * self._pause, _SHORTEST_PAUSE), _LONGEST_PAUSE)
        self.next_at = now + self._pause

    def forget_pause(self) -> None:
        self._pause = 0

    def give_up(self) -> None:
        self.next_at = UNLIMITED
