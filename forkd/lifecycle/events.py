"""What the master tells the lifecycle, and what the lifecycle orders: plain values, nothing else.

Events are past tense, actions are orders. Every one passes through one method of the master, so
that one line there logs the whole life of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from forkd.ipc.order import Order


class Plan(Struct, frozen=True):
    """What the settings want of one service's pool: numbers of workers, and times in seconds (0: for ever)."""

    service: str
    minimum: int
    maximum: int
    spare: int = 0
    boot_timeout: float = 30
    request_timeout: float = 30
    drain_timeout: float = 300


class Departure(Enum):
    """How a worker went."""

    LEFT = "left"
    CRASHED = "crashed"
    BOOT_FAILED = "could not boot"


# Events.


class Started(Struct, frozen=True):
    """The listeners are open; the services may begin."""


class ForkServerReady(Struct, frozen=True):
    service: str
    generation: int


class ForkServerGone(Struct, frozen=True):
    """A fork server ended, or could not become one: then `reason` says why and `status` is forkd's own for it."""

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

    `requests` holds those of them that have a handler at work, with its start; `retiring` are those that
    have served long enough, and go on until somebody has taken their place.
    """

    service: str
    busy: frozenset[tuple[int, int]]
    requests: Mapping[tuple[int, int], float]
    retiring: frozenset[tuple[int, int]] = frozenset()


class StopAsked(Struct, frozen=True):
    """TERM; a second one means `quick`, and INT and QUIT do at once."""

    quick: bool = False


class DrainAsked(Struct, frozen=True):
    """WINCH: every worker leaves, the listeners stay open; a reload brings workers back."""


class ReloadAsked(Struct, frozen=True):
    plans: tuple[Plan, ...]


class ScaleAsked(Struct, frozen=True):
    """A pool's size: set to `size`, or moved by `by`; every pool's when `service` is empty."""

    service: str = ""
    size: int | None = None
    by: int = 0


class TimePassed(Struct, frozen=True):
    """Nothing happened but time."""


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
    """Let go of a fork server, which has no workers left; with `kill`, at once, and whatever it still has.

    One that stays is told again, with `kill`. It is answered by ForkServerGone.
    """

    service: str
    generation: int
    kill: bool = False


class Fork(Struct, frozen=True):
    """A new worker in `slot`, which writes row `row` of the scoreboard.

    It is answered by WorkerReady or WorkerGone; by the latter, too, when the fork server ended before it forked.
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
    """End a hanging worker so that its stack is written first."""

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
    """Every service serves for the first time."""


class BeginStop(Struct, frozen=True):
    """No more connections: a stop has begun."""


class Committed(Struct, frozen=True):
    """A reload's new generations serve."""


class Abandoned(Struct, frozen=True):
    """A reload came to nothing, for `reason`; all is as it was."""

    reason: str


class Forgotten(Struct, frozen=True):
    """The last process of a service that is no longer wanted has gone."""

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
