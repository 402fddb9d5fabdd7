"""Registers services with the machine's port mapper, repeats that, and withdraws them.

It prefers rpcbind's unix socket, through which a registration belongs to the caller and no other user can remove
it; otherwise it uses TCP. It never holds the master up: it proceeds when the master's wait finds the socket ready,
and gives up a port mapper that hangs until the next look. The sequences of calls are in `protocol`.
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
"""Seconds from one look to the next: a port mapper that restarts forgets everything."""
PATIENCE: Final = 2.0
LAST_WORD: Final = 0.5
"""The most seconds that a master waits for the port mapper when it ends."""


class Registry:
    """What the port mapper should know about us; `want` changes it.

    `due` is the time of the next look, `talk` the conversation under way, if any.
    """

    def __init__(self, poller: Poller, ways: Sequence[Way] = WAYS) -> None:
        self.due = float("inf")
        self._poller = poller
        self._ways = ways
        self._wanted: dict[str, Mapping] = {}
        self._owed: list[Mapping] = []  # to be withdrawn
        self.talk: Talk | None = None
        self._told: dict[str, str] = {}
        self._wrong: dict[str, str] = {}

    def state(self, service: str) -> dict[str, object] | None:
        """Returns what `status` shows of a registration: `wrong` says why there is none. None if none is wanted."""
        mapping = self._wanted.get(service)
        if mapping is None:
            return None
        wrong = self._wrong.get(service, "not yet")
        return {**mapping._asdict(), "registered": not wrong, "wrong": wrong or None}

    def want(self, wanted: Table[str, Mapping]) -> None:
        """Sets each service's mapping; mappings that are no longer wanted are withdrawn at once."""
        now_wanted = set(wanted.values())
        owed = [*self._owed, *self._wanted.values()]
        self._owed = [each for each in dict.fromkeys(owed) if each not in now_wanted]
        self._wanted = dict(wanted)
        self._told = {name: told for name, told in self._told.items() if name in ("", *wanted)}
        self._wrong = {}
        self._begin(monotonic())

    def look(self, now: float) -> None:
        """Gives up a port mapper that has not answered in time, or repeats everything. Call it when due."""
        if self.talk is not None:
            self._failed(f"no answer within {PATIENCE:g} s")
        else:
            self._begin(now)

    def close(self) -> None:
        """Withdraws everything, waiting at most LAST_WORD for it; logs what may be left."""
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
            log.say("warning", f"rpcbind: {what} could not be withdrawn: the port mapper does not answer")

    def _begin(self, now: float) -> None:
        """Starts all calls from the beginning; mappings that are already right stay as they are."""
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
        self._poller.watch(self.talk.sock.fileno(), self._go_on, writing=not self.talk.connected)

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
        elif talk.number != before:  # it has answered, so the time limit starts again
            self.due = monotonic() + PATIENCE
            self._poller.watch(talk.sock.fileno(), self._go_on)

    def _end(self) -> None:
        """Ends the conversation under way; the next look comes after the usual time."""
        if self.talk is not None:
            talk, self.talk = self.talk, None
            self._poller.unwatch(talk.sock.fileno())
            talk.sock.close()
        self.due = monotonic() + LOOK if self._wanted else float("inf")

    def _failed(self, why: str) -> None:
        self._end()
        self._wrong = dict.fromkeys(self._wanted, why)
        if self._owed:
            self.due = monotonic() + LOOK
        if self._told.get("") != why and self._wanted:
            what = ", ".join(f"{name} ({each})" for name, each in self._wanted.items())
            log.say("warning", f"rpcbind: the port mapper cannot be used: {why}; {what} will be registered when it can")
            self._told = {"": why}

    def _settled(self, name: str, wrong: str) -> None:
        """Logs the result of a script if it has changed."""
        if not name:
            return
        mapping = self._wanted[name]
        self._wrong[name] = wrong
        told = f"rpcbind: {mapping}: {wrong or f'registered with port {mapping.port}'}"
        if self._told.get(name) != told:
            self._told[name] = told
            log.say("warning" if wrong else "info", told, {"service": name})

    def _stale(self, port: int) -> bool:
        """Whether no other server listens on a port: no one does, or we do and the program has moved."""
        if any(each.port == port for each in (*self._owed, *self._wanted.values())):
            return True
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections do not count
            try:
                sock.bind(("", port))
            except OSError:  # a server listens, or we may not find out
                return False
        return True
