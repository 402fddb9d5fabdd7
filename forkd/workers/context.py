"""What a worker has to serve with, whichever kind it is: `worker` fills it, `sync` and `event` serve from it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from forkd.errors import ForkdError
from forkd.ipc.brief import Door
from forkd.ipc.deadlines import Deadlines
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import PHASE, REQUESTS, SPARE, STOPPING, Board
from forkd.kernel.procfs import own_memory
from forkd.kernel.signals import Inbox
from forkd.serving.connection import Connection
from forkd.serving.outcome import Outcome
from forkd.serving.service import Service
from forkd.workers.account import Account
from forkd.workers.leash import Leash
from forkd.workers.tenure import Tenure


class Report(Protocol):
    """Where the facts of a worker go."""

    def ended(self, connection: Connection, outcome: Outcome, account: Account | None) -> None: ...

    def accept_failed(self, error: OSError) -> None: ...

    def accept_goes_on(self, seconds: float) -> None: ...

    def lifespan_failed(self, error: Exception) -> None: ...


class WorkerContext(NamedTuple):
    """`wake` tells the master to look at the scoreboard; `exclusive` is as in `doors`; `access`: each connection has an
    account.

    `threads` is how many run the handlers of an `event` worker, 0 for its loop.
    `stack` is the file that the master finds the Python stack in, when it asks for that by SIGUSR2.
    `boot_error` leaves word of why a lifespan does not begin, and gives the error to end with.
    """

    name: str
    service: Service[..., Any]
    doors: list[tuple[socket.socket, Door]]
    limits: Deadlines
    board: Board
    meter: Meter
    orders: Leash
    inbox: Inbox
    resources: Any
    tenure: Tenure
    exclusive: bool
    access: bool
    threads: int
    stack: int
    wake: Callable[[], None]
    report: Report
    boot_error: Callable[[BaseException], ForkdError]

    @property
    def stopping(self) -> bool:
        """Whether the whole service stops, so that the accept queues are to be emptied."""
        return self.board.header[PHASE] == STOPPING

    def ask_for_spares(self) -> None:
        """Has the master look when fewer workers are idle than are to be kept ready."""
        spare = self.board.header[SPARE]
        if spare and self.board.idle() < spare:
            self.wake()

    def timeout(self, now: float, *others: float | None) -> float | None:
        """Seconds until this worker has served long enough, or until the first of `others`; None for never."""
        soonest = self.tenure.timeout(now)
        for wait in others:
            if wait is not None and (soonest is None or wait < soonest):
                soonest = wait
        return soonest

    def retire_in_time(self, now: float) -> None:
        """A worker that has served long enough says so, and goes on until it is told to leave."""
        if self.tenure.over(now, self.meter.row[REQUESTS], own_memory):
            self.meter.retires()
            self.wake()
