"""Processes as the kernel has them: start, title, and what an exit status means.

It must not know why a process is started or ended; slots, sockets and settings are other rooms'.
Signals are blocked whenever a process is born, for until the child has an inbox of its own a
signal to it would be handled as the parent's (and land in the parent's wake-up pipe).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NoReturn

from setproctitle import getproctitle, setproctitle

_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)

# What `spawn` gives a fresh interpreter to run. -P keeps the working folder, which
# anybody may have written to, off the module path; the package's own folder is named instead.
_BOOT: Final = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.append(root); "
    "from forkd.{module} import {call}; sys.exit({call}({fd}))"
)

# What the service manager says to the master alone (systemd.exec(5)): an application could speak in its name.
_FOR_MASTER: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE"}
)


def find_title() -> None:
    """Has the title's place found while the environment stands where the kernel has put it, right behind it."""
    getproctitle()


def set_title(title: str) -> None:
    """What ps(1) shows of this process."""
    setproctitle(title)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Holds every signal back until the end of the block, or for ever in a child that is born in it."""
    before = hold_signals()
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_signals() -> set[int]:
    """Holds every signal back from now on; gives those that were before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))


def unblock_signals() -> None:
    """Lets signals come, once this process has its own inbox."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def spawn(module: str, fd: int, keep: Sequence[int], *, call: str = "main", stderr: int = 2) -> int:
    """Starts a fresh interpreter that runs `main(fd)` (or another `call`) of `forkd.<module>`; gives its pid.

    It inherits `fd`, `keep`, the standard three (`stderr` as the third) and the environment, but for what the
    service manager says to the master, and begins with all signals blocked.
    posix_spawn(3) copies no page tables, and hands a failed exec back as an OSError here.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    error = (os.POSIX_SPAWN_DUP2, stderr, 2)
    # Duplicating a descriptor onto itself is how posix_spawn is told to let it through exec.
    inherit = [(os.POSIX_SPAWN_DUP2, each, each) for each in {fd, *keep}]
    return os.posix_spawn(
        sys.executable,
        _argv(module, call, fd),
        {name: value for name, value in os.environ.items() if name not in _FOR_MASTER},
        file_actions=[null, error, *inherit],
        setsigmask=signal.valid_signals(),
    )


def become_program(module: str, fd: int, keep: Sequence[int]) -> NoReturn:
    """Replaces this process's program by a fresh interpreter that runs `main(fd)` of `forkd.<module>` (execve(2)).

    It keeps `fd`, `keep` and the standard three. Signals are to be blocked by then: it begins so, and those
    that come meanwhile wait for it. When it cannot be, OSError says why and all is as it was.
    """
    kept = [each for each in {fd, *keep} if not os.get_inheritable(each)]
    try:
        for each in kept:
            os.set_inheritable(each, True)
        os.execve(sys.executable, _argv(module, "main", fd), os.environ)
    finally:
        for each in kept:
            os.set_inheritable(each, False)


def _argv(module: str, call: str, fd: int) -> list[str]:
    root = os.path.dirname(package_folder())  # noqa: PTH120
    return [sys.executable, "-P", "-c", _BOOT.format(module=module, call=call, fd=fd), root]


def package_folder() -> str:
    """The folder that this package is in."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100


def become_subreaper() -> None:
    """Makes this process the parent of orphans among its descendants, as init would be."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def exit_code(status: int | None) -> int | None:
    """The exit status in a wait status, negative for a signal; None for none, or for a number that cannot be one."""
    try:
        return None if status is None else os.waitstatus_to_exitcode(status)
    except (ValueError, OverflowError):
        return None


def outcome(status: int | None) -> str:
    """A wait status in words: `signal 9 (SIGKILL)`, `exit status 1` or `unknown`."""
    code = exit_code(status)
    if code is None:
        return "unknown"
    if code >= 0:
        return f"exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unnamed"
    return f"signal {-code} ({name})"


def reap() -> Iterator[tuple[int, int]]:
    """The pid and wait status of each child that has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
