"""What applications have left running when a master ends: killed, where systemd would leave that to us.

A unit with KillMode=process leaves to the master who ends when; then nobody else sees to what an application has
started and not ended. All of it is in the unit's cgroup, whoever its parent is by now (cgroups(7)).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from forkd.log import log

_MOUNTS: Final = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd")
_ROUNDS: Final = 100  # one that forks faster than it is killed may stay


def end() -> None:
    """Kills every other process in the cgroup of our unit, if there is one of which we are the main process."""
    # systemd.exec(5): the number of the process that it has started. Who has merely inherited it kills nobody.
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
                log.say("warning", "an application has left a process running, which is killed", _facts(pid))
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _list_of_processes() -> Path | None:
    """The file with the processes of our cgroup, if that is a service's."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if path.endswith(".service") and (number == "0" or controllers == "name=systemd"):
            for mount in _MOUNTS:
                file = Path(f"{mount}{path}/cgroup.procs")
                if file.exists():
                    return file
    return None


def _has_ended(pid: int) -> bool:
    """Whether it waits to be reaped, or has been."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return True


def _facts(pid: int) -> dict[str, object]:
    with suppress(OSError):
        return {"pid": pid, "name": Path(f"/proc/{pid}/comm").read_text().rstrip("\n")}
    return {"pid": pid}
