"""One connection of a load test: the state that `loop` keeps of it, and the calls on its socket.

A link outlives its connections: when one ends, it makes the next. It decides nothing: `links` decides when to connect
again, and `loop` what to send. Times are nanoseconds.
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
"""The event when a reply has arrived; all other events need a closer look."""

_WANTED: Final = select.EPOLLIN | select.EPOLLRDHUP


class Target(NamedTuple):
    """Where to connect, in the form of socket(7)."""

    family: int
    sockaddr: Any


class State(Enum):
    RESTING = auto()  # closed; the next attempt is at `attempt.next_at`
    CONNECTING = auto()
    OPEN = auto()


class Link:
    """A connection, and its successors."""

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
        self.turn = turn  # which of the plan's requests is next
        self.starts: deque[int] = deque()  # when each request in flight was due or, in a closed loop, sent
        self.left = 0  # how many more requests this connection may carry
        self.rest = b""  # bytes the kernel had no room for
        self.is_free = False  # whether it is in the queue of links that wait for a request
        self.quiet_since = 0  # when it began to wait for a reply
        self.attempt = Attempt()
        self.served = False  # whether this connection has brought a reply
        self.fd = -1
        self.count: Counter
        self.receive: Callable[[int], bytes]
        self.transmit: Callable[[bytes], int]

    def connect(self, target: Target) -> bool:
        """Begins to connect. Returns True if it is connected already. Raises OSError as connect(2) does."""
        self._sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.fd = self._sock.fileno()
        if target.family != socket.AF_UNIX:
            # A request must not wait until the one before is acknowledged (Nagle, RFC 896).
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state = State.CONNECTING
        number = self._sock.connect_ex(target.sockaddr)
        if number == errno.EINPROGRESS:
            return False
        self._check(number, target)
        return True

    def finish_connecting(self, target: Target) -> None:
        """Checks the result of an attempt that is over. Raises OSError if it failed."""
        self._check(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), target)

    def watch(self, epoll: select.epoll, *, new: bool, again: bool = False) -> None:
        """Asks for the events that the state needs; with `again`, repeatedly until there is nothing left to receive."""
        # An edge is reported once, so the kernel need not check again at each wait (epoll(7)). It is also reported
        # only when a whole segment has arrived; a check in between could see a reply without the end that follows.
        if self.state is State.CONNECTING:
            wanted = select.EPOLLOUT | select.EPOLLET
        elif self.rest or again:
            wanted = _WANTED | (select.EPOLLOUT if self.rest else 0)
        else:
            wanted = _WANTED | select.EPOLLET
        (epoll.register if new else epoll.modify)(self.fd, wanted)

    def opened(self, count: Counter, left: int) -> None:
        """Starts a new stream, on a connection that has just come up."""
        self.state = State.OPEN
        self.served = False
        self.attempt.succeed()
        self.count = count
        self.left = left
        self.receive = self._sock.recv
        self.transmit = self._sock.send

    def close(self) -> None:
        """Closes the connection, if there is one, and forgets what was in flight."""
        if self.state is not State.RESTING:
            self.state = State.RESTING
            self.fd = -1
            with contextlib.suppress(OSError):  # close(2) may report an earlier error
                self._sock.close()
        self.starts.clear()
        self.rest = b""

    def _check(self, number: int, target: Target) -> None:
        if number:
            raise OSError(number, os.strerror(number))
        # The kernel may have picked the very port being called, if no one listens on it; see `dial`.
        if target.family != socket.AF_UNIX and self._sock.getsockname() == target.sockaddr:
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
