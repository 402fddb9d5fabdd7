"""Every exception of forkd's own, and the exit status each one ends the program with.

One table serves three readers: `cli` turns an error into an exit status, the master reads a
worker's status through it, and the README and the manual print it. The numbers above 63 are those of
sysexits(3), so that a unit file can say `RestartPreventExitStatus=78`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from errno import EINVAL
from typing import Final, NamedTuple


class Exit(IntEnum):
    """Exit statuses of the forkd program (contract of the command line)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 69
    TIMED_OUT = 75
    BROKEN_OFF = 76
    CONFIG = 78


MEANINGS: Final = {
    Exit.DONE: "done",
    Exit.FAILED: "failed",
    Exit.USAGE: "wrong usage",
    Exit.UNREACHABLE: "nothing answers there: refused, unreachable, no forkd running",
    Exit.TIMED_OUT: "timed out",
    Exit.BROKEN_OFF: "the other side broke off",
    Exit.CONFIG: "wrong configuration",
}


class ForkdError(Exception):
    """Something a person has to be told: the text is the whole message, the class its status.

    `cause` is the kernel's reason, 0 where it has none (errno(3)).
    """

    exit_status: Exit = Exit.FAILED
    cause: int = 0


class UsageError(ForkdError):
    """The command line asks for something that makes no sense."""

    exit_status = Exit.USAGE


class Problem(NamedTuple):
    """One mistake in the settings: where it stands and what is wrong with it."""

    file: str
    line: int
    key: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.what}" if self.key else f"{place}: {self.what}"


class ConfigError(ForkdError):
    """The settings are wrong; `problems` holds every mistake, in the order of the file."""

    exit_status = Exit.CONFIG
    cause = EINVAL

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class AddressError(ForkdError, ValueError):
    """A text that is no address in the sense of `kernel.address`."""

    exit_status = Exit.USAGE


class ListenError(ForkdError):
    """A listening socket could not be opened; the text names the address and what to do."""

    def __init__(self, message: str, cause: int = 0) -> None:
        self.cause = cause
        super().__init__(message)


class BootError(ForkdError):
    """An application, a fork server or a worker did not come up; the text says which and why."""


class ControlError(ForkdError):
    """A command to a running forkd was refused or failed there; the text is its answer."""


class RunsAlreadyError(ForkdError):
    """Another forkd has the place that a new one would take. `pid` is 0 where its number cannot be seen."""

    def __init__(self, pid: int, how: str) -> None:
        self.pid = pid
        who = f"process {pid}" if pid else "a process that is not seen here"
        super().__init__(f"runs already, as {who}: {how}")


class UnreachableError(ForkdError):
    """Nothing answers at that address."""

    exit_status = Exit.UNREACHABLE


class TimedOutError(ForkdError):
    """An answer did not come in time."""

    exit_status = Exit.TIMED_OUT


class BrokenOffError(ForkdError):
    """The other side broke the connection off."""

    exit_status = Exit.BROKEN_OFF


class FramingError(ForkdError):
    """A peer's bytes break the rules of its framing; the connection ends.

    `requests` are those that were complete before the break: they are still answered.
    """

    def __init__(self, message: str, requests: Sequence[object] = ()) -> None:
        self.requests = tuple(requests)
        super().__init__(message)


class OverLimit(FramingError):
    """A request is longer than its framing's limit, in bytes."""


class Truncated(FramingError):
    """The stream ended inside a request."""


class DeadlineError(ForkdError, TimeoutError):
    """The peer was silent (`idle`), slow with a request (`read`) or slow to take a reply (`write`).

    Or the handler, one that is awaited, was slow itself (`request`).
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        super().__init__(f"{what}_timeout of {seconds:g} s is over")


class PeerGone(ForkdError, ConnectionError):
    """The peer broke the connection off (reset, or gone while a reply was on its way)."""

    @classmethod
    def by(cls, error: OSError) -> PeerGone:
        """What an error of the connection's socket means."""
        return cls(f"the client broke off: {error.strerror}")


class WorkerLeaves(ForkdError):
    """The worker leaves, and the peer has nothing under way: internal, never seen by a handler."""
