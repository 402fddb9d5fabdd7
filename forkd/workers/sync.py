"""The loop of a `sync` worker: wait, accept, serve one connection to its end, wait again.

It waits for the listeners, its signals and the lingering sockets at once, and accepts without blocking, because a
blocking accept(2) cannot be left safely. A busy worker does not wait, so connections go to idle workers without any
sharing out.
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


def serve(context: WorkerContext) -> None:
    """Serves until ordered to leave; returns when the last connection has ended."""
    loop = _SyncLoop(context)
    context.meter.idle()
    context.wake()
    loop.leave(loop.run())


class _SyncLoop:
    def __init__(self, context: WorkerContext) -> None:
        self.context = context
        self.number = 0
        self.room = ROOMS[0]
        self.lingering = Lingering()
        self.epoll = select.epoll()
        self.epoll.register(context.inbox.fd, select.EPOLLIN)
        self.doors = Acceptor(context.doors, self.epoll, context.meter, context.report, context.is_crowded)
        context.leash.abandon = self.doors.abandon

    def run(self) -> bool:
        """Serves until ordered to leave; True if the order came while waiting, not during a connection."""
        leash, epoll = self.context.leash, self.epoll
        waited = True
        while leash.order is None:
            waited = True
            for fd, _ in epoll.poll(self.timeout(), 1):
                if fd in self.doors:
                    waited = not self.accept(fd)
                else:
                    self.attend(fd)
            if self.lingering or self.doors.resume_at is not None:
                self.tidy()
            self.context.retire_in_time(monotonic())
        return waited

    def leave(self, waited: bool) -> None:
        """Leaves the listeners, then waits for the sockets that linger. Every connection that was let in is served.

        If a worker that was woken for a connection left without it, the client would wait although other workers are
        idle. So a worker that was waiting looks at each listener once more; one that was busy accepts nothing more,
        because that may be long after a reload. At a stop the queue is emptied, because no other worker will do it,
        unless the socket was passed to forkd: then its owner keeps the queue.
        """
        self.doors.unwatch()
        for fd, door in self.doors:
            empty_it = self.context.stopping and not door.passed
            while (waited or empty_it) and self.accept(fd) and empty_it:
                pass
            self.doors.shut(fd)
        self.doors.resume_at = None
        while self.lingering:
            for fd, _ in self.epoll.poll(self.lingering.timeout(monotonic())):
                self.attend(fd)
            self.tidy()

    def accept(self, fd: int) -> bool:
        """Serves the next connection in the queue; False if there was none to serve."""
        guest = self.doors.accept(fd, stopping=self.context.stopping)
        if isinstance(guest, bool):
            return guest
        self.context.meter.opened()
        self.context.ask_for_spares()
        self.converse(guest)
        return True

    def converse(self, guest: Guest) -> None:
        context = self.context
        self.number += 1
        sock = guest.sock
        connection = Connection(
            sock,
            service=context.name,
            number=self.number,
            limits=context.limits,
            resources=context.resources,
            peer=guest.peer,
            room=self.room,
        )
        guest.prepare(connection)
        peer = str(connection.peer).encode(errors="backslashreplace")
        context.leash.attend(connection)
        mark = Mark(context.meter.row) if context.access else None
        outcome = converse(connection, context.service, context.meter, peer)
        context.leash.attend(None)
        self.room = connection.room_for_the_next
        context.report.ended(connection, outcome, None if mark is None else mark.account())
        if connection.at_end or outcome.end is End.RESET:
            sock.close()
        else:
            fd = self.lingering.add(sock, monotonic())
            if fd is not None:
                self.epoll.register(fd, select.EPOLLIN)
        context.meter.closed()
        if outcome.end is End.EXIT:
            context.leash.leave(Order.FINISH)

    def attend(self, fd: int) -> None:
        """Takes anything but a listener: a signal, or a lingering socket."""
        if fd == self.context.inbox.fd:
            self.context.inbox.take()
        else:
            self.lingering.readable(fd)  # a closed descriptor leaves the epoll by itself

    def tidy(self) -> None:
        now = monotonic()
        self.lingering.expire(now)
        self.doors.tidy(now)

    def timeout(self) -> float | None:
        now = monotonic()
        return self.context.timeout(now, self.lingering.timeout(now), self.doors.timeout(now))
