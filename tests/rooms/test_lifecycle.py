"""The lifecycle as scripts. Each step is a time, an event, and exactly the actions that must follow.

Scripts omit the mending of listeners after each abnormal death; `play` adds it. After every step, the same time is
passed again and must change nothing, and `due` must lie in the future. A TIME step that expects actions must come at
exactly the time that was due.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from math import inf

import pytest
from hypothesis import HealthCheck, settings

from docs.tools import states
from forkd.ipc.order import Order
from forkd.lifecycle.events import (
    Abandoned,
    Abort,
    Action,
    Announce,
    BeginStop,
    Committed,
    Departure,
    DrainAsked,
    Ended,
    EndForkServer,
    Event,
    Forgotten,
    Fork,
    ForkServerGone,
    ForkServerReady,
    Kill,
    Mend,
    Observed,
    Plan,
    ReloadAsked,
    ScaleAsked,
    Started,
    StartForkServer,
    StopAsked,
    Tell,
    TimePassed,
    WorkerGone,
    WorkerReady,
)
from forkd.lifecycle.server import Lifecycle, Phase
from forkd.lifecycle.states import IllegalMoveError
from tests.rooms.lifecycle_machine import Machine

Step = tuple[float, Event, list[Action]]

TIME = TimePassed()
LATE = "stopping takes too long"
UNFINISHED = "still there 10 s after the order to finish"
DEAF = "it did not end by itself"


class Steady(random.Random):
    """A random source that always returns the middle of the range."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def play(plans: Iterable[Plan], script: Iterable[Step], stop_timeout: float = 30) -> Lifecycle:
    life = Lifecycle(plans, stop_timeout=stop_timeout, jitter=Steady())
    for number, (now, event, expected) in enumerate(script):
        if event is TIME and expected:
            assert life.due() == pytest.approx(now), f"step {number} comes when it is due"
        mended = mends(life, event)
        assert life.handle(event, now) == [*mended, *expected], f"step {number}: {event} at {now}"
        assert life.handle(TIME, now) == [], f"after step {number} all is done"
        assert life.due() > now, f"after step {number} there is something to wait for"
    return life


def mends(life: Lifecycle, event: Event) -> list[Action]:
    """Returns the actions that come first after the abnormal death of a known worker."""
    if not isinstance(event, WorkerGone) or event.departure is Departure.LEFT or event.service not in life.pools:
        return []
    known = life.pools[event.service].worker(event.generation, event.slot) is not None
    return [Mend(event.service)] if known else []


# Short forms of events and actions.


def ready(generation: int, service: str = "echo") -> Event:
    return ForkServerReady(service, generation)


def died(generation: int, reason: str = "", status: int = 1, service: str = "echo") -> Event:
    return ForkServerGone(service, generation, reason, status)


def up(generation: int, slot: int, service: str = "echo") -> Event:
    return WorkerReady(service, generation, slot)


def left(generation: int, slot: int, service: str = "echo") -> Event:
    return WorkerGone(service, generation, slot, Departure.LEFT)


def crashed(generation: int, slot: int, service: str = "echo") -> WorkerGone:
    return WorkerGone(service, generation, slot, Departure.CRASHED, "signal 11")


def boot_failed(generation: int, slot: int, reason: str = "no database") -> WorkerGone:
    return WorkerGone("echo", generation, slot, Departure.BOOT_FAILED, reason)


def seen(
    busy: Collection[tuple[int, int]] = (),
    requests: Mapping[tuple[int, int], float] | None = None,
    retiring: Collection[tuple[int, int]] = (),
) -> Event:
    return Observed("echo", frozenset(busy), requests or {}, frozenset(retiring))


def start(generation: int, service: str = "echo") -> Action:
    return StartForkServer(service, generation)


def let_go(generation: int, service: str = "echo") -> Action:
    return EndForkServer(service, generation)


def end(generation: int, service: str = "echo") -> Action:
    return EndForkServer(service, generation, kill=True)


def fork(generation: int, slot: int, row: int, service: str = "echo") -> Action:
    return Fork(service, generation, slot, row)


def drain(generation: int, *slots: int, service: str = "echo") -> list[Action]:
    return [Tell(service, generation, slot, Order.DRAIN) for slot in slots]


def finish(generation: int, *slots: int, service: str = "echo") -> list[Action]:
    return [Tell(service, generation, slot, Order.FINISH) for slot in slots]


def abort(generation: int, slot: int, reason: str) -> Action:
    return Abort("echo", generation, slot, reason)


def kill(generation: int, slot: int, reason: str) -> Action:
    return Kill("echo", generation, slot, reason)


def nothing(now: float, *events: Event) -> list[Step]:
    """Returns steps that must cause no action."""
    return [(now, event, []) for event in events]


def again(times: Iterable[float], actions: list[Action]) -> list[Step]:
    """Returns a step for each of these times, all with the same actions."""
    return [(now, TIME, actions) for now in times]


ONE = Plan("echo", 1, 1)
TWO = Plan("echo", 2, 2)
CLOCK = Plan("time", 1, 1)
ELASTIC = Plan("echo", 1, 64, spare=1)

ONE_UP: list[Step] = [(0, Started(), [start(1)]), (0, ready(1), [fork(1, 0, 1)]), (0, up(1, 0), [Announce()])]
TWO_UP: list[Step] = [
    (0, Started(), [start(1)]),
    (0, ready(1), [fork(1, 0, 1), fork(1, 1, 2)]),
    (0, up(1, 0), []),
    (0, up(1, 1), [Announce()]),
]
BOTH_UP: list[Step] = [
    (0, Started(), [start(1), start(1, "time")]),
    (0, ready(1), [fork(1, 0, 1)]),
    (0, up(1, 0), []),
    (0, ready(1, "time"), [fork(1, 0, 1, "time")]),
    (0, up(1, 0, "time"), [Announce()]),
]
FORK_SERVER_LATE = "service echo: not ready within its boot_timeout of 30 s"
BOOT_OVER = "not ready within its boot_timeout of 30 s"

