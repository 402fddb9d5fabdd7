"""The one place where the master waits: descriptors, and a function to call when each is ready."""

from __future__ import annotations

import select
from collections.abc import Callable

Ready = Callable[[], None]


class Poller:
    """An epoll(7) instance, with a function for each descriptor in it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, tuple[Ready, int]] = {}

    def watch(self, fd: int, ready: Ready, *, writing: bool = False) -> None:
        """Calls `ready` whenever `fd` can be read (or, with `writing`, written)."""
        events = select.EPOLLIN | (select.EPOLLOUT if writing else 0)
        _, before = self._ready.get(fd, (ready, 0))
        if not before:
            self._epoll.register(fd, events)
        elif before != events:
            self._epoll.modify(fd, events)
        self._ready[fd] = (ready, events)

    def unwatch(self, fd: int) -> None:
        """Forgets `fd`. Call it before closing the descriptor."""
        del self._ready[fd]
        self._epoll.unregister(fd)

    def once(self, timeout: float | None, awake: Callable[[], object] | None = None) -> None:
        """Waits until a descriptor is ready or `timeout` seconds have passed (None: no limit), then calls its function.

        `awake` is called first, as soon as the wait is over.
        """
        found_ready = self._epoll.poll(timeout)
        if awake is not None:
            awake()
        for fd, _ in found_ready:
            found = self._ready.get(fd)
            if found is not None:  # an earlier call in this round may have removed it
                found[0]()
