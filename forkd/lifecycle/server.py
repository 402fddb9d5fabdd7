"""The life of the whole server: events and times in, actions out; nothing else happens.

First the event is noted (absorb); then what exists is compared with what is wanted, and the difference is
returned (converge). Reload, crash, resize and stop take the same path. This room imports no os, signal, socket
or time: `master` waits, and performs the actions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from enum import Enum
from typing import Final

from forkd.ipc.deadlines import NEVER
from forkd.lifecycle.events import (
    Abandoned,
    Action,
    Announce,
    BeginStop,
    Committed,
    DrainAsked,
    Ended,
    Event,
    Forgotten,
    ForkServerGone,
    ForkServerReady,
    Observed,
    Plan,
    ReloadAsked,
    ScaleAsked,
    Started,
    StopAsked,
    TimePassed,
    WorkerGone,
    WorkerReady,
)
from forkd.lifecycle.pool import Pool
from forkd.lifecycle.states import IllegalMoveError

QUICK_STOP: Final = 2.0


class Phase(Enum):
    """What the master is doing."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINED = "drained"
    STOPPING = "stopping"
    QUITTING = "quitting"
    ENDED = "ended"


PHASE_MOVES: Final = {
    Phase.STARTING: {Phase.SERVING, Phase.STOPPING},
    Phase.SERVING: {Phase.DRAINED, Phase.STOPPING},
    Phase.DRAINED: {Phase.SERVING, Phase.STOPPING},
    Phase.STOPPING: {Phase.QUITTING, Phase.ENDED},
    Phase.QUITTING: {Phase.ENDED},
    Phase.ENDED: set[Phase](),
}
UP: Final = (Phase.STARTING, Phase.SERVING, Phase.DRAINED)


