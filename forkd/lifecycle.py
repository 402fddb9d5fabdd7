"""The life of the whole server: events in, with the time; actions out; nothing else happens.

First it is written down what an event taught (absorb), then what is gets compared with what is
wanted, and the difference is returned (converge). Reload, crash, resize and stop take the same
path. It imports no os, signal, socket or time: `master` waits, and acts on what comes back.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from forkd.events import (
    Abandoned,
    Action,
    Announce,
    BeginStop,
    Committed,
    Event,
    Exit,
    Forgotten,
    ForkServerGone,
    ForkServerReady,
    Observed,
    Order,
    Plan,
    ReloadAsked,
    ScaleAsked,
    Started,
    StopAsked,
    TimePassed,
    WorkerGone,
    WorkerReady,
)
from forkd.pool import NEVER, ForkServerState, IllegalMoveError, Pool, WorkerState

QUICK_STOP: Final = 2.0
KILL_AGAIN: Final = 1.0


class Phase(Enum):
    """What the master is doing."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    QUITTING = "quitting"
    ENDED = "ended"


PHASE_MOVES: Final = {
    Phase.STARTING: {Phase.SERVING, Phase.STOPPING, Phase.QUITTING},
    Phase.SERVING: {Phase.STOPPING, Phase.QUITTING},
    Phase.STOPPING: {Phase.QUITTING, Phase.ENDED},
    Phase.QUITTING: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}


@dataclass(slots=True)
class Reload:
    """New generations on their way, all of them or none."""

    plans: dict[str, Plan]


