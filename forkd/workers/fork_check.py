"""What an application's import left behind that a fork would break: threads that run, sockets that are open.

A thread does not come along into a forked process, but the locks that it holds do, locked for ever
(fork(2), pthread_atfork(3)); a socket does come along, and all workers would talk into the same
connection. What is found is named, so that somebody can move it into the service's lifespan.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Set
from contextlib import suppress

from forkd.kernel.address import from_sockaddr

REMEDY = "start and open such things in the service's lifespan, which begins in each worker after the fork"


def left_behind(own: Set[int]) -> list[str]:
    """A sentence for each thread beside the main one, and for each open socket whose descriptor is not in `own`."""
    return [*_threads(), *_sockets(own)]


def _threads() -> list[str]:
    named = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for task in sorted(int(name) for name in os.listdir("/proc/self/task")):  # noqa: PTH208
        if task == os.getpid():
            continue
        name = named.get(task)
        found.append(f"the thread {name!r} runs" if name else f"a native thread{_command(task)} runs")
    return found


def _command(task: int) -> str:
    """The kernel's name of a thread that Python did not start; nothing when it has just ended."""
    with suppress(OSError), open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as comm:  # noqa: PTH123
        return f" {comm.read().strip()!r}"
    return ""


def _sockets(own: Set[int]) -> list[str]:
    found = []
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):  # noqa: PTH208
        with suppress(OSError):
            if fd not in own and os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):  # noqa: PTH115
                found.append(f"a socket{_ends(fd)} is open (descriptor {fd})")
    return found


def _ends(fd: int) -> str:
    """Where a socket leads, or else where it listens."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        for word, name in ((" to", sock.getpeername), (" at", sock.getsockname)):
            with suppress(OSError):
                end = name()
                if end:
                    known = sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
                    return f"{word} {from_sockaddr(sock.family, end) if known else end}"
    return ""
