"""A worker's side of the listeners: waited on, accepted from, let go of.

Accepting never blocks, for a blocking accept(2) cannot be left safely. What its errors mean stands here
(accept(2), "Error handling"), and how long a worker then keeps away from the listeners. Whoever was let in
is the affair of `sync` or `event`.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple, Protocol

from forkd.errors import ListenError
from forkd.ipc.brief import Door
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import ACCEPT_FAILED
from forkd.kernel import tap
from forkd.kernel.address import Address
from forkd.kernel.sockopts import plain
from forkd.serving.connection import Connection

# What happened to one new connection, not to the listener.
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
# One worker is woken for a connection: the first to have registered of those that wait (epoll_ctl(2)). All the others
# sleep on, and the one that serves while load is light keeps its caches warm.
_EVENTS: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE


class Report(Protocol):
    """Where the facts of accepting go."""

    def accept_failed(self, error: OSError) -> None: ...

    def accept_goes_on(self, seconds: float) -> None: ...


class Guest(NamedTuple):
    """A connection that was let in: its socket, the client's address as accept(2) gives it, and where it called."""

    sock: socket.socket
    peer: object
    address: Address

    def prepare(self, connection: Connection) -> None:
        """Gives a connection what accept(2) hands down to TCP alone, and its name, which getsockname(2) has old."""
        if self.address.kind == "unix":
            connection.local = self.address
            connection.prepare()


class Acceptor:
    """The listeners in a worker's epoll(7). While `resume_at` is a time they are not waited on."""

    def __init__(
        self,
        doors: list[tuple[socket.socket, Door]],
        epoll: select.epoll,
        meter: Meter,
        report: Report,
    ) -> None:
        self.resume_at: float | None = None
        self._doors = {sock.fileno(): (sock, door) for sock, door in doors}
        self._epoll = epoll
        self._meter = meter
        self._report = report
        self._pause = _FIRST_PAUSE
        self._starved_since: float | None = None
        self._silent_until = 0.0
        self._left_over = set(self._doors)
        self.watch()

    def __contains__(self, fd: int) -> bool:
        return fd in self._doors

    def __iter__(self) -> Iterator[tuple[int, Door]]:
        return ((fd, door) for fd, (_, door) in self._doors.items())

    def watch(self) -> None:
        self.resume_at = None
        for fd, (sock, _) in self._doors.items():
            if sock.fileno() == fd:  # or else it is abandoned, and somebody else's number by now
                self._epoll.register(fd, _EVENTS)

    def unwatch(self) -> None:
        if self.resume_at is None:
            for fd, (sock, _) in self._doors.items():
                with suppress(OSError):  # abandoned just now
                    if sock.fileno() == fd:
                        self._epoll.unregister(fd)

    def keep_away(self, until: float) -> None:
        """Waits on no listener until then, and after that behind the other workers that wait."""
        if self.resume_at is None:
            self.unwatch()
            self.resume_at = until

    def tidy(self, now: float) -> None:
        """Waits on the listeners again, when it is time."""
        if self.resume_at is not None and now >= self.resume_at:
            self.watch()

    def timeout(self, now: float) -> float | None:
        return None if self.resume_at is None else max(0.0, self.resume_at - now)

    def abandon(self) -> None:
        """Closes the listeners for good, so that somebody else can have their addresses while we are still busy.

        Called in a signal handler, so at any point of this room's other functions.
        """
        self.unwatch()
        self.close()

    def close(self) -> None:
        for sock, _ in self._doors.values():
            sock.close()

    def shut(self, fd: int) -> None:
        """Closes one listener for good."""
        self._doors[fd][0].close()

    def accept(self, fd: int, *, stopping: bool) -> Guest | bool:
        """The next connection in the queue; False when there is none to let in, True when the next try may be better.

        `stopping` says that the tap may be closed, which a connection then inherits. Raises ListenError when
        the listener is lost.
        """
        listener, door = self._doors[fd]
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return False  # a colleague was faster, or the client has gone
        except OSError as error:
            return listener.fileno() >= 0 and self._failed(error)
        if self._starved_since is not None:
            self._goes_on(self._starved_since)
        if stopping:
            tap.admit(sock)
        elif self._left_over:
            self._admit_left_over(fd, sock)
        return Guest(plain(sock), peer, door.address)

    def _admit_left_over(self, fd: int, sock: socket.socket) -> None:
        """Lets packets in for who has waited in the queue since our predecessor closed the tap.

        The first who has not shows that nobody else has, for a queue keeps its order.
        """
        if tap.is_closed(sock):
            tap.admit(sock)
        else:
            self._left_over.discard(fd)

    def _failed(self, error: OSError) -> bool:
        """What a failed accept(2) means; True when the next one may be tried at once."""
        now = monotonic()
        if error.errno in _LISTENER_LOST:
            raise ListenError(f"a listener is lost ({errno.errorcode[error.errno]}): somebody has shut or closed it")
        if error.errno in _THIS_CONNECTION:
            self._meter.counted(ACCEPT_FAILED)
            if now >= self._silent_until:
                self._silent_until = now + _WORD_SECONDS
                self._report.accept_failed(error)
            return True
        if self._starved_since is None:
            self._starved_since = now
            self._report.accept_failed(error)
        if self.resume_at is None:
            self.keep_away(now + self._pause)
            self._pause = min(_LAST_PAUSE, 2 * self._pause)
        return False

    def _goes_on(self, since: float) -> None:
        self._starved_since, self._pause = None, _FIRST_PAUSE
        self._report.accept_goes_on(monotonic() - since)
