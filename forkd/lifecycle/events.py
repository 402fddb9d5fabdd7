"""Events, which the master passes to the lifecycle, and actions, which the lifecycle returns: plain values.

Events are named in the past tense, actions as orders. All pass through one method of the master, where one
line logs the whole life of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from forkd.ipc.order import Order


class Plan(Struct, frozen=True):
    """What the settings say about one service's pool: numbers of workers, and times in seconds (0: no limit)."""

    service: str
    minimum: int
    maximum: int
    spare: int = 0
    boot_timeout: float = 30
    request_timeout: float = 30
    drain_timeout: float = 300


class Departure(Enum):
    """How a worker ended."""

    LEFT = "left"
    CRASHED = "crashed"
    BOOT_FAILED = "could not boot"


# Events.


class Started(Struct, frozen=True):
    """The listeners are open; the services may start."""


class ForkServerReady(Struct, frozen=True):
    service: str
    generation: int


class ForkServerGone(Struct, frozen=True):
    """A fork server ended or could not start: `reason` says why, and `status` is forkd's own exit status for that."""

    service: str
    generation: int
    reason: str = ""
    status: int = 1


class WorkerReady(Struct, frozen=True):
    service: str
    generation: int
    slot: int


class WorkerGone(Struct, frozen=True):
    service: str
    generation: int
    slot: int
    departure: Departure
    reason: str = ""


class Observed(Struct, frozen=True):
    """Which workers of a service are busy, by generation and slot.

    `requests` are the workers that run a handler, with the time at which it started. Those that are `retiring` have
    served long enough, and serve until another worker has taken their place.
    """

    service: str
    busy: frozenset[tuple[int, int]]
    requests: Mapping[tuple[int, int], float]
    retiring: frozenset[tuple[int, int]] = frozenset()


class StopAsked(Struct, frozen=True):
    """A stop, as by TERM. A second one is `quick`; INT and QUIT ask for a quick stop at once."""

    quick: bool = False


class DrainAsked(Struct, frozen=True):
    """A drain, as by WINCH: all workers leave, the listeners stay open, and a reload brings workers back."""


class ReloadAsked(Struct, frozen=True):
    plans: tuple[Plan, ...]


class ScaleAsked(Struct, frozen=True):
    """Another size for a pool, or for all pools if `service` is empty: `size`, or `by` more than before."""

    service: str = ""
    size: int | None = None
    by: int = 0


class TimePassed(Struct, frozen=True):
    """Nothing happened, but something may have become due."""


Event = (
    Started
    | ForkServerReady
    | ForkServerGone
    | WorkerReady
    | WorkerGone
    | Observed
    | StopAsked
    | DrainAsked
    | ReloadAsked
    | ScaleAsked
    | TimePassed
)

# Actions.


class StartForkServer(Struct, frozen=True):
    service: str
    generation: int


class EndForkServer(Struct, frozen=True):
    """End a fork server that has no workers left; with `kill`, end it at once, even if it still has some.

    If it does not end, the order is repeated with `kill`. The answer is ForkServerGone.
    """

    service: str
    generation: int
    kill: bool = False


class Fork(Struct, frozen=True):
    """Fork a worker into `slot`; it writes row `row` of the scoreboard.

    The answer is WorkerReady or WorkerGone; it is WorkerGone, too, if the fork server ends before it forks.
    """

    service: str
    generation: int
    slot: int
    row: int


class Tell(Struct, frozen=True):
    service: str
    generation: int
    slot: int
    order: Order


class Abort(Struct, frozen=True):
    """End a hanging worker in such a way that its stack is written first."""

    service: str
    generation: int
    slot: int
    reason: str


class Kill(Struct, frozen=True):
    service: str
    generation: int
    slot: int
    reason: str


class Mend(Struct, frozen=True):
    """Make a service's listeners listen again, in case the worker that just died had shut them down (shutdown(2))."""

    service: str


class Announce(Struct, frozen=True):
    """Say that every service serves, for the first time."""


class BeginStop(Struct, frozen=True):
    """Accept no more connections, because a stop has begun."""


class Committed(Struct, frozen=True):
    """Put a reload's settings in force, because its new generations serve."""


class Abandoned(Struct, frozen=True):
    """Give up a reload, for `reason`; nothing has changed."""

    reason: str


class Forgotten(Struct, frozen=True):
    """Forget a service that is no longer wanted, because its last process has gone."""

    service: str


class Ended(Struct, frozen=True):
    status: int
    reason: str = ""


Action = (
    StartForkServer
    | EndForkServer
    | Fork
    | Tell
    | Abort
    | Kill
    | Mend
    | Announce
    | BeginStop
    | Committed
    | Abandoned
    | Forgotten
    | Ended
)
