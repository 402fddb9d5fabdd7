"""What processes cost, by the kernel's own records: processor time, memory, how often they woke up.

A server is all its processes: the one that was started and every descendant. Nothing attaches to them or sends them
requests, so measuring does not disturb them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_GONE: Final = (FileNotFoundError, ProcessLookupError)

# Servers have one core; the clients and this program have the other. On a machine of one core all share it.
CORES: Final = sorted(os.sched_getaffinity(0))
SERVERS: Final = CORES[-1]
CLIENTS: Final = CORES[0]


def on_core(core: int) -> Callable[[], None]:
    """Returns a function that pins its process to the core; run it between fork and exec."""
    return lambda: os.sched_setaffinity(0, {core})


def family(pid: int) -> list[int]:
    """Returns the PIDs of the process and all its descendants, zombies included."""
    found = [pid]
    for each in found:
        # Each thread lists the children that it forked.
        with suppress(*_GONE):
            for task in Path(f"/proc/{each}/task").iterdir():
                with suppress(*_GONE):
                    found += map(int, (task / "children").read_text().split())
    return found


def alive(pid: int) -> bool:
    """Whether the process runs. A zombie does not count, although kill(pid, 0) still succeeds for one."""
    with suppress(*_GONE):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def cpu_ns(pids: Iterable[int]) -> int:
    """Returns the processor time, in ns, of these processes and of those of their children that were reaped."""
    return sum(_own_ns(pid) + _reaped_ns(pid) for pid in pids)


def _own_ns(pid: int) -> int:
    """Returns the processor time of all its threads, including those that have ended, to the nanosecond.

    Python has no clock_getcpuclockid(3) for other processes. The kernel makes the clock's number from the complement
    of the PID, and 2 for CPUCLOCK_SCHED. utime and stime in /proc/PID/stat would be in ticks of 10 ms.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return 0  # it has ended; its time is now in its parent's sum


def _reaped_ns(pid: int) -> int:
    """Returns cutime and cstime, which have the precision of a tick; they matter where each connection is a process."""
    with suppress(*_GONE):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) * _TICK_NS
    return 0


def busiest(pids: Iterable[int]) -> int:
    """Returns the PID of the process that has used the most processor time."""
    return max(pids, key=_own_ns)


def memory(pid: int) -> dict[str, int]:
    """Returns bytes by the kernel's names, such as Private_Dirty and Pss (proc_pid_smaps(5))."""
    found = {}
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            found[name.rstrip(":")] = int(value) * 1024
    return found


def memory_of_all(pids: Iterable[int], name: str) -> int:
    return sum(memory(pid).get(name, 0) for pid in pids)


def wakeups(pids: Iterable[int]) -> int:
    """Returns how often their threads have gone to sleep, and so how often they have woken up."""
    total = 0
    for pid in pids:
        with suppress(*_GONE):
            for task in Path(f"/proc/{pid}/task").iterdir():
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        total += int(line.split()[1])
    return total


@dataclass(frozen=True, slots=True)
class Machine:
    """The time of all cores since boot, in ticks; `stolen` went to other machines on the same hardware."""

    idle: int
    stolen: int
    total: int

    def since(self, earlier: Machine) -> Machine:
        return Machine(self.idle - earlier.idle, self.stolen - earlier.stolen, self.total - earlier.total)


def machine() -> Machine:
    # proc_stat(5): user nice system idle iowait irq softirq steal; guests are within user.
    ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return Machine(ticks[3] + ticks[4], ticks[7], sum(ticks))