STARTS: dict[str, tuple[list[Plan], list[Step]]] = {
    "all services are announced together": ([ONE, CLOCK], BOTH_UP),
    "nothing to serve": ([], [(0, Started(), [Announce()]), (1, StopAsked(), [BeginStop(), Ended(0)])]),
    "a crash after serving is not a failed start": (
        [TWO],
        [*TWO_UP[:3], (1, crashed(1, 0), [fork(1, 0, 1)]), *nothing(2, up(1, 1)), (2, up(1, 0), [Announce()])],
    ),
    "a fork server fails": (
        [ONE],
        [(0, Started(), [start(1)]), (1, died(1, "no module", 78), [BeginStop(), Ended(78, "no module")])],
    ),
    "a fork server fails, so the other service ends, too": (
        [ONE, CLOCK],
        [
            *BOTH_UP[:3],
            (1, died(1, "no module", 78, "time"), [BeginStop(), *finish(1, 0)]),
            *nothing(1, ready(1, "time"), up(1, 0, "time"), died(1, service="time")),
            (2, TIME, finish(1, 0)),
            (2.5, left(1, 0), [let_go(1)]),
            (2.6, died(1), [Ended(78, "no module")]),
        ],
    ),
    "two fork servers fail": (
        [ONE, CLOCK],
        [
            BOTH_UP[0],
            (1, died(1, "no module", 78), [BeginStop(), end(1, "time")]),
            (2, died(1, "not this one", 70, "time"), [Ended(78, "no module")]),
        ],
    ),
    "a fork server hangs and is killed repeatedly until it is gone": (
        [ONE],
        [
            (0, Started(), [start(1)]),
            (30, TIME, [end(1), BeginStop()]),
            (32, TIME, [end(1)]),
            (34, TIME, [end(1)]),
            *nothing(35, ready(1)),
            (35, died(1, "signal 9"), [Ended(1, FORK_SERVER_LATE)]),
        ],
    ),
    "a fork server dies after it became ready": (
        [TWO],
        [
            *TWO_UP[:3],
            (1, died(1, "signal 9"), [BeginStop(), *finish(1, 0, 1)]),
            *nothing(1, left(1, 0)),
            (1, left(1, 1), [Ended(1, "signal 9")]),
        ],
    ),
    "a worker can't boot": (
        [TWO],
        [
            *TWO_UP[:3],
            (1, boot_failed(1, 1), [BeginStop(), *finish(1, 0)]),
            (2, TIME, finish(1, 0)),
            (3, TIME, [*finish(1, 0), kill(1, 0, LATE)]),
            (4, crashed(1, 0), [let_go(1)]),
            (4, died(1), [Ended(1, "no database")]),
        ],
    ),
    "a worker leaves during its boot": (
        [ONE],
        [*ONE_UP[:2], (1, left(1, 0), [BeginStop(), let_go(1)]), (1, died(1), [Ended(1, "")])],
    ),
    "a worker hangs during its boot": (
        [TWO],
        [
            *TWO_UP[:3],
            (30, TIME, [abort(1, 1, BOOT_OVER), BeginStop(), *finish(1, 0)]),
            *nothing(30.5, left(1, 0)),
            (32, TIME, [kill(1, 1, DEAF)]),
            (34, TIME, [kill(1, 1, DEAF)]),
            (34.5, crashed(1, 1), [let_go(1)]),
            (36.5, TIME, [end(1)]),
            (37, died(1), [Ended(1, "service echo: worker 1: " + BOOT_OVER)]),
        ],
    ),
    "a stop during the start": (
        [ONE, CLOCK],
        [
            *BOTH_UP[:2],
            (1, StopAsked(), [BeginStop(), *finish(1, 0), end(1, "time")]),
            *nothing(1, up(1, 0), died(1, service="time")),
            (1, left(1, 0), [let_go(1)]),
            (1, died(1), [Ended(0)]),
        ],
    ),
    "a reload during the start": ([ONE], [ONE_UP[0], (1, ReloadAsked((ONE,)), [Abandoned("forkd is starting")])]),
}

