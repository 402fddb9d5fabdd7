"""Signals become bytes in a pipe, and bytes become commands; nothing else happens to them here.

A handler that logs, reaps or raises is how servers deadlock and lose connections. Python's own
C handler writes the number of each signal into the inbox (signal.set_wakeup_fd); whoever waits on
the inbox reads what has come, outside any handler.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from itertools import groupby
from types import FrameType
from typing import Final

# A terminal tells these to every process of its foreground group; only the master is to act on them.
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
    """The signals that have come, in a pipe that can be waited on; one a process."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for each in signals:
            signal.signal(each, _noted)

    def take(self) -> list[int]:
        """The numbers that have come since the last time, oldest first.

        Of signals that come while we sleep, within the microseconds of waking up, nobody knows the order:
        the kernel keeps them as a set (signal(7)).
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
    """Each number with how often it came in a row: a storm of one signal asks no more than two of it do."""
    for number, row in groupby(numbers):
        yield number, len(list(row))


def ignore(signals: Iterable[signal.Signals]) -> None:
    """Has this process ignore the signals."""
    for each in signals:
        signal.signal(each, signal.SIG_IGN)


def heed_all() -> None:
    """Gives up ignoring what our parent had us ignore, as nohup(1) does, or a shell in a job in the background.

    A program inherits that (signal(7)), and hands it on to all that it starts. What Python itself ignores stays so.
    """
    for each in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(each) is signal.SIG_IGN:
            signal.signal(each, signal.SIG_DFL)


def forget_inbox() -> None:
    """In a child, right after the fork: its signals must not land in the parent's pipe."""
    signal.set_wakeup_fd(-1)


def _noted(signum: int, frame: FrameType | None) -> None:
    """The C handler has written the number into the inbox; that is all."""
