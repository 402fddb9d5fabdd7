"""One service's generations and workers: what is, compared with what is wanted.

Pure, like `lifecycle`, of which it is a part: no clock, no process, no socket. A pool has at most
one generation that serves and one that is coming; older ones are leaving. A worker is a slot's
number in a generation, and has a row of the scoreboard for as long as it lives. Each method is
given the time (seconds, monotonic) and returns the actions that lead to what is wanted.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from forkd.events import (
    Abort,
    Action,
    Departure,
    EndForkServer,
    Fork,
    Kill,
    Observed,
    Order,
    Plan,
    StartForkServer,
    Tell,
)

NEVER: Final = float("inf")
TELL_AGAIN: Final = 1.0  # an order can miss a worker in the microsecond before recv(2); see `connection`
KILL_AFTER_ABORT: Final = 2.0
FINISH_BEFORE_KILL: Final = 10.0
SURPLUS_BEFORE_SHRINK: Final = 10.0
GROWTH_LIMIT: Final = 32
GROWTH_MEMORY: Final = 1.0
LEAVING_LIMIT: Final = 2
BACKOFF_FIRST: Final = 0.5
BACKOFF_LAST: Final = 30.0
BACKOFF_JITTER: Final = 0.2
BACKOFF_MEMORY: Final = 60.0


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


WORKER_MOVES: Final = {
    WorkerState.BOOTING: {WorkerState.SERVING, WorkerState.LEAVING, WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.SERVING: {WorkerState.LEAVING, WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.LEAVING: {WorkerState.DOOMED, WorkerState.GONE},
    WorkerState.DOOMED: {WorkerState.GONE},
    WorkerState.GONE: set[WorkerState](),
}
FORK_SERVER_MOVES: Final = {
    ForkServerState.BOOTING: {ForkServerState.READY, ForkServerState.ENDING, ForkServerState.GONE},
    ForkServerState.READY: {ForkServerState.ENDING, ForkServerState.GONE},
    ForkServerState.ENDING: {ForkServerState.GONE},
    ForkServerState.GONE: set[ForkServerState](),
}


class IllegalMoveError(Exception):
    """A state was asked to become one that its table of moves does not allow: a mistake of forkd's own."""


@dataclass(slots=True)
class Worker:
    """A process in a slot; `since` is when it got its state."""

    slot: int
    row: int
    since: float
    born: float
    state: WorkerState = WorkerState.BOOTING
    order: Order | None = None
    told: float = 0.0
    busy: bool = False
    overdue: bool = False

    def move(self, state: WorkerState, now: float) -> None:
        if state not in WORKER_MOVES[self.state]:
            raise IllegalMoveError(f"worker {self.slot}: {self.state.value} to {state.value}")
        self.state = state
        self.since = now

    @property
    def staying(self) -> bool:
        return self.state in (WorkerState.BOOTING, WorkerState.SERVING)


@dataclass(slots=True)
class Backoff:
    """When something that keeps failing may be tried again: 0, 0.5, 1, 2 .. 30 s, with jitter."""

    failures: int = 0
    until: float = 0.0

    def failed(self, now: float, lived: float, jitter: random.Random) -> None:
        self.failures = 1 if lived >= BACKOFF_MEMORY else self.failures + 1
        delay = 0.0 if self.failures == 1 else min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** (self.failures - 2))
        self.until = now + delay * jitter.uniform(1 - BACKOFF_JITTER, 1 + BACKOFF_JITTER)


@dataclass(slots=True)
class Generation:
    """A fork server and its workers, by slot."""

    number: int
    plan: Plan
    since: float
    state: ForkServerState = ForkServerState.BOOTING
    workers: dict[int, Worker] = field(default_factory=dict)
    drain_until: float = NEVER
    backoff: dict[int, Backoff] = field(default_factory=dict)

    def move(self, state: ForkServerState, now: float) -> None:
        if state not in FORK_SERVER_MOVES[self.state]:
            raise IllegalMoveError(f"fork server {self.number}: {self.state.value} to {state.value}")
        self.state = state
        self.since = now

    @property
    def over(self) -> bool:
        return self.state is ForkServerState.GONE and not self.workers

    def staying(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.staying]

    def serving(self) -> int:
        return sum(1 for worker in self.workers.values() if worker.state is WorkerState.SERVING)


