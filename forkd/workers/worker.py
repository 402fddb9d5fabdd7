"""A worker's life: become, serve, leave.

It never decides about the pool. What it is told, `orders` hears; how it serves is its kind's affair:
`sync`, for now. It is handed bound sockets and writes one row of the scoreboard.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from time import monotonic
from typing import Any

from forkd.errors import Exit
from forkd.ipc.brief import Brief, Door
from forkd.ipc.kinds import KINDS
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import REQUESTS, Board
from forkd.kernel import process, signals
from forkd.serving.service import Service
from forkd.workers.acceptor import Doors
from forkd.workers.context import StackFile, WorkerContext
from forkd.workers.leash import Leash
from forkd.workers.reporter import Reporter
from forkd.workers.tenure import Tenure


def live(
    told: Brief,
    service: Service[..., Any],
    doors: list[tuple[socket.socket, Door]],
    board: Board,
    slot: int,
    row: int,
    master: socket.socket,
    stack: int,
) -> None:
    """A worker from its birth to its end, in a process just forked with all signals blocked.

    Raises BootError when the application's lifespan does not come up.
    """
    process.set_title(f"forkd: {told.service}: worker {slot}, generation {told.generation}")
    meter = Meter(board.row(row), keeps=told.black_box)
    meter.booting()
    leash = Leash(master, told.log, _end)
    inbox = signals.Inbox([signal.SIGTERM, signal.SIGIO])
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    leash.listen()
    faulthandler.register(signal.SIGUSR2, stack, all_threads=True)
    process.unblock_signals()

    def wake() -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(told.wake, 1)

    report = Reporter.of(told, slot)
    stack_file = StackFile(stack)
    with _alive(service, stack_file, report) as resources:
        _loop_for(told, service)(
            WorkerContext(
                name=told.service,
                service=service,
                doors=Doors(doors, exclusive=told.exclusive),
                limits=told.limits,
                board=board,
                meter=meter,
                leash=leash,
                inbox=inbox,
                resources=resources,
                tenure=Tenure(told.retirement, random.Random(), monotonic(), meter.row[REQUESTS]),
                access=told.access,
                threads=told.threads,
                stack=stack_file,
                wake=wake,
                report=report,
            )
        )
    meter.left()


def _loop_for(told: Brief, service: Service[..., Any]) -> Callable[[WorkerContext], None]:
    """The loop of this kind of worker, which the fork server has imported."""
    serve: Callable[[WorkerContext], None] = import_module(KINDS[told.worker].loop_for(service.is_async)).serve
    return serve


def _end() -> None:
    """A worker that has not begun to serve ends at once when the master dies: its lifespan may never return."""
    os._exit(Exit.FAILED)


@contextmanager
def _alive(service: Service[..., Any], stack: StackFile, report: Reporter) -> Iterator[Any]:
    """The service's lifespan around a worker's: BootError if it does not begin, a record if it does not end well."""
    lifespan = service.alive()
    try:
        resources = lifespan.__enter__()
    except BaseException as error:
        raise stack.boot_error(error) from None
    try:
        yield resources
    finally:
        try:
            lifespan.__exit__(None, None, None)
        except Exception as error:
            report.lifespan_failed(error)
