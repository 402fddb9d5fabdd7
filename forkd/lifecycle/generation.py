"""A fork server and its workers: their states, the legal moves between them, and the orders they get.

Pure, like `pool`, which decides how many workers there should be: no clock, no process, no socket. A
worker is a process that passes through a slot; it has a row of the scoreboard for as long as it lives.
Every process that is expected to do something has a deadline: `due` returns the first, `press` acts on it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Set
from itertools import count, islice
from typing import Final

from msgspec import Struct, field

from forkd.ipc.deadlines import NEVER
from forkd.ipc.order import Order
from forkd.lifecycle.backoff import REPLACE_BURST, Allowance, Backoff
from forkd.lifecycle.events import Abort, Action, Ended, EndForkServer, Fork, Kill, Plan, Tell
from forkd.lifecycle.states import FORK_SERVER_MOVES, ForkServerState, IllegalMoveError, Worker, WorkerState

KILL_AGAIN: Final = 2.0  # also from Abort to Kill, and from the order that ends an empty fork server to its Kill
FINISH_BEFORE_KILL: Final = 10.0
RETIRE_SHARE: Final = 4  # at most a quarter of a pool is replaced at the same time
KILLS_IN_VAIN: Final = 3  # no process survives this many: its fork server did not fork it, or does not report its end


class Generation(Struct):
    """A fork server and its workers, by slot; `failure` is why it cannot take over, and how a start then ends.

    `minimum` and `maximum` are the plan's until an operator asks for another size.
    """

    number: int
    plan: Plan
    jitter: random.Random
    since: float
    until: float
    state: ForkServerState = ForkServerState.BOOTING
    workers: dict[int, Worker] = field(default_factory=dict)
    backoff: dict[int, Backoff] = field(default_factory=dict)
    allowance: Allowance = field(default_factory=Allowance)
    failure: Ended | None = None
    minimum: int = 0
    maximum: int = 0

    def __post_init__(self) -> None:
        self.minimum = self.minimum or self.plan.minimum
        self.maximum = self.maximum or self.plan.maximum

    def move(self, state: ForkServerState, now: float, until: float = NEVER) -> None:
        if state not in FORK_SERVER_MOVES[self.state]:
            raise IllegalMoveError(f"fork server {self.number}: {self.state.value} to {state.value}")
        self.state, self.since, self.until = state, now, until

    # How large it may be.

    def fit(self, size: int) -> int:
        return max(self.minimum, min(size, self.maximum))

    def scaled(self, size: int) -> None:
        """Sets a fixed pool's size, or an elastic one's minimum."""
        self.minimum = max(1, size)
        fixed = self.plan.minimum == self.plan.maximum
        self.maximum = self.minimum if fixed else max(self.minimum, self.plan.maximum)

    def shifted(self, by: int) -> None:
        """Moves minimum and maximum together, by this many workers, down to a minimum of one."""
        by = max(by, 1 - self.minimum)
        self.minimum += by
        self.maximum += by

    # What is.

    @property
    def over(self) -> bool:
        return self.state is ForkServerState.GONE and not self.workers

    def staying(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.staying]

    def serving(self) -> int:
        return sum(1 for worker in self.workers.values() if worker.state is WorkerState.SERVING)

    def retiring(self) -> list[Worker]:
        """The workers that have served long enough, and serve on until their successors do."""
        return [worker for worker in self.workers.values() if worker.retiring and worker.state is WorkerState.SERVING]

    def successors(self, size: int) -> int:
        """How many more than `size` there may be, to succeed retiring workers; those never retire all at once."""
        return min(len(self.retiring()), max(1, size // RETIRE_SHARE))

    def missing(self, size: int) -> dict[int, float]:
        """The slots to fill until there are `size` workers and the successors of retiring ones.

        The lowest come first, each with the time from which it may be filled.
        """
        if self.state is not ForkServerState.READY:
            return {}
        number = size + self.successors(size) - len(self.staying())
        slots = islice(numbers_not_in(self.workers.keys(), 0), max(0, number))
        return {slot: self._slot(slot).until for slot in slots}

    def due(self) -> float:
        """The time at which to `press` again."""
        return min([self.until, *(worker.due for worker in self.workers.values())])

    def boots_by(self) -> float:
        """The time by which it has either come up or failed."""
        if self.state is ForkServerState.BOOTING:
            return self.until + self.plan.boot_timeout
        return max([self.since, *(each.until for each in self.workers.values() if each.state is WorkerState.BOOTING)])

    # What happened.

    def boot_failed(self, slot: int, reason: str, now: float) -> None:
        """Notes that the worker in `slot` could not start; the slot is tried again, later if it keeps failing."""
        self.failure = Ended(1, reason)
        self._slot(slot).failed(now, self.jitter)

    def crashed(self, slot: int, lived: float, now: float) -> None:
        """Notes that the worker in `slot` died while serving; it is replaced at once unless very many die."""
        self._slot(slot).lived(lived)
        self._slot(slot).until = self.allowance.take(now, self.maximum + REPLACE_BURST)

    def recycled(self, slot: int, lived: float) -> None:
        """Notes that the worker in `slot` has left by itself, or has retired."""
        self._slot(slot).lived(lived)

    # What to do.

    def fork(self, slot: int, row: int, now: float) -> Fork:
        self.workers[slot] = Worker(slot, row, now, now, now + self.plan.boot_timeout)
        return Fork(self.plan.service, self.number, slot, row)

    def press(self, now: float) -> list[Action]:
        """Does what is due: ends processes that are late, and repeats orders that may have been missed."""
        actions: list[Action] = []
        if now >= self.until:
            if self.state is ForkServerState.BOOTING:
                self.failure = Ended(1, f"service {self.plan.service}: {self._boot_over()}")
            actions.append(self._end(True, now))
        actions += [self._press(worker, now) for worker in self.workers.values() if now >= worker.due]
        stuck = any(worker.kills >= KILLS_IN_VAIN for worker in self.workers.values())
        if stuck and self.state is ForkServerState.READY:
            actions.append(self._end(True, now))
        return actions

    def send_off(self, order: Order, now: float, until: float) -> list[Action]:
        """Orders every worker to leave; a fork server without workers is ended."""
        hurry = {Order.DRAIN} if order is Order.FINISH else set[Order]()
        actions: list[Action] = [
            self._tell(worker, order, now, until)
            for worker in self.workers.values()
            if worker.staying or (worker.state is WorkerState.LEAVING and worker.order in hurry)
        ]
        if self.state is ForkServerState.BOOTING:
            actions.append(self._end(True, now))
        elif self.state is ForkServerState.READY and not self.workers:
            actions.append(self._end(False, now))
        return actions

    def drain(self, worker: Worker, now: float) -> Tell:
        """Orders one worker to leave."""
        return self._tell(worker, Order.DRAIN, now, self.drained_by(now))

    def drained_by(self, now: float) -> float:
        return now + self.plan.drain_timeout if self.plan.drain_timeout else NEVER

    def abort(self, worker: Worker, reason: str, now: float) -> Abort:
        """Ends a worker that is over its time, in such a way that its stack is written."""
        worker.overdue = True
        worker.move(WorkerState.DOOMED, now, now + KILL_AGAIN)
        return Abort(self.plan.service, self.number, worker.slot, reason)

    def kill(self, worker: Worker, reason: str, now: float) -> Kill:
        worker.kills += 1
        worker.move(WorkerState.DOOMED, now, now + KILL_AGAIN)
        return Kill(self.plan.service, self.number, worker.slot, reason)

    def _slot(self, slot: int) -> Backoff:
        return self.backoff.setdefault(slot, Backoff())

    def _press(self, worker: Worker, now: float) -> Action:
        if worker.state is WorkerState.BOOTING:
            over = self._boot_over()
            self.boot_failed(worker.slot, f"service {self.plan.service}: worker {worker.slot}: {over}", now)
            return self.abort(worker, over, now)
        if worker.state is WorkerState.DOOMED:
            return self.kill(worker, "it did not end by itself", now)
        if now < worker.until:
            return self._tell(worker, worker.order, now, worker.until)
        if worker.order is Order.DRAIN:
            return self._tell(worker, Order.FINISH, now, now + FINISH_BEFORE_KILL)
        return self.kill(worker, f"still there {FINISH_BEFORE_KILL:g} s after the order to finish", now)

    def _tell(self, worker: Worker, order: Order, now: float, until: float) -> Tell:
        worker.order = order
        worker.move(WorkerState.LEAVING, now, until)
        return Tell(self.plan.service, self.number, worker.slot, order)

    def _end(self, kill: bool, now: float) -> EndForkServer:
        self.move(ForkServerState.ENDING, now, now + KILL_AGAIN)
        return EndForkServer(self.plan.service, self.number, kill)

    def _boot_over(self) -> str:
        return f"not ready within its boot_timeout of {self.plan.boot_timeout:g} s"


def numbers_not_in(taken: Set[int], first: int) -> Iterator[int]:
    """The free numbers, from `first` on."""
    return (number for number in count(first) if number not in taken)
