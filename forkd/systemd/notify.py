"""The way to the service manager: sd_notify(3), with descriptors and the barrier.

One unconnected datagram socket for the master's whole life: a master that has run out of descriptors has to say
that it is alive, too, and the manager that has been started again at the same path is found again. Nobody is
waited for but at a barrier. Without NOTIFY_SOCKET nothing is opened and nothing done. What is said, and when,
stands in `reports`.
"""

from __future__ import annotations

import os
import select
import socket
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from forkd.kernel.sockopts import timeval

_MOST_UNSAID: Final = 64


def watchdog_seconds() -> float:
    """How often this process has to say that it is well (sd_watchdog_enabled(3)); 0 when nobody waits for that."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 1e6 if wanted.isdecimal() else 0.0


def last_words(lines: Sequence[str]) -> None:
    """Tells the manager why this process is about to end, and waits until it has heard."""
    notifier = Notifier()
    notifier.tell(lines)
    notifier.close()


class Notifier:
    """The manager named by NOTIFY_SOCKET, if there is one: then it is `on`.

    What the manager has no room for is said with the next message, unless that will say it better.
    """

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self.on = path[:1] in ("/", "@")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._unsaid: deque[tuple[bytes, list[int]]] = deque()
        self._said = False
        if self.on:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def tell(self, lines: Sequence[str], fds: Sequence[int] = (), *, passing: bool = False) -> bool:
        """Sends one message, with copies of `fds`; False if it has to wait or, when `passing`, was dropped for that."""
        if not self.on or not lines:
            return True
        self.flush()
        data = "\n".join(lines).encode(errors="backslashreplace")
        gone = not self._unsaid and self._send(data, fds)
        if not gone and not passing and len(self._unsaid) < _MOST_UNSAID:
            with suppress(OSError):  # no descriptors left: it is lost
                self._unsaid.append((data, [os.dup(fd) for fd in fds]))
        return gone

    def flush(self) -> None:
        """Says what there was no room for."""
        while self._unsaid and self._send(*self._unsaid[0]):
            for fd in self._unsaid.popleft()[1]:
                os.close(fd)

    def barrier(self, seconds: float) -> bool:
        """Waits until the manager has seen to all that was said, or so long; whether it has (sd_notify_barrier(3))."""
        if not self.on:
            return False
        until = monotonic() + seconds
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError:  # no descriptors left
            return False
        # poll(2) does not know whether another process's queue has room, so it is the call that waits.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval(seconds))
        self._socket.setblocking(True)
        try:
            self.flush()
            if not self._unsaid:
                self._put(b"BARRIER=1", [theirs])
        except OSError:
            os.close(ours)
            return False
        finally:
            os.close(theirs)
            self._socket.setblocking(False)
        poll = select.poll()
        poll.register(ours, 0)  # POLLHUP comes unasked, as soon as the manager has closed its copy
        try:
            return not self._unsaid and bool(poll.poll(max(0.0, until - monotonic()) * 1000))
        finally:
            os.close(ours)

    def close(self, seconds: float = 1.0) -> None:
        """The end: a manager that reads a message only when its sender is gone cannot tell whose it was."""
        if self.on:
            if self._said:
                self.barrier(seconds)
            for _, fds in self._unsaid:
                for fd in fds:
                    os.close(fd)
            self._unsaid.clear()
            self._socket.close()
            self.on = False

    def _send(self, data: bytes, fds: Sequence[int]) -> bool:
        """Whether it is gone for good or lost for good: there is no need to try again."""
        try:
            self._put(data, fds)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # a manager that is not there is no reason to fail
            return True
        self._said = True
        return True

    def _put(self, data: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights, 0, self._address)
