"""One connection of a load test: what `loadloop` keeps of it, and the calls on its socket.

A link outlives its connections: when one has ended, the next is made. It decides nothing; when to
connect again is `loadlinks`'s, and what to send is `loadloop`'s. Times are nanoseconds.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final, NamedTuple

from forkd.cli.load.attempt import Attempt
from forkd.cli.load.replies import Counter

ORDINARY: Final = select.EPOLLIN
"""The event of a reply that has come; all others are looked at closely."""

_WANTED: Final = select.EPOLLIN | select.EPOLLRDHUP


class Target(NamedTuple):
    """Whom to connect to, as socket(7) wants it."""

    family: int
    sockaddr: Any


class State(Enum):
    RESTING = auto()  # closed; the next attempt is at `attempt.next_at`
    CONNECTING = auto()
    OPEN = auto()


class Link:
    """A connection, and the ones after it."""

    __slots__ = (
        "_sock",
        "attempt",
        "count",
        "fd",
        "is_free",
        "left",
        "quiet_since",
        "receive",
        "rest",
        "served",
        "starts",
        "state",
        "transmit",
        "turn",
    )

    def __init__(self, turn: int) -> None:
        self.state = State.RESTING
        self.turn = turn  # which of the plan's requests is the next here
        self.starts: deque[int] = deque()  # when each request in flight was due or, in a closed loop, sent
        self.left = 0  # requests that this connection may still carry
        self.rest = b""  # what the kernel had no room for
        self.is_free = False  # whether it stands among those that wait for a request
        self.quiet_since = 0  # since when a reply is awaited
        self.attempt = Attempt()
        self.served = False  # whether this connection has brought a reply
        self.fd = -1
        self.count: Counter
        self.receive: Callable[[int], bytes]
        self.transmit: Callable[[bytes], int]

    def connect(self, target: Target) -> bool:
        """Begins to connect; whether that is done already. OSError as of connect(2)."""
        self._sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.fd = self._sock.fileno()
        if target.family != socket.AF_UNIX:
            # A request must not wait for the acknowledgement of the one before (Nagle, RFC 896).
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state = State.CONNECTING
        number = self._sock.connect_ex(target.sockaddr)
        if number == errno.EINPROGRESS:
            return False
        self._check(number, target)
        return True

    def finish_connecting(self, target: Target) -> None:
        """What became of an attempt that is over; OSError if it failed."""
        self._check(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), target)

    def watch(self, epoll: select.epoll, *, new: bool, again: bool = False) -> None:
        """Asks for the events that its state needs; with `again`, until there is nothing more to receive."""
        # An edge is told once, so the kernel need not look again at each wait (epoll(7)). And it is told when all of
        # a segment has been taken in; such a look in between would see the reply without the end that comes with it.
        if self.state is State.CONNECTING:
            wanted = select.EPOLLOUT | select.EPOLLET
        elif self.rest or again:
            wanted = _WANTED | (select.EPOLLOUT if self.rest else 0)
        else:
            wanted = _WANTED | select.EPOLLET
        (epoll.register if new else epoll.modify)(self.fd, wanted)

    def opened(self, count: Counter, left: int) -> None:
        """A new stream begins."""
        self.state = State.OPEN
        self.served = False
        self.attempt.succeed()
        self.count = count
        self.left = left
        self.receive = self._sock.recv
        self.transmit = self._sock.send

    def close(self) -> None:
        """Ends the connection, if there is one, and forgets what was in flight."""
        if self.state is not State.RESTING:
            self.state = State.RESTING
            self.fd = -1
            with contextlib.suppress(OSError):  # close(2) may tell of an earlier error
                self._sock.close()
        self.starts.clear()
        self.rest = b""

    def _check(self, number: int, target: Target) -> None:
        if number:
            raise OSError(number, os.strerror(number))
        # The kernel may have picked the very port that is called, and nobody listens there: `dial` says more.
        if target.family != socket.AF_UNIX and self._sock.getsockname() == target.sockaddr:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
