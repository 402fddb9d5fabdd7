"""What a master opens for itself, besides its listeners: the log, the control socket, the pid file.

All of it is found again by somebody else (logrotate, a command, an init script), so what somebody
removes by mistake is made again; and all of it is put away at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from msgspec import Struct

from forkd import log
from forkd.control import ControlEstate, ControlServer, Obey, Reply, Wait
from forkd.errors import ControlError, ForkdError
from forkd.leaving import Leaving
from forkd.settings import Log, Settings


class PremisesEstate(Struct):
    """The premises as one program leaves them to the next."""

    log: int
    control: ControlEstate | None
    pidfile: Leaving | None

    def descriptors(self) -> list[int]:
        return [self.log, *(self.control.descriptors() if self.control is not None else [])]


class Premises:
    """The files of one running master. `log_fd` stays the same descriptor, wherever it leads."""

    def __init__(self, hand_on: Callable[[int], None], log_fd: int | None = None) -> None:
        self.log_fd = log.standard_error() if log_fd is None else log_fd
        self._hand_on = hand_on
        self._control: ControlServer | None = None
        self._pidfile: _Kept | None = None
        self._kept: list[_Kept] = []

    def open(self, settings: Settings, control_path: Path | None, wait: Wait, obey: Obey) -> None:
        """Opens everything that the settings name; ForkdError says what cannot be had."""
        if settings.master.log.file != "-":
            self.lead_log(log.open_file(settings.master.log.file))
        self.set_up_log(settings.master.log)
        if control_path is not None:
            self._open_control(control_path, wait, obey, asked_for=settings.master.control is not None)
        if settings.master.pidfile is not None:
            self._open_pidfile(settings.master.pidfile)

    def leave(self, waiting: Sequence[Reply]) -> PremisesEstate:
        """All of it, for the program that takes our place; those in `waiting` are still to be answered."""
        control = self._control.leave(waiting) if self._control is not None else None
        return PremisesEstate(self.log_fd, control, self._pidfile.leaving if self._pidfile is not None else None)

    def resume(self, left: PremisesEstate, settings: Settings, wait: Wait, obey: Obey) -> list[Reply]:
        """Takes over what the program before us has opened; gives those who wait for an answer."""
        self.set_up_log(settings.master.log)
        if left.pidfile is not None:
            self._keep_pidfile(Path(left.pidfile.path), left.pidfile)
        if left.control is None:
            return []
        server = ControlServer(left.control.path, wait, obey, left.control)
        self._keep_control(server, left.control.path)
        return server.waiting

    def leavings(self) -> list[Leaving]:
        """The files that would stay behind if the master died.

        A fork server has them as they were when it began. If one is made again later, and the master
        is then killed, that file stays behind: a socket that nobody listens on, which the next start
        replaces, or a number of nobody. It is never taken for another server's, nor another's for it.
        """
        return [each.leaving for each in self._kept]

    def mend(self) -> None:
        """Makes again what somebody has removed, and tells what the log has lost; to be called every second.

        It costs a stat(2) for each file while all is well.
        """
        log.own_up()
        for each in self._kept:
            each.mend()

    def set_up_log(self, settings: Log) -> None:
        log.set_up(settings.level, settings.format, self.log_fd)

    def lead_log(self, fd: int) -> None:
        """Leads the log of every process to what `fd` leads to, and closes it."""
        os.dup2(fd, self.log_fd, inheritable=False)
        os.close(fd)
        self._hand_on(self.log_fd)

    def reopen_log(self, settings: Log) -> None:
        """After logrotate(8) has moved the file away: the same descriptor, a new file, for every process."""
        if settings.file == "-":
            return
        try:
            self.lead_log(log.open_file(settings.file))
        except ForkdError as error:
            log.say("error", f"{error}; the old one goes on")

    def close(self) -> None:
        """Removes what others would take for a running forkd."""
        for each in self._kept:
            each.leaving.remove()
        if self._control is not None:
            self._control.close()

    def _open_control(self, path: Path, wait: Wait, obey: Obey, *, asked_for: bool) -> None:
        """Opens the control socket; one that nobody asked for may fail with a warning."""
        try:
            server = ControlServer(str(path), wait, obey)
        except OSError as error:
            what = f"cannot open the control socket {path}: {error.strerror}"
            if asked_for:
                raise ControlError(what) from None
            log.say("warning", f"{what}; status and reload by command will not work")
        else:
            self._keep_control(server, str(path))

    def _keep_control(self, server: ControlServer, path: str) -> None:
        self._control = server
        self._kept.append(_Kept(f"the control socket {path}", server.leaving, server.reopen))

    def _open_pidfile(self, path: Path) -> None:
        try:
            leaving = _write_pidfile(path, os.rename)
        except OSError as error:
            raise ForkdError(f"cannot write the pid file {path}: {error.strerror}") from None
        self._keep_pidfile(path, leaving)

    def _keep_pidfile(self, path: Path, leaving: Leaving) -> None:
        # Once more it is put there by link(2), which replaces nothing that somebody else has put there since.
        self._pidfile = _Kept(f"the pid file {path}", leaving, partial(_write_pidfile, path, os.link))
        self._kept.append(self._pidfile)


class _Kept(Struct):
    """A file that has to stay where others look for it, and how to make it again. `told`: that this can't be done."""

    name: str
    leaving: Leaving
    make: Callable[[], Leaving]
    told: bool = False

    def mend(self) -> None:
        if self.leaving.stands():
            if self.told:
                log.say("warning", f"{self.name} is there again")
            self.told = False
            return
        try:
            self.leaving = self.make()
        except OSError as error:
            if not self.told:
                why = error.strerror or error
                log.say("warning", f"{self.name} was removed or replaced, and cannot be made again so far: {why}")
            self.told = True
        else:
            log.say("warning", f"{self.name} was removed or replaced; it is made again")
            self.told = False


def _write_pidfile(path: Path, place: Callable[[str, Path], None]) -> Leaving:
    """Written beside its place and then put there, so that no link that stands there is followed."""
    beside = f"{path}.{os.getpid()}"
    with suppress(FileNotFoundError):
        os.unlink(beside)  # noqa: PTH108  # a leaving of an earlier process of our number
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        os.write(fd, f"{os.getpid()}\n".encode())
        leaving = Leaving.at(beside)._replace(path=str(path))
        place(beside, path)
    finally:
        os.close(fd)
        with suppress(OSError):
            os.unlink(beside)  # noqa: PTH108
    return leaving
