"""What the service manager is to hear of a master, and when: lines of sd_notify(3).

Pure: times are told, in seconds on the monotonic clock; what is given back is one message, as its lines, and empty
where there is nothing to say. `supervision` knows what happens, `notify` how a message is sent.

- A master that serves says so in a line of figures, and why the last reload or upgrade came to nothing, until the next
  one begins.
- Its watchdog is told at half the time it allows, on a tick of the master's own, and while all services are served.
- While a start, a reload or a stop takes its time, a second's tick asks for some seconds more, up to forkd's own limit
  and no further: a manager with a shorter patience lets it end, and a master that hangs in it is not covered.
"""

from __future__ import annotations

import errno as numbers
from collections.abc import Callable
from typing import Final

from forkd.log.record import escape

STATUS_EVERY: Final = 10.0
STEP: Final = 10.0
"""Seconds for which a tick asks at most: a master that hangs is found out after so long."""
MARGIN: Final = 5.0
"""Seconds beyond forkd's own limit, for what is killed then to be gone."""
_STATUS_CHARACTERS: Final = 1000  # a message holds 4096 bytes


class Reports:
    """What was said, as far as what is to be said depends on it.

    `watchdog` is how often, in seconds, the manager has to be told at least that all is well (0: never), `tick` how
    often `tick` is called anyway, and `due` when it is to be called besides: infinity where the ticks will do.
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
        """Whether the manager waits for word that all is well."""
        return self._period > 0

    def starting(self) -> list[str]:
        """The listeners are about to be opened."""
        self._phase = "starting"
        return [self._say(""), _extend(STEP)]

    def serving(self, figures: str, now: float) -> list[str]:
        """Every service serves."""
        self._phase = ""
        return ["READY=1", self._say(figures), *self._ping(now)]

    def reload_begun(self, now: float) -> list[str]:
        """A reload begins; whatever the last one came to is the past."""
        self._reloading = True
        self._trouble = ""
        return ["RELOADING=1", f"MONOTONIC_USEC={int(now * 1e6)}", _extend(STEP)]

    def change_over(self, what: str, failure: str, figures: str) -> list[str]:
        """A reload or an upgrade (`what`) is over; `failure` is why it changed nothing, if so."""
        ready = ["READY=1"] if self._reloading else []
        self._reloading = False
        if failure:
            self._trouble = f"last {what} failed: {failure}"
        return [*ready, self._say(figures)]

    def stopping(self) -> list[str]:
        """No more callers."""
        self._phase = "stopping"
        self._status_due = -float("inf")
        return ["STOPPING=1", self._say("")]

    def stopped(self) -> list[str]:
        """The last thing that a master says; whoever knows why it failed may say more."""
        self._phase = ""
        self._trouble = ""
        return [self._say("stopped")]

    def tick(self, now: float, figures: Callable[[], str], *, unserved: list[str], left: float) -> list[str]:
        """What is to be said by now. `left` is how long what is under way may take by forkd's own limits.

        `unserved` are the services that nobody serves any more, and should.
        """
        lines: list[str] = []
        if self._period and not unserved and now + self._tick > self._pinged + self._period:
            lines += self._ping(now)
        if self._period:
            self.due = now + self._period  # the next tick is sooner, unless the manager's patience is very short
        if left > 0:
            lines.append(_extend(min(left, STEP)))
        if now >= self._status_due or unserved != self._unserved:
            self._unserved = unserved
            self._status_due = now + STATUS_EVERY
            before = self._status
            line = self._say(figures() + "".join(f"; nobody serves {each}" for each in unserved))
            if self._status != before:
                lines.append(line)
        return lines

    def not_heard(self) -> None:
        """There was no room for the last tick's message, so the next one says it again."""
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
    """Why forkd ends, for a person, and the number of the kernel's reason where there is one (errno(3))."""
    return [_status(reason), *([f"ERRNO={errno}"] if errno in numbers.errorcode else [])]


def store(name: str) -> list[str]:
    """Beside a descriptor: keep this from now on."""
    return ["FDSTORE=1", f"FDNAME={name}", "FDPOLL=0"]


def unstore(name: str) -> list[str]:
    """Whatever was stored by this name is not needed any more."""
    return ["FDSTOREREMOVE=1", f"FDNAME={name}"]


def _extend(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int((seconds + MARGIN) * 1e6)}"


def _status(text: str) -> str:
    """One line whatever the text holds, for a line break would begin another assignment."""
    plain = "; ".join(escape(line.strip()) for line in text.splitlines())
    return f"STATUS={plain[:_STATUS_CHARACTERS]}"
