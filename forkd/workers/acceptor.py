"""A worker's side of the listeners: waits on them, accepts from them, lets go of them.

Accepting never blocks, because a blocking accept(2) cannot be left safely. This room knows what its errors mean
(accept(2), "Error handling"), and how long a worker then keeps away from the listeners. What becomes of an accepted
connection is up to `sync` or `event`.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import Final, NamedTuple

from forkd.errors import ListenError
from forkd.ipc.brief import Door
from forkd.ipc.meter import Meter
from forkd.ipc.scoreboard import ACCEPT_FAILED
from forkd.kernel import tap
from forkd.kernel.address import Address
from forkd.kernel.sockopts import plain
from forkd.serving.connection import Connection
from forkd.workers.reporter import Report

# Errors of one new connection, not of the listener.
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
# Seconds without accepting after descriptors or memory have run out: doubled each time, up to the last.
_FIRST_PAUSE: Final = 0.05
_LAST_PAUSE: Final = 0.5
_WORD_SECONDS: Final = 1.0  # failures of single connections are logged at most this often


class Guest(NamedTuple):
    """An accepted connection: its socket, the client's address as accept(2) returned it, and the address it called."""

    sock: socket.socket
    peer: object
    address: Address

    def prepare(self, connection: Connection) -> None:
        """Does for a unix connection what accept(2) does only for TCP: hands down the timeouts. Also sets the local
        address, since getsockname(2) may report an old name.
        """
        if self.address.kind == "unix":
            connection.local = self.address
            connection.prepare()


class Acceptor:
    """The listeners in a worker's epoll(7). While `resume_at` is a time, they are not waited on.

    With `exclusive`, a connection wakes one worker, and the others sleep on (epoll_ctl(2)). Which one is left to the
    kernel, so shares are less even, and a worker that has no descriptor left may be the one.
    """

    def __init__(
        self,
        doors: list[tuple[socket.socket, Door]],
        epoll: select.epoll,
        meter: Meter,
        report: Report,
        exclusive: bool,
    ) -> None:
        self.resume_at: float | None = None
        self._doors = {sock.fileno(): (sock, door) for sock, door in doors}
        self._epoll = epoll
        self._meter = meter
        self._report = report
        self._events = select.EPOLLIN | (select.EPOLLEXCLUSIVE if exclusive else 0)
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
            if sock.fileno() == fd:  # or else it is abandoned, and the number may belong to another file
                self._epoll.register(fd, self._events)

    def unwatch(self) -> None:
        if self.resume_at is None:
            for fd, (sock, _) in self._doors.items():
                with suppress(OSError):  # abandoned just now
                    if sock.fileno() == fd:
                        self._epoll.unregister(fd)

    def keep_away(self, until: float) -> None:
        """Waits on no listener until then."""
        if self.resume_at is None:
            self.unwatch()
            self.resume_at = until

    def tidy(self, now: float) -> bool:
        """Waits on the listeners again when it is time; True if it was."""
        due = self.resume_at is not None and now >= self.resume_at
        if due:
            self.watch()
        return due

    def timeout(self, now: float) -> float | None:
        return None if self.resume_at is None else max(0.0, self.resume_at - now)

    def abandon(self) -> None:
        """Closes the listeners for good, so that their addresses become free while this worker is still busy.

        Called in a signal handler, so possibly in the middle of any other function of this room.
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
        """Accepts the next connection; False if there is none to let in, True if the next try may succeed.

        `stopping` says that the tap may be closed, which a connection then inherits. Raises ListenError if the listener
        is lost.
        """
        listener, door = self._doors[fd]
        try:
            sock, peer = listener.accept()
        except BlockingIOError:
            return False  # another worker was faster, or the client has gone
        except OSError as error:
            return listener.fileno() >= 0 and self._failed(error)
        if self._starved_since is not None:
            self._recovered(self._starved_since)
        if stopping:
            tap.admit(sock)
        elif self._left_over:
            self._admit_left_over(fd, sock)
        return Guest(plain(sock), peer, door.address)

    def _admit_left_over(self, fd: int, sock: socket.socket) -> None:
        """Lets packets in for a connection that has waited in the queue since our predecessor closed the tap.

        A queue keeps its order, so the first connection that has not proves that no later one has.
        """
        if tap.is_closed(sock):
            tap.admit(sock)
        else:
            self._left_over.discard(fd)

    def _failed(self, error: OSError) -> bool:
        """Handles a failed accept(2); True if the next one may be tried at once."""
        now = monotonic()
        if error.errno in _LISTENER_LOST:
            raise ListenError(f"a listener is lost ({errno.errorcode[error.errno]}): it was shut down or closed")
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

    def _recovered(self, since: float) -> None:
        self._starved_since, self._pause = None, _FIRST_PAUSE
        self._report.accept_recovered(monotonic() - since)
