"""The `sync` worker's loop: wait, accept, one connection at a time to its end, wait again.

It waits on the listeners, its signals and the lingering sockets at once and accepts without
blocking, for a blocking accept(2) cannot be left safely. A busy worker does not wait, so nobody
has to share out connections.
"""

from __future__ import annotations

import select
from time import monotonic

from forkd.ipc.order import Order
from forkd.serving.connection import ROOMS, Connection
from forkd.serving.exchange import converse
from forkd.serving.outcome import End
from forkd.workers.acceptor import Acceptor, Guest
from forkd.workers.account import Mark
from forkd.workers.context import WorkerContext
from forkd.workers.linger import Lingering


def serve(seat: WorkerContext) -> None:
    """Serves until told to leave; returns when the last connection has ended."""
    loop = _SyncLoop(seat)
    seat.meter.idle()
    seat.wake()
    loop.leave(loop.run())


class _SyncLoop:
    def __init__(self, seat: WorkerContext) -> None:
        self.seat = seat
        self.number = 0
        self.room = ROOMS[0]
        self.lingering = Lingering()
        self.epoll = select.epoll()
        self.epoll.register(seat.inbox.fd, select.EPOLLIN)
        self.doors = Acceptor(seat.doors, self.epoll, seat.meter, seat.report)
        seat.orders.abandon = self.doors.abandon

    def run(self) -> bool:
        """Serves until told to leave; True when that was heard while waiting, not in the course of a connection."""
        orders, epoll = self.seat.orders, self.epoll
        waited = True
        while orders.told is None:
            waited = True
            for fd, _ in epoll.poll(self.timeout(), 1):
                if fd in self.doors:
                    waited = not self.accept(fd)
                else:
                    self.attend(fd)
            if self.lingering or self.doors.resume_at is not None:
                self.tidy()
            self.seat.retire_in_time(monotonic())
        return waited

    def leave(self, waited: bool) -> None:
        """Off the listeners, then what lingers: whoever was let in is served.

        A worker that was woken for a connection and left without it would leave its client
        waiting beside idle colleagues, so one that was waiting has one more look at each listener;
        one that was busy accepts no more, which may be long after a reload. At a stop the queue is
        emptied, for nobody else will, unless whoever passed us the socket keeps it.
        """
        self.doors.unwatch()
        for fd, door in self.doors:
            empty_it = self.seat.stopping and not door.passed
            while (waited or empty_it) and self.accept(fd) and empty_it:
                pass
            self.doors.shut(fd)
        self.doors.resume_at = None
        while self.lingering:
            for fd, _ in self.epoll.poll(self.lingering.timeout(monotonic())):
                self.attend(fd)
            self.tidy()

    def accept(self, fd: int) -> bool:
        """Serves the next connection in the queue; False when there was none to serve."""
        guest = self.doors.accept(fd, stopping=self.seat.stopping)
        if isinstance(guest, bool):
            return guest
        self.seat.meter.opened()
        self.seat.ask_for_spares()
        self.converse(guest)
        return True

    def converse(self, guest: Guest) -> None:
        seat = self.seat
        self.number += 1
        sock = guest.sock
        connection = Connection(
            sock,
            service=seat.name,
            number=self.number,
            limits=seat.limits,
            resources=seat.resources,
            peer=guest.peer,
            room=self.room,
        )
        guest.prepare(connection)
        peer = str(connection.peer).encode(errors="backslashreplace")
        seat.orders.attend(connection)
        mark = Mark(seat.meter.row) if seat.access else None
        outcome = converse(connection, seat.service, seat.meter, peer)
        seat.orders.attend(None)
        self.room = connection.room_for_the_next
        seat.report.ended(connection, outcome, None if mark is None else mark.account())
        if connection.at_end or outcome.end is End.RESET:
            sock.close()
        else:
            fd = self.lingering.add(sock, monotonic())
            if fd is not None:
                self.epoll.register(fd, select.EPOLLIN)
        seat.meter.closed()
        if outcome.end is End.EXIT:
            seat.orders.leave(Order.FINISH)

    def attend(self, fd: int) -> None:
        """Something else than a listener: a signal, or a lingering socket."""
        if fd == self.seat.inbox.fd:
            self.seat.inbox.take()
        else:
            self.lingering.readable(fd)  # a closed descriptor leaves the epoll by itself

    def tidy(self) -> None:
        now = monotonic()
        self.lingering.expire(now)
        self.doors.tidy(now)

    def timeout(self) -> float | None:
        now = monotonic()
        return self.seat.timeout(now, self.lingering.timeout(now), self.doors.timeout(now))
