"""The master's side of the machine's port mapper: services told of, told of again, and withdrawn.

It asks over rpcbind's unix socket, where a registration is the caller's own and nobody else's to remove,
or else over TCP. It never holds the master up: what is said is said as the master's wait allows, and a
port mapper that hangs is given up until the next look. What is said when stands in `portmap`.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping as Table
from collections.abc import Sequence
from time import monotonic
from typing import Final

from forkd.errors import ForkdError
from forkd.kernel.poller import Poller
from forkd.log import log
from forkd.sockets.rpcbind import protocol
from forkd.sockets.rpcbind.protocol import Mapping
from forkd.sockets.rpcbind.talk import WAYS, Talk, Way, connect

LOOK: Final = 5.0
"""Seconds from one look to the next: a port mapper that was started again has forgotten everything."""
PATIENCE: Final = 2.0
LAST_WORD: Final = 0.5
"""Seconds that the end of the master may wait for a port mapper."""


class Registry:
    """What the port mapper is to know of us; `want` says what has changed.

    `due` is when to look next, and `talk` what is being said, if anything.
    """

    def __init__(self, wait: Poller, ways: Sequence[Way] = WAYS) -> None:
        self.due = float("inf")
        self._wait = wait
        self._ways = ways
        self._wanted: dict[str, Mapping] = {}
        self._owed: list[Mapping] = []  # to be withdrawn
        self.talk: Talk | None = None
        self._told: dict[str, str] = {}
        self._wrong: dict[str, str] = {}

    def state(self, service: str) -> dict[str, object] | None:
        """What `status` shows of a registration: `wrong` is why there is none; None for a service that wants none."""
        mapping = self._wanted.get(service)
        if mapping is None:
            return None
        wrong = self._wrong.get(service, "not yet")
        return {**mapping._asdict(), "registered": not wrong, "wrong": wrong or None}

    def want(self, wanted: Table[str, Mapping]) -> None:
        """Each service's mapping from now on: what is no longer among them is withdrawn, at once."""
        now_wanted = set(wanted.values())
        owed = [*self._owed, *self._wanted.values()]
        self._owed = [each for each in dict.fromkeys(owed) if each not in now_wanted]
        self._wanted = dict(wanted)
        self._told = {name: told for name, told in self._told.items() if name in ("", *wanted)}
        self._wrong = {}
        self._begin(monotonic())

    def look(self, now: float) -> None:
        """To be called when it is due: gives up whoever has not answered in time, or sees to everything once more."""
        if self.talk is not None:
            self._failed(f"it did not answer within {PATIENCE:g} s")
        else:
            self._begin(now)

    def close(self) -> None:
        """Withdraws everything, and waits for that no longer than LAST_WORD; tells what may be left."""
        if self._wanted:
            self.want({})
        elif self._owed and self.talk is None:
            self._begin(monotonic())
        until = monotonic() + LAST_WORD
        while self.talk is not None and (left := until - monotonic()) > 0:
            poll = select.poll()
            poll.register(self.talk.sock, select.POLLIN | (0 if self.talk.connected else select.POLLOUT))
            if poll.poll(left * 1000):
                self._go_on()
        self._end()
        if self._owed and "" not in self._told:
            what = ", ".join(str(each) for each in self._owed)
            log.say("warning", f"rpcbind: {what} could not be withdrawn, for the port mapper does not answer")

    def _begin(self, now: float) -> None:
        """Sees to everything, from the beginning: what has been seen to already is left as it is."""
        self._end()
        if not self._wanted and not self._owed:
            return
        scripts = [("", protocol.withdraw(each)) for each in self._owed]
        scripts += [(name, protocol.register(each, self._stale)) for name, each in self._wanted.items()]
        try:
            self.talk = Talk(connect(self._ways), scripts, self._settled)
        except OSError as error:
            self._failed(f"{error.strerror or error}")
            return
        self.due = now + PATIENCE
        self._wait.watch(self.talk.sock.fileno(), self._go_on, writing=not self.talk.connected)

    def _go_on(self) -> None:
        talk = self.talk
        assert talk is not None
        before = talk.number
        try:
            over = talk.go_on()
        except (OSError, ForkdError) as error:
            self._failed(f"{error.strerror or error}" if isinstance(error, OSError) else f"{error}")
            return
        if over:
            self._end()
            self._owed = []
            self._told.pop("", None)
        elif talk.number != before:  # it was answered, so patience begins anew
            self.due = monotonic() + PATIENCE
            self._wait.watch(talk.sock.fileno(), self._go_on)

    def _end(self) -> None:
        """Ends what is under way; the next look is as far off as any."""
        if self.talk is not None:
            talk, self.talk = self.talk, None
            self._wait.unwatch(talk.sock.fileno())
            talk.sock.close()
        self.due = monotonic() + LOOK if self._wanted else float("inf")

    def _failed(self, why: str) -> None:
        self._end()
        self._wrong = dict.fromkeys(self._wanted, why)
        if self._owed:
            self.due = monotonic() + LOOK
        if self._told.get("") != why and self._wanted:
            what = ", ".join(f"{name} ({each})" for name, each in self._wanted.items())
            log.say("warning", f"rpcbind: no port mapper to be had: {why}; {what} will be told of when there is one")
            self._told = {"": why}

    def _settled(self, name: str, wrong: str) -> None:
        """A script has ended: says so where that is news."""
        if not name:
            return
        mapping = self._wanted[name]
        self._wrong[name] = wrong
        told = f"rpcbind: {mapping}: {wrong or f'registered with port {mapping.port}'}"
        if self._told.get(name) != told:
            self._told[name] = told
            log.say("warning" if wrong else "info", told, {"service": name})

    def _stale(self, port: int) -> bool:
        """Whether nobody serves a port; or it is we who do, and the program has moved."""
        if any(each.port == port for each in (*self._owed, *self._wanted.values())):
            return True
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have ended do not count
            try:
                sock.bind(("", port))
            except OSError:  # somebody listens; or we may not know
                return False
        return True
