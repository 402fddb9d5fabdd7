"""A trial import: one application imported by a throw-away fork server."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress
from time import monotonic
from typing import Final

from forkd.errors import Problem
from forkd.ipc import channel
from forkd.ipc.brief import LogBrief
from forkd.ipc.scoreboard import Board
from forkd.kernel import process
from forkd.log import log
from forkd.master.site import brief_of
from forkd.security.identity import runs_as
from forkd.settings.schema import Settings

_END_SECONDS: Final = 1.0  # how long a process may take to end after its import


class Trial:
    """The import of one application, in a process of its own."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self.name = name
        self.left_behind: list[str] = []
        self._service = settings.services[name]
        self._deadline = monotonic() + self._service.boot_timeout
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        board = Board.create(name)
        brief = brief_of(
            settings,
            name,
            0,
            who=runs_as(settings, name),
            board=board.fd,
            wake=board.fd,
            log=LogBrief(log.standard_error(), "error", "text"),
        )
        self._pid = process.spawn("workers.fork_server", theirs.fileno(), sorted(brief.descriptors()))
        theirs.close()
        board.close()
        with suppress(ConnectionError):  # it may have ended already, which shows when its answer is read
            self._sock.send(brief.encode())

    def verdict(self) -> list[Problem]:
        """Waits for the end of the import; returns what is wrong with it."""
        try:
            failure = self._answer()
        finally:
            self._sock.close()
            self._end()
        return [self._settings.problem(f"service.{self.name}.app", failure)] if failure else []

    def _answer(self) -> str:
        readable, _, _ = select.select([self._sock], [], [], max(0.0, self._deadline - monotonic()))
        if not readable:
            os.kill(self._pid, signal.SIGKILL)
            return f"was not imported within its boot_timeout of {self._service.boot_timeout:g} s"
        try:
            received = channel.receive(self._sock)
        except ConnectionError:
            received = None
        if received is None:
            return "ended its process while it was imported"
        message, _ = received
        self.left_behind = list(message.get("left_behind", ()))
        return str(message.get("failed", ""))

    def _end(self) -> None:
        """Ends the process, which an application may keep alive with a thread of its own."""
        pidfd = os.pidfd_open(self._pid)
        readable, _, _ = select.select([pidfd], [], [], _END_SECONDS)
        if not readable:
            os.kill(self._pid, signal.SIGKILL)
        os.close(pidfd)
        os.waitpid(self._pid, 0)
