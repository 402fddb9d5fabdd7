"""A worker's life: become, serve, leave.

It never decides about the pool. What it is told, `orders` hears; how it serves is its kind's affair:
`sync`, for now. It is handed bound sockets and writes one row of the scoreboard.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

from forkd.errors import BootError, Exit, ForkdError
from forkd.ipc.brief import Brief, Door
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import REQUESTS, Board
from forkd.kernel import process, signals
from forkd.log import log
from forkd.serving.connection import Connection
from forkd.serving.loading import application_traceback
from forkd.serving.outcome import End, Outcome
from forkd.serving.service import Service
from forkd.workers import event, sync
from forkd.workers.account import Account
from forkd.workers.context import WorkerContext
from forkd.workers.leash import Leash
from forkd.workers.tenure import Tenure

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


def live(
    told: Brief,
    service: Service[..., Any],
    doors: list[tuple[socket.socket, Door]],
    board: Board,
    slot: int,
    row: int,
    leash: socket.socket,
    stack: int,
) -> None:
    """A worker from its birth to its end, in a process just forked with all signals blocked.

    Raises BootError when the application's lifespan does not come up.
    """
    process.set_title(f"forkd: {told.service}: worker {slot}, generation {told.generation}")
    meter = Meter(board.row(row), keeps=told.worker.black_box)
    meter.booting()
    orders = Leash(leash, told.log.fd, _end)
    inbox = signals.Inbox([signal.SIGTERM, signal.SIGIO])
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    orders.listen()
    faulthandler.register(signal.SIGUSR2, stack, all_threads=True)
    process.unblock_signals()

    def wake() -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(told.wake, 1)

    report = Reporter(told.service, slot, told.generation)
    with _alive(service, stack, report) as resources:
        _loop_for(told, service)(
            WorkerContext(
                told.service,
                service,
                doors,
                told.worker.limits,
                board,
                meter,
                orders,
                inbox,
                resources,
                Tenure(told.worker.retirement, random.Random(), monotonic(), meter.row[REQUESTS]),
                exclusive=told.worker.exclusive,
                access=told.worker.access,
                threads=told.worker.threads,
                stack=stack,
                wake=wake,
                report=report,
                boot_error=lambda error: _boot_error(error, stack),
            )
        )
    meter.left()


class Reporter:
    """Logs how connections end, each record naming this worker the same way.

    Where each connection is to have a record, `access`, that is one of its own: it looks the same however a
    connection ended, and what is told of some of them anyhow stands beside it.
    """

    def __init__(self, service: str, slot: int, generation: int) -> None:
        self._fields: dict[str, object] = {"service": service, "worker": slot, "gen": generation}

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

    def accept_goes_on(self, seconds: float) -> None:
        log.say("warning", "accept goes on", self._fields | {"after": round(seconds, 3)})

    def lifespan_failed(self, error: Exception) -> None:
        log.say("error", "the lifespan's clean-up failed", self._fields, error=error)


def _loop_for(told: Brief, service: Service[..., Any]) -> Callable[[WorkerContext], None]:
    if told.worker.kind == "sync":
        return sync.serve
    if service.is_async:
        from forkd.workers import tasks

        return tasks.serve
    return event.serve


def _end() -> None:
    """A worker that has not begun to serve ends at once when the master dies: its lifespan may never return."""
    os._exit(Exit.FAILED)


@contextmanager
def _alive(service: Service[..., Any], stack: int, report: Reporter) -> Iterator[Any]:
    """The service's lifespan around a worker's: BootError if it does not begin, a record if it does not end well."""
    lifespan = service.alive()
    try:
        resources = lifespan.__enter__()
    except BaseException as error:
        raise _boot_error(error, stack) from None
    try:
        yield resources
    finally:
        try:
            lifespan.__exit__(None, None, None)
        except Exception as error:
            report.lifespan_failed(error)


def _boot_error(error: BaseException, stack: int) -> BootError:
    """Leaves the reason where the master looks when a worker has gone; gives what to end with."""
    text = f"the lifespan failed: {error!r}\n{application_traceback(error)}"
    os.write(stack, text.encode(errors="backslashreplace")[:16384])
    return BootError(str(error))