RELOADS: dict[str, tuple[list[Plan], list[Step]]] = {
    "new workers serve before the old ones leave": (
        [TWO],
        [
            *TWO_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 3), fork(2, 1, 4)]),
            (3, up(2, 1), []),
            (4, up(2, 0), [Committed(), *drain(1, 0, 1)]),
            *nothing(4.1, left(1, 0)),
            (4.2, left(1, 1), [let_go(1)]),
            *nothing(4.3, died(1)),
            (5, crashed(2, 0), [fork(2, 0, 1)]),
        ],
    ),
    "a worker that does not leave is reminded each second, told to finish, then killed": (
        [Plan("echo", 1, 1, drain_timeout=2.5)],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (2, up(2, 0), [Committed(), *drain(1, 0)]),
            *again([3, 4], drain(1, 0)),
            *again([4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 11.5, 12.5, 13.5], finish(1, 0)),
            (14.5, TIME, [kill(1, 0, UNFINISHED)]),
            (16.5, TIME, [kill(1, 0, DEAF)]),
            (17, crashed(1, 0), [let_go(1)]),
            (19, TIME, [end(1)]),
            *nothing(20, died(1)),
        ],
    ),
    "without a drain_timeout old workers may stay": (
        [Plan("echo", 1, 1, drain_timeout=0)],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (2, up(2, 0), [Committed(), *drain(1, 0)]),
            *again(range(3, 400), drain(1, 0)),
        ],
    ),
    "a fork server of the new generation fails": (
        [TWO],
        [
            *TWO_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (2, died(2, "SyntaxError"), [Abandoned("SyntaxError")]),
            (3, crashed(1, 1), [fork(1, 1, 2)]),
            (4, ReloadAsked((TWO,)), [start(3)]),
        ],
    ),
    "a worker of the new generation can't boot, another has accepted": (
        [TWO],
        [
            *TWO_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 3), fork(2, 1, 4)]),
            (3, up(2, 0), []),
            (4, boot_failed(2, 1), [Abandoned("no database"), *drain(2, 0)]),
            (5, TIME, drain(2, 0)),
            (5.5, left(2, 0), [let_go(2)]),
            *nothing(6, died(2)),
        ],
    ),
    "a fork server of the new generation hangs": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (31, TIME, [end(2), Abandoned(FORK_SERVER_LATE)]),
            *nothing(31, ready(2), died(2)),
        ],
    ),
    "a worker of the new generation hangs": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 2)]),
            (32, TIME, [abort(2, 0, BOOT_OVER), Abandoned("service echo: worker 0: " + BOOT_OVER)]),
            (34, TIME, [kill(2, 0, DEAF)]),
            (34, crashed(2, 0), [let_go(2)]),
        ],
    ),
    "a worker of the new generation crashes after serving and is replaced": (
        [TWO],
        [
            *TWO_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 3), fork(2, 1, 4)]),
            *nothing(3, up(2, 0)),
            (3, crashed(2, 0), [fork(2, 0, 3)]),
            *nothing(4, up(2, 1)),
            (4, up(2, 0), [Committed(), *drain(1, 0, 1)]),
        ],
    ),
    "a handler of the new generation hangs and its worker is replaced": (
        [TWO],
        [
            *TWO_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 3), fork(2, 1, 4)]),
            *nothing(3, up(2, 0)),
            (
                33,
                seen([(2, 0)], {(2, 0): 3}),
                [
                    abort(2, 0, "request_timeout of 30 s is over"),
                    abort(2, 1, BOOT_OVER),
                    Abandoned("service echo: worker 1: " + BOOT_OVER),
                ],
            ),
        ],
    ),
    "all services together or none": (
        [ONE, CLOCK],
        [
            *BOTH_UP,
            (1, ReloadAsked((ONE, CLOCK)), [start(2), start(2, "time")]),
            (1, ready(2), [fork(2, 0, 2)]),
            *nothing(1, up(2, 0)),
            (2, died(2, "SyntaxError", service="time"), [Abandoned("SyntaxError"), *drain(2, 0)]),
            (2, ReloadAsked((CLOCK, ONE)), [start(3, "time"), start(3)]),
            (2, ready(3), [fork(3, 0, 3)]),
            *nothing(2, up(3, 0)),
            (2, ready(3, "time"), [fork(3, 0, 2, "time")]),
            (2, up(3, 0, "time"), [Committed(), *drain(1, 0), *drain(1, 0, service="time")]),
        ],
    ),
    "one service is added, one removed": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((CLOCK,)), [start(1, "time")]),
            (1, ready(1, "time"), [fork(1, 0, 1, "time")]),
            (2, up(1, 0, "time"), [Committed(), *drain(1, 0)]),
            *nothing(2, ScaleAsked("echo", 3), seen()),
            (3, TIME, drain(1, 0)),
            (3, left(1, 0), [let_go(1)]),
            (3, died(1), [Forgotten("echo")]),
            *nothing(3, ready(1), died(1), up(1, 0), left(1, 0), seen([(1, 0)])),
        ],
    ),
    "an added service that fails is forgotten": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE, CLOCK)), [start(2), start(1, "time")]),
            (2, died(2, "SyntaxError"), [Abandoned("SyntaxError"), end(1, "time")]),
            (2, died(1, service="time"), [Forgotten("time")]),
        ],
    ),
    "an added service that fails on its own is forgotten at once": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE, CLOCK)), [start(2), start(1, "time")]),
            (2, died(1, "oh", service="time"), [Abandoned("oh"), end(2), Forgotten("time")]),
        ],
    ),
    "a service that leaves comes back": (
        [ONE, CLOCK],
        [
            *BOTH_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (1, up(2, 0), [Committed(), *drain(1, 0), *drain(1, 0, service="time")]),
            (1, left(1, 0), [let_go(1)]),
            *nothing(1, died(1)),
            (2, TIME, drain(1, 0, service="time")),
            (2, ReloadAsked((CLOCK,)), [start(2, "time")]),
            (2, ready(2, "time"), [fork(2, 0, 2, "time")]),
            (2, up(2, 0, "time"), [Committed(), *drain(2, 0)]),
            (2, crashed(2, 0, "time"), [fork(2, 0, 2, "time")]),
        ],
    ),
    "no service is left in the settings": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked(()), [Committed(), *drain(1, 0)]),
            (1, left(1, 0), [let_go(1)]),
            (1, died(1), [Forgotten("echo")]),
            (1, StopAsked(), [BeginStop(), Ended(0)]),
        ],
    ),
    "another reload ends the previous one": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (2, ReloadAsked((ONE,)), [Abandoned("another reload was requested"), start(3), end(2)]),
            *nothing(2, died(2, "signal 9")),
            (3, ready(3), [fork(3, 0, 2)]),
            (3, up(3, 0), [Committed(), *drain(1, 0)]),
        ],
    ),
    "a stop ends a reload": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (2, StopAsked(), [Abandoned("forkd is stopping"), BeginStop(), end(2), *finish(1, 0)]),
            (2, ReloadAsked((ONE,)), [Abandoned("forkd is stopping")]),
            (2, left(1, 0), [let_go(1)]),
            *nothing(2, died(2)),
            (2, died(1), [Ended(0)]),
            *nothing(3, ReloadAsked((ONE,)), StopAsked(), died(1), TIME),
        ],
    ),
    "the oldest of many leaving generations are hurried": (
        [ONE],
        [
            *ONE_UP,
            (0.1, ReloadAsked((ONE,)), [start(2)]),
            (0.1, ready(2), [fork(2, 0, 2)]),
            (0.1, up(2, 0), [Committed(), *drain(1, 0)]),
            (0.2, ReloadAsked((ONE,)), [start(3)]),
            (0.2, ready(3), [fork(3, 0, 3)]),
            (0.2, up(3, 0), [Committed(), *drain(2, 0)]),
            (0.3, ReloadAsked((ONE,)), [start(4)]),
            (0.3, ready(4), [fork(4, 0, 4)]),
            (0.3, up(4, 0), [Committed(), *finish(1, 0), *drain(3, 0)]),
            (1.2, TIME, drain(2, 0)),
            (1.3, TIME, [*finish(1, 0), *drain(3, 0)]),
        ],
    ),
    "a larger number": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((TWO,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2), fork(2, 1, 3)]),
            *nothing(1, up(2, 0)),
            (1, up(2, 1), [Committed(), *drain(1, 0)]),
        ],
    ),
    "a size requested during a reload also applies to the new generation": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((Plan("echo", 3, 3),)), [start(2)]),
            (1, ScaleAsked(by=-1), []),
            (1, ready(2), [fork(2, 0, 2), fork(2, 1, 3)]),
            *nothing(1, up(2, 0)),
            (1, up(2, 1), [Committed(), *drain(1, 0)]),
        ],
    ),
}

