"""How a connection ended: a fact for the worker to log and count."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from forkd.errors import DeadlineError, FramingError, OverLimit, Truncated, WorkerLeaves
from forkd.ipc.scoreboard import MALFORMED, OVER_LIMIT, RESET, TIMED_OUT, TRUNCATED


class End(Enum):
    """Why a connection ended. The values are the words of the log.

    `IDLE`, `READ`, `WRITE` and `REQUEST` are the deadlines that passed. `CLOSED` is `Close` or `close()`, `ERROR` and
    `EXIT` are the handler's exceptions, `LEAVING` means that the worker left.
    """

    CLIENT = "ended by the client"
    CLOSED = "ended by the handler"
    LEAVING = "ended by the leaving worker"
    IDLE = "idle_timeout"
    READ = "read_timeout"
    WRITE = "write_timeout"
    REQUEST = "request_timeout"
    OVER_LIMIT = "over limit"
    MALFORMED = "malformed"
    TRUNCATED = "truncated"
    RESET = "reset"
    ERROR = "handler error"
    EXIT = "handler exit"


COLUMNS: Final = {
    End.IDLE: TIMED_OUT,
    End.READ: TIMED_OUT,
    End.WRITE: TIMED_OUT,
    End.REQUEST: TIMED_OUT,
    End.OVER_LIMIT: OVER_LIMIT,
    End.MALFORMED: MALFORMED,
    End.TRUNCATED: TRUNCATED,
    End.RESET: RESET,
}
"""The words of the scoreboard that count the irregular ends."""


class Outcome(NamedTuple):
    """How a connection ended: `end`, and the error that ended it, if one did."""

    end: End
    error: BaseException | None = None


def end_of(error: BaseException) -> End:
    """Returns the end that an error of the connection stands for; any unknown one is a reset."""
    match error:
        case DeadlineError():
            return End(f"{error.what}_timeout")
        case OverLimit():
            return End.OVER_LIMIT
        case Truncated():
            return End.TRUNCATED
        case FramingError():
            return End.MALFORMED
        case WorkerLeaves():
            return End.LEAVING
        case _:
            return End.RESET
