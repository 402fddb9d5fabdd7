"""What a worker is ordered to do, and how it learns that while it is blocked in recv(2) or busy in a handler.

Orders come over the leash, a socket whose other end the master holds. The kernel raises SIGIO when a message or the end
arrives (fcntl(2), O_ASYNC), so no worker has to look between two requests.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType

from forkd.ipc.order import Order
from forkd.serving.connection import Connection


class Leash:
    """The worker's `order`, None until it has one, and the connection that must hear of it.

    `abandon` is called, in a signal handler, as soon as this worker will accept nothing more, however long its
    connection or handler takes: when it is ordered to drain while it is `at_work`, and when the master has died.
    `notify` is called there as well, for a loop that does not wait for signals.
    """

    def __init__(self, leash: socket.socket, log_fd: int, abandon: Callable[[], None]) -> None:
        self.order: Order | None = None
        self.connection: Connection | None = None
        self.at_work = False
        self.abandon = abandon
        self.notify: Callable[[], None] | None = None
        self._leash = leash
        self._log = log_fd

    def listen(self) -> None:
        """Starts to take SIGIO and SIGTERM, and takes the orders that came before."""
        for each, handler in ((signal.SIGIO, self._on_message), (signal.SIGTERM, self._on_term)):
            signal.signal(each, handler)
            # Restart the system calls of a handler. Those on sockets with a timeout are not restarted (signal(7)), and
            # these are where a leaving worker must be woken.
            signal.siginterrupt(each, False)
        fcntl.fcntl(self._leash, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._leash, fcntl.F_SETFL, fcntl.fcntl(self._leash, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
        self._read()

    def attend(self, connection: Connection | None) -> None:
        """Sets the connection that is being served; at a stop it gets no more time than the others."""
        self.connection = connection
        self.at_work = connection is not None
        if connection is not None and self.order is Order.FINISH:
            connection.hurry()

    def leave(self, order: Order) -> None:
        """Notes an order to leave; FINISH overrides DRAIN. Called in a signal handler: neither waits nor raises."""
        if self.order is not Order.FINISH:
            self.order = order
        if self.order is Order.FINISH and self.connection is not None:
            self.connection.hurry()
        if self.notify is not None:
            self.notify()

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        self.leave(Order.FINISH)

    def _on_message(self, signum: int, frame: FrameType | None) -> None:
        self._read()

    def _read(self) -> None:
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._leash, 64, 1)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            for fd in fds:
                os.dup2(fd, self._log, inheritable=False)
                os.close(fd)
            if data != b"reopened":
                # The end of the leash means that the master is gone: there is no reason to stay.
                self.leave(Order.DRAIN if data == b"drain" else Order.FINISH)
            if not data or (data == b"drain" and self.at_work):
                self.abandon()
            if not data:
                return
