"""Messages to the service manager: sd_notify(3), with descriptors and the barrier.

One unconnected datagram socket serves for the master's whole life: a master that has run out of descriptors must
still say that it is alive, and a manager that was restarted at the same path is found again. Only a barrier waits.
Without NOTIFY_SOCKET nothing is opened and nothing is done. `reports` decides what is said, and when.
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
    """Returns the watchdog's period in seconds (sd_watchdog_enabled(3)); 0 if this process is not watched."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    wanted = os.environ.get("WATCHDOG_USEC", "")
    return int(wanted) / 1e6 if wanted.isdecimal() else 0.0


def last_words(lines: Sequence[str]) -> None:
    """Tells the manager why this process is about to end, and waits until it has read the message."""
    notifier = Notifier()
    notifier.tell(lines)
    notifier.close()


class Notifier:
    """The manager named by NOTIFY_SOCKET; `on` if there is one.

    Messages that the manager has no room for are kept and sent before the next one.
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
        """Sends one message, with copies of `fds`. False if there was no room: then it is kept; `passing` drops it."""
        if not self.on or not lines:
            return True
        self.flush()
        data = "\n".join(lines).encode(errors="backslashreplace")
        gone = not self._unsaid and self._send(data, fds)
        if not gone and not passing and len(self._unsaid) < _MOST_UNSAID:
            with suppress(OSError):  # no descriptors left: the message is lost
                self._unsaid.append((data, [os.dup(fd) for fd in fds]))
        return gone

    def flush(self) -> None:
        """Sends the messages that there was no room for."""
        while self._unsaid and self._send(*self._unsaid[0]):
            for fd in self._unsaid.popleft()[1]:
                os.close(fd)

    def barrier(self, seconds: float) -> bool:
        """Waits up to `seconds` until the manager has handled every message; True if it has (sd_notify_barrier(3))."""
        if not self.on:
            return False
        until = monotonic() + seconds
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError:  # no descriptors left
            return False
        # poll(2) cannot see whether another process's queue has room, so the call itself waits.
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
        poll.register(ours, 0)  # POLLHUP is always reported; it comes when the manager closes its copy
        try:
            return not self._unsaid and bool(poll.poll(max(0.0, until - monotonic()) * 1000))
        finally:
            os.close(ours)

    def close(self, seconds: float = 1.0) -> None:
        """Waits for the manager, then closes: it cannot attribute a message whose sender is already gone."""
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
        """Sends a message. False if it must be tried again; True if it was sent or is lost for good."""
        try:
            self._put(data, fds)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # a missing manager is no reason to fail
            return True
        self._said = True
        return True

    def _put(self, data: bytes, fds: Sequence[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([data], rights, 0, self._address)
