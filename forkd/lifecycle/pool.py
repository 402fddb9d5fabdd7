"""One service's generations: what exists, compared with what is wanted.

Pure: no clock, no process, no socket. A pool has at most one generation that serves and one that is coming;
older ones are leaving. Events are noted (absorb); `converge` returns the actions that lead to what is wanted.
Times are monotonic seconds. The states of fork servers and workers, and their orders, are in `generation`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from msgspec import Struct, field

from forkd.ipc.deadlines import NEVER
from forkd.ipc.order import Order
from forkd.lifecycle.backoff import Backoff
from forkd.lifecycle.events import (
    Action,
    Departure,
    Ended,
    ForkServerGone,
    Mend,
    Observed,
    Plan,
    StartForkServer,
    WorkerGone,
)
from forkd.lifecycle.generation import FINISH_BEFORE_KILL, Generation, numbers_not_in
from forkd.lifecycle.states import ForkServerState, Worker, WorkerState

SURPLUS_BEFORE_SHRINK: Final = 10.0
GROWTH_LIMIT: Final = 32
GROWTH_MEMORY: Final = 3.0  # longer than the master's longest wait, so that growth seen once a second still doubles
LEAVING_LIMIT: Final = 2


class Size(Struct):
    """How many workers are wanted, by how many are busy: it grows at once and shrinks slowly."""

    target: int = 0
    step: int = 1
    grown: float = -NEVER
    surplus_since: float = NEVER

    def follow(self, serving: Generation, now: float) -> None:
        busy = sum(1 for worker in serving.staying() if worker.busy)
        needed = serving.fit(busy + max(1, serving.plan.spare))
        if needed < self.target:
            self.surplus_since = min(self.surplus_since, now)
            if now >= self.due:
                # Half of the surplus: large pools shrink in a minute, and a lull costs few workers.
                self.target -= (self.target - needed + 1) // 2
                self.surplus_since = now
            return
        self.surplus_since = NEVER
        if needed > self.target:
            self.step = min(GROWTH_LIMIT, self.step * 2) if now < self.grown + GROWTH_MEMORY else 1
            self.grown = now
            self.target = serving.fit(max(needed, self.target + self.step))

    @property
    def due(self) -> float:
        return self.surplus_since + SURPLUS_BEFORE_SHRINK


class Pool(Struct):
    """The generations of one service, and how large the serving one, which has `plan`, should be.

    Since `unserved_since` it has had no serving worker although it should have one.
    """

    plan: Plan
    jitter: random.Random
    serving: Generation | None = None
    coming: Generation | None = None
    leaving: list[Generation] = field(default_factory=list)
    exits: dict[str, int] = field(default_factory=lambda: {"recycled": 0, "crashed": 0, "timed_out": 0})
    size: Size = field(default_factory=Size)
    next_generation: int = 1
    boot_backoff: Backoff = field(default_factory=Backoff)
    unserved_since: float = NEVER

    # What is.

    @property
    def target(self) -> int:
        return self.size.target

    @property
    def empty(self) -> bool:
        return not any(True for _ in self.generations())

    @property
    def failure(self) -> Ended | None:
        """Why the coming generation cannot take over, if it cannot."""
        return None if self.coming is None else self.coming.failure

    @property
    def due(self) -> float:
        """The time at which to press and converge again."""
        times = [generation.due() for generation in self.generations()]
        for generation in self._filled():
            times += self._missing(generation).values()
        if self.serving is not None:
            times.append(self.size.due)
        if self._orphan() is not None:
            times.append(self.boot_backoff.until)
        return min(times, default=NEVER)

    def generations(self) -> Iterator[Generation]:
        yield from self.leaving
        yield from self._filled()

    def generation(self, number: int) -> Generation | None:
        return next((generation for generation in self.generations() if generation.number == number), None)

    def worker(self, number: int, slot: int) -> Worker | None:
        generation = self.generation(number)
        return None if generation is None else generation.workers.get(slot)

    def prepared(self) -> bool:
        """The coming generation could take over: it has as many workers serving as are wanted."""
        coming = self.coming
        return (
            coming is not None and coming.state is ForkServerState.READY and coming.serving() >= coming.fit(self.target)
        )

    def given_up(self, now: float) -> bool:
        """Whether no worker has served for longer than a new worker, or a fork server and a worker, may take to boot.

        A serving worker may be busy, even for ever if the settings allow that; one that is over its time is ended,
        and then no longer serves. A pool that should have no workers is well.
        """
        boots = 1 if self.serving is not None and self.serving.state is ForkServerState.READY else 2
        return now >= self.unserved_since + boots * self.plan.boot_timeout

    # What happened.

    def note(self, now: float) -> None:
        """Notes whether the pool is served."""
        served = self.serving is None or any(each.serving() for each in self.generations())
        self.unserved_since = NEVER if served else min(self.unserved_since, now)

    def fork_server_ready(self, number: int, now: float) -> None:
        generation = self.generation(number)
        if generation is not None and generation.state is ForkServerState.BOOTING:
            generation.move(ForkServerState.READY, now)

    def fork_server_gone(self, event: ForkServerGone, now: float) -> None:
        """Absorbs the end of a fork server; its workers continue."""
        generation = self.generation(event.generation)
        if generation is None or generation.state is ForkServerState.GONE:
            return
        if generation is self.serving:
            self.boot_backoff.lived(now - generation.since)
            self.boot_backoff.failed(now, self.jitter)
        generation.failure = Ended(event.status, event.reason)
        generation.move(ForkServerState.GONE, now)

    def worker_ready(self, number: int, slot: int, now: float) -> None:
        worker = self.worker(number, slot)
        if worker is not None and worker.state is WorkerState.BOOTING:
            worker.move(WorkerState.SERVING, now)

    def worker_gone(self, event: WorkerGone, now: float) -> list[Action]:
        """Absorbs the end of a worker; one that did not leave in order may have shut down the service's listeners."""
        generation = self.generation(event.generation)
        worker = None if generation is None else generation.workers.pop(event.slot, None)
        if generation is None or worker is None:
            return []
        lived = now - worker.born
        match worker.state, event.departure:
            case WorkerState.BOOTING, departure:
                self.exits["crashed"] += departure is not Departure.LEFT  # it was never forked
                generation.boot_failed(event.slot, event.reason, now)
            case WorkerState.SERVING, Departure.LEFT:
                self.exits["recycled"] += 1
                generation.recycled(event.slot, lived)
            case WorkerState.LEAVING, Departure.LEFT if worker.retiring:
                self.exits["recycled"] += 1
                generation.recycled(event.slot, lived)
            case WorkerState.SERVING, _:
                self.exits["crashed"] += 1
                generation.crashed(event.slot, lived, now)
            case WorkerState.LEAVING, Departure.CRASHED:
                self.exits["crashed"] += 1
            case _:
                self.exits["timed_out"] += worker.overdue
        worker.move(WorkerState.GONE, now)
        return [] if event.departure is Departure.LEFT else [Mend(event.service)]

    def observed(self, facts: Observed, now: float) -> list[Action]:
        """Absorbs what the scoreboard shows; a worker whose handler is over its time is aborted."""
        actions: list[Action] = []
        for generation in self.generations():
            allowed = generation.plan.request_timeout or NEVER
            for slot, worker in generation.workers.items():
                worker.busy = (generation.number, slot) in facts.busy
                worker.retiring = (generation.number, slot) in facts.retiring
                began = facts.requests.get((generation.number, slot), NEVER)
                if now >= began + allowed and worker.state in (WorkerState.SERVING, WorkerState.LEAVING):
                    actions.append(generation.abort(worker, f"request_timeout of {allowed:g} s is over", now))
        return actions

    def scaled(self, size: int) -> None:
        """Sets another size, until the next reload."""
        for generation in self._filled():
            generation.scaled(size)
        self._fit(self.target)

    def shifted(self, by: int) -> None:
        """Adds or removes workers, until the next reload."""
        for generation in self._filled():
            generation.shifted(by)
        self._fit(self.target + by)

    # What to do.

    def begin(self, plan: Plan, now: float, like: Generation | None = None) -> Action:
        """Starts a new generation beside the serving one; it gets its bounds from `like`, if that is given."""
        self.dismiss()
        coming = Generation(self.next_generation, plan, self.jitter, now, now + plan.boot_timeout)
        if like is not None:
            coming.minimum, coming.maximum = like.minimum, like.maximum
        self.next_generation += 1
        self.coming = coming
        return StartForkServer(plan.service, coming.number)

    def promote(self) -> None:
        """Makes the coming generation the serving one; the one before leaves."""
        coming, self.coming = self.coming, None
        assert coming is not None
        self.retire()
        self.serving, self.plan = coming, coming.plan
        self._fit(self.target)

    def dismiss(self) -> None:
        """Gives up the coming generation; what it has already accepted is still served."""
        if self.coming is not None:
            self.leaving.append(self.coming)
            self.coming = None

    def retire(self) -> None:
        """Wants no workers any more; what has been accepted is still served."""
        self.dismiss()
        if self.serving is not None:
            self.leaving.append(self.serving)
            self.serving = None

    def retry(self, now: float) -> None:
        """Tries again after a replacement failed: another fork server, or other workers of the same."""
        assert self.coming is not None
        self.coming.failure = None
        if self.coming.state is not ForkServerState.READY:
            self.boot_backoff.failed(now, self.jitter)
            self.dismiss()

    def press(self, now: float) -> list[Action]:
        """Ends processes that are late, and repeats orders that may have been missed."""
        return [action for generation in self.generations() for action in generation.press(now)]

    def converge(self, now: float) -> list[Action]:
        """Returns the actions that bring the pool nearer to its plan; `due` is when to ask again."""
        actions: list[Action] = []
        orphan = self._orphan()
        if orphan is not None and now >= self.boot_backoff.until:
            actions.append(self.begin(orphan.plan, now, orphan))
        if self.serving is not None:
            self.size.follow(self.serving, now)
        for generation in self._filled():
            actions += self._fill(generation, now)
        if self.serving is not None:
            actions += self._shrink(self.serving, now)
        return actions + self._drain(now)

    def finish(self, now: float) -> list[Action]:
        """Orders every worker of a retired pool to leave after its request."""
        actions = [action for each in self.leaving for action in each.send_off(Order.FINISH, now, NEVER)]
        self._forget()
        return actions

    def kill(self, reason: str, now: float) -> list[Action]:
        """Kills every worker that is not about to be killed."""
        return [
            generation.kill(worker, reason, now)
            for generation in self.generations()
            for worker in generation.workers.values()
            if worker.state is not WorkerState.DOOMED
        ]

    def _orphan(self) -> Generation | None:
        """The serving generation, if its fork server is dead and no other is coming."""
        serving = self.serving
        dead = serving is not None and serving.state is ForkServerState.GONE
        return serving if dead and self.coming is None else None

    def _filled(self) -> list[Generation]:
        return [generation for generation in (self.serving, self.coming) if generation is not None]

    def _missing(self, generation: Generation) -> dict[int, float]:
        return generation.missing(generation.fit(self.target))

    def _fill(self, generation: Generation, now: float) -> list[Action]:
        """Forks the missing workers whose slots are not waiting for a back-off."""
        rows = numbers_not_in({worker.row for each in self.generations() for worker in each.workers.values()}, 1)
        slots = [slot for slot, until in self._missing(generation).items() if now >= until]
        return [generation.fork(slot, next(rows), now) for slot in slots]

    def _shrink(self, serving: Generation, now: float) -> list[Action]:
        """Lets workers retire that have successors; then sends surplus idle workers away, never busy ones.

        Workers that do not serve yet go first, then the highest slots.
        """
        retired = serving.retiring()[: max(0, serving.serving() - self.target)]
        actions: list[Action] = [serving.drain(worker, now) for worker in retired]
        staying = serving.staying()
        surplus = len(staying) - self.target - serving.successors(self.target)
        idle = [worker for worker in staying if not worker.busy]
        idle.sort(key=lambda worker: (worker.state is WorkerState.SERVING, -worker.slot))
        return actions + [serving.drain(worker, now) for worker in idle[: max(0, surplus)]]

    def _drain(self, now: float) -> list[Action]:
        """Drains the leaving generations; if there are too many, the oldest are hurried."""
        actions: list[Action] = []
        for age, generation in enumerate(self.leaving):
            if age < len(self.leaving) - LEAVING_LIMIT:
                actions += generation.send_off(Order.FINISH, now, now + FINISH_BEFORE_KILL)
            else:
                actions += generation.send_off(Order.DRAIN, now, generation.drained_by(now))
        self._forget()
        return actions

    def _forget(self) -> None:
        self.leaving = [generation for generation in self.leaving if not generation.over]

    def _fit(self, size: int) -> None:
        self.size.target = size if self.serving is None else self.serving.fit(size)