class Lifecycle:
    """The pools of all services, and the phase of the master."""

    def __init__(self, plans: Iterable[Plan], *, stop_timeout: float, jitter: random.Random) -> None:
        self.phase = Phase.STARTING
        self.pools = {plan.service: Pool(plan, jitter) for plan in plans}
        self.reload: Reload | None = None
        self.stop_timeout = stop_timeout
        self._jitter = jitter
        self._stop_by = NEVER
        self._exit = Exit(0)

    def handle(self, event: Event, now: float) -> list[Action]:
        """Absorbs an event, then gives the actions towards what is wanted. `now` is monotonic, in seconds."""
        if self.phase is Phase.ENDED:
            return []
        return [*self._absorb(event, now), *self._converge(now)]

    def due(self) -> float:
        """When to come back with TimePassed at the latest: a time, or infinity."""
        due = min((pool.due for pool in self.pools.values()), default=NEVER)
        return min(due, self._stop_by)

    def serving(self) -> bool:
        """Every service has a worker serving."""
        return self.phase is Phase.SERVING and all(
            any(generation.serving() for generation in pool.generations()) for pool in self.pools.values()
        )

    # Absorb.

    def _absorb(self, event: Event, now: float) -> list[Action]:
        match event:
            case ForkServerReady(service, generation):
                self._fork_server_ready(service, generation, now)
            case ForkServerGone():
                return self._fork_server_gone(event, now)
            case WorkerReady(service, generation, slot):
                if service in self.pools:
                    self.pools[service].worker_ready(generation, slot, now)
            case WorkerGone():
                return self._worker_gone(event, now)
            case Observed(service):
                return self.pools[service].observed(event, now) if service in self.pools else []
            case StopAsked(quick):
                return self._stop(quick, now)
            case ReloadAsked(plans):
                return self._reload(plans, now)
            case ScaleAsked():
                self._scale(event)
            case Started() | TimePassed():
                pass
        return []

    def _fork_server_ready(self, service: str, number: int, now: float) -> None:
        pool = self.pools.get(service)
        generation = pool.generation(number) if pool is not None else None
        if generation is not None and generation.state is ForkServerState.BOOTING:
            generation.move(ForkServerState.READY, now)

    def _fork_server_gone(self, event: ForkServerGone, now: float) -> list[Action]:
        pool = self.pools.get(event.service)
        if pool is None:
            return []
        was_coming = pool.coming is not None and pool.coming.number == event.generation
        pool.fork_server_gone(event.generation, now)
        return self._failed(event.service, event.reason, event.status, now) if was_coming else []

    def _worker_gone(self, event: WorkerGone, now: float) -> list[Action]:
        pool = self.pools.get(event.service)
        if pool is None:
            return []
        worker = pool.worker(event.generation, event.slot)
        booting = worker is not None and worker.state in (WorkerState.BOOTING, WorkerState.DOOMED)
        pool.worker_gone(event.generation, event.slot, event.departure, now)
        if booting and pool.coming is not None and pool.coming.number == event.generation:
            return self._failed(event.service, event.reason, 1, now)
        return []

    def _failed(self, service: str, reason: str, status: int, now: float) -> list[Action]:
        """A new generation can't come up: no start, no reload, or (a replacement) another try later."""
        if self.phase is Phase.STARTING:
            self._exit = Exit(status, reason)
            return self._stop(True, now)
        if self.reload is not None and service in self.reload.plans:
            return self._abandon(reason, now)
        return []

    def _stop(self, quick: bool, now: float) -> list[Action]:
        actions: list[Action] = []
        quick = quick or self.phase is Phase.STOPPING
        if self.reload is not None:
            actions += self._abandon("forkd was told to stop", now)
        if self.phase in (Phase.STARTING, Phase.SERVING):
            actions.append(BeginStop())
            self._move(Phase.QUITTING if quick else Phase.STOPPING)
            self._stop_by = now + (QUICK_STOP if quick else self.stop_timeout)
        elif self.phase is Phase.STOPPING:
            self._move(Phase.QUITTING)
            self._stop_by = min(self._stop_by, now + QUICK_STOP)
        return actions

    def _reload(self, plans: tuple[Plan, ...], now: float) -> list[Action]:
        if self.phase is not Phase.SERVING:
            return [Abandoned(f"forkd is {self.phase.value}")]
        actions = self._abandon("another reload came", now) if self.reload is not None else []
        self.reload = Reload({plan.service: plan for plan in plans})
        for plan in plans:
            pool = self.pools.setdefault(plan.service, Pool(plan, self._jitter))
            pool.wanted = True
            actions += pool.begin(plan, now)
        return actions

    def _abandon(self, reason: str, now: float) -> list[Action]:
        assert self.reload is not None
        actions: list[Action] = []
        for service in self.reload.plans:
            pool = self.pools[service]
            new = pool.serving is None
            actions += pool.retire(now) if new else pool.dismiss(now)
        self.reload = None
        return [*actions, Abandoned(reason)]

    def _scale(self, event: ScaleAsked) -> None:
        for service, pool in self.pools.items():
            if event.service not in ("", service) or not pool.wanted:
                continue
            if event.size is not None:
                pool.scaled(event.size)
            else:
                pool.shifted(event.by)

    # Converge.

    def _converge(self, now: float) -> list[Action]:
        match self.phase:
            case Phase.STARTING | Phase.SERVING:
                return self._serve(now)
            case _:
                return self._leave(now)

    def _serve(self, now: float) -> list[Action]:
        actions = self._overdue(now)
        if self.phase is Phase.QUITTING:
            return [*actions, *self._leave(now)]
        for pool in self.pools.values():
            actions += pool.converge(now)
        promoted = self._promote(now)
        actions += promoted
        for service in [service for service, pool in self.pools.items() if not pool.wanted and pool.empty]:
            del self.pools[service]
            actions.append(Forgotten(service))
        return actions

    def _overdue(self, now: float) -> list[Action]:
        """Gives up fork servers whose boot_timeout is over."""
        actions: list[Action] = []
        for service, pool in list(self.pools.items()):
            if not pool.boot_overdue(now) or pool.coming is None:
                continue
            seconds = pool.coming.plan.boot_timeout
            actions += pool.dismiss(now)
            actions += self._failed(
                service, f"service {service}: not ready within its boot_timeout of {seconds:g} s", 1, now
            )
        return actions

    def _promote(self, now: float) -> list[Action]:
        """Lets coming generations take over that are prepared: alone, or all of a start or reload together."""
        together = self._together()
        ready = {service for service, pool in self.pools.items() if pool.prepared()}
        alone = ready - together
        for service in alone:
            self.pools[service].promote(now)
        actions: list[Action] = []
        if together and together <= ready:
            for service in together:
                self.pools[service].promote(now)
            actions += self._all_serve(now)
        if alone or actions:
            for pool in list(self.pools.values()):
                actions += pool.converge(now)
        return actions

    def _together(self) -> set[str]:
        if self.phase is Phase.STARTING:
            return set(self.pools)
        return set(self.reload.plans) if self.reload is not None else set()

    def _all_serve(self, now: float) -> list[Action]:
        if self.phase is Phase.STARTING:
            self._move(Phase.SERVING)
            return [Announce()]
        assert self.reload is not None
        actions: list[Action] = []
        for service, pool in self.pools.items():
            if service not in self.reload.plans:
                actions += pool.retire(now)
        self.reload = None
        return [Committed(), *actions]

    def _leave(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for pool in self.pools.values():
            actions += pool.send_off(Order.FINISH, now)
        if now >= self._stop_by:
            if self.phase is Phase.STOPPING:
                self._move(Phase.QUITTING)
            for pool in self.pools.values():
                actions += pool.kill_all(now, "its time to stop is over")
            self._stop_by = now + KILL_AGAIN
        if all(pool.empty for pool in self.pools.values()):
            self._move(Phase.ENDED)
            actions.append(self._exit)
        return actions

    def _move(self, phase: Phase) -> None:
        if phase not in PHASE_MOVES[self.phase]:
            raise IllegalMoveError(f"master: {self.phase.value} to {phase.value}")
        self.phase = phase
