"""Finds the master that already runs, stops it and waits for its end.

It is found by the lock on its pid file or by its control socket. A PID may be reused at any moment, so no process is
signalled by number: a pidfd (pidfd_open(2)) holds the process, and once held it is checked again.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from forkd.errors import ControlError, ForkdError, RunsAlreadyError, TimedOutError, UnreachableError
from forkd.ipc import control_client
from forkd.kernel import pidfile

ASK_SECONDS: Final = 10.0
_LOOKS: Final = 10
_UNSEEN: Final = (
    "forkd is running, but its process is not visible from here: it is in another container, or /proc is hidden"
)


class RunningMaster:
    """A running master, held by `pidfd`. `detached` is False if it runs in the foreground, None if unknown."""

    def __init__(self, pid: int, pidfd: int, master: dict[str, Any]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.detached: bool | None = master.get("detached")
        self.stopping = master.get("phase") in ("stopping", "quitting")

    def stop(self, *, quick: bool = False, timeout: float | None = None) -> None:
        """Stops it and waits until it is gone. Raises TimedOutError after `timeout` seconds."""
        # A second TERM would turn a stop that is under way into a quick one.
        if quick or not self.stopping:
            self._signal(signal.SIGINT if quick else signal.SIGTERM)
        gone = select.poll()
        gone.register(self.pidfd, select.POLLIN)
        if not gone.poll(None if timeout is None else timeout * 1000):
            raise TimedOutError(
                f"process {self.pid} is still running after {timeout:g} s; --quick does not wait for its workers"
            )

    def close(self) -> None:
        os.close(self.pidfd)

    def _signal(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            pass  # it has already ended
        except PermissionError:
            raise UnreachableError(f"process {self.pid} is another user's: try as that user or as root") from None


def find(control_path: Path, pid_path: Path) -> RunningMaster | None:
    """Returns the master that holds this pid file or this control socket, or None."""
    return _held(partial(pidfile.holder, pid_path), control_path) or _answering(control_path)


def refuse(control_path: Path, pid_path: Path) -> None:
    """Raises RunsAlreadyError if a master holds one of them."""
    found = find(control_path, pid_path)
    if found is not None:
        found.close()
        raise RunsAlreadyError(found.pid, f"its control socket is {control_path}")


def _answering(control_path: Path) -> RunningMaster | None:
    """Returns the process that listens at the control socket, if it answers as forkd: any program may listen there."""
    if control_client.listening_process(control_path) is None:
        return None
    control_client.ask(control_path, {"command": "status"}, ASK_SECONDS)
    return _held(partial(control_client.listening_process, control_path), control_path)


def _held(look: Callable[[], int | None], control_path: Path) -> RunningMaster | None:
    """Holds the process that `look` returns, and looks again to be sure that it is still the one."""
    for _ in range(_LOOKS):
        pid = look()
        if pid is None:
            return None
        if pid == 0:
            raise ControlError(_UNSEEN)
        with suppress(ProcessLookupError):  # it has just ended
            held = os.pidfd_open(pid)
            if look() == pid:
                return RunningMaster(pid, held, _master(control_path))
            os.close(held)
    return None


def _master(control_path: Path) -> dict[str, Any]:
    """Returns what the master reports about itself, empty if it does not answer."""
    with suppress(ForkdError, KeyError, TypeError):
        return dict(control_client.ask(control_path, {"command": "status"}, ASK_SECONDS)["master"])
    return {}
