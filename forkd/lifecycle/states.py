"""States of a fork server and of a worker, and the legal moves between them."""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from forkd.ipc.deadlines import NEVER
from forkd.ipc.order import Order

TELL_AGAIN: Final = 1.0  # a worker can miss an order in the microsecond before recv(2)


class WorkerState(Enum):
    BOOTING = "booting"
    SERVING = "serving"
    LEAVING = "leaving"
    DOOMED = "doomed"
    GONE = "gone"


class ForkServerState(Enum):
    BOOTING = "booting"
    READY = "ready"
    ENDING = "ending"
    GONE = "gone"


# A move to the same state is an order, or a kill, repeated.
WORKER_MOVES: Final = {
    WorkerState.BOOTING: {WorkerState.SERVING, WorkerState.LEAVING, WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.SERVING: {WorkerState.LEAVING, WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.LEAVING: {WorkerState.LEAVING, WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.DOOMED: {WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.GONE: set[WorkerState](),
}

FORK_SERVER_MOVES: Final = {
    ForkServerState.BOOTING: {ForkServerState.READY, ForkServerState.ENDING, ForkServerState.GONE},
    ForkServerState.READY: {ForkServerState.ENDING, ForkServerState.GONE},
    ForkServerState.ENDING: {ForkServerState.ENDING, ForkServerState.GONE},
    ForkServerState.GONE: set[ForkServerState](),
}


class IllegalMoveError(Exception):
    """A move that the table does not allow: a bug in forkd."""


class Worker(Struct):
    """A process in a slot. `since` is when it got its state, or an order again; `until` is how long that may last."""

    slot: int
    row: int
    born: float
    since: float
    until: float
    state: WorkerState = WorkerState.BOOTING
    order: Order = Order.DRAIN
    busy: bool = False
    retiring: bool = False
    overdue: bool = False
    kills: int = 0

    def move(self, state: WorkerState, now: float, until: float = NEVER) -> None:
        if state not in WORKER_MOVES[self.state]:
            raise IllegalMoveError(f"worker {self.slot}: {self.state.value} to {state.value}")
        self.state, self.since, self.until = state, now, until

    @property
    def staying(self) -> bool:
        return self.state in (WorkerState.BOOTING, WorkerState.SERVING)

    @property
    def due(self) -> float:
        return min(self.until, self.since + TELL_AGAIN) if self.state is WorkerState.LEAVING else self.until
