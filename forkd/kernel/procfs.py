"""Reads proc(5): parents and memory of processes, and kills by the kernel for lack of memory."""

from __future__ import annotations

import os
from collections.abc import Set
from typing import Final

_FRESH: Final = 1.0  # seconds between two readings; a worker's death is reported at most two readings after the kill


def has_terminal() -> bool:
    """Whether this process has a controlling terminal (tty(4)), which may send it signals."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def is_child_of(pidfd: int, pid: int, parents: Set[int]) -> bool:
    """Whether `pidfd` refers to process `pid`, a child of one of `parents`. True if it has ended: it may have been.

    Raises OSError if no descriptor is left to look it up with.
    """
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as info:  # noqa: PTH123
        found = next((int(line.split()[1]) for line in info if line.startswith(b"Pid:")), 0)
    if found != pid:
        return found == -1
    try:
        return _parent(pid) in parents
    except (FileNotFoundError, ProcessLookupError):
        return True


def may_descend(pid: int) -> bool:
    """Whether process `pid` descends from us. True if it has ended: it may have."""
    us, child = os.getpid(), None
    if pid == us:
        return False
    while pid not in (0, us):
        try:
            child, pid = pid, _parent(pid)
        except OSError:
            # An ancestor that we cannot see is another user's (hidepid of proc(5)), so it is not ours; unless it has
            # just ended, and its children have a new parent.
            if child is None or (seen := _parent_or_none(child)) is None:
                return True
            if seen == pid:
                return False
            pid = seen
    return pid == us


def _parent_or_none(pid: int) -> int | None:
    try:
        return _parent(pid)
    except OSError:
        return None


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123
        return int(stat.read().rpartition(b")")[2].split()[1])


def resident(pid: int) -> int:
    """Returns the resident memory of process `pid` in bytes (proc(5), statm); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:  # noqa: PTH123
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def own_memory() -> int:
    """Returns the resident memory of this process in bytes."""
    return resident(os.getpid())


class OomWatch:
    """The kernel's count of such kills, one and two readings ago."""

    def __init__(self, now: float) -> None:
        self._before = self._last = oom_kills()
        self._looked = now

    def look(self, now: float) -> None:
        """Reads the count again if the last reading is no longer fresh. Call it often."""
        if now >= self._looked + _FRESH:
            self._before, self._last, self._looked = self._last, oom_kills(), now

    def killed(self) -> bool:
        """Whether the kernel has killed a process within about the last two seconds."""
        return oom_kills() > self._before


def oom_kills() -> int:
    """Returns how many processes the kernel has killed for lack of memory; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as vmstat:  # noqa: PTH123
            return next((int(line.split()[1]) for line in vmstat if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
