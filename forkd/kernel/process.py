"""Starting processes, their titles, and the meaning of an exit status.

It must not know why a process is started or ended; slots, sockets and settings belong to other rooms.
Signals are blocked whenever a process is created: until the child has its own inbox, the parent's
handler would take a signal sent to it (and write it into the parent's wake-up pipe).
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

# The program that `spawn` gives a fresh interpreter. -P keeps the working folder, which others may be able
# to write to, off the module path; the package's own folder is named instead.
_BOOT: Final = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.append(root); "
    "from forkd.{module} import {call}; sys.exit({call}({fd}))"
)

# Meant for the master alone (systemd.exec(5)): with these an application could speak in its name.
_FOR_MASTER: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE"}
)


def find_title() -> None:
    """Locates the memory of the title while the environment is still right behind it, where the kernel put it."""
    getproctitle()


def set_title(title: str) -> None:
    """Sets what ps(1) shows for this process."""
    setproctitle(title)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Blocks every signal until the end of the block; in a child forked inside it, for good."""
    before = hold_signals()
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hold_signals() -> set[int]:
    """Blocks every signal. Returns those that were blocked before."""
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()))


def unblock_signals() -> None:
    """Unblocks all signals, once this process has its own inbox."""
    signal.pthread_sigmask(signal.SIG_SETMASK, set())


def spawn(module: str, fd: int, keep: Sequence[int], *, call: str = "main", stderr: int = 2) -> int:
    """Starts a fresh interpreter that runs `main(fd)` (or another `call`) of `forkd.<module>`. Returns its PID.

    It inherits `fd`, `keep`, the three standard descriptors (`stderr` as the third) and the environment, except
    for what the service manager tells the master, and starts with all signals blocked.
    posix_spawn(3) copies no page tables, and raises a failed exec as an OSError here.
    """
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    error = (os.POSIX_SPAWN_DUP2, stderr, 2)
    # Duplicating a descriptor onto itself makes posix_spawn keep it open across exec.
    inherit = [(os.POSIX_SPAWN_DUP2, each, each) for each in {fd, *keep}]
    return os.posix_spawn(
        sys.executable,
        _argv(module, call, fd),
        {name: value for name, value in os.environ.items() if name not in _FOR_MASTER},
        file_actions=[null, error, *inherit],
        setsigmask=signal.valid_signals(),
    )


def become_program(module: str, fd: int, keep: Sequence[int]) -> NoReturn:
    """Replaces this process's program with a fresh interpreter that runs `main(fd)` of `forkd.<module>` (execve(2)).

    It keeps `fd`, `keep` and the three standard descriptors. Block all signals first: the new program starts with
    them blocked, and those that arrive in between wait for it. Raises OSError if it fails; nothing has changed then.
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
    """Returns the folder of this package, an absolute path."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH120, PTH100


def become_subreaper() -> None:
    """Makes this process the parent of orphans among its descendants, as init would be."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def exit_code(status: int | None) -> int | None:
    """Returns the exit status in a wait status, negative for a signal; None if there is none or it is not valid."""
    try:
        return None if status is None else os.waitstatus_to_exitcode(status)
    except (ValueError, OverflowError):
        return None


def outcome(status: int | None) -> str:
    """Describes a wait status: `signal 9 (SIGKILL)`, `exit status 1` or `unknown`."""
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
    """Reaps the children that have ended; yields the PID and wait status of each."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status
