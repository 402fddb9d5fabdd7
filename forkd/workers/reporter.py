"""What a worker logs: how connections end, what accepting and the lifespan run into. Each record names the worker."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import Protocol, Self

from forkd.errors import ForkdError, ListenError
from forkd.ipc.brief import Brief
from forkd.log import log
from forkd.serving.connection import Connection
from forkd.serving.outcome import End, Outcome
from forkd.workers.account import Account

# An end that is not here is logged at level "info".
_LEVELS = {
    End.CLIENT: "debug",
    End.CLOSED: "debug",
    End.LEAVING: "debug",
    End.IDLE: "debug",
    End.RESET: "debug",
    End.ERROR: "error",
    End.REQUEST: "error",
    End.EXIT: "error",
}


class Report(Protocol):
    """Where a worker's loop reports facts to; `Reporter` logs them."""

    def ended(self, connection: Connection, outcome: Outcome, account: Account | None) -> None: ...

    def accept_failed(self, error: OSError) -> None: ...

    def accept_recovered(self, seconds: float) -> None: ...

    def lifespan_failed(self, error: Exception) -> None: ...


class Reporter:
    """Writes a worker's log records.

    With `access = true` each connection gets an access record of its own, which looks the same however the connection
    ended; the usual record about the end, if there is one, is written as well.
    """

    def __init__(self, service: str, slot: int, generation: int) -> None:
        self._fields: dict[str, object] = {"service": service, "worker": slot, "gen": generation}

    @classmethod
    def of(cls, brief: Brief, slot: int) -> Self:
        return cls(brief.service, slot, brief.generation)

    def ended(self, connection: Connection, outcome: Outcome, account: Account | None) -> None:
        level = _LEVELS.get(outcome.end, "info")
        error = outcome.error if level == "error" else None
        detail = str(outcome.error) if outcome.error is not None and error is None else None
        peer = ""
        with suppress(ForkdError, OSError):
            peer = str(connection.peer)
        whose = self._fields | {"connection": connection.number, "peer": peer or None}
        log.say(level, f"connection: {outcome.end.value}", whose | {"detail": detail}, error=error)
        if account is not None:
            facts = account._asdict() | {"seconds": round(account.seconds, 6), "end": outcome.end.name.lower()}
            log.say("info", "access", whose | facts)

    def accept_failed(self, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "")
        log.say("warning", f"accept failed: {error.strerror}", self._fields | {"errno": name})

    def accept_recovered(self, seconds: float) -> None:
        log.say("warning", "accepting again", self._fields | {"after": round(seconds, 3)})

    def lifespan_failed(self, error: Exception) -> None:
        log.say("error", "the lifespan's clean-up failed", self._fields, error=error)

    def worker_failed(self, error: BaseException) -> None:
        if isinstance(error, ListenError):
            log.say("error", f"worker failed: {error}", self._fields)
        else:
            log.say("error", "worker failed", self._fields, error=error)
