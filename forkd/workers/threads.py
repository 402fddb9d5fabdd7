"""The threads of an `event` worker: handlers may wait without holding up other connections.

All threads wait on one epoll(7). Each event goes to one thread, and the descriptor is then off until that thread is
done (EPOLLONESHOT). So one thread at a time has a connection in hand, and its replies keep their order, without a queue
or a lock between the kernel and a handler. Everything else is done by the loop of `event`.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections import deque
from contextlib import suppress
from time import monotonic, monotonic_ns
from typing import Final, Protocol

from forkd.ipc.meter import Meter
from forkd.serving.outcome import Outcome
from forkd.serving.visit import IN, OUT, Visitor
from forkd.workers.context import WorkerContext


class WorkerLoop(Protocol):
    """The loop that the threads work for."""

    visits: dict[int, Visitor]
    epoll: select.epoll

    def ended(self, visit: Visitor, outcome: Outcome) -> None: ...

    def failed(self, error: BaseException) -> None: ...

    def linger(self, visit: Visitor) -> None: ...


class ThreadPool:
    """`context.threads` threads, which serve the visits they are given to `take`."""

    usual: Final = None

    def __init__(self, context: WorkerContext, loop: WorkerLoop) -> None:
        self.pen = SharedPen(context.meter)
        self._loop = loop
        self._epoll = select.epoll()
        self._parted: deque[Visitor] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.epoll.register(self._wake, select.EPOLLIN)
        self._threads = [
            threading.Thread(target=self._work, name=f"handlers {number}", daemon=True)
            for number in range(context.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def now(self) -> float:
        return monotonic()

    def due_by(self, when: float) -> None:
        """The loop looks often enough as long as it has visits."""

    def take(self, visit: Visitor) -> None:
        """Starts serving the visit, at once, because the service may speak first."""
        self._epoll.register(visit.fd, IN | OUT | select.EPOLLONESHOT)

    def watch(self, visit: Visitor) -> None:
        """The thread that has the visit in hand watches it again when it is done."""

    def ended(self, visit: Visitor, outcome: Outcome) -> None:
        self._loop.ended(visit, outcome)
        os.eventfd_write(self._wake, 1)

    def failed(self, error: BaseException) -> None:
        self._loop.failed(error)
        os.eventfd_write(self._wake, 1)

    def part(self, visit: Visitor) -> None:
        """Hands the visit to the loop, to linger with the client."""
        self._epoll.unregister(visit.fd)
        self._parted.append(visit)

    def see_off(self) -> None:
        """Called by the loop: lingers with the visits handed over."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._parted:
            visit = self._parted.popleft()
            self._loop.epoll.register(visit.fd, select.EPOLLIN)
            self._loop.linger(visit)

    def close(self) -> None:
        """Ends the threads."""
        self._epoll.register(self._wake, select.EPOLLIN)
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _work(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the loop's thread takes them all
        try:
            self._serve()
        except BaseException as error:
            self.failed(error)

    def _serve(self) -> None:
        visits, poll, modify = self._loop.visits, self._epoll.poll, self._epoll.modify
        while True:
            for fd, event in poll(None, 1):
                if fd == self._wake:
                    return
                visit = visits[fd]
                visit.at_work = True
                visit.ready(event)
                visit.at_work = False
                if visit.interest:
                    modify(fd, visit.interest | select.EPOLLONESHOT)


class SharedPen:
    """A worker's pen for several threads. The row names the request that has been in hand the longest."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._lock = threading.Lock()
        self._peers: dict[int, bytes] = {}
        self._in_hand: dict[int, tuple[int, bytes]] = {}

    def meets(self, peer: bytes) -> None:
        self._peers[threading.get_ident()] = peer

    def opened(self) -> None:
        with self._lock:
            self._meter.opened()

    def closed(self) -> None:
        with self._lock:
            self._meter.closed()

    def began(self, request: bytes = b"") -> int:
        now = monotonic_ns()
        with self._lock:
            self._in_hand[threading.get_ident()] = (now, request)
            if len(self._in_hand) == 1:
                self._show()
        return now

    def ended(self, began: int) -> int:
        with self._lock:
            now = self._meter.ended(began)
            self._gone()
        return now

    def resumed(self, request: bytes) -> None:
        self.began(request)

    def paused(self) -> None:
        with self._lock:
            self._meter.paused()
            self._gone()

    def served(self) -> None:
        with self._lock:
            self._meter.served()

    def counted(self, column: int) -> None:
        with self._lock:
            self._meter.counted(column)

    def moved(self, received: int, sent: int) -> None:
        with self._lock:
            self._meter.moved(received, sent)

    def _gone(self) -> None:
        del self._in_hand[threading.get_ident()]
        if self._in_hand:
            self._show()

    def _show(self) -> None:
        """Shows the oldest request in the row; a dictionary keeps the order in which they began."""
        thread, (began, request) = next(iter(self._in_hand.items()))
        self._meter.meets(self._peers[thread])
        self._meter.shows(began, request)
