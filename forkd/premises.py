"""What a master opens for itself, besides its listeners: the log, the control socket, the pid file.

All of it is found again by somebody else (logrotate, a command, an init script), and all of it is
put away at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from forkd import log
from forkd.control import ControlServer, Obey, Wait
from forkd.errors import ControlError, ForkdError
from forkd.leaving import Leaving
from forkd.settings import Log, Settings


class Premises:
    """The files of one running master. `log_fd` stays the same descriptor, wherever it leads."""

    def __init__(self, hand_on: Callable[[int], None]) -> None:
        self.log_fd = log.standard_error()
        self._hand_on = hand_on
        self._control: ControlServer | None = None
        self._pidfile: Leaving | None = None

    def open(self, settings: Settings, control_path: Path | None, wait: Wait, obey: Obey) -> None:
        """Opens everything that the settings name; ForkdError says what cannot be had."""
        if settings.master.log.file != "-":
            self.lead_log(log.open_file(settings.master.log.file))
        self.set_up_log(settings.master.log)
        if control_path is not None:
            self._open_control(control_path, wait, obey, asked_for=settings.master.control is not None)
        if settings.master.pidfile is not None:
            self._write_pidfile(settings.master.pidfile)

    def leavings(self) -> list[Leaving]:
        """The files that would stay behind if the master died."""
        found = [self._pidfile] if self._pidfile is not None else []
        return [*found, self._control.leaving] if self._control is not None else found

    def set_up_log(self, settings: Log) -> None:
        log.set_up(settings.level, settings.format, self.log_fd)

    def lead_log(self, fd: int) -> None:
        """Leads the log of every process to what `fd` leads to, and closes it."""
        os.dup2(fd, self.log_fd, inheritable=False)
        self._hand_on(fd)
        os.close(fd)

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
        if self._pidfile is not None:
            self._pidfile.remove()
        if self._control is not None:
            self._control.close()

    def _open_control(self, path: Path, wait: Wait, obey: Obey, *, asked_for: bool) -> None:
        """Opens the control socket; one that nobody asked for may fail with a warning."""
        try:
            self._control = ControlServer(str(path), wait, obey)
        except OSError as error:
            what = f"cannot open the control socket {path}: {error.strerror}"
            if asked_for:
                raise ControlError(what) from None
            log.say("warning", f"{what}; status and reload by command will not work")

    def _write_pidfile(self, path: Path) -> None:
        """Written beside its place and renamed, so that no link that stands there is followed."""
        beside = f"{path}.{os.getpid()}"
        try:
            with suppress(FileNotFoundError):
                os.unlink(beside)  # noqa: PTH108  # a leaving of an earlier process of our number
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
            os.write(fd, f"{os.getpid()}\n".encode())
            os.close(fd)
            self._pidfile = Leaving.at(beside)._replace(path=str(path))
            os.rename(beside, path)  # noqa: PTH104
        except OSError as error:
            raise ForkdError(f"cannot write the pid file {path}: {error.strerror}") from None