FORK_SERVERS: dict[str, tuple[list[Plan], list[Step]]] = {
    "its workers serve until the next fork server is ready": (
        [TWO],
        [
            *TWO_UP,
            (1, died(1, "signal 9"), [start(2)]),
            *nothing(1, died(1)),
            *nothing(2, crashed(1, 0)),
            (2, ready(2), [fork(2, 0, 1), fork(2, 1, 3)]),
            *nothing(2, up(2, 0)),
            (3, up(2, 1), drain(1, 1)),
            *nothing(4 - 0.5, left(1, 1)),
        ],
    ),
    "it backs off if it keeps failing": (
        [ONE],
        [
            *ONE_UP,
            (1, died(1), [start(2)]),
            *nothing(2, died(2)),
            (2.5, TIME, [start(3)]),
            *nothing(3, died(3)),
            (4, TIME, [start(4)]),
            (34, TIME, [end(4)]),
            *nothing(34.5, died(4)),
            (36, TIME, [start(5)]),
            (36, ready(5), [fork(5, 0, 2)]),
            (36, up(5, 0), drain(1, 0)),
            (36, left(1, 0), []),
            *nothing(95.9, died(5)),
            (99.9, TIME, [start(6)]),
            (99.9, ready(6), [fork(6, 0, 1)]),
            (99.9, up(6, 0), drain(5, 0)),
            *nothing(99.9, left(5, 0)),
            (159.9, died(6), [start(7)]),
        ],
    ),
    "it dies after all its workers": (
        [ONE],
        [
            *ONE_UP,
            (1, died(1), [start(2)]),
            *nothing(2, died(2), crashed(1, 0)),
            (2.1, ReloadAsked((ONE,)), [start(3)]),
            (2.2, died(3, "SyntaxError"), [Abandoned("SyntaxError")]),
            (2.5, TIME, [start(4)]),
            (2.5, ready(4), [fork(4, 0, 1)]),
            *nothing(3, up(4, 0)),
        ],
    ),
    "a retiring worker leaves once its successor serves": (
        [ONE],
        [
            *ONE_UP,
            (1, seen(retiring=[(1, 0)]), [fork(1, 1, 2)]),
            *nothing(2, seen(busy=[(1, 0)], retiring=[(1, 0)])),
            (3, up(1, 1), drain(1, 0)),
            *nothing(3, left(1, 0)),
        ],
    ),
    "a retiring worker stays while its successor cannot boot": (
        [ONE],
        [
            *ONE_UP,
            (1, seen(retiring=[(1, 0)]), [fork(1, 1, 2)]),
            (1, boot_failed(1, 1), [fork(1, 1, 2)]),
            *nothing(2, boot_failed(1, 1)),
            (2.5, TIME, [fork(1, 1, 2)]),
            (3, up(1, 1), drain(1, 0)),
        ],
    ),
    "workers that retire together leave one by one": (
        [TWO],
        [
            *TWO_UP,
            (1, seen(retiring=[(1, 0), (1, 1)]), [fork(1, 2, 3)]),
            (2, up(1, 2), [*drain(1, 0), fork(1, 3, 4)]),
            *nothing(2, left(1, 0)),
            (3, up(1, 3), drain(1, 1)),
        ],
    ),
    "a pool that shrinks while a worker retires keeps the one that serves": (
        [ONE],
        [
            *ONE_UP,
            (1, seen(retiring=[(1, 0)]), [fork(1, 1, 2)]),
            (1, ScaleAsked("echo", 2), [fork(1, 2, 3)]),
            (1, ScaleAsked("echo", 1), drain(1, 2)),
            (1.5, up(1, 1), drain(1, 0)),
        ],
    ),
    "a drained service is brought back by a reload": (
        [ONE],
        [
            *ONE_UP,
            (1, DrainAsked(), drain(1, 0)),
            *nothing(1, DrainAsked()),
            (2, left(1, 0), [let_go(1)]),
            *nothing(2, died(1), ScaleAsked(by=1)),
            (3, ReloadAsked((ONE,)), [start(2)]),
            (4, died(2, "no such module"), [Abandoned("no such module")]),
            (5, ReloadAsked((ONE,)), [start(3)]),
            (6, ready(3), [fork(3, 0, 1)]),
            (7, up(3, 0), [Committed()]),
        ],
    ),
    "drained during a reload, then stopped": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, DrainAsked(), [Abandoned("the workers are draining"), end(2), *drain(1, 0)]),
            (1, died(2), []),
            (2, left(1, 0), [let_go(1)]),
            (2, StopAsked(), [BeginStop()]),
            (2, died(1), [Ended(0)]),
        ],
    ),
    "workers of a replacement that can't boot back off individually": (
        [ONE],
        [
            *ONE_UP,
            (1, died(1), [start(2)]),
            (2, ready(2), [fork(2, 0, 2)]),
            (3, boot_failed(2, 0), [fork(2, 0, 2)]),
            *nothing(4, boot_failed(2, 0)),
            (4.5, TIME, [fork(2, 0, 2)]),
            (5, up(2, 0), drain(1, 0)),
        ],
    ),
    "a reload supersedes a replacement": (
        [ONE],
        [
            *ONE_UP,
            (1, died(1), [start(2)]),
            (2, ReloadAsked((TWO,)), [start(3), end(2)]),
            *nothing(2, died(2)),
            (3, ready(3), [fork(3, 0, 2), fork(3, 1, 3)]),
            *nothing(3, up(3, 0)),
            (4, up(3, 1), [Committed(), *drain(1, 0)]),
        ],
    ),
    "the fork server of a leaving service": (
        [ONE, CLOCK],
        [
            *BOTH_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, died(1, service="time"), [start(2, "time")]),
            (1, ready(2, "time"), [fork(2, 0, 2, "time")]),
            (1, up(2, 0, "time"), drain(1, 0, service="time")),
            *nothing(1, left(1, 0, "time")),
            *nothing(1, died(2, service="time")),
            (1.5, TIME, [start(3, "time")]),
            (1.5, ready(2), [fork(2, 0, 2)]),
            (1.5, up(2, 0), [Committed(), *drain(1, 0), end(3, "time"), *drain(2, 0, service="time")]),
        ],
    ),
    "one that no longer forks is replaced": (
        [ONE],
        [
            *ONE_UP,
            (1, left(1, 0), [fork(1, 0, 1)]),
            (31, TIME, [abort(1, 0, BOOT_OVER), fork(1, 1, 2)]),
            (33, TIME, [kill(1, 0, DEAF)]),
            (35, TIME, [kill(1, 0, DEAF)]),
            (37, TIME, [kill(1, 0, DEAF), end(1)]),
            (38, died(1, "signal 9"), [start(2)]),
            *nothing(38, left(1, 0), left(1, 1)),
            (38, ready(2), [fork(2, 0, 1)]),
            *nothing(38, up(2, 0)),
        ],
    ),
    "one that no longer forks can't hold up a stop": (
        [ONE],
        [
            *ONE_UP[:2],
            (1, StopAsked(quick=True), [BeginStop(), *finish(1, 0)]),
            (2, TIME, finish(1, 0)),
            (3, TIME, [*finish(1, 0), kill(1, 0, LATE)]),
            (5, TIME, [kill(1, 0, DEAF)]),
            (7, TIME, [kill(1, 0, DEAF), end(1)]),
            *nothing(8, died(1, "signal 9")),
            (8, left(1, 0), [Ended(0)]),
        ],
    ),
    "a replacement has the requested size": (
        [Plan("echo", 1, 3, spare=1)],
        [
            *ONE_UP,
            (1, ScaleAsked("echo", 4), [fork(1, slot, slot + 1) for slot in range(1, 4)]),
            (1, died(1), [start(2)]),
            (1, ready(2), [fork(2, slot, slot + 5) for slot in range(4)]),
            (1, ScaleAsked("echo", 2), drain(1, 3)),
            *nothing(1, up(2, 0), up(2, 1)),
            (1, up(2, 3), [*drain(2, 2), *drain(1, 0, 1, 2)]),
        ],
    ),
    "one that was released dies without being replaced": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (1, up(2, 0), [Committed(), *drain(1, 0)]),
            *nothing(1, died(1), left(1, 0)),
        ],
    ),
}

