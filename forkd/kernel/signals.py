"""Signals become bytes in a pipe; nothing else happens to them here.

Servers deadlock and lose connections when a signal handler logs, reaps or raises. Python's own C handler
writes the number of each signal into the inbox (signal.set_wakeup_fd); the process that waits on the inbox
reads them outside any handler.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from itertools import groupby
from types import FrameType
from typing import Final

# A terminal sends most of these to its whole foreground process group; only the master should act on them.
IGNORED_BELOW_MASTER: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGPIPE,
)


class Inbox:
    """The signals that have arrived, in a pipe that can be waited on. A process has at most one."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for each in signals:
            signal.signal(each, _noted)

    def take(self) -> list[int]:
        """Returns the signal numbers that have arrived since the last call, oldest first.

        The order of signals that arrive within the microseconds of waking up is unknown: the kernel keeps
        pending signals as a set (signal(7)).
        """
        numbers: list[int] = []
        while True:
            try:
                data = os.read(self.fd, 4096)
            except BlockingIOError:
                return numbers
            numbers.extend(data)
            if len(data) < 4096:
                return numbers

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        os.close(self.fd)
        os.close(self._write)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yields each number with how often it came in a row, so that a storm of one signal can be acted on once."""
    for number, row in groupby(numbers):
        yield number, len(list(row))


def ignore(signals: Iterable[signal.Signals]) -> None:
    """Makes this process ignore the signals."""
    for each in signals:
        signal.signal(each, signal.SIG_IGN)


def heed_all() -> None:
    """Restores the default for signals that our parent set to ignored, as nohup(1) and shells (`job &`) do.

    A program inherits ignored signals (signal(7)) and passes them on to all that it starts. Those that Python
    itself ignores stay ignored.
    """
    for each in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)


def forget_inbox() -> None:
    """Detaches a child from the parent's pipe, right after the fork, so that its signals do not land there."""
    signal.set_wakeup_fd(-1)


def _noted(signum: int, frame: FrameType | None) -> None:
    """Does nothing: the C handler has already written the number into the inbox."""