class Lifecycle:
    """The pools of all services, the phase of the master, and the services of a reload under way."""

    def __init__(self, plans: Iterable[Plan], *, stop_timeout: float, jitter: random.Random) -> None:
        self.phase = Phase.STARTING
        self.pools = {plan.service: Pool(plan, jitter) for plan in plans}
        self.reload: frozenset[str] | None = None
        self.stop_timeout = stop_timeout
        self._jitter = jitter
        self._stop_by = NEVER
        self._exit = Ended(0)

    @classmethod
    def resumed(cls, phase: Phase, pools: dict[str, Pool], *, stop_timeout: float, jitter: random.Random) -> Lifecycle:
        """Returns one that continues another's life, between two events, with no reload under way."""
        life = cls((), stop_timeout=stop_timeout, jitter=jitter)
        life.phase, life.pools = phase, pools
        return life

    @property
    def quiet(self) -> bool:
        """Whether another could resume it: it serves or is drained, and no reload is under way."""
        return self.phase in (Phase.SERVING, Phase.DRAINED) and self.reload is None

    def handle(self, event: Event, now: float) -> list[Action]:
        """Absorbs an event and returns the actions towards what is wanted. `now` is in monotonic seconds."""
        if self.phase is Phase.ENDED:
            return []
        actions = [*self._absorb(event, now), *self._press(now), *self._converge(now)]
        for pool in self.pools.values():
            pool.note(now)
        return actions

    def due(self) -> float:
        """The latest time for the next TimePassed; infinity if nothing is due."""
        return min([self._stop_by, *(pool.due for pool in self.pools.values())])

    def serving(self) -> bool:
        """Whether every service has a serving worker; services that come or go do not count."""
        return self.phase is Phase.SERVING and all(
            any(generation.serving() for generation in pool.generations())
            for pool in self.pools.values()
            if pool.serving is not None
        )

    def unserved(self, now: float) -> list[str]:
        """The services without a worker for longer than a replacement may take; none unless the phase is serving."""
        if self.phase is not Phase.SERVING:
            return []
        return [service for service, pool in self.pools.items() if pool.given_up(now)]

    def left(self, now: float) -> float:
        """How many seconds a start, reload or stop under way may still take by its own limits; 0 if there is none."""
        under_way = self.pools.keys() if self.phase is Phase.STARTING else self.reload or frozenset[str]()
        coming = (self.pools[service].coming for service in under_way)
        limits = [each.boots_by() for each in coming if each is not None]
        if self._stop_by != NEVER:
            limits.append(self._stop_by)
        return max([0.0, *(limit - now for limit in limits)])

    # Absorb.

    def _absorb(self, event: Event, now: float) -> list[Action]:
        match event:
            case StopAsked(quick):
                return self._stop(quick, now)
            case DrainAsked() if self.phase is Phase.SERVING:
                return self._drain()
            case ReloadAsked(plans):
                return self._reload(plans, now)
            case ScaleAsked():
                self._scale(event)
            case Started() if self.phase is Phase.STARTING:
                return [pool.begin(pool.plan, now) for pool in self.pools.values() if pool.empty]
            case Started() | DrainAsked() | TimePassed():
                pass
            case _:
                # News of a service that is gone is ignored.
                pool = self.pools.get(event.service)
                return [] if pool is None else self._told(pool, event, now)
        return []

    def _told(
        self, pool: Pool, event: ForkServerReady | ForkServerGone | WorkerReady | WorkerGone | Observed, now: float
    ) -> list[Action]:
        match event:
            case ForkServerReady():
                pool.fork_server_ready(event.generation, now)
            case ForkServerGone():
                pool.fork_server_gone(event, now)
            case WorkerReady():
                pool.worker_ready(event.generation, event.slot, now)
            case WorkerGone():
                return pool.worker_gone(event, now)
            case _:
                return pool.observed(event, now)
        return []

    def _stop(self, quick: bool, now: float) -> list[Action]:
        actions: list[Action] = []
        if self.phase in UP:
            actions += [*self._abandon("forkd is stopping"), BeginStop()]
            self._move(Phase.STOPPING)
            self._stop_by = now + self.stop_timeout
            for pool in self.pools.values():
                pool.retire()
        else:
            quick = True
        if quick and self.phase is Phase.STOPPING:
            self._move(Phase.QUITTING)
            self._stop_by = min(self._stop_by, now + QUICK_STOP)
        return actions

    def _drain(self) -> list[Action]:
        self._move(Phase.DRAINED)
        for pool in self.pools.values():
            pool.retire()
        return self._abandon("the workers are draining")

    def _reload(self, plans: tuple[Plan, ...], now: float) -> list[Action]:
        if self.phase not in (Phase.SERVING, Phase.DRAINED):
            return [Abandoned(f"forkd is {self.phase.value}")]
        actions = self._abandon("another reload was requested")
        self.reload = frozenset(plan.service for plan in plans)
        for plan in plans:
            pool = self.pools.setdefault(plan.service, Pool(plan, self._jitter))
            actions.append(pool.begin(plan, now))
        return actions

    def _abandon(self, reason: str) -> list[Action]:
        """Gives up the reload under way, if there is one."""
        if self.reload is None:
            return []
        for service in self.reload:
            self.pools[service].dismiss()
        self.reload = None
        return [Abandoned(reason)]

    def _scale(self, event: ScaleAsked) -> None:
        for service, pool in self.pools.items():
            if event.service not in ("", service):
                continue
            if event.size is None:
                pool.shifted(event.by)
            else:
                pool.scaled(event.size)

    # Converge.

    def _press(self, now: float) -> list[Action]:
        return [action for pool in self.pools.values() for action in pool.press(now)]

    def _converge(self, now: float) -> list[Action]:
        actions = self._give_up(now)
        if self.phase in UP:
            return actions + self._serve(now)
        return actions + self._leave(now)

    def _give_up(self, now: float) -> list[Action]:
        """Handles a new generation that cannot come up: no start, no reload or, for a replacement, another try."""
        actions: list[Action] = []
        for service, pool in self.pools.items():
            failure = pool.failure
            if failure is None:
                continue
            if self.phase is Phase.STARTING:
                self._exit = failure
                return self._stop(True, now)
            if self.reload is not None and service in self.reload:
                actions += self._abandon(failure.reason)
            else:
                pool.retry(now)
        return actions

    def _serve(self, now: float) -> list[Action]:
        # A generation that takes over changes what is wanted: the old one leaves.
        actions = [*self._settle(now), *self._take_over(), *self._settle(now)]
        return actions + (self._forget() if self.phase is Phase.SERVING else [])

    def _settle(self, now: float) -> list[Action]:
        return [action for pool in self.pools.values() for action in pool.converge(now)]

    def _take_over(self) -> list[Action]:
        """Promotes coming generations that are prepared: alone, or all of a start or reload together."""
        ready = {service for service, pool in self.pools.items() if pool.prepared()}
        starting = self.phase is Phase.STARTING
        together = self.pools.keys() if starting else self.reload or frozenset[str]()
        for service in ready - together:
            self.pools[service].promote()
        if (self.reload is None and not starting) or not together <= ready:
            return []
        for service in together:
            self.pools[service].promote()
        if starting:
            self._move(Phase.SERVING)
            return [Announce()]
        for service in self.pools.keys() - together:
            self.pools[service].retire()
        self.reload = None
        if self.phase is Phase.DRAINED:
            self._move(Phase.SERVING)
        return [Committed()]

    def _forget(self) -> list[Action]:
        empty = [service for service, pool in self.pools.items() if pool.empty]
        for service in empty:
            del self.pools[service]
        return [Forgotten(service) for service in empty]

    def _leave(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for pool in self.pools.values():
            actions += pool.finish(now)
        if now >= self._stop_by:
            for pool in self.pools.values():
                actions += pool.kill("stopping takes too long", now)
            self._stop_by = NEVER
            if self.phase is Phase.STOPPING:
                self._move(Phase.QUITTING)
        if all(pool.empty for pool in self.pools.values()):
            self._stop_by = NEVER
            self._move(Phase.ENDED)
            actions.append(self._exit)
        return actions

    def _move(self, phase: Phase) -> None:
        if phase not in PHASE_MOVES[self.phase]:
            raise IllegalMoveError(f"master: {self.phase.value} to {phase.value}")
        self.phase = phase