class Pool:
    """The generations of one service, and how large the serving one is to be."""

    def __init__(self, plan: Plan, jitter: random.Random) -> None:
        self.plan = plan
        self.wanted = True
        self.target = plan.minimum
        self.serving: Generation | None = None
        self.coming: Generation | None = None
        self.leaving: list[Generation] = []
        self.exits = {"recycled": 0, "crashed": 0, "timed_out": 0}
        self.due = NEVER
        self._jitter = jitter
        self._next_generation = 1
        self._boot_backoff = Backoff()
        self._grown = -NEVER
        self._step = 1
        self._surplus_since: float | None = None

    # What is.

    def generations(self) -> Iterator[Generation]:
        yield from self.leaving
        if self.serving is not None:
            yield self.serving
        if self.coming is not None:
            yield self.coming

    def generation(self, number: int) -> Generation | None:
        return next((generation for generation in self.generations() if generation.number == number), None)

    def worker(self, number: int, slot: int) -> Worker | None:
        generation = self.generation(number)
        return None if generation is None else generation.workers.get(slot)

    @property
    def empty(self) -> bool:
        return not any(True for _ in self.generations())

    def prepared(self) -> bool:
        """The coming generation could take over: it has as many workers serving as are wanted."""
        coming = self.coming
        return (
            coming is not None
            and coming.state is ForkServerState.READY
            and coming.serving() >= _clamp(self.target, coming.plan)
        )

    # What happened.

    def fork_server_gone(self, number: int, now: float) -> None:
        """Absorbs the end of a fork server; its workers go on."""
        generation = self.generation(number)
        if generation is None or generation.state is ForkServerState.GONE:
            return
        if generation.state is not ForkServerState.ENDING:
            self._boot_backoff.failed(now, now - generation.since, self._jitter)
        generation.move(ForkServerState.GONE, now)
        if generation is self.coming:
            self.dismiss(now)

    def worker_ready(self, number: int, slot: int, now: float) -> None:
        worker = self.worker(number, slot)
        if worker is not None and worker.state is WorkerState.BOOTING:
            worker.move(WorkerState.SERVING, now)

    def worker_gone(self, number: int, slot: int, departure: Departure, now: float) -> None:
        generation = self.generation(number)
        worker = None if generation is None else generation.workers.pop(slot, None)
        if generation is None or worker is None:
            return
        before = worker.state
        worker.move(WorkerState.GONE, now)
        if worker.overdue:
            self.exits["timed_out"] += 1
        elif before is WorkerState.SERVING and departure is Departure.LEFT:
            self.exits["recycled"] += 1
        elif before in (WorkerState.BOOTING, WorkerState.SERVING) or departure is Departure.CRASHED:
            self.exits["crashed"] += before is not WorkerState.DOOMED
        if before is not WorkerState.LEAVING and departure is not Departure.LEFT and not worker.overdue:
            generation.backoff.setdefault(slot, Backoff()).failed(now, now - worker.born, self._jitter)

    def observed(self, facts: Observed, now: float) -> list[Action]:
        """Absorbs what the scoreboard says; a handler over its time is aborted."""
        actions: list[Action] = []
        for generation in self.generations():
            for slot, worker in generation.workers.items():
                worker.busy = (generation.number, slot) in facts.busy
                began = facts.requests.get((generation.number, slot))
                allowed = generation.plan.request_timeout
                if not allowed or began is None or worker.state in (WorkerState.BOOTING, WorkerState.DOOMED):
                    continue
                if now - began >= allowed:
                    actions.append(self._abort(generation, worker, now, f"request_timeout of {allowed:g} s is over"))
        return actions

    def scaled(self, size: int) -> None:
        """Another size, until the next reload: a fixed pool's number, or an elastic one's minimum."""
        size = max(1, size)
        fixed = self.plan.minimum == self.plan.maximum
        self._resized(size, size if fixed else max(size, self.plan.maximum))

    def shifted(self, by: int) -> None:
        """A worker more or fewer: minimum and maximum move together, to one at least."""
        by = max(by, 1 - self.plan.minimum)
        self._resized(self.plan.minimum + by, self.plan.maximum + by)
        self.target = _clamp(self.target + by, self.plan)

    # What to do.

    def begin(self, plan: Plan, now: float) -> list[Action]:
        """Starts a new generation beside the one that serves."""
        actions = self.dismiss(now)
        self.coming = Generation(self._next_generation, plan, now)
        self._next_generation += 1
        return [*actions, StartForkServer(self.plan.service, self.coming.number)]

    def promote(self, now: float) -> None:
        """The coming generation becomes the serving one, the serving one leaves."""
        assert self.coming is not None
        if self.serving is not None:
            self._leave(self.serving, now)
        self.plan = self.coming.plan
        self.target = _clamp(self.target, self.plan)
        self.serving, self.coming = self.coming, None

    def dismiss(self, now: float) -> list[Action]:
        """Gives up the coming generation; what it has accepted meanwhile is still served."""
        coming, self.coming = self.coming, None
        if coming is None:
            return []
        self._leave(coming, now)
        if coming.state is not ForkServerState.BOOTING:
            return []
        coming.move(ForkServerState.ENDING, now)
        return [EndForkServer(self.plan.service, coming.number, kill=True)]

    def retire(self, now: float) -> list[Action]:
        """The service is no longer wanted."""
        self.wanted = False
        actions = self.dismiss(now)
        if self.serving is not None:
            self._leave(self.serving, now)
            self.serving = None
        return actions

    def converge(self, now: float) -> list[Action]:
        """The actions that bring the pool nearer to its plan; `due` is when to ask again."""
        self.due = NEVER
        actions: list[Action] = []
        if self.wanted and self.coming is None and (self.serving is None or self.serving.state is ForkServerState.GONE):
            if now >= self._boot_backoff.until:
                actions += self.begin(self.plan, now)
            else:
                self._wait_until(self._boot_backoff.until)
        if self.coming is not None and self.coming.state is ForkServerState.BOOTING:
            self._wait_until(self.coming.since + self.coming.plan.boot_timeout)
        for generation in (self.serving, self.coming):
            if generation is not None and generation.state is ForkServerState.READY:
                actions += self._fill(generation, now)
        if self.serving is not None:
            self._resize(self.serving, now)
            actions += self._fill(self.serving, now) if self.serving.state is ForkServerState.READY else []
            actions += self._shrink(self.serving, now)
        actions += self._drain(now)
        for generation in self.generations():
            actions += self._press(generation, now)
        return actions

    def boot_overdue(self, now: float) -> bool:
        """The coming fork server has had its time."""
        coming = self.coming
        return (
            coming is not None
            and coming.state is ForkServerState.BOOTING
            and now >= coming.since + coming.plan.boot_timeout
        )

    def send_off(self, order: Order, now: float) -> list[Action]:
        """Tells every worker to leave; fork servers without any are let go."""
        self.due = NEVER
        actions: list[Action] = []
        for generation in self.generations():
            actions += self._send_off(generation, order, now)
            actions += self._press(generation, now)
        self._clear()
        return actions

    def kill_all(self, now: float, reason: str) -> list[Action]:
        """Kills every worker that is still there."""
        return [
            self._kill(generation, worker, now, reason)
            for generation in self.generations()
            for worker in generation.workers.values()
            if worker.state is not WorkerState.DOOMED or worker.since + KILL_AFTER_ABORT <= now
        ]

    def _resized(self, minimum: int, maximum: int) -> None:
        self.plan = replace(self.plan, minimum=minimum, maximum=maximum)
        self.target = _clamp(self.target, self.plan)
        if self.coming is not None:
            self.coming.plan = replace(self.coming.plan, minimum=minimum, maximum=maximum)

    def _fill(self, generation: Generation, now: float) -> list[Action]:
        """Forks what is missing, each slot within its back-off."""
        actions: list[Action] = []
        missing = _clamp(self.target, generation.plan if generation is self.coming else self.plan)
        missing -= len(generation.staying())
        for slot in _free(generation.workers, missing):
            backoff = generation.backoff.get(slot)
            if backoff is not None and now < backoff.until:
                self._wait_until(backoff.until)
                continue
            rows = {worker.row for each in self.generations() for worker in each.workers.values()}
            row = next(_numbers_not_in(rows, 1))
            generation.workers[slot] = Worker(slot, row, now, now)
            actions.append(Fork(self.plan.service, generation.number, slot, row))
        return actions

    def _resize(self, serving: Generation, now: float) -> None:
        """Moves an elastic pool's target by how many workers are idle."""
        plan = self.plan
        if plan.minimum == plan.maximum:
            self.target = plan.minimum
            return
        staying = serving.staying()
        spare = max(1, plan.spare)
        idle = sum(1 for worker in staying if not worker.busy)
        needed = _clamp(len(staying) - idle + spare, plan)
        if idle < spare:
            self._surplus_since = None
            if needed > self.target:
                self._step = min(GROWTH_LIMIT, self._step * 2) if now - self._grown < GROWTH_MEMORY else 1
                self._grown = now
                self.target = _clamp(max(needed, len(staying) + self._step), plan)
        elif needed >= self.target:
            self._surplus_since = None
        elif self._surplus_since is None:
            self._surplus_since = now
        elif now - self._surplus_since >= SURPLUS_BEFORE_SHRINK:
            # Half of what is too many: large pools shrink in a minute, and a lull costs few workers.
            self.target -= (self.target - needed + 1) // 2
            self._surplus_since = now
        if self._surplus_since is not None:
            self._wait_until(self._surplus_since + SURPLUS_BEFORE_SHRINK)

    def _shrink(self, serving: Generation, now: float) -> list[Action]:
        """Sends idle workers away, the highest slots first; busy ones are left in peace."""
        staying = serving.staying()
        idle = sorted((worker for worker in staying if not worker.busy), key=lambda worker: -worker.slot)
        return [self._tell(serving, worker, Order.DRAIN, now) for worker in idle[: max(0, len(staying) - self.target)]]

    def _drain(self, now: float) -> list[Action]:
        """Lets the leaving generations go; the oldest of too many is hurried."""
        actions: list[Action] = []
        hurried = len(self.leaving) - LEAVING_LIMIT
        for age, generation in enumerate(self.leaving):
            if age < hurried:
                generation.drain_until = min(generation.drain_until, now)
            late = now >= generation.drain_until
            actions += self._send_off(generation, Order.FINISH if late else Order.DRAIN, now)
            if generation.workers and not late:
                self._wait_until(generation.drain_until)
        self._clear()
        return actions

    def _send_off(self, generation: Generation, order: Order, now: float) -> list[Action]:
        actions: list[Action] = [
            self._tell(generation, worker, order, now)
            for worker in generation.workers.values()
            if worker.staying or (worker.state is WorkerState.LEAVING and worker.order is not order)
        ]
        booting = generation.state is ForkServerState.BOOTING
        if booting or (generation.state is ForkServerState.READY and not generation.workers):
            generation.move(ForkServerState.ENDING, now)
            actions.append(EndForkServer(self.plan.service, generation.number, kill=booting))
        return actions

    def _press(self, generation: Generation, now: float) -> list[Action]:
        """Repeats orders, and ends what does not follow them."""
        actions: list[Action] = []
        for worker in list(generation.workers.values()):
            match worker.state:
                case WorkerState.BOOTING:
                    limit = worker.since + generation.plan.boot_timeout
                    if now >= limit:
                        actions.append(self._abort(generation, worker, now, "boot_timeout is over"))
                case WorkerState.LEAVING:
                    limit = worker.told + TELL_AGAIN
                    if worker.order is Order.FINISH and now >= generation.drain_until + FINISH_BEFORE_KILL:
                        actions.append(self._kill(generation, worker, now, "drain_timeout is over"))
                    elif now >= limit:
                        assert worker.order is not None
                        actions.append(self._tell(generation, worker, worker.order, now))
                        limit = now + TELL_AGAIN
                case WorkerState.DOOMED:
                    limit = worker.since + KILL_AFTER_ABORT
                    if now >= limit:
                        actions.append(self._kill(generation, worker, now, "it did not end by itself"))
                        worker.since = now
                        limit = now + KILL_AFTER_ABORT
                case _:
                    continue
            self._wait_until(limit)
        return actions

    def _leave(self, generation: Generation, now: float) -> None:
        generation.drain_until = now + generation.plan.drain_timeout if generation.plan.drain_timeout else NEVER
        self.leaving.append(generation)

    def _clear(self) -> None:
        self.leaving = [generation for generation in self.leaving if not generation.over]
        if self.serving is not None and self.serving.over:
            self.serving = None
        if self.coming is not None and self.coming.over:
            self.coming = None

    def _tell(self, generation: Generation, worker: Worker, order: Order, now: float) -> Tell:
        if worker.state is not WorkerState.LEAVING:
            worker.move(WorkerState.LEAVING, now)
        worker.order = order
        worker.told = now
        return Tell(self.plan.service, generation.number, worker.slot, order)

    def _abort(self, generation: Generation, worker: Worker, now: float, reason: str) -> Abort:
        worker.overdue = worker.state is not WorkerState.BOOTING
        worker.move(WorkerState.DOOMED, now)
        self._wait_until(now + KILL_AFTER_ABORT)
        return Abort(self.plan.service, generation.number, worker.slot, reason)

    def _kill(self, generation: Generation, worker: Worker, now: float, reason: str) -> Kill:
        if worker.state is not WorkerState.DOOMED:
            worker.move(WorkerState.DOOMED, now)
        worker.since = now
        return Kill(self.plan.service, generation.number, worker.slot, reason)

    def _wait_until(self, time: float) -> None:
        self.due = min(self.due, time)


def _clamp(size: int, plan: Plan) -> int:
    return max(plan.minimum, min(size, plan.maximum))


def _free(workers: dict[int, Worker], count: int) -> list[int]:
    """The `count` lowest slots without a worker."""
    numbers = _numbers_not_in(set(workers), 0)
    return [next(numbers) for _ in range(count)]


def _numbers_not_in(taken: set[int], first: int) -> Iterator[int]:
    number = first
    while True:
        if number not in taken:
            yield number
        number += 1
