"""What a master opens for itself, besides its listeners: the log, the control socket and the PID file.

Other programs look for all of these (logrotate, a command, an init script), so a file that was removed by
mistake is created again. At the end all are removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from forkd.errors import ControlError, ForkdError
from forkd.ipc.control_server import Answer, ControlEstate, ControlServer, Obey
from forkd.kernel.owned_file import OwnedFile
from forkd.kernel.pidfile import Pidfile
from forkd.kernel.poller import Poller
from forkd.log import log
from forkd.settings.schema import LogSettings, Settings


class OwnFilesEstate(Struct):
    """The files as one program leaves them to the next."""

    log: int
    control: ControlEstate | None
    pidfile: OwnedFile | None
    pidfile_lock: int | None = None
    detached: bool = False

    def descriptors(self) -> list[int]:
        control = self.control.descriptors() if self.control is not None else []
        return [self.log, *control, *([self.pidfile_lock] if self.pidfile_lock is not None else [])]


class Starter(Protocol):
    """The process that waits for a daemon to serve; until then the log goes to it, by `log_fd`."""

    log_fd: int

    def served(self, lines: Sequence[str]) -> None: ...


class OwnFiles:
    """The files of one running master. `log_fd` is always the same descriptor, whichever file is open there.

    Without a `starter`, what is served is announced on standard error. `detached` says whether there was one.
    """

    def __init__(
        self, hand_on: Callable[[int], None], left: OwnFilesEstate | None = None, starter: Starter | None = None
    ) -> None:
        self.detached = left.detached if left is not None else starter is not None
        self._starter = starter
        if left is not None:
            self.log_fd = left.log
        else:
            self.log_fd = log.standard_error() if starter is None else starter.log_fd
        self._hand_on = hand_on
        self._control: ControlServer | None = None
        self._pidfile: Pidfile | None = None
        self._kept: list[_Kept] = []

    def open(
        self, settings: Settings, control_path: Path | None, pidfile: Pidfile | None, wait: Poller, obey: Obey
    ) -> None:
        """Opens all that the settings name, and keeps the PID file. Raises ForkdError if one cannot be opened."""
        if pidfile is not None:
            self._keep_pidfile(pidfile)
        if settings.master.log.file != "-":
            self.lead_log(log.open_file(settings.master.log.file))
        self.set_up_log(settings.master.log)
        if control_path is not None:
            self._open_control(control_path, wait, obey, asked_for=settings.master.control is not None)

    def announce(self, lines: Sequence[str], settings: LogSettings) -> None:
        """Says what is served to the process that started this one, and takes a daemon's log away from it."""
        if self._starter is None:
            for line in lines:
                log.tell(line)
            return
        if settings.file == "-":
            self.lead_log(log.standard_error())
        self._starter.served(lines)

    def leave(self, waiting: Sequence[Answer]) -> OwnFilesEstate:
        """All of them, for the program that replaces this one; callers in `waiting` are still to be answered."""
        control = self._control.leave(waiting) if self._control is not None else None
        leaving, lock = (self._pidfile.leaving, self._pidfile.fd) if self._pidfile is not None else (None, None)
        return OwnFilesEstate(self.log_fd, control, leaving, lock, self.detached)

    def resume(self, left: OwnFilesEstate, settings: Settings, wait: Poller, obey: Obey) -> list[Answer]:
        """Takes over what the program before this one has opened; returns the callers who wait for an answer."""
        self.set_up_log(settings.master.log)
        if left.pidfile is not None and left.pidfile_lock is not None:
            self._keep_pidfile(Pidfile(left.pidfile.path, left.pidfile_lock, left.pidfile))
        if left.control is None:
            return []
        server = ControlServer(left.control.path, wait, obey, left.control)
        self._keep_control(server, left.control.path)
        return server.waiting

    def leavings(self) -> list[OwnedFile]:
        """The files that would stay behind if the master died.

        A fork server knows them as they were when it started. If one is created again later, and the master
        is then killed, that file stays behind: a socket without a listener, which the next start replaces, or
        a stale PID. It is never mistaken for another server's file, nor another server's file for it.
        """
        return [each.leaving for each in self._kept]

    def mend(self) -> None:
        """Creates removed files again, and logs how many records were lost; to be called every second.

        While all is well, it costs one stat(2) for each file.
        """
        log.own_up()
        for each in self._kept:
            each.mend()

    def set_up_log(self, settings: LogSettings) -> None:
        log.set_up(settings.level, settings.format, self.log_fd)

    def lead_log(self, fd: int) -> None:
        """Makes every process log to the file that is open at `fd`, and closes `fd`."""
        os.dup2(fd, self.log_fd, inheritable=False)
        os.close(fd)
        self._hand_on(self.log_fd)

    def reopen_log(self, settings: LogSettings) -> None:
        """Opens the log file again after logrotate(8) has moved it away, at the same descriptor, for every process."""
        if settings.file == "-":
            return
        try:
            self.lead_log(log.open_file(settings.file))
        except ForkdError as error:
            log.say("error", f"{error}; still writing to the old file")

    def close(self) -> None:
        """Removes the control socket and the PID file; that one last, because its holder is the running server."""
        if self._control is not None:
            self._control.close()
        if self._pidfile is not None:
            self._pidfile.remove()

    def _open_control(self, path: Path, wait: Poller, obey: Obey, *, asked_for: bool) -> None:
        """Opens the control socket; if the settings do not name it, a failure is only a warning."""
        try:
            server = ControlServer(str(path), wait, obey)
        except OSError as error:
            what = f"cannot open the control socket {path}: {error.strerror}"
            if asked_for:
                raise ControlError(what) from None
            log.say("warning", f"{what}; no command can reach this forkd: set master.control to another path")
        else:
            self._keep_control(server, str(path))

    def _keep_control(self, server: ControlServer, path: str) -> None:
        self._control = server
        self._kept.append(_Kept(f"the control socket {path}", server.leaving, server.reopen))

    def _keep_pidfile(self, pidfile: Pidfile) -> None:
        self._pidfile = pidfile
        self._kept.append(_Kept(f"the PID file {pidfile.path}", pidfile.leaving, pidfile.remake))


class _Kept(Struct):
    """A file that has to stay where others look for it, and how to create it; `warned` if a failure was logged."""

    name: str
    leaving: OwnedFile
    make: Callable[[], OwnedFile]
    warned: bool = False

    def mend(self) -> None:
        if self.leaving.stands():
            if self.warned:
                log.say("warning", f"{self.name} is back")
            self.warned = False
            return
        try:
            self.leaving = self.make()
        except OSError as error:
            if not self.warned:
                why = error.strerror or error
                log.say("warning", f"{self.name} was removed or replaced, and cannot be created again yet: {why}")
            self.warned = True
        else:
            log.say("warning", f"{self.name} was removed or replaced; created it again")
            self.warned = False
