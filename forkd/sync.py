"""The `sync` worker's loop: wait, accept, one connection at a time to its end, wait again.

It waits on the listeners, its signals and the lingering sockets at once and accepts without
blocking, for a blocking accept(2) cannot be left safely. A busy worker does not wait, so nobody
has to share out connections.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from forkd import tap
from forkd.address import Address
from forkd.brief import Door
from forkd.connection import Connection, Limits
from forkd.conversation import End, Outcome, converse
from forkd.errors import ListenError
from forkd.events import Order
from forkd.handler import Service
from forkd.linger import Lingering
from forkd.orders import Orders
from forkd.process import own_memory
from forkd.retirement import Tenure
from forkd.scoreboard import ACCEPT_FAILED, PHASE, REQUESTS, SPARE, STOPPING, Board, Meter
from forkd.signals import Inbox

# accept(2), "Error handling": what happened to one new connection, not to the listener.
_THIS_CONNECTION: Final = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EPERM,
    errno.EINTR,
}
_LISTENER_LOST: Final = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT}
# Seconds without accepting, when descriptors or memory have run out: doubled each time, up to the last.
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 0.5
_WORD_SECONDS: Final = 1.0  # how often failures of single connections are told of at most
_LISTENER_EVENTS: Final = {False: select.EPOLLIN, True: select.EPOLLIN | select.EPOLLEXCLUSIVE}


class Report(Protocol):
    """Where the facts of a worker go."""

    def ended(self, connection: Connection, outcome: Outcome) -> None: ...

    def accept_failed(self, error: OSError) -> None: ...

    def accept_goes_on(self, seconds: float) -> None: ...


@dataclass(slots=True)
class Seat:
    """All that a worker has to serve with.

    `wake` tells the master to look at the scoreboard; `exclusive` has the kernel wake one worker for a
    connection instead of all (a large pool's herd costs more than its unfairness); `tenure` is None once it is over.
    """

    name: str
    service: Service[..., Any]
    doors: list[tuple[socket.socket, Door]]
    limits: Limits
    board: Board
    meter: Meter
    orders: Orders
    inbox: Inbox
    resources: Any
    tenure: Tenure | None
    exclusive: bool
    wake: Callable[[], None]
    report: Report


def serve(seat: Seat) -> None:
    """Serves until told to leave; returns when the last connection has ended."""
    loop = _Loop(seat)
    seat.meter.idle()
    seat.wake()
    loop.leave(loop.run())


class _Loop:
    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.number = 0
        self.lingering = Lingering()
        self.epoll = select.epoll()
        self.epoll.register(seat.inbox.fd, select.EPOLLIN)
        self.doors = {sock.fileno(): (sock, door) for sock, door in seat.doors}
        self.resume_at: float | None = None
        self.pause = _FIRST_PAUSE
        self.starved_since: float | None = None
        self.silent_until = 0.0
        seat.orders.abandon = self.abandon_doors
        self.watch_doors()

    def watch_doors(self) -> None:
        self.resume_at = None
        for fd, (sock, _) in self.doors.items():
            if sock.fileno() == fd:  # or else it is abandoned, and somebody else's number by now
                self.epoll.register(fd, _LISTENER_EVENTS[self.seat.exclusive])

    def unwatch_doors(self) -> None:
        if self.resume_at is None:
            for fd, (sock, _) in self.doors.items():
                with suppress(OSError):  # abandoned just now
                    if sock.fileno() == fd:
                        self.epoll.unregister(fd)

    def abandon_doors(self) -> None:
        """Closes the listeners for good, so that somebody else can have their addresses while we are still busy.

        Called in a signal handler, so at any point of this room's other functions.
        """
        self.unwatch_doors()
        for sock, _ in self.doors.values():
            sock.close()

    def run(self) -> bool:
        """Serves until told to leave; True when that was heard while waiting, not in the course of a connection."""
        orders, epoll = self.seat.orders, self.epoll
        waited = True
        while orders.told is None:
            waited = True
            for fd, _ in epoll.poll(self.timeout(), 1):
                if fd in self.doors:
                    waited = not self.accept(*self.doors[fd])
                else:
                    self.attend(fd)
            if self.lingering or self.resume_at is not None:
                self.tidy()
            self.retire_in_time()
        return waited

    def leave(self, waited: bool) -> None:
        """Off the listeners, then what lingers: whoever was let in is served.

        A worker that was woken for a connection and left without it would leave its client
        waiting beside idle colleagues, so one that was waiting has one more look at each listener;
        one that was busy accepts no more, which may be long after a reload. At a stop the queue is
        emptied, for nobody else will, unless whoever passed us the socket keeps it.
        """
        self.unwatch_doors()
        for sock, door in self.doors.values():
            empty_it = self.stopping() and not door.passed
            while (waited or empty_it) and self.accept(sock, door) and empty_it:
                pass
            sock.close()
        self.resume_at = None
        while self.lingering:
            for fd, _ in self.epoll.poll(self.lingering.timeout(monotonic())):
                self.attend(fd)
            self.tidy()

    def stopping(self) -> bool:
        return self.seat.board.header[PHASE] == STOPPING

    def accept(self, listener: socket.socket, door: Door) -> bool:
        """Serves the next connection in the queue; False when there was none to serve."""
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return False  # a colleague was faster, or the client has gone
        except OSError as error:
            return listener.fileno() >= 0 and self.accept_failed(error)
        if self.starved_since is not None:
            self.accept_goes_on(self.starved_since)
        self.seat.meter.opened()
        if self.seat.board.header[SPARE] and self.seat.board.idle() < self.seat.board.header[SPARE]:
            self.seat.wake()
        if self.stopping():
            tap.admit(sock)
        self.converse(sock, peer, door.address)
        return True

    def accept_failed(self, error: OSError) -> bool:
        """What a failed accept(2) means; True when the next one may be tried at once."""
        now = monotonic()
        if error.errno in _LISTENER_LOST:
            raise ListenError(f"a listener is lost ({errno.errorcode[error.errno]}): somebody has shut or closed it")
        if error.errno in _THIS_CONNECTION:
            self.seat.meter.counted(ACCEPT_FAILED)
            if now >= self.silent_until:
                self.silent_until = now + _WORD_SECONDS
                self.seat.report.accept_failed(error)
            return True
        if self.starved_since is None:
            self.starved_since = now
            self.seat.report.accept_failed(error)
        if self.resume_at is None:
            self.unwatch_doors()
            self.resume_at = now + self.pause
            self.pause = min(_LAST_PAUSE, 2 * self.pause)
        return False

    def accept_goes_on(self, since: float) -> None:
        self.starved_since, self.pause = None, _FIRST_PAUSE
        self.seat.report.accept_goes_on(monotonic() - since)

    def converse(self, sock: socket.socket, peer: object, address: Address) -> None:
        seat = self.seat
        self.number += 1
        connection = Connection(
            sock, service=seat.name, number=self.number, limits=seat.limits, resources=seat.resources, peer=peer
        )
        if address.kind == "unix":  # accept(2) hands nothing down there, and getsockname(2) an old name
            connection.local = address
            connection.prepare()
        seat.meter.meets(str(connection.peer))
        seat.orders.attend(connection)
        outcome = converse(connection, seat.service, seat.meter)
        seat.orders.attend(None)
        seat.report.ended(connection, outcome)
        if connection.at_end or outcome.end is End.RESET:
            sock.close()
        else:
            fd = self.lingering.add(sock, monotonic())
            if fd is not None:
                self.epoll.register(fd, select.EPOLLIN)
        seat.meter.closed()
        if outcome.end is End.EXIT:
            seat.orders.leave(Order.FINISH)

    def retire_in_time(self) -> None:
        """Between connections: a worker that has served long enough says so, and goes on until it is told to leave."""
        seat = self.seat
        if seat.tenure is not None and seat.tenure.over(monotonic(), seat.meter.row[REQUESTS], own_memory):
            seat.tenure = None
            seat.meter.retires()
            seat.wake()

    def attend(self, fd: int) -> None:
        """Something else than a listener: a signal, or a lingering socket."""
        if fd == self.seat.inbox.fd:
            self.seat.inbox.take()
        else:
            self.lingering.readable(fd)  # a closed descriptor leaves the epoll by itself

    def tidy(self) -> None:
        self.lingering.expire(monotonic())
        if self.resume_at is not None and monotonic() >= self.resume_at:
            self.watch_doors()

    def timeout(self) -> float | None:
        waits = [self.lingering.timeout(monotonic())]
        if self.seat.tenure is not None:
            waits.append(self.seat.tenure.timeout(monotonic()))
        if self.resume_at is not None:
            waits.append(max(0.0, self.resume_at - monotonic()))
        return min((wait for wait in waits if wait is not None), default=None)