WORKERS: dict[str, tuple[list[Plan], list[Step]]] = {
    "one that leaves is always replaced at once": (
        [ONE],
        [
            *ONE_UP,
            *[
                (now, event, actions)
                for now in range(1, 9)
                for event, actions in ((left(1, 0), [fork(1, 0, 1)]), (up(1, 0), []))
            ],
        ],
    ),
    "slots whose worker cannot boot are tried less and less often, individually": (
        [TWO],
        [
            *TWO_UP,
            (1, crashed(1, 0), [fork(1, 0, 1)]),
            (1, boot_failed(1, 0), [fork(1, 0, 1)]),
            *nothing(1, boot_failed(1, 0)),
            (1.5, TIME, [fork(1, 0, 1)]),
            (1.5, crashed(1, 1), [fork(1, 1, 2)]),
            *nothing(1.5, boot_failed(1, 0), up(1, 1)),
            (2.5, TIME, [fork(1, 0, 1)]),
            *nothing(3, boot_failed(1, 0)),
            (5, TIME, [fork(1, 0, 1)]),
            *nothing(5, left(1, 0)),
            (9, TIME, [fork(1, 0, 1)]),
            *nothing(9, boot_failed(1, 0)),
            (17, TIME, [fork(1, 0, 1)]),
            *nothing(17, boot_failed(1, 0)),
            (33, TIME, [fork(1, 0, 1)]),
            *nothing(33, boot_failed(1, 0)),
            (63, TIME, [fork(1, 0, 1)]),
            *nothing(63, boot_failed(1, 0)),
            (93, TIME, [fork(1, 0, 1)]),
            *nothing(93, up(1, 0)),
            (153, crashed(1, 0), [fork(1, 0, 1)]),
            (153, boot_failed(1, 0), [fork(1, 0, 1)]),
        ],
    ),
    "crashes after serving are replaced at once up to a burst, then at a limited rate": (
        [ONE],
        [
            *ONE_UP,
            *(step for _ in range(51) for step in [(1, crashed(1, 0), [fork(1, 0, 1)]), *nothing(1, up(1, 0))]),
            *nothing(1, crashed(1, 0)),
            (1 + 1 / 32, TIME, [fork(1, 0, 1)]),
            *nothing(1 + 1 / 32, up(1, 0), crashed(1, 0)),
            (1 + 2 / 32, TIME, [fork(1, 0, 1)]),
            *nothing(1 + 2 / 32, up(1, 0)),
            (1 + 3 / 32, crashed(1, 0), [fork(1, 0, 1)]),
        ],
    ),
    "a long life counts, however it ends": (
        [ONE],
        [
            *ONE_UP,
            (1, crashed(1, 0), [fork(1, 0, 1)]),
            (1, boot_failed(1, 0), [fork(1, 0, 1)]),
            *nothing(1, up(1, 0)),
            (61, left(1, 0), [fork(1, 0, 1)]),
            (62, boot_failed(1, 0), [fork(1, 0, 1)]),
        ],
    ),
    "a new generation starts with a clean record": (
        [ONE],
        [
            *ONE_UP,
            (1, crashed(1, 0), [fork(1, 0, 1)]),
            (1, boot_failed(1, 0), [fork(1, 0, 1)]),
            *nothing(1, boot_failed(1, 0)),
            (1.1, ReloadAsked((ONE,)), [start(2)]),
            (1.1, ready(2), [fork(2, 0, 1)]),
            (1.2, up(2, 0), [Committed(), let_go(1)]),
            *nothing(1.3, died(1)),
            (1.4, crashed(2, 0), [fork(2, 0, 1)]),
            (1.4, boot_failed(2, 0), [fork(2, 0, 1)]),
        ],
    ),
    "a handler over its time limit: abort, kill, and a replacement": (
        [ONE],
        [
            *ONE_UP,
            *nothing(10, seen([(1, 0)], {(1, 0): 1})),
            *nothing(30.9, seen([(1, 0)], {(1, 0): 1})),
            (31, seen([(1, 0)], {(1, 0): 1}), [abort(1, 0, "request_timeout of 30 s is over"), fork(1, 1, 2)]),
            *nothing(32, seen([(1, 0)], {(1, 0): 1}), up(1, 1)),
            (33, TIME, [kill(1, 0, DEAF)]),
            (35, TIME, [kill(1, 0, DEAF)]),
            *nothing(36, crashed(1, 0)),
            (36, crashed(1, 1), [fork(1, 0, 1)]),
        ],
    ),
    "a handler over its time limit in a leaving worker": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (1, up(2, 0), [Committed(), *drain(1, 0)]),
            (2, seen([(1, 0)], {(1, 0): -28}), [abort(1, 0, "request_timeout of 30 s is over")]),
            (3, crashed(1, 0), [let_go(1)]),
        ],
    ),
    "a handler without a time limit": (
        [Plan("echo", 1, 1, request_timeout=0)],
        [*ONE_UP, *nothing(1e6, seen([(1, 0)], {(1, 0): 1}))],
    ),
    "one that hangs during its boot is replaced": (
        [TWO],
        [
            *TWO_UP,
            (1, crashed(1, 0), [fork(1, 0, 1)]),
            (31, TIME, [abort(1, 0, BOOT_OVER), fork(1, 2, 3)]),
            *nothing(31, up(1, 0), crashed(1, 0), up(1, 2)),
        ],
    ),
    "late and unknown events are ignored": (
        [ONE],
        [
            *ONE_UP,
            *nothing(1, Started(), ready(1), up(1, 0), up(1, 7), left(1, 7), up(9, 0), left(9, 0), ready(9), died(9)),
            *nothing(1, seen([(9, 9)], {(9, 9): 0}), ready(1, "ghost"), died(1, service="ghost"), up(1, 0, "ghost")),
            *nothing(1, crashed(1, 0, "ghost"), Observed("ghost", frozenset(), {}), ScaleAsked("ghost", 3)),
        ],
    ),
}

