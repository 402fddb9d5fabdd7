"""Whether the kernel has just killed a process for lack of memory: the likely cause of a SIGKILL nobody ordered.

The kernel counts such deaths for the whole machine (proc(5), vmstat, oom_kill) and tells nobody whom it
killed but its own log, which an unprivileged process may not read.
"""

from __future__ import annotations

from typing import Final

_FRESH: Final = 1.0  # seconds between two looks: a death is told at most two of them after the kill


class OomWatch:
    """The kernel's count, one and two looks ago."""

    def __init__(self, now: float) -> None:
        self._before = self._last = oom_kills()
        self._looked = now

    def look(self, now: float) -> None:
        """To be called often; looks when the last look is no longer fresh."""
        if now >= self._looked + _FRESH:
            self._before, self._last, self._looked = self._last, oom_kills(), now

    def killed(self) -> bool:
        """Whether the kernel has killed a process within the last two seconds or so."""
        return oom_kills() > self._before


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", "rb") as vmstat:  # noqa: PTH123
            return next((int(line.split()[1]) for line in vmstat if line.startswith(b"oom_kill ")), 0)
    except OSError:
        return 0
