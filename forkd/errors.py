"""forkd's exceptions, and the exit status that each one ends the program with.

One table has three readers: `cli` turns an error into an exit status, the master looks up a worker's status in it,
and the README and the manual print it. The numbers above 63 are those of sysexits(3), so that a unit file can say
`RestartPreventExitStatus=78`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from errno import EINVAL
from typing import Final, NamedTuple


class Exit(IntEnum):
    """Exit statuses of the forkd program, part of its public interface."""

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
    Exit.USAGE: "usage error",
    Exit.UNREACHABLE: "no answer: connection refused, host unreachable, or no forkd running",
    Exit.TIMED_OUT: "timed out",
    Exit.BROKEN_OFF: "the other side broke the connection",
    Exit.CONFIG: "configuration error",
}


class ForkdError(Exception):
    """An error to report to a person: the text is the whole message, the class gives the exit status.

    `cause` is the kernel's reason (errno(3)), 0 if there is none.
    """

    exit_status: Exit = Exit.FAILED
    cause: int = 0


class UsageError(ForkdError):
    """The command line asks for something impossible."""

    exit_status = Exit.USAGE


class Problem(NamedTuple):
    """One mistake in the settings: where it is, and what is wrong."""

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
    """A text that is not an address as `kernel.address` reads them."""

    exit_status = Exit.USAGE


class ListenError(ForkdError):
    """A listening socket could not be opened; the text names the address and what to do."""

    def __init__(self, message: str, cause: int = 0) -> None:
        self.cause = cause
        super().__init__(message)


class BootError(ForkdError):
    """An application, a fork server or a worker did not start; the text says which and why."""


class ControlError(ForkdError):
    """A running forkd refused a command or failed at it; the text is its answer."""


class RunsAlreadyError(ForkdError):
    """Another forkd runs where a new one would start. `pid` is 0 if its PID cannot be seen from here."""

    def __init__(self, pid: int, how: str) -> None:
        self.pid = pid
        who = f"process {pid}" if pid else "a process that cannot be seen from here"
        super().__init__(f"already running as {who}: {how}")


class UnreachableError(ForkdError):
    """Nothing answers at an address."""

    exit_status = Exit.UNREACHABLE


class TimedOutError(ForkdError):
    """An answer did not arrive in time."""

    exit_status = Exit.TIMED_OUT


class BrokenOffError(ForkdError):
    """The other side broke the connection."""

    exit_status = Exit.BROKEN_OFF


class FramingError(ForkdError):
    """A peer's bytes break the rules of the framing; the connection ends.

    `requests` are those that were complete before: they are still answered.
    """

    def __init__(self, message: str, requests: Sequence[object] = ()) -> None:
        self.requests = tuple(requests)
        super().__init__(message)


class OverLimit(FramingError):
    """A request is longer than its framing's limit, in bytes."""


class Truncated(FramingError):
    """The stream ended inside a request."""


class DeadlineError(ForkdError, TimeoutError):
    """The peer was silent (`idle`), slow to send a request (`read`) or slow to take a reply (`write`).

    Or the handler, a coroutine, was slow itself (`request`).
    """

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        super().__init__(f"{what}_timeout of {seconds:g} s is over")


class PeerGone(ForkdError, ConnectionError):
    """The peer broke the connection: it was reset, or closed while a reply was on its way."""

    @classmethod
    def by(cls, error: OSError) -> PeerGone:
        """Makes the exception for an error of the connection's socket."""
        return cls(f"the client broke the connection: {error.strerror}")


class WorkerLeaves(ForkdError):
    """The worker leaves while the peer has no request under way. Internal: no handler sees it."""
