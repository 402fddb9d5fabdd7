"""The one place where the master waits: descriptors, and what is called when one is ready."""

from __future__ import annotations

import select
from collections.abc import Callable

Ready = Callable[[], None]


class Poller:
    """An epoll(7) and a function for each descriptor in it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, tuple[Ready, int]] = {}

    def watch(self, fd: int, ready: Ready, *, writing: bool = False) -> None:
        """Has `ready` called whenever `fd` can be read (or, if `writing`, written)."""
        events = select.EPOLLIN | (select.EPOLLOUT if writing else 0)
        _, before = self._ready.get(fd, (ready, 0))
        if not before:
            self._epoll.register(fd, events)
        elif before != events:
            self._epoll.modify(fd, events)
        self._ready[fd] = (ready, events)

    def unwatch(self, fd: int) -> None:
        """Forgets `fd`; to be called before it is closed."""
        del self._ready[fd]
        self._epoll.unregister(fd)

    def once(self, timeout: float | None, awake: Callable[[], object] | None = None) -> None:
        """Waits until something is ready or `timeout` seconds have passed (None: for ever), and has it seen to.

        `awake` is called first, as soon as the wait is over.
        """
        found_ready = self._epoll.poll(timeout)
        if awake is not None:
            awake()
        for fd, _ in found_ready:
            found = self._ready.get(fd)
            if found is not None:  # an earlier one of this round may have had it forgotten
                found[0]()
