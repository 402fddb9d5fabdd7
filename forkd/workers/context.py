"""What a worker serves with, whichever its kind: `worker` makes it, the loops use it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from forkd.errors import BootError
from forkd.ipc.brief import Door
from forkd.ipc.deadlines import Deadlines
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import HIGHEST, PHASE, REQUESTS, SPARE, STOPPING, Board
from forkd.kernel.procfs import own_memory
from forkd.kernel.signals import Inbox
from forkd.serving.loading import application_traceback
from forkd.serving.service import Service
from forkd.workers.leash import Leash
from forkd.workers.reporter import Report
from forkd.workers.tenure import Tenure

_REASON_BYTES: Final = 16384
_CROWD: Final = 16


class StackFile:
    """The file where the master finds a worker's Python stack after SIGUSR2, or the reason why it did not start."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def boot_error(self, error: BaseException) -> BootError:
        """Writes down why the lifespan did not begin; returns the error to end the worker with."""
        text = f"the lifespan failed: {error!r}\n{application_traceback(error)}"
        os.write(self.fd, text.encode(errors="backslashreplace")[:_REASON_BYTES])
        return BootError(str(error))


class WorkerContext(NamedTuple):
    """`doors` are its listeners, `leash` and `inbox` bring its orders, `board` and `meter` hold its numbers.

    `resources` is what the lifespan yielded. With `access` each connection has an account. `threads` is the number of
    threads that run handlers, 0 for none. `wake` makes the master look at the scoreboard.
    """

    name: str
    service: Service[..., Any]
    doors: list[tuple[socket.socket, Door]]
    limits: Deadlines
    board: Board
    meter: Meter
    leash: Leash
    inbox: Inbox
    resources: Any
    tenure: Tenure
    access: bool
    threads: int
    stack: StackFile
    wake: Callable[[], None]
    report: Report

    @property
    def stopping(self) -> bool:
        """Whether the whole service stops, so that the accept queues must be emptied."""
        return self.board.header[PHASE] == STOPPING

    @property
    def is_crowded(self) -> bool:
        """Whether so many workers wait on the listeners that waking all of them for a connection costs too much."""
        return self.board.header[HIGHEST] > _CROWD

    def ask_for_spares(self) -> None:
        """Makes the master look if fewer workers are idle than it should keep ready."""
        spare = self.board.header[SPARE]
        if spare and self.board.idle() < spare:
            self.wake()

    def timeout(self, now: float, *others: float | None) -> float | None:
        """Returns the seconds until this worker has served long enough, or the least of `others`; None for never."""
        soonest = self.tenure.timeout(now)
        for wait in others:
            if wait is not None and (soonest is None or wait < soonest):
                soonest = wait
        return soonest

    def retire_in_time(self, now: float) -> None:
        """Reports it if this worker has served long enough; it then serves until it is ordered to leave."""
        if self.tenure.over(now, self.meter.row[REQUESTS], own_memory):
            self.meter.retires()
            self.wake()
