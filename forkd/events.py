"""What the master tells the lifecycle, and what the lifecycle orders: plain values, nothing else.

Events are past tense, actions are orders. Every one passes through one method of the master, so
that one line there logs the whole life of the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from forkd.order import Order


@dataclass(frozen=True, slots=True)
class Plan:
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


@dataclass(frozen=True, slots=True)
class Started:
    """The listeners are open; the services may begin."""


@dataclass(frozen=True, slots=True)
class ForkServerReady:
    service: str
    generation: int


@dataclass(frozen=True, slots=True)
class ForkServerGone:
    """A fork server ended, or could not become one: then `reason` says why and `status` is forkd's own for it."""

    service: str
    generation: int
    reason: str = ""
    status: int = 1


@dataclass(frozen=True, slots=True)
class WorkerReady:
    service: str
    generation: int
    slot: int


@dataclass(frozen=True, slots=True)
class WorkerGone:
    service: str
    generation: int
    slot: int
    departure: Departure
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Observed:
    """Which workers of a service are busy, by generation and slot.

    `requests` holds those of them that have a handler at work, with its start; `retiring` are those that
    have served long enough, and go on until somebody has taken their place.
    """

    service: str
    busy: frozenset[tuple[int, int]]
    requests: Mapping[tuple[int, int], float]
    retiring: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class StopAsked:
    """TERM; a second one means `quick`, and INT and QUIT do at once."""

    quick: bool = False


@dataclass(frozen=True, slots=True)
class DrainAsked:
    """WINCH: every worker leaves, the listeners stay open; a reload brings workers back."""


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True)
class ScaleAsked:
    """A pool's size: set to `size`, or moved by `by`; every pool's when `service` is empty."""

    service: str = ""
    size: int | None = None
    by: int = 0


@dataclass(frozen=True, slots=True)
class TimePassed:
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


@dataclass(frozen=True, slots=True)
class StartForkServer:
    service: str
    generation: int


@dataclass(frozen=True, slots=True)
class EndForkServer:
    """Let go of a fork server, which has no workers left; with `kill`, at once, and whatever it still has.

    One that stays is told again, with `kill`. It is answered by ForkServerGone.
    """

    service: str
    generation: int
    kill: bool = False


@dataclass(frozen=True, slots=True)
class Fork:
    """A new worker in `slot`, which writes row `row` of the scoreboard.

    It is answered by WorkerReady or WorkerGone; by the latter, too, when the fork server ended before it forked.
    """

    service: str
    generation: int
    slot: int
    row: int


@dataclass(frozen=True, slots=True)
class Tell:
    service: str
    generation: int
    slot: int
    order: Order


@dataclass(frozen=True, slots=True)
class Abort:
    """End a hanging worker so that its stack is written first."""

    service: str
    generation: int
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    service: str
    generation: int
    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Every service serves for the first time."""


@dataclass(frozen=True, slots=True)
class BeginStop:
    """No more connections: a stop has begun."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A reload's new generations serve."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A reload came to nothing, for `reason`; all is as it was."""

    reason: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The last process of a service that is no longer wanted has gone."""

    service: str


@dataclass(frozen=True, slots=True)
class Exit:
    status: int
    reason: str = ""


Action = (
    StartForkServer
    | EndForkServer
    | Fork
    | Tell
    | Abort
    | Kill
    | Announce
    | BeginStop
    | Committed
    | Abandoned
    | Forgotten
    | Exit
)
