"""Keeps the sockets whose end we announced until the client has read it.

close(2) with unread input sends a reset, which destroys replies still on their way to the client. So a connection that
we end is shut down for writing, and its input is read and thrown away for a little while (RFC 9112, section 9.6,
describes the same for HTTP). It waits here, beside the listeners, and never holds up a worker.
"""

from __future__ import annotations

import socket
from typing import Final

SECONDS: Final = 2.0
BYTES: Final = 65536
MOST: Final = 64


class Lingering:
    """Shut-down sockets by descriptor, oldest first, each with its deadline and how much it may still send."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[socket.socket, float, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, fd: int) -> bool:
        return fd in self._waiting

    def add(self, sock: socket.socket, now: float) -> int | None:
        """Takes over a socket whose writing side is shut; returns the descriptor to watch, None if it is done."""
        sock.setblocking(False)
        fd = sock.fileno()
        self._waiting[fd] = (sock, now + SECONDS, BYTES)
        return None if self.readable(fd) else fd

    def readable(self, fd: int) -> bool:
        """Throws away what has arrived on `fd`; True if that was the end of it."""
        sock, deadline, left = self._waiting[fd]
        try:
            while left > 0:
                data = sock.recv(min(left, 16384))
                if not data:
                    break
                left -= len(data)
        except BlockingIOError:
            self._waiting[fd] = (sock, deadline, left)
            return False
        except OSError:
            pass  # the client reset it: it reads nothing more
        self._close(fd)
        return True

    def timeout(self, now: float) -> float | None:
        """Returns the seconds until `expire` has something to do; None if no socket lingers."""
        if len(self._waiting) > MOST:
            return 0.0
        for _, deadline, _ in self._waiting.values():
            return max(0.0, deadline - now)
        return None

    def expire(self, now: float) -> list[int]:
        """Closes those whose time is over, and the oldest of more than MOST; returns their descriptors."""
        surplus = len(self._waiting) - MOST
        over: list[int] = []
        for fd, (_, deadline, _) in self._waiting.items():
            if deadline > now and len(over) >= surplus:
                break
            over.append(fd)
        for fd in over:
            self._close(fd)
        return over

    def _close(self, fd: int) -> None:
        sock, _, _ = self._waiting.pop(fd)
        sock.close()
