"""Kills what applications have left running when a master ends, where systemd leaves that to us.

With KillMode=process systemd kills only the master, so no one else ends the processes that an application started
and left behind. All of them are in the unit's cgroup, whatever their parent is now (cgroups(7)).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from forkd.log import log

_MOUNTS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
_ROUNDS: Final = 100  # a process that forks faster than we kill may survive


def end() -> None:
    """Kills every other process in our unit's cgroup, if we are the main process of a unit."""
    # systemd.exec(5): the PID that systemd started. A process that merely inherited the variable kills nothing.
    started = os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) and os.getppid() == 1
    if not started or (list_ := _list_of_processes()) is None:
        return
    told: set[int] = set()
    for _ in range(_ROUNDS):
        others = [pid for pid in map(int, list_.read_text().split()) if pid not in (0, os.getpid())]
        alive = [pid for pid in others if not _has_ended(pid)]
        if not alive:
            return
        for pid in alive:
            if pid not in told:
                told.add(pid)
                log.say("warning", "killing a process that an application left running", _facts(pid))
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _list_of_processes() -> Path | None:
    """Finds the file that lists the processes of our cgroup; None if it is not that of a service."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if path.endswith(".service") and (number == "0" or controllers == "name=systemd"):
            for mount in _MOUNTS:
                file = Path(f"{mount}{path}/cgroup.procs")
                if file.exists():
                    return file
    return None


def _has_ended(pid: int) -> bool:
    """Whether the process is a zombie or gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _facts(pid: int) -> dict[str, object]:
    with suppress(OSError):
        return {"pid": pid, "name": Path(f"/proc/{pid}/comm").read_text().rstrip("\n")}
    return {"pid": pid}
