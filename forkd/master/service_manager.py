"""The master's side of its service manager: the reports to it, and the listening sockets that it stores.

Sockets that the master opened itself are stored once all services serve, so that no connection is refused during a
restart or after the death of a master: the next master gets them among those that are passed in. `reports` decides
what is reported and when; `store` names the sockets.

systemd keeps the store through a restart and empties it after a stop, and a master cannot tell the two apart. So it
does what is right for both. It closes a TCP listener's tap (`tap`) and serves its accept queue: clients that connect
then try again after a second. A unix socket has no tap, so its path is moved to a new socket, which is stored in place
of the old one: clients that connect during a restart wait in the new queue, and the old queue is served. At a
stop, the clients in the new queue are disconnected when the store is emptied.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import Final

from forkd.log import log
from forkd.master.site import Site, open_site
from forkd.settings.schema import Settings
from forkd.sockets.listener import Listener, make_way
from forkd.systemd import reports, store
from forkd.systemd.notify import Notifier, watchdog_seconds
from forkd.systemd.passed import Passed
from forkd.systemd.reports import Reports

_PROBE: Final = "forkd=probe"
_PATIENCE: Final = 0.5  # for the manager to act on a message, where something depends on it

Figures = Callable[[], str]
"""Returns what the server is doing, in one line."""


class ServiceManager:
    """The service manager, if there is one: then it is `on`. `due` is when to call `tick` at the latest."""

    def __init__(self, tick: float) -> None:
        self._notifier = Notifier()
        self._reports = Reports(watchdog_seconds() if self._notifier.on else 0.0, tick)
        self._serves = False
        self._stores = False
        self._unserved: list[str] = []

    @property
    def on(self) -> bool:
        return self._notifier.on

    @property
    def due(self) -> float:
        return self._reports.due

    # The life of a master.

    def open_site(self, settings: Settings, passed: Passed) -> Site:
        """Opens all that the settings need, using stored sockets; takes from the store what they do not need."""
        self._notifier.tell(self._reports.starting())
        self.look_for_store(passed)
        stored = passed.stored
        listen = settings.services.items()
        stored.keep_only({store.label(each.address, name) for name, service in listen for each in service.listen})
        if stored.misfits:  # another listener may need the address of one, so the manager's copy has to go, too
            self._forget(stored.misfits)
            stored.misfits.clear()
            self._notifier.barrier(_PATIENCE)
        try:
            site = open_site(settings, passed)
            stored.keep_only(())
        finally:
            self._forget(stored.misfits)
        for _, each in _listeners(site):
            if each.stored in stored.misfits:  # another socket had the same label, under which both left the store
                each.stored = ""
        return site

    def look_for_store(self, passed: Passed) -> None:
        """Notes whether the manager stores sockets for us; if it does not answer in time, it may do so."""
        self._stores = passed.stored.works = self.on and not self._try_store()[1]

    def serving(self, site: Site, figures: Figures) -> None:
        """Every service serves, for the first time."""
        self._serves = True
        if self.on:
            self._notifier.tell(self._reports.serving(figures(), monotonic()))
            self.keep(site)

    def resume(self, site: Site) -> None:
        """Continues for the program before this one, and stores what that has not stored."""
        self._serves = True
        self.keep(site)

    def keep(self, site: Site, old: Site | None = None) -> None:
        """Makes the manager store what a site listens on, and forget what only the old site did."""
        if not self._stores:
            return
        now = [each for _, each in _listeners(site)]
        before = [] if old is None else [each for _, each in _listeners(old)]
        gone = {each.stored for each in before if each.stored and not any(each is one for one in now)}
        self._forget(gone)
        for name, each in _listeners(site):
            if not each.passed and (not each.stored or each.stored in gone):
                each.stored = self._store(store.label(each.wanted.address, name), each.socket)

    def reload_begun(self) -> None:
        self._notifier.tell(self._reports.reload_begun(monotonic()))

    def change_over(self, what: str, failure: str, figures: Figures) -> None:
        """Reports that a reload or an upgrade is over; it changed nothing if there is a `failure`."""
        if self.on:
            self._notifier.tell(self._reports.change_over(what, failure, figures()))

    def tick(self, figures: Figures, *, unserved: list[str], left: float) -> None:
        """Reports what has changed; to be called every second while the manager is `on`."""
        if unserved != self._unserved and self._reports.watched:
            self._unserved = unserved
            if unserved:
                log.say("error", f"no worker serves {', '.join(unserved)}; watchdog pings suspended")
        self._notifier.flush()
        lines = self._reports.tick(monotonic(), figures, unserved=unserved, left=left)
        if not self._notifier.tell(lines, passing=True):
            self._reports.not_heard()

    def stopping(self, site: Site) -> None:
        """Reports that a stop has begun; to be called before the taps are closed."""
        self._notifier.tell(self._reports.stopping())
        files = [(name, each) for name, each in _listeners(site) if each.file is not None and each.stored]
        if not files or self._try_store() != (True, False):  # it may be full
            return
        if not self._serves:  # a start that fails serves no client: the accept queue is left to the next start
            site.leave_stored()
            return
        for name, each in files:
            if (successor := make_way(each)) is not None:
                with successor:
                    self._store(store.label(each.wanted.address, name), successor)
                self._forget([each.stored])

    def close(self) -> None:
        """Reports the master's end; returns when the manager has read that."""
        self._notifier.tell(self._reports.stopped())
        self._notifier.close()

    # The store.

    def _store(self, label: str, sock: socket.socket) -> str:
        if label:
            self._notifier.tell(reports.store(label), [sock.fileno()])
        return label

    def _forget(self, labels: Iterable[str]) -> None:
        for each in dict.fromkeys(labels):
            self._notifier.tell(reports.unstore(each))

    def _try_store(self) -> tuple[bool, bool]:
        """Whether the manager has read all messages, and whether it has refused to store a descriptor.

        Without FileDescriptorStoreMax=, or with a full store, it closes what it gets, and says so only in its log.
        """
        try:
            ours, theirs = os.pipe2(os.O_CLOEXEC)
        except OSError:  # no descriptors left
            return False, True
        try:
            try:
                self._notifier.tell(reports.store(_PROBE), [theirs])
            finally:
                os.close(theirs)
            seen_to = self._notifier.barrier(_PATIENCE)
            poll = select.poll()
            poll.register(ours, 0)
            refused = bool(poll.poll(0))  # the pipe has lost its other end
            self._notifier.tell(reports.unstore(_PROBE))
        finally:
            os.close(ours)
        return seen_to, refused


def _listeners(site: Site) -> Iterator[tuple[str, Listener]]:
    """Each listener with the name of its service."""
    return ((name, each) for name, found in site.listeners.items() for each in found)