SIZES: dict[str, tuple[list[Plan], list[Step]]] = {
    "a fixed pool keeps its size": (
        [TWO],
        [*TWO_UP, *nothing(1, seen([(1, 0), (1, 1)])), *nothing(2, seen()), *nothing(99, TIME)],
    ),
    "an elastic pool keeps spare workers": (
        [Plan("echo", 1, 4, spare=2)],
        [
            *ONE_UP[:2],
            (0, up(1, 0), [Announce(), fork(1, 1, 2)]),
            *nothing(0, up(1, 1)),
            (5, seen([(1, 0)]), [fork(1, 2, 3)]),
            *nothing(5, seen([(1, 0)]), up(1, 2)),
            (10, seen([(1, 0), (1, 1), (1, 2)]), [fork(1, 3, 4)]),
            *nothing(10, up(1, 3)),
            *nothing(11, seen([(1, 0), (1, 1), (1, 2), (1, 3)])),
        ],
    ),
    "it grows by 1, 2, 4 .. 32": (
        [ELASTIC],
        [
            *ONE_UP,
            (1, seen([(1, 0)]), [fork(1, 1, 2)]),
            (2, seen([(1, slot) for slot in range(2)]), [fork(1, slot, slot + 1) for slot in range(2, 4)]),
            (3, seen([(1, slot) for slot in range(4)]), [fork(1, slot, slot + 1) for slot in range(4, 8)]),
            (4, seen([(1, slot) for slot in range(8)]), [fork(1, slot, slot + 1) for slot in range(8, 16)]),
            *nothing(5, seen([(1, slot) for slot in range(15)])),
            (9, seen([(1, slot) for slot in range(16)]), [fork(1, 16, 17)]),
            (9, seen([(1, slot) for slot in range(17)]), [fork(1, slot, slot + 1) for slot in range(17, 19)]),
        ],
    ),
    "it shrinks by half of its surplus, idle workers only": (
        [ELASTIC],
        [
            *ONE_UP,
            (1, seen([(1, 0)]), [fork(1, 1, 2)]),
            (1, seen([(1, slot) for slot in range(2)]), [fork(1, slot, slot + 1) for slot in range(2, 4)]),
            (1, seen([(1, slot) for slot in range(4)]), [fork(1, slot, slot + 1) for slot in range(4, 8)]),
            *nothing(2, *(up(1, slot) for slot in range(1, 8))),
            *nothing(2, seen([(1, 7)])),
            *nothing(9, seen([(1, 7)])),
            (11, TIME, drain(1, 6, 5, 4)),
            *nothing(11, *(left(1, slot) for slot in (4, 5, 6))),
            (21, TIME, drain(1, 3, 2)),
            *nothing(21, left(1, 2), left(1, 3)),
            (31, TIME, drain(1, 1)),
            *nothing(31, left(1, 1)),
        ],
    ),
    "a surplus that does not last": (
        [ELASTIC],
        [
            *ONE_UP,
            (1, seen([(1, 0)]), [fork(1, 1, 2)]),
            *nothing(2, up(1, 1), seen()),
            *nothing(11, seen([(1, 0)])),
            *nothing(12, seen()),
            (22, TIME, drain(1, 1)),
        ],
    ),
    "booting workers go first": (
        [ELASTIC],
        [
            *ONE_UP,
            (1, seen([(1, 0)]), [fork(1, 1, 2)]),
            (1, seen([(1, 0), (1, 1)]), [fork(1, 2, 3), fork(1, 3, 4)]),
            *nothing(1, up(1, 1), up(1, 3)),
            *nothing(2, seen([(1, 0), (1, 1)])),
            (3, ScaleAsked("echo", by=-1), drain(1, 2)),
        ],
    ),
    "a dismissed worker that stays is hurried and killed, too": (
        [Plan("echo", 2, 2, drain_timeout=0.5)],
        [
            *TWO_UP,
            (1, ScaleAsked("echo", 1), drain(1, 1)),
            *again([1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5], finish(1, 1)),
            (11.5, TIME, [kill(1, 1, UNFINISHED)]),
            *nothing(12, crashed(1, 1)),
            (12, ScaleAsked("echo", 2), [fork(1, 1, 2)]),
        ],
    ),
    "scale: more, fewer once idle, at least one": (
        [ONE, CLOCK],
        [
            *BOTH_UP,
            (1, ScaleAsked("echo", 3), [fork(1, 1, 2), fork(1, 2, 3)]),
            *nothing(1, up(1, 1), up(1, 2), seen([(1, 1), (1, 2)])),
            (2, ScaleAsked("echo", 0), drain(1, 0)),
            (2, seen([(1, 1)]), drain(1, 2)),
            (2, left(1, 0), []),
        ],
    ),
    "scale: an elastic pool's minimum": (
        [Plan("echo", 1, 3, spare=1)],
        [
            *ONE_UP,
            (1, ScaleAsked("echo", 2), [fork(1, 1, 2)]),
            (1, ScaleAsked("echo", 5), [fork(1, 2, 3), fork(1, 3, 4), fork(1, 4, 5)]),
            (1, ScaleAsked("echo", 1), drain(1, 4, 3)),
            *nothing(1, left(1, 3), left(1, 4)),
            (11, TIME, drain(1, 2)),
            *nothing(11, left(1, 2)),
            (11, seen([(1, 0), (1, 1)]), [fork(1, 2, 3)]),
            *nothing(11, seen([(1, 0), (1, 1), (1, 2)])),
        ],
    ),
    "TTIN and TTOU move every pool": (
        [ONE, CLOCK],
        [
            *BOTH_UP,
            (1, ScaleAsked(by=1), [fork(1, 1, 2), fork(1, 1, 2, "time")]),
            *nothing(1, up(1, 1), up(1, 1, "time")),
            (2, ScaleAsked(by=-1), [*drain(1, 1), *drain(1, 1, service="time")]),
            *nothing(2, left(1, 1), left(1, 1, "time"), ScaleAsked(by=-1), ScaleAsked(by=-9)),
            (2, ScaleAsked("time", by=1), [fork(1, 1, 2, "time")]),
        ],
    ),
    "a reload brings the file's size back": (
        [ONE],
        [
            *ONE_UP,
            (1, ScaleAsked("echo", 2), [fork(1, 1, 2)]),
            *nothing(1, up(1, 1)),
            (2, ReloadAsked((ONE,)), [start(2)]),
            (2, ready(2), [fork(2, 0, 3)]),
            (2, up(2, 0), [Committed(), *drain(1, 0, 1)]),
        ],
    ),
}

