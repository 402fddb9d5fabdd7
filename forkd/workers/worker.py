"""A worker's life: set up, serve, leave.

It decides nothing about the pool. Its orders come through `leash`; how it serves is up to the loop of its kind. It is
given bound sockets and writes one row of the scoreboard.
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
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import REQUESTS, Board
from forkd.ipc.worker_kinds import KINDS
from forkd.kernel import process, signals
from forkd.serving.service import Service
from forkd.workers.context import StackFile, WorkerContext
from forkd.workers.leash import Leash
from forkd.workers.reporter import Reporter
from forkd.workers.tenure import Tenure


def live(
    brief: Brief,
    service: Service[..., Any],
    doors: list[tuple[socket.socket, Door]],
    board: Board,
    slot: int,
    row: int,
    master: socket.socket,
    stack: int,
) -> None:
    """Runs a worker from birth to end, in a process just forked with all signals blocked.

    Raises BootError if the application's lifespan does not begin.
    """
    process.set_title(f"forkd: {brief.service}: worker {slot}, generation {brief.generation}")
    meter = Meter(board.row(row), keeps=brief.worker.black_box)
    meter.booting()
    leash = Leash(master, brief.log.fd, _end)
    inbox = signals.Inbox([signal.SIGTERM, signal.SIGIO])
    signals.ignore(signals.IGNORED_BELOW_MASTER)
    leash.listen()
    faulthandler.register(signal.SIGUSR2, stack, all_threads=True)
    process.unblock_signals()

    def wake() -> None:
        with suppress(BlockingIOError):
            os.eventfd_write(brief.wake, 1)

    report = Reporter.of(brief, slot)
    stack_file = StackFile(stack)
    with _alive(service, stack_file, report) as resources:
        _loop_for(brief, service)(
            WorkerContext(
                name=brief.service,
                service=service,
                doors=doors,
                limits=brief.worker.limits,
                board=board,
                meter=meter,
                leash=leash,
                inbox=inbox,
                resources=resources,
                tenure=Tenure(brief.worker.retirement, random.Random(), monotonic(), meter.row[REQUESTS]),
                access=brief.worker.access,
                threads=brief.worker.threads,
                stack=stack_file,
                wake=wake,
                report=report,
            )
        )
    meter.left()


def _loop_for(brief: Brief, service: Service[..., Any]) -> Callable[[WorkerContext], None]:
    """Returns the loop for this kind of worker; the fork server has already imported it."""
    serve: Callable[[WorkerContext], None] = import_module(KINDS[brief.worker.kind].loop_for(service.is_async)).serve
    return serve


def _end() -> None:
    """Ends at once when the master dies before this worker serves, because its lifespan may never return."""
    os._exit(Exit.FAILED)


@contextmanager
def _alive(service: Service[..., Any], stack: StackFile, report: Reporter) -> Iterator[Any]:
    """Wraps a worker in the service's lifespan: BootError if it does not begin, a log record if it ends badly."""
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
