"""Decides what a master reports to the service manager, and when: lines of sd_notify(3).

Pure: times are passed in, in seconds on the monotonic clock. Each function returns the lines of one message; none if
there is nothing to report. `master.service_manager` knows what happens, `notify` sends the message.

- A serving master reports a line of figures, and why the last reload or upgrade failed, until the next one begins.
- It pings the watchdog every half period, on a tick of the master's own, and only while every service is served.
- While a start, a reload or a stop is under way, a tick each second asks for a few more seconds, but never beyond
  forkd's own limit: a manager with a shorter timeout lets it finish, but does not wait for a master that hangs.
"""

from __future__ import annotations

import errno as numbers
from collections.abc import Callable
from typing import Final

from forkd.log.record import escape

STATUS_EVERY: Final = 10.0
STEP: Final = 10.0
"""The most seconds that a tick asks for: after this long, the manager notices a master that hangs."""
MARGIN: Final = 5.0
"""Seconds beyond forkd's own limit, in which the processes killed then can end."""
_STATUS_CHARACTERS: Final = 1000  # a message holds 4096 bytes


class Reports:
    """What has been reported, as far as the next report depends on it.

    `watchdog` is the manager's watchdog period in seconds (0: none), `tick` the seconds between calls of `tick`, and
    `due` the time of an extra call: infinity if the regular ones are enough.
    """

    def __init__(self, watchdog: float, tick: float) -> None:
        self.due = float("inf")
        self._period = watchdog / 2
        self._tick = tick
        self._pinged = -float("inf")
        self._reloading = False
        self._trouble = ""
        self._phase = ""
        self._status = ""
        self._status_due = -float("inf")
        self._unserved: list[str] = []

    @property
    def watched(self) -> bool:
        """Whether the manager expects watchdog pings."""
        return self._period > 0

    def starting(self) -> list[str]:
        """Reports that the listeners are about to be opened."""
        self._phase = "starting"
        return [self._say(""), _extend(STEP)]

    def serving(self, figures: str, now: float) -> list[str]:
        """Reports that every service is served."""
        self._phase = ""
        return ["READY=1", self._say(figures), *self._ping(now)]

    def reload_begun(self, now: float) -> list[str]:
        """Reports that a reload begins; the result of the last one is forgotten."""
        self._reloading = True
        self._trouble = ""
        return ["RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}", _extend(STEP)]

    def change_over(self, what: str, failure: str, figures: str) -> list[str]:
        """Reports the end of a reload or an upgrade (`what`); `failure` says why it changed nothing, or is empty."""
        ready = ["READY=1"] if self._reloading else []
        self._reloading = False
        if failure:
            self._trouble = f"last {what} failed: {failure}"
        return [*ready, self._say(figures)]

    def stopping(self) -> list[str]:
        """Reports that no more clients are let in."""
        self._phase = "stopping"
        self._status_due = -float("inf")
        return ["STOPPING=1", self._say("")]

    def stopped(self) -> list[str]:
        """Makes a master's last report; the command line may add why it failed."""
        self._phase = ""
        self._trouble = ""
        return [self._say("stopped")]

    def tick(self, now: float, figures: Callable[[], str], *, unserved: list[str], left: float) -> list[str]:
        """Reports what is due. `left` is how many seconds the change under way may still take by forkd's own limits.

        `unserved` are the services that should have workers but have none.
        """
        lines: list[str] = []
        if self._period and not unserved and now + self._tick > self._pinged + self._period:
            lines += self._ping(now)
        if self._period:
            self.due = now + self._period  # the next tick comes earlier, unless the manager's period is very short
        if left > 0:
            lines.append(_extend(min(left, STEP)))
        if now >= self._status_due or unserved != self._unserved:
            self._unserved = unserved
            self._status_due = now + STATUS_EVERY
            before = self._status
            line = self._say(figures() + "".join(f"; {each} has no worker" for each in unserved))
            if self._status != before:
                lines.append(line)
        return lines

    def not_heard(self) -> None:
        """Makes the next tick repeat the last one's message, for which there was no room."""
        self._pinged = self._status_due = -float("inf")
        self._status = ""

    def _ping(self, now: float) -> list[str]:
        self._pinged = now
        return ["WATCHDOG=1"] if self._period else []

    def _say(self, what: str) -> str:
        text = ": ".join(each for each in (self._phase, what) if each)
        self._status = _status(f"{text}; {self._trouble}" if self._trouble else text)
        return self._status


def failed(reason: str, errno: int) -> list[str]:
    """Reports why forkd ends: a text for people and, if there is one, the kernel's reason (errno(3))."""
    return [_status(reason), *([f"ERRNO={errno}"] if errno in numbers.errorcode else [])]


def store(name: str) -> list[str]:
    """Asks the manager to keep the descriptor that goes with this message."""
    return ["FDSTORE=1", f"FDNAME={name}", "FDPOLL=0"]


def unstore(name: str) -> list[str]:
    """Asks the manager to drop what it stored by this name."""
    return ["FDSTOREREMOVE=1", f"FDNAME={name}"]


def _extend(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int((seconds + MARGIN) * 1e6)}"


def _status(text: str) -> str:
    """Makes one line of any text, because a line break would begin another assignment."""
    plain = "; ".join(escape(line.strip()) for line in text.splitlines())
    return f"STATUS={plain[:_STATUS_CHARACTERS]}"