STOPS: dict[str, tuple[list[Plan], list[Step]]] = {
    "TERM: workers that have finished leave, the others are reminded each second and killed in the end": (
        [TWO],
        [
            *TWO_UP,
            (1, StopAsked(), [BeginStop(), *finish(1, 0, 1)]),
            *nothing(1, left(1, 1), ScaleAsked(by=3)),
            *again(range(2, 31), finish(1, 0)),
            (31, TIME, [*finish(1, 0), kill(1, 0, LATE)]),
            (33, TIME, [kill(1, 0, DEAF)]),
            (34, crashed(1, 0), [let_go(1)]),
            (34, died(1), [Ended(0)]),
        ],
    ),
    "a second TERM is a quick stop": (
        [TWO],
        [
            *TWO_UP,
            (1, StopAsked(), [BeginStop(), *finish(1, 0, 1)]),
            *nothing(1.5, StopAsked()),
            (2, TIME, finish(1, 0, 1)),
            *nothing(2.5, StopAsked(quick=True)),
            (3, TIME, finish(1, 0, 1)),
            (3.5, TIME, [kill(1, 0, LATE), kill(1, 1, LATE)]),
            *nothing(3.5, crashed(1, 0)),
            (3.5, crashed(1, 1), [let_go(1)]),
            (3.5, died(1), [Ended(0)]),
        ],
    ),
    "a quick stop from the start": (
        [ONE],
        [
            *ONE_UP,
            (1, StopAsked(quick=True), [BeginStop(), *finish(1, 0)]),
            (2, TIME, finish(1, 0)),
            (3, TIME, [*finish(1, 0), kill(1, 0, LATE)]),
        ],
    ),
    "a quick stop does not lengthen a stop": (
        [ONE],
        [
            *ONE_UP,
            (1, StopAsked(), [BeginStop(), *finish(1, 0)]),
            *[(now, TIME, finish(1, 0)) for now in range(2, 31)],
            *nothing(30.5, StopAsked(quick=True)),
            (31, TIME, [*finish(1, 0), kill(1, 0, LATE)]),
        ],
    ),
    "a handler over its time limit and a hanging worker are killed all the same": (
        [TWO],
        [
            *TWO_UP,
            (29, StopAsked(), [BeginStop(), *finish(1, 0, 1)]),
            (29.5, seen([(1, 0)], {(1, 0): -1}), [abort(1, 0, "request_timeout of 30 s is over")]),
            *nothing(29.6, StopAsked()),
            (30, TIME, finish(1, 1)),
            (31, TIME, finish(1, 1)),
            (31.5, TIME, [kill(1, 0, DEAF)]),
            (31.6, TIME, [kill(1, 1, LATE)]),
        ],
    ),
    "workers that already leave are told to finish": (
        [ONE],
        [
            *ONE_UP,
            (1, ReloadAsked((ONE,)), [start(2)]),
            (1, ready(2), [fork(2, 0, 2)]),
            (1, up(2, 0), [Committed(), *drain(1, 0)]),
            (1.5, StopAsked(), [BeginStop(), *finish(1, 0), *finish(2, 0)]),
            (1.5, left(1, 0), [let_go(1)]),
            (1.5, left(2, 0), [let_go(2)]),
            *nothing(1.5, died(2)),
            (1.5, died(1), [Ended(0)]),
        ],
    ),
    "without a fork server": (
        [ONE],
        [
            *ONE_UP,
            *[(1, died(1), [start(2)]), *nothing(1, died(2))],
            (1.1, StopAsked(), [BeginStop(), *finish(1, 0)]),
            (1.2, left(1, 0), [Ended(0)]),
        ],
    ),
    "before anything has started": (
        [ONE],
        [(0, StopAsked(), [BeginStop(), Ended(0)]), *nothing(1, Started(), died(1))],
    ),
}

SCRIPTS = {
    f"{title}: {name}": script
    for title, scripts in {
        "start": STARTS,
        "reload": RELOADS,
        "fork server": FORK_SERVERS,
        "worker": WORKERS,
        "size": SIZES,
        "stop": STOPS,
    }.items()
    for name, script in scripts.items()
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    play(*SCRIPTS[name])


def test_serving_is_told_of_what_is_wanted_only() -> None:
    life = play([ONE, CLOCK], BOTH_UP[:-1])
    assert not life.serving()
    life = play([ONE, CLOCK], BOTH_UP)
    assert life.serving()
    life.handle(ReloadAsked((ONE, Plan("more", 1, 1))), 1)
    assert life.serving(), "a service that has not started yet does not count"
    life.handle(ForkServerGone("more", 1), 1)
    life.handle(crashed(1, 0, "time"), 1)
    assert not life.serving()
    life.handle(up(1, 0, "time"), 1)
    assert life.serving()
    for event in (ReloadAsked((ONE,)), ready(3), up(3, 0)):
        life.handle(event, 2)
    assert life.phase is Phase.SERVING
    assert life.pools["time"].serving is None
    assert life.serving(), "a service that is leaving does not count"
    life.handle(StopAsked(), 3)
    assert not life.serving()


@pytest.mark.parametrize(
    ("events", "exits"),
    [
        ([left(1, 0)], {"recycled": 1}),
        ([crashed(1, 0)], {"crashed": 1}),
        ([crashed(1, 0), boot_failed(1, 0)], {"crashed": 2}),
        ([crashed(1, 0), left(1, 0)], {"crashed": 1}),
        ([seen([(1, 0)], {(1, 0): -30}), crashed(1, 0)], {"timed_out": 1}),
        ([seen([(1, 0)], {(1, 0): -30}), left(1, 0)], {"timed_out": 1}),
        ([ScaleAsked("echo", 1), left(1, 1)], {}),
        ([ScaleAsked("echo", 1), crashed(1, 1)], {"crashed": 1}),
        ([StopAsked(), left(1, 1), left(1, 0)], {}),
    ],
)
def test_exits_are_counted(events: list[Event], exits: dict[str, int]) -> None:
    life = play([TWO], TWO_UP)
    for event in events:
        life.handle(event, 1)
    assert life.pools["echo"].exits == {"recycled": 0, "crashed": 0, "timed_out": 0} | exits


def test_killed_ones_are_not_counted_as_crashed() -> None:
    life = play([ONE], [*ONE_UP, (1, StopAsked(), [BeginStop(), *finish(1, 0)])], stop_timeout=0.5)
    assert life.handle(TIME, 1.5) == [kill(1, 0, LATE)]
    life.handle(crashed(1, 0), 1.5)
    assert life.pools["echo"].exits == {"recycled": 0, "crashed": 0, "timed_out": 0}


def test_phases_of_a_stop() -> None:
    life = play([ONE], ONE_UP, stop_timeout=5)
    phases = [life.phase]
    for now, event in [(1, StopAsked()), (2, StopAsked()), (3, left(1, 0)), (3, died(1))]:
        life.handle(event, now)
        phases.append(life.phase)
    assert phases == [Phase.SERVING, Phase.STOPPING, Phase.QUITTING, Phase.QUITTING, Phase.ENDED]
    life = play([ONE], ONE_UP, stop_timeout=5)
    life.handle(StopAsked(), 1)
    life.handle(TIME, 6)
    assert life.phase is Phase.QUITTING, "the timeout leads there, too"


def test_nothing_is_due_when_all_is_well_or_over() -> None:
    life = play([ONE], ONE_UP)
    assert life.due() == inf
    for event in (StopAsked(), left(1, 0), died(1)):
        life.handle(event, 1)
    assert life.phase is Phase.ENDED
    assert life.due() == inf
    assert life.handle(TimePassed(), 2) == []


def test_an_illegal_move_is_told() -> None:
    life = play([ONE], ONE_UP)
    with pytest.raises(IllegalMoveError, match="master: serving to ended"):
        life._move(Phase.ENDED)


def test_the_picture_of_the_states_is_that_of_the_tables() -> None:
    page = states.PAGE.read_text()
    assert states.BEGIN in page
    assert page == states.drawn(page), "out of date; run: make reference"


TestStories = Machine.TestCase
# Always the same stories; `lifecycle_machine` runs random ones.
TestStories.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=30,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)


def test_one_that_is_resumed_goes_on_where_the_other_stood() -> None:
    before = play([ONE], ONE_UP)
    after = Lifecycle.resumed(before.phase, before.pools, stop_timeout=30, jitter=Steady())
    assert (after.phase, after.pools) == (before.phase, before.pools)
    assert after.handle(crashed(1, 0), 1.0) == [Mend("echo"), fork(1, 0, 1)]


@pytest.mark.parametrize("event", [crashed(1, 1), boot_failed(1, 1), crashed(1, 1, "time")])
def test_listeners_are_mended_before_a_worker_that_died_in_disorder_is_replaced(event: WorkerGone) -> None:
    """The worker may have shut the listeners down, which affects every process that shares them."""
    life = play([TWO, CLOCK], [])
    for each in (Started(), ready(1), ready(1, "time"), up(1, 0), up(1, 0, "time"), up(1, 1)):
        life.handle(each, 0.0)
    actions = life.handle(event, 1.0)
    assert actions[:1] == ([Mend("echo")] if event.service == "echo" else [])
    assert [each for each in actions[1:] if isinstance(each, Mend)] == []


def test_listeners_are_not_mended_after_a_worker_that_left_or_that_nobody_knows() -> None:
    life = play([TWO], TWO_UP)
    for event in (left(1, 1), crashed(1, 9), crashed(9, 0), crashed(1, 0, "ghost")):
        assert not any(isinstance(each, Mend) for each in life.handle(event, 1.0))


# What the service manager's watchdog learns.


def unserved(life: Lifecycle, *times: float) -> list[float]:
    """Returns those of the times at which a service is without a worker."""
    return [now for now in times if life.unserved(now)]


def test_a_pool_whose_workers_cannot_be_replaced_is_given_up_after_its_boot_timeout() -> None:
    life = play([TWO, CLOCK], [])
    for event in (Started(), ready(1), ready(1, "time"), up(1, 0), up(1, 1), up(1, 0, "time")):
        life.handle(event, 0)
    life.handle(crashed(1, 0), 10)
    assert unserved(life, 10, 1000) == [], "one of two serves"
    life.handle(crashed(1, 1), 11)
    assert unserved(life, 11, 40.9, 41) == [41]
    assert life.unserved(41) == ["echo"]
    for now in (12, 13, 20):
        life.handle(boot_failed(1, 0), now)
    assert unserved(life, 40.9, 41) == [41], "an attempt does not count"
    life.handle(up(1, 1), 42)
    assert unserved(life, 42, 1000) == [], "it has recovered"


def test_a_fork_server_that_has_to_come_first_has_its_time_too() -> None:
    life = play([ONE], ONE_UP)
    life.handle(died(1), 1)
    assert unserved(life, 1000) == [], "its worker still serves"
    life.handle(crashed(1, 0), 10)
    assert unserved(life, 69.9, 70) == [70]
    life.handle(ready(2), 30)
    life.handle(up(2, 0), 50)
    assert unserved(life, 1000) == []


def test_a_busy_pool_is_well_and_one_that_is_over_its_time_is_not() -> None:
    life = play([Plan("echo", 1, 1, request_timeout=0)], ONE_UP)
    life.handle(seen([(1, 0)], {(1, 0): 0}), 5000)
    assert unserved(life, 5000) == [], "without a limit, a request may take for ever"
    life = play([ONE], ONE_UP)
    life.handle(seen([(1, 0)], {(1, 0): 0}), 30)
    assert unserved(life, 59.9, 60) == [60], "the worker was ended, and no other one serves"


def test_who_rests_starts_or_stops_is_well() -> None:
    life = Lifecycle([ONE], stop_timeout=30, jitter=Steady())
    life.handle(Started(), 0)
    assert unserved(life, 29) == []
    life = play([ONE], ONE_UP)
    life.handle(DrainAsked(), 1)
    life.handle(left(1, 0), 2)
    life.handle(died(1), 2)
    assert unserved(life, 5000) == []
    for event in (ReloadAsked((ONE,)), ready(2), up(2, 0), crashed(2, 0)):
        life.handle(event, 10)
    assert unserved(life, 10, 39, 40) == [40]
    life.handle(StopAsked(), 41)
    assert unserved(life, 5000) == []


def test_a_service_that_comes_or_goes_is_not_missed() -> None:
    life = play([ONE, CLOCK], BOTH_UP)
    life.handle(ReloadAsked((ONE, Plan("more", 1, 1))), 1)
    assert unserved(life, 5000) == []
    for event in (ready(2), up(2, 0), ready(1, "more"), up(1, 0, "more"), left(1, 0, "time"), left(1, 0)):
        life.handle(event, 2)
    assert life.phase is Phase.SERVING
    assert unserved(life, 5000) == []


# How long the work in progress may take.


def test_a_start_may_take_what_its_slowest_service_may() -> None:
    life = Lifecycle([ONE, Plan("time", 1, 1, boot_timeout=100)], stop_timeout=30, jitter=Steady())
    assert life.left(0) == 0
    life.handle(Started(), 0)
    assert life.left(10) == 190, "time for a fork server, then for a worker"
    life.handle(ready(1, "time"), 20)
    assert life.left(20) == 100
    life.handle(ready(1), 30)
    life.handle(up(1, 0, "time"), 31)
    assert life.left(40) == 20
    assert life.left(70) == 0
    life.handle(up(1, 0), 41)
    assert life.phase is Phase.SERVING
    assert life.left(41) == 0


def test_a_reload_may_take_what_it_takes_and_then_nothing_does() -> None:
    life = play([ONE], ONE_UP)
    life.handle(crashed(1, 0), 1)
    assert life.left(1) == 0, "a replacement is not waited for"
    life.handle(up(1, 0), 1)
    life.handle(ReloadAsked((ONE,)), 10)
    assert life.left(10) == 60
    life.handle(ready(2), 12)
    assert life.left(12) == 30
    life.handle(up(2, 0), 13)
    assert life.left(13) == 0


def test_a_stop_may_take_its_time_and_no_more() -> None:
    life = play([ONE], ONE_UP, stop_timeout=100)
    life.handle(StopAsked(), 10)
    assert life.left(10) == 100
    life.handle(StopAsked(), 11)
    assert life.left(11) == 2
    life.handle(TIME, 13)
    assert life.left(13) == 0, "a killed process that does not go earns no extra time"
